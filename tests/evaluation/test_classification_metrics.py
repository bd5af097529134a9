"""Properties of the metrics of classes and their probabilities: values and leave-one-out values."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from evaluation.classification_metrics import (
    METRICS,
    area_under_roc,
    matthews_correlation,
    per_class,
    placements,
    statistics,
)
from evaluation.metrics import Scores, class_counts, estimate, paired_difference


def make_case(seed, count, *, size=3, levels=0):
    """Labels and log probabilities that say something about them; rounded, they have ties."""
    rng = np.random.default_rng(seed)
    labels_N = rng.choice(size, size=count, p=np.arange(1, size + 1) / (size * (size + 1) / 2))
    logits_NxC = rng.normal(size=(count, size)) + np.eye(size)[labels_N]
    if levels:
        logits_NxC = np.round(logits_NxC * levels) / levels
    return labels_N, log_softmax(logits_NxC, axis=1)


def scores_of(labels_N, logs_NxC, classes_N=None):
    classes_N = logs_NxC.argmax(axis=1) if classes_N is None else classes_N
    return Scores(METRICS, np.arange(len(labels_N)), statistics(labels_N, classes_N, logs_NxC))


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@settings(max_examples=60)
@given(pairs)
def test_values_from_counts_equal_scikit_learns_whatever_class_is_absent(pairs):
    labels_N, classes_N = map(np.array, zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = scores_of(labels_N, np.full((len(pairs), 4), np.log(0.25)), classes_N)
        found = {m.name: estimate(scores, m.name)["value"] for m in METRICS}
    with warnings.catch_warnings():  # of classes that are not there, or the only one
        warnings.simplefilter("ignore")
        balanced = sklearn.metrics.balanced_accuracy_score(labels_N, classes_N)
        correlation = sklearn.metrics.matthews_corrcoef(labels_N, classes_N)
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    assert found["mcc"] == pytest.approx(correlation, abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 4]), st.sampled_from([0, 2]))
def test_area_and_brier_score_equal_scikit_learns_with_and_without_ties(seed, size, levels):
    labels_N, logs_NxC = make_case(seed, 40, size=size, levels=levels)
    labels_N[:size] = np.arange(size)
    probabilities_NxC = np.exp(logs_NxC)
    scores = scores_of(labels_N, logs_NxC)
    if size == 2:
        expected = sklearn.metrics.roc_auc_score(labels_N, logs_NxC[:, 1])
    else:
        each = [sklearn.metrics.roc_auc_score(labels_N == c, logs_NxC[:, c]) for c in range(size)]
        expected = np.mean(each)
    assert estimate(scores, "auroc")["value"] == pytest.approx(expected)
    found_NxC = probabilities_NxC[:, 1] if size == 2 else probabilities_NxC
    expected = sklearn.metrics.brier_score_loss(labels_N, found_NxC)
    assert estimate(scores, "brier")["value"] == pytest.approx(expected)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0, 1]))
def test_area_with_one_example_left_out_is_exactly_that_of_the_others(seed, levels):
    rng = np.random.default_rng(seed)
    true_N = rng.permutation([True] * 3 + [False] * 4 + (rng.random(8) < 0.4).tolist())
    scores_N = rng.normal(size=15)
    scores_N = np.round(scores_N) if levels else scores_N
    values_NxK = placements(true_N[:, None], scores_N[:, None])
    sums_K = values_NxK.sum(axis=0)
    expected_N = [
        sklearn.metrics.roc_auc_score(np.delete(true_N, i), np.delete(scores_N, i))
        for i in range(15)
    ]
    np.testing.assert_allclose(area_under_roc(sums_K - values_NxK, sums_K), expected_N)


def test_area_is_averaged_over_the_classes_that_it_can_be_told_of():
    labels_N, logs_NxC = make_case(0, 50)
    labels_N[labels_N == 0] = 1
    each = [sklearn.metrics.roc_auc_score(labels_N == c, logs_NxC[:, c]) for c in (1, 2)]
    found = estimate(scores_of(labels_N, logs_NxC), "auroc")
    assert found["value"] == pytest.approx(np.mean(each))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(estimate(scores_of(labels_N * 0, logs_NxC), "auroc")["value"])


def test_correlation_of_many_examples_stays_exact():
    labels_N, logs_NxC = make_case(0, 1000)
    classes_N = logs_NxC.argmax(axis=1)
    scores = scores_of(labels_N, logs_NxC)
    sums_K = 10**6 * scores.statistics["mcc"].sum(axis=0)
    expected = sklearn.metrics.matthews_corrcoef(labels_N, classes_N)
    assert matthews_correlation(sums_K, sums_K) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", [metric.name for metric in METRICS])
def test_errors_are_how_much_values_and_differences_scatter_over_samples(metric):
    def pair(seed):
        labels_N, logs_NxC = make_case(seed, 250)
        noise_NxC = np.random.default_rng(seed + 10**6).normal(size=(250, 3)) / 3
        both = (logs_NxC, log_softmax(0.9 * logs_NxC + noise_NxC, axis=1))
        return [scores_of(labels_N, each) for each in both]

    pairs = [pair(seed) for seed in range(150)]
    for found in (
        [estimate(first, metric) for first, _ in pairs],
        [paired_difference(*both, metric=metric) for both in pairs],
    ):
        scatter = np.std([sample["value"] for sample in found], ddof=1)
        mean_error = np.mean([sample["standard_error"] for sample in found])
        assert mean_error == pytest.approx(scatter, rel=0.2)  # 150 samples know it to 6 %


def test_part_of_the_examples_keeps_no_metric_whose_statistics_count_the_others():
    labels_N, logs_NxC = make_case(0, 30)
    some = scores_of(labels_N, logs_NxC).without(np.arange(10))
    assert [metric.name for metric in some.metrics] == ["balanced_accuracy", "mcc", "brier"]
    again = scores_of(labels_N[10:], logs_NxC[10:])
    for metric in some.metrics:
        assert estimate(some, metric.name) == pytest.approx(estimate(again, metric.name))


@settings(max_examples=60)
@given(pairs)
def test_what_is_known_of_a_class_equals_scikit_learns_and_has_an_error_where_it_can(pairs):
    labels_N, classes_N = map(np.array, zip(*pairs, strict=True))
    found = per_class(class_counts(labels_N, classes_N, 4), "甲乙丙丁")
    assert found == json.loads(json.dumps(found))
    expected = sklearn.metrics.precision_recall_fscore_support(
        labels_N, classes_N, labels=range(4), zero_division=0
    )
    for c, row in enumerate(found.values()):
        names = ("precision", "recall", "f1", "support")
        assert [row[name] for name in names] == pytest.approx([column[c] for column in expected])
        told, true = (classes_N == c).any(), (labels_N == c).any()
        for name, some in (("precision", told), ("recall", true), ("f1", told or true)):
            assert (row[f"{name}_error"] is not None) == bool(some and len(pairs) > 1)


def test_errors_of_a_class_are_how_much_its_values_scatter_over_samples():
    samples = []
    for seed in range(200):
        labels_N, logs_NxC = make_case(seed, 300)
        samples.append(per_class(class_counts(labels_N, logs_NxC.argmax(axis=1), 3), "甲乙丙"))
    for label in "甲乙丙":
        for name in ("precision", "recall", "f1"):
            scatter = np.std([sample[label][name] for sample in samples], ddof=1)
            error = np.mean([sample[label][f"{name}_error"] for sample in samples])
            assert error == pytest.approx(scatter, rel=0.2)  # 200 samples know it to 5 %
