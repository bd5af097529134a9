"""Whether a difference between two models is more than chance, and how small a one would show.

Statistics of examples in; p values, intervals, power and plain sentences out, for every metric
alike: all are functions of sums over examples (evaluation/metrics.py). A side of a comparison is a
model, or the runs of a setting that differ in seed or fold alone. How often p values and intervals
are right is measured on known truths by tests/evaluation/test_simulation.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import stdtr, stdtrit  # Student's t: its distribution and its quantiles

from evaluation import metrics
from evaluation.metrics import (
    Metric,
    Scores,
    estimate,
    paired_changes,
    paired_difference,
    paired_statistics,
)

LEVEL, POWER = 0.05, 0.8


def pooled(runs: Sequence[Scores], metric: str) -> Scores:
    """Returns scores of which a metric is the mean of the runs' values, for any examples.

    The statistics of the runs stand side by side, and the value is the mean of the values: where an
    example is left out, it is so in all runs. (The mean of the statistics would do
    for accuracy, but not for F1, a correlation or perplexity.)

    Args:
        runs: of the same examples.
        metric: name of one of theirs, or 'auto'.

    Raises:
        ValueError: the runs are not about the same examples with the same truth.
    """
    first, single = runs[0], runs[0].metric(metric)
    for run in runs[1:]:
        metrics.check_paired(first, run)

    def value(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
        parts = zip(*(np.split(part, len(runs), axis=-1) for part in (sums, whole)), strict=True)
        return np.mean([single.value(*part) for part in parts], axis=0)

    statistics = {single.name: np.concatenate([r.statistics[single.name] for r in runs], axis=1)}
    # Files of older versions hold no groups.
    groups_N = next((run.groups_N for run in runs if run.groups_N is not None), None)
    mean = single._replace(value=value)
    return Scores((mean,), first.ids_N, statistics, truth=first.truth, groups_N=groups_N)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p values corrected for being several (Holm 1979), in the same order.

    None, of what was not tested, stays None and does not count.
    """
    known = {index: p for index, p in enumerate(p_values) if p is not None}
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(known, key=known.__getitem__)):
        largest = max(largest, (len(known) - rank) * known[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Returns 'mean', 'deviation' and 'interval' (95 %, Student's t) of repeated runs, and 'count'.

    Deviation and interval of a single run, or of runs without a value, are None.
    """
    count, mean = len(values), float(np.mean(values))
    deviation = interval = None
    if count > 1 and math.isfinite(mean):
        deviation = float(np.std(values, ddof=1))
        reach = float(stdtrit(count - 1, 1 - LEVEL / 2)) * deviation / math.sqrt(count)
        interval = [mean - reach, mean + reach]
    return {"mean": mean, "deviation": deviation, "interval": interval, "count": count}


def compare(
    first: Sequence[Scores], second: Sequence[Scores], metric: Metric, *, family: int = 1
) -> dict[str, Any]:
    """Returns the difference of two models on the same examples, and its significance.

    Single runs whose metric is a share of right answers are compared by McNemar's exact test, all
    others by Student's t of the jackknife's error. Where both sides have several runs, that error
    holds the scatter over the runs too.

    Args:
        first, second: the runs of each: one, or several whose mean counts.
        metric: one of theirs.
        family: how many comparisons Holm's correction will account for.

    Returns:
        As `paired_difference`, with 'metric'; 'test' (its name), 'p' and 'interval' of 95 %;
        'detectable', the difference that would be significant in 80 of 100 samples, infinite where
        the examples are too few for any; and, of several runs, 'runs_error' (the part of the
        standard error that is due to runs). What does not exist is None.

    Raises:
        ValueError: the runs are not about the same examples with the same truth.
    """
    sides = [pooled(runs, metric.name) for runs in (first, second)]
    names = ("test", "p", "interval", "detectable", "runs_error")
    comparison = {
        "metric": metric.name,
        **paired_difference(*sides, metric=metric.name),
        **dict.fromkeys(names),
    }
    if not math.isfinite(comparison["value"]):
        return comparison
    statistics, level = paired_statistics(*sides, metric=metric.name), LEVEL / family
    if len(first) == len(second) == 1 and (outcomes := _outcomes(*statistics)):
        comparison |= _compare_shares(*outcomes, comparison["count"], level)
        return comparison | {"interval": _reaching_zero(comparison)}
    freedom, runs = _freedom(paired_changes(*sides, metric=metric.name)[1]), None
    if min(len(first), len(second)) > 1:
        runs = [[estimate(run, metric.name)["value"] for run in side] for side in (first, second)]
    comparison |= _compare_means(comparison, statistics, freedom, runs, level)
    return comparison | {"interval": _reaching_zero(comparison)}


def _reaching_zero(comparison: Mapping[str, Any]) -> list[float] | None:
    """Returns the interval, with 0 in it where p does not exclude it: exact tests are stricter."""
    if comparison["interval"] is None or comparison["p"] < LEVEL:
        return comparison["interval"]
    low, high = comparison["interval"]
    return [min(low, 0.0), max(high, 0.0)]


def _outcomes(first_NxK: np.ndarray, second_NxK: np.ndarray) -> tuple[int, int] | None:
    """Returns how many examples only the first, and only the second, gets right; None for
    statistics that are no shares of 0 and 1, such as those of whole groups."""
    for values in (first_NxK, second_NxK):
        if values.shape[1] != 2 or not (np.isin(values[:, 0], (0, 1)) & (values[:, 1] == 1)).all():
            return None
    right, other = first_NxK[:, 0] > 0, second_NxK[:, 0] > 0
    return int((right & ~other).sum()), int((other & ~right).sum())


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the p value of McNemar's exact test (1947).

    Only examples count that one model gets right and the other wrong: were the models as good as
    each other, either would be the right one as often.
    """
    differing = only_first + only_second
    return float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


def _compare_shares(only_first: int, only_second: int, count: int, level: float) -> dict[str, Any]:
    """Returns test, error, interval and power of two shares of right answers.

    Error and interval add half an example to each of the four outcomes (Agresti and Min 2005,
    doi:10.1002/sim.1781): without, those of few disagreements are far too small. Power is that of
    the exact test on as many disagreements, and on at least the few that it needs.
    """
    differing = only_first + only_second
    middle = (only_first - only_second) / (count + 2)
    error = math.sqrt(differing + 1 - (count + 2) * middle**2) / (count + 2)
    reach = float(stats.norm.ppf(1 - LEVEL / 2)) * error
    # With 2 more disagreements than the test needs at least, a sample rarely has too few of them.
    differing = min(max(differing, math.ceil(1 - math.log2(level)) + 2), count)
    detectable = math.inf
    if 2.0 ** (1 - count) <= level:
        needed = stats.binom.isf(level / 2, differing, 0.5) + 1
        share = stats.beta.ppf(POWER, needed, differing - needed + 1)  # P(>= `needed`) is POWER
        detectable = float((2 * share - 1) * differing / count)
    return {
        "standard_error": error,
        "test": "McNemar's exact test",
        "p": mcnemar(only_first, only_second),
        "interval": [max(middle - reach, -1.0), min(middle + reach, 1.0)],
        "detectable": detectable,
    }


def _compare_means(
    difference: Mapping[str, Any],
    statistics: tuple[np.ndarray, np.ndarray],
    freedom: float,
    runs: Sequence[Sequence[float]] | None,
    level: float,
) -> dict[str, Any]:
    """Returns test, interval and power by Student's t.

    Args:
        difference: from `paired_difference`.
        statistics: [G, K] of either side.
        freedom: degrees of freedom of the error, from `_freedom`.
        runs: values of the runs of either side, or None where one has a single run. Examples and
            seeds both scatter: their squared errors add up, which counts what a seed does to single
            examples twice, on the safe side. The degrees of freedom are Welch's (1947).
        level: of significance.
    """
    value, error, units = difference["value"], difference["standard_error"], len(statistics[0])
    if not math.isfinite(error):  # of one example or group, or where the metric needs each of them
        return {"p": 1.0, "detectable": math.inf}
    test = "the paired t test" + " over groups" * ("groups" in difference)
    squares, freedoms, runs_error = [error**2], [freedom], None
    if runs is not None:
        test = f"Welch's t test over {'groups' if 'groups' in difference else 'examples'} and runs"
        squares += [float(np.var(side, ddof=1)) / len(side) for side in runs]
        freedoms += [len(side) - 1 for side in runs]
        runs_error = math.sqrt(sum(squares[1:]))
    error = math.sqrt(sum(squares))
    parts = sum(square**2 / degrees for square, degrees in zip(squares, freedoms, strict=True))
    freedom = error**4 / parts if parts else freedom
    p = 2 * stdtr(freedom, -abs(value) / error) if error else float(value == 0)
    # N coins fall on one side this often: a p value of few examples that differ is no smaller.
    p = max(float(p), 2.0 ** (1 - _differing(*statistics)))
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    detectable = float(stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, POWER)) * error
    return {
        "standard_error": error,
        "test": test,
        "p": min(p, 1.0),
        "interval": [value - reach, value + reach],
        "detectable": math.inf if 2.0 ** (1 - units) > level else detectable or None,
        "runs_error": runs_error,
    }


def _freedom(changes_G: np.ndarray) -> float:
    """Returns the degrees of freedom of a jackknife error.

    They are those of a variance of G numbers of this kurtosis (Satterthwaite 1946): G - 1 of normal
    ones, and fewer where a few examples or large groups make up most of the error.
    """
    count, spread_G = len(changes_G), changes_G - changes_G.mean()
    square = np.mean(spread_G**2)
    if count < 2 or not square > 0:
        return count - 1
    excess = np.mean(spread_G**4) / square**2 - (count - 3) / (count - 1)
    return min(2 * count / excess, count - 1)


def _differing(first_GxK: np.ndarray, second_GxK: np.ndarray) -> int:
    """Returns for how many examples or groups the two sides differ; all, of unlike runs."""
    if first_GxK.shape != second_GxK.shape:
        return len(first_GxK)
    return int((first_GxK != second_GxK).any(axis=1).sum())


def correct(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns comparisons with Holm's correction for all of them.

    Args:
        comparisons: from `compare`.

    Returns:
        They with 'p_holm' of 'p', and 'family', the number of tests that it accounts for.
    """
    p_values = [comparison["p"] for comparison in comparisons]
    family = sum(p is not None for p in p_values)
    return [
        {**comparison, "p_holm": p, "family": family}
        for comparison, p in zip(comparisons, holm(p_values), strict=True)
    ]


def sentence(row: Mapping[str, Any], metric: Metric, *, first: str, second: str, split: str) -> str:
    """Returns the outcome of a comparison in plain words, and how small a difference would show.

    A difference is likely real if it would be there on other examples and, where both sides have
    several seeds, with other seeds too.

    Args:
        row: a comparison from `correct`.
        metric: what was compared.
        first, second: names of the models.
        split: on which they were compared.
    """
    title, value = metric.title.removesuffix(", %"), row["value"]
    begin, groups = f"On {row['count']:,} {split} examples, ", row.get("groups")
    if groups:
        begin = f"{begin[:-2]} (errors by {groups:,} group{'s' * (groups > 1)}), "
    if not math.isfinite(value):
        return (
            f"{begin}{first} and {second} cannot be compared in {title}: the metric has no value "
            "there."
        )
    if abs(value) < 1e-12:  # means of equal runs may differ in the last bit
        return f"{begin}{first} is exactly as good as {second} in {title}.{_power(row, metric)}"
    size = _number(abs(value), metric)
    if math.isfinite(row["standard_error"]):
        size += f" ± {_number(row['standard_error'], metric)}"
    size += f" points of {title}" if metric.scale == 100 else f" in {title}"
    verb = "beats" if (value > 0) == metric.higher_is_better else "falls behind"
    facts = []
    if row["interval"]:
        low, high = (_number(bound, metric) for bound in row["interval"])
        facts.append(f"95 % interval {low} to {high}")
    if row["test"]:
        tests = f"p = {row['p']:.2g} by {row['test']}"
        if row["family"] > 1:
            tests += (
                f", {row['p_holm']:.2g} after Holm's correction for {row['family']} comparisons"
            )
        facts.append(tests)
    shown = f" ({'; '.join(facts)})" if facts else ""
    verdict = "likely real" if row["p_holm"] < LEVEL else "may be chance"
    return f"{begin}{first} {verb} {second} by {size}{shown}: {verdict}.{_power(row, metric)}"


def _power(row: Mapping[str, Any], metric: Metric) -> str:
    """Returns a sentence on the smallest difference that would be found; '' if it is unknown."""
    if row["detectable"] is None:
        return ""
    units = "groups" if "groups" in row else "examples"
    if not math.isfinite(row["detectable"]):
        return f" So few {units} can show no difference."
    text = f" With these {units}{' and runs' * (row['runs_error'] is not None)}, a difference of "
    text += f"{_number(row['detectable'], metric)}{' points' * (metric.scale == 100)} would be "
    text += f"found in {POWER * 100:.0f} of 100 cases"
    if row["runs_error"] is not None:
        by_runs = 2 * row["runs_error"] ** 2 > row["standard_error"] ** 2
        more, less = ("runs", units) if by_runs else (units, "runs")
        text += f"; the {more} limit it more than the {less}"
    return text + "."


def _number(value: float, metric: Metric) -> str:
    return f"{metric.scale * value:.{metric.digits}f}"


def compare_last(
    scores: Mapping[str, Scores], titles: Mapping[str, str], metric: Metric, *, split: str
) -> list[dict[str, Any]]:
    """Returns the last row of a results table against others.

    Args:
        scores: row name -> scores, in the order of the table.
        titles: row name -> what a sentence calls it, of the rows to compare with, if they exist,
            and of the last where it is not 'the .. model'.
        metric: what chose the model; where a row lacks it, the first metric that both have counts.
        split: that the scores are about.

    Returns:
        Comparisons from `correct`, with 'first', 'second' (the rows) and 'sentence'.
    """
    last = list(scores)[-1]
    called = titles.get(last, f"the {last} model")
    names = [row for row in titles if row in scores and row != last]
    used = [_comparable(scores[last], scores[row], metric) for row in names]
    pairs = zip(names, used, strict=True)
    comparisons = correct(
        [compare([scores[last]], [scores[row]], shared, family=len(names)) for row, shared in pairs]
    )
    for comparison, row, shared in zip(comparisons, names, used, strict=True):
        comparison |= {"first": last, "second": row}
        comparison["sentence"] = sentence(
            comparison, shared, first=called, second=titles[row], split=split
        )
    return comparisons


def _comparable(first: Scores, second: Scores, metric: Metric) -> Metric:
    for candidate in (metric, *first.metrics):
        if {candidate.name} <= first.statistics.keys() & second.statistics.keys():
            return candidate
    raise ValueError(
        f"{sorted(first.statistics)} and {sorted(second.statistics)} have no metric in common"
    )


def gains(
    scores: Mapping[str, Scores], comparison: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Returns the difference of every row to the one that a comparison is about."""
    name, other = comparison["metric"], comparison["second"]
    return {
        row: paired_difference(row_scores, scores[other], metric=name)
        for row, row_scores in scores.items()
        if row != other and name in row_scores.statistics
    }
