"""config.teach from a file to the gradient: joins, refusals, the same in any layout."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import rel_entr, softmax

from input_pipeline.batches.targets import Chunk
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples, object_array
from tasks import all_classes, task_class
from training.experiment import build
from training.sharding import put_batch
from training.state import TrainState
from training.train_step import make_train_step
from training.tuning.regularizers import Regularizers
from workflows.teacher import with_targets
from workflows.train import train

LABELS = ["negative", "positive"]
EXAMPLES = Examples(
    object_array(["好", "坏", "中"]), np.array([1, 0, -1], np.int32), np.array([7, 8, 9])
)


def row(text=None, p=0.25, *, labels=LABELS, **more):
    known = {} if text is None else {"text": text}
    return known | {"probabilities": dict(zip(labels, (1 - p, p), strict=True))} | more


@pytest.fixture
def joined(tiny_config, tmp_path):
    """A function that joins rows of a file to EXAMPLES."""

    def join(*rows, examples=EXAMPLES, **options):
        path = tmp_path / "targets.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        tiny_config.teach.targets = str(path)
        tiny_config.update_from_flattened_dict(options)
        return with_targets(tiny_config, examples, LABELS).teacher_NxC

    return join


def test_texts_are_joined_by_text_and_counted(joined, capsys):
    teacher_NxC = joined(row("中", 0.75, id=7), row("好", id=99), row("别的"))
    np.testing.assert_allclose(teacher_NxC, [[0.75, 0.25], [np.nan] * 2, [0.25, 0.75]])
    said = capsys.readouterr().out
    assert "probabilities of 2 of 3 training examples, 1 of them without a label; 1 have" in said


def test_pairs_are_of_both_texts_and_ids_serve_where_there_are_no_texts(joined):
    by_id = joined(row(id=9, p=0.75), row(id=7))
    np.testing.assert_allclose(by_id[[0, 2]], [[0.75, 0.25], [0.25, 0.75]])
    texts_N, pairs_N = object_array(["好", "好"]), object_array(["甲", "乙"])
    pairs = Examples(texts_N, np.zeros(2, np.int32), np.arange(2), pairs_N=pairs_N)
    teacher_NxC = joined(row("好", pair="乙"), examples=pairs)
    assert np.isnan(teacher_NxC[0]).all() and np.isfinite(teacher_NxC[1]).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("好", labels=LABELS[::-1])], r"'positive', 'negative'\], this run has \['negative'"),
        ([row("好", labels=["a", "b"])], r"targets.jsonl:1: the teacher has the labels \['a', 'b'"),
        ([row("好"), row("好", 0.9)], r"targets.jsonl:2: \('好', ''\) has other probabilities"),
        ([row("好", 1.5)], "expected numbers from 0 to 1 that sum to 1"),
        ([row("好", float("nan"))], "expected numbers from 0 to 1"),
        ([{"text": "好", "probabilities": {"negative": 0.5, "positive": 0.1}}], "that sum to 1"),
        ([{"text": "好", "probabilities": {"negative": "x", "positive": 0.1}}], "that sum to 1"),
        ([{"text": "好", "prediction": "positive"}], "expected 'probabilities' by label"),
        ([row("别的")], "none of the 3 training examples is among the 1"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(joined, rows, message):
    with pytest.raises(ValueError, match=message):
        joined(*rows)


def test_probabilities_of_several_labels_need_not_sum_to_one(joined):
    rows = [{"text": "好", "probabilities": {"negative": 0.9, "positive": 0.8}}]
    assert joined(*rows, **{"classification.kind": "multi"})[0].tolist() == pytest.approx(
        [0.9, 0.8]
    )


@pytest.mark.parametrize("name", [n for n, kind in all_classes().items() if not kind.TEACHABLE])
def test_other_tasks_are_refused_by_name(tiny_config, tmp_path, name):
    tiny_config.task, _, kind = name.partition("/")
    tiny_config.classification.kind = kind or "single"
    tiny_config.teach.targets = "targets.jsonl"
    with pytest.raises(ValueError, match=f"config.teach.targets: found the task '{name}'"):
        with_targets(tiny_config, EXAMPLES, LABELS)


def test_a_missing_file_fails_before_the_data_are_read(tiny_config, tmp_path):
    tiny_config.teach.targets, tiny_config.data.files = str(tmp_path / "none.jsonl"), "nowhere.csv"
    with pytest.raises(FileNotFoundError, match=r"config.teach.targets: there is no file /.*none"):
        train(tiny_config, tmp_path / "run")


def one_step(experiment, batch):
    """Returns the gradients of the batch as the optimiser gets them."""
    train_step = make_train_step(
        Regularizers(experiment.config.regularize, experiment.passes(), seed=0),
        optax.with_extra_args_support(optax.scale(-1.0)),
        learning_rate=1.0,
        schedule=lambda examples: dict.fromkeys(experiment.initial, 1.0),
        batch_size=experiment.config.data.batch_size,
    )
    params = experiment.put(experiment.initial)
    state = TrainState(jnp.int32(0), jnp.int32(0), params, optax.EmptyState())
    placed = put_batch(batch, experiment.mesh)
    after, _ = jax.jit(train_step)(state, experiment.frozen, placed)
    return {path: np.asarray(value - after.params[path]) for path, value in params.items()}


def test_gradients_are_those_of_any_layout_and_division(make_config, tmp_path):
    """A third of the examples have no teacher, another third no label."""
    gradients = []
    for layout, microbatches in (("pack", 1), ("pad", 1), ("pack", 2)):
        config = make_config()
        config.layout.kind, config.train.microbatches = layout, microbatches
        config.model.head, config.teach.share = "linear", 0.3
        prepared = prepare(config.data)
        examples = load_split(prepared, "train", limit=96)
        numbers_N = np.arange(96) % 3
        examples.labels_N[numbers_N == 1] = -1
        teacher_NxC = np.random.default_rng(0).dirichlet([1, 1], 96).astype(np.float32)
        teacher_NxC[numbers_N == 0] = np.nan
        taught = Examples(**{**vars(examples), "teacher_NxC": teacher_NxC})
        steps = []
        for given in (taught, examples) if not gradients else (taught,):
            experiment = build(config, tmp_path / f"{layout}{microbatches}", LABELS, str)
            batch = next(experiment.pipeline.train(given, first_example=0))
            steps.append(one_step(experiment, batch))
        gradients.append(steps[0])
        if len(steps) > 1:
            assert max(np.abs(steps[0][path] - steps[1][path]).max() for path in steps[0]) > 1e-3
    largest = max(np.abs(value).max() for value in gradients[0].values())
    for other in gradients[1:]:
        for path, value in gradients[0].items():
            np.testing.assert_allclose(other[path], value, atol=2e-4 * largest, err_msg=path)


def test_an_embedding_learns_the_scores_of_its_own_candidates(tiny_config, tmp_path, capsys):
    """The distance is the divergence that SciPy computes of the candidates a step reads."""
    rows = [
        {"query": f"{i}号", "pos": [f"是{i}"], "neg": [f"非{i}", f"否{i}", f"不{i}"][: i % 4]}
        for i in range(8)
    ]
    scores = np.random.default_rng(0).normal(size=(8, 4)).round(3).tolist()
    for row, (first, *others) in zip(rows, scores, strict=True):
        row |= {"pos_scores": [first], "neg_scores": others[: len(row["neg"])]}
    path = tmp_path / "mined.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tiny_config.task, tiny_config.teach.targets = "embedding", str(path)
    tiny_config.data.template, tiny_config.embedding.negatives = "{text}", 2
    tiny_config.model.update(head="linear", pooling="mean", label_words=())
    examples = Examples(
        object_array([row["query"] for row in rows]),
        None,
        np.arange(8),
        pairs_N=object_array([row["pos"][0] for row in rows]),
        negatives_N=object_array([tuple(row["neg"]) for row in rows]),
    )
    taught = with_targets(tiny_config, examples, [])
    assert "has scores of 6 of 8 training examples" in capsys.readouterr().out
    task = task_class(tiny_config)(
        tiny_config, (), tokenizer=None, backbone=SimpleNamespace(width=4)
    )
    epochs_B = np.arange(8) % 3
    chunk = Chunk(taught, np.arange(8), epochs_B, taught.texts_N, None, seed=0, training=True)
    batch = {k: jnp.asarray(v) for k, v in task.targets(None, chunk).examples.items()}
    vectors_BxKxE = np.random.default_rng(1).normal(size=(8, 4, 4)).astype(np.float32)
    units = vectors_BxKxE / np.linalg.norm(vectors_BxKxE, axis=-1, keepdims=True)
    outputs = {"vectors_BxKxE": vectors_BxKxE, "scale_B": np.full(8, 20, np.float32)}
    share = tiny_config.teach.share
    plain = {name: x for name, x in batch.items() if name not in ("scores_BxP", "taught_B")}
    losses = [
        float(task.loss(outputs, {**each, "weights_B": jnp.asarray(one)})[0])
        for each in (plain, batch)
        for one in np.eye(8, dtype=np.float32)
    ]
    for row in range(8):
        alone, both = losses[row], losses[8 + row]
        length = len(rows[row]["neg"])
        if not length:
            assert both == pytest.approx(alone, rel=1e-5)
            continue
        first = epochs_B[row] * 2
        drawn = [(first + i) % length for i in range(min(2, length))]
        known = softmax(np.array([scores[row][0], *(scores[row][1 + i] for i in drawn)]) / 2)
        cosines = units[row, 1 : 2 + len(drawn)] @ units[row, 0]
        apart = 4 * rel_entr(known, softmax(20 * cosines / 2)).sum()
        assert both == pytest.approx((1 - share) * alone + share * apart, rel=1e-4)


def test_scores_that_do_not_fit_are_one_error(tiny_config, tmp_path):
    path = tmp_path / "mined.jsonl"
    path.write_text('{"query": "a", "pos": ["b"], "neg": ["c"], "neg_scores": [1, 2]}\n', "utf-8")
    tiny_config.task, tiny_config.teach.targets = "embedding", str(path)
    examples = dataclasses.replace(EXAMPLES, pairs_N=EXAMPLES.texts_N)
    with pytest.raises(ValueError, match=r"mined.jsonl:1: expected 'pos' and 'pos_scores'"):
        with_targets(tiny_config, examples, [])
