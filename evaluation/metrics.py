"""Metrics of predictions, with standard errors. No model, task or file is touched here.

Every metric is a function of sums over examples: counts of right answers, of pairs of classes, of
entities. A task keeps these statistics of each example (`Scores`), and value, standard error and
difference of two models follow for all of them in the same way. A metric may be about some of the
examples only, such as those for which a text was written: these alone count.

Examples of one group (a premise, document or author; config.data.group_column) are not independent:
errors leave out whole groups.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Metric(NamedTuple):
    """A number about a set of examples.

    Attributes:
        name: in configs, files and logs.
        title: in tables, with its unit.
        value: sums of the statistics, float64 [..., K], and those of all examples [K] -> [...].
        higher_is_better: whether more is.
        scale: factor from the value to what tables show: 100 for per cent.
        digits: behind the point, in tables.
        shown: whether tables for people hold it, or files alone.
        additive: whether an example's statistics stay when others are left out. Ranks do not.
    """

    name: str
    title: str
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    higher_is_better: bool = True
    scale: float = 1.0
    digits: int = 3
    shown: bool = True
    additive: bool = True


@dataclasses.dataclass(frozen=True)
class Scores:
    """The statistics of a model's predictions of N examples.

    Attributes:
        metrics: at least one; the first chooses models by default, the last breaks ties.
        ids_N: int64, ascending.
        statistics: metric name -> float64 [N, K]; `Metric.value` of their sum is the metric. A row
            of NaN alone is of an example that the metric is not about (`about`).
        detail: more JSON-ready facts about all of them, such as a confusion matrix.
        truth: a digest of the true answers, by which two models' scores are known to be comparable.
        groups_N: int64, which group each example is in; None where all are independent.
    """

    metrics: tuple[Metric, ...]
    ids_N: np.ndarray
    statistics: Mapping[str, np.ndarray]
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    truth: Any = None
    groups_N: np.ndarray | None = None

    def without(self, ids: np.ndarray) -> "Scores":
        """Returns the scores of all examples but those with the given ids; without details, and
        without metrics that are not additive: their statistics would count what was left out."""
        keep_N = ~np.isin(self.ids_N, ids)
        metrics = tuple(metric for metric in self.metrics if metric.additive)
        statistics = {m.name: self.statistics[m.name][keep_N] for m in metrics}
        groups_N = None if self.groups_N is None else self.groups_N[keep_N]
        return Scores(metrics, self.ids_N[keep_N], statistics, groups_N=groups_N)

    def metric(self, name: str) -> Metric:
        """Returns a metric by its name; 'auto' is the first.

        Raises:
            ValueError: if there is no such metric.
        """
        return find(self.metrics, name)


def find(metrics: Sequence[Metric], name: str) -> Metric:
    """Returns a metric by its name; 'auto' is the first.

    Raises:
        ValueError: if there is no such metric.
    """
    for metric in metrics:
        if name in (metric.name, "auto"):
            return metric
    names = ", ".join(metric.name for metric in metrics)
    raise ValueError(
        f"config.eval.metric={name!r}: this task has no such metric; expected one of {names}, or "
        "'auto' for the first"
    )


def mean(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of statistics (value * weight, weight): the weighted mean; NaN without any."""
    del whole
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


