"""Files of every format to rows: dicts from column names to values, each with its place.

Here: telling a file's format, parsing JSONL, JSON, Parquet, TXT and SQuAD, and the ways in which
spans are written. Not here: bytes to characters (encodings.py), CSV and TSV (tables.py), CoNLL
(conll.py), three formats of CLUE (clue_formats.py), nor what the columns mean (sources.py, which
calls this).

The rows of the formats in `FIXED` have its columns, whatever config.data names.
"""

import decimal
import hashlib
import itertools
import json
import math
import operator
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from input_pipeline.corpus import conll, encodings, tables
from input_pipeline.corpus.notes import Notes
from input_pipeline.records import Span

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "txt", "conll", "squad")
FORMATS += ("c3", "chid", "wsc")  # of clue_formats.py
FIXED = {  # what the columns are to sources.py
    "txt": {"text": "text"},
    "conll": {"text": "text", "spans": "spans"},
    "squad": {
        "text": "context",
        "pair": "question",
        "spans": "answers",
        "id": "id",
        "group": "group",
    },
    "c3": {
        "text": "text",
        "pair": "question",
        "label": "answer",
        "choices": "choice",
        "id": "id",
        "group": "group",
    },
    "chid": {
        "text": "text",
        "label": "answer",
        "choices": "candidates",
        "id": "id",
        "group": "group",
    },
    "wsc": {"text": "text", "label": "label", "id": "id"},
}
_ANSWER = "answer"  # the label of SQuAD's spans
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


class Misfit(ValueError):
    """A row whose parts do not fit each other; `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


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
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    kind = declared or suffix.removeprefix(".")
    known = kind in FORMATS
    first = encodings.first_bytes(path) if known or path.suffix.lower() != ".gz" else b""
    if kind != "parquet":
        for magic, what in _MAGIC.items():
            if first.startswith(magic):
                raise ValueError(f"{path}: it is {what}")
    if not known:
        found, remedy = f"its suffix is {suffix!r}", "rename the file, or say what it holds with"
        if declared:
            found, remedy = f"config.data.format is {declared!r}", "pass one of them, such as"
        raise ValueError(
            f"{path}: {found}; expected one of {', '.join(FORMATS)}: {remedy} "
            "--config.data.format=conll"
        )
    if not first:
        raise ValueError(f"{path}:1: the file is empty; fill it, or leave it out of config.data")
    if kind == "parquet":
        return kind, ""
    encoding = encodings.resolve(path, encoding)
    return (_json_kind(path, encoding) if kind == "json" else kind), encoding


def read_rows(
    path: Path,
    kind: str,
    *,
    encoding: str,
    columns: Iterable[str],
    notes: Notes,
    annotated: bool = True,
) -> Iterator[Row]:
    """Yields the rows of a file in their order.

    In tables and JSONL a blank line is no row; in TXT each line is one.

    Args:
        path: a file, gzipped if it ends in .gz.
        kind: as `format_of` returns it.
        encoding: as encodings.resolve returns it; Parquet needs none.
        columns: those that Parquet must read; other formats give all that they have.
        notes: collect what is decided; of a table it is there before the first row.
        annotated: False reads CoNLL without tags and SQuAD without answers as well, and keeps empty
            rows at the end of tables.

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
    if kind == "jsonl":
        return json_lines(path, encoding)
    return (_squad_rows if kind == "squad" else _json_list)(path, encoding, annotated)


def _text_lines(path: Path, encoding: str, notes: Notes) -> Iterator[Row]:
    """Yields each line; a carriage return alone ends one where most lines end so."""
    start = encodings.head(path, encoding)
    alone = start.count("\r") - start.count("\r\n")
    ends = alone > start.count("\n")
    if ends:
        notes.decide(str(path), "lines end at '\\r' as well")
    tabs = {line.count("\t") for line in re.split("[\r\n]+", start)[:20] if line.strip()}
    if len(tabs) == 1 and tabs != {0}:
        said = "{count} files of lines hold equally many tabs in each; name such a file .tsv if it "
        notes.count(said + "is a table with a header", str(path), warn=True)
    for number, line in encodings.lines(path, encoding, newline="" if ends else "\n"):
        text = line.removesuffix("\n").removesuffix("\r")
        if "\r" in text.rstrip("\r"):
            said = "{count} lines hold a '\\r', which stays in the text; if it ends lines, write "
            said += "'\\n' for it"
            notes.count(said, f"{path}:{number}", warn=True)
        yield number, {"text": text}


