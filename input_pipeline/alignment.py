"""Where the characters of a changed text come from, so that spans move with the text and back.

Here: edits, and the alignment that they make. Not here: which edits there are
(corpus/normalization.py).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Edit(NamedTuple):
    """`text[start:stop]`, never empty, becomes `replacement`."""

    start: int
    stop: int
    replacement: str


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Which characters of the source each character of the normalised text comes from.

    Attributes:
        starts_N, stops_N: int64; character n comes from source[starts_N[n]:stops_N[n]], which is
            never empty. Both are non-decreasing. Characters that one edit brought in share their
            range; source characters in no range were dropped.
    """

    starts_N: np.ndarray
    stops_N: np.ndarray

    @classmethod
    def from_edits(cls, length: int, edits: Sequence[Edit]) -> "Alignment":
        """Returns the alignment of a text of `length` characters with itself after `edits`."""
        table = [(edit.start, edit.stop, len(edit.replacement)) for edit in edits]
        begin, end, size = np.array(table, np.int64).reshape(-1, 3).T
        outside = np.ones(length, bool)
        for start, stop, _ in table:
            outside[start:stop] = False
        kept = np.flatnonzero(outside)
        starts = np.concatenate([kept, begin])  # of units: edits, and characters in none
        order = np.argsort(starts)
        sizes = np.concatenate([np.ones_like(kept), size])[order]
        stops = np.concatenate([kept + 1, end])[order]
        return cls(np.repeat(starts[order], sizes), np.repeat(stops, sizes))

    def then(self, after: "Alignment") -> "Alignment":
        """Returns this alignment followed by one whose source is this one's normalised text."""
        return Alignment(self.starts_N[after.starts_N], self.stops_N[after.stops_N - 1])

    def to_normalized(self, start: int, stop: int) -> tuple[int, int]:
        """Returns the range of all that came from source[start:stop].

        An empty range stands where the source was: of an empty span, and of a dropped one.
        """
        first = int(np.searchsorted(self.stops_N, start, side="right"))
        return first, max(first, int(np.searchsorted(self.starts_N, stop, side="left")))

    def to_source(self, start: int, stop: int) -> tuple[int, int]:
        """Returns the range of all that normalized[start:stop] came from."""
        if start < stop:
            return int(self.starts_N[start]), int(self.stops_N[stop - 1])
        place = int(self.stops_N[start - 1]) if start else 0
        return place, place


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """Returns `text` after `edits`, which come in order and do not overlap."""
    parts, done = [], 0
    for start, stop, replacement in edits:
        parts += text[done:start], replacement
        done = stop
    return "".join([*parts, text[done:]])


def minimal(text: str, edits: Iterable[Edit]) -> Iterator[Edit]:
    """Takes off what stays the same at both ends; never all of the source of new characters."""
    for start, stop, replacement in edits:
        source = text[start:stop]
        if source == replacement:
            continue
        limit = min(len(source), len(replacement)) - (len(replacement) > len(source))
        head = next((i for i in range(limit) if source[i] != replacement[i]), limit)
        limit -= head
        tail = next((i for i in range(limit) if source[~i] != replacement[~i]), limit)
        yield Edit(start + head, stop - tail, replacement[head : len(replacement) - tail])