def f1(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of statistics (predicted and right, predicted, true); 0 without any."""
    del whole
    return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def precision(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of the statistics of `f1`: share of what was predicted that is right."""
    del whole
    return ratio(sums[..., 0], sums[..., 1])


def recall(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of the statistics of `f1`: share of what is true that was predicted."""
    del whole
    return ratio(sums[..., 0], sums[..., 2])


def macro_f1(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of statistics [3C]: predicted and right, predicted, true of each class.

    It is the mean over the classes that occur, as in scikit-learn. Their number stays that of all
    examples when one is left out, else a class with a single one would make the average jump.
    """
    right, predicted, true = np.split(sums, 3, axis=-1)
    occurs = (np.split(whole, 3)[1] + np.split(whole, 3)[2]) > 0
    return ratio(2 * right, predicted + true).sum(-1) / max(int(occurs.sum()), 1)


def one_each(values_N: np.ndarray) -> np.ndarray:
    """Returns the statistics [N, 2] of `mean`, all examples weighing the same."""
    return np.stack([values_N, np.ones(len(values_N))], axis=1).astype(np.float64)


def about(rows_N: np.ndarray, values_NxK: np.ndarray) -> np.ndarray:
    """Returns the statistics [N, K] of a metric that is about some of the examples only.

    Zeros would not do: they count as examples without a prediction.

    Args:
        rows_N: bool, which examples these are.
        values_NxK: the statistics; those of the others are not read.
    """
    return np.where(rows_N[:, None], values_NxK, np.nan)


def counted(values_NxK: np.ndarray) -> np.ndarray:
    """Returns which examples, bool [N], the metric of these statistics is about."""
    return ~np.isnan(values_NxK).all(axis=1)


def class_counts(truth_N: np.ndarray, classes_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the statistics [N, 3C] of `macro_f1` from true and predicted classes."""
    eye = np.eye(num_classes)
    true_NxC, found_NxC = eye[truth_N], eye[classes_N]
    return np.concatenate([true_NxC * found_NxC, found_NxC, true_NxC], axis=1)


def estimate(scores: Scores, name: str) -> dict[str, float]:
    """Returns a metric as {'value', 'standard_error', 'count'}, of the examples that it is about;
    the error of one example is NaN, and so is the value of none.

    Where groups hold several examples, 'groups' is their number: the error leaves out one group at
    a time, and that of a single group is NaN.
    """
    metric = scores.metric(name)
    values_NxK = scores.statistics[metric.name]
    about_N = counted(values_NxK)
    values_GxK = _by_group(values_NxK[about_N], scores.groups_N, about_N)
    value, changes_G = _leave_one_out(metric, values_GxK)
    return {"value": value, "standard_error": _error(changes_G), **_counts(about_N, changes_G)}


def summarise(scores: Scores) -> dict[str, Any]:
    """Returns the `estimate` of every metric, by name, and the details.

    Raises:
        ValueError: if there are no examples.
    """
    if not len(scores.ids_N):
        raise ValueError("There are no examples to evaluate: check that the split is not empty.")
    return {m.name: estimate(scores, m.name) for m in scores.metrics} | dict(scores.detail)


def rank(values: Mapping[str, float], metrics: Sequence[Metric], name: str) -> list[float]:
    """Returns what orders evaluations: better is greater; of equals the last metric decides.

    Args:
        values: every metric's value.
        metrics: of the task.
        name: the metric that decides, or 'auto'.
    """
    both = find(metrics, name), metrics[-1]
    return [values[m.name] if m.higher_is_better else -values[m.name] for m in both]


def paired_difference(first: Scores, second: Scores, *, metric: str) -> dict[str, float]:
    """Returns the metric of `first` minus that of `second` on the same examples.

    The error is that of the difference, example by example: smaller than for two independent
    samples where the models agree. For accuracy, (difference / error)^2 is close to McNemar's test.

    Returns:
        {'value', 'standard_error', 'count'}, with 'groups' as from `estimate`.

    Raises:
        ValueError: if the two are not about the same examples with the same truth.
    """
    value, changes_G = paired_changes(first, second, metric=metric)
    counts = _counts(_about_both(first, second, metric), changes_G)
    return {"value": value, "standard_error": _error(changes_G), **counts}


def paired_changes(first: Scores, second: Scores, *, metric: str) -> tuple[float, np.ndarray]:
    """Returns the difference of `paired_difference`, and by how much it changes when each of the
    examples, or of the groups, is left out."""
    sides = zip((first, second), paired_statistics(first, second, metric=metric), strict=True)
    one, other = (_leave_one_out(side.metric(metric), values) for side, values in sides)
    return one[0] - other[0], one[1] - other[1]


def paired_statistics(
    first: Scores, second: Scores, *, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the statistics [G, K] of either, of the examples that the metric is about in both;
    those of a group are summed.

    Raises:
        ValueError: if the two are not about the same examples with the same truth.
    """
    about_N = _about_both(first, second, metric)
    groups_N = second.groups_N if first.groups_N is None else first.groups_N  # older files lack it
    one, other = (
        _by_group(side.statistics[side.metric(metric).name][about_N], groups_N, about_N)
        for side in (first, second)
    )
    return one, other


def _about_both(first: Scores, second: Scores, metric: str) -> np.ndarray:
    check_paired(first, second)
    one_N, other_N = (counted(s.statistics[s.metric(metric).name]) for s in (first, second))
    return one_N & other_N


def _by_group(
    values_MxK: np.ndarray, groups_N: np.ndarray | None, about_N: np.ndarray
) -> np.ndarray:
    """Returns the summed statistics [G, K] of the groups of the M examples in `about_N`."""
    if groups_N is None or not len(values_MxK):
        return values_MxK
    _, numbers_M = np.unique(groups_N[about_N], return_inverse=True)
    sums_GxK = np.zeros((numbers_M.max() + 1, values_MxK.shape[1]))
    np.add.at(sums_GxK, numbers_M, values_MxK)
    return sums_GxK


def _counts(about_N: np.ndarray, changes_G: np.ndarray) -> dict[str, int]:
    count, groups = int(about_N.sum()), len(changes_G)
    return {"count": count} | ({"groups": groups} if groups < count else {})


def check_paired(first: Scores, second: Scores) -> None:
    """Raises ValueError if two scores are not about the same examples with the same truth."""
    if not np.array_equal(first.ids_N, second.ids_N) or first.truth != second.truth:
        shared = len(np.intersect1d(first.ids_N, second.ids_N))
        raise ValueError(
            f"Predictions for {len(first.ids_N)} and {len(second.ids_N)} examples cannot be "
            f"paired: {shared} ids are in both, and ids and true answers must be the same. "
            "Evaluate both on the same split with the same limit."
        )


def _error(changes_G: np.ndarray) -> float:
    """Returns the jackknife standard error (Efron & Stein 1981); of a mean, the usual s / sqrt(N).

    Args:
        changes_G: by how much the estimate changes when each of the examples, or of the groups, is
            left out.
    """
    count = len(changes_G)
    return float(np.sqrt((count - 1) * np.var(changes_G))) if count > 1 else float("nan")


def _leave_one_out(metric: Metric, values_NxK: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns a metric, and by how much it changes when each of the N examples is left out."""
    if not len(values_NxK):
        return float("nan"), np.zeros(0)
    sums_K = values_NxK.sum(axis=0)
    value = float(metric.value(sums_K, sums_K))
    if len(values_NxK) < 2:
        return value, np.zeros(len(values_NxK))
    return value, metric.value(sums_K - values_NxK, sums_K) - value


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides element-wise; something over 0 is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)
