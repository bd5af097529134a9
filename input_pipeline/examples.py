"""Examples in memory: what is loaded from a prepared data set and fed to the online pipeline.

Here: the types alone. storage.py and preparation.py make them.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.alignment import Alignment
from input_pipeline.records import Record


class Ragged(NamedTuple):
    """N rows of different lengths, end to end: row i is `values[splits_N1[i]:splits_N1[i + 1]]`."""

    values: np.ndarray
    splits_N1: np.ndarray

    def row(self, index: int) -> np.ndarray:
        """Returns the values of row `index`."""
        return self.values[self.splits_N1[index] : self.splits_N1[index + 1]]

    def take(self, indices: np.ndarray) -> "Ragged":
        """Returns the rows of those indices, in their order."""
        rows = [self.row(index) for index in indices.tolist()]
        splits = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return Ragged(np.concatenate([self.values[:0], *rows]), splits)

    @staticmethod
    def of(rows: Sequence[Sequence], dtype: type = np.int32, *, width: int | None = None):
        """Makes one of rows, whose items are numbers, or sequences of `width` numbers."""
        splits = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        flat = [item for row in rows for item in row]
        shape = (-1,) if width is None else (-1, width)
        return Ragged(np.array(flat, dtype).reshape(shape), splits.astype(np.int64))


class Given(NamedTuple):
    """A row as it was given, where the text that is read of it is recoded or stripped.

    Attributes:
        record: the row.
        alignment: of the text that is read with that of the row.
    """

    record: Record
    alignment: Alignment


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: arrays have no one ==
class Examples:
    """N examples in memory; what they do not have is None.

    Attributes:
        texts_N: object array of str.
        labels_N: int32 class indices; -1 is masked. Of multiple choice, the index of the answer.
        ids_N: int64, the stable index of the example in its split.
        names_N: object array of str, what the source calls them (config.data.id_column).
        pairs_N: object array of str, the second texts: a hypothesis, a question, an answer.
        label_sets: int32 class indices, where an example may have none or several.
        numbers_N: float32, the label where it is a number; NaN is masked.
        choices_N: object array of tuples of str, the answers to choose from.
        negatives_N: object array of tuples of str, passages that do not belong to `texts_N`, as
            those of `pairs_N` do.
        histories_N: object array of str, JSON [[role, content], ...] of the messages before
            `texts_N`, '' without.
        spans: of the texts; int32 [S, 3] of start, stop (characters) and index in `span_labels`.
        span_labels: names.
        words: int32, the stop offset of each word; the words of a text tile it.
        pair_words: of the second texts.
        leaked_N: bool, examples with a copy in another split (audit.py).
        groups_N: int64, which premise, document or author (config.data.group_column) each is of.
        values_NxK: float32, the numbers that came with the texts.
        features_NxK: float32, made by features.py.
        teacher_NxC: float32, a teacher's probabilities of the labels, or its scores of the passage
            and the negatives; NaN where there are none.
        owners_N: int64, ids of the examples that these are windows of (windows.py).
        starts_N: int64, the character at which each window starts in its owner's text.
        given_N: object array of Given, of rows to predict on; None if all are read as they are.
    """

    texts_N: np.ndarray
    labels_N: np.ndarray | None
    ids_N: np.ndarray
    names_N: np.ndarray | None = None
    pairs_N: np.ndarray | None = None
    label_sets: Ragged | None = None
    numbers_N: np.ndarray | None = None
    choices_N: np.ndarray | None = None
    negatives_N: np.ndarray | None = None
    histories_N: np.ndarray | None = None
    spans: Ragged | None = None
    span_labels: tuple[str, ...] = ()
    words: Ragged | None = None
    pair_words: Ragged | None = None
    leaked_N: np.ndarray | None = None
    groups_N: np.ndarray | None = None
    values_NxK: np.ndarray | None = None
    features_NxK: np.ndarray | None = None
    teacher_NxC: np.ndarray | None = None
    owners_N: np.ndarray | None = None
    starts_N: np.ndarray | None = None
    given_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts_N)

    @property
    def all_texts(self) -> list[str]:
        """All that is read of them: the first texts, the second ones, choices, negatives, and the
        messages before."""
        single = [part for part in (self.texts_N, self.pairs_N) if part is not None]
        several = [part for part in (self.choices_N, self.negatives_N) if part is not None]
        turns = () if self.histories_N is None else map(json.loads, filter(None, self.histories_N))
        before = (content for row in turns for _, content in row)
        chain = itertools.chain.from_iterable
        return [*chain(single), *chain(chain(several)), *before]

    @property
    def leaked_ids(self) -> np.ndarray:
        """Ids of the examples with a copy in another split; none where that was not looked for."""
        return self.ids_N[:0] if self.leaked_N is None else self.ids_N[self.leaked_N]

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples of those indices, in their order; a mask of N works as well."""
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        taken = {
            name: part.take(indices) if isinstance(part, Ragged) else part[indices]
            for name, part in vars(self).items()
            if name != "span_labels" and part is not None
        }
        return dataclasses.replace(self, **taken)

    def without_features(self) -> "Examples":
        """Returns the examples as they are before features are made."""
        return dataclasses.replace(self, features_NxK=None)

    def as_given(self) -> "Examples":
        """Returns the examples with the texts of `given_N`, to be shown to whoever gave them."""
        if self.given_N is None:
            return self
        fields = {"texts_N": "text", "pairs_N": "pair", "choices_N": "choices"}
        fields["negatives_N"] = "negatives"
        shown = {
            name: object_array([getattr(given.record, field) for given in self.given_N])
            for name, field in (fields | {"histories_N": "history"}).items()
            if getattr(self, name) is not None
        }
        return dataclasses.replace(self, **shown)

    def span_as_given(self, row: int, start: int, stop: int) -> tuple[int, int]:
        """Returns where texts_N[row][start:stop] stands in the text as it was given."""
        if self.given_N is None:
            return start, stop
        return self.given_N[row].alignment.to_source(start, stop)

    def first(self, count: int) -> "Examples":
        """Returns the first `count` examples."""
        return self.take(np.arange(min(count, len(self))))


def object_array(items: Sequence) -> np.ndarray:
    """Returns an object array [N] of the items, arrays of one shape included."""
    return np.fromiter(items, object, len(items))
