"""Files of every format to rows: dicts from column names to values, each with its place.

Here: deciding a file's format, and reading TXT and Parquet. Not here: bytes to characters
(encodings.py), CSV and TSV (tables.py), CoNLL (conll.py), JSON (json_files.py), three formats of
CLUE (clue_formats.py), nor what the columns mean (sources.py).

The rows of the formats in `FIXED` have its columns, whatever config.data names.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.corpus import clue_formats, conll, encodings, json_files, tables
from input_pipeline.corpus.notes import Misfit, Notes

_TABLES = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
FORMATS = (*_TABLES, "conll", "squad", "flag_embedding", *clue_formats.FORMATS)
_NAMED = {"id": "id", "group": "group"}
_CHOICE = {"text": "text", "label": "answer", **_NAMED}
FIXED = {  # field of a record -> column
    "txt": {"text": "text"},
    "conll": {"text": "text", "spans": "spans"},
    "squad": {"text": "context", "pair": "question", "spans": "answers", **_NAMED},
    "flag_embedding": {"text": "query", "pair": "pos", "negatives": "neg", **_NAMED},
    "c3": {"pair": "question", "choices": "choice", **_CHOICE},
    "chid": {"choices": "candidates", **_CHOICE},
    "wsc": {"text": "text", "label": "label", "id": "id"},
}
_MAGIC = {  # first bytes of what no format reads, and what to do
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV",
    b"\x1f\x8b": "packed by gzip: add .gz to its name",
    b"BZh": "packed by bzip2: unpack it",
    b"\xfd7zXZ": "packed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it",
    b"PAR1": "Parquet: name it .parquet, or pass --config.data.format=parquet",
    b"ARROW1": "Arrow: write it as Parquet",
    b"\xff\xff\xff\xff": "Arrow: write it as Parquet, by Dataset.to_parquet of `datasets`",
}

# Its line, or number in Parquet, and its columns, or what is wrong with them.
Row = tuple[int | str, dict[str, Any] | Misfit]


def format_of(path: Path, declared: str, encoding: str) -> tuple[str, str]:
    """Returns which of FORMATS a file has, and its encoding ('' for Parquet).

    A .json file is 'jsonl' if its first line is an object and not all there is, 'json' if it is a
    list, and 'squad' otherwise.

    Args:
        path: the file.
        declared: config.data.format; '' goes by the suffix, with or without .gz.
        encoding: config.data.encoding.

    Raises:
        ValueError: if the format is unknown, the file is empty, packed or a workbook, or not in
            that encoding.
    """
    kind = declared or encodings.suffix_of(path)
    known = kind in FORMATS
    first = encodings.read_bytes(path, 8) if known or path.suffix.lower() != ".gz" else b""
    for magic, content in _MAGIC.items():
        if kind != "parquet" and first.startswith(magic):
            raise ValueError(f"{path}: it is {content}")
    if not known:
        found = f"its suffix is {kind!r}; rename the file, or name its format"
        if declared:
            found = f"config.data.format is {declared!r}; pass another"
        expected = f"one of {', '.join(FORMATS)}, such as --config.data.format=conll"
        raise ValueError(f"{path}: {found}; expected {expected}")
    if not first:
        raise ValueError(f"{path}:1: the file is empty; fill it, or leave it out of config.data")
    if kind == "parquet":
        return kind, ""
    encoding = encodings.resolve(path, encoding)
    return (json_files.kind_of(path, encoding) if kind == "json" else kind), encoding


def read_rows(
    path: Path,
    kind: str,
    *,
    encoding: str,
    columns: Iterable[str],
    notes: Notes,
    annotated: bool = True,
    answers: Sequence[Path] = (),
) -> Iterator[Row]:
    """Yields the rows of a file in their order.

    In tables and JSONL a blank line is no row; in TXT each line is one.

    Args:
        path: a file, gzipped if it ends in .gz.
        kind: the format, from `format_of`.
        encoding: what encodings.resolve returned; Parquet needs none.
        columns: those that Parquet must read; other formats give all that they have.
        notes: collect what is decided; of a table it is there before the first row.
        annotated: False reads CoNLL without tags and JSON without answers as well, and keeps empty
            rows at the end of tables.
        answers: files of ChID's answers.

    Raises:
        ValueError: naming file and line, for whatever is not in that format.
    """
    if kind in ("csv", "tsv"):
        return tables.read_rows(path, encoding, notes=notes, keep_empty=not annotated)
    if encoding and not encoding.startswith("utf-8"):
        notes.decide(str(path), encoding)
    if kind == "parquet":
        return _parquet_rows(path, columns)
    if kind == "txt":
        return _text_lines(path, encoding, notes)
    if kind == "conll":
        return conll.read_rows(path, encoding, annotated, notes)
    if kind in clue_formats.FORMATS:
        return clue_formats.read_rows(path, kind, encoding, annotated=annotated, answers=answers)
    if kind == "flag_embedding":
        return json_files.positive_rows(path, encoding)
    if kind == "squad":
        return json_files.squad_rows(path, encoding, annotated)
    return json_files.object_rows(path, encoding, kind)


def _text_lines(path: Path, encoding: str, notes: Notes) -> Iterator[Row]:
    """Yields each line; a carriage return alone ends one where most lines end so."""
    start = encodings.read_text(path, encoding, size=1 << 20)
    ends = start.count("\r") - start.count("\r\n") > start.count("\n")
    if ends:
        notes.decide(str(path), "lines end at '\\r' as well")
    tabs = {line.count("\t") for line in re.split("[\r\n]+", start)[:20] if line.strip()}
    if len(tabs) == 1 and tabs != {0}:
        sentence = "{count} files of lines hold equally many tabs in each; name the file .tsv if"
        notes.count(f"{sentence} it is a table with a header", str(path), warn=True)
    for number, line in encodings.lines(path, encoding, newline="" if ends else "\n"):
        text = line.removesuffix("\n").removesuffix("\r")
        if "\r" in text.rstrip("\r"):
            sentence = (
                "{count} lines hold a '\\r', which stays in the text; if it ends lines, write"
            )
            notes.count(f"{sentence} '\\n' for it", f"{path}:{number}", warn=True)
        yield number, {"text": text}


def _parquet_rows(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    from pyarrow import ArrowException, BufferReader, parquet

    packed = path.suffix.lower() == ".gz"
    try:
        file = parquet.ParquetFile(BufferReader(encodings.read_bytes(path)) if packed else path)
        present = file.schema_arrow.names
        wanted = [name for name in columns if name in present]
        # Without any of the columns, the one row shows which there are.
        batches = file.iter_batches(columns=wanted or present, batch_size=10_000)
        yield from enumerate(itertools.chain.from_iterable(b.to_pylist() for b in batches), start=1)
    except (ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not Parquet that can be read ({error}); write it again"
        ) from None
