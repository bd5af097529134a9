"""Exact search of passages by their vectors, and metrics of ranked passages.

Here: vectors and rows in, ranks and statistics out. Not here: how texts become vectors (tasks/) and
BM25, the baseline (lexical.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.metrics import Metric, mean, one_each
from input_pipeline.eta import track
from input_pipeline.examples import Ragged

CHUNK = 4096  # queries and passages at a time: 64 MiB of scores
_CUT = 10  # of nDCG and MRR
_DISCOUNTS = 1 / np.log2(np.arange(2, _CUT + 2))

# An example is a query. The last metric breaks ties: it has more values than recall.
METRICS = (
    Metric("ndcg_10", "nDCG@10, %", mean, scale=100, digits=1),
    Metric("recall_1", "Recall@1, %", mean, scale=100, digits=1),
    Metric("recall_10", "Recall@10, %", mean, scale=100, digits=1),
    Metric("recall_100", "Recall@100, %", mean, scale=100, digits=1),
    Metric("mrr_10", "MRR@10, %", mean, scale=100, digits=1),
)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., E] at length 1, float32; a zero vector stays zero."""
    # float64 for the sum alone: squares of small float32 values would vanish.
    squares = np.einsum("...e,...e->...", vectors, vectors, dtype=np.float64)[..., None]
    lengths = np.sqrt(np.where(squares > 0, squares, 1))
    unit = np.empty(vectors.shape, np.float32)
    return np.divide(vectors, lengths, out=unit, casting="same_kind")


