"""Properties of the metrics and their standard errors."""

import time
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from configs import common
from evaluation.metrics import (
    Metric,
    Scores,
    about,
    estimate,
    f1,
    find,
    macro_f1,
    mean,
    one_each,
    paired_difference,
    paired_statistics,
    precision,
    rank,
    recall,
    summarise,
)
from tasks.classification import Classification

NAMES = ("accuracy", "macro_f1", "loss")


def scores_of(labels, logits_NxC):
    """Scores of a classifier with classes a, b, ..."""
    names = "abcd"[: logits_NxC.shape[1]]
    task = Classification(common.get_config(), names, tokenizer=None, backbone=None)
    return task.scores(
        np.arange(len(labels)), np.array(labels, int), log_softmax(logits_NxC, axis=1)
    )


def make_scores(labels, classes, *, num_classes=3):
    """Of the given classes."""
    return scores_of(labels, np.eye(num_classes)[np.asarray(classes)])


def random_logits(seed, count, *, num_classes=3, skill=1.0):
    rng = np.random.default_rng(seed)
    labels_N = rng.choice(num_classes, size=count, p=np.arange(1, num_classes + 1) / 6)
    return labels_N, rng.normal(size=(count, num_classes)) + skill * np.eye(num_classes)[labels_N]


def random_scores(seed, count, **options):
    return scores_of(*random_logits(seed, count, **options))


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@settings(max_examples=60)
@given(pairs)
def test_values_equal_scikit_learns_without_warnings_whatever_class_is_absent(pairs):
    labels, classes = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = summarise(make_scores(labels, classes, num_classes=4))
        macro = sklearn.metrics.f1_score(labels, classes, average="macro", zero_division=0)
    assert found["accuracy"]["value"] == pytest.approx(np.mean(np.equal(labels, classes)))
    assert found["macro_f1"]["value"] == pytest.approx(macro)
    assert np.sum(found["confusion_matrix"]) == found["accuracy"]["count"] == len(pairs)
    for index, label in enumerate("abcd"):
        assert found["per_class"][label]["support"] == labels.count(index)
        assert sum(found["confusion_matrix"][index]) == labels.count(index)


def test_loss_equals_scikit_learns():
    labels_N, logits_NxC = random_logits(0, 200)
    expected = sklearn.metrics.log_loss(labels_N, np.exp(log_softmax(logits_NxC, axis=1)))
    assert estimate(scores_of(labels_N, logits_NxC), "loss")["value"] == pytest.approx(expected)


def test_errors_of_accuracy_and_loss_are_deviation_over_root_of_count():
    labels_N, logits_NxC = random_logits(0, 200)
    right_N = labels_N == logits_NxC.argmax(axis=1)
    loss_N = -log_softmax(logits_NxC, axis=1)[np.arange(200), labels_N]
    for metric, values_N in (("accuracy", right_N), ("loss", loss_N)):
        expected = np.std(values_N, ddof=1) / np.sqrt(200)
        found = estimate(scores_of(labels_N, logits_NxC), metric)["standard_error"]
        assert found == pytest.approx(expected)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 25))
def test_error_of_macro_f1_is_the_jackknife_done_by_hand(seed, count):
    labels_N, logits_NxC = random_logits(seed, count)
    classes_N = logits_NxC.argmax(axis=1)
    num_present = len(np.union1d(labels_N, classes_N))
    values_N = [
        sklearn.metrics.f1_score(
            np.delete(labels_N, i),
            np.delete(classes_N, i),
            labels=range(3),
            average="macro",
            zero_division=0,
        )
        for i in range(count)
    ]
    # By hand over all 3 classes; a class that stands nowhere adds 0 to the sum.
    by_hand = np.sqrt((count - 1) * np.var(values_N)) * 3 / num_present
    found = estimate(scores_of(labels_N, logits_NxC), "macro_f1")["standard_error"]
    assert found == pytest.approx(by_hand, abs=1e-9)


counts = st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=20)


@given(counts)
def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_all(counts):
    """Statistics: found and right, found, to be found; the first is in both others."""
    values_NxK = np.array([(r, r + a, r + b) for r, a, b in counts], float)
    metrics = tuple(Metric(m.__name__, "", m) for m in (f1, precision, recall))
    scores = Scores(metrics, np.arange(len(counts)), {m.name: values_NxK for m in metrics})
    found = {m.name: estimate(scores, m.name)["value"] for m in metrics}
    both = found["precision"] + found["recall"]
    expected = 2 * found["precision"] * found["recall"] / both if both else 0
    assert found["f1"] == pytest.approx(expected)


