"""Properties of classification with several labels: loss, thresholds, F1."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate
from input_pipeline.examples import Examples, Ragged, object_array
from tasks import task_class
from tasks.multi_label import best_thresholds

LABELS = ("房间", "早餐", "快递")


def make_task(**options):
    config = common.get_config()
    config.regularize.label_smoothing = options.pop("label_smoothing", 0.0)
    config.classification.update(kind="multi", **options)
    return task_class(config)(config, LABELS, tokenizer=None, backbone=None)


def make_examples(sets, texts=None):
    texts_N = object_array(texts or [f"文{i}" for i in range(len(sets))])
    return Examples(texts_N, None, np.arange(len(sets)), label_sets=Ragged.of(sets))


def make_case(count, *, seed=0):
    """Examples and logits that say something about them."""
    rng = np.random.default_rng(seed)
    true_NxC = rng.random((count, 3)) < [0.5, 0.3, 0.1]
    logits_NxC = (2 * true_NxC - 2 + rng.normal(size=(count, 3))).astype(np.float32)
    examples = make_examples([np.flatnonzero(row).tolist() for row in true_NxC])
    return examples, Predictions(np.arange(count), {"logits_NxC": logits_NxC}), true_NxC


def brute_force(true_N, probabilities_N):
    """The greatest F1 of any threshold."""
    cuts = [*probabilities_N, 2.0]
    return max(
        sklearn.metrics.f1_score(true_N, probabilities_N >= cut, zero_division=0) for cut in cuts
    )


@settings(max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=12))
def test_fitted_thresholds_reach_the_greatest_f1_whatever_is_equal(rows):
    true_N, levels_N = map(np.array, zip(*rows, strict=True))
    probabilities_N = levels_N / 7
    (threshold,) = best_thresholds(true_N[:, None], probabilities_N[:, None])
    found = sklearn.metrics.f1_score(true_N, probabilities_N >= threshold, zero_division=0)
    if true_N.any():
        assert found == pytest.approx(brute_force(true_N, probabilities_N))
        assert threshold not in probabilities_N or threshold == 0
    else:
        assert threshold == 0.5


def test_metrics_equal_scikit_learns():
    examples, predictions, true_NxC = make_case(200)
    scores = make_task(threshold="0.3").score(predictions, examples)
    probabilities_NxC = 1 / (1 + np.exp(-predictions["logits_NxC"].astype(float)))
    found_NxC = probabilities_NxC >= 0.3
    for average in ("micro", "macro"):
        expected = sklearn.metrics.f1_score(true_NxC, found_NxC, average=average)
        assert estimate(scores, f"{average}_f1")["value"] == pytest.approx(expected)
    expected = sklearn.metrics.accuracy_score(true_NxC, found_NxC)
    assert estimate(scores, "exact")["value"] == pytest.approx(expected)
    expected = sklearn.metrics.roc_auc_score(true_NxC, probabilities_NxC)
    assert estimate(scores, "auroc")["value"] == pytest.approx(expected)
    expected = np.mean(
        [
            sklearn.metrics.log_loss(*both)
            for both in zip(true_NxC.T, probabilities_NxC.T, strict=True)
        ]
    )
    assert estimate(scores, "loss")["value"] == pytest.approx(expected)
    assert scores.detail["per_class"]["早餐"]["support"] == true_NxC[:, 1].sum()


def test_thresholds_of_the_validation_split_are_kept_as_json_and_used():
    examples, predictions, _ = make_case(300)
    task = make_task()
    before = estimate(task.score(predictions, examples), "macro_f1")["value"]
    fitted = json.loads(json.dumps(task.fit(predictions, examples)))
    predictions = dataclasses.replace(predictions, fitted=fitted)
    after = task.score(predictions, examples)
    assert estimate(after, "macro_f1")["value"] > before + 0.02
    assert make_task(threshold="0.4").fit(predictions, examples) == {}
    found = [record["prediction"] for record in task.describe(predictions, examples)]
    right = sum(
        set(names) == {LABELS[c] for c in examples.label_sets.row(i)}
        for i, names in enumerate(found)
    )
    assert right / 300 == pytest.approx(estimate(after, "exact")["value"])


def test_an_example_without_any_label_is_learned_from():
    batch = {"labels_BxC": np.zeros((1, 3), np.float32), "weights_B": np.ones(1, np.float32)}
    loss, weight, _ = make_task().loss({"logits_BxC": np.zeros((1, 3))}, batch)
    assert (loss, weight) == (pytest.approx(np.log(2), rel=1e-6), 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1}, {"class_weights": (1.0, 3.0, 1.0)}],
)
def test_examples_without_weight_change_neither_loss_nor_gradient(options):
    rng = np.random.default_rng(0)
    logits_BxC = rng.normal(size=(3, 3)).astype(np.float32)
    labels_BxC = (rng.random((3, 3)) < 0.5).astype(np.float32)
    batch = {"labels_BxC": labels_BxC, "weights_B": np.array([1, 1, 0], np.float32)}
    spoilt_BxC = logits_BxC.copy()
    spoilt_BxC[2] = np.nan
    task = make_task(**options)
    function = jax.value_and_grad(lambda logits: task.loss({"logits_BxC": logits}, batch)[0])
    (loss, gradient_BxC), (other, other_BxC) = function(logits_BxC), function(spoilt_BxC)
    assert loss == other > 0
    np.testing.assert_array_equal(gradient_BxC, other_BxC)


def test_balanced_weights_let_a_rare_label_pull_as_much_as_its_absence():
    task, sets = make_task(class_weights=("balanced",)), [[0]] + [[]] * 4
    task.check(make_examples(sets), "train")
    logits_BxC, gradients = np.zeros((1, 3), np.float32), []
    for has in (0, 1):
        batch = {"labels_BxC": np.array([[has, 0, 0]], np.float32), "weights_B": np.ones(1)}
        gradient = jax.grad(lambda x, batch=batch: task.loss({"logits_BxC": x}, batch)[0])
        gradients.append(gradient(logits_BxC)[0, 0])
    assert gradients[1] == pytest.approx(-4 * gradients[0])


def test_the_floor_learns_and_survives_labels_that_are_nowhere_or_everywhere():
    rng = np.random.default_rng(0)
    sets = [[0] if rng.random() < 0.5 else [0, 1] for _ in range(120)]
    texts = ["".join(rng.permutation(["店", "的", "甲" if 1 in s else "乙"])) for s in sets]
    examples, task = make_examples(sets, texts), make_task()
    scores = task.baselines(examples.first(80), examples)
    assert estimate(scores[task.FLOOR], "exact")["value"] > 0.95
    assert estimate(scores["majority class"], "exact")["value"] < 0.7


def test_one_label_each_is_read_as_a_set_of_one():
    examples = Examples(object_array(["甲", "乙"]), np.array([2, 0], np.int32), np.arange(2))
    predictions = Predictions(np.arange(2), {"logits_NxC": np.array([[-1, -1, 1], [1, -1, -1.0]])})
    assert estimate(make_task().score(predictions, examples), "exact")["value"] == 1


def test_predicting_on_texts_without_labels_tells_no_truth():
    examples = Examples(object_array(["甲"]), None, np.arange(1))
    predictions = Predictions(np.arange(1), {"logits_NxC": np.array([[2.0, 1.0, -3.0]])})
    (record,) = make_task().describe(predictions, examples)
    assert record["prediction"] == ["房间", "早餐"]
    assert not {"label", "wrong"} & record.keys()
