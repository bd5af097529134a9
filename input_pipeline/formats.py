"""Files of every format to rows: dicts from column names to values, each with its place.

Here: telling a file's format, parsing JSONL, JSON, CSV, TSV, Parquet, TXT, CoNLL and SQuAD, and the
ways in which spans are written. Not here: bytes to characters (encodings.py), nor what the columns
mean (sources.py, which calls this), nor three formats of CLUE (clue_formats.py).

The rows of the formats in `FIXED` have its columns, whatever config.data names.
"""

import csv
import hashlib
import itertools
import json
import operator
import re
import reprlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from input_pipeline import encodings
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
_TAGS = "BIESLUM"  # of BIO, BIOES, BILOU and BMES
_NUMBERED = re.compile(r"(\ufffd+|.)([0-9]{1,4})")  # emoji have been destroyed in Weibo's files


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
        ValueError: if the format is unknown, the file is empty, or not in that encoding.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    kind = declared or suffix.removeprefix(".")
    if kind not in FORMATS:
        found = f"config.data.format is {declared!r}" if declared else f"its suffix is {suffix!r}"
        raise ValueError(
            f"{path}: {found}; expected one of {', '.join(FORMATS)}: rename the file, or say what "
            "it holds with --config.data.format=conll or another"
        )
    if encodings.is_empty(path):
        raise ValueError(f"{path}:1: the file is empty; fill it, or leave it out of config.data")
    if kind == "parquet":
        return kind, ""
    encoding = encodings.resolve(path, encoding)
    return (_json_kind(path, encoding) if kind == "json" else kind), encoding


def read_rows(
    path: Path, kind: str, *, encoding: str, columns: Iterable[str], annotated: bool = True
) -> Iterator[Row]:
    """Yields the rows of a file in their order.

    CSV is RFC 4180 with a header: quoted fields may hold commas, quotes and newlines. TSV has a
    header and no quoting. In these and in JSONL a blank line is no row; in TXT each line is one.

    Args:
        path: a file, gzipped if it ends in .gz.
        kind: as `format_of` returns it.
        encoding: as encodings.resolve returns it; Parquet needs none.
        columns: those that Parquet must read; other formats give all that they have.
        annotated: False reads CoNLL without tags and SQuAD without answers as well.

    Raises:
        ValueError: naming file and line, for whatever is not in that format.
    """
    if kind == "parquet":
        return _parquet_rows(path, columns)
    if kind in ("csv", "tsv"):
        return _table_rows(path, encoding, "\t" if kind == "tsv" else ",")
    if kind == "txt":
        return (
            (number, {"text": line.removesuffix("\n").removesuffix("\r")})
            for number, line in encodings.lines(path, encoding)
        )
    if kind == "conll":
        return _conll_rows(path, encoding, annotated)
    if kind == "jsonl":
        return json_lines(path, encoding)
    return (_squad_rows if kind == "squad" else _json_list)(path, encoding, annotated)


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
    the transpose of that, as TFDS gives it, SQuAD's [{"answer_start": .., "text": ..}, ...], whose
    label is 'answer', and CLUENER's {label: {name: [[first, last], ...]}}, whose ends are
    inclusive; the JSON text of these too.

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
            raise _not_json(error, where, "spans [[start, stop, label], ...]") from None
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
    if isinstance(value, dict) and isinstance(value.get("start"), list):
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, dict):
        for label, names in value.items():
            for name, places in names.items():
                for first, last in places:
                    yield operator.index(first), operator.index(last) + 1, label, name
        return
    for span in value:
        if isinstance(span, dict) and "answer_start" in span:
            start = operator.index(span["answer_start"])
            yield start, start + len(span["text"]), _ANSWER, span["text"]
            continue
        if isinstance(span, dict):
            stop = span["stop"] if "stop" in span else span["end"]
            label = span["label"] if "label" in span else span["tag"]
            span = (span["start"], stop, label)
        start, stop, label = span
        if not isinstance(label, str | int) or not str(label).strip():
            raise TypeError
        yield operator.index(start), operator.index(stop), str(label), None


def _json_kind(path: Path, encoding: str) -> str:
    head = encodings.head(path, encoding).lstrip()
    if head.startswith("["):
        return "json"
    lines = [line for line in head.split("\n") if line.strip()]
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
    # Lines end at \n alone: a JSON string may hold U+2028 and its like unescaped.
    for number, line in encodings.lines(path, encoding):
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
    content = encodings.read_text(path, encoding)
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
    content = encodings.read_text(path, encoding)
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


