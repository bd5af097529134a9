"""JSON files to items with the line that each begins in: JSONL, lists, and SQuAD's documents.

Here: parsing, and the message for what is no JSON. Not here: which of these a file is (formats.py),
nor what the items mean (columns.py, clue_formats.py).
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.corpus import encodings
from input_pipeline.corpus.columns import not_json
from input_pipeline.corpus.notes import Misfit

_ANY = "an object a line, a list of them, or SQuAD's JSON"
_SQUAD = (
    "{'data': [{'paragraphs': [{'context': .., 'qas': [{'id': .., 'question': .., 'answers': "
    "[{'text': .., 'answer_start': ..}]}]}]}]}, a list of objects, or an object a line"
)


def kind_of(path: Path, encoding: str) -> str:
    """Returns 'json' for a list, 'jsonl' where the first line is an object and not all, 'squad'."""
    head = encodings.read_text(path, encoding, size=1 << 20).lstrip()
    if head.startswith("["):
        return "json"
    lines = [line for line in re.split("[\r\n]+", head) if line.strip()]
    for line in lines[:2]:  # the first may be broken
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # a line of an object that has several, or a long one
            continue
        if isinstance(row, dict):
            return "squad" if len(lines) == 1 and isinstance(row.get("data"), list) else "jsonl"
    return "squad"


def object_rows(path: Path, encoding: str, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the objects of a 'jsonl' or 'json' file, with the line that each begins in."""
    read, expected = {
        "jsonl": (json_lines, "one object a line"),
        "json": (json_items, "a list of objects"),
    }[kind]
    for line, row in read(path, encoding):
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{line}: expected {expected}, found a {type(row).__name__}")
        yield line, row


def positive_rows(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any] | Misfit]]:
    """Yields a row for each positive of FlagEmbedding's {"query": .., "pos": [..], "neg": [..]}.

    Those of a query are one group. A row without a positive is a Misfit ('no_positive').
    """
    for line, row in object_rows(path, encoding, "jsonl"):
        positives = row.get("pos")
        if isinstance(positives, str):
            positives = [positives]
        if not isinstance(positives, list | None):
            raise ValueError(f'{path}:{line}: expected "pos": [".."], found {positives!r}')
        group = row.get("group") or row.get("query")
        for positive in positives or [""]:
            if positive:
                yield line, {"neg": [], "id": None, **row, "pos": positive, "group": group}
            else:
                yield line, Misfit("no_positive", f'"pos" is {positives}; expected texts that fit')


def json_lines(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yields what each line that is not blank holds, with the line's number."""
    # No JSON string holds \n or \r, but it may hold U+2028 and its like unescaped.
    for number, line in encodings.lines(path, encoding, newline=""):
        if line.strip():
            yield number, _parsed(line.rstrip("\r\n"), path, "one object a line", line=number)


def json_items(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yields what a list holds, with the line that each item begins in."""
    content = _content(path, encoding)
    decoder = json.JSONDecoder()
    blank = re.compile(r"[\s,]*")
    if not isinstance(_parsed(content, path), list):  # also for its errors: brackets, commas
        raise ValueError(f"{path}:1: expected a list, which begins with [")
    place, line, counted = content.index("[") + 1, 1, 0
    while content[(place := blank.match(content, place).end())] != "]":
        line, counted = line + content.count("\n", counted, place), place
        row, place = decoder.raw_decode(content, place)
        yield line, row


def squad_rows(
    path: Path, encoding: str, annotated: bool
) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yields a row per question, whose place is 'line (id)'."""
    content = _content(path, encoding)
    line, counted, found = 1, 0, 0
    try:
        for article in _parsed(content, path)["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for question in paragraph["qas"]:
                    name = str(question.get("id", ""))
                    if found >= 0:  # ids come in the order of reading, if they can be found
                        found = content.find(f'"{name}"', counted)
                    if name and found >= 0:
                        line, counted = line + content.count("\n", counted, found), found
                    row = {"context": context, "question": question["question"], "id": name}
                    row["group"] = group_of(str(context))
                    if annotated:  # SQuAD 2 marks questions without an answer
                        unanswerable = question.get("is_impossible", False)
                        row["answers"] = [] if unanswerable else question["answers"]
                    yield f"{line} ({name})" if name else line, row
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}:{line}: not like SQuAD at {error}; expected {_SQUAD}") from None


def read_document(path: Path) -> Any:
    """Returns what a whole file of JSON holds, in whatever encoding it is."""
    return _parsed(_content(path, encodings.resolve(path, "auto")), path)


def group_of(text: str) -> str:
    """Returns a name for the rows that share a text: they belong on one side of a split."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def _content(path: Path, encoding: str) -> str:
    """Returns a text whose lines end at '\\n', by which they are counted."""
    return encodings.read_text(path, encoding).replace("\r\n", "\n").replace("\r", "\n")


def _parsed(content: str, path: Path, expected: str = _ANY, line: int = 0) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        line = line or getattr(error, "lineno", 1)
        raise ValueError(f"{path}:{line}: {not_json(error)}; expected {expected}") from None
