"""Linear probes: heads fitted on vectors of a frozen model by convex regression (2202.10054).

Vectors of a pretrained model share a large common component, beside which a random head hardly
moves. So inputs are standardised; mean and scale are then folded into kernel and bias. The strength
of the penalty is chosen on held-out examples, every fifth, and the probe is fitted again on all.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

_INVERSE_PENALTIES = tuple(10.0 ** np.arange(-5, 1))  # of standardised inputs, as scikit-learn's C
_HELD_OUT = 5
_FLAT = 1e-6  # of the largest deviation: below, an input counts as constant


class Probe(NamedTuple):
    """A fitted probe.

    Attributes:
        kernel_DxC, bias_C: for inputs as they are, float32.
        inverse_penalty: the chosen one.
        loss, floor: mean loss on held-out examples, and that of predicting frequencies alone.
    """

    kernel_DxC: np.ndarray
    bias_C: np.ndarray
    inverse_penalty: float
    loss: float
    floor: float

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The parameters of a linear head, flat."""
        return {"head/kernel": self.kernel_DxC, "head/bias": self.bias_C}

    def prose(self) -> str:
        """Describes the fit, for the start-up log."""
        if np.isnan(self.loss):
            return f"C={self.inverse_penalty:g}, not chosen: too few examples to hold some out"
        return (
            f"C={self.inverse_penalty:g}, loss {self.loss:.3f} on held-out training examples, "
            f"{self.floor:.3f} without the texts"
        )


def classes(
    inputs_NxD: np.ndarray,
    classes_N: np.ndarray,
    *,
    weights_C: Sequence[float] | np.ndarray,
    inverse_penalties: Sequence[float] = _INVERSE_PENALTIES,
) -> Probe:
    """Fits softmax regression.

    Args:
        inputs_NxD: vectors.
        classes_N: in [0, C); a class without an example is left with a low bias.
        weights_C: of the classes, in the loss.
        inverse_penalties: to choose from.

    Raises:
        ValueError: inputs that are constant, examples of one class only, or fewer than classes.
    """
    weights_C, count = np.asarray(weights_C, float), len(weights_C)
    if len(classes_N) < count:
        raise ValueError(f"{len(classes_N)} examples are fewer than the {count} classes")
    if len(np.unique(classes_N)) < 2:
        raise ValueError(f"all {len(classes_N)} examples are of one class")
    weights_N, logistic = weights_C[classes_N], _logistic()

    def fit(inverse_penalty: float, x: np.ndarray, rows: np.ndarray) -> tuple:
        model = logistic(inverse_penalty, len(rows))
        model.fit(x[rows], classes_N[rows], sample_weight=weights_N[rows])
        kernel, bias = model.coef_.T, model.intercept_
        if kernel.shape[1] == 1:  # of two classes, the difference of their logits
            kernel, bias = kernel * [[-0.5, 0.5]], bias * [-0.5, 0.5]
        full, lowest = np.zeros((x.shape[1], count)), bias.min() - np.log(len(rows) + 1)
        full[:, model.classes_] = kernel
        return full, _at(model.classes_, bias, np.full(count, lowest))

    def losses(logits_NxC: np.ndarray, rows: np.ndarray) -> np.ndarray:
        logs_NxC = logits_NxC - np.logaddexp.reduce(logits_NxC, axis=1, keepdims=True)
        return -logs_NxC[np.arange(len(rows)), classes_N[rows]] * weights_N[rows]

    shares_C = np.bincount(classes_N, weights_N, minlength=count) + 1e-9
    floor = losses(np.tile(np.log(shares_C), (len(classes_N), 1)), np.arange(len(classes_N)))
    return _probe(inputs_NxD, fit, losses, floor, inverse_penalties)


def several(inputs_NxD: np.ndarray, true_NxC: np.ndarray) -> Probe:
    """Fits a logistic regression for each label; one penalty for all.

    Args:
        inputs_NxD: vectors.
        true_NxC: bool, which labels the examples carry. One that all or none of them carry is left
            with the logit of its frequency.

    Raises:
        ValueError: inputs that are constant, or no label that some examples carry and others don't.
    """
    if not (true_NxC.any(axis=0) & ~true_NxC.all(axis=0)).any():
        raise ValueError("each label is carried by all examples or by none")
    logistic = _logistic()

    def fit(inverse_penalty: float, x: np.ndarray, rows: np.ndarray) -> tuple:
        true_NxC_, count = true_NxC[rows], len(rows)
        shares_C = (true_NxC_.sum(axis=0) + 0.5) / (count + 1)
        kernel, bias = np.zeros((x.shape[1], len(shares_C))), np.log(shares_C / (1 - shares_C))
        for c in np.flatnonzero(true_NxC_.any(axis=0) & ~true_NxC_.all(axis=0)):
            model = logistic(inverse_penalty, (count, c))
            model.fit(x[rows], true_NxC_[:, c])
            kernel[:, c], bias[c] = model.coef_[0], model.intercept_[0]
        return kernel, bias

    def losses(logits_NxC: np.ndarray, rows: np.ndarray) -> np.ndarray:
        signs_NxC = np.where(true_NxC[rows], -1, 1)
        return np.logaddexp(0, signs_NxC * logits_NxC).mean(axis=1)

    shares_C = np.clip(true_NxC.mean(axis=0), 1e-9, 1 - 1e-9)
    logits_NxC = np.tile(np.log(shares_C / (1 - shares_C)), (len(true_NxC), 1))
    return _probe(inputs_NxD, fit, losses, losses(logits_NxC, np.arange(len(true_NxC))))


