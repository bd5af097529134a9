"""What predictions are worth, with standard errors. No model and no files are touched here.

evaluation/report.py, model selection and --mode=evaluate call `summarise`; whether one model is
really better than another on the same examples is asked of `paired_difference`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from evaluation.evaluate import Predictions

NAMES = ("accuracy", "macro_f1", "loss")


def higher_is_better(name: str) -> bool:
    """Whether more of metric `name` is better.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in NAMES:
        raise ValueError(f"There is no metric {name!r}; expected one of {', '.join(NAMES)}.")
    return name != "loss"


def rank(values: Mapping[str, float], metric: str) -> list[float]:
    """Orders evaluations of a model: better is greater, and of equals the one of lower loss.

    Args:
        values: every metric's value.
        metric: the one that decides.
    """
    value = values[metric] if higher_is_better(metric) else -values[metric]
    return [value, -values["loss"]]


def summarise(predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]:
    """Computes every metric of a classifier.

    Macro-F1 is the mean over the classes that stand among the true or the predicted labels, as in
    scikit-learn. A precision, recall or F1 without a single case is 0.

    Args:
        predictions: of at least one example.
        labels: C names in class order.

    Returns:
        JSON-ready: 'accuracy', 'macro_f1' and 'loss' (mean cross-entropy, nats) as {'value',
        'standard_error', 'count'}; 'confusion_matrix', C rows of true by C columns of predicted
        counts; 'per_class', {label: {'precision', 'recall', 'f1', 'support'}}. A standard error of
        one example is NaN.

    Raises:
        ValueError: if there are no examples, or labels and predictions do not fit together.
    """
    count, num_classes = predictions.logits_NxC.shape
    if num_classes != len(labels):
        raise ValueError(
            f"Predictions over {num_classes} classes do not fit the {len(labels)} labels "
            f"{tuple(labels)!r}."
        )
    truth_N, classes_N = predictions.labels_N, predictions.classes_N
    if count == 0 or truth_N.min() < 0 or truth_N.max() >= num_classes:
        found = f"classes {truth_N.min()} to {truth_N.max()}" if count else "no examples"
        raise ValueError(f"Expected true classes from 0 to {num_classes - 1}, found {found}.")
    indices = np.arange(num_classes)
    confusion_CxC = confusion_matrix(truth_N, classes_N, labels=indices)
    per_class_4xC = precision_recall_fscore_support(
        truth_N, classes_N, labels=indices, zero_division=0
    )
    return {
        **{metric: estimate(predictions, metric) for metric in NAMES},
        "confusion_matrix": confusion_CxC.tolist(),
        "per_class": {
            label: {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
            }
            for label, precision, recall, f1, support in zip(labels, *per_class_4xC, strict=True)
        },
    }


def estimate(predictions: Predictions, metric: str) -> dict[str, float]:
    """One metric as {'value', 'standard_error', 'count'}; the error of one example is NaN."""
    value, changes_N = _leave_one_out(predictions, metric)
    return {"value": value, "standard_error": _error(changes_N), "count": len(changes_N)}


def paired_difference(first: Predictions, second: Predictions, *, metric: str) -> dict[str, float]:
    """The metric of `first` minus that of `second` on the same examples.

    The error is that of the difference, example by example: smaller than for two independent
    samples where the models agree. For accuracy, (difference / error)^2 is close to McNemar's test.

    Returns:
        {'value', 'standard_error', 'count', 'z'}; z is value / standard_error, NaN if that is 0.

    Raises:
        ValueError: if the two are not about the same examples with the same true labels.
    """
    if not (
        np.array_equal(first.ids_N, second.ids_N)
        and np.array_equal(first.labels_N, second.labels_N)
    ):
        shared = len(np.intersect1d(first.ids_N, second.ids_N))
        raise ValueError(
            f"Predictions for {len(first.ids_N)} and {len(second.ids_N)} examples cannot be "
            f"paired: {shared} ids are in both, and ids and labels must be the same. Evaluate "
            "both on the same split with the same limit."
        )
    value, changes_N = _leave_one_out(first, metric)
    other_value, other_changes_N = _leave_one_out(second, metric)
    difference, error = value - other_value, _error(changes_N - other_changes_N)
    z = difference / error if error > 0 else float("nan")
    return {"value": difference, "standard_error": error, "count": len(changes_N), "z": z}


def _error(changes_N: np.ndarray) -> float:
    """The jackknife standard error (Efron & Stein 1981); of a mean, the usual s / sqrt(N).

    Args:
        changes_N: by how much the estimate changes when each of the N examples is left out.
    """
    count = len(changes_N)
    return float(np.sqrt((count - 1) * np.var(changes_N))) if count > 1 else float("nan")


def _leave_one_out(predictions: Predictions, metric: str) -> tuple[float, np.ndarray]:
    """A metric, and by how much it changes when each of the N examples is left out."""
    higher_is_better(metric)  # raises if there is no such metric
    truth_N, classes_N = predictions.labels_N, predictions.classes_N
    if metric == "macro_f1":
        num_classes = predictions.logits_NxC.shape[1]
        confusion_CxC = confusion_matrix(truth_N, classes_N, labels=np.arange(num_classes))
        value, changes_CxC = _macro_f1(confusion_CxC)
        return value, changes_CxC[truth_N, classes_N]
    if metric == "accuracy":
        values_N = (truth_N == classes_N).astype(np.float64)
    else:
        values_N = -predictions.log_probabilities_NxC[np.arange(len(truth_N)), truth_N]
    mean = float(values_N.mean())
    return mean, (mean - values_N) / max(len(values_N) - 1, 1)


def _macro_f1(confusion_CxC: np.ndarray) -> tuple[float, np.ndarray]:
    """Macro-F1, and its change when an example of each cell of the confusion matrix is left out.

    The number of classes stays that of all examples, else a class with a single one would make
    the average jump.
    """
    right_C = np.diag(confusion_CxC).astype(np.float64)
    sizes_C = confusion_CxC.sum(axis=0) + confusion_CxC.sum(axis=1)  # F1 = 2 right / size
    f1_C = _ratio(2 * right_C, sizes_C)
    wrong_C = _ratio(2 * right_C, sizes_C - 1) - f1_C  # one with this true or predicted class
    changes_CxC = wrong_C[:, None] + wrong_C[None, :]
    np.fill_diagonal(changes_CxC, _ratio(2 * (right_C - 1), sizes_C - 2) - f1_C)
    num_present = np.count_nonzero(sizes_C)
    return float(f1_C.sum() / num_present), changes_CxC / num_present


def _ratio(numerator_C: np.ndarray, denominator_C: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is not positive."""
    return np.divide(
        numerator_C, denominator_C, out=np.zeros_like(numerator_C), where=denominator_C > 0
    )
