"""Values of columns to fields of records, and the one message that a bad value gets.

Here: what a text, a label, an answer, a dialogue, a time, a number or spans may look like. Not
here: which column is which, and the file and line that go before each message (sources.py).

Every function raises ValueError for what it cannot read, and Misfit for a row to drop and count.
"""

import decimal
import json
import math
import operator
import re
import reprlib
from collections.abc import Iterator
from typing import Any

from input_pipeline.corpus import encodings
from input_pipeline.corpus.notes import Misfit, Notes
from input_pipeline.records import Span

_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names of them
_LETTERS = "ABCDEFGH"  # that an answer may be called by
_FLOAT = re.compile(r"([+-]?[0-9]{1,18})\.0+")
_ANSWER = "answer"  # the label of SQuAD's spans


def text(value: Any, kind: str, *, separator: str = "") -> str:
    """Returns a text; null is '', and a list of strings is joined with `separator`."""
    value = whole(value)
    if value is None:
        return ""
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        value = separator.join(value)
    if not isinstance(value, str):
        # A dict is what pandas' to_json without orient="records" writes.
        remedy = f"write each {kind} as a string" + ", each row as an object" * (
            type(value) is dict
        )
        raise ValueError(f"the {kind} must be a string, found {reprlib.repr(value)}; {remedy}")
    if len(value) > encodings.MAX_CHARACTERS:
        most = f"expected at most {encodings.MAX_CHARACTERS:,}: split it"
        raise ValueError(f"the {kind} has {len(value):,} characters; {most}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half an emoji, such as "\ud83d"
        raise ValueError(
            f"character {error.start + 1} of the {kind} is half of a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}); remove it or restore its other half"
        ) from None
    return value


def labels(value: Any, column: str, separator: str, notes: Notes, where: str) -> tuple[str, ...]:
    """Returns the different names of classes: of a list, or of a string with `separator`."""
    if isinstance(value, str) and separator:
        value = value.split(separator)
    names = []
    for label in value if isinstance(value, list | tuple) else [value]:
        plain = integer(label, notes, where)
        if not isinstance(plain, str | int | None):
            remedy = f"if it holds spans, pass --config.data.spans_column={column}"
            if isinstance(plain, float | decimal.Decimal):
                remedy = "to predict the number itself, pass --config.data.label_kind=number"
            expected = f"the label must be a string or an integer, found {reprlib.repr(label)}"
            raise ValueError(f"{expected} in column {column!r}; {remedy}")
        names.append("" if plain is None else label_name(str(plain)))
    if not any(names):
        raise ValueError(f"no label in column {column!r}; fill it in or remove the row")
    return tuple(dict.fromkeys(filter(None, names)))


def label_name(label: str) -> str:
    """Returns the name of a class or a kind of span, stripped."""
    name = label.strip()
    if not name.isprintable():  # a line break, or half of a surrogate pair, spoils lists of names
        raise ValueError(f"the label {label!r} holds a character that cannot be printed; remove it")
    return name


def whole(value: Any) -> Any:
    """Returns a number without a fraction as an int, NaN as None, other values as they are.

    pandas and Parquet make floats of a column of integers in which a value is missing.
    """
    if isinstance(value, float | decimal.Decimal):
        if value != value:
            return None
        if abs(value) < math.inf and value == int(value):
            return int(value)
    return value


def integer(value: Any, notes: Notes | None = None, where: str = "") -> Any:
    """Returns as an int what is written as a float, in text or not, and counts it in `notes`.

    Other values are returned as they are, but NaN as None.
    """
    plain = whole(value)
    if isinstance(value, str) and (match := _FLOAT.fullmatch(value.strip())):
        plain = int(match[1])
    if plain is not value and plain is not None and notes is not None:
        sentence = "{count} labels or groups written as floats are read as whole numbers, 1.0 as 1"
        notes.count(sentence, where)
    return plain


def choices(value: Any, column: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the choices that a list, or its JSON text, holds; and their names, if they have some.

    Both are stripped. With names it is {"text": [..], "label": ["A", ..]}, or its transpose.
    """
    parsed = _parsed(value)
    try:
        items = _transposed(parsed) if isinstance(parsed, dict) else parsed
        named = [item for item in items if isinstance(item, dict)]
        names = [str(integer(item["label"])).strip() for item in named]
        items = [item["text"] for item in named] if named else items
        strings = all(isinstance(whole(item), str | int) for item in items)
        if not strings or not isinstance(items, list | tuple):
            raise TypeError
    except (TypeError, KeyError, ValueError):
        expected = '["甲", "乙"], or {"text": ["甲", "乙"], "label": ["A", "B"]}'
        raise ValueError(
            f"the choices in column {column!r} are {reprlib.repr(value)}; expected a list of "
            f"strings such as {expected}"
        ) from None
    texts = tuple(text(str(whole(item)), "choice").strip() for item in items)
    check_choices(texts)
    return texts, tuple(names)


def check_choices(choices: tuple[str, ...]) -> None:
    """Raises Misfit ('wrong_choices') for fewer than two, an empty one, or two that are equal."""
    if len(choices) < 2 or len(set(choices)) < len(choices) or "" in choices:
        expected = "expected two or more, all different and none empty"
        raise Misfit("wrong_choices", f"the choices are {reprlib.repr(list(choices))}; {expected}")


def negatives(value: Any, column: str) -> tuple[str, ...]:
    """Returns the passages that a string, a list or its JSON text holds; null and '' hold none."""
    parsed = whole(_parsed(value) if isinstance(value, str) and value[:1] == "[" else value)
    if isinstance(parsed, str) and re.match(r"""\[\s*['"]""", parsed):  # how pandas writes a list
        raise ValueError(
            f"the negatives in column {column!r} are {reprlib.repr(value)}, no list of JSON; write "
            '["甲", "乙"]'
        )
    if isinstance(parsed, str):
        parsed = [parsed] if parsed.strip() else []
    if not isinstance(parsed, list | tuple | None):
        raise ValueError(
            f"the negatives in column {column!r} are {reprlib.repr(value)}; expected a text or a "
            "list of texts"
        )
    return tuple(text(part, "negative") for part in parsed or ())


def answer(value: Any, choices: tuple[str, ...], names: tuple[str, ...], first: int) -> str:
    """Returns the index of the answer among the choices, from '0' on.

    Args:
        value: its text; its name; without names a number counted from `first`, or a letter, A for
            the first.
        choices: all of them.
        names: what the source calls them, () if it does not.
        first: config.data.first_choice.

    Raises:
        Misfit: it is none of them ('wrong_choices').
    """
    if isinstance(value, str) and value.strip() in choices:
        return str(choices.index(value.strip()))
    name = str(integer(value)).strip()
    known = names or tuple(_LETTERS)
    index = known.index(name) if name in known else -1
    expected = f"its name, one of {', '.join(names)}"
    if not names:
        expected = f"a number from {first} to {first + len(choices) - 1} "
        expected += f"(config.data.first_choice={first}), or a letter"
        if re.fullmatch(r"-?[0-9]{1,9}", name):
            index = int(name) - first
    if not 0 <= index < len(choices):
        options = f"the {len(choices)} choices {reprlib.repr(list(choices))}"
        raise Misfit(
            "wrong_choices",
            f"the answer {reprlib.repr(value)} is none of {options}; expected its text, or "
            f"{expected}",
        )
    return str(index)


def messages(value: Any, column: str, *, answered: bool) -> tuple[str, str, str]:
    """Returns the last prompt, its answer, and the messages before as JSON, '' for none.

    Args:
        value: a list, or its JSON text, of {"role": "system", "user" or "assistant", "content": ..}
            or of ShareGPT's {"from": "system", "human" or "gpt", "value": ..}. One of the system
            may come first; then user and assistant take turns.
        column: for errors.
        answered: whether the assistant must have the last word; else the answer may be ''.

    Raises:
        Misfit: they come in another order ('messages_out_of_order'), or an answer is empty
            ('empty_answer').
    """
    value = _parsed(value)
    try:
        turns = [_turn(message) for message in value]
    except (TypeError, KeyError):
        expected = '[{"role": "user", "content": ".."}, {"role": "assistant", "content": ".."}]'
        raise ValueError(
            f"the messages in column {column!r} are {reprlib.repr(value)}; expected {expected}"
        ) from None
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    alternating = ["user", "assistant"] * len(spoken)
    if not spoken or spoken != alternating[: len(spoken)] or (answered and len(spoken) % 2):
        order = "system or not, then user and assistant by turns" + ", assistant last" * answered
        message = f"the messages are of {', '.join(roles) or 'nobody'}; expected {order}"
        raise Misfit("messages_out_of_order", message)
    if any(role == "assistant" and not content.strip() for role, content in turns):
        raise Misfit("empty_answer", "a message of the assistant is empty; fill it")
    reply = "" if len(spoken) % 2 else turns.pop()[1]
    prompt = turns.pop()[1]
    return prompt, reply, json.dumps(turns, ensure_ascii=False) if turns else ""


def _turn(message: Any) -> tuple[str, str]:
    role, content = ("role", "content") if "role" in message else ("from", "value")
    if not isinstance(message[role], str) or not isinstance(message[content], str):
        raise TypeError
    return _ROLES.get(message[role], message[role]), text(message[content], "message")


def _parsed(value: Any) -> Any:
    """Returns what a string holds as JSON, as a column of CSV must; the string if it is none."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def name(value: Any, column: str) -> str:
    """Returns a string or an integer as a string; null is ''."""
    value = whole(value)
    if not isinstance(value, str | int | None):
        raise ValueError(f"expected a string or an integer in column {column!r}, found {value!r}")
    return "" if value is None else text(str(value), column)


def time(value: Any, column: str) -> str:
    """Returns a time whose sorting is chronological: '2020/9/1' becomes '2020-09-01'."""
    if hasattr(value, "isoformat"):  # a date of Parquet's
        return value.isoformat()
    written = name(integer(value), column).strip()
    if not written or written.isdecimal():  # a year, or seconds since 1970
        return written and written.zfill(20)
    if not re.match(r"\d{4}\D", written):
        expected = "the year first, as in 2020-09-01 12:30, or a whole number; write it so"
        raise ValueError(f"found the time {written!r} in column {column!r}, expected {expected}")
    written = re.sub(r"(?<=\d)[/.年月](?=\d)", "-", written).replace("日", "")
    return re.sub(r"(?<!\d)\d(?!\d)", r"0\g<0>", written)


def number(value: Any, column: str, *, otherwise: str) -> float:
    """Returns a finite number, as float32 can hold it; `otherwise` is a remedy for the message."""
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        parsed = math.nan
    if not abs(parsed) < 3.4e38:  # NaN is not less
        expected = f"expected a number in column {column!r}, found {value!r}"
        raise ValueError(f"{expected}; fill it in or {otherwise}")
    return parsed


def spans(value: Any, text: str) -> tuple[tuple[Span, ...], int]:
    """Returns the different spans of `text` that a column holds; they may overlap.

    Read are [[start, stop, label], ...], [{"start": .., "end" or "stop": .., "label": ..}, ...],
    SQuAD's [{"answer_start": .., "text": ..}, ...], whose label is 'answer', one of either or their
    transpose, as TFDS and `datasets` give it, and CLUENER's {label: {name: [[first, last], ...]}},
    whose ends are inclusive; the JSON text of these too.

    Returns:
        The spans, and how many of SQuAD's answers were left out since the text does not have them
        at their place.

    Raises:
        Misfit: a span is empty or outside its text, or CLUENER's name differs from its text
            ('span_outside_text'), or no answer is at its place ('answer_not_in_context').
    """
    if isinstance(value, str):
        try:
            value = json.loads(value.strip() or "[]")
        except (ValueError, RecursionError) as error:
            expected = "spans [[start, stop, label], ...] as JSON; JSONL and Parquet hold any form"
            raise ValueError(f"{not_json(error)}; expected {expected}") from None
    try:
        written = list(_written_spans(value or ()))
    except (KeyError, TypeError, ValueError, AttributeError):
        expected = '[[start, stop, label], ...] or [{"start": 0, "end": 2, "label": "name"}, ...]'
        message = f"the spans are {reprlib.repr(value)}; expected {expected} with whole numbers"
        raise ValueError(message) from None
    fitting = []
    for start, stop, label, name in written:
        label = label_name(label)
        inside = 0 <= start < stop <= len(text)
        if inside and name in (None, text[start:stop]):
            fitting.append(Span(start, stop, label))
        elif label != _ANSWER or name is None:
            there = repr(text[start:stop]) if inside else "nothing"
            expected = "some of it" if name is None else repr(name)
            raise Misfit(
                "span_outside_text",
                f"span [{start}, {stop}) {label!r} holds {there} of a text of {len(text)} "
                f"characters; expected {expected}",
            )
    if written and not fitting:
        start, stop, _, name = written[0]
        raise Misfit(
            "answer_not_in_context",
            f"no answer is at its place in the context; expected {name!r} at {start}, found "
            f"{text[max(0, start) : max(0, stop)]!r}",
        )
    return tuple(dict.fromkeys(fitting)), len(written) - len(fitting)


def _written_spans(value: Any) -> Iterator[tuple[int, int, str, str | None]]:
    """Yields start, stop, label, and the text that should be there, None where it is not given."""
    if isinstance(value, dict) and not {"start", "answer_start"}.isdisjoint(value):
        value = _transposed(value)
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
            span = (span["start"], stop, span["label"] if "label" in span else span["tag"])
        start, stop, label = span
        label = whole(label)
        if not isinstance(label, str | int) or not str(label).strip():
            raise TypeError
        yield _place(start), _place(stop), str(label), None


def _transposed(value: dict[str, Any]) -> Any:
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


def not_json(error: ValueError | RecursionError) -> str:
    """Returns what is wrong with a text that json.loads does not read."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at column {error.colno} ({error.msg})"
    return f"not JSON that Python reads ({error})"  # a number of 5,000 digits, 5,000 brackets
