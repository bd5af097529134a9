"""Tables of characters, .csv and .tsv alike, to rows: one decision on delimiter, quotes and lines.

Here: what pandas, Excel, `datasets`, R and Python's csv module write, and files written without
quotes. Not here: bytes to characters (encodings.py), nor what the columns mean (sources.py). Called
by formats.py, and by evaluation/label_issues.py for a review that went through a spreadsheet.

What is decided, over the whole file:

- Line ends: those of the first line; a carriage return inside a line belongs to the text.
- Delimiter: that of `_NAMES` which gives most rows the header's width; of equals the suffix's.
- Quotes: RFC 4180's, or characters of the text. Quotes that are needed (they hold a line end or a
  delimiter, or double a quote) speak for the first; fields that begin with a quote and do not end
  as a quoted one does speak for the second.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from input_pipeline.corpus import encodings
from input_pipeline.corpus.notes import Notes

_NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_SEP_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # of Excel, before the header
_HEAD = 1 << 20  # characters on which the delimiter is decided
_OPENING = re.compile(' *"')
_CLOSING = re.compile(r'[^"]*(?:""[^"]*)*"(?!") *')
_QUOTED = re.compile(r' *"((?:[^"]|"")*)" *')
_END = re.compile(r'(\r\n|\n|\r)|"[^"]*"?')  # a line end, or what quotes keep together
_ESCAPED = re.compile(r'\\"(?!["\s,;|]|$)')
_JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"')
_SHOWN = 6  # names of columns

Lines = Iterable[tuple[int, str]]
Records = Iterator[tuple[int, list[str]]]


class Dialect(NamedTuple):
    """How a table is written."""

    delimiter: str
    quoted: bool  # whether quotes are RFC 4180's
    newline: str  # as encodings.lines takes it
    header: tuple[str, ...]  # names of the columns, '' without; empty where there is no header
    first: int  # the header's line
    ends: str = "\n"  # what ends the first line
    characters: str = ""  # place of the quote that shows that quotes are characters

    @property
    def width(self) -> int:
        """The number of fields up to the last that has a name."""
        return max((i for i, name in enumerate(self.header, 1) if name), default=0)


class _Fault(ValueError):
    """A record that is not quoted as RFC 4180 has it, and the line that it begins in."""

    def __init__(self, line: int, reason: str):
        super().__init__(reason)
        self.line, self.reason = line, reason


def read_rows(
    path: Path, encoding: str, *, notes: Notes, keep_empty: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the first line and the named fields of each row; blank lines are no rows.

    Rows at the end whose fields are all empty, which spreadsheet programs leave, are counted and
    left out.

    Args:
        path: a table with a header, gzipped if it ends in .gz.
        encoding: as encodings.resolve returns it.
        notes: collect what is decided.
        keep_empty: keeps the rows at the end.

    Raises:
        ValueError: naming file and line, for what is no table.
    """
    dialect = _dialect(path, encoding, notes)
    if dialect.header:
        notes.decide(str(path), _prose(dialect, encoding))
    return _rows(path, encoding, dialect, notes, keep_empty)


def _rows(
    path: Path, encoding: str, dialect: Dialect, notes: Notes, keep_empty: bool
) -> Iterator[tuple[int, dict[str, str]]]:
    columns, empty = len(dialect.header), []
    named = [(i, name) for i, name in enumerate(dialect.header) if name]
    blank = {name: "" for _, name in named}
    lines = encodings.lines(path, encoding, newline=dialect.newline)
    try:
        for number, fields in _records(lines, dialect):
            if number <= dialect.first:
                continue
            if not "".join(fields).strip():
                if fields:
                    empty.append(number)
                continue
            if len(fields) != columns and not _fits(fields, dialect):
                raise _ragged(f"{path}:{number}", fields, dialect)
            for place in empty:
                yield place, dict(blank)
            empty.clear()
            if dialect.quoted:
                _count_swallowed(fields, dialect, f"{path}:{number}", notes)
            yield number, {name: fields[i] for i, name in named}
    except _Fault as fault:
        raise ValueError(
            f"{path}:{fault.line}: {fault.reason}; close it, or double each quote inside a quoted "
            'field, as in "他说""好""的"'
        ) from None
    if keep_empty:
        yield from ((place, dict(blank)) for place in empty)
    elif empty:
        said = "{count} rows at the end of tables are empty and left out"
        notes.count(said, f"{path}:{empty[0]}", count=len(empty))


