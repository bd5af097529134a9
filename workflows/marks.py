"""What a person marked in a review: training without those examples."""

import hashlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.overrides import companion
from input_pipeline.corpus import columns, encodings, tables
from input_pipeline.corpus.notes import Notes
from input_pipeline.examples import Examples
from tasks import require

_NEEDED = ("id", "digest", "exclude")


def exclude(examples: Examples, path: str | Path) -> tuple[Examples, int]:
    """Returns the examples without those that a review marks, and the number of these.

    Args:
        examples: of the training split.
        path: CSV with the columns 'id', 'digest' and 'exclude' (1, or 0 or nothing).

    Raises:
        ValueError: columns are missing, a mark is none of these, an id is unknown, a text is not
            the reviewed one, or none or all examples are marked.
        OSError: the file could not be read.
    """
    marked = _read_marks(Path(path))
    rows = {int(id_): row for row, id_ in enumerate(examples.ids_N)}
    for id_, (digest, place) in marked.items():
        if id_ not in rows:
            raise ValueError(
                f"{place}: id {id_} is marked, but no training example has it: review the data "
                "that are trained on (config.data and max_train_examples)"
            )
        if (current := text_digest(examples, rows[id_])) != digest:
            raise ValueError(
                f"{place}: the text of id {id_} has the digest {digest} in the review, but "
                f"{current} in the training split, whose preparation has changed: review the data "
                "again"
            )
    if not marked or len(marked) == len(examples):
        raise ValueError(
            f"config.review.exclude: {path} has a 1 under 'exclude' for {len(marked)} of "
            f"{len(examples)} training examples, expected some but not all: edit it, or leave the "
            "key empty"
        )
    return examples.take(~np.isin(examples.ids_N, list(marked))), len(marked)


def all_examples(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Path] | None:
    """Returns the run that one without the marked examples is compared with; None without marks.

    It is the same run with all examples, and does not open its test split.

    Raises:
        ValueError: for a task that is not about one label for each text.
    """
    if not config.review.exclude:
        return None
    require(config, "REVIEW", "config.review.exclude")
    everything = companion(config)
    everything.review.exclude = ""
    return everything, workdir / "all_examples"


def text_digest(examples: Examples, row: int) -> str:
    """Returns a digest of text and pair that no spreadsheet program reads as a number."""
    pair = "" if examples.pairs_N is None else examples.pairs_N[row]
    content = f"{examples.texts_N[row]}\0{pair}".encode(errors="replace")
    return f"d{hashlib.sha256(content).hexdigest()[:16]}"


def _read_marks(path: Path) -> dict[int, tuple[str, str]]:
    """Returns id -> digest and 'file:line' of the marked rows."""
    if not path.is_file():
        raise FileNotFoundError(
            f"config.review.exclude: no file {path.absolute()}; --mode=review writes one"
        )
    marked, notes = {}, Notes()
    # Spreadsheet programs save in GB18030 or UTF-16, and with other delimiters.
    for line, row in tables.read_rows(path, encodings.resolve(path, "auto"), notes=notes):
        place = f"{path}:{line}"
        if missing := [name for name in _NEEDED if name not in row]:
            raise ValueError(
                f"{place}: no column {', '.join(missing)} among {list(row)}: expected the columns "
                "of the file that --mode=review writes"
            )
        id_, digest, mark = (str(columns.integer(row[name])).strip() for name in _NEEDED)
        if mark not in ("", "0", "1"):
            raise ValueError(f"{place}: 'exclude' is {mark!r}, expected 1, or 0 or nothing")
        if mark == "1":
            if not id_.isdecimal():
                raise ValueError(f"{place}: 'id' is {id_!r}, expected a whole number")
            marked[int(id_)] = digest, place
    notes.report()
    return marked