def label_name(label: str, where: str) -> str:
    """Returns the name of a class or a kind of span, stripped.

    Raises:
        ValueError: it holds what the list of names of a data set cannot.
    """
    name = label.strip()
    if not name.isprintable():  # a line break, or half of a surrogate pair
        raise ValueError(
            f"{where}: the label {label!r} holds a character that cannot be printed; remove it"
        )
    return name


def parse_spans(value: Any, text: str, where: str) -> tuple[tuple[Span, ...], int]:
    """Returns the different spans of `text` that a column holds; they may overlap.

    Read are [[start, stop, label], ...], [{"start": .., "end" or "stop": .., "label": ..}, ...],
    SQuAD's [{"answer_start": .., "text": ..}, ...], whose label is 'answer', one of either or their
    transpose, as TFDS and `datasets` give it, and CLUENER's {label: {name: [[first, last], ...]}},
    whose ends are inclusive; the JSON text of these too.

    Returns:
        The spans, and how many of SQuAD's answers were left out since the text does not have them
        at their place.

    Raises:
        Misfit: if a span is empty or outside its text, or CLUENER's name is not what stands there
            ('span_outside_text'), or no answer stands at its place ('answer_not_in_context').
        ValueError: if it is written in another way.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value.strip() or "[]")
        except (ValueError, RecursionError) as error:
            expected = "spans [[start, stop, label], ...] as JSON; JSONL and Parquet hold any form"
            raise _not_json(error, where, expected) from None
    try:
        found = list(_written_spans(value or ()))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"{where}: the spans are {reprlib.repr(value)}; expected [[start, stop, label], ...] "
            'or [{"start": 0, "end": 2, "label": "name"}, ...] with whole numbers'
        ) from None
    spans = []
    for start, stop, label, name in found:
        label = label_name(label, where)
        inside = 0 <= start < stop <= len(text)
        if inside and name in (None, text[start:stop]):
            spans.append(Span(start, stop, label))
        elif label != _ANSWER or name is None:
            there = repr(text[start:stop]) if inside else "nothing"
            raise Misfit(
                "span_outside_text",
                f"{where}: span [{start}, {stop}) {label!r} holds {there} of a text of "
                f"{len(text)} characters; expected {'some of it' if name is None else repr(name)}",
            )
    if found and not spans:
        raise Misfit(
            "answer_not_in_context",
            f"{where}: no answer stands at its place in the context; expected {found[0][3]!r} at "
            f"{found[0][0]}, found {text[max(0, found[0][0]) : max(0, found[0][1])]!r}",
        )
    return tuple(dict.fromkeys(spans)), len(found) - len(spans)


def _written_spans(value: Any) -> Iterator[tuple[int, int, str, str | None]]:
    """Yields start, stop, label, and what is said to stand there, if that is said."""
    if isinstance(value, dict) and not {"start", "answer_start"}.isdisjoint(value):
        value = transposed(value)
    if isinstance(value, dict):
        for label, names in value.items():
            for name, places in names.items():
                for first, last in places:
                    yield _place(first), _place(last) + 1, label, name
        return
    for span in value:
        if isinstance(span, dict) and "answer_start" in span:
            start = _place(span["answer_start"])
            yield start, start + len(span["text"]), _ANSWER, span["text"]
            continue
        if isinstance(span, dict):
            stop = span["stop"] if "stop" in span else span["end"]
            label = span["label"] if "label" in span else span["tag"]
            span = (span["start"], stop, label)
        start, stop, label = span
        label = whole(label)
        if not isinstance(label, str | int) or not str(label).strip():
            raise TypeError
        yield _place(start), _place(stop), str(label), None


def transposed(value: dict[str, Any]) -> Any:
    """Returns a dict of lists as a list of dicts, of a dict without lists as its only one.

    A dict of dicts, as CLUENER writes spans, is returned as it is.
    """
    if any(isinstance(part, dict) for part in value.values()):
        return value
    if not any(isinstance(part, list | tuple) for part in value.values()):
        return [value]
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _place(value: Any) -> int:
    """Returns a whole number, however it is written; raises TypeError for other things."""
    return operator.index(whole(value))


def whole(value: Any) -> Any:
    """Returns a number without a fraction as an int, no number (NaN) as None, others as they are.

    pandas and Parquet make floats of a column of integers in which a value is missing.
    """
    if isinstance(value, float | decimal.Decimal):
        if value != value:
            return None
        if abs(value) < math.inf and value == int(value):
            return int(value)
    return value


def _json_kind(path: Path, encoding: str) -> str:
    head = encodings.head(path, encoding).lstrip()
    if head.startswith("["):
        return "json"
    lines = [line for line in re.split("[\r\n]+", head) if line.strip()]
    for line in lines[:2]:  # the first may be broken
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # a line of an object that has several, or a long one
            continue
        if isinstance(row, dict):
            whole = len(lines) == 1 and isinstance(row.get("data"), list)
            return "squad" if whole else "jsonl"
    return "squad"


def json_lines(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the object of each line that is not blank, with the line's number."""
    # No JSON string holds \n or \r, but it may hold U+2028 and its like unescaped.
    for number, line in encodings.lines(path, encoding, newline=""):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            raise _not_json(error, f"{path}:{number}", "one object a line") from None
        yield number, _object(row, f"{path}:{number}", "one object a line")


