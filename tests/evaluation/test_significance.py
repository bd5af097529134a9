"""p values that are uniform without a difference, intervals that hold the truth, fair sentences."""

import numpy as np
import pytest
from scipy import stats

from evaluation import significance
from evaluation.metrics import Metric, Scores, class_counts, macro_f1, mean, one_each
from tasks.classification import ACCURACY

MACRO_F1 = Metric("macro_f1", "macro-F1, %", macro_f1, scale=100, digits=1)
RMSE = Metric("rmse", "root mean squared error", lambda s, w: np.sqrt(mean(s, w)))


def accuracy_of(right_N):
    right_N = np.asarray(right_N)
    return Scores((ACCURACY,), np.arange(len(right_N)), {"accuracy": one_each(right_N)})


def drawn_pair(rng, count, shares):
    """Two models that are right together more often than by chance."""
    easy_N = rng.random(count) < 0.5
    return [accuracy_of(np.where(easy_N, True, rng.random(count) < share)) for share in shares]


def test_p_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    found = []
    for seed in range(200):
        first, second = drawn_pair(rng, 80, (0.5, 0.5))
        found.append(significance.bootstrap(first, second, ACCURACY, draws=400, seed=seed))
    p_values = np.array([each["p_bootstrap"] for each in found])
    assert 0.01 <= np.mean(p_values <= 0.05) <= 0.10
    assert 0.40 <= np.mean(p_values <= 0.5) <= 0.60
    inside = np.mean([low <= 0 <= high for low, high in (each["interval"] for each in found)])
    assert 0.90 <= inside <= 0.99


def test_a_real_difference_is_found_and_its_interval_holds_it():
    first, second = drawn_pair(np.random.default_rng(1), 2000, (0.7, 0.5))
    found = significance.compare(first, second, ACCURACY)
    assert found["p_bootstrap"] < 0.001 and found["p_mcnemar"] < 0.001
    low, high = found["interval"]
    assert low < 0.10 < high and low > 0  # half of the examples are easy
    # The interval is about that of the standard error.
    assert (high - low) / (2 * 1.96 * found["standard_error"]) == pytest.approx(1, abs=0.05)


def test_the_interval_of_a_mean_is_that_of_scipy_bootstrap():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(2, 60)) ** 2
    first, second = (Scores((RMSE,), np.arange(60), {"rmse": one_each(v)}) for v in values)
    found = significance.bootstrap(first, second, RMSE, draws=20_000)["interval"]
    reference = stats.bootstrap(
        tuple(values),
        lambda a, b, axis: np.sqrt(a.mean(axis)) - np.sqrt(b.mean(axis)),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    np.testing.assert_allclose(found, [reference.low, reference.high], atol=0.02)


def test_metrics_of_classes_are_compared_too():
    rng = np.random.default_rng(3)
    truth_N = rng.integers(0, 3, 300)
    sides = []
    for share in (0.9, 0.6):
        found_N = np.where(rng.random(300) < share, truth_N, rng.integers(0, 3, 300))
        statistics = {"macro_f1": class_counts(truth_N, found_N, 3)}
        sides.append(Scores((MACRO_F1,), np.arange(300), statistics))
    found = significance.compare(*sides, MACRO_F1)
    assert found["p_mcnemar"] is None
    assert found["p_bootstrap"] < 0.01 and found["value"] > 0.1


def test_mcnemar_is_the_sign_test_of_those_that_differ():
    # 10 against 2 of 12: statsmodels' mcnemar(exact=True) gives 0.03857421875 too.
    first = [True] * 10 + [False] * 2 + [True] * 30
    second = [False] * 10 + [True] * 2 + [True] * 30
    p = significance.mcnemar(accuracy_of(first), accuracy_of(second), ACCURACY)
    assert p == pytest.approx(0.03857421875)
    assert significance.mcnemar(accuracy_of(first), accuracy_of(first), ACCURACY) == 1
    assert significance.mcnemar(*[accuracy_of(np.full(4, 0.5))] * 2, ACCURACY) is None


def test_holm_corrects_and_keeps_the_order():
    # Worked by hand: 0.01 * 4, max(0.04, 0.02 * 3), max(0.06, 0.03 * 2), max(0.06, 0.2 * 1).
    found = significance.holm([0.03, 0.01, 0.2, 0.02])
    assert found == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert significance.holm([0.7, 0.8]) == [1, 1]
    assert significance.holm([]) == []


def test_seeds_have_a_students_interval():
    values = [0.81, 0.83, 0.80, 0.84, 0.82]
    found = significance.over_seeds(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found["interval"] == pytest.approx([low, high])
    assert found["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert significance.over_seeds([0.5]) == {
        "mean": 0.5,
        "deviation": None,
        "interval": None,
        "count": 1,
    }
    expected = stats.ttest_ind(values, [0.7, 0.75], equal_var=False).pvalue
    assert significance.seeds_differ(values, [0.7, 0.75]) == expected
    assert significance.seeds_differ(values, [0.7]) is None
    assert significance.seeds_differ([0.5, 0.5], [0.6, 0.6]) == 0


@pytest.mark.parametrize(
    ("shares", "p_holm", "family", "parts"),
    [
        ((0.9, 0.5), 0.001, 1, ["A beats B by", "points of accuracy", "likely real"]),
        ((0.5, 0.9), 0.2, 6, ["A falls behind B", "for 6 comparisons", "may be chance"]),
        ((1.0, 1.0), 1.0, 1, ["A is exactly as good as B in accuracy."]),
    ],
)
def test_the_sentence_says_what_was_found(shares, p_holm, family, parts):
    first, second = drawn_pair(np.random.default_rng(4), 500, shares)
    compared = significance.compare(first, second, ACCURACY) | {"p_holm": p_holm}
    text = significance.sentence(
        compared, ACCURACY, first="A", second="B", split="test", family=family
    )
    assert text.startswith("On 500 test examples, ")
    assert all(part in text for part in parts), text
    assert ("Holm" in text) == (family > 1)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        significance.bootstrap(accuracy_of([True] * 5), accuracy_of([True] * 6), ACCURACY)
