"""Tables of characters, .csv and .tsv alike, to rows: one decision on delimiter, quotes and lines.

Here: what pandas, Excel, `datasets`, R and Python's csv module write, and files written without
quotes. Not here: bytes to characters (encodings.py), nor what the columns mean (sources.py).

What is decided, over the whole file:

- Line ends: those of the first line; a carriage return inside a line belongs to the text.
- Delimiter: that of `_NAMES` which gives most rows the header's width; of equals the suffix's.
- Quotes: RFC 4180's, or characters of the text. Quotes that are needed (they hold a line end or a
  delimiter, or double a quote) speak for the first; fields that begin with a quote and do not end
  as a quoted one does speak for the second.
"""

import re
from collections import Counter
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
    """A record that is not quoted as RFC 4180 has it: the line that it begins in, and why."""


def read_rows(
    path: Path, encoding: str, *, notes: Notes, keep_empty: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the first line and the named fields of each row; blank lines are no rows.

    Rows at the end whose fields are all empty, which spreadsheet programs leave, are counted and
    left out.

    Args:
        path: a table with a header, gzipped if it ends in .gz.
        encoding: what encodings.resolve returned.
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
    empty: list[int] = []  # rows that are dropped if no other follows them
    named = [(i, name) for i, name in enumerate(dialect.header) if name]
    blank = {name: "" for _, name in named}
    lines = encodings.lines(path, encoding, newline=dialect.newline)
    try:
        for number, fields in _records(lines, dialect):
            if number <= dialect.first:
                continue
            if not "".join(fields).strip():
                empty += [number] if fields else []
                continue
            if not _fits(fields, dialect):
                raise _ragged(f"{path}:{number}", fields, dialect)
            yield from ((place, dict(blank)) for place in empty)
            empty.clear()
            if dialect.quoted:
                _count_swallowed(fields, dialect, f"{path}:{number}", notes)
            yield number, {name: fields[i] for i, name in named}
    except _Fault as fault:
        line, reason = fault.args
        remedy = 'close it, or double each quote inside a quoted field, as in "他说""好""的"'
        raise ValueError(f"{path}:{line}: {reason}; {remedy}") from None
    if keep_empty:
        yield from ((place, dict(blank)) for place in empty)
    elif empty:
        sentence = "{count} rows at the end of tables are empty and left out"
        notes.count(sentence, f"{path}:{empty[0]}", count=len(empty))


def _dialect(path: Path, encoding: str, notes: Notes) -> Dialect:
    """Decides how a table is written: lines and delimiter by its beginning, quotes by all of it."""
    start = encodings.read_text(path, encoding, size=_HEAD)
    ends = next((match[1] for match in _END.finditer(start) if match[1]), "\n")
    if _JSON.match(start):
        raise ValueError(f"{path}: it is JSON: name it .json, or pass --config.data.format=json")
    default = "\t" if encodings.suffix_of(path) == "tsv" else ","
    best, most = Dialect("", False, "", (), 0), -1.0
    for newline in ("\r" if ends == "\r" else "\n", ""):  # '' ends them at all of \r, \n and \r\n
        head, size = [], 0
        for number, line in encodings.lines(path, encoding, newline=newline):
            head.append((number, line))
            if (size := size + len(line)) > _HEAD:
                break
        dialect, share = _delimiter(head, newline, default)
        if share > most:
            best, most = dialect._replace(ends=ends), share
        if most == 1 or "\r" not in start:
            break
    if twice := [name for name in best.header if name and best.header.count(name) > 1]:
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
    rows, faults = [], 0
    try:
        for number, fields in _records(head, dialect):
            if not "".join(fields).strip():
                continue
            if dialect.first:
                rows.append(fields)
            else:
                header = tuple(field.strip() for field in fields)
                dialect = dialect._replace(header=header, first=number)
    except _Fault:
        faults = 1  # also of a record that the head cuts off
    firsts = {fields[0] for fields in rows if len(fields) == len(dialect.header) + 1}
    if rows and len(firsts) == len(rows) and all(map(str.isdecimal, firsts)):
        # R and index_label=False of pandas name all columns but the first, which numbers the rows.
        dialect = dialect._replace(header=("", *dialect.header))
    if not rows:
        return dialect, 0.0 if faults else 0.5
    return dialect, sum(_fits(row, dialect) for row in rows) / (len(rows) + faults)


def _with_quotes(dialect: Dialect, path: Path, encoding: str, notes: Notes) -> Dialect:
    """Decides what quotes are, from all lines of the file."""
    quotes = _count_quotes(dialect, path, encoding)
    if quotes is None:  # who quotes the names quotes all that is text
        return dialect._replace(quoted=True)
    counts, places, ragged = quotes
    needed, idle, misread = counts["needed"], counts["idle"], counts["misread"]
    needless = counts["comma"]  # of the needed
    if counts["escaped"]:
        sentence = (
            '{count} lines of tables hold \\", whose backslash stays in the text; if it should '
        )
        sentence += 'not, write the table again with quotes doubled ("")'
        notes.count(sentence, places["escaped"], warn=True, count=counts["escaped"])
    if not needed + idle + misread:
        return dialect._replace(quoted=False)
    commas = dialect.delimiter in ",;"  # where quotes without need are quotes by custom
    fault = 0
    if ragged or misread:
        fault = _first_misfit(path, encoding, dialect._replace(quoted=True))
    if ragged:
        quoted = not fault or fault > ragged or (fault == ragged and commas)
    elif misread and fault:  # a damaged table of quoted fields is rejected there
        quoted = misread <= needed - needless + (idle if commas else 0)
    else:
        quoted = commas or (bool(needed) and not misread)
    kinds = [kind for kind in ("misread", "idle", "needed") if kind in places]
    if quoted:
        if needed and needed == needless and not ragged:
            sentence = "{count} fields of tables are in quotes that only a comma calls for; they"
            notes.count(f"{sentence} are read without", places["needed"], warn=True, count=needed)
        return dialect._replace(quoted=True)
    if needed or not misread or not fault:
        sentence = "{count} fields of tables are in quotes that are read as characters of the "
        sentence += "text; if they are not, put the names of the columns in quotes as well"
        notes.count(sentence, places[kinds[-1]], warn=True, count=needed + idle + misread)
    elif commas:
        sentence = "{count} fields of tables begin with a quote that does not end them, so that "
        sentence += "quotes are read as characters of the text"
        notes.count(sentence, places["misread"], warn=True, count=misread)
    return dialect._replace(quoted=False, characters=places[kinds[0]])


def _count_quotes(
    dialect: Dialect, path: Path, encoding: str
) -> tuple[Counter[str], dict[str, str], int] | None:
    """Returns what the quotes of all lines are like, None if those around names are quotes.

    Returns:
        The count of each kind, the first place of each, and the first line that does not
        fit the header, 0 if all do. The kinds: 'needed' fields in quotes double a quote, or are
        empty; of these, 'comma' ones hold nothing but a comma that calls for quotes; 'idle' ones
        need none; 'misread' ones begin with a quote, and do not end as a quoted one does; in
        'escaped' lines a backslash comes before a quote.
    """
    counts: Counter[str] = Counter()
    places: dict[str, str] = {}
    ragged, bare = 0, dialect.delimiter != "\t"
    literal, separators = dialect._replace(quoted=False), len(dialect.header) - 1
    for number, line in encodings.lines(path, encoding, newline=dialect.newline):
        if '"' not in line and line.count(dialect.delimiter) == separators:
            bare = bare or "," in line
            continue
        fields = _content(line).split(dialect.delimiter)
        if number == dialect.first and any(map(_OPENING.match, fields)):
            return None
        if number <= dialect.first:
            continue
        kinds = []
        for field in fields:
            if not _OPENING.match(field):
                bare = bare or "," in field
            elif (match := _QUOTED.fullmatch(field)) is None:
                kinds.append("misread")
            elif not match[1] or '""' in match[1] or "\r" in match[1]:
                kinds.append("needed")
            else:
                kinds.append("comma" if "," in field else "idle")
        # Empty columns at the end must not make room for what the split has cut in two.
        cut = "misread" in kinds and len(fields) != len(dialect.header)
        if not ragged and line.strip() and (cut or not _fits(fields, literal)):
            ragged = number
        if any(_ESCAPED.search(field) for field in fields if field[:1] not in ("[", "{")):  # JSON
            kinds.append("escaped")
        counts.update(kinds)
        for kind in kinds:
            places.setdefault(kind, f"{path}:{number}")
    # Excel puts all that holds a comma in quotes, between tabs as well, unless another one is bare.
    kind = "idle" if bare else "needed"
    counts[kind] += counts["comma"]
    if "comma" in places:
        places.setdefault(kind, places["comma"])
    if bare:
        del counts["comma"]
    return counts, places, ragged


def _first_misfit(path: Path, encoding: str, dialect: Dialect) -> int:
    """Returns the first line of the first record that does not fit, 0 if all do."""
    lines = encodings.lines(path, encoding, newline=dialect.newline)
    try:
        for number, fields in _records(lines, dialect):
            is_row = number > dialect.first and "".join(fields).strip()
            if is_row and not _fits(fields, dialect):
                return number
    except _Fault as fault:
        return fault.args[0]
    return 0


def _fits(fields: Sequence[str], dialect: Dialect) -> bool:
    """Returns whether a row has all named columns, and nothing beyond the last column."""
    beyond = fields[len(dialect.header) :]
    return dialect.width <= len(fields) and not "".join(beyond).strip()


def _records(lines: Lines, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
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
        if not line.startswith(delimiter, place):
            if not _content(line[place:]):
                return fields
            raise _Fault(number, f"a quoted field goes on with {line[place]!r} after its quote")
        place += 1


def _content(line: str) -> str:
    """Returns a line without its end."""
    return line.removesuffix("\n").removesuffix("\r")


def _ragged(where: str, fields: Sequence[str], dialect: Dialect) -> ValueError:
    columns, name = len(dialect.header), _name(dialect)
    if columns == 1:
        remedy = "if another line names the columns, remove those before it; else put each text in "
        remedy += "quotes" + ", or, where it has no quotes, name the file .tsv" * (name == "comma")
    elif len(fields) < columns:
        remedy = "restore what is missing; a text that holds a line end must be in quotes"
    elif dialect.characters:
        remedy = f"replace the {name} inside a field, or put all fields in quotes and double those "
        remedy += f"inside: here quotes are characters, as {dialect.characters} shows"
    else:
        remedy = f"a field that holds a {name} must be in quotes, with quotes inside it doubled"
    if len(fields) == columns + 1 > 2:
        remedy += f", and a first column without a name needs a {name} before the other names"
    names = [*dialect.header[:_SHOWN], *["…"] * (columns > _SHOWN)]
    widths = f"{len(fields)} fields, but the header has {columns}, separated by {name}"
    return ValueError(f"{where}: found {widths}: {names}; {remedy}")


def _count_swallowed(fields: Sequence[str], dialect: Dialect, where: str, notes: Notes) -> None:
    """Counts a field of several lines, all but the ends of which look like rows themselves."""
    long = (field for field in fields if "\n" in field or "\r" in field)
    inner = [line for field in long for line in re.split(r"\r\n|\n|\r", field)[1:-1]]
    wide = [line for line in inner if line.count(dialect.delimiter) == len(dialect.header) - 1]
    if wide and len(dialect.header) > 1 and (len(wide) == len(inner) or dialect.delimiter == "\t"):
        sentence = "{count} lines inside quoted fields look like rows; if they are, close the quote"
        notes.count(f"{sentence} before them", where, warn=True, count=len(wide))


def _name(dialect: Dialect) -> str:
    return _NAMES.get(dialect.delimiter, repr(dialect.delimiter))


def _prose(dialect: Dialect, encoding: str) -> str:
    """Returns the decision as a line."""
    named = [column for column in dialect.header if column]
    shown = ", ".join([*named[:_SHOWN], *["…"] * (len(named) > _SHOWN)])
    quotes = "quoted fields" if dialect.quoted else "no quotes"
    parts = [
        _name(dialect) if len(dialect.header) > 1 else "one column",
        "quotes are characters" if dialect.characters else quotes,
        f"{dialect.ends!r} line ends".replace("'", ""),
        *([encoding] if not encoding.startswith("utf-8") else []),
        f"{len(named)} column{'s' * (len(named) != 1)} ({shown})",
    ]
    if unnamed := len(dialect.header) - len(named):
        parts.append(f"{unnamed} without a name not read")
    return ", ".join(parts)
