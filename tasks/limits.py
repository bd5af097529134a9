"""What a run drops, cuts or cannot predict of its examples: counted before training.

Here: one such fact as a sentence, and the facts that several tasks share. Each task yields its own
in `Task.limits`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.examples import Examples

_NAMED = 5  # labels that a sentence names
_said: set[str] = set()  # a run and its companions would repeat each other


class Given(NamedTuple):
    """The examples of a split, or a Mixture's, with what a task made of them.

    Attributes:
        examples: labels may be missing where a file is predicted.
        windows: what the task made of them.
        pipeline: of the task.
        training: whether they are learned from.
        complete: whether Task.complete is called later.
    """

    examples: Examples
    windows: Examples
    pipeline: TextPipeline
    training: bool
    complete: bool


class Limit(NamedTuple):
    """A problem of `count` of `total` things of a split; 0 is not reported.

    Attributes:
        what: the things and their problem, as in 'answers are longer than ...'.
        remedy: as in 'raise config.reading.max_answer'.
        first: whether only the first `total` things were looked at.
    """

    count: int
    total: int
    what: str
    remedy: str
    first: bool = False

    def prose(self, split: str) -> str:
        """Returns the sentence, as in '3 of 96 validation answers are ...: raise ...'."""
        total = f"the first {self.total:,}" if self.first else f"{self.total:,}"
        return f"{self.count:,} of {total} {split} {self.what}: {self.remedy}."


def report(limits: Iterable[Limit], split: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Prints each limit of a split once per process; returns records of them for results.json."""
    records = []
    for limit in limits:
        if limit.count:
            sentence = limit.prose(split)
            if sentence not in _said:
                _said.add(sentence)
                say(f"Note: {sentence}")
            numbers = {"count": limit.count, "total": limit.total}
            records.append({"split": split, **numbers, "sentence": sentence})
    return records


def masked(count: int, total: int, what: str = "label") -> Limit:
    """Returns the limit of examples without a label."""
    what = f"examples have no {what} and count for nothing"
    return Limit(count, total, what, "label them, or remove them")


def untaught(
    labels_T: np.ndarray, taught: Collection[int], labels: Sequence[str], things: str
) -> Iterator[Limit]:
    """Yields the limit of things with a label that no training example has.

    Args:
        labels_T: index of the label of each thing.
        taught: those of the training split.
        labels: names.
        things: what carries the labels: 'examples', 'spans'.
    """
    new_T = ~np.isin(labels_T, list(taught))
    if new_T.any():
        names = _names([labels[c] for c in np.unique(labels_T[new_T])])
        what = f"{things} are of a kind that no training example has ({names})"
        remedy = "add training examples of it, or raise config.data.max_train_examples"
        what += " and will hardly be predicted"
        yield Limit(int(new_T.sum()), len(labels_T), what, remedy)


def unused(taught: Collection[int], labels: Sequence[str]) -> Iterator[Limit]:
    """Yields the limit of labels that no training example has."""
    absent = [label for c, label in enumerate(labels) if c not in taught]
    what = f"labels have no example ({_names(absent)}) and will hardly be predicted"
    remedy = (
        "add training examples of them, raise config.data.max_train_examples, or take them out of "
        "config.data.labels"
    )
    yield Limit(len(absent), len(labels), what, remedy)


def beyond(examples: Examples, most: int, where: str) -> Limit:
    """Returns the limit of negatives beyond the number that is read of each example."""
    negatives_N = () if examples.negatives_N is None else examples.negatives_N
    counts_N = np.array([len(row) for row in negatives_N], int)
    count = int(np.maximum(counts_N - most, 0).sum())
    what = f"negatives are beyond config.embedding.negatives={most} and {where}"
    return Limit(count, int(counts_N.sum()), what, "raise it")


def _names(labels: Sequence[str]) -> str:
    more = len(labels) - _NAMED
    return ", ".join(labels[:_NAMED]) + (f" and {more} more" if more > 0 else "")