@pytest.mark.parametrize("metric", NAMES)
def test_standard_error_is_how_much_the_value_scatters_over_samples(metric):
    found = [estimate(random_scores(seed, 300), metric) for seed in range(300)]
    scatter = np.std([sample["value"] for sample in found], ddof=1)
    mean_error = np.mean([sample["standard_error"] for sample in found])
    assert mean_error == pytest.approx(scatter, rel=0.15)  # 300 samples know it to 4 %


@pytest.mark.parametrize("metric", NAMES)
def test_error_of_a_paired_difference_is_its_scatter_and_less_than_that_of_two_samples(metric):
    def pair(seed):
        labels_N, logits_NxC = random_logits(seed, 300)
        noise_NxC = np.random.default_rng(seed + 10**6).normal(size=(300, 3)) / 3
        others = (logits_NxC, 0.9 * logits_NxC + noise_NxC)
        return [scores_of(labels_N, each) for each in others]

    found = [paired_difference(*pair(seed), metric=metric) for seed in range(200)]
    scatter = np.std([sample["value"] for sample in found], ddof=1)
    mean_error = np.mean([sample["standard_error"] for sample in found])
    assert mean_error == pytest.approx(scatter, rel=0.2)
    assert mean_error < 0.8 * estimate(pair(0)[0], metric)["standard_error"] * np.sqrt(2)


def test_paired_difference_of_accuracy_by_hand():
    first = make_scores([0, 0, 1, 1], [0, 0, 1, 0])
    second = make_scores([0, 0, 1, 1], [0, 1, 0, 0])
    found = paired_difference(first, second, metric="accuracy")
    error = np.std([0, 1, 1, 0], ddof=1) / 2
    expected = {"value": 0.5, "standard_error": error, "count": 4}
    assert found == pytest.approx(expected)
    reverse = paired_difference(second, first, metric="accuracy")
    assert reverse == pytest.approx(expected | {"value": -0.5})


def test_equal_models_differ_by_nothing():
    predictions = random_scores(0, 50)
    found = paired_difference(predictions, predictions, metric="macro_f1")
    assert (found["value"], found["standard_error"]) == (0, 0)


def test_pairing_other_examples_names_both_counts():
    first, second = random_scores(0, 50), random_scores(0, 40)
    with pytest.raises(ValueError, match="50 and 40 examples cannot be paired: 40 ids are in both"):
        paired_difference(first, second, metric="accuracy")


def test_one_example_has_a_value_but_no_error():
    found = summarise(make_scores([1], [1]))
    assert found["accuracy"]["value"] == found["macro_f1"]["value"] == 1
    assert all(np.isnan(found[metric]["standard_error"]) for metric in NAMES)


def test_ten_thousand_examples_take_a_fraction_of_a_second():
    predictions = random_scores(0, 10_000)
    start = time.perf_counter()
    summarise(predictions)
    assert time.perf_counter() - start < 0.5  # 0.02 s alone on a machine


def test_a_metric_about_some_examples_is_that_of_these_alone():
    """Value, error and count; a row of zeros is an example of which nothing was found."""
    rng, metrics = np.random.default_rng(0), (Metric("f1", "", f1), Metric("mean", "", mean))
    counts_NxK, values_N = rng.integers(0, 3, (12, 3)).astype(float), rng.normal(size=12)
    counts_NxK[:2] = 0
    statistics = {"f1": counts_NxK, "mean": one_each(values_N)}
    known_N = np.arange(30) % 5 < 2
    wide = {name: np.zeros((30, v.shape[1])) for name, v in statistics.items()}
    for name, values in statistics.items():
        wide[name][known_N] = values
    alone = Scores(metrics, np.arange(12), statistics)
    among = Scores(
        metrics, np.arange(30), {name: about(known_N, values) for name, values in wide.items()}
    )
    for name in statistics:
        assert estimate(among, name) == estimate(alone, name)
        assert estimate(among, name)["count"] == 12
        assert estimate(among.without(np.arange(5)), name)["count"] == 10
    expected = np.std(values_N, ddof=1) / np.sqrt(12)
    assert estimate(among, "mean")["standard_error"] == pytest.approx(expected)