def nearest(
    queries_QxE: np.ndarray, passages_NxE: np.ndarray, *, count: int, chunk: int = CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the passages with the highest products with each query: float32 scores [Q, K] and
    int64 rows [Q, K], K = min(count, N), in descending order of scores.

    The search is exact. Of equal scores the lower row comes first, whatever the chunks. Scores are
    cosines if both sides are `normalised`.

    Args:
        queries_QxE: of any float dtype.
        passages_NxE: likewise; a memory-mapped file is read in chunks, once per chunk of queries.
        count: how many passages to keep for each query.
        chunk: how many queries, and how many passages, the device holds at a time.

    Raises:
        ValueError: if a vector or a score is not finite.
    """
    (queries, _), total = queries_QxE.shape, len(passages_NxE)
    kept = min(count, total)
    scores_QxK = np.empty((queries, kept), np.float32)
    rows_QxK = np.empty((queries, kept), np.int64)
    # All chunks have one shape, so that a single program serves them.
    height, width = max(1, min(chunk, queries)), max(1, min(chunk, total))
    steps = [(q, p) for q in range(0, queries, height) for p in range(0, total, width)]
    for q, p in track(steps, len(steps), "Search, chunks"):
        if p == 0:
            part_CxE = jax.device_put(_block(queries_QxE, q, height, "Query"))
            best = (
                jnp.full((height, kept), -jnp.inf, jnp.float32),
                jnp.zeros((height, kept), jnp.int32),
            )
        block_PxE = _block(passages_NxE, p, width, "Passage")
        jax.block_until_ready(best)  # else blocks queue up in the device's memory
        best = _better(best, part_CxE, block_PxE, np.int32(p), np.int32(total))
        if p + width >= total:
            rows = slice(q, min(q + height, queries))
            scores_QxK[rows], rows_QxK[rows] = (np.asarray(x)[: rows.stop - q] for x in best)
    if not np.isfinite(scores_QxK).all():
        raise ValueError(
            "The product of a query and a passage is too large for float32: normalise the vectors "
            "(evaluation.retrieval.normalised)."
        )
    return scores_QxK, rows_QxK


def _block(vectors_NxE: np.ndarray, start: int, size: int, what: str) -> np.ndarray:
    """Returns `size` vectors from `start` on, float32, zeros behind the last."""
    part_MxE = np.asarray(vectors_NxE[start : start + size], np.float32)
    finite_M = np.isfinite(part_MxE).all(axis=1)
    if not finite_M.all():
        raise ValueError(
            f"{what} {start + int(finite_M.argmin())} (from 0) has a vector with NaN or infinity; "
            "expected finite numbers. Check the checkpoint and model.dtype that computed it."
        )
    return np.pad(part_MxE, ((0, size - len(part_MxE)), (0, 0)))


@jax.jit
def _better(
    best: tuple[jax.Array, jax.Array],
    queries_CxE: jax.Array,
    passages_PxE: jax.Array,
    start: jax.Array,
    total: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the best scores and rows [C, K] of those so far and of passages `start`, ..."""
    count = best[0].shape[1]
    # GPUs and TPUs would otherwise round float32 operands to about three digits.
    scores_CxP = jnp.matmul(queries_CxE, passages_PxE.T, precision="highest")
    scores_CxP = jnp.where(scores_CxP == 0, 0.0, scores_CxP)  # top_k sorts -0.0 below 0.0
    is_passage_P = start + jnp.arange(len(passages_PxE)) < total
    scores_CxP = jnp.where(is_passage_P, scores_CxP, -jnp.inf)
    scores, indices = jax.lax.top_k(scores_CxP, min(count, len(passages_PxE)))
    # Of equal scores top_k keeps the first: earlier chunks, which have lower rows, come first.
    scores = jnp.concatenate([best[0], scores], axis=1)
    rows = jnp.concatenate([best[1], start + indices], axis=1)
    scores, indices = jax.lax.top_k(scores, count)
    return scores, jnp.take_along_axis(rows, indices, axis=1)


def ranking_statistics(
    rows_QxK: np.ndarray, relevant: Ragged, grades: Ragged | None = None
) -> dict[str, np.ndarray]:
    """Returns the statistics [Q, 2] of each of METRICS, by name.

    They are defined as in trec_eval. `recall_k` is the share of all relevant passages that are
    among the first k (its recall.k); `ndcg_10` has linear gains (its ndcg_cut.10; Järvelin &
    Kekäläinen 2002, discount log2(rank + 1)); `mrr_10` is 1 / rank of the first relevant passage,
    0 behind rank 10.

    Args:
        rows_QxK: ranked passages, the best first, each once; K is 100 or more, or all passages.
        relevant: the rows of each query's relevant passages; a repeated row counts once.
        grades: their gains; passages with 0 or less are not relevant. None for 1 each.

    Raises:
        ValueError: if a query has no relevant passage.
    """
    shape = len(rows_QxK), max(_CUT, rows_QxK.shape[1])
    gains_QxK, ideal_QxT = np.zeros(shape), np.zeros((shape[0], _CUT))
    totals_Q = np.zeros(shape[0])
    for q, rows_K in enumerate(rows_QxK.tolist()):
        passages = relevant.row(q).tolist()
        values = [1] * len(passages) if grades is None else grades.row(q).tolist()
        gains = {p: g for p, g in zip(passages, values, strict=True) if g > 0}
        if not gains:
            raise ValueError(
                f"Query {q} (from 0) has no relevant passage: {len(passages)} are given for it, "
                "none with a grade above 0. Give it one, or leave the query out."
            )
        gains_QxK[q, : len(rows_K)] = [gains.get(row, 0) for row in rows_K]
        ideal = sorted(gains.values(), reverse=True)[:_CUT]
        ideal_QxT[q, : len(ideal)], totals_Q[q] = ideal, len(gains)
    hits_QxK = gains_QxK > 0
    first_Q = hits_QxK[:, :_CUT].argmax(axis=1)
    values = {f"recall_{k}": hits_QxK[:, :k].sum(axis=1) / totals_Q for k in (1, 10, 100)}
    values["ndcg_10"] = (gains_QxK[:, :_CUT] @ _DISCOUNTS) / (ideal_QxT @ _DISCOUNTS)
    values["mrr_10"] = hits_QxK[:, :_CUT].any(axis=1) / (first_Q + 1)
    return {metric.name: one_each(values[metric.name]) for metric in METRICS}


def spread(vectors_NxE: np.ndarray) -> tuple[float, float]:
    """Returns how far vectors are from collapse: (mean cosine of different rows, effective rank).

    A model that maps all texts to one vector has (1, 1). The effective rank, from 1 to E, is the
    exponential of the entropy of the squared singular values of the normalised vectors, which are
    not centred, divided by their sum. Roy & Vetterli (2007) take the singular values unsquared;
    squared it is the Vendi score of cosines (Friedman & Dieng 2023). The mean cosine is NaN of
    fewer than two vectors; zero vectors have cosine 0; of zero vectors alone the rank is NaN.
    """
    unit_NxE, count = normalised(vectors_NxE), len(vectors_NxE)
    # The eigenvalues of the Gram matrix are the squared singular values, their sum its trace.
    gram_ExE = (unit_NxE.T @ unit_NxE).astype(np.float64)
    trace, sum_E = np.trace(gram_ExE), unit_NxE.sum(axis=0, dtype=np.float64)
    pairs = count * (count - 1)
    cosine = (sum_E @ sum_E - trace) / pairs if pairs else np.nan
    if not trace > 0:
        return float(cosine), float("nan")
    shares_E = np.clip(np.linalg.eigvalsh(gram_ExE) / trace, 1e-12, 1)  # p log p is 0 at 0
    return float(cosine), float(np.exp(-(shares_E * np.log(shares_E)).sum()))
