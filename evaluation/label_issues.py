"""Which labels are likely wrong: confident learning and training dynamics, in numpy alone.

Confident learning (1911.00068) reads probabilities of examples that the model was not trained on;
training dynamics (2009.10795, forgetting 1812.05159) read those of examples that it was.
"""

import dataclasses

import numpy as np

_ROUNDING = 1e-9  # the mean of equal probabilities may be above them by a rounding
_CHUNK = 1024  # queries whose similarities to all keys are held at once


@dataclasses.dataclass(frozen=True)
class LabelIssues:
    """The result of confident learning for N labels.

    Attributes:
        flagged_N: bool, whether the label is likely wrong.
        suggested_N: int, the class that it more likely is; of others the most probable one.
        self_confidence_N: probability of the label.
        margin_N: that minus the probability of the most probable other class, from -1 to 1: the
            lower, the likelier the label is wrong.
        joint_CxC: int, confidently counted examples by label and likely true class.
        expected: estimated number of wrong labels, which `flagged_N` need not add up to.
    """

    flagged_N: np.ndarray
    suggested_N: np.ndarray
    self_confidence_N: np.ndarray
    margin_N: np.ndarray
    joint_CxC: np.ndarray
    expected: float

    def order(self) -> np.ndarray:
        """Returns the indices of all examples, those whose label is likeliest wrong first."""
        return np.lexsort((self.margin_N, ~self.flagged_N))


def find_label_issues(labels_N: np.ndarray, probabilities_NxC: np.ndarray) -> LabelIssues:
    """Finds labels that are likely wrong by confident learning.

    Flagged are the examples off the diagonal of the confident joint, unless the label is the most
    probable class all the same, or the only one of its class, which out of fold no model has seen.

    Args:
        labels_N: int, classes as given.
        probabilities_NxC: of each class, by a model that was not trained on the example.

    Raises:
        ValueError: shapes that don't fit, labels out of range, or no probabilities.
    """
    _check(labels_N, probabilities_NxC)
    confident_N = confident_classes(probabilities_NxC, thresholds(labels_N, probabilities_NxC))
    rows_N, size = np.arange(len(labels_N)), probabilities_NxC.shape[1]
    joint_CxC = np.zeros((size, size), np.int64)
    sure_N = confident_N >= 0
    np.add.at(joint_CxC, (labels_N[sure_N], confident_N[sure_N]), 1)
    likeliest_N = probabilities_NxC.argmax(axis=1)
    counts_C = np.bincount(labels_N, minlength=size)
    flagged_N = sure_N & (confident_N != labels_N) & (likeliest_N != labels_N)
    flagged_N &= counts_C[labels_N] > 1
    own_N = probabilities_NxC[rows_N, labels_N]
    others_NxC = np.where(np.arange(size) == labels_N[:, None], -np.inf, probabilities_NxC)
    return LabelIssues(
        flagged_N,
        np.where(flagged_N, confident_N, likeliest_N),
        own_N,
        own_N - others_NxC.max(axis=1),
        joint_CxC,
        expected_issues(joint_CxC, counts_C),
    )


def thresholds(labels_N: np.ndarray, probabilities_NxC: np.ndarray) -> np.ndarray:
    """Returns the mean probability of each class over the examples that carry it, [C]; infinity
    for a class that none carries (1911.00068, equation 2)."""
    size = probabilities_NxC.shape[1]
    carried = [labels_N == c for c in range(size)]
    return np.array(
        [
            probabilities_NxC[own_N, c].mean() if own_N.any() else np.inf
            for c, own_N in enumerate(carried)
        ]
    )


def confident_classes(probabilities_NxC: np.ndarray, thresholds_C: np.ndarray) -> np.ndarray:
    """Returns the class that each example confidently belongs to, -1 for none, [N]: the most
    probable one among those that reach their threshold (1911.00068, equation 1)."""
    reached_NxC = probabilities_NxC >= thresholds_C - _ROUNDING
    best_N = np.where(reached_NxC, probabilities_NxC, -1.0).argmax(axis=1)
    return np.where(reached_NxC.any(axis=1), best_N, -1)


