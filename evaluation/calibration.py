"""Calibration of a classifier's probabilities, and how it is measured.

Here: a temperature and biases of the classes, fitted on the validation split, and the facts that
show their effect: calibration error, reliability, accuracy of the most confident examples. Arrays
in, JSON-ready facts out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import rankdata

from evaluation.classification_metrics import squared_errors
from evaluation.metrics import Metric, Scores, estimate, mean, one_each

BINS = 15  # the number of Guo et al. (1706.04599), but here with as many examples in each
DRAWS = 999  # of what chance alone would show
_CHUNK = 2**20  # examples of a block of draws
LEAST, GREATEST = 0.05, 20.0  # temperatures


def fit(logits_NxC: np.ndarray, labels_N: np.ndarray, *, kind: str) -> dict[str, Any]:
    """Fits log_softmax(logits / temperature + bias) to true classes (Guo et al., 1706.04599).

    The likelihood is convex in 1 / temperature and the biases. It has no greatest value, and the
    fit would diverge, where few examples are all predicted correctly or a class is absent: so 1 /
    temperature has a normal prior of deviation 1 about 1, and each bias one about 0. The prior
    weighs as much as a few examples do, and makes the biases add up to 0.

    Args:
        logits_NxC: finite, float.
        labels_N: classes; -1 is masked.
        kind: 'none', 'temperature', or 'bias' for both.

    Returns:
        {'temperature': from LEAST to GREATEST, 'bias': one for each class, zeros if not fitted}; {}
        for 'none' or where all is masked.
    """
    known_N = labels_N >= 0
    if kind == "none" or not known_N.any():
        return {}
    logs_NxC, labels_N = log_softmax(logits_NxC[known_N].astype(np.float64), 1), labels_N[known_N]
    count, size = logs_NxC.shape
    true_NxC = np.eye(size)[labels_N]
    start = np.eye(1, 1 + size * (kind == "bias"))[0]  # 1 / temperature is 1, the biases are 0

    def objective(scale_and_bias: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log of likelihood and prior for each example, and its gradient."""
        away = scale_and_bias - start
        bias = scale_and_bias[1:] if kind == "bias" else 0.0
        scaled_NxC = log_softmax(scale_and_bias[0] * logs_NxC + bias, axis=1)
        value = -scaled_NxC[np.arange(count), labels_N].sum() + away @ away / 2
        errors_NxC = np.exp(scaled_NxC) - true_NxC
        slopes = [(errors_NxC * logs_NxC).sum(), *errors_NxC.sum(axis=0)]
        return value / count, (slopes[: len(start)] + away) / count

    bounds = [(1 / GREATEST, 1 / LEAST), *[(None, None)] * (len(start) - 1)]
    how = {"method": "L-BFGS-B", "bounds": bounds, "options": {"ftol": 1e-13, "gtol": 1e-8}}
    scale, *bias = minimize(objective, start, jac=True, **how).x.tolist()
    return {"temperature": 1 / scale, "bias": bias or [0.0] * size}


