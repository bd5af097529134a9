"""p values that are uniform without a difference, intervals that hold the truth, fair sentences."""

import math

import numpy as np
import pytest
from scipy import stats

from evaluation import significance
from evaluation.metrics import Metric, Scores, class_counts, estimate, macro_f1, mean, one_each
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
    found = significance.compare([first], [second], ACCURACY)
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
    found = significance.compare(*([side] for side in sides), MACRO_F1)
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
    assert significance.holm([0.02, None, 0.03]) == pytest.approx([0.04, None, 0.04])


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
    assert significance.seeds_differ([0.5, math.nan], [0.6, 0.6]) is None


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
    compared = significance.compare([first], [second], ACCURACY)
    compared |= {"p_holm": p_holm, "p_seeds_holm": None, "family": family}
    text = significance.sentence(compared, ACCURACY, first="A", second="B", split="test")
    assert text.startswith("On 500 test examples, ")
    assert all(part in text for part in parts), text
    assert ("Holm" in text) == (family > 1)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        significance.bootstrap(accuracy_of([True] * 5), accuracy_of([True] * 6), ACCURACY)
    with pytest.raises(ValueError, match="5 and 6 examples cannot be paired"):
        significance.pooled([accuracy_of([True] * 5), accuracy_of([True] * 6)], "auto")


def errors_of(seed, size, count=60):
    errors_N = np.random.default_rng(seed).normal(0, size, count) ** 2
    return Scores((RMSE,), np.arange(count), {"rmse": one_each(errors_N)})


def test_a_group_is_worth_the_mean_of_its_runs_also_where_the_metric_is_not_linear():
    sides = [[errors_of(seed, 1.0 + seed) for seed in range(3)], [errors_of(5, 4), errors_of(6, 1)]]
    found = significance.compare(*sides, RMSE)
    means = [np.mean([estimate(run, "rmse")["value"] for run in runs]) for runs in sides]
    assert found["value"] == pytest.approx(means[0] - means[1])
    # The jackknife, by hand: each example is left out of all runs at once.
    squares = [np.stack([run.statistics["rmse"][:, 0] for run in runs]) for runs in sides]
    left_out = [np.sqrt((s.sum(1, keepdims=True) - s) / 59).mean(axis=0) for s in squares]
    error = np.sqrt(59 * np.var(left_out[0] - left_out[1]))
    assert found["standard_error"] == pytest.approx(error)
    low, high = found["interval"]  # of the same difference
    assert low < found["value"] < high
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_a_draw_is_of_as_many_examples_each_as_likely():
    counts_BxN = significance._draw(np.random.default_rng(0), 4000, 5)
    assert counts_BxN.shape == (4000, 5) and np.all(counts_BxN.sum(axis=1) == 5)
    np.testing.assert_allclose(counts_BxN.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(counts_BxN.var(axis=0), 0.8, atol=0.08)  # binomial: 5 * 1/5 * 4/5


def test_what_other_seeds_could_undo_is_not_called_real():
    """The examples are sure of it; the seeds are not."""
    rng = np.random.default_rng(7)

    def group(*shares):
        return [accuracy_of(rng.random(2000) < share) for share in shares]

    scattered = significance.compare(group(0.6, 0.9, 0.9), group(0.6, 0.75, 0.6), ACCURACY)
    steady = significance.compare(group(0.80, 0.81, 0.79), group(0.60, 0.61, 0.59), ACCURACY)
    for family in ([scattered, steady], [scattered], [steady]):
        texts = [
            significance.sentence(each, ACCURACY, first="A", second="B", split="test")
            for each in significance.correct(family)
        ]
        for each, text in zip(family, texts, strict=True):
            assert each["p_bootstrap"] < 0.001
            assert f"; p = {each['p_seeds']:.2g} over the seeds by Welch's test" in text
            assert text.endswith("likely real." if each is steady else "may be chance.")
    corrected = significance.correct([scattered, steady])
    assert corrected[1]["p_seeds_holm"] == pytest.approx(2 * steady["p_seeds"])
    assert f"{2 * steady['p_seeds']:.2g} after Holm's correction)" in significance.sentence(
        corrected[1], ACCURACY, first="A", second="B", split="test"
    )
    one = significance.compare(group(0.8, 0.8), group(0.6), ACCURACY)
    (text,) = [
        significance.sentence(each, ACCURACY, first="A", second="B", split="test")
        for each in significance.correct([one])
    ]
    assert one["p_seeds"] is None and "seeds" not in text and text.endswith("likely real.")


def test_without_a_value_it_is_said_that_nothing_can_be_told():
    without = Scores((ACCURACY,), np.arange(5), {"accuracy": np.zeros((5, 2))})
    sides = accuracy_of([True] * 5), without
    with pytest.raises(
        ValueError, match=r"accuracy of the two models is 1 and nan on these 5 exam"
    ):
        significance.bootstrap(*sides, ACCURACY)
    absent, real = significance.correct(
        [
            significance.compare(*([side] for side in sides), ACCURACY),
            significance.compare([sides[0]], [accuracy_of([True, False] * 2 + [True])], ACCURACY),
        ]
    )
    assert absent["p_bootstrap"] is absent["p_holm"] is absent["interval"] is None
    assert real["p_holm"] == real["p_bootstrap"] and real["family"] == 1
    text = significance.sentence(absent, ACCURACY, first="A", second="B", split="test")
    assert text.startswith("On 5 test examples, A and B cannot be compared in accuracy")
    assert significance.over_seeds([0.5, math.nan])["interval"] is None


@pytest.mark.parametrize(("count", "real"), [(1, False), (4, False), (12, True)])
def test_few_examples_prove_little_even_if_all_agree(count, real):
    sides = [[accuracy_of(np.full(count, right))] for right in (True, False)]
    (found,) = significance.correct([significance.compare(*sides, ACCURACY)])
    text = significance.sentence(found, ACCURACY, first="A", second="B", split="test")
    assert text.endswith("likely real." if real else "may be chance.") and "nan" not in text
    assert found["p_bootstrap"] == pytest.approx(found["p_mcnemar"])  # the exact test's
