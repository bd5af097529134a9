"""Whether a difference between two models is more than chance.

Statistics of examples in, p values, intervals and plain sentences out; for every metric alike, for
all are functions of sums over examples (evaluation/metrics.py). A side of a comparison is a model,
or the runs of a setting that differ in their seed alone. Called by report.py, of the rows of a run,
and comparison.py, of several runs.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evaluation.metrics import Metric, Scores, estimate, paired_difference, paired_statistics

DRAWS = 10_000
LEVEL = 0.05
_CHUNK = 2**22  # numbers of a block of draws: 32 MiB


def pooled(runs: Sequence[Scores], metric: str) -> Scores:
    """Returns scores of which a metric is the mean of the runs' own, for any examples.

    The statistics of the runs stand side by side, and the value is the mean of the values: where an
    example is left out or drawn twice, it is so in all runs. (The mean of the statistics would do
    for accuracy, but not for F1, a correlation or perplexity.)

    Args:
        runs: of the same examples.
        metric: name of one of theirs, or 'auto'.

    Raises:
        ValueError: the runs are not about the same examples with the same truth.
    """
    first, found = runs[0], runs[0].metric(metric)
    for run in runs[1:]:
        if not np.array_equal(run.ids_N, first.ids_N) or run.truth != first.truth:
            raise ValueError(
                f"Runs on {len(first.ids_N)} and {len(run.ids_N)} examples cannot be averaged: ids "
                "and true answers must be the same. Evaluate both on the same split with the same "
                "limit."
            )

    def value(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
        parts = zip(*(np.split(each, len(runs), axis=-1) for each in (sums, whole)), strict=True)
        return np.mean([found.value(*part) for part in parts], axis=0)

    statistics = np.concatenate([run.statistics[found.name] for run in runs], axis=1)
    mean = found._replace(value=value)
    return Scores((mean,), first.ids_N, {found.name: statistics}, truth=first.truth)


def bootstrap(
    first: Scores, second: Scores, metric: Metric, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Draws the examples again and again, the same for both models (paired bootstrap).

    The p value is two-sided: how often a difference that is shifted to a mean of 0 is as far from
    it as the one that was found (Efron and Tibshirani 1993, 16.2; Koehn 2004 for texts).

    Args:
        first, second: of the same examples; of several runs, as of `pooled`.
        metric: one of theirs.
        draws: how many.
        seed: of the draws.

    Returns:
        'p_bootstrap', at least 1 / (draws + 1), and 'interval', [low, high] of 95 %.

    Raises:
        ValueError: the two are not about the same examples, or the metric has no value on them.
    """
    found = paired_difference(first, second, metric=metric.name)["value"]
    if not math.isfinite(found):
        values = (estimate(scores, metric.name)["value"] for scores in (first, second))
        raise ValueError(
            f"{metric.name} of the two models is {' and '.join(f'{value:g}' for value in values)} "
            f"on these {len(first.ids_N):,} examples: what has no value has no difference either. "
            "Take more examples, or another metric (config.eval.metric)"
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
        values = [m.value(counts_BxN @ each_NxK, each_NxK.sum(axis=0)) for m, each_NxK in sides]
        differences.append(values[0] - values[1])
    differences_B = np.concatenate(differences)
    differences_B = differences_B[np.isfinite(differences_B)]
    extreme = np.sum(np.abs(differences_B - differences_B.mean()) >= abs(found) - 1e-12)
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
        if values.shape[1] != 2 or not np.all(values[:, 1] == 1):
            return None
        if not np.isin(values[:, 0], (0, 1)).all():
            return None
        sides.append(values[:, 0] > 0)
    only_first, only_second = int((sides[0] & ~sides[1]).sum()), int((~sides[0] & sides[1]).sum())
    if not only_first + only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p values as of one question among all of these (Holm 1979), in the same order.

    None, of what was not tested, stays None and is no question.
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
    if count < 2 or not math.isfinite(mean):
        return {"mean": mean, "deviation": None, "interval": None, "count": count}
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
    """Returns the difference of two models on the same examples, and what it is worth.

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
    found = {
        "metric": metric.name,
        **paired_difference(*sides, metric=metric.name),
        **dict.fromkeys(("p_bootstrap", "interval", "p_mcnemar", "p_seeds")),
    }
    if math.isfinite(found["value"]):
        values = ([estimate(run, metric.name)["value"] for run in runs] for runs in (first, second))
        found |= bootstrap(*sides, metric) | {"p_seeds": seeds_differ(*values)}
        if len(first) == len(second) == 1:
            found["p_mcnemar"] = mcnemar(first[0], second[0], metric)
    return found


def correct(compared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns comparisons, each as one among all of these by Holm's correction.

    Args:
        compared: as of `compare`.

    Returns:
        They with 'p_holm' of 'p_bootstrap', 'p_seeds_holm' of 'p_seeds', and 'family', the number
        of bootstraps that the former accounts for.
    """
    found = [dict(each) for each in compared]
    for test, corrected in (("p_bootstrap", "p_holm"), ("p_seeds", "p_seeds_holm")):
        for each, p in zip(found, holm([one[test] for one in found]), strict=True):
            each[corrected] = p
    family = sum(each["p_bootstrap"] is not None for each in found)
    return [each | {"family": family} for each in found]


def sentence(
    compared: Mapping[str, Any], metric: Metric, *, first: str, second: str, split: str
) -> str:
    """Says in plain words what a comparison found.

    A difference is likely real if it would be there on other examples and, where both sides have
    several seeds, with other seeds too.

    Args:
        compared: as of `correct`.
        metric: what was compared.
        first, second: names of the models.
        split: on which they were compared.
    """
    title, digits, value = metric.title.removesuffix(", %"), metric.digits, compared["value"]
    begin = f"On {compared['count']:,} {split} examples, "
    if not math.isfinite(value):
        return (
            f"{begin}it cannot be told whether {first} beats {second} in {title}: the metric has "
            "no value there."
        )
    if abs(value) < 1e-12:  # means of equal runs may differ in the last bit
        return f"{begin}{first} is exactly as good as {second} in {title}."
    error, low, high = (
        f"{metric.scale * number:.{digits}f}"
        for number in (compared["standard_error"], *compared["interval"])
    )
    size = f"{metric.scale * abs(value):.{digits}f}" + f" ± {error}" * (compared["count"] > 1)
    unit = f"points of {title}" if metric.scale == 100 else f"in {title}"
    verb = "beats" if (value > 0) == metric.higher_is_better else "falls behind"
    likely = [compared["p_holm"] < LEVEL]
    tests = f"p = {compared['p_bootstrap']:.2g} by the paired bootstrap"
    if compared["p_mcnemar"] is not None:
        tests += f", {compared['p_mcnemar']:.2g} by McNemar's test"
    if compared["family"] > 1:
        tests += f", {compared['p_holm']:.2g} after Holm's correction for {compared['family']} "
        tests += "comparisons"
    if compared["p_seeds"] is not None:
        likely.append(compared["p_seeds_holm"] < LEVEL)
        tests += f"; p = {compared['p_seeds']:.2g} over the seeds by Welch's test"
        if compared["p_seeds_holm"] != compared["p_seeds"]:
            tests += f", {compared['p_seeds_holm']:.2g} after Holm's correction"
    verdict = "likely real" if all(likely) else "may be chance"
    return (
        f"{begin}{first} {verb} {second} by {size} {unit} (95 % interval {low} to {high}; "
        f"{tests}): {verdict}."
    )
