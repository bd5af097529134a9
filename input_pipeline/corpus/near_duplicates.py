"""Finds texts that are nearly the same, by MinHash on character 3-grams.

Here: the form in which texts are compared, the pairs whose similarity reaches a threshold, and
which text to keep of them. Not here: what becomes of the rest (cleaning.py, audit.py).

The similarity of two texts is Jaccard's, of the sets of 3-grams of their comparison forms.
Candidates come from locality-sensitive hashing (Mining of Massive Datasets, chapter 3): texts whose
MinHash signatures agree in a whole band. The permutations are those of datasketch, and so are the
signatures, bit for bit. But its MinHash is an object for each text and its MinHashLSH a dict of
sets for each band, so numpy computes the signatures of thousands of texts at a time here, and
sorting a band brings its candidates together: benchmarks/deduplication.py measures both ways. Each
candidate is then verified on the 3-grams themselves, so that there are no false ones.
"""

import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.sparse

from input_pipeline.eta import track

# All but letters, digits and pictographs. Those stay, for a laughing face is not an angry one.
_IGNORED = re.compile("[^\\w\u2600-\u27bf\U0001f000-\U0010ffff]+|_+")
_PERMUTATIONS = 128
_SEED = 1  # of the permutations: fixed, so that the result depends on the texts alone
_MISSED = 0.005  # probability, at most, that a pair just at the threshold is no candidate
_REPRESENTATIVES = 16  # of a band's texts that agree, with which each of them is compared
_BASE = 0x110000  # code points
_CHUNK_TEXTS = 4096  # whose 3-grams fit a processor's cache
_CHUNK_PAIRS = 100_000

Form = tuple[str, ...]  # the comparison form of a text, or those of a text and its pair


class Matches(NamedTuple):
    """P pairs i < j, sorted, as int64 indices [P, 2], and their similarities [P] in float64."""

    pairs_Px2: np.ndarray
    similarity_P: np.ndarray