def _dialect(path: Path, encoding: str, notes: Notes) -> Dialect:
    """Decides how a table is written: lines and delimiter by its beginning, quotes by all of it."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    start = encodings.head(path, encoding)
    ends = next((match[1] for match in _END.finditer(start) if match[1]), "\n")
    if _JSON.match(start):
        raise ValueError(f"{path}: it is JSON: name it .json, or pass --config.data.format=json")
    best, most = Dialect("", False, "", (), 0), -1.0
    for newline in ("\r" if ends == "\r" else "\n", ""):  # '' ends them at all of \r, \n and \r\n
        head, size = [], 0
        for number, line in encodings.lines(path, encoding, newline=newline):
            head.append((number, line))
            if (size := size + len(line)) > _HEAD:
                break
        dialect, share = _delimiter(head, newline, "\t" if suffix == ".tsv" else ",")
        if share > most:
            best, most = dialect._replace(ends=ends), share
        if most == 1 or "\r" not in start:
            break
    twice = [name for name in best.header if name and best.header.count(name) > 1]
    if twice:
        raise ValueError(
            f"{path}:{best.first}: two columns are named {twice[0]!r}; rename one, or, if that "
            "line is a row, put a line with the columns' names before it"
        )
    return _with_quotes(best, path, encoding, notes)


def _delimiter(head: Lines, newline: str, default: str) -> tuple[Dialect, float]:
    """Returns the dialect that gives most rows the header's width, and the share of those rows."""
    head = [(number, line) for number, line in head if line.strip()]
    candidates = sorted(_NAMES, key=lambda delimiter: delimiter != default)
    if head and (given := _SEP_LINE.fullmatch(_content(head[0][1]))):
        candidates, head = [given[1]], head[1:]
    judged = [
        _judge(head, Dialect(delimiter, quoted, newline, (), 0))
        for delimiter in candidates  # the suffix's first: max takes the first of equals
        for quoted in (True, False)
    ]
    wide = [(d, share) for d, share in judged if len(d.header) > 1 and share >= 0.5]
    return max(wide or judged[:1], key=lambda judgement: judgement[1])


def _judge(head: Lines, dialect: Dialect) -> tuple[Dialect, float]:
    """Returns the dialect with its header, and the share of the rows that fit it."""
    header, rows, faults = [], [], 0
    try:
        for number, fields in _records(head, dialect):
            if "".join(fields).strip():
                if header:
                    rows.append(fields)
                else:
                    header = [field.strip() for field in fields]
                    dialect = dialect._replace(header=tuple(header), first=number)
    except _Fault:
        faults = 1  # also of a record that the head cuts off
    firsts = {fields[0] for fields in rows if len(fields) == len(header) + 1}
    if rows and len(firsts) == len(rows) and all(map(str.isdecimal, firsts)):
        # R and index_label=False of pandas name all columns but the first, which numbers the rows.
        dialect = dialect._replace(header=("", *header))
    if not rows:
        return dialect, 0.0 if faults else 0.5
    return dialect, sum(_fits(row, dialect) for row in rows) / (len(rows) + faults)


class _Quotes(NamedTuple):
    """What the quotes of a table are like, read as characters."""

    needed: int = 0  # fields in quotes that double a quote, or are empty
    idle: int = 0  # fields in quotes that need none
    misread: int = 0  # fields that begin with a quote, and do not end as a quoted one does
    escaped: int = 0  # lines in which a backslash stands before a quote
    commas: int = 0  # of the needed, those that hold nothing but a comma that calls for quotes
    ragged: int = 0  # the first line that does not fit the header
    places: tuple[str, ...] = ()  # of the first needed, idle, misread and escaped


