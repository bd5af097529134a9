"""Tests that are exact where they can be, and fair sentences; test_simulation.py counts errors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluation import significance
from evaluation.metrics import Metric, Scores, class_counts, estimate, macro_f1, mean, one_each
from tasks.classification import ACCURACY

MACRO_F1 = Metric("macro_f1", "macro-F1, %", macro_f1, scale=100, digits=1)
LOSS, HALF = (Metric(name, name, mean) for name in ("loss", "half"))
RMSE = Metric("rmse", "root mean squared error", lambda s, w: np.sqrt(mean(s, w)))


def accuracy_of(right_N):
    right_N = np.asarray(right_N)
    return Scores((ACCURACY,), np.arange(len(right_N)), {"accuracy": one_each(right_N)})


def drawn_pair(rng, count, shares):
    """Two models that are right together more often than by chance."""
    easy_N = rng.random(count) < 0.5
    return [accuracy_of(np.where(easy_N, True, rng.random(count) < share)) for share in shares]


def test_metrics_of_classes_are_compared_too():
    rng = np.random.default_rng(3)
    truth_N = rng.integers(0, 3, 300)
    sides = []
    for share in (0.9, 0.6):
        found_N = np.where(rng.random(300) < share, truth_N, rng.integers(0, 3, 300))
        statistics = {"macro_f1": class_counts(truth_N, found_N, 3)}
        sides.append(Scores((MACRO_F1,), np.arange(300), statistics))
    found = significance.compare(*([side] for side in sides), MACRO_F1)
    assert found["test"] == "the paired t test"
    assert found["p"] < 0.01 and found["value"] > 0.1


def judged(first, second, **names):
    """The comparison of two models, or of their runs, with its sentence."""
    (row,) = significance.correct([significance.compare(first, second, first[0].metrics[0])])
    names = {"first": "A", "second": "B", "split": "test"} | names
    return row, significance.sentence(row, first[0].metrics[0], **names)


def test_a_mean_is_compared_as_by_scipys_paired_t_test():
    values = np.random.default_rng(2).normal(size=(2, 60))
    first, second = (Scores((LOSS,), np.arange(60), {"loss": one_each(v)}) for v in values)
    found, reference = significance.compare([first], [second], LOSS), stats.ttest_rel(*values)
    excess = stats.kurtosis(values[0] - values[1], fisher=False) - 57 / 59
    freedom = min(59, 120 / excess)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(reference.statistic), freedom))
    low, high = found["interval"]
    error = stats.sem(values[0] - values[1])
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    assert found["detectable"] == pytest.approx(2.8 * error, rel=0.05)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_a_verdict_on_shares_is_that_of_the_exact_test(rows):
    first, second = (accuracy_of(side) for side in zip(*rows, strict=True))
    row, text = judged([first], [second])
    only_first, only_second = (sum(a > b for a, b in r) for r in (rows, [x[::-1] for x in rows]))
    exact = 1.0
    if only_first + only_second:
        exact = stats.binomtest(only_first, only_first + only_second).pvalue
    assert row["p"] == pytest.approx(exact)
    assert ("likely real" in text) == (exact < 0.05 and only_first != only_second)
    low, high = row["interval"]
    assert -1 <= low < row["value"] + 1e-9 and row["value"] - 1e-9 < high <= 1
    assert (low <= 0 <= high) == (exact >= 0.05)  # the interval never says another thing
    assert row["detectable"] > 0 and "nan" not in text
    assert ("can show no difference" in text) == (len(rows) < 6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.booleans())
def test_no_verdict_is_surer_than_coins_that_fall_on_one_side(differences, grouped):
    """Of numbers too, few that differ prove nothing, however equal their differences are."""
    count = len(differences)
    groups_N = np.arange(count) // 2 if grouped else None
    sides = [
        Scores((LOSS,), np.arange(count), {"loss": one_each(v)}, groups_N=groups_N)
        for v in (np.array(differences, float), np.zeros(count))
    ]
    row, text = judged([sides[0]], [sides[1]])
    units = np.add.reduceat(np.abs(differences), np.arange(0, count, 2)) if grouped else differences
    assert 2.0 ** (1 - np.count_nonzero(units)) <= row["p"] + 1e-12 or row["p"] == 1
    assert "nan" not in text and "inf" not in text
    assert ("can show no difference" in text) == (len(units) < 6)
    if row["interval"]:
        assert (row["interval"][0] <= 0 <= row["interval"][1]) == (row["p"] >= 0.05)


def test_mcnemar_is_the_sign_test_of_those_that_differ():
    # 10 against 2 of 12: statsmodels' mcnemar(exact=True) gives 0.03857421875 too.
    first = [True] * 10 + [False] * 2 + [True] * 30
    second = [False] * 10 + [True] * 2 + [True] * 30
    found = significance.compare([accuracy_of(first)], [accuracy_of(second)], ACCURACY)
    assert found["p"] == pytest.approx(0.03857421875)
    assert significance.mcnemar(10, 2) == found["p"] and significance.mcnemar(0, 0) == 1
    halves = [accuracy_of(np.full(4, 0.5))]
    assert significance.compare(halves, halves, ACCURACY)["test"] == "the paired t test"


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
    assert significance.over_seeds([0.5, math.nan])["interval"] is None


def test_with_any_number_of_examples_several_runs_are_compared_as_by_welchs_test():
    rng = np.random.default_rng(0)
    sides = [[0.81, 0.83, 0.80, 0.84, 0.82], [0.7, 0.75]]
    noise_N = rng.normal(0, 1e-4, 10**5)
    noise_N -= noise_N.mean()
    runs = [
        [Scores((LOSS,), np.arange(10**5), {"loss": one_each(v + noise_N)}) for v in values]
        for values in sides
    ]
    found, expected = significance.compare(*runs, LOSS), stats.ttest_ind(*sides, equal_var=False)
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert found["interval"] == pytest.approx([*expected.confidence_interval()], rel=1e-6)
    assert found["standard_error"] == pytest.approx(found["runs_error"])


@pytest.mark.parametrize(
    ("shares", "p_holm", "family", "parts"),
    [
        (
            (0.9, 0.5),
            0.001,
            1,
            ["A beats B by", "points of accuracy", "likely real", " found in 80 of 100 "],
        ),
        ((0.5, 0.9), 0.2, 6, ["A falls behind B", "for 6 comparisons", "may be chance"]),
        ((1.0, 1.0), 1.0, 1, ["A is exactly as good as B in accuracy. With these examples, a "]),
    ],
)
def test_the_sentence_says_what_was_found(shares, p_holm, family, parts):
    first, second = drawn_pair(np.random.default_rng(4), 500, shares)
    compared = significance.compare([first], [second], ACCURACY)
    compared |= {"p_holm": p_holm, "family": family}
    text = significance.sentence(compared, ACCURACY, first="A", second="B", split="test")
    assert text.startswith("On 500 test examples, ")
    assert all(part in text for part in parts), text
    assert ("Holm" in text) == (family > 1)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        significance.compare([accuracy_of([True] * 5)], [accuracy_of([True] * 6)], ACCURACY)
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
    over_seeds = [np.var([estimate(r, "rmse")["value"] for r in runs], ddof=1) for runs in sides]
    runs_error = np.sqrt(over_seeds[0] / 3 + over_seeds[1] / 2)
    assert found["runs_error"] == pytest.approx(runs_error)
    assert found["standard_error"] == pytest.approx(np.hypot(error, runs_error))
    low, high = found["interval"]
    assert low < found["value"] < high
    mixed = significance.compare(sides[0], sides[1][:1], RMSE)  # one run shows no spread of seeds
    assert mixed["runs_error"] is None and "runs" not in mixed["test"]


def test_what_other_seeds_could_undo_is_not_called_real():
    """The examples are sure of it; the seeds are not."""
    rng = np.random.default_rng(7)

    def group(*shares):
        return [accuracy_of(rng.random(2000) < share) for share in shares]

    steady = group(0.80, 0.81, 0.79), group(0.60, 0.61, 0.59)
    scattered = group(0.6, 0.9, 0.9), group(0.6, 0.75, 0.6)
    for sides, verdict in ((steady, "likely real"), (scattered, "may be chance")):
        row, text = judged(*sides)
        assert f"by Welch's t test over examples and runs): {verdict}." in text
        assert text.endswith("; the runs limit it more than the examples.")
        single, _ = judged(*([runs[0]] for runs in sides))
        assert single["p"] < 0.001 or sides is scattered
        assert row["runs_error"] < row["standard_error"]
    few = [[accuracy_of(run.statistics["accuracy"][:40, 0]) for run in runs] for runs in steady]
    assert judged(*few)[1].endswith("; the examples limit it more than the runs.")
    one, text = judged(group(0.8, 0.8), group(0.6))
    assert one["runs_error"] is None and "and runs" not in text and "likely real" in text


def test_power_counts_the_comparisons_that_are_corrected_for():
    sides = drawn_pair(np.random.default_rng(5), 300, (0.6, 0.5))
    for metric, runs in ((ACCURACY, sides), (RMSE, [errors_of(seed, 1) for seed in range(2)])):
        alone, among = (
            significance.compare(*([run] for run in runs), metric, family=family)
            for family in (1, 10)
        )
        assert alone["p"] == among["p"] and alone["interval"] == among["interval"]
        assert 1.2 < among["detectable"] / alone["detectable"] < 1.5


def test_groups_are_compared_as_wholes():
    rng = np.random.default_rng(6)
    right_N, groups_N = rng.random((2, 50)) < [[0.9], [0.6]], rng.permutation(np.arange(150) % 50)
    copies = [
        Scores((ACCURACY,), np.arange(150), {"accuracy": one_each(r[groups_N])}, groups_N=groups_N)
        for r in right_N
    ]
    row, text = judged(*([side] for side in copies))
    assert row["test"] == "the paired t test over groups" and row["groups"] == 50
    assert text.startswith("On 150 test examples (errors by 50 groups), A beats B by ")
    assert "by the paired t test over groups" in text and "With these groups, a " in text
    halves = [Scores((HALF,), np.arange(50), {"half": one_each(r / 2)}) for r in right_N]
    expected, _ = judged(*([side] for side in halves))  # not 0 and 1: the same t test
    assert row["p"] == pytest.approx(expected["p"])
    assert row["interval"] == pytest.approx([2 * bound for bound in expected["interval"]])
    alone = [Scores((ACCURACY,), np.arange(150), side.statistics) for side in copies]
    careless, _ = judged(*([side] for side in alone))
    assert careless["p"] < row["p"] / 10 and careless["test"] == "McNemar's exact test"
    older = significance.compare([copies[0]], [alone[1]], ACCURACY)  # a file without groups
    assert older["p"] == row["p"] == significance.compare([alone[0]], [copies[1]], ACCURACY)["p"]


def test_without_a_value_it_is_said_that_nothing_can_be_told():
    without = Scores((ACCURACY,), np.arange(5), {"accuracy": np.zeros((5, 2))})
    sides = accuracy_of([True] * 5), without
    absent, real = significance.correct(
        [
            significance.compare(*([side] for side in sides), ACCURACY),
            significance.compare([sides[0]], [accuracy_of([True, False] * 2 + [True])], ACCURACY),
        ]
    )
    assert absent["p"] is absent["p_holm"] is absent["interval"] is absent["detectable"] is None
    assert real["p_holm"] == real["p"] and real["family"] == 1
    text = significance.sentence(absent, ACCURACY, first="A", second="B", split="test")
    assert text.startswith("On 5 test examples, A and B cannot be compared in accuracy")


@pytest.mark.parametrize(("count", "real"), [(1, False), (5, False), (6, True), (12, True)])
def test_few_examples_prove_little_even_if_all_agree(count, real):
    for groups_N in (None, np.arange(count)):
        sides = [
            Scores((ACCURACY,), np.arange(count), {"accuracy": one_each(v)}, groups_N=groups_N)
            for v in np.outer((1, 0), np.ones(count))
        ]
        row, text = judged(*([side] for side in sides))
        assert ("likely real" if real else "may be chance") in text and "nan" not in text
        assert row["p"] == pytest.approx(2.0 ** (1 - count))
        assert text.endswith("So few examples can show no difference.") == (count < 6)


def test_a_single_group_shows_nothing():
    right_N = np.random.default_rng(0).random((2, 60)) < [[0.9], [0.5]]
    sides = [
        Scores((ACCURACY,), np.arange(60), {"accuracy": one_each(v)}, groups_N=np.zeros(60, int))
        for v in right_N
    ]
    row, text = judged(*([side] for side in sides))
    assert row["p"] == 1 and row["interval"] is None
    assert text.startswith("On 60 test examples (errors by 1 group), A beats B by ")
    assert text.endswith("points of accuracy: may be chance. So few groups can show no difference.")
