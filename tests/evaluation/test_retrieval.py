"""Search equals sorting all passages; metrics equal trec_eval's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation import retrieval
from evaluation.metrics import Scores, estimate
from evaluation.retrieval import METRICS, nearest, normalised, ranking_statistics, spread
from input_pipeline.examples import Ragged

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/fixtures/trec_golden.json"


def sorted_all(queries_QxE, passages_NxE, count):
    """Scores and rows from sorting all of them, by score and then by row."""
    scores_QxN = queries_QxE.astype(np.float64) @ passages_NxE.astype(np.float64).T
    rows_QxN = np.stack([np.lexsort((np.arange(len(s)), -s)) for s in scores_QxN])[:, :count]
    return np.take_along_axis(scores_QxN, rows_QxN, axis=1), rows_QxN


def values(statistics):
    return {name: values_Qx2[:, 0] for name, values_Qx2 in statistics.items()}


@pytest.mark.parametrize(
    ("queries", "passages", "count", "chunk"),
    [
        (5, 23, 7, 4),  # more are kept than a chunk holds; neither side is divisible
        (8, 24, 3, 8),
        (3, 10, 50, 4),  # more than there are
        (7, 40, 40, 6),
        (1, 1, 1, 1),
        (9, 30, 5, 4096),
        (0, 6, 2, 4),
    ],
)
def test_search_equals_sorting_all_with_ties_by_row(queries, passages, count, chunk):
    """Small whole numbers make products exact and most of them equal; some zeros are negative."""
    rng = np.random.default_rng([queries, passages, count])
    width = 1 if passages == 24 else 3  # products of one number may be -0.0
    sides = [rng.integers(-1, 2, (n, width)).astype(np.float32) for n in (queries, passages)]
    sides[1][rng.random(sides[1].shape) < 0.2] *= -0.0
    scores_QxK, rows_QxK = nearest(*sides, count=count, chunk=chunk)
    assert scores_QxK.dtype == np.float32 and rows_QxK.dtype == np.int64
    assert rows_QxK.shape == (queries, min(count, passages))
    if queries:
        expected = sorted_all(*sides, count)
        np.testing.assert_array_equal(scores_QxK, expected[0])
        np.testing.assert_array_equal(rows_QxK, expected[1])


def test_chunks_and_copies_of_real_vectors_change_nothing():
    """Copies of a passage tie wherever they are; narrower dtypes are read in float32."""
    rng = np.random.default_rng(0)
    queries_QxE, passages_NxE = (rng.normal(size=(n, 48)).astype(np.float16) for n in (6, 50))
    passages_NxE = np.concatenate([passages_NxE, passages_NxE])
    whole, parts = (nearest(queries_QxE, passages_NxE, count=30, chunk=c) for c in (4096, 13))
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-6)
    np.testing.assert_array_equal(whole[1], sorted_all(queries_QxE, passages_NxE, 30)[1])


def test_one_program_serves_all_chunks():
    rng, before = np.random.default_rng(0), retrieval._better._cache_size()
    nearest(rng.normal(size=(19, 8)), rng.normal(size=(101, 8)), count=6, chunk=8)
    assert retrieval._better._cache_size() == before + 1


@pytest.mark.parametrize("side", ["Query", "Passage"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_row(side, value):
    sides = {"Query": np.ones((6, 2)), "Passage": np.ones((9, 2))}
    sides[side][5, 1] = value
    with pytest.raises(ValueError, match=f"{side} 5 "):
        nearest(*sides.values(), count=2, chunk=4)


def test_products_that_overflow_are_refused():
    large = np.full((3, 2), 1e30, np.float32)
    for sign in (1, -1):
        with pytest.raises(ValueError, match="normalise the vectors"):
            nearest(large, sign * large, count=3)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_a_million_passages_need_the_memory_of_a_chunk(tmp_path):
    """All scores would take 8 GB; the passages lie in a file of 64 MB. The rows are exact."""
    passages_NxE = np.random.default_rng(0).integers(-4, 5, (1_000_000, 16)).astype(np.float32)
    np.save(tmp_path / "passages.npy", passages_NxE)
    code = (
        "import re, sys, numpy as np\n"
        "from evaluation.retrieval import nearest\n"
        "def peak():\n"
        "    status = open('/proc/self/status', encoding='utf-8').read()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) // 1024\n"
        "passages = np.load(sys.argv[1] + '/passages.npy', mmap_mode='r')\n"
        "nearest(passages[:2000], passages[:5000], count=100)\n"  # compiles
        "before = peak()\n"
        "scores, rows = nearest(passages[:2000], passages, count=100)\n"
        "print(peak() - before)\n"
        "np.savez(sys.argv[1] + '/best.npz', scores=scores, rows=rows)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout.split()[-1]) < 200, run.stdout  # MB; the mapped file is 64
    best = np.load(tmp_path / "best.npz")
    expected = sorted_all(passages_NxE[:3], passages_NxE, 100)
    np.testing.assert_array_equal(best["scores"][:3], expected[0])
    np.testing.assert_array_equal(best["rows"][:3], expected[1])


def test_normalised_vectors_have_length_one_and_zeros_stay():
    vectors = np.array([[[3, 4], [0, 0]], [[1e-30, 0], [-1e30, 1e30]]], np.float32)
    unit = normalised(vectors)
    assert unit.dtype == np.float32
    half = np.sqrt(0.5)
    np.testing.assert_allclose(unit, [[[0.6, 0.8], [0, 0]], [[1, 0], [-half, half]]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_statistics_are_those_of_trec_eval(kind):
    """The file has 12 random rankings of 120 of 300 passages, judged 0 to 3, and the values of
    pytrec-eval-terrier 0.5.11: recall.1,10,100, ndcg_cut.10, recip_rank of the run's first 10.

    trec_eval reads scores alone and orders equal ones by descending document id, other than here;
    so its run had distinct scores that fall along each ranking.
    """
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    relevant = Ragged.of(golden["relevant"])
    grades = Ragged.of(golden["grades"], np.float32) if kind == "graded" else None
    statistics = ranking_statistics(np.array(golden["rows"]), relevant, grades)
    assert set(statistics) == set(golden[kind]) == {metric.name for metric in METRICS}
    for name, values_Q in values(statistics).items():
        np.testing.assert_allclose(values_Q, golden[kind][name], atol=1e-6, err_msg=name)


def test_statistics_by_hand():
    """Query 0 has its passages at ranks 2 and 4 and one that is not ranked, query 1 at rank 11."""
    rows_QxK = np.stack([np.arange(12), np.arange(12)])
    relevant = Ragged.of([[1, 3, 99, 1], [10]])
    statistics = ranking_statistics(rows_QxK, relevant)
    dcg = 1 / np.log2(3) + 1 / np.log2(5)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    expected = {
        "ndcg_10": [dcg / ideal, 0],
        "recall_1": [0, 0],
        "recall_10": [2 / 3, 0],
        "recall_100": [2 / 3, 1],
        "mrr_10": [1 / 2, 0],
    }
    for name, values_Q in values(statistics).items():
        np.testing.assert_allclose(values_Q, expected[name], err_msg=name)
    scores = Scores(METRICS, np.arange(2), statistics)
    assert estimate(scores, "recall_100")["value"] == pytest.approx(5 / 6)
    assert scores.metric("auto").name == "ndcg_10"


def test_grades_are_gains_and_those_of_zero_are_not_relevant():
    relevant = Ragged.of([[0, 1, 2]])
    grades = Ragged.of([[0, 1, 3.5]], np.float32)
    statistics = values(ranking_statistics(np.array([[0, 1]]), relevant, grades))
    ideal = 3.5 + 1 / np.log2(3)
    assert statistics["ndcg_10"] == pytest.approx([(1 / np.log2(3)) / ideal])
    assert statistics["recall_100"] == pytest.approx([1 / 2])
    assert statistics["mrr_10"] == pytest.approx([1 / 2])


@pytest.mark.parametrize("grades", [None, [[1], [0]]])
def test_a_query_without_a_relevant_passage_is_refused(grades):
    relevant = Ragged.of([[4], [] if grades is None else [5]])
    grades = grades and Ragged.of(grades, np.float32)
    with pytest.raises(ValueError, match=r"Query 1 .* leave the query out"):
        ranking_statistics(np.zeros((2, 1), np.int64), relevant, grades)


def test_spread_equals_all_cosines_and_singular_values():
    rng = np.random.default_rng(0)
    vectors_NxE = (rng.normal(size=(40, 6)) * [5, 3, 1, 1, 1, 0.1] + 1).astype(np.float32)
    unit_NxE = vectors_NxE / np.linalg.norm(vectors_NxE, axis=1, keepdims=True)
    cosines = (unit_NxE @ unit_NxE.T)[~np.eye(40, dtype=bool)]
    shares = np.square(np.linalg.svd(unit_NxE, compute_uv=False)) / 40
    rank = np.exp(-(shares * np.log(shares)).sum())
    assert spread(vectors_NxE) == pytest.approx((cosines.mean(), rank), rel=1e-4)


def test_spread_tells_collapse_from_a_basis():
    assert spread(np.tile([[1.0, 2.0, 3.0]], (9, 1))) == pytest.approx((1, 1), abs=1e-4)
    assert spread(7 * np.eye(5)) == pytest.approx((0, 5), abs=1e-4)
    assert np.isnan(spread(np.zeros((3, 2)))[1]) and spread(np.zeros((3, 2)))[0] == 0
    assert np.isnan(spread(np.ones((1, 2)))[0])
