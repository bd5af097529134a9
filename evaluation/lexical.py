"""BM25: the lexical baseline of retrieval.

score(query, passage) = sum over the query's terms, repeated ones included, of
idf * tf / (tf + k1 * (1 - b + b * length / mean length)); Robertson & Zaragoza 2009, equation 3.15,
with idf = log(1 + (N - n + 0.5) / (n + 0.5)), which is positive for frequent terms too.

Terms are jieba's words or single characters, in lower case and without white space. Characters
did best on short sentences: of SimCLUE's first 2,000 pairs, each query searches its title among
10,000. nDCG@10 was 94.3 % with characters, 93.5 % (0.8 lower, standard error 0.3) with pairs of
characters beside them as in baselines.py, and 87.6 % (6.7 lower, 0.6) with words.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer

from input_pipeline.corpus.words import word_stops

_K1, _B = 1.2, 0.75  # the usual values of the range that Robertson & Zaragoza give
_SCORES = 2**24  # at a time, about 0.5 GB with sparse products


def bm25(
    queries: Sequence[str], passages: Sequence[str], *, words: bool, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the passages with the highest BM25 of each query: float32 scores [Q, K] and int64
    rows [Q, K], K = min(count, N), in descending order of scores.

    Of equal scores the lower row comes first, as in retrieval.nearest; a query that shares no term
    with any passage gets scores of 0 and the first rows.

    Args:
        queries: Q texts.
        passages: N texts, from which frequencies and lengths are counted.
        words: whether terms are jieba's words, else single characters.
        count: how many passages to keep for each query.

    Raises:
        ValueError: if all passages are empty.
    """
    counts_QxV, weights_NxV = _terms(queries, passages, words=words)
    weights_VxN, kept = weights_NxV.T.tocsr(), min(count, len(passages))
    step = max(1, _SCORES // len(passages))
    best = [(np.zeros((0, kept), np.float32), np.zeros((0, kept), np.int64))]
    for start in range(0, len(queries), step):
        scores_CxN = (counts_QxV[start : start + step] @ weights_VxN).toarray()
        best.append(jax.lax.top_k(scores_CxN.astype(np.float32), kept))
    scores_QxK, rows_QxK = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return scores_QxK, rows_QxK


def bm25_scores(queries: Sequence[str], passages: Sequence[str], *, words: bool) -> np.ndarray:
    """Returns BM25 of query i and passage i among all N passages, float64 [N].

    Raises:
        ValueError: if there are not as many queries as passages, or if all passages are empty.
    """
    if len(queries) != len(passages):
        raise ValueError(f"{len(queries)} queries and {len(passages)} passages are not pairs.")
    counts_NxV, weights_NxV = _terms(queries, passages, words=words)
    return np.asarray(counts_NxV.multiply(weights_NxV).sum(axis=1)).ravel()


def _terms(
    queries: Sequence[str], passages: Sequence[str], *, words: bool
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Returns the counts of terms in queries [Q, V] and their weights in passages [N, V]."""
    if not any(text.strip() for text in passages):
        raise ValueError(
            f"All of {len(passages)} passages are empty: BM25 has nothing to search. Check the "
            "column that passages are read from (config.data.pair_column)."
        )
    vectoriser = CountVectorizer(analyzer=_words if words else _characters)
    tf = scipy.sparse.csr_array(vectoriser.fit_transform(passages), dtype=np.float64)
    lengths_N = tf.sum(axis=1)
    holding_V = np.bincount(tf.indices, minlength=tf.shape[1])
    idf_V = np.log1p((len(passages) - holding_V + 0.5) / (holding_V + 0.5))
    saturation_N = _K1 * (1 - _B + _B * lengths_N / lengths_N.mean())
    # In place, on the terms that occur: all others weigh 0.
    tf.data *= idf_V[tf.indices] / (tf.data + np.repeat(saturation_N, np.diff(tf.indptr)))
    return scipy.sparse.csr_array(vectoriser.transform(queries), dtype=np.float64), tf


def _characters(text: str) -> list[str]:
    return list("".join(text.lower().split()))


def _words(text: str) -> list[str]:
    text = text.lower()
    words = [text[start:stop] for start, stop in pairwise([0, *word_stops(text)])]
    return [word for word in words if not word.isspace()]
