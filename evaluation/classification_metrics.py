"""Metrics of predicted classes and their probabilities, beside accuracy, macro-F1 and loss.

Here: the values of these metrics as functions of sums, see evaluation/metrics.py, the statistics of
each example, and the numbers of each class.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from evaluation import metrics
from evaluation.metrics import Metric, Scores, mean, ratio


def balanced_accuracy(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of the statistics of `macro_f1`: the mean recall of the classes that occur.

    As with `macro_f1`, their number stays that of all examples when one is left out; a class that
    loses its only one counts as 0, so that the error shows how little is known of it.
    """
    right, _, true = np.split(np.asarray(sums, float), 3, axis=-1)
    occurs = np.split(whole, 3)[2] > 0
    return ratio(right, true).sum(-1) / max(int(occurs.sum()), 1)


def matthews_correlation(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of the statistics of `macro_f1`: Matthews correlation; 0 where one side is of a
    single class. Of more than two classes, R_K of Gorodkin (2004)."""
    del whole
    right, predicted, true = np.split(np.asarray(sums, float), 3, axis=-1)
    count = true.sum(-1)
    covariance = right.sum(-1) * count - (predicted * true).sum(-1)
    spread = (count**2 - (predicted**2).sum(-1)) * (count**2 - (true**2).sum(-1))
    return ratio(covariance, np.sqrt(spread))


def area_under_roc(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of the statistics of `placements`: the mean area over the classes that some
    examples carry and others don't; NaN without any such class.

    The area is the mean placement of the positive examples, and of the negative ones. Without one
    of the former it is the mean placement of its fellows, which it does not enter into; so the
    value with one example left out is exact, and the jackknife's error close to that of DeLong et
    al. (1988, doi:10.2307/2531595). A class that loses its only one counts as 0.
    """
    placed, positive, below, negative = np.split(np.asarray(sums, float), 4, axis=-1)
    all_placed, all_positive, _, all_negative = np.split(np.asarray(whole, float), 4)
    areas = ratio(placed, positive) + ratio(below, negative) - ratio(all_placed, all_positive)
    known = (all_positive > 0) & (all_negative > 0)
    return np.where(known.any(), areas[..., known].sum(-1) / max(known.sum(), 1), np.nan)


def placements(true_NxC: np.ndarray, scores_NxC: np.ndarray) -> np.ndarray:
    """Returns the statistics [N, 4C] of `area_under_roc`; ties count half.

    The placement of an example that carries a class is the share of those without it that have a
    smaller score; of one without, the share of those with it that have a greater one. All others
    enter into it: what is true of a subset must be computed anew.

    Args:
        true_NxC: bool, which examples carry which class.
        scores_NxC: the greater, the likelier; only their order within a class counts.
    """
    placed_NxC = np.zeros(true_NxC.shape)
    for c, (true_N, scores_N) in enumerate(zip(true_NxC.T, scores_NxC.T, strict=True)):
        ranks_N, positive = rankdata(scores_N), int(true_N.sum())
        if 0 < positive < len(true_N):
            below_P = ranks_N[true_N] - rankdata(scores_N[true_N])
            below_Q = ranks_N[~true_N] - rankdata(scores_N[~true_N])
            placed_NxC[true_N, c] = below_P / (len(true_N) - positive)
            placed_NxC[~true_N, c] = 1 - below_Q / positive
    parts = (placed_NxC * true_NxC, true_NxC, placed_NxC * ~true_NxC, ~true_NxC)
    return np.concatenate(parts, axis=1).astype(np.float64)


def squared_errors(labels_N: np.ndarray, probabilities_NxC: np.ndarray) -> np.ndarray:
    """Returns each example's Brier score (1950), [N]: the summed squared error of the classes'
    probabilities, from 0 to 2; of two classes half of it, the squared error of either."""
    size = probabilities_NxC.shape[1]
    errors_N = np.square(probabilities_NxC - np.eye(size)[labels_N]).sum(axis=1)
    return errors_N / 2 if size == 2 else errors_N


AUROC = Metric("auroc", "AUROC", area_under_roc, shown=False, additive=False)
_PERCENT = {"scale": 100, "digits": 1}

METRICS = (
    Metric("balanced_accuracy", "balanced accuracy, %", balanced_accuracy, shown=False, **_PERCENT),
    Metric("mcc", "Matthews correlation", matthews_correlation, shown=False),
    AUROC,
    Metric("brier", "Brier score", mean, higher_is_better=False, shown=False),
)


def statistics(
    labels_N: np.ndarray, classes_N: np.ndarray, log_probabilities_NxC: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the statistics of METRICS and of macro-F1.

    The AUROC of two classes is that of the second, of more the mean of each against the rest.

    Args:
        labels_N: true classes.
        classes_N: predicted ones.
        log_probabilities_NxC: normalised.
    """
    size = log_probabilities_NxC.shape[1]
    counts_Nx3C = metrics.class_counts(labels_N, classes_N, size)
    apart = slice(1 if size == 2 else 0, None)
    true_NxC = labels_N[:, None] == np.arange(size)
    return {
        "macro_f1": counts_Nx3C,
        "balanced_accuracy": counts_Nx3C,
        "mcc": counts_Nx3C,
        "auroc": placements(true_NxC[:, apart], log_probabilities_NxC[:, apart]),
        "brier": metrics.one_each(squared_errors(labels_N, np.exp(log_probabilities_NxC))),
    }


def per_class(
    counts_Nx3C: np.ndarray, labels: Sequence[str], groups_N: np.ndarray | None = None
) -> dict[str, dict[str, float | None]]:
    """Returns the numbers of each class; JSON-ready.

    Args:
        counts_Nx3C: statistics of `macro_f1`, of a task with one label, several, or spans.
        labels: names of the classes.
        groups_N: see Scores.

    Returns:
        label -> 'precision', 'recall', 'f1'; 'precision_error', 'recall_error', 'f1_error', the
        jackknife standard errors, None where there is nothing to divide by or a single example; and
        'support', how often the class is true.
    """
    count = len(counts_Nx3C)
    counts_NxCx3 = np.moveaxis(counts_Nx3C.reshape(count, 3, len(labels)), 1, -1)
    rows = {}
    for c, label in enumerate(labels):
        counts_Nx3 = counts_NxCx3[:, c]
        _, predicted, true = counts_Nx3.sum(axis=0)
        row: dict[str, float | None] = {}
        for name, whole in (("precision", predicted), ("recall", true), ("f1", predicted + true)):
            metric = Metric(name, name, getattr(metrics, name))
            scores = Scores((metric,), np.arange(count), {name: counts_Nx3}, groups_N=groups_N)
            row[name], error, *_ = metrics.estimate(scores, name).values()
            row[f"{name}_error"] = error if whole and np.isfinite(error) else None
        rows[label] = row | {"support": int(true)}
    return rows
