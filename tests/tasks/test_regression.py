"""Properties of numbers as labels: scale, correlations, floor."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate, summarise
from input_pipeline.batches.targets import Chunk
from input_pipeline.examples import Examples, object_array
from tasks.regression import Regression

SCALE = {"mean": 1e4, "deviation": 100.0}


def make_task(scale=None):
    config = common.get_config()
    config.classification.kind = "regression"
    task = Regression(config, (), tokenizer=None, backbone=None)
    task.unfitted = scale or {}
    return task


def make_examples(numbers, texts=None):
    texts_N = object_array(texts or ["文"] * len(numbers))
    numbers_N = np.array(numbers, np.float32)
    return Examples(texts_N, None, np.arange(len(numbers)), numbers_N=numbers_N)


def make_case(count, *, seed=0):
    rng = np.random.default_rng(seed)
    numbers_N = np.round(rng.normal(size=count), 1) * 100 + 1e4
    outputs_N = (numbers_N - 1e4) / 100 + rng.normal(size=count)
    predictions = Predictions(np.arange(count), {"logits_NxC": outputs_N[:, None]}, SCALE)
    return make_examples(numbers_N), predictions, outputs_N * 100 + 1e4


def targets_of(task, examples, *, training=True):
    count = len(examples)
    chunk = Chunk(examples, np.arange(count), np.zeros(count), examples.texts_N, None, 0, training)
    return task.targets(None, chunk).examples


def test_correlations_equal_scipys_far_from_zero():
    examples, predictions, found_N = make_case(300)
    found = summarise(make_task().score(predictions, examples))
    true_N = examples.numbers_N.astype(float)
    expected = scipy.stats.pearsonr(true_N, found_N).statistic
    assert found["pearson"]["value"] == pytest.approx(expected)
    expected = scipy.stats.spearmanr(true_N, found_N).statistic
    assert found["spearman"]["value"] == pytest.approx(expected)
    assert found["rmse"]["value"] == pytest.approx(np.sqrt(np.mean((found_N - true_N) ** 2)))


def test_ranks_among_all_say_nothing_of_some():
    examples, predictions, _ = make_case(40)
    scores = make_task().score(predictions, examples)
    some = scores.without(np.arange(10))
    assert [metric.name for metric in some.metrics] == ["pearson", "rmse", "loss"]
    assert estimate(some, "pearson")["count"] == 30


def test_standard_error_of_the_correlation_is_its_scatter_over_samples():
    task = make_task()
    found = [
        estimate(task.score(predictions, examples), "pearson")
        for examples, predictions, _ in (make_case(100, seed=seed) for seed in range(200))
    ]
    scatter = np.std([sample["value"] for sample in found], ddof=1)
    assert np.mean([s["standard_error"] for s in found]) == pytest.approx(scatter, rel=0.2)


def test_a_constant_prediction_correlates_with_nothing():
    examples, scale = make_examples([1, 2, 3.5]), {"mean": 3.3, "deviation": 1.0}
    predictions = Predictions(np.arange(3), {"logits_NxC": np.zeros((3, 1))}, scale)
    scores = make_task().score(predictions, examples)
    for name in ("pearson", "spearman"):
        assert estimate(scores, name)["value"] == 0


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e4])
def test_the_loss_does_not_depend_on_the_unit(unit):
    task, numbers_N = make_task(), np.array([1.0, 2, 4, 5])
    task.check(make_examples(numbers_N * unit), "train")
    batch = targets_of(task, make_examples(numbers_N * unit))
    loss, weight, _ = task.loss({"logits_BxC": np.zeros((4, 1))}, batch)
    assert loss / weight == pytest.approx(1, rel=1e-4)  # of predicting the mean


def test_a_number_that_is_not_known_is_masked():
    task = make_task({"mean": 0.0, "deviation": 1.0})
    examples = make_examples([1, np.nan, 3])
    np.testing.assert_array_equal(targets_of(task, examples)["weights_B"], [1, 0, 1])
    unlabelled = Examples(object_array(["文"]), None, np.arange(1))
    assert targets_of(task, unlabelled, training=False)["weights_B"] == [1]


def test_the_scale_travels_as_json_from_training_to_prediction():
    task = make_task()
    examples = make_examples([1, 2, 4, 5])
    task.check(examples, "train")
    predictions = Predictions(np.arange(1), {"logits_NxC": np.ones((1, 1))}, task.unfitted)
    kept = json.loads(json.dumps(task.fit(predictions, make_examples([7, 8]))))
    (record,) = make_task().describe(dataclasses.replace(predictions, fitted=kept), examples)
    assert record["prediction"] == pytest.approx(3 + np.std([1, 2, 4, 5]))
    assert json.loads(json.dumps(record))["wrong"] is True
    assert record["label"] == 1


def test_numbers_that_are_all_the_same_are_refused():
    with pytest.raises(ValueError, match=r"all training numbers are 2\.0"):
        make_task().check(make_examples([2, 2]), "train")


def test_ridge_beats_the_mean_where_the_text_tells():
    rng = np.random.default_rng(0)
    counts_N = rng.integers(0, 6, 200)
    texts = ["".join(rng.permutation(list("好" * c + "店" * (6 - c)))) for c in counts_N]
    examples, task = make_examples(counts_N + 100, texts), make_task()
    task.check(examples, "train")
    scores = task.baselines(examples.first(150), examples)
    assert estimate(scores[task.FLOOR], "pearson")["value"] > 0.9
    deviation = np.std(counts_N)
    name = "mean of the training examples"
    assert estimate(scores[name], "rmse")["value"] == pytest.approx(deviation, rel=0.05)
    assert estimate(scores[task.FLOOR], "rmse")["value"] < deviation / 2