def calibrate(logits_NxC: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """Returns normalised log probabilities, float64; `fitted` is from `fit`.

    A temperature changes the order of the classes of no example; biases may.
    """
    logits_NxC = logits_NxC.astype(np.float64)
    if fitted:
        logits_NxC = logits_NxC / fitted["temperature"] + np.array(fitted["bias"])
    return log_softmax(logits_NxC, axis=1)


def card(
    labels_N: np.ndarray,
    classes_N: np.ndarray,
    log_probabilities_NxC: np.ndarray,
    groups_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns the calibration of probabilities; JSON-ready.

    Args:
        labels_N: true classes.
        classes_N: predicted ones, whose probability is the confidence.
        log_probabilities_NxC: normalised.
        groups_N: see Scores.

    Returns:
        'count', 'ece', 'ece_by_chance' and 'ece_p' from `by_chance`, 'brier', 'brier_error' (its
        standard error), 'bins' from `reliability` and 'coverage' from `selective_accuracy`.
    """
    probabilities_NxC = np.exp(log_probabilities_NxC)
    confidence_N = probabilities_NxC[np.arange(len(labels_N)), classes_N]
    right_N = classes_N == labels_N
    brier_N = squared_errors(labels_N, probabilities_NxC)
    bins = reliability(confidence_N, right_N)
    metric, ids_N = Metric("brier", "Brier score", mean), np.arange(len(brier_N))
    scores = Scores((metric,), ids_N, {"brier": one_each(brier_N)}, groups_N=groups_N)
    ece = calibration_error(bins)
    ece_by_chance, ece_p = by_chance(confidence_N, ece)
    return {
        "count": len(labels_N),
        "ece": ece,
        "ece_by_chance": ece_by_chance,
        "ece_p": ece_p,
        "brier": float(brier_N.mean()),
        "brier_error": estimate(scores, "brier")["standard_error"],
        "bins": bins,
        "coverage": selective_accuracy(confidence_N, right_N),
    }


def reliability(
    confidence_N: np.ndarray, right_N: np.ndarray, *, bins: int = BINS
) -> list[dict[str, float]]:
    """Returns confidence and accuracy of examples of about equal confidence.

    The bins hold as many examples each, as far as those of equal confidence, which stay together,
    allow; so of few confidences there are fewer bins.

    Args:
        confidence_N: from 0 to 1.
        right_N: bool.
        bins: at most.

    Returns:
        For each bin, ascending, 'low' and 'high' (the least and greatest confidence in it),
        'confidence' (mean), 'accuracy', 'standard_error' (of the accuracy, were the mean confidence
        the true probability) and 'count'.
    """
    numbers_N, rows = _bin_numbers(confidence_N, bins), []
    for number in range(numbers_N.max() + 1):
        inside = confidence_N[numbers_N == number]
        mean = float(inside.mean())
        rows.append(
            {
                "low": float(inside.min()),
                "high": float(inside.max()),
                "confidence": mean,
                "accuracy": float(right_N[numbers_N == number].mean()),
                "standard_error": float(np.sqrt(max(mean * (1 - mean), 0) / len(inside))),
                "count": len(inside),
            }
        )
    return rows


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Returns the expected calibration error (ECE; Naeini et al. 2015, AAAI), from 0 to 1: how far
    accuracy and confidence of a bin are apart on average over the examples."""
    gaps = [abs(row["accuracy"] - row["confidence"]) for row in bins]
    return float(np.average(gaps, weights=[row["count"] for row in bins]))


def by_chance(
    confidence_N: np.ndarray, error: float, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Returns the ECE that calibrated predictions show on average, and the p value of `error`.

    Each draw makes an example right with the probability that its confidence states (Broecker and
    Smith 2007, doi:10.1175/WAF993.1). p is how often the ECE is at least `error`: a test of whether
    all is calibrated, which holds its level whatever the number of examples, as far as these are
    independent.

    Args:
        confidence_N: from 0 to 1.
        error: the measured ECE.
        draws: how many.
        seed: of the draws.
    """
    count, numbers_N = len(confidence_N), _bin_numbers(confidence_N, BINS)
    size, block = int(numbers_N.max()) + 1, max(1, _CHUNK // count)
    rng, drawn = np.random.default_rng(seed), []
    for start in range(0, draws, block):
        gaps_DxN = rng.random((min(block, draws - start), count)) < confidence_N
        gaps_DxN = gaps_DxN - confidence_N
        cells_DxN = numbers_N + size * np.arange(len(gaps_DxN))[:, None]
        sums = np.bincount(cells_DxN.ravel(), gaps_DxN.ravel(), size * len(gaps_DxN))
        drawn.append(np.abs(sums.reshape(-1, size)).sum(axis=1) / count)
    errors_D = np.concatenate(drawn)
    extreme = np.sum(errors_D >= error - 1e-12)
    return float(errors_D.mean()), float((1 + extreme) / (1 + draws))


def _bin_numbers(confidence_N: np.ndarray, bins: int) -> np.ndarray:
    """Returns which bin each example is in, from 0, none of them empty."""
    numbers_N = (rankdata(confidence_N, method="min").astype(int) - 1) * bins // len(confidence_N)
    return np.unique(numbers_N, return_inverse=True)[1]


def selective_accuracy(
    confidence_N: np.ndarray, right_N: np.ndarray, *, points: int = 20
) -> list[dict[str, float]]:
    """Returns how accurate the most confident examples are, if a person takes the others.

    Examples of equal confidence stay together, so that a threshold reaches each point.

    Args:
        confidence_N: from 0 to 1.
        right_N: bool.
        points: at most so many, at about even shares.

    Returns:
        'coverage' (share of the examples taken, ascending, up to 1), 'accuracy' of these, and the
        least 'confidence' among them.
    """
    order = np.argsort(-confidence_N, kind="stable")
    sorted_N, count = confidence_N[order], len(order)
    wanted = np.ceil(count * np.arange(1, points + 1) / points).astype(int)
    # The last of equals: the place before the first that is less confident.
    ends = np.unique(np.searchsorted(-sorted_N, -sorted_N[wanted - 1], side="right"))
    columns = (ends / count, np.cumsum(right_N[order])[ends - 1] / ends, sorted_N[ends - 1])
    names = ("coverage", "accuracy", "confidence")
    return [dict(zip(names, row, strict=True)) for row in np.stack(columns, axis=1).tolist()]