def _json_list(path: Path, encoding: str, annotated: bool) -> Iterator[Row]:
    del annotated
    for line, row in json_items(path, encoding):
        yield line, _object(row, f"{path}:{line}", "a list of objects")


def json_items(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yields what a list holds, with the line that each item begins in."""
    content = _whole(path, encoding)
    decoder = json.JSONDecoder()
    blank = re.compile(r"[\s,]*")
    if not isinstance(document(content, path), list):  # also for its errors: brackets, commas
        raise ValueError(f"{path}:1: expected a list, which begins with [")
    place, line, counted = content.index("[") + 1, 1, 0
    while content[(place := blank.match(content, place).end())] != "]":
        line, counted = line + content.count("\n", counted, place), place
        row, place = decoder.raw_decode(content, place)
        yield line, row


def _squad_rows(path: Path, encoding: str, annotated: bool) -> Iterator[Row]:
    """Yields a row per question, whose place is 'line (id)'."""
    content = _whole(path, encoding)
    line, counted, found = 1, 0, 0
    try:
        for article in document(content, path)["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                group = hashlib.sha256(str(context).encode(errors="replace")).hexdigest()[:16]
                for question in paragraph["qas"]:
                    name = str(question.get("id", ""))
                    if found >= 0:  # ids stand in the order of reading, if they are to be found
                        found = content.find(f'"{name}"', counted)
                    if name and found >= 0:
                        line, counted = line + content.count("\n", counted, found), found
                    row = {"context": context, "question": question["question"], "group": group}
                    row["id"] = name
                    if annotated:  # SQuAD 2 says so where there is no answer
                        unanswerable = question.get("is_impossible", False)
                        row["answers"] = [] if unanswerable else question["answers"]
                    yield f"{line} ({name})" if name else line, row
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}:{line}: not like SQuAD at {error}; expected {{'data': [{{'paragraphs': "
            "[{'context': .., 'qas': [{'id': .., 'question': .., 'answers': [{'text': .., "
            "'answer_start': ..}]}]}]}]}, a list of objects, or an object a line"
        ) from None


def _whole(path: Path, encoding: str) -> str:
    """Returns a text whose lines end at '\\n', by which they are counted."""
    return encodings.read_text(path, encoding).replace("\r\n", "\n").replace("\r", "\n")


def document(content: str, path: Path) -> Any:
    """Returns what a whole file of JSON holds.

    Raises:
        ValueError: naming file and line, it is no JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        where = f"{path}:{getattr(error, 'lineno', 1)}"
        raise _not_json(error, where, "an object a line, a list of them, or SQuAD's JSON") from None


def _parquet_rows(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    from pyarrow import ArrowException, BufferReader, parquet

    try:
        file = parquet.ParquetFile(
            BufferReader(encodings.read_bytes(path)) if path.suffix.lower() == ".gz" else path
        )
        present = file.schema_arrow.names
        wanted = [name for name in columns if name in present]
        # Without any of the columns, the one row tells which there are.
        batches = file.iter_batches(columns=wanted or present, batch_size=10_000)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from enumerate(rows, start=1)
    except (ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not Parquet that can be read ({error}); write it again"
        ) from None


def _object(row: Any, where: str, expected: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected {expected}, found a {type(row).__name__}")
    return row


def _not_json(error: ValueError | RecursionError, where: str, expected: str) -> ValueError:
    if isinstance(error, json.JSONDecodeError):
        found = f"not JSON at column {error.colno} ({error.msg})"
    else:  # such as a number of 5,000 digits or 5,000 brackets
        found = f"not JSON that Python reads ({error})"
    return ValueError(f"{where}: {found}; expected {expected}")
