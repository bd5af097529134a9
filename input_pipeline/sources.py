"""Reads labelled text from files: JSONL, CSV, TSV and TXT become records that know their line.

Here: finding the files, decoding them, and naming the line of whatever is wrong in them. Not here:
judging or changing the text (cleaning.py). Called by preparation.py.
"""

import codecs
import csv
import difflib
import glob
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")  # .json as CLUE ships it: an object a line

# The most frequent characters of modern Chinese, simplified and traditional: text decoded with the
# right encoding is full of them, with a wrong one it holds next to none.
_FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
    "年过发后作里好很没看家都小么还这個們來為國說時會對於著過發後裡沒還，。！？、：；"
)
_ENCODINGS = ("utf-8", "gb18030", "big5", "utf-16-le", "utf-16-be")


class Record(NamedTuple):
    """One row of a source; `where` is 'file:line' of its first line."""

    text: str
    label: str | None
    where: str


def find_files(pattern: str) -> list[Path]:
    """Returns the files that a path or glob names, sorted.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if one has a suffix that `read` does not know.
    """
    path = Path(pattern).expanduser()
    found = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise FileNotFoundError(f"no file matches {str(path.absolute())!r}: name a file or a glob")
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{file}: cannot read '{file.suffix}'; it must be one of {SUFFIXES}")
    return files


def read(
    pattern: str, *, text_column: str, label_column: str | None, encoding: str
) -> Iterator[Record]:
    """Yields every row of the files that `pattern` names, in file and line order.

    JSONL holds an object a line. CSV is RFC 4180 with a header: quoted fields may hold commas,
    quotes and newlines. TSV has a header and no quoting. In all three a blank line is no row. TXT
    holds an unlabelled text a line. A null text becomes '', so that no row vanishes here.

    Args:
        pattern: a path or glob ('**' included).
        text_column: column or key of the text.
        label_column: column or key of the label, a string or an integer; None reads no labels.
        encoding: of the files; a byte order mark is accepted.

    Raises:
        FileNotFoundError: if no file matches.
        ValueError: naming file and line, for anything that cannot be read as asked.
    """
    for path in find_files(pattern):
        content = decode(path.read_bytes(), encoding, name=str(path))
        suffix = path.suffix.lower()
        if suffix == ".txt":
            if label_column is not None:
                raise ValueError(
                    f"{path}: a .txt file has no labels; give them in a .csv, .tsv or .jsonl file"
                )
            lines = content.removesuffix("\n").split("\n") if content else []
            for number, line in enumerate(lines, start=1):
                yield Record(line.removesuffix("\r"), None, f"{path}:{number}")
            continue
        if suffix in (".csv", ".tsv"):
            rows = _table_rows(content, path, "\t" if suffix == ".tsv" else ",")
        else:
            rows = _json_rows(content, path)
        for number, row in rows:
            where = f"{path}:{number}"
            text = _value(row, text_column, "text_column", where)
            label = None
            if label_column is not None:
                label = _value(row, label_column, "label_column", where)
                label = _checked_label(label, label_column, where)
            yield Record(_checked_text(text, where), label, where)


def decode(raw: bytes, encoding: str, *, name: str) -> str:
    """Decodes the bytes of the file `name` without its byte order mark.

    Raises:
        ValueError: if they are not in `encoding`, saying where and what they seem to be in.
    """
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise ValueError(
            f"config.data.encoding: Python knows no text encoding {encoding!r}; try 'utf-8'"
        ) from None
    except UnicodeDecodeError as error:
        guess = guess_encoding(raw)
        if guess is None:
            remedy = "what it is could not be told; convert it to UTF-8"
        elif codecs.lookup(guess) == codecs.lookup(encoding):
            remedy = f"it seems to be damaged {guess}; repair that line"
        else:
            remedy = f"it seems to be {guess}: pass --config.data.encoding={guess}"
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}:{line}: not {encoding}, found byte 0x{raw[error.start]:02x} at offset "
            f"{error.start}; {remedy}"
        ) from None


def guess_encoding(raw: bytes) -> str | None:
    """Returns the encoding in which `raw` reads most like Chinese, or None if it does in none."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"

    def likeness(encoding: str) -> float:
        foreign = [c for c in raw[: 1 << 16].decode(encoding, errors="replace") if not c.isascii()]
        return sum(c in _FREQUENT for c in foreign) / max(1, len(foreign))

    best = max(_ENCODINGS, key=likeness)
    return best if likeness(best) > 0.1 else None  # Chinese prose has 0.3 and more, noise 0.02


def _json_rows(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): a JSON string may hold U+2028 and its like unescaped.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not JSON at column {error.colno} ({error.msg}); "
                "expected one object a line"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}:{number}: expected one object a line, found a {type(row).__name__}"
            )
        yield number, row


def _table_rows(content: str, path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    # strict: otherwise a quote that is never closed would swallow the rest of the file in silence.
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    header: list[str] | None = None
    first_line = 1
    try:
        for fields in reader:
            number, first_line = first_line, reader.line_num + 1
            if header is None:
                header = [name.strip() for name in fields]
            elif fields:
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}:{number}: found {len(fields)} fields, but the header has "
                        f"{len(header)}: {header}; a field that holds {delimiter!r} must be "
                        + ("replaced: TSV has no quotes" if delimiter == "\t" else 'in "quotes"')
                    )
                yield number, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path}:{first_line}: not CSV ({error}); look for a quote that is not closed, or not "
            "doubled inside a quoted field"
        ) from None
    if header is None:
        raise ValueError(f"{path}:1: the file is empty; expected a header with the column names")


def _value(row: dict[str, Any], column: str, key: str, where: str) -> Any:
    if column in row:
        return row[column]
    near = difflib.get_close_matches(column, row, n=1)
    hint = near[0] if near else "NAME"
    raise ValueError(
        f"{where}: no column {column!r}; found {_listed(row)}; "
        f"pass --config.data.{key}={hint}" + (" (the nearest)" if near else "")
    )


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _checked_text(text: Any, where: str) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{where}: the text must be a string, found {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half an emoji, such as "\ud83d"
        raise ValueError(
            f"{where}: character {error.start + 1} of the text is half of a surrogate pair "
            f"(\\u{ord(text[error.start]):04x}); remove it or restore its other half"
        ) from None
    return text


def _checked_label(label: Any, column: str, where: str) -> str:
    if label is None or not str(label).strip():
        raise ValueError(f"{where}: no label in column {column!r}; fill it in or remove the row")
    if not isinstance(label, str | int):
        raise ValueError(f"{where}: the label must be a string or an integer, found {label!r}")
    return str(label).strip()
