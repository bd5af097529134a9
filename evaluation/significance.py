"""Whether a difference between two models is more than chance.

Statistics of examples in, p values, intervals and plain sentences out; for every metric alike, for
all are functions of sums over examples (evaluation/metrics.py). Called by comparison.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evaluation.metrics import Metric, Scores, paired_difference

DRAWS = 10_000
LEVEL = 0.05
_CHUNK = 2**22  # numbers of a block of draws: 32 MiB


def bootstrap(
    first: Scores, second: Scores, metric: Metric, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Draws the examples again and again, the same for both models (paired bootstrap).

    The p value is two-sided: how often a difference that is shifted to a mean of 0 is as far from
    it as the one that was found (Efron and Tibshirani 1993, 16.2; Koehn 2004 for texts).

    Args:
        first, second: of the same examples.
        metric: one of theirs.
        draws: how many.
        seed: of the draws.

    Returns:
        'p_bootstrap', at least 1 / (draws + 1), and 'interval', [low, high] of 95 %.

    Raises:
        ValueError: the two are not about the same examples.
    """
    found = paired_difference(first, second, metric=metric.name)["value"]
    rng = np.random.default_rng(seed)
    sides = [scores.statistics[metric.name] for scores in (first, second)]
    count = len(first.ids_N)
    block, differences = max(1, _CHUNK // count), []
    for start in range(0, draws, block):
        drawn = min(block, draws - start)
        counts_BxN = rng.multinomial(count, np.full(count, 1 / count), drawn).astype(np.float64)
        values = [metric.value(counts_BxN @ side, side.sum(axis=0)) for side in sides]
        differences.append(values[0] - values[1])
    differences_B = np.concatenate(differences)
    differences_B = differences_B[np.isfinite(differences_B)]
    extreme = np.sum(np.abs(differences_B - differences_B.mean()) >= abs(found) - 1e-12)
    low, high = np.quantile(differences_B, [LEVEL / 2, 1 - LEVEL / 2])
    return {
        "p_bootstrap": float((1 + extreme) / (1 + len(differences_B))),
        "interval": [float(low), float(high)],
    }


def mcnemar(first: Scores, second: Scores, metric: Metric) -> float | None:
    """Returns the p value of McNemar's exact test; None for metrics that are no shares of 0 and 1.

    Only examples count that one model gets right and the other wrong (McNemar 1947): were the
    models as good as each other, either would be the right one as often.
    """
    sides = []
    for scores in (first, second):
        values = scores.statistics[metric.name]
        if values.shape[1] != 2 or not np.all(values[:, 1] == 1):
            return None
        if not np.isin(values[:, 0], (0, 1)).all():
            return None
        sides.append(values[:, 0] > 0)
    only_first, only_second = int((sides[0] & ~sides[1]).sum()), int((~sides[0] & sides[1]).sum())
    if not only_first + only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values as of one question among all of these (Holm 1979), in the same order."""
    order, adjusted, largest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Returns 'mean', 'deviation' and 'interval' (95 %, Student's t) of repeated runs, and 'count'.

    Deviation and interval of a single run are None.
    """
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return {"mean": mean, "deviation": None, "interval": None, "count": count}
    deviation = float(np.std(values, ddof=1))
    reach = float(stats.t.ppf(1 - LEVEL / 2, count - 1)) * deviation / math.sqrt(count)
    interval = [mean - reach, mean + reach]
    return {"mean": mean, "deviation": deviation, "interval": interval, "count": count}


def seeds_differ(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the p value of Welch's t test between the runs of two settings; None below two each.

    Runs that all give the same value differ for sure or not at all.
    """
    if min(len(first), len(second)) < 2:
        return None
    if np.ptp(first) == np.ptp(second) == 0:
        return 1.0 if first[0] == second[0] else 0.0
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def compare(first: Scores, second: Scores, metric: Metric) -> dict[str, Any]:
    """Returns the difference of two models on the same examples, and what it is worth.

    Returns:
        As `paired_difference`, with 'metric', 'p_bootstrap', 'interval' and 'p_mcnemar'.

    Raises:
        ValueError: the two are not about the same examples with the same truth.
    """
    return {
        "metric": metric.name,
        **paired_difference(first, second, metric=metric.name),
        **bootstrap(first, second, metric),
        "p_mcnemar": mcnemar(first, second, metric),
    }


def sentence(
    compared: Mapping[str, Any], metric: Metric, *, first: str, second: str, split: str, family: int
) -> str:
    """Says in plain words what a comparison found.

    Args:
        compared: as of `compare`, with 'p_holm'.
        metric: what was compared.
        first, second: names of the models.
        split: on which they were compared.
        family: number of comparisons that 'p_holm' accounts for.
    """
    value, error, low, high = (
        metric.scale * number
        for number in (compared["value"], compared["standard_error"], *compared["interval"])
    )
    title, digits = metric.title.removesuffix(", %"), metric.digits
    begin = f"On {compared['count']:,} {split} examples, {first} "
    if value == 0:
        return begin + f"is exactly as good as {second} in {title}."
    unit = f"points of {title}" if metric.scale == 100 else f"in {title}"
    verb = "beats" if (value > 0) == metric.higher_is_better else "falls behind"
    tests = [f"p = {compared['p_bootstrap']:.2g} by the paired bootstrap"]
    if compared["p_mcnemar"] is not None:
        tests.append(f"{compared['p_mcnemar']:.2g} by McNemar's test")
    if family > 1:
        tests.append(f"{compared['p_holm']:.2g} after Holm's correction for {family} comparisons")
    real = "likely real" if compared["p_holm"] < LEVEL else "may be chance"
    return (
        f"{begin}{verb} {second} by {abs(value):.{digits}f} ± {error:.{digits}f} {unit} (95 % "
        f"interval {low:.{digits}f} to {high:.{digits}f}; {', '.join(tests)}): {real}."
    )