def expected_issues(joint_CxC: np.ndarray, counts_C: np.ndarray) -> float:
    """Returns how many labels are wrong by the confident joint, scaled to the number of examples
    of each label (1911.00068, equation 3).

    Args:
        joint_CxC: confidently counted, label by likely true class. A label that nothing is
            counted of is assumed to be right.
        counts_C: examples of each label.
    """
    right_C, all_C = np.diag(joint_CxC), joint_CxC.sum(axis=1)
    wrong_C = np.where(all_C > 0, 1 - right_C / np.maximum(all_C, 1), 0.0)
    return float(counts_C @ wrong_C)


def dynamics(true_ExN: np.ndarray, right_ExN: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a training said of each example that it learned from.

    Args:
        true_ExN: probability of the label at each of E evaluations during the training.
        right_ExN: bool, whether the label was the most probable class.

    Returns:
        Arrays [N]: 'confidence', the mean probability; 'variability', its standard deviation;
        'correctness', the share of right predictions (2009.10795); 'forgetting', how often a right
        prediction was followed by a wrong one (1812.05159).
    """
    right_ExN = np.asarray(right_ExN, bool)
    return {
        "confidence": true_ExN.mean(axis=0),
        "variability": true_ExN.std(axis=0),
        "correctness": right_ExN.mean(axis=0),
        "forgetting": (right_ExN[:-1] & ~right_ExN[1:]).sum(axis=0),
    }


def assign_folds(labels_N: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Returns the fold of each example, [N] in 0..count - 1: as many of each class in each, as far
    as they can be divided."""
    rng = np.random.default_rng(seed)
    shuffled_N = rng.permutation(len(labels_N))
    by_class_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind="stable")]
    folds_N = np.empty(len(labels_N), np.int64)
    folds_N[by_class_N] = np.arange(len(labels_N)) % count
    return folds_N


def nearest(queries_QxD: np.ndarray, keys_KxD: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` keys (or of all, if fewer) with the greatest cosine to
    each query, int64 [Q, count], the nearest first."""
    keys_KxD, count = _unit(keys_KxD), min(count, len(keys_KxD))
    chunks = [np.zeros((0, count), np.int64)]
    for start in range(0, len(queries_QxD), _CHUNK):
        cosines_QxK = _unit(queries_QxD[start : start + _CHUNK]) @ keys_KxD.T
        chunks.append(np.argsort(-cosines_QxK, axis=1, kind="stable")[:, :count])
    return np.concatenate(chunks)


def _unit(vectors_NxD: np.ndarray) -> np.ndarray:
    norms_Nx1 = np.linalg.norm(vectors_NxD, axis=1, keepdims=True)
    return vectors_NxD / np.maximum(norms_Nx1, 1e-12)


def _check(labels_N: np.ndarray, probabilities_NxC: np.ndarray) -> None:
    if probabilities_NxC.ndim != 2 or len(labels_N) != len(probabilities_NxC) or not len(labels_N):
        raise ValueError(
            f"{labels_N.shape} labels and probabilities {probabilities_NxC.shape}: expected [N] "
            "and [N, C] of the same examples, at least one"
        )
    size = probabilities_NxC.shape[1]
    if labels_N.min() < 0 or labels_N.max() >= size:
        raise ValueError(
            f"labels from {labels_N.min()} to {labels_N.max()}, expected 0 to {size - 1}: leave "
            "out examples without a label"
        )
    sums_N = probabilities_NxC.sum(axis=1)
    if not (probabilities_NxC >= 0).all() or np.abs(sums_N - 1).max() > 1e-3:  # NaN is not >= 0
        worst = int(np.argmax(np.where(np.isfinite(sums_N), np.abs(sums_N - 1), np.inf)))
        raise ValueError(
            f"probabilities of example {worst} are {probabilities_NxC[worst].tolist()}: expected "
            "numbers of at least 0 that add up to 1"
        )
