"""One schema for whatever is read: what every offline stage takes and returns.

Here: the types alone. sources.py and datasets/ make records; storage.py writes them.
"""

from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of a record's text, `text[start:stop]` in characters, and what it is."""

    start: int
    stop: int
    label: str


class Record(NamedTuple):
    """One example.

    Attributes:
        text: the text; of reading comprehension, the context.
        where: 'file:line' of its first line.
        pair: the second text: a hypothesis, a question, an answer to write. '' where there is none.
        labels: class names; several only where a text can have several, none where unlabelled. Of
            choices, the number of the answer, from '0' on.
        spans: of `text`: entities, words, or the answers to the question.
        group: what must not stand on two sides of a split: a premise, document or author.
        time: when the text was written, in a form whose sorting is chronological.
        values: numbers that come with the text, one per config.data.value_columns.
        split: the split that the source puts it in; '' leaves it to splitting.py.
        name: what the source calls it; need not be unique.
        choices: the answers to choose from.
        negatives: passages that do not belong to the text, whose pair is the one that does.
        number: the label where that is a number.
        history: the messages before `text`, as JSON [[role, content], ...]; '' without.
    """

    text: str
    where: str
    pair: str = ""
    labels: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    group: str = ""
    time: str = ""
    values: tuple[float, ...] = ()
    split: str = ""
    name: str = ""
    choices: tuple[str, ...] = ()
    number: float | None = None
    history: str = ""
    negatives: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, ...]:
        """All that a model reads of it: what has the same is a copy, whatever its labels."""
        return self.text, self.pair, *self.choices, self.history, *self.negatives
