"""Which features to keep: scores of columns, and the best of them.

Here: matrices alone. features.py knows what their columns mean.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix, hstack, issparse
from sklearn.feature_selection import chi2, mutual_info_classif
from sklearn.svm import LinearSVC

_NEIGHBOUR_ROWS = 5_000  # mutual information of 17,000 takes 0.1 s a column

Matrix = np.ndarray | csr_matrix  # sparse ones hold weights of terms: zeros and above


def column_edges(blocks: Sequence[Matrix]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the minimum and the maximum of each column of blocks side by side, float64 [A]."""
    edges = []
    for edge in ("min", "max"):
        rows = [getattr(block, edge)(axis=0) for block in blocks if block.shape[1]]
        rows = [row.toarray().ravel() if issparse(row) else row for row in rows]
        edges.append(np.concatenate(rows).astype(np.float64))
    return edges[0], edges[1]


def columns_of(blocks: Sequence[Matrix], kept_K: np.ndarray) -> np.ndarray:
    """Returns columns of blocks side by side, float64 [N, K]; `kept_K` ascends."""
    parts = [part.toarray() if issparse(part) else part for part in _parts(blocks, kept_K)]
    return np.concatenate(parts, axis=1, dtype=np.float64)


def _parts(blocks: Sequence[Matrix], kept_K: np.ndarray) -> Iterator[Matrix]:
    """Yields the columns `kept_K` of blocks side by side, block by block."""
    start = 0
    for block in blocks:
        stop = start + block.shape[1]
        yield block[:, kept_K[(kept_K >= start) & (kept_K < stop)] - start]
        start = stop


def select(
    kind: str, blocks: Sequence[Matrix], kept_K: np.ndarray, labels_N: np.ndarray, *, limit: int
) -> np.ndarray:
    """Returns those of the columns `kept_K` with the best scores, at most `limit`, ascending.

    Scores are of columns brought to [0, 1], however they will be scaled: chi-squared needs that
    nothing is negative, and units must not decide about variance or the model.

    Args:
        kind: 'variance', or with a look at the labels 'chi2', 'mutual_information' or 'model', a
            linear one that an L1 penalty leaves few columns.
        blocks: matrices with N rows.
        kept_K: indices of columns that vary.
        labels_N: class indices; -1 is masked.
        limit: the most columns to keep; those with a score of 0 are never kept.
    """
    unit_NxK, sparse_K = _unit(blocks, kept_K)
    if kind == "variance":
        mean_K, square_K = unit_NxK.mean(axis=0), unit_NxK.multiply(unit_NxK).mean(axis=0)
        scores_K = np.asarray(square_K - np.square(mean_K)).ravel()
    else:
        unit_NxK, labels_N = unit_NxK[labels_N >= 0], labels_N[labels_N >= 0]
        if kind == "chi2":
            scores_K = chi2(unit_NxK, labels_N)[0]
        elif kind == "mutual_information":
            scores_K = _mutual_information(unit_NxK, labels_N, sparse_K)
        else:
            model = LinearSVC(C=0.3, penalty="l1", dual=False, random_state=0, max_iter=20_000)
            scores_K = np.abs(model.fit(unit_NxK, labels_N).coef_).sum(axis=0)
    best = np.argsort(-scores_K, kind="stable")[:limit]
    return np.sort(kept_K[best[scores_K[best] > 0]])


def _unit(blocks: Sequence[Matrix], kept_K: np.ndarray) -> tuple[csc_matrix, np.ndarray]:
    """Returns the columns, brought to [0, 1], and which of them were sparse."""
    parts, sparse = [], []
    for part in _parts(blocks, kept_K):
        if not part.shape[1]:
            continue
        low_K, high_K = column_edges([part])
        if issparse(part):  # stays so: its zeros are the minimum
            parts.append(part.multiply(1 / high_K).tocsc())
        else:
            parts.append(csc_matrix((part - low_K) / (high_K - low_K)))
        sparse += [issparse(part)] * part.shape[1]
    return hstack(parts, format="csc", dtype=np.float64), np.array(sparse)


def _mutual_information(
    unit_NxK: csc_matrix, labels_N: np.ndarray, sparse_K: np.ndarray
) -> np.ndarray:
    """Returns nats shared with the label: by the presence of a term, or else by the value.

    That of values is estimated by nearest neighbours (Ross 2014, as scikit-learn does).
    """
    scores_K = np.zeros(unit_NxK.shape[1])
    if not sparse_K.all():
        rows = slice(_NEIGHBOUR_ROWS)
        dense = unit_NxK[rows][:, ~sparse_K].toarray()
        scores_K[~sparse_K] = mutual_info_classif(dense, labels_N[rows], random_state=0)
    if sparse_K.any():
        member_NxC = (labels_N[:, None] == np.unique(labels_N)).astype(np.float64)
        with_KxC = (unit_NxK[:, sparse_K] > 0).astype(np.float64).T @ member_NxC
        joint_2xKxC = np.stack([with_KxC, member_NxC.sum(0) - with_KxC]) / len(labels_N)
        apart_2xKxC = joint_2xKxC.sum(0) * joint_2xKxC.sum(2, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            nats_2xKxC = joint_2xKxC * np.log(joint_2xKxC / apart_2xKxC)
        scores_K[sparse_K] = np.nan_to_num(nats_2xKxC).sum(axis=(0, 2))
    return scores_K