def numbers(inputs_NxD: np.ndarray, numbers_N: np.ndarray) -> Probe:
    """Fits ridge regression, C = 1; the loss is the squared error.

    Raises:
        ValueError: inputs or numbers that are constant.
    """
    if np.ptp(numbers_N) == 0:
        raise ValueError(f"all {len(numbers_N)} numbers are {numbers_N[0]:g}")

    def fit(inverse_penalty: float, x: np.ndarray, rows: np.ndarray) -> tuple:
        model = Ridge(alpha=1 / inverse_penalty).fit(x[rows], numbers_N[rows])
        return model.coef_[:, None], np.atleast_1d(model.intercept_)

    def losses(logits_NxC: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.square(logits_NxC[:, 0] - numbers_N[rows])

    return _probe(inputs_NxD, fit, losses, np.square(numbers_N - numbers_N.mean()))


def ordered(inputs_NxD: np.ndarray, classes_N: np.ndarray, *, count: int) -> Probe:
    """Fits proportional odds: one score, and the logit of each "above class c".

    It is one logistic regression on C - 1 copies of each example, each with a column of its own
    for the threshold.

    Args:
        inputs_NxD: vectors.
        classes_N: in [0, C), in order.
        count: C.

    Returns:
        A probe whose columns share one kernel; `bias_C` [C - 1] descends.

    Raises:
        ValueError: See `classes`.
    """
    if len(classes_N) < count:
        raise ValueError(f"{len(classes_N)} examples are fewer than the {count} classes")
    if len(np.unique(classes_N)) < 2:
        raise ValueError(f"all {len(classes_N)} examples are of one class")
    above_NxC = classes_N[:, None] > np.arange(count - 1)
    shares_C = (above_NxC.sum(axis=0) + 0.5) / (len(classes_N) + 1)
    free = 100.0  # the size of the thresholds' columns, so that their penalty is negligible

    def fit(inverse_penalty: float, x: np.ndarray, rows: np.ndarray) -> tuple:
        copies = np.repeat(np.eye(count - 1) * free, len(rows), axis=0)
        columns = np.hstack([np.tile(x[rows], (count - 1, 1)), copies])
        # lbfgs would need thousands of steps for columns of such different sizes.
        model = LogisticRegression(C=inverse_penalty, fit_intercept=False, solver="newton-cholesky")
        model.fit(columns, above_NxC[rows].T.ravel())
        kernel, bias = model.coef_[0, : x.shape[1]], model.coef_[0, x.shape[1] :] * free
        # A class without examples has no room between its thresholds; a little is left to it.
        bias = np.minimum.accumulate(bias) - 1e-2 * np.arange(count - 1)
        return np.tile(kernel[:, None], count - 1), bias

    def losses(logits_NxC: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, np.where(above_NxC[rows], -1, 1) * logits_NxC).mean(axis=1)

    floor = np.tile(np.log(shares_C / (1 - shares_C)), (len(classes_N), 1))
    return _probe(inputs_NxD, fit, losses, losses(floor, np.arange(len(classes_N))))


def _probe(
    inputs_NxD: np.ndarray,
    fit: Callable[[float, np.ndarray, np.ndarray], tuple],
    losses: Callable[[np.ndarray, np.ndarray], np.ndarray],
    floor_N: np.ndarray,
    inverse_penalties: Sequence[float] = _INVERSE_PENALTIES,
) -> Probe:
    """Chooses the penalty by the loss on held-out rows, and fits on all."""
    inputs_NxD = np.asarray(inputs_NxD, np.float64)
    mean_D, deviation_D = inputs_NxD.mean(axis=0), inputs_NxD.std(axis=0)
    if not deviation_D.max() > 0:
        raise ValueError(f"the model's {len(inputs_NxD)} vectors are all the same")
    varies_D = deviation_D > _FLAT * deviation_D.max()
    scale_D = np.where(varies_D, 1 / np.where(varies_D, deviation_D, 1), 0)
    x = ((inputs_NxD - mean_D) * scale_D).astype(np.float32)  # twice as fast as float64
    is_held = np.arange(len(x)) % _HELD_OUT == _HELD_OUT - 1
    used, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    trials: list[tuple[float, Any]] = []
    for inverse_penalty in inverse_penalties if len(held) else ():
        try:
            kernel, bias = fit(inverse_penalty, x, used)
        except ValueError:  # of few examples, one class may be left without the held-out ones
            break
        trials.append((float(losses(x[held] @ kernel + bias, held).mean()), inverse_penalty))
        if trials[-1] > min(trials):  # weaker penalties fit worse still, and take the longest
            break
    loss, inverse_penalty = min(
        trials, default=(float("nan"), inverse_penalties[len(inverse_penalties) // 2])
    )
    kernel_DxC, bias_C = fit(inverse_penalty, x, np.arange(len(x)))
    kernel_DxC = kernel_DxC * scale_D[:, None]
    bias_C = bias_C - mean_D @ kernel_DxC
    floor = float(floor_N[held].mean()) if len(held) else float("nan")
    return Probe(
        kernel_DxC.astype(np.float32), bias_C.astype(np.float32), inverse_penalty, loss, floor
    )


def _logistic() -> Callable[[float, Any], LogisticRegression]:
    """Returns a function of penalty and problem that makes models.

    Those of one problem start where the last one ended: ten times as fast as anew, together with a
    tolerance that changes the held-out loss by less than 0.001.
    """
    models: dict[Any, LogisticRegression] = {}

    def make(inverse_penalty: float, problem: Any) -> LogisticRegression:
        new = LogisticRegression(max_iter=300, tol=1e-3, warm_start=True)
        return models.setdefault(problem, new).set_params(C=inverse_penalty)

    return make


def _at(places: np.ndarray, values: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    otherwise[places] = values
    return otherwise
