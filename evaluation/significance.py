"""Whether a difference between two models is more than chance.

Statistics of examples in, p values, intervals and plain sentences out; for every metric alike, for
all are functions of sums over examples (evaluation/metrics.py). A side of a comparison is a model,
or the runs of a setting that differ in their seed alone.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evaluation import metrics
from evaluation.metrics import Metric, Scores, estimate, paired_difference, paired_statistics

DRAWS = 10_000
LEVEL = 0.05
_CHUNK = 2**22  # numbers of a block of draws: 32 MiB


def pooled(runs: Sequence[Scores], metric: str) -> Scores:
    """Returns scores of which a metric is the mean of the runs' values, for any examples.

    The statistics of the runs stand side by side, and the value is the mean of the values: where an
    example is left out or drawn twice, it is so in all runs. (The mean of the statistics would do
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

    statistics = np.concatenate([run.statistics[single.name] for run in runs], axis=1)
    mean = single._replace(value=value)
    return Scores((mean,), first.ids_N, {single.name: statistics}, truth=first.truth)


def bootstrap(
    first: Scores, second: Scores, metric: Metric, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Draws the examples again and again, the same for both models (paired bootstrap).

    The p value is two-sided: how often a difference that is shifted to a mean of 0 is as far from
    it as the observed one (Efron and Tibshirani 1993, 16.2; Koehn 2004 for texts).

    Args:
        first, second: of the same examples; of several runs, see `pooled`.
        metric: one of theirs.
        draws: how many.
        seed: of the draws.

    Returns:
        'p_bootstrap', at least 1 / (draws + 1), and 'interval', [low, high] of 95 %.

    Raises:
        ValueError: the two are not about the same examples, or the metric has no value on them.
    """
    difference = paired_difference(first, second, metric=metric.name)["value"]
    if not math.isfinite(difference):
        values = [f"{estimate(side, metric.name)['value']:g}" for side in (first, second)]
        raise ValueError(
            f"{metric.name} of the two models is {' and '.join(values)} on these "
            f"{len(first.ids_N):,} examples, which have no difference: use more examples, or "
            "another metric (config.eval.metric)"
        )
    rng = np.random.default_rng(seed)
    both = (scores.metric(metric.name) for scores in (first, second))
    sides = list(zip(both, paired_statistics(first, second, metric=metric.name), strict=True))
    count = len(sides[0][1])
    block = max(1, _CHUNK // max(count, *(values_NxK.shape[1] for _, values_NxK in sides)))
    differences = []
    for start in range(0, draws, block):
        drawn = min(block, draws - start)
        counts_BxN = _draw(rng, drawn, count)
        values = [m.value(counts_BxN @ side_NxK, side_NxK.sum(axis=0)) for m, side_NxK in sides]
        differences.append(values[0] - values[1])
    differences_B = np.concatenate(differences)
    differences_B = differences_B[np.isfinite(differences_B)]
    extreme = np.sum(np.abs(differences_B - differences_B.mean()) >= abs(difference) - 1e-12)
    low, high = np.quantile(differences_B, [LEVEL / 2, 1 - LEVEL / 2])
    p = float((1 + extreme) / (1 + len(differences_B)))
    # N coins fall on one side this often. Draws of very few examples, all alike, do not know it.
    return {"p_bootstrap": max(p, 2.0 ** (1 - count)), "interval": [float(low), float(high)]}


def _draw(rng: np.random.Generator, draws: int, count: int) -> np.ndarray:
    """Returns how often each of N examples is in each of B draws of N: float64 [B, N].

    As rng.multinomial, which takes six times as long for 20,000 examples.
    """
    drawn_BxN = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    counts = np.bincount(drawn_BxN.ravel(), minlength=draws * count)
    return counts.reshape(draws, count).astype(np.float64)


def mcnemar(first: Scores, second: Scores, metric: Metric) -> float | None:
    """Returns the p value of McNemar's exact test; None for metrics that are no shares of 0 and 1.

    Only examples count that one model gets right and the other wrong (McNemar 1947): were the
    models as good as each other, either would be the right one as often.
    """
    sides = []
    for values in paired_statistics(first, second, metric=metric.name):
        is_share = values.shape[1] == 2 and np.isin(values[:, 0], (0, 1)).all()
        if not is_share or not (values[:, 1] == 1).all():
            return None
        sides.append(values[:, 0] > 0)
    only_one, only_first = int((sides[0] ^ sides[1]).sum()), int((sides[0] & ~sides[1]).sum())
    return float(stats.binomtest(only_first, only_one).pvalue) if only_one else 1.0


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
        reach = float(stats.t.ppf(1 - LEVEL / 2, count - 1)) * deviation / math.sqrt(count)
        interval = [mean - reach, mean + reach]
    return {"mean": mean, "deviation": deviation, "interval": interval, "count": count}


def seeds_differ(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the p value of Welch's t test between the runs of two settings.

    None below two runs each, and where one has no value. Runs that all give the same value differ
    for sure or not at all.
    """
    if min(len(first), len(second)) < 2 or not np.isfinite([*first, *second]).all():
        return None
    if np.ptp(first) == np.ptp(second) == 0:
        return 1.0 if first[0] == second[0] else 0.0
    with warnings.catch_warnings():  # one side may have no spread, of which SciPy warns
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def compare(first: Sequence[Scores], second: Sequence[Scores], metric: Metric) -> dict[str, Any]:
    """Returns the difference of two models on the same examples, and its significance.

    Args:
        first, second: the runs of each: one, or several whose mean counts.
        metric: one of theirs.

    Returns:
        As `paired_difference`, with 'metric', 'p_bootstrap', 'interval', 'p_mcnemar' (of single
        runs) and 'p_seeds' (of several on either side); these are None where there is no such test,
        or no value of the metric.

    Raises:
        ValueError: the runs are not about the same examples with the same truth.
    """
    sides = [pooled(runs, metric.name) for runs in (first, second)]
    comparison = {
        "metric": metric.name,
        **paired_difference(*sides, metric=metric.name),
        **dict.fromkeys(("p_bootstrap", "interval", "p_mcnemar", "p_seeds")),
    }
    if math.isfinite(comparison["value"]):
        values = ([estimate(run, metric.name)["value"] for run in runs] for runs in (first, second))
        comparison |= bootstrap(*sides, metric) | {"p_seeds": seeds_differ(*values)}
        if len(first) == len(second) == 1:
            comparison["p_mcnemar"] = mcnemar(first[0], second[0], metric)
    return comparison


def correct(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns comparisons with Holm's correction for all of them.

    Args:
        comparisons: from `compare`.

    Returns:
        They with 'p_holm' of 'p_bootstrap', 'p_seeds_holm' of 'p_seeds', and 'family', the number
        of bootstraps that the former accounts for.
    """
    by_bootstrap, by_seeds = (
        [comparison[test] for comparison in comparisons] for test in ("p_bootstrap", "p_seeds")
    )
    family = sum(p is not None for p in by_bootstrap)
    return [
        {**comparison, "p_holm": p, "p_seeds_holm": p_seeds, "family": family}
        for comparison, p, p_seeds in zip(
            comparisons, holm(by_bootstrap), holm(by_seeds), strict=True
        )
    ]


def sentence(row: Mapping[str, Any], metric: Metric, *, first: str, second: str, split: str) -> str:
    """Returns the outcome of a comparison in plain words.

    A difference is likely real if it would be there on other examples and, where both sides have
    several seeds, with other seeds too.

    Args:
        row: a comparison from `correct`.
        metric: what was compared.
        first, second: names of the models.
        split: on which they were compared.
    """
    title, value = metric.title.removesuffix(", %"), row["value"]
    begin = f"On {row['count']:,} {split} examples, "
    if not math.isfinite(value):
        return (
            f"{begin}{first} and {second} cannot be compared in {title}: the metric has no value "
            "there."
        )
    if abs(value) < 1e-12:  # means of equal runs may differ in the last bit
        return f"{begin}{first} is exactly as good as {second} in {title}."
    size, error, low, high = (
        f"{metric.scale * number:.{metric.digits}f}"
        for number in (abs(value), row["standard_error"], *row["interval"])
    )
    size += f" ± {error}" * (row["count"] > 1)
    unit = f"points of {title}" if metric.scale == 100 else f"in {title}"
    verb = "beats" if (value > 0) == metric.higher_is_better else "falls behind"
    likely = [row["p_holm"] < LEVEL]
    tests = f"p = {row['p_bootstrap']:.2g} by the paired bootstrap"
    if row["p_mcnemar"] is not None:
        tests += f", {row['p_mcnemar']:.2g} by McNemar's test"
    if row["family"] > 1:
        tests += f", {row['p_holm']:.2g} after Holm's correction for {row['family']} comparisons"
    if row["p_seeds"] is not None:
        likely.append(row["p_seeds_holm"] < LEVEL)
        tests += f"; p = {row['p_seeds']:.2g} over the seeds by Welch's test"
        if row["p_seeds_holm"] != row["p_seeds"]:
            tests += f", {row['p_seeds_holm']:.2g} after Holm's correction"
    verdict = "likely real" if all(likely) else "may be chance"
    return (
        f"{begin}{first} {verb} {second} by {size} {unit} (95 % interval {low} to {high}; "
        f"{tests}): {verdict}."
    )


def compare_last(
    scores: Mapping[str, Scores], titles: Mapping[str, str], metric: Metric, *, split: str
) -> list[dict[str, Any]]:
    """Returns the last row of a results table against others.

    Args:
        scores: row name -> scores, in the order of the table.
        titles: row name -> what a sentence calls it, of the rows to compare with, if they exist.
        metric: what chose the model; where a row lacks it, the first metric that both have counts.
        split: that the scores are about.

    Returns:
        Comparisons from `correct`, with 'first', 'second' (the rows) and 'sentence'.
    """
    last = list(scores)[-1]
    names = [row for row in titles if row in scores and row != last]
    used = [_comparable(scores[last], scores[row], metric) for row in names]
    pairs = zip(names, used, strict=True)
    comparisons = correct([compare([scores[last]], [scores[row]], own) for row, own in pairs])
    for comparison, row, own in zip(comparisons, names, used, strict=True):
        comparison |= {"first": last, "second": row}
        comparison["sentence"] = sentence(
            comparison, own, first=f"the {last} model", second=titles[row], split=split
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
