"""A teacher's part of the loss: what the paper writes, and of whom it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit, rel_entr, softmax

from configs import common
from input_pipeline.batches.targets import Chunk
from input_pipeline.examples import Examples, object_array
from tasks import task_class, teaching

LABELS = ("差", "中", "好")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 3)).astype(np.float32)
TEACHER = softmax(RNG.normal(size=(4, 3)) * 2, axis=1).astype(np.float32)
# By example: both, a label alone, a teacher alone, nothing.
BATCH = {
    "labels_B": np.array([0, 1, 0, 0], np.int32),
    "labels_BxC": np.eye(3, dtype=np.float32)[[0, 1, 0, 0]],
    "labelled_B": np.array([1, 1, 0, 0], np.float32),
    "taught_B": np.array([1, 0, 1, 0], np.float32),
    "weights_B": np.array([1, 1, 1, 0], np.float32),
    "teacher_BxC": TEACHER,
}


def make_task(kind="single", share=0.3, **options):
    config = common.get_config()
    config.teach.update(share=share, temperature=2.0)
    config.classification.update(kind=kind, **options)
    labels = ("a/b", "a/c", "d/e") if kind == "hierarchical" else LABELS
    return task_class(config)(config, labels, tokenizer=None, backbone=None)


def test_the_distance_is_the_divergence_of_softened_distributions_times_the_square():
    softened = softmax(np.log(TEACHER) / 2, axis=1), softmax(LOGITS / 2, axis=1)
    expected = 4 * rel_entr(*softened).sum(axis=1)
    np.testing.assert_allclose(teaching.distance(TEACHER, LOGITS, 2.0), expected, rtol=1e-4)
    one, other = expit(logit(TEACHER) / 2), expit(LOGITS / 2)
    expected = 4 * (rel_entr(one, other) + rel_entr(1 - one, 1 - other)).mean(axis=1)
    np.testing.assert_allclose(teaching.binary_distance(TEACHER, LOGITS, 2.0), expected, rtol=1e-4)
    for apart, own in (
        (teaching.distance, jnp.log(TEACHER)),
        (teaching.binary_distance, logit(TEACHER)),
    ):
        np.testing.assert_allclose(apart(TEACHER, own, 2.0), 0, atol=1e-5)
        assert np.isfinite(apart(np.eye(3), LOGITS[:3], 2.0)).all()


@pytest.mark.parametrize("kind", ["single", "ordinal", "hierarchical", "multi"])
def test_examples_learn_from_a_label_a_teacher_or_both_by_the_share(kind):
    task, bare = (
        make_task(kind),
        {k: v for k, v in BATCH.items() if k[:7] in ("labels_", "weights")},
    )

    def loss(rows, batch, task=task):
        part = {name: array[rows] for name, array in batch.items()}
        return [float(x) for x in task.loss({"logits_BxC": LOGITS[rows]}, part)[:2]]

    apart = teaching.binary_distance if kind == "multi" else teaching.distance
    distances = np.asarray(apart(TEACHER, LOGITS, 2.0), float)
    assert loss([1], BATCH) == pytest.approx(loss([1], bare), rel=1e-5)
    (both, weight), (label, _) = loss([0], BATCH), loss([0], bare)
    assert (both, weight) == pytest.approx((0.7 * label + 0.3 * distances[0], 1), rel=1e-5)
    if kind != "multi":  # of which no label is masked
        assert loss([2], BATCH) == pytest.approx((distances[2], 1), rel=1e-5)
    assert loss([3], BATCH) == [0, 0]
    total = np.sum([loss([row], BATCH) for row in range(4)], axis=0)
    assert loss(slice(None), BATCH) == pytest.approx(total, rel=1e-5)


def test_class_weights_are_of_labels_and_correct_of_what_is_learned_from():
    task = make_task(class_weights=(5.0, 2.0, 1.0))
    _, weight, _ = task.loss({"logits_BxC": LOGITS}, BATCH)
    assert float(weight) == pytest.approx(0.7 * 5 + 0.3 + 2 + 1)
    best = jnp.log(TEACHER).at[1].set([0, 9, 0])
    right = 0.7 * 5 * (TEACHER[0].argmax() == 0) + 0.3 + 2 + 1
    assert float(task.loss({"logits_BxC": best}, BATCH)[2]["correct"]) == pytest.approx(right)
    others = {"logits_BxC": LOGITS + 1.0 * np.eye(4, 3)}
    apart = task.divergence({"logits_BxC": LOGITS}, others, BATCH, None)
    assert np.isfinite(float(apart)) and apart > 0


def test_what_has_neither_label_nor_teacher_changes_no_gradient():
    task = make_task()
    spoilt = LOGITS.copy()
    spoilt[3] = np.nan
    slopes = [
        jax.grad(lambda x: task.loss({"logits_BxC": x}, BATCH)[0])(logits)
        for logits in (LOGITS, spoilt)
    ]
    np.testing.assert_array_equal(*slopes)


def test_a_batch_holds_the_teacher_in_training_alone():
    teacher_NxC = TEACHER.copy()
    teacher_NxC[[1, 3]] = np.nan
    examples = Examples(
        object_array(["甲", "乙", "丙", "丁"]),
        np.array([0, 1, -1, -1], np.int32),
        np.arange(4),
        teacher_NxC=teacher_NxC,
    )
    task, indices = make_task(), np.array([3, 2, 1, 0])
    chunk = Chunk(examples, indices, np.zeros(4, int), [], None, 0, True)
    held = task.targets(None, chunk).examples
    for name in ("labelled_B", "taught_B", "weights_B"):
        np.testing.assert_array_equal(held[name], BATCH[name][::-1], err_msg=name)
    np.testing.assert_array_equal(held["teacher_BxC"][[1, 3]], TEACHER[[2, 0]])
    assert np.isfinite(held["teacher_BxC"]).all()
    assert held.keys() - task.targets(None, chunk._replace(training=False)).examples.keys() == {
        "teacher_BxC",
        "taught_B",
        "labelled_B",
    }
    task.check(examples.take(np.array([2])), "train")  # no label, but a teacher
    assert task.known_labels(examples)[1] == 1
    with pytest.raises(ValueError, match="none of the 1 train"):
        task.check(examples.take(np.array([3])), "train")
