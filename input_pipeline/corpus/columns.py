"""Values of columns to fields of records, and the one message that a bad value gets.

Here: what a text, a label, an answer, a dialogue, a time or a number may look like. Not here: which
column is which (sources.py, which calls this), nor spans (formats.parse_spans).
"""

import decimal
import json
import math
import re
import reprlib
from typing import Any

from input_pipeline.corpus import encodings
from input_pipeline.corpus.formats import Misfit, label_name, transposed, whole
from input_pipeline.corpus.notes import Notes

_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names of them
_LETTERS = "ABCDEFGH"  # that an answer may be called by
_FLOAT = re.compile(r"([+-]?[0-9]{1,18})\.0+")


def text(value: Any, kind: str, where: str, *, separator: str = "") -> str:
    """Returns a text; null is '', and a list of strings is joined with `separator`.

    Raises:
        ValueError: it is neither, too long, or holds half of a surrogate pair.
    """
    value = whole(value)
    if value is None:
        return ""
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        value = separator.join(value)
    if not isinstance(value, str):
        remedy = f"write each {kind} as a string"
        if isinstance(value, dict):  # as of pandas' to_json without orient="records"
            remedy = f"write each row as an object with one {kind}, which is a string"
        raise ValueError(
            f"{where}: the {kind} must be a string, found {reprlib.repr(value)}; {remedy}"
        )
    if len(value) > encodings.MAX_CHARACTERS:
        raise ValueError(
            f"{where}: the {kind} has {len(value):,} characters; expected at most "
            f"{encodings.MAX_CHARACTERS:,}: split it"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half an emoji, such as "\ud83d"
        raise ValueError(
            f"{where}: character {error.start + 1} of the {kind} is half of a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}); remove it or restore its other half"
        ) from None
    return value


def labels(value: Any, column: str, separator: str, where: str, notes: Notes) -> tuple[str, ...]:
    """Returns the different names of classes: of a list, or of a string with `separator`.

    Raises:
        ValueError: there is none, or something else.
    """
    if isinstance(value, str) and separator:
        value = value.split(separator)
    found = []
    for label in value if isinstance(value, list | tuple) else [value]:
        plain = integer(label, notes, where)
        if not isinstance(plain, str | int | None):
            raise ValueError(
                f"{where}: the label must be a string or an integer, found {reprlib.repr(label)} "
                f"in column {column!r}; "
                + (
                    "to predict the number itself, pass --config.data.label_kind=number"
                    if isinstance(plain, float | decimal.Decimal)
                    else f"if it holds spans, pass --config.data.spans_column={column}"
                )
            )
        found.append("" if plain is None else label_name(str(plain), where))
    if not any(found):
        raise ValueError(f"{where}: no label in column {column!r}; fill it in or remove the row")
    return tuple(dict.fromkeys(label for label in found if label))


def integer(value: Any, notes: Notes | None = None, where: str = "") -> Any:
    """Returns an integer that is written as a float, in text or not, as an integer, and counts it.

    Other values are returned as they are, but no number (NaN) as None.
    """
    plain = whole(value)
    if isinstance(value, str) and (found := _FLOAT.fullmatch(value.strip())):
        plain = int(found[1])
    if plain is not value and plain is not None and notes is not None:
        said = "{count} labels or groups written as floats are read as whole numbers, 1.0 as 1"
        notes.count(said, where)
    return plain


def choices(value: Any, column: str, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the choices that a list, or its JSON text, holds; and their names, if they have some.

    Both are stripped. With names it is {"text": [..], "label": ["A", ..]}, or its transpose.

    Raises:
        Misfit: there are fewer than two, an empty one, or two that are equal ('wrong_choices').
        ValueError: it is no list of strings or whole numbers.
    """
    parsed = _parsed(value)
    try:
        items = transposed(parsed) if isinstance(parsed, dict) else parsed
        if not isinstance(items, list | tuple):
            raise TypeError
        named = [item for item in items if isinstance(item, dict)]
        names = [str(integer(item["label"])).strip() for item in named]
        items = [item["text"] for item in named] if named else items
        if not all(isinstance(whole(item), str | int) for item in items):
            raise TypeError
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{where}: the choices in column {column!r} are {reprlib.repr(value)}; expected a list "
            'of strings such as ["甲", "乙"], or {"text": ["甲", "乙"], "label": ["A", "B"]}'
        ) from None
    texts = tuple(text(str(whole(item)), "choice", where).strip() for item in items)
    check_choices(texts, where)
    return texts, tuple(names)


def check_choices(choices: tuple[str, ...], where: str) -> None:
    """Raises Misfit ('wrong_choices') for fewer than two, an empty one, or two that are equal."""
    if len(choices) < 2 or len(set(choices)) < len(choices) or "" in choices:
        raise Misfit(
            "wrong_choices",
            f"{where}: the choices are {reprlib.repr(list(choices))}; expected two or more, all "
            "different and none empty",
        )


def answer(
    value: Any, choices: tuple[str, ...], names: tuple[str, ...], first: int, where: str
) -> str:
    """Returns the number of the answer among the choices, from '0' on.

    Args:
        value: its text; its name; without names a number counted from `first`, or a letter, A for
            the first.
        choices: all of them.
        names: what the source calls them, () if it does not.
        first: config.data.first_choice.
        where: for errors.

    Raises:
        Misfit: it is none of them ('wrong_choices').
    """
    if isinstance(value, str) and value.strip() in choices:
        return str(choices.index(value.strip()))
    name = str(integer(value)).strip()
    if names:
        index = names.index(name) if name in names else -1
    elif re.fullmatch(r"-?[0-9]{1,9}", name):
        index = int(name) - first
    else:
        index = _LETTERS.index(name) if name in tuple(_LETTERS) else -1
    if not 0 <= index < len(choices):
        raise Misfit(
            "wrong_choices",
            f"{where}: the answer {reprlib.repr(value)} is none of the {len(choices)} choices "
            f"{reprlib.repr(list(choices))}; expected its text, "
            + (
                f"or its name, one of {', '.join(names)}"
                if names
                else f"a number from {first} to {first + len(choices) - 1} "
                f"(config.data.first_choice={first}), or a letter"
            ),
        )
    return str(index)


def messages(value: Any, column: str, where: str, *, answered: bool) -> tuple[str, str, str]:
    """Returns the last prompt, its answer, and the messages before as JSON, '' for none.

    Args:
        value: a list, or its JSON text, of {"role": "system", "user" or "assistant", "content": ..}
            or of ShareGPT's {"from": "system", "human" or "gpt", "value": ..}. One of the system
            may come first; then user and assistant take turns.
        column: for errors.
        where: for errors.
        answered: whether the assistant must have the last word; else the answer may be ''.

    Raises:
        Misfit: they come in another order ('messages_out_of_order'), or the assistant says nothing
            ('empty_answer').
        ValueError: it is no such list.
    """
    value = _parsed(value)
    try:
        turns = [_turn(message, where) for message in value]
    except (TypeError, KeyError):
        raise ValueError(
            f"{where}: the messages in column {column!r} are {reprlib.repr(value)}; expected "
            '[{"role": "user", "content": ".."}, {"role": "assistant", "content": ".."}]'
        ) from None
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    turn_taking = ["user", "assistant"] * len(spoken)
    if not spoken or spoken != turn_taking[: len(spoken)] or (answered and len(spoken) % 2):
        raise Misfit(
            "messages_out_of_order",
            f"{where}: the messages are of {', '.join(roles) or 'nobody'}; expected system or not, "
            f"then user and assistant by turns{', assistant at the end' if answered else ''}",
        )
    for role, content in turns:
        if role == "assistant" and not content.strip():
            raise Misfit("empty_answer", f"{where}: a message of the assistant is empty; fill it")
    reply = "" if len(spoken) % 2 else turns.pop()[1]
    prompt = turns.pop()[1]
    return prompt, reply, json.dumps(turns, ensure_ascii=False) if turns else ""


def _turn(message: Any, where: str) -> tuple[str, str]:
    role, content = ("role", "content") if "role" in message else ("from", "value")
    if not isinstance(message[role], str) or not isinstance(message[content], str):
        raise TypeError
    return _ROLES.get(message[role], message[role]), text(message[content], "message", where)


def _parsed(value: Any) -> Any:
    """Returns what a string holds as JSON, as a column of CSV must; the string if that is none."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def name(value: Any, column: str, where: str) -> str:
    """Returns a string or an integer as a string; null is ''.

    Raises:
        ValueError: it is something else.
    """
    value = whole(value)
    if not isinstance(value, str | int | None):
        raise ValueError(
            f"{where}: expected a string or an integer in column {column!r}, found {value!r}"
        )
    return "" if value is None else text(str(value), column, where)


def time(value: Any, column: str, where: str) -> str:
    """Returns a time whose sorting is chronological: '2020/9/1' becomes '2020/09/01'.

    Raises:
        ValueError: it does not begin with the year.
    """
    if hasattr(value, "isoformat"):  # a date of Parquet's
        return value.isoformat()
    found = name(integer(value), column, where).strip()
    if not found or found.isdecimal():  # a year, or seconds since 1970
        return found and found.zfill(20)
    if not re.match(r"\d{4}\D", found):
        raise ValueError(
            f"{where}: found the time {found!r} in column {column!r}, expected the year first, as "
            "in 2020-09-01 12:30, or a whole number; write it so"
        )
    found = re.sub(r"(?<=\d)[/.年月](?=\d)", "-", found).replace("日", "")
    return re.sub(r"(?<!\d)\d(?!\d)", r"0\g<0>", found)


def number(value: Any, column: str, where: str, *, otherwise: str) -> float:
    """Returns a finite number, as float32 can hold it.

    Raises:
        ValueError: it is none; `otherwise` says what to do but fill it in.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not abs(found) < 3.4e38:  # NaN is not less
        raise ValueError(
            f"{where}: expected a number in column {column!r}, found {value!r}; fill it in or "
            f"{otherwise}"
        )
    return found