def _table_rows(path: Path, encoding: str, delimiter: str) -> Iterator[Row]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(encodings.MAX_CHARACTERS)  # Python's own is 131,072
    # strict: otherwise a quote that is never closed would swallow the rest of the file in silence.
    reader = csv.reader(
        (line for _, line in encodings.lines(path, encoding, newline="")),
        delimiter=delimiter,
        quoting=quoting,
        strict=True,
    )
    header: list[str] = []
    first_line = 1
    try:
        for fields in reader:
            number, first_line = first_line, reader.line_num + 1
            if not header:
                header = [name.strip() for name in fields]
                twice = [name for name in header if name and header.count(name) > 1]
                if twice:
                    raise ValueError(f"{path}:1: two columns are named {twice[0]!r}; rename one")
            elif fields:
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}:{number}: found {len(fields)} fields, but the header has "
                        f"{len(header)}: {header}; a field that holds {delimiter!r} must be "
                        + ("replaced: TSV has no quotes" if delimiter == "\t" else 'in "quotes"')
                    )
                if reader.line_num > number:
                    _warn_of_swallowed_rows(fields, len(header), delimiter, f"{path}:{number}")
                yield number, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path}:{first_line}: not CSV ({error}); look for a quote that is not closed, or not "
            "doubled inside a quoted field"
        ) from None


def _warn_of_swallowed_rows(fields: list[str], width: int, delimiter: str, where: str) -> None:
    """Warns of a field of several lines, all but the ends of which look like rows themselves."""
    inner = [line for field in fields for line in field.split("\n")[1:-1]]
    if inner and all(line.count(delimiter) == width - 1 for line in inner):
        warnings.warn(
            f"{where}: a quoted field holds {len(inner)} lines that look like rows; if they are, "
            "close the quote",
            stacklevel=2,
        )


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


def _conll_rows(path: Path, encoding: str, annotated: bool) -> Iterator[Row]:
    """Yields a row per sentence: the text of its tokens and the spans of their tags."""
    sentences: list[list[tuple[int, str, str]]] = [[]]
    for number, line in encodings.lines(path, encoding):
        # Blanks and tabs alone: the full-width blank is a token.
        columns = re.split("[ \t]+", line.strip(" \t\r\n"))
        if columns == [""]:
            sentences.append([])
        elif columns[0] != "-DOCSTART-":
            if annotated and len(columns) < 2:
                raise ValueError(
                    f"{path}:{number}: found {line.rstrip()!r}; expected a token and its tag with "
                    "a tab or blanks between them, and an empty line after each sentence"
                )
            sentences[-1].append((number, columns[0], columns[-1] if annotated else "O"))
    sentences = [sentence for sentence in sentences if sentence]
    numbered = bool(sentences) and all(map(_is_numbered, sentences))
    apart = not numbered and any(len(token) > 1 for rows in sentences for _, token, _ in rows)
    for sentence in sentences:
        yield sentence[0][0], _sentence(sentence, path, numbered, apart)


def _is_numbered(sentence: list[tuple[int, str, str]]) -> bool:
    """Returns whether each token is a character with its place in the word: 科0 技1."""
    found = [_NUMBERED.fullmatch(token) for _, token, _ in sentence]
    return all(found) and int(found[0][2]) == 0


def _sentence(
    sentence: list[tuple[int, str, str]], path: Path, numbered: bool, apart: bool
) -> dict[str, Any]:
    """Returns the row of one sentence.

    Args:
        sentence: line, token and tag of each token.
        path: the file, for errors.
        numbered: leave out what `_is_numbered` finds.
        apart: put a space between two tokens that are Latin where they meet.
    """
    text, spans, previous = "", [], ""
    for number, token, tag in sentence:
        token = _NUMBERED.fullmatch(token)[1] if numbered else token
        if apart and _is_latin(text[-1:]) and _is_latin(token[:1]):
            text += " "
        prefix, _, label = tag.partition("-")
        if tag != "O" and not (prefix in tuple(_TAGS) and label):
            raise ValueError(
                f"{path}:{number}: the tag is {tag!r}; expected O, or a letter of "
                f"{'-, '.join(_TAGS)}- and a label, such as B-PER"
            )
        start, stop = len(text), len(text) + len(token)
        if tag != "O":
            # As conlleval has it, a name also begins where the one before it cannot go on.
            if prefix in "BSU" or previous != label:
                spans.append([start, stop, label])
            spans[-1][1] = stop
        previous = "" if tag == "O" or prefix in "ESLU" else label
        text += token
    return {"text": text, "spans": spans}


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


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
