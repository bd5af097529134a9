"""Three formats of CLUE's (2004.05986) that are more than columns: C3, ChID and CLUEWSC.

Here: their files to rows with the columns of formats.FIXED. Not here: the other tasks of CLUE,
which are columns of JSONL, or SQuAD's JSON (configs/clue.py names them). Called by sources.py.

    c3    [[[line, ..], [{"question": .., "choice": [..], "answer": ..}, ..], id], ..]: a row per
          question, whose text is the lines of the dialogue or document.
    chid  {"candidates": [..], "content": ["..#idiom000378#..", ..]} a line, and the answers apart
          as {"#idiom000378#": 3, ..}: a row per blank. The text is its whole passage, in which
          `BLANK` stands for it, and `OTHER_BLANK` for each other one.
    wsc   {"target": {"span1_text": .., "span1_index": .., "span2_text": .., "span2_index": ..},
          "label": "true", "text": ..} a line. In the text the noun (span1) stands between _ and _,
          the pronoun (span2) between [ and ], as in CLUE's own baseline.
"""

import hashlib
import operator
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.corpus import encodings, formats

FORMATS = ("c3", "chid", "wsc")
BLANK = "____"
OTHER_BLANK = "□□□□"
_TAG = re.compile("#idiom[0-9]+#")
_EXPECTED = {
    "c3": '[["line", ..], [{"question": .., "choice": [..], "answer": ..}, ..], "id"]',
    "chid": '{"candidates": ["..", ..], "content": ["..#idiom000378#..", ..]}',
    "wsc": '{"target": {"span1_text": .., "span1_index": 0, "span2_text": .., "span2_index": 9}, '
    '"label": "true", "text": ..}',
}


def read_rows(
    path: Path, kind: str, *, encoding: str, annotated: bool, answers: Sequence[Path] = ()
) -> Iterator[formats.Row]:
    """Yields the rows of a file in their order.

    Args:
        path: a file, gzipped if it ends in .gz.
        kind: one of FORMATS.
        encoding: as encodings.resolve returns it.
        annotated: False reads no answers.
        answers: files of ChID's answers.

    Raises:
        ValueError: naming file and line, for what is not in that format, and a blank of ChID
            without an answer.
    """
    if kind == "chid" and annotated and not answers:
        raise ValueError(
            f"{path}: ChID keeps its answers apart; name their file, or a glob of them, with "
            "--config.data.answers_file=train_answer.json"
        )
    read = formats.json_items if kind == "c3" else formats.json_lines
    known = _answers(answers) if kind == "chid" and annotated else None
    for line, item in read(path, encoding):
        where = f"{path}:{line}"
        try:
            if kind == "c3":
                rows = list(_questions(item, annotated))
            elif kind == "chid":
                rows = list(_blanks(item))
            else:
                rows = [_referents(item, annotated)]
        except formats.Misfit as misfit:
            yield line, formats.Misfit(misfit.reason, f"{where}: {misfit}")
            continue
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{where}: not like {kind} at {error}; expected {_EXPECTED[kind]}"
            ) from None
        for row in rows:
            if known is not None:
                if row["id"] not in known:
                    raise ValueError(
                        f"{where}: no answer to {row['id']} in config.data.answers_file="
                        f"{', '.join(map(str, answers))}; name the file that has it as well"
                    )
                row["answer"] = known[row["id"]]
            yield (f"{line} ({row['id']})" if row["id"] else line), row


def _questions(item: Any, annotated: bool) -> Iterator[dict[str, Any]]:
    lines, questions, name = item
    text = "\n".join(lines)
    for number, question in enumerate(questions):
        row = {
            "text": text,
            "group": _group(text),
            "id": f"{question.get('id', f'{name}-{number}')}",
        }
        row |= {"question": question["question"], "choice": question["choice"]}
        yield row | ({"answer": question["answer"]} if annotated else {})


def _blanks(item: Any) -> Iterator[dict[str, Any]]:
    for passage in item["content"]:
        for blank in _TAG.finditer(passage):
            before, after = (
                _TAG.sub(OTHER_BLANK, part)
                for part in (passage[: blank.start()], passage[blank.end() :])
            )
            yield {
                "text": before + BLANK + after,
                "candidates": item["candidates"],
                "id": blank[0],
                "group": _group(passage),
            }


def _referents(item: Any, annotated: bool) -> dict[str, Any]:
    text, target, marks = item["text"], item["target"], []
    for span, opening, closing in (("span1", "_", "_"), ("span2", "[", "]")):
        name, start = target[f"{span}_text"], operator.index(target[f"{span}_index"])
        if not name or start < 0 or text[start : start + len(name)] != name:
            raise formats.Misfit(
                "span_outside_text",
                f"{span} at {start} holds {text[max(0, start) : start + len(name)]!r}; expected "
                f"{name!r}",
            )
        marks += [(start, True, opening), (start + len(name), False, closing)]
    for place, _, mark in sorted(marks, reverse=True):  # from the end; where two meet, "_["
        text = text[:place] + mark + text[place:]
    row = {"text": text, "id": str(item.get("idx", ""))}
    return row | ({"label": str(item["label"]).lower()} if annotated else {})


def _group(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def _answers(paths: Sequence[Path]) -> dict[str, int]:
    """Returns the number of the answer to each tag of ChID."""
    known: dict[str, int] = {}
    for path in paths:
        content = formats.document(encodings.read_text(path, encodings.resolve(path, "auto")), path)
        try:
            found = {tag: operator.index(answer) for tag, answer in content.items()}
        except (AttributeError, TypeError):
            raise ValueError(
                f'{path}:1: expected the answers of ChID, {{"#idiom000378#": 3, ...}}'
            ) from None
        twice = next((tag for tag in found if known.get(tag, found[tag]) != found[tag]), "")
        if twice:
            raise ValueError(
                f"{path}: {twice} has the answer {found[twice]} here and {known[twice]} in a file "
                "before it; prepare the two apart"
            )
        known |= found
    return known