def _with_quotes(dialect: Dialect, path: Path, encoding: str, notes: Notes) -> Dialect:
    """Decides what quotes are, from all lines of the file."""
    quotes = _count_quotes(dialect, path, encoding)
    if quotes is None:  # who quotes the names quotes all that is text
        return dialect._replace(quoted=True)
    needed, idle, misread, escaped, only_commas, ragged, places = quotes
    if escaped:
        said = (
            '{count} lines of tables hold \\", whose backslash is read as a character of the text; '
            'if it is not, write the table again with quotes doubled ("")'
        )
        notes.count(said, places[3], warn=True, count=escaped)
    if not needed + idle + misread:
        return dialect._replace(quoted=False)
    commas = dialect.delimiter in ",;"  # where quotes without need are quotes by custom
    fault = 0
    if ragged or misread:
        fault = _first_misfit(path, encoding, dialect._replace(quoted=True))
    if ragged:
        quoted = not fault or fault > ragged or (fault == ragged and commas)
    elif misread and fault:  # a damaged table of quoted fields is refused there
        quoted = misread <= needed - only_commas + (idle if commas else 0)
    else:
        quoted = commas or (bool(needed) and not misread)
    if quoted:
        if needed and needed == only_commas and not ragged:
            said = "{count} fields of tables stand in quotes that only a comma calls for; they are "
            notes.count(said + "read without", places[0], warn=True, count=needed)
        return dialect._replace(quoted=True)
    if needed or not misread or not fault:
        said = (
            "{count} fields of tables stand in quotes that are read as characters of the text; if "
            "they are not, put the names of the columns in quotes as well"
        )
        place = next(filter(None, places))
        notes.count(said, place, warn=True, count=needed + idle + misread)
    elif commas:
        said = (
            "{count} fields of tables begin with a quote that does not end them, so that quotes "
            "are read as characters of the text"
        )
        notes.count(said, places[2], warn=True, count=misread)
    return dialect._replace(quoted=False, characters=places[2] or places[1] or places[0])


def _count_quotes(dialect: Dialect, path: Path, encoding: str) -> _Quotes | None:
    """Returns what the quotes of all lines are like, None if those around names are quotes."""
    counts, places, ragged, bare = [0] * 5, [""] * 5, 0, dialect.delimiter != "\t"
    literal, separators = dialect._replace(quoted=False), len(dialect.header) - 1
    for number, line in encodings.lines(path, encoding, newline=dialect.newline):
        if '"' not in line and line.count(dialect.delimiter) == separators:
            bare = bare or "," in line
            continue
        fields = _content(line).split(dialect.delimiter)
        if number <= dialect.first:
            if number == dialect.first and any(map(_OPENING.match, fields)):
                return None
            continue
        kinds = []
        for field in fields:
            if not _OPENING.match(field):
                bare = bare or "," in field
            elif (match := _QUOTED.fullmatch(field)) is None:
                kinds.append(2)
            else:
                needed = not match[1] or '""' in match[1] or "\r" in match[1]
                kinds.append(0 if needed else 4 if "," in field else 1)
        # Empty columns at the end must not make room for what the split has cut in two.
        cut = 2 in kinds and len(fields) != len(dialect.header)
        if not ragged and line.strip() and (cut or not _fits(fields, literal)):
            ragged = number
        if any(_ESCAPED.search(field) for field in fields if field[:1] not in ("[", "{")):  # JSON
            kinds.append(3)
        for kind in kinds:
            counts[kind] += 1
            places[kind] = places[kind] or f"{path}:{number}"
    kind = 1 if bare else 0  # Excel puts all that holds a comma in quotes, between tabs as well
    counts[kind], places[kind] = counts[kind] + counts[4], places[kind] or places[4]
    return _Quotes(*counts[:4], 0 if bare else counts[4], ragged, tuple(places[:4]))


def _first_misfit(path: Path, encoding: str, dialect: Dialect) -> int:
    """Returns the first line of the first record that does not fit, 0 if all do."""
    lines = encodings.lines(path, encoding, newline=dialect.newline)
    try:
        for number, fields in _records(lines, dialect):
            is_row = number > dialect.first and "".join(fields).strip()
            if is_row and not _fits(fields, dialect):
                return number
    except _Fault as fault:
        return fault.line
    return 0


def _fits(fields: Sequence[str], dialect: Dialect) -> bool:
    """Returns whether a row has all named columns, and nothing beyond the last column."""
    beyond = fields[len(dialect.header) :]
    return dialect.width <= len(fields) and not "".join(beyond).strip()


