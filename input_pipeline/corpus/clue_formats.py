"""Three formats of CLUE's (2004.05986) that are more than columns: C3, ChID and CLUEWSC.

Here: their files to rows with the columns of formats.FIXED. Not here: the other tasks of CLUE,
which are columns of JSONL, or SQuAD's JSON (configs/clue.py names them).

    c3    [[[line, ..], [{"question": .., "choice": [..], "answer": ..}, ..], id], ..]: a row per
          question, whose text is the lines of the dialogue or document.
    chid  {"candidates": [..], "content": ["..#idiom000378#..", ..]} a line, and the answers apart
          as {"#idiom000378#": 3, ..}: a row per blank. The text is its whole passage, in which
          `BLANK` replaces it, and `OTHER_BLANK` each other one. FewCLUE's (2107.07498) have one
          passage a line, with its answer: {"content": "..#idiom#..", "answer": 3}.
    wsc   {"target": {"span1_text": .., "span1_index": .., "span2_text": .., "span2_index": ..},
          "label": "true", "text": ..} a line. In the text the noun (span1) is put between _ and _,
          the pronoun (span2) between [ and ], as in CLUE's own baseline.
"""

import operator
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.corpus.json_files import group_of, json_items, json_lines, read_document
from input_pipeline.corpus.notes import Misfit

FORMATS = ("c3", "chid", "wsc")
BLANK = "____"
OTHER_BLANK = "□□□□"
_TAG = re.compile("#idiom[0-9]*#")
_EXPECTED = {
    "c3": '[["line", ..], [{"question": .., "choice": [..], "answer": ..}, ..], "id"]',
    "chid": '{"candidates": ["..", ..], "content": ["..#idiom000378#..", ..]}, or FewCLUE\'s '
    '{"candidates": ["..", ..], "content": "..#idiom#..", "answer": 0}',
    "wsc": '{"target": {"span1_text": .., "span1_index": 0, "span2_text": .., "span2_index": 9}, '
    '"label": "true", "text": ..}',
}


def read_rows(
    path: Path, kind: str, encoding: str, *, annotated: bool, answers: Sequence[Path]
) -> Iterator[tuple[int | str, dict[str, Any] | Misfit]]:
    """Yields the rows of a file in their order.

    Args:
        path: a file, gzipped if it ends in .gz.
        kind: one of FORMATS.
        encoding: what encodings.resolve returned.
        annotated: False reads no answers.
        answers: files of ChID's answers.

    Raises:
        ValueError: naming file and line, for what is not in that format, and a blank of ChID
            without an answer.
    """
    known = _answers(answers)
    make_rows = {"c3": _questions, "chid": _blanks, "wsc": _referents}[kind]
    for line, item in (json_items if kind == "c3" else json_lines)(path, encoding):
        try:
            rows = list(make_rows(item, annotated))
        except Misfit as misfit:
            yield line, misfit
            continue
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            found = f"not like {kind} at {error}"
            raise ValueError(f"{path}:{line}: {found}; expected {_EXPECTED[kind]}") from None
        for row in rows:
            if kind == "chid" and annotated and "answer" not in row:
                if row["id"] not in known:
                    files = ", ".join(map(str, answers)) or "''"
                    raise ValueError(
                        f"{path}:{line}: no answer to {row['id']} in config.data.answers_file="
                        f"{files}; name the file that has it, or a glob, with "
                        "--config.data.answers_file=train_answer.json"
                    )
                row["answer"] = known[row["id"]]
            yield (f"{line} ({row['id']})" if row["id"] else line), row


def _questions(item: Any, annotated: bool) -> Iterator[dict[str, Any]]:
    lines, questions, name = item
    text = "\n".join(lines)
    for number, question in enumerate(questions):
        row = {"text": text, "group": group_of(text)}
        row["id"] = str(question.get("id", f"{name}-{number}"))
        row |= {key: question[key] for key in ("question", "choice", *["answer"] * annotated)}
        yield row


def _blanks(item: Any, annotated: bool) -> Iterator[dict[str, Any]]:
    passages, single = item["content"], {}
    if isinstance(passages, str):  # FewCLUE's
        if (blanks := len(_TAG.findall(passages))) != 1:
            raise ValueError(f"'content', which has {blanks} blanks instead of one")
        passages, single = [passages], {"id": str(item.get("id", ""))}
        single |= {"answer": item["answer"]} if annotated else {}
    for passage in passages:
        for blank in _TAG.finditer(passage):
            parts = (passage[: blank.start()], passage[blank.end() :])
            text = BLANK.join(_TAG.sub(OTHER_BLANK, part) for part in parts)
            row = {"text": text, "candidates": item["candidates"], "id": blank[0]}
            yield row | {"group": group_of(passage)} | single


def _referents(item: Any, annotated: bool) -> Iterator[dict[str, Any]]:
    text, target, marks = item["text"], item["target"], []
    for span, opening, closing in (("span1", "_", "_"), ("span2", "[", "]")):
        name, start = target[f"{span}_text"], operator.index(target[f"{span}_index"])
        stop = start + len(name)
        if not name or start < 0 or text[start:stop] != name:
            message = f"{span} at {start} holds {text[max(0, start) : stop]!r}; expected {name!r}"
            raise Misfit("span_outside_text", message)
        marks += [(start, True, opening), (stop, False, closing)]
    for place, _, mark in sorted(marks, reverse=True):  # from the end; where two meet, "_["
        text = text[:place] + mark + text[place:]
    row = {"text": text, "id": str(item.get("idx", ""))}
    yield row | ({"label": str(item["label"]).lower()} if annotated else {})


def _answers(paths: Sequence[Path]) -> dict[str, int]:
    """Returns the number of the answer to each tag of ChID."""
    known: dict[str, int] = {}
    for path in paths:
        try:
            answers = {tag: operator.index(n) for tag, n in read_document(path).items()}
        except (AttributeError, TypeError):
            expected = 'expected the answers of ChID, {"#idiom000378#": 3, ...}'
            raise ValueError(f"{path}:1: {expected}") from None
        for tag in answers.keys() & known.keys():
            if answers[tag] != known[tag]:
                raise ValueError(
                    f"{path}: {tag} has the answer {answers[tag]} here and {known[tag]} in a file "
                    "before it; prepare the two apart"
                )
        known |= answers
    return known
