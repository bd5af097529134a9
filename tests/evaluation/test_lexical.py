"""BM25 is its formula, on five documents by hand and whatever the chunks."""

import math
from collections import Counter

import numpy as np
import pytest

from evaluation import lexical
from evaluation.lexical import bm25, bm25_scores

PASSAGES = ["北京天气好", "上海天气", "天天向上", "我爱北京天安门", "Hello 猫"]


def by_formula(query, passage, passages):
    """BM25 of lists of terms, written out."""
    mean = sum(map(len, passages)) / len(passages)
    total, counts = 0.0, Counter(passage)
    for term in query:
        holding = sum(term in other for other in passages)
        idf = math.log(1 + (len(passages) - holding + 0.5) / (holding + 0.5))
        norm = 1.2 * (1 - 0.75 + 0.75 * len(passage) / mean)
        total += idf * counts[term] / (counts[term] + norm)
    return total


def test_characters_are_scored_by_the_formula():
    queries = ["天气天气", "北京 HELLO", "向上"]  # repeated terms count, case and spaces do not
    terms, asked = ([list(t.lower().replace(" ", "")) for t in ts] for ts in (PASSAGES, queries))
    expected_QxN = np.array([[by_formula(q, p, terms) for p in terms] for q in asked])
    scores_QxK, rows_QxK = bm25(queries, PASSAGES, words=False, count=5)
    assert scores_QxK.dtype == np.float32 and rows_QxK.dtype == np.int64
    by_row_QxN = np.zeros((3, 5))
    np.put_along_axis(by_row_QxN, rows_QxK, scores_QxK, axis=1)
    np.testing.assert_allclose(by_row_QxN, expected_QxN, rtol=1e-6)
    assert (np.diff(scores_QxK) <= 0).all()


def test_words_are_jiebas():
    terms = [["北京", "天气", "好"], ["上海", "天气"], ["天天向上"]]
    passages = ["北京天气 好 ", "上海天气", "\t天天向上\n"]
    scores_QxK, rows_QxK = bm25(["天气 好"], passages, words=True, count=2)
    assert rows_QxK.tolist() == [[0, 1]]
    expected = [by_formula(["天气", "好"], terms[row], terms) for row in (0, 1)]
    np.testing.assert_allclose(scores_QxK[0], expected, rtol=1e-6)


@pytest.mark.parametrize("words", [False, True])
def test_ties_are_in_the_order_of_rows_whatever_the_chunks(words, monkeypatch):
    rng = np.random.default_rng(0)
    distinct = ["".join(rng.choice(list("天气好北京上海爱"), 6)) for _ in range(12)]
    passages, queries = distinct * 3, distinct[:5]
    whole = bm25(queries, passages, words=words, count=30)
    monkeypatch.setattr(lexical, "_SCORES", 2 * len(passages))
    parts = bm25(queries, passages, words=words, count=30)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    every, order = bm25(queries, passages, words=words, count=100)
    scores_QxN = np.zeros((5, 36), np.float32)
    np.put_along_axis(scores_QxN, order, every, axis=1)
    expected = np.stack([np.lexsort((np.arange(36), -s)) for s in scores_QxN])
    np.testing.assert_array_equal(whole[1], expected[:, :30])
    assert (scores_QxN[:, :12] == scores_QxN[:, 12:24]).all()  # copies tie exactly


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("query", ["", "  ", "龘龘", "zz"])
def test_queries_without_a_known_term_score_zero_in_the_order_of_rows(query, words):
    scores_QxK, rows_QxK = bm25([query, "天气"], ["晴朗", "", "天气好"], words=words, count=3)
    assert rows_QxK.tolist() == [[0, 1, 2], [2, 0, 1]]
    assert not scores_QxK[0].any() and scores_QxK[1, 0] > 0 and not scores_QxK[1, 1:].any()


@pytest.mark.parametrize("words", [False, True])
def test_scores_of_pairs_are_those_of_the_search(words):
    queries = ["天气", "上海", "", "北京北京", "好"]
    scores_QxK, rows_QxK = bm25(queries, PASSAGES, words=words, count=5)
    matrix_QxN = np.zeros((5, 5))
    np.put_along_axis(matrix_QxN, rows_QxK, scores_QxK, axis=1)
    pairs_N = bm25_scores(queries, PASSAGES, words=words)
    assert pairs_N.shape == (5,)
    np.testing.assert_allclose(pairs_N, matrix_QxN.diagonal(), rtol=1e-6)


def test_no_queries_no_results():
    scores_QxK, rows_QxK = bm25([], PASSAGES, words=False, count=2)
    assert scores_QxK.shape == rows_QxK.shape == (0, 2)


def test_empty_passages_and_uneven_pairs_are_refused():
    for passages in ([], ["", "  "]):
        with pytest.raises(ValueError, match=f"All of {len(passages)} passages are empty"):
            bm25(["天气"], passages, words=False, count=1)
    with pytest.raises(ValueError, match="2 queries and 5 passages"):
        bm25_scores(["天气", "好"], PASSAGES, words=False)