def _records(lines: Lines, dialect: Dialect) -> Records:
    """Yields the first line and the fields of each record, none for a blank line.

    Python's csv module ends a record at a bare carriage return, which pandas leaves unquoted.

    Raises:
        _Fault: a quoted field does not end as one.
    """
    lines = iter(lines)
    for number, line in lines:
        if dialect.quoted and '"' in line:
            yield number, _quoted(number, line, lines, dialect.delimiter)
        else:
            body = _content(line)
            yield number, body.split(dialect.delimiter) if body else []


def _quoted(number: int, line: str, more: Iterator[tuple[int, str]], delimiter: str) -> list[str]:
    fields, place = [], 0
    while True:
        opening = _OPENING.match(line, place)
        if not opening:
            stop = line.find(delimiter, place)
            if stop < 0:
                return [*fields, _content(line[place:])]
            fields.append(line[place:stop])
            place = stop + 1
            continue
        parts, place, size = [], opening.end(), 0
        while not (closing := _CLOSING.match(line, place)):
            parts.append(line[place:])
            size += len(line)
            _, line = next(more, (0, ""))
            place = 0
            if not line or size > encodings.MAX_CHARACTERS:
                raise _Fault(number, "a quoted field is not closed")
        text = "".join((*parts, closing[0].rstrip(" ")[:-1]))
        fields.append(text.replace('""', '"'))
        place = closing.end()
        if line.startswith(delimiter, place):
            place += 1
        elif _content(line[place:]):
            raise _Fault(number, f"a quoted field goes on with {line[place]!r} after its quote")
        else:
            return fields


def _content(line: str) -> str:
    """Returns a line without its end."""
    return line.removesuffix("\n").removesuffix("\r")


def _ragged(where: str, fields: Sequence[str], dialect: Dialect) -> ValueError:
    columns, name = len(dialect.header), _NAMES.get(dialect.delimiter, repr(dialect.delimiter))
    if columns == 1:
        remedy = "if another line names the columns, remove those before it; else put each text in "
        remedy += "quotes" + ", or, where it has no quotes, name the file .tsv" * (name == "comma")
    elif len(fields) < columns:
        remedy = "restore what is missing; a text that holds a line end must be in quotes"
    elif dialect.characters:
        remedy = (
            f"replace the {name} inside a field, or put all fields in quotes and double those "
            f"inside: here quotes are characters, as {dialect.characters} shows"
        )
    else:
        remedy = f"a field that holds a {name} must be in quotes, with quotes inside it doubled"
    if len(fields) == columns + 1 > 2:
        remedy += f", and a first column without a name needs a {name} before the other names"
    names = [*dialect.header[:_SHOWN], *["…"] * (columns > _SHOWN)]
    return ValueError(
        f"{where}: found {len(fields)} fields, but the header has {columns}, separated by {name}: "
        f"{names}; {remedy}"
    )


def _count_swallowed(fields: Sequence[str], dialect: Dialect, where: str, notes: Notes) -> None:
    """Counts a field of several lines, all but the ends of which look like rows themselves."""
    if not any("\n" in field or "\r" in field for field in fields):
        return
    inner = [line for field in fields for line in re.split(r"\r\n|\n|\r", field)[1:-1]]
    wide = [line for line in inner if line.count(dialect.delimiter) == len(dialect.header) - 1]
    if wide and len(dialect.header) > 1 and (len(wide) == len(inner) or dialect.delimiter == "\t"):
        said = "{count} lines inside quoted fields look like rows; if they are, close the quote "
        notes.count(said + "before them", where, warn=True, count=len(wide))


def _prose(dialect: Dialect, encoding: str) -> str:
    """Returns the decision as a line."""
    name = _NAMES.get(dialect.delimiter, repr(dialect.delimiter))
    named = [column for column in dialect.header if column]
    shown = ", ".join([*named[:_SHOWN], *["…"] * (len(named) > _SHOWN)])
    quotes = "quoted fields" if dialect.quoted else "no quotes"
    parts = [
        name if len(dialect.header) > 1 else "one column",
        "quotes are characters" if dialect.characters else quotes,
        f"{dialect.ends!r} line ends".replace("'", ""),
        *([encoding] if not encoding.startswith("utf-8") else []),
        f"{len(named)} column{'s' * (len(named) != 1)} ({shown})",
    ]
    unnamed = len(dialect.header) - len(named)
    if unnamed:
        parts.append(f"{unnamed} without a name not read")
    return ", ".join(parts)
