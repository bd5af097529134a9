"""A language model of character n-grams: the baseline of causal language models.

Interpolated Kneser-Ney (Chen & Goodman 1999, section 2.7) with one discount per order. Under the
shortest context lies the uniform distribution over all of Unicode, so that the probabilities of all
characters sum to one in every context, those never seen included: its bits per character are a
length in which a text can be written, comparable with those of a model of pieces or bytes.
"""

from collections.abc import Sequence

import numpy as np

UNICODE = 0x110000  # code points
_MOST = 10_000_000  # characters to learn from; more would take minutes


class CharacterNgrams:
    """Learned from texts; each text is independent, and its start is marked."""

    def __init__(self, texts: Sequence[str], *, order: int = 5):
        """Counts.

        Args:
            texts: to learn from, at most the first ten million characters.
            order: characters of the longest n-gram; 1 is without context.
        """
        lengths = np.array([len(text) for text in texts])
        few = np.cumsum(lengths) - lengths < _MOST
        if not few.all():
            print(
                f"Note: the n-grams learn from the first {few.sum():,} of {len(texts):,} texts, "
                f"{_MOST:,} characters."
            )
        codes, places = _characters([text for text, keep in zip(texts, few, strict=True) if keep])
        self._alphabet = np.unique(codes)
        self._levels: list[_Level] = []
        ids, levels = np.zeros_like(codes), []
        for length in range(1, order + 1):
            contexts = _before(ids) if length > 1 else np.zeros_like(ids)
            keys = contexts * self._base + self._symbols(codes)
            there = places >= length - 1  # n-grams reach back to the start at most
            if not there.any():
                break
            table, first, ids_of, counts = np.unique(
                keys[there], return_index=True, return_inverse=True, return_counts=True
            )
            ids = np.full(len(keys), -1)
            ids[there] = ids_of
            levels.append((table, np.flatnonzero(there)[first], counts, ids))
        for length, (table, first, counts, _) in enumerate(levels, start=1):
            if length < len(levels):
                # An n-gram within a longer one counts the characters that precede it.
                longer = levels[length][1]
                preceded = np.bincount(levels[length - 1][3][longer], minlength=len(table))
                counts = np.where(places[first] == length - 1, counts, preceded)
            if length == 1:  # the start itself is never predicted
                counts = np.where(codes[first] == _START, 0, counts)
            self._levels.append(_Level(table, counts, self._base))

    @property
    def _base(self) -> int:
        return len(self._alphabet) + 1

    def _symbols(self, codes: np.ndarray) -> np.ndarray:
        """Returns the index of each character; the number of characters for an unknown one."""
        index = np.minimum(np.searchsorted(self._alphabet, codes), len(self._alphabet) - 1)
        return np.where(self._alphabet[index] == codes, index, len(self._alphabet))

    def log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the natural logarithm of each text's probability, float64 [N].

        It is that of its characters one after the other; that the text ends is not predicted.
        """
        codes, places = _characters(texts)
        symbols, contexts = self._symbols(codes), np.zeros(len(codes), np.int64)
        probabilities = np.full(len(codes), 1 / UNICODE)
        for level in self._levels:
            probabilities, ids = level.refine(probabilities, contexts, symbols)
            contexts = np.where(places > 0, _before(ids), -1)
        logs = np.where(places > 0, np.log(probabilities), 0)
        return np.add.reduceat(logs, np.flatnonzero(places == 0)) if len(texts) else logs


class _Level:
    """The n-grams of one length: their counts, and what follows each context."""

    def __init__(self, table: np.ndarray, counts: np.ndarray, base: int):
        self._table, self._counts, self._base = table, counts, base
        contexts = table // base
        self._totals = np.bincount(contexts, counts)
        self._types = np.bincount(contexts, counts > 0)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self._discount = once / (once + 2 * twice) if once and twice else 0.5

    def refine(
        self, lower: np.ndarray, contexts: np.ndarray, symbols: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Interpolates the probabilities of shorter contexts; also returns the n-grams' ids."""
        keys = contexts * self._base + symbols
        ids = np.minimum(np.searchsorted(self._table, keys), len(self._table) - 1)
        known = (contexts >= 0) & (self._table[ids] == keys)
        counts = np.where(known, self._counts[ids], 0)
        inside = (contexts >= 0) & (contexts < len(self._totals))
        place = np.where(inside, contexts, 0)
        total = np.where(inside, self._totals[place], 0)
        types = np.where(inside, self._types[place], 0)
        mass = np.maximum(counts - self._discount, 0) + self._discount * types * lower
        refined = np.where(total > 0, mass / np.maximum(total, 1), lower)
        return refined, np.where(known, ids, -1)


_START = -1  # before each text, in the place of a code point


def _characters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the code points of texts end to end, _START before each, and places in their text."""
    parts, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for text in texts:
        data = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        parts += [np.array([_START]), data.astype(np.int64)]
        places.append(np.arange(len(data) + 1))
    return np.concatenate(parts), np.concatenate(places)


def _before(ids: np.ndarray) -> np.ndarray:
    """Returns at each place the id at the place before it; -1 at the first."""
    return np.concatenate([[-1], ids[:-1]])