def test_models_are_compared_on_the_examples_that_both_are_about():
    values_2xN = np.random.default_rng(0).normal(size=(2, 30))
    rows_2xN = np.arange(30) < np.array([[20], [10]])
    first, second = (
        Scores((Metric("m", "", mean),), np.arange(30), {"m": about(rows_N, one_each(values_N))})
        for rows_N, values_N in zip(rows_2xN, values_2xN, strict=True)
    )
    found = paired_difference(first, second, metric="m")
    differences_N = (values_2xN[0] - values_2xN[1])[:10]
    error = np.std(differences_N, ddof=1) / np.sqrt(10)
    expected = {"value": differences_N.mean(), "standard_error": error, "count": 10}
    assert found == pytest.approx(expected)
    assert [len(side) for side in paired_statistics(first, second, metric="m")] == [10, 10]


def test_a_metric_about_no_example_has_no_value():
    nothing = about(np.zeros(3, bool), one_each(np.ones(3)))
    scores = Scores((Metric("f1", "", mean),), np.arange(3), {"f1": nothing})
    found = estimate(scores, "f1")
    assert found["count"] == 0
    assert np.isnan([found["value"], found["standard_error"]]).all()


def test_one_value_that_is_no_number_is_not_left_out():
    scores = Scores((Metric("m", "", mean),), np.arange(3), {"m": one_each([1, np.nan, 2])})
    assert np.isnan(estimate(scores, "m")["value"])


def test_nothing_to_summarise_is_refused():
    with pytest.raises(ValueError, match="no examples to evaluate"):
        summarise(make_scores([0, 1], [0, 1]).without(np.arange(2)))


def test_an_unknown_metric_is_refused_with_the_known_ones():
    scores = make_scores([0, 1], [0, 1])
    with pytest.raises(ValueError, match="'f1'.*expected one of accuracy, macro_f1, .*loss, or"):
        estimate(scores, "f1")
    assert find(scores.metrics, "auto").name == "accuracy"


def test_better_ranks_higher_whichever_way_a_metric_goes():
    metrics = make_scores([0], [0]).metrics
    good, bad = {"accuracy": 0.9, "loss": 0.5}, {"accuracy": 0.9, "loss": 0.6}
    assert rank(good, metrics, "auto") > rank(bad, metrics, "auto")
    assert rank(good, metrics, "loss") > rank({"accuracy": 1.0, "loss": 0.6}, metrics, "loss")


def test_copies_in_groups_give_the_error_of_the_single_examples():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, (40, 6)) * 1.0 for _ in range(2))
    metric = Metric("m", "", macro_f1)

    def scores(values_NxK, groups_N=None):
        return Scores((metric,), np.arange(len(values_NxK)), {"m": values_NxK}, groups_N=groups_N)

    groups_N = rng.permutation(np.repeat(np.arange(40), 3))
    copied = [scores(values[groups_N], groups_N) for values in (first, second)]
    alone = scores(first), scores(second)
    for found, expected in (
        (estimate(copied[0], "m"), estimate(alone[0], "m")),
        (paired_difference(*copied, metric="m"), paired_difference(*alone, metric="m")),
    ):
        assert found == pytest.approx(expected | {"count": 120, "groups": 40})
    # Groups of one are the examples, and of one group the error is unknown.
    single = scores(first, np.arange(40) * 7)
    assert estimate(single, "m") == pytest.approx(estimate(alone[0], "m"))
    one = estimate(scores(first, np.zeros(40, int)), "m")
    assert one["groups"] == 1 and np.isnan(one["standard_error"])
    assert one["value"] == estimate(alone[0], "m")["value"]


def test_groups_count_where_the_metric_is_about_their_examples():
    about_N = np.arange(30) % 3 > 0
    values_NxK = about(about_N, one_each(np.random.default_rng(0).normal(size=30)))
    groups_N = np.arange(30) // 3
    scores = Scores((Metric("m", "", mean),), np.arange(30), {"m": values_NxK}, groups_N=groups_N)
    found = estimate(scores, "m")
    assert (found["count"], found["groups"]) == (20, 10)
    means = values_NxK[about_N, 0].reshape(10, 2).mean(axis=1)
    assert found["standard_error"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(10))
    left = estimate(scores.without(np.arange(3)), "m")
    assert (left["count"], left["groups"]) == (18, 9)
