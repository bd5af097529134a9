"""Properties of the metrics and their standard errors."""

import time
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.evaluate import Predictions
from evaluation.metrics import NAMES, estimate, higher_is_better, paired_difference, summarise


def make_predictions(labels, classes, *, num_classes=3, confidence=1.0):
    """Predictions of the given classes."""
    labels, classes = np.asarray(labels, np.int32), np.asarray(classes)
    logits_NxC = confidence * np.eye(num_classes, dtype=np.float32)[classes]
    return Predictions(np.arange(len(labels)), labels, logits_NxC)


def random_predictions(seed, count, *, num_classes=3, skill=1.0):
    rng = np.random.default_rng(seed)
    labels_N = rng.choice(num_classes, size=count, p=np.arange(1, num_classes + 1) / 6)
    logits_NxC = rng.normal(size=(count, num_classes)) + skill * np.eye(num_classes)[labels_N]
    return Predictions(np.arange(count), labels_N.astype(np.int32), logits_NxC.astype(np.float32))


def leave_out(predictions, index):
    return Predictions(*(np.delete(part, index, axis=0) for part in vars(predictions).values()))


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_values_equal_scikit_learns_without_warnings_whatever_class_is_absent(pairs):
    labels, classes = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = summarise(make_predictions(labels, classes, num_classes=4), "abcd")
        f1 = sklearn.metrics.f1_score(labels, classes, average="macro", zero_division=0)
    assert found["accuracy"]["value"] == pytest.approx(np.mean(np.equal(labels, classes)))
    assert found["macro_f1"]["value"] == pytest.approx(f1)
    assert np.sum(found["confusion_matrix"]) == found["accuracy"]["count"] == len(pairs)
    for index, label in enumerate("abcd"):
        assert found["per_class"][label]["support"] == labels.count(index)
        assert sum(found["confusion_matrix"][index]) == labels.count(index)


def test_loss_equals_scikit_learns():
    predictions = random_predictions(0, 200)
    expected = sklearn.metrics.log_loss(
        predictions.labels_N, np.exp(predictions.log_probabilities_NxC)
    )
    assert estimate(predictions, "loss")["value"] == pytest.approx(expected)


def test_errors_of_accuracy_and_loss_are_deviation_over_root_of_count():
    predictions = random_predictions(0, 200)
    right_N = predictions.labels_N == predictions.classes_N
    loss_N = -predictions.log_probabilities_NxC[np.arange(200), predictions.labels_N]
    for metric, values_N in (("accuracy", right_N), ("loss", loss_N)):
        expected = np.std(values_N, ddof=1) / np.sqrt(200)
        assert estimate(predictions, metric)["standard_error"] == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 25))
def test_error_of_macro_f1_is_the_jackknife_done_by_hand(seed, count):
    predictions = random_predictions(seed, count)
    num_present = len(np.union1d(predictions.labels_N, predictions.classes_N))
    values_N = [
        sklearn.metrics.f1_score(
            rest.labels_N, rest.classes_N, labels=range(3), average="macro", zero_division=0
        )
        for rest in (leave_out(predictions, index) for index in range(count))
    ]
    # By hand over all 3 classes; a class that stands nowhere adds 0 to the sum.
    by_hand = np.sqrt((count - 1) * np.var(values_N)) * 3 / num_present
    assert estimate(predictions, "macro_f1")["standard_error"] == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("metric", NAMES)
def test_standard_error_is_how_much_the_value_scatters_over_samples(metric):
    found = [estimate(random_predictions(seed, 300), metric) for seed in range(300)]
    scatter = np.std([sample["value"] for sample in found], ddof=1)
    mean_error = np.mean([sample["standard_error"] for sample in found])
    assert mean_error == pytest.approx(scatter, rel=0.15)  # 300 samples know it to 4 %


@pytest.mark.parametrize("metric", NAMES)
def test_error_of_a_paired_difference_is_its_scatter_and_less_than_that_of_two_samples(metric):
    def pair(seed):
        first = random_predictions(seed, 300)
        noise_NxC = np.random.default_rng(seed + 10**6).normal(size=(300, 3)) / 3
        logits_NxC = (0.9 * first.logits_NxC + noise_NxC).astype(np.float32)
        return first, Predictions(first.ids_N, first.labels_N, logits_NxC)

    found = [paired_difference(*pair(seed), metric=metric) for seed in range(200)]
    scatter = np.std([sample["value"] for sample in found], ddof=1)
    mean_error = np.mean([sample["standard_error"] for sample in found])
    assert mean_error == pytest.approx(scatter, rel=0.2)
    assert mean_error < 0.8 * estimate(pair(0)[0], metric)["standard_error"] * np.sqrt(2)


def test_paired_difference_of_accuracy_by_hand():
    first = make_predictions([0, 0, 1, 1], [0, 0, 1, 0])
    second = make_predictions([0, 0, 1, 1], [0, 1, 0, 0])
    found = paired_difference(first, second, metric="accuracy")
    error = np.std([0, 1, 1, 0], ddof=1) / 2
    expected = {"value": 0.5, "standard_error": error, "count": 4, "z": 0.5 / error}
    assert found == pytest.approx(expected)
    reverse = paired_difference(second, first, metric="accuracy")
    assert (reverse["value"], reverse["z"]) == pytest.approx((-0.5, -0.5 / error))


def test_equal_models_differ_by_nothing():
    predictions = random_predictions(0, 50)
    found = paired_difference(predictions, predictions, metric="macro_f1")
    assert (found["value"], found["standard_error"]) == (0, 0)
    assert np.isnan(found["z"])


def test_pairing_other_examples_names_both_counts():
    first, second = random_predictions(0, 50), random_predictions(0, 40)
    with pytest.raises(ValueError, match="50 and 40 examples cannot be paired: 40 ids are in both"):
        paired_difference(first, second, metric="accuracy")


def test_one_example_has_a_value_but_no_error():
    found = summarise(make_predictions([1], [1]), "abc")
    assert found["accuracy"]["value"] == found["macro_f1"]["value"] == 1
    assert all(np.isnan(found[metric]["standard_error"]) for metric in NAMES)


def test_ten_thousand_examples_take_a_fraction_of_a_second():
    predictions = random_predictions(0, 10_000)
    start = time.perf_counter()
    summarise(predictions, "abc")
    assert time.perf_counter() - start < 0.5  # 0.02 s alone on a machine


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        (make_predictions([0], [0]), "ab", "3 classes do not fit the 2 labels"),
        (make_predictions([0, 3], [0, 0]), "abc", "from 0 to 2, found classes 0 to 3"),
        (make_predictions([], np.zeros(0, int)), "abc", "found no examples"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        summarise(predictions, labels)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'f1'; expected one of accuracy, macro_f1, loss"):
        higher_is_better("f1")
    assert [higher_is_better(metric) for metric in NAMES] == [True, True, False]
