"""What a run leaves out, cuts or cannot predict of its examples: counted before training.

Here: one such fact, how it is said, and facts that several tasks share. Which there are, each task
says in `limits`. Called by tasks/, and by training/experiment.py with what `limits` yields.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.examples import Examples

_NAMED = 5  # labels that a sentence names
_said: set[str] = set()  # a run and those that it is compared with have the same to say


class Given(NamedTuple):
    """The examples of a split as they come to a task, or a Mixture's to several tasks.

    Attributes:
        examples: labels may be missing where a file is predicted.
        windows: what the task made of them.
        pipeline: of the task.
        training: whether they are learned from.
        complete: whether Task.complete follows.
    """

    examples: Examples
    windows: Examples
    pipeline: TextPipeline
    training: bool
    complete: bool


class Limit(NamedTuple):
    """Something that holds for `count` of `total` things of a split; nothing is said of 0.

    Attributes:
        what: the things and what is the matter, as in 'answers are longer than ...'.
        remedy: what changes that, as in 'raise config.reading.max_answer'.
        first: whether only the first `total` things were looked at.
    """

    count: int
    total: int
    what: str
    remedy: str
    first: bool = False

    def prose(self, split: str) -> str:
        """Says it of a split, as in '3 of 96 validation answers are ...: raise ...'."""
        total = f"the first {self.total:,}" if self.first else f"{self.total:,}"
        return f"{self.count:,} of {total} {split} {self.what}: {self.remedy}."

    def record(self, split: str) -> dict[str, Any]:
        """Returns it for results.json."""
        numbers = {"count": self.count, "total": self.total}
        return {"split": split, **numbers, "sentence": self.prose(split)}


def tell(limits: Iterable[Limit], split: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Says what there is to say of a split, once a process; returns the records of it."""
    found = [limit for limit in limits if limit.count]
    for sentence in (limit.prose(split) for limit in found):
        if sentence not in _said:
            _said.add(sentence)
            say(f"Note: {sentence}")
    return [limit.record(split) for limit in found]


def masked(count: int, total: int, what: str = "label") -> Limit:
    """Says how many examples have no label."""
    return Limit(
        count, total, f"examples have no {what} and count for nothing", "label them, or remove them"
    )


def untaught(
    given: np.ndarray, taught: Collection[int], labels: Sequence[str], things: str
) -> Iterator[Limit]:
    """Yields how many things have a label that no training example has.

    Args:
        given: indices of the labels of all things.
        taught: those of the training split.
        labels: names.
        things: what carries the labels: 'examples', 'spans'.
    """
    new = ~np.isin(given, list(taught))
    if new.any():
        names = _names([labels[c] for c in np.unique(given[new])])
        yield Limit(
            int(new.sum()),
            len(given),
            f"{things} are of a kind that no training example has ({names}) and will hardly be "
            "predicted",
            "add training examples of it, or raise config.data.max_train_examples",
        )


def unused(taught: Collection[int], labels: Sequence[str]) -> Iterator[Limit]:
    """Yields how many labels no training example has."""
    absent = [label for c, label in enumerate(labels) if c not in taught]
    yield Limit(
        len(absent),
        len(labels),
        f"labels have no example ({_names(absent)}) and will hardly be predicted",
        "add training examples of them, raise config.data.max_train_examples, or take them out of "
        "config.data.labels",
    )


def _names(labels: Sequence[str]) -> str:
    more = len(labels) - _NAMED
    return ", ".join(labels[:_NAMED]) + (f" and {more} more" if more > 0 else "")