def comparison_form(text: str) -> str:
    """Returns the text without what makes no difference: NFKC, lower case, no space, no marks.

    A text of nothing but marks stays as it is.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    return _IGNORED.sub("", text) or text


def originals(
    texts: Sequence[str],
    *,
    threshold: float,
    pairs: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
) -> np.ndarray:
    """Returns int64 [N]: for each text the one to keep in its stead, itself where it is kept.

    Texts are judged by rank, then in the order of their comparison forms, whatever their order
    here: one is kept unless it is a near-duplicate of one that is kept. So no two that are kept are
    near-duplicates (but for what `near_duplicates` misses), and each that is not has one among
    them, not merely a chain that leads there.

    Args:
        texts: N texts.
        threshold: the similarity from which on two are near-duplicates.
        pairs: N second texts, which must be as similar as the first.
        ranks: N numbers; a text of a lower one is kept rather than one of a higher.
    """
    ranks = [0] * len(texts) if ranks is None else ranks
    parts = (texts,) if pairs is None else (texts, pairs)
    forms = list(zip(*(map(comparison_form, part) for part in parts), strict=True))
    order = list(zip(ranks, *parts, strict=True))
    first: dict[Form, int] = {}  # of several with one form, the one that comes first in this order
    for index in sorted(range(len(forms)), key=order.__getitem__):
        first.setdefault(forms[index], index)
    distinct = sorted(first, key=lambda form: (ranks[first[form]], form))
    kept_by = list(range(len(distinct)))
    pairs_Px2 = near_duplicates(distinct, threshold=threshold).pairs_Px2
    for start in range(0, len(pairs_Px2), _CHUNK_PAIRS):  # sorted by i: all before i is settled
        for i, j in pairs_Px2[start : start + _CHUNK_PAIRS].tolist():
            if kept_by[i] == i and kept_by[j] == j:
                kept_by[j] = i
    keeper = {form: first[distinct[k]] for form, k in zip(distinct, kept_by, strict=True)}
    return np.array([keeper[form] for form in forms], np.int64)


def near_duplicates(
    forms: Sequence[Form],
    *,
    threshold: float,
    sides_N: np.ndarray | None = None,
    either_order: bool = False,
) -> Matches:
    """Finds the pairs of comparison forms whose similarity is `threshold` or more.

    A pair just at the threshold is missed with a probability under 0.5%, a more similar one less
    often. Where more than 16 texts agree in a band, as those of a template do, each is compared
    with the first 16 of them only, so that the time does not grow with their square; some pairs of
    that family are missed for it.

    Args:
        forms: N different ones, sorted where the result shall not depend on their order: either
            (text,), or all (text, pair), whose similarity is the lesser of that of the two texts.
        threshold: Jaccard similarity, above 0 and up to 1.
        sides_N: int; only pairs with different sides are looked for.
        either_order: (text, pair) is compared with (pair, text) too.

    Raises:
        ValueError: for a threshold out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a similarity threshold of {threshold}: expected above 0 and up to 1")
    if not forms:
        return Matches(np.zeros((0, 2), np.int64), np.zeros(0))
    starts = range(0, len(forms), _CHUNK_TEXTS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = []
        for texts in zip(*forms, strict=True):
            chunks = (texts[start : start + _CHUNK_TEXTS] for start in starts)
            parts.append(scipy.sparse.vstack([*pool.map(_grams, chunks)], format="csr"))
        grams = parts[0] if len(parts) == 1 else _union(*parts)
        chunks = (grams[start : start + _CHUNK_TEXTS] for start in starts)
        hashed = pool.map(functools.partial(_bands, rows=bands(threshold)[1]), chunks)
        bands_BxN = np.concatenate([*track(hashed, len(starts), "Hashing 3-grams")], axis=1)
        compare = functools.partial(_similarity, parts, either_order)

        def similarity(packed_C: np.ndarray) -> np.ndarray:
            pairs_Cx2 = np.stack(np.divmod(packed_C, len(forms)), axis=1)
            starts = range(0, len(packed_C), _CHUNK_PAIRS)
            chunks = (pairs_Cx2[start : start + _CHUNK_PAIRS] for start in starts)
            return np.concatenate([np.zeros(0), *pool.map(compare, chunks)])

        near = np.zeros(0, np.int64)  # sorted pairs, as i * N + j
        for band_N in track(bands_BxN, len(bands_BxN), "Comparing texts, by band"):
            proposed = _candidates(band_N, sides_N)
            known_C = np.searchsorted(near, proposed) < np.searchsorted(near, proposed, "right")
            proposed = proposed[~known_C]  # both are sorted: setdiff1d would sort again
            near = np.sort(np.concatenate([near, proposed[similarity(proposed) >= threshold]]))
        return Matches(np.stack(np.divmod(near, len(forms)), axis=1), similarity(near))


def _grams(texts: Sequence[str]) -> scipy.sparse.csr_array:
    """Returns the set of 3-grams of each text as a row whose columns are the packed code points.

    A text shorter than 3 characters is itself a 3-gram, filled up with NUL.
    """
    filled = [text.ljust(3, "\0") for text in texts]
    stops = np.cumsum([len(text) for text in filled])
    codes = np.frombuffer("".join(filled).encode("utf-32-le", "surrogatepass"), "<u4")
    codes = codes.astype(np.int64)
    keys = (codes[:-2] * _BASE + codes[1:-1]) * _BASE + codes[2:]
    within = np.ones(len(codes), bool)
    within[stops - 1] = within[stops - 2] = False  # these would reach into the next text
    keys = keys[within[:-2]]
    splits = np.concatenate([[0], stops - 2 * np.arange(1, len(texts) + 1)])
    ones = np.ones(len(keys), np.int8)
    # Twice as many columns as there are 3-grams, for _union.
    grams = scipy.sparse.csr_array((ones, keys, splits), shape=(len(texts), 2 * _BASE**3))
    grams.sum_duplicates()
    grams.data[:] = 1
    return grams


def _union(first: scipy.sparse.csr_array, second: scipy.sparse.csr_array):
    """Joins the sets of a text and its pair; what both have gets a second column.

    It does not matter which is which, and two joined sets are at least as similar as both their
    parts: a minimum of sums is no less than the sum of minima.
    """
    both = first.multiply(second)
    both.indices = both.indices + _BASE**3
    return (first + second + both).tocsr()


def bands(threshold: float) -> tuple[int, int]:
    """Returns how many bands, of how many permutations, miss few pairs at the threshold.

    Of all that do, those with the longest bands, which propose the fewest false candidates.
    """
    rows = max(
        rows
        for rows in range(1, _PERMUTATIONS + 1)
        if rows == 1 or (1 - threshold**rows) ** (_PERMUTATIONS // rows) <= _MISSED
    )
    return _PERMUTATIONS // rows, rows


@functools.cache
def _permutations() -> np.ndarray:
    """Returns a (odd) and b of h -> a * h + b modulo 2**32, uint32 [2, 128], as datasketch draws
    them: by RandomState, whose stream NumPy has frozen."""
    draw = np.random.RandomState(_SEED).randint
    a = 2 * draw(0, 1 << 31, _PERMUTATIONS, dtype=np.uint32) + 1
    return np.array([a, draw(0, 1 << 32, _PERMUTATIONS, dtype=np.uint32)], np.uint32)


def fold(keys: np.ndarray) -> np.ndarray:
    """Hashes packed 3-grams to 32 bits: what datasketch calls the hashfunc."""
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype("u4")


def signatures(grams: scipy.sparse.csr_array) -> Iterator[np.ndarray]:
    """Yields uint32 [N] for each permutation: the MinHash of each row of 3-grams.

    The finaliser of MurmurHash3, then affine permutations modulo 2**32: 'affine32' of datasketch.
    """
    hashes = fold(grams.indices)
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    for a, b in _permutations().T:
        yield np.minimum.reduceat(hashes * a + b, grams.indptr[:-1])


def _bands(grams: scipy.sparse.csr_array, rows: int) -> np.ndarray:
    """Returns uint64 [B, N]: each text's hash in each band of `rows` permutations."""
    bands_BxN = np.zeros((_PERMUTATIONS // rows, grams.shape[0]), np.uint64)
    for row, signature_N in zip(range(bands_BxN.shape[0] * rows), signatures(grams), strict=False):
        band_N = bands_BxN[row // rows]
        band_N ^= signature_N
        band_N *= np.uint64(0x9E3779B97F4A7C15)
        band_N ^= band_N >> np.uint64(29)
    return bands_BxN


def _candidates(band_N: np.ndarray, sides_N: np.ndarray | None) -> np.ndarray:
    """Returns the different pairs i < j that agree in a band, int64 [C]: i * N + j, sorted."""
    order = np.argsort(band_N, kind="stable")
    if sides_N is None:
        meetings = [_meet(order, order, band_N)]
    else:
        sides = [order[sides_N[order] == side] for side in np.unique(sides_N)]
        meetings = [_meet(a, b, band_N) for a in sides for b in sides if a is not b]
    pairs_2xC = np.sort(np.concatenate([np.zeros((2, 0), np.int64), *meetings], axis=1), axis=0)
    return np.unique(pairs_2xC[0] * len(band_N) + pairs_2xC[1])


def _meet(these: np.ndarray, those: np.ndarray, band_N: np.ndarray) -> np.ndarray:
    """Pairs each of `these` with the first of `those` that have its hash; both sorted by hash."""
    hashes, position = band_N[those], np.searchsorted(band_N[those], band_N[these])
    meetings = [np.zeros((2, 0), np.int64)]
    for _ in range(_REPRESENTATIVES):
        hit = position < len(those)
        hit[hit] = hashes[position[hit]] == band_N[these[hit]]
        these, position = these[hit], position[hit]
        if not len(these):
            break
        meetings.append(np.stack([these, those[position]]))
        position = position + 1
    pairs_2xC = np.concatenate(meetings, axis=1)
    return pairs_2xC[:, pairs_2xC[0] != pairs_2xC[1]]


def _similarity(
    parts: Sequence[scipy.sparse.csr_array], either_order: bool, pairs_Cx2: np.ndarray
) -> np.ndarray:
    """Returns the similarity of each pair: of a text alone, or the lesser of both texts."""
    left_C, right_C = pairs_Cx2.T
    similarity_C = np.minimum.reduce([_jaccard(part[left_C], part[right_C]) for part in parts])
    if either_order and len(parts) == 2:
        crossed = [_jaccard(a[left_C], b[right_C]) for a, b in (parts, parts[::-1])]
        similarity_C = np.maximum(similarity_C, np.minimum.reduce(crossed))
    return similarity_C


def _jaccard(left: scipy.sparse.csr_array, right: scipy.sparse.csr_array) -> np.ndarray:
    shared_C = np.diff(left.multiply(right).tocsr().indptr)
    return shared_C / (np.diff(left.indptr) + np.diff(right.indptr) - shared_C)
