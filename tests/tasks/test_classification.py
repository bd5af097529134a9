"""Properties of classification into one of C labels: its loss and the reading of predictions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate, summarise
from input_pipeline.examples import Examples, object_array
from tasks import task_class

LABELS = ("差", "中", "好")


def make_task(labels=LABELS, *, model=None, **options):
    config = common.get_config()
    config.regularize.label_smoothing = options.pop("label_smoothing", 0.0)
    config.classification.update(options)
    config.model.update(model or {})
    return task_class(config)(config, labels, tokenizer=None, backbone=None)


def loss_of(logits_BxC, batch, **options):
    return make_task(**options).loss({"logits_BxC": logits_BxC}, batch)


def make_batch(labels, weights):
    return {"labels_B": np.array(labels, np.int32), "weights_B": np.array(weights, np.float32)}


def random_logits(rng, count, num_classes=3):
    return rng.normal(size=(count, num_classes)).astype(np.float32)


OPTIONS = [
    {},
    {"class_weights": (1.0, 2.0, 0.5)},
    {"focal_gamma": 2.0},
    {"focal_gamma": 0.5},
    {"label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
@settings(max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=6, max_size=6))
def test_parts_of_a_batch_add_up_to_the_whole(options, pairs):
    labels, weights = zip(*pairs, strict=True)
    logits_BxC = random_logits(np.random.default_rng(0), 6)
    batch = make_batch(labels, weights)
    halves = [
        loss_of(logits_BxC[rows], {name: array[rows] for name, array in batch.items()}, **options)
        for rows in (slice(2), slice(2, None))
    ]
    summed = jax.tree.map(lambda a, b: a + b, *halves)
    whole = loss_of(logits_BxC, batch, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), summed, whole)


def test_loss_is_the_summed_negative_log_probability_of_the_true_labels():
    logits_BxC = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    loss, weight, counts = loss_of(logits_BxC, make_batch([0, 1], [1, 1]))
    assert loss == pytest.approx(-np.log(0.5) - np.log(0.2), rel=1e-6)
    assert (weight, counts["correct"]) == (2, 1)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_examples_without_weight_change_neither_loss_nor_gradient(garbage, options):
    logits_BxC = random_logits(np.random.default_rng(0), 4)
    batch = make_batch([0, 1, 2, 0], [1, 1, 0, 0])
    spoilt_BxC = logits_BxC.copy()
    spoilt_BxC[2:] = garbage
    loss_and_gradient = jax.value_and_grad(lambda logits: loss_of(logits, batch, **options)[0])
    loss, gradient_BxC = loss_and_gradient(logits_BxC)
    spoilt_loss, spoilt_gradient_BxC = loss_and_gradient(spoilt_BxC)
    assert loss == spoilt_loss
    np.testing.assert_array_equal(gradient_BxC, spoilt_gradient_BxC)
    assert not np.any(spoilt_gradient_BxC[2:])


def test_an_all_masked_batch_has_weight_zero_and_a_finite_loss():
    loss, weight, counts = loss_of(np.full((2, 3), np.nan), make_batch([0, 0], [0, 0]))
    assert (loss, weight, counts["correct"]) == (0, 0, 0)


def test_loss_under_jit_and_in_bfloat16_is_float32():
    logits_BxC = jnp.asarray(random_logits(np.random.default_rng(0), 4), jnp.bfloat16)
    batch = make_batch([0, 1, 2, 0], [1, 1, 1, 0])
    compiled, plain = jax.jit(loss_of)(logits_BxC, batch), loss_of(logits_BxC, batch)
    for value, expected in zip(jax.tree.leaves(compiled), jax.tree.leaves(plain), strict=True):
        assert value.dtype == jnp.float32
        assert value == pytest.approx(float(expected), rel=1e-6)


def test_a_class_of_weight_two_counts_as_if_it_stood_twice():
    logits_BxC = random_logits(np.random.default_rng(0), 4)
    weighted = loss_of(logits_BxC, make_batch([0, 1, 1, 2], [1] * 4), class_weights=(1, 2, 1))
    twice = [0, 1, 2, 1, 2, 3]
    plain = loss_of(logits_BxC[twice], make_batch([0, 1, 1, 1, 1, 2], [1] * 6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), weighted, plain)


def test_balanced_weights_give_every_class_the_same_share_of_the_training_split():
    task = make_task(class_weights=("balanced",))
    labels_N = np.array([0, 1, 1, 1, 2, 2, -1], np.int32)
    task.check(make_examples(labels_N), "train")
    batch = make_batch(np.maximum(labels_N, 0), labels_N >= 0)
    shares = [
        task.loss({"logits_BxC": np.zeros((7, 3))}, batch | {"weights_B": labels_N == c})[1]
        for c in range(3)
    ]
    np.testing.assert_allclose(shares, 2, rtol=1e-6)


def test_focal_loss_discounts_what_is_right_already():
    logits_BxC = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    loss, _, _ = loss_of(logits_BxC, make_batch([0, 2], [1, 1]), focal_gamma=2.0)
    assert loss == pytest.approx(-(0.5**2) * np.log(0.5) - 0.3**2 * np.log(0.7), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_has_a_finite_gradient_where_it_is_sure(gamma):
    def loss(logits_BxC):
        return loss_of(logits_BxC, make_batch([0], [1]), focal_gamma=gamma)[0]

    assert np.isfinite(jax.grad(loss)(jnp.array([[200.0, 0.0, 0.0]]))).all()


def test_smoothing_equals_optax():
    logits_BxC = random_logits(np.random.default_rng(0), 3)
    found, _, _ = loss_of(logits_BxC, make_batch([0, 1, 2], [1] * 3), label_smoothing=0.2)
    expected = optax.softmax_cross_entropy(logits_BxC, optax.smooth_labels(jnp.eye(3), 0.2))
    assert found == pytest.approx(float(expected.sum()), rel=1e-6)


@pytest.mark.parametrize("labels", [(), ("好",), ("好", "好")])
def test_too_few_or_repeated_labels_are_refused(labels):
    with pytest.raises(ValueError, match="at least two labels"):
        make_task(labels)


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, {}, "class_weights: found 2 for 3 labels"),
        (
            {"kind": "ordinal", "label_smoothing": 0.1},
            {},
            "label_smoothing=0.1: .* kind ordinal has no labels",
        ),
        ({"kind": "regression", "class_weights": (1.0,)}, {}, "class_weights=.* means nothing"),
        ({"kind": "ordinal"}, {"head": "label_words"}, "label_words' means nothing"),
        ({"kind": "hierarchical"}, {}, "separator='/' is in none of the labels"),
        ({}, {"pooling": "mask"}, r"data.template has {mask}, found '{text}'"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(options, model, message):
    with pytest.raises(ValueError, match=message):
        make_task(model=model, **options)


def make_predictions():
    logits_NxC = np.log(np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]], np.float32))
    return Predictions(np.array([3, 8]), {"logits_NxC": logits_NxC})


def make_examples(labels_N):
    texts_N = np.array(["未用", "很差\u2028!", "好“吃”"], object)
    texts_N = np.resize(texts_N, 3 if labels_N is None else len(labels_N))
    return Examples(texts_N, labels_N, np.resize([5, 8, 3, 9, 10, 11, 12], len(texts_N)))


def test_scores_are_accuracy_f1_and_cross_entropy_with_the_confusion_matrix():
    examples = make_examples(np.array([0, 2, 1], np.int32))
    found = summarise(make_task().score(make_predictions(), examples))
    assert found["accuracy"]["value"] == 0.5
    assert found["macro_f1"]["value"] == pytest.approx(1 / 3)
    assert found["loss"]["value"] == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2, rel=1e-6)
    assert found["confusion_matrix"] == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    right = {"precision": 1, "recall": 1, "f1": 1, "support": 1}
    assert found["per_class"]["中"].items() >= right.items()


def test_baselines_come_by_ascending_id_and_the_floor_is_among_them():
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 3, 200).astype(np.int32)
    texts_N = np.array(["甲乙丙"[label] + "丁" for label in labels_N], object)
    labels_N[:3] = -1
    examples = Examples(texts_N, labels_N, rng.permutation(200))
    task = make_task()
    scores = task.baselines(examples.first(100), examples)
    assert (np.diff(scores[task.FLOOR].ids_N) > 0).all()
    assert len(scores[task.FLOOR].ids_N) == 197
    assert estimate(scores[task.FLOOR], "accuracy")["value"] > 0.99
    assert estimate(scores["majority class"], "accuracy")["value"] < 0.5


def test_describe_finds_the_text_of_each_id_and_survives_json():
    examples = make_examples(np.array([0, 2, 1], np.int32))
    records = [
        json.loads(json.dumps(r)) for r in make_task().describe(make_predictions(), examples)
    ]
    assert records == [
        {
            "id": 3,
            "text": "好“吃”",
            "label": "中",
            "wrong": False,
            "prediction": "中",
            "confidence": 0.7,
            "probabilities": {"差": 0.2, "中": 0.7, "好": 0.1},
        },
        {
            "id": 8,
            "text": "很差\u2028!",
            "label": "好",
            "wrong": True,
            "prediction": "差",
            "confidence": 0.6,
            "probabilities": {"差": 0.6, "中": 0.3, "好": 0.1},
        },
    ]


def test_describe_gives_no_label_where_nothing_is_labelled():
    records = list(make_task().describe(make_predictions(), make_examples(None)))
    keys = {"id", "text", "prediction", "confidence", "probabilities"}
    assert [set(record) for record in records] == [keys] * 2


def test_describe_refuses_predictions_of_other_examples_or_classes():
    predictions = make_predictions()
    other = Examples(np.array(["甲"], object), np.array([0], np.int32), np.array([3]))
    with pytest.raises(ValueError, match="1 of 2 predicted ids are not among the 1 examples"):
        list(make_task().describe(predictions, other))
    with pytest.raises(ValueError, match="3 classes do not fit the 2 labels"):
        list(make_task(("差", "好")).describe(predictions, make_examples(None)))


@pytest.mark.parametrize("kind", ["single", "multi", "regression", "ordinal", "hierarchical"])
def test_examples_without_what_the_kind_learns_are_refused_naming_the_key(kind):
    task = make_task(("甲/乙", "甲/丙"), kind=kind)
    with pytest.raises(ValueError, match=r"config\.data\.label_(column|kind)"):
        task.check(make_examples(None), "train")


def make_validation(count, *, absent=None):
    """Examples, and predictions of a model that is three times too sure, worst of class 0."""
    rng = np.random.default_rng(0)
    logits_NxC = rng.normal(size=(count, 3)) + np.array([0, 0, 0.5])
    labels_N = (logits_NxC + rng.gumbel(size=(count, 3))).argmax(axis=1).astype(np.int32)
    if absent is not None:
        labels_N[labels_N == absent] = -1
    examples = Examples(object_array(["文"] * count), labels_N, np.arange(count))
    known = np.flatnonzero(labels_N >= 0)  # the others have no weight
    logits_NxC = (3 * (logits_NxC + np.array([1, 0, 0]))).astype(np.float32)
    return examples, Predictions(known, {"logits_NxC": logits_NxC[known]})


def make_calibrated(kind, examples, predictions):
    task = make_task()
    task.config.eval.calibration = kind
    fitted = json.loads(json.dumps(task.fit(predictions, examples)))
    return task, dataclasses.replace(predictions, fitted=fitted)


def test_what_is_fitted_acts_on_scores_and_descriptions_alike():
    examples, predictions = make_validation(400)
    (before, uncalibrated), *others = (
        make_calibrated(kind, examples, predictions) for kind in ("none", "temperature", "bias")
    )
    assert uncalibrated.fitted == {}
    losses = [estimate(before.score(uncalibrated, examples), "loss")["value"]]
    for task, predictions in others:
        scores = task.score(predictions, examples)
        losses.append(estimate(scores, "loss")["value"])
        records = list(task.describe(predictions, examples))
        described = -np.log([record["probabilities"][record["label"]] for record in records])
        assert described.mean() == pytest.approx(losses[-1], rel=1e-3)
        wrong = np.mean([record["wrong"] for record in records])
        assert wrong == pytest.approx(1 - estimate(scores, "accuracy")["value"])
    assert losses == sorted(losses, reverse=True)
    found = [estimate(task.score(p, examples), "accuracy")["value"] for task, p in others]
    expected = estimate(before.score(uncalibrated, examples), "accuracy")["value"]
    assert found[0] == expected < found[1]


@pytest.mark.parametrize("absent", [None, 1])
def test_calibration_is_told_before_and_after_even_where_a_class_is_masked(absent):
    examples, predictions = make_validation(400, absent=absent)
    task, predictions = make_calibrated("temperature", examples, predictions)
    found = task.calibration(predictions, examples)
    assert found == json.loads(json.dumps(found))
    assert found["after"]["ece"] < found["before"]["ece"] - 0.05
    assert found["after"]["count"] == len(predictions)
    assert (found["temperature"], found["bias"]) == (predictions.fitted["temperature"], [0, 0, 0])
    assert found["temperature"] > 1.5
    found = task.calibration(dataclasses.replace(predictions, fitted={}), examples)
    assert (found["before"], found["temperature"]) == (found["after"], 1)


@pytest.mark.parametrize("kind", ["multi", "regression", "ordinal", "hierarchical"])
def test_only_kinds_with_probabilities_of_classes_are_calibrated(kind):
    task = make_task(("甲/乙", "甲/丙"), kind=kind)
    examples = Examples(object_array(["文"] * 4), np.array([0, 1, 1, 0], np.int32), np.arange(4))
    predictions = Predictions(np.arange(4), {"logits_NxC": np.log([[0.9, 0.1], [0.2, 0.8]] * 2)})
    found = task.calibration(predictions, examples)
    assert (found is not None) == (kind in ("ordinal", "hierarchical"))
    if found:
        fitted = task.fit(predictions, examples)
        predictions = dataclasses.replace(predictions, fitted=fitted)
        names = [metric.name for metric in task.metrics]
        assert list(task.score(predictions, examples).statistics) == names
