"""CoNLL files to rows: the text of each sentence's tokens and the spans of their tags.

Here: which columns hold the token and the tag, comments, counters, and joining tokens. Not here:
bytes to characters (encodings.py).

The tag is the last column and the token the first that carries text: columns that count the tokens
(CoNLL-X, CoNLL-U) or name the sentence or document are not read, which is reported.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.corpus import encodings
from input_pipeline.corpus.notes import Notes

_TAGS = "BIESLUM"  # of BIO, BIOES, BILOU and BMES
_TAG = re.compile(rf"O|[{_TAGS}]-.+")
_NUMBERED = re.compile(r"(\ufffd+|.)([0-9]{1,4})")  # emoji have been destroyed in Weibo's files
# A counter, as in 3, s1-3, (3) or 3.; not in Weibo's 科3
_COUNTER = re.compile(r"(?:[!-~]*[!-/:-~])?(\d{1,9})[.)\]:、]?")
_RANGE = re.compile(r"[0-9]+[-.][0-9]+")  # of CoNLL-U: words of one token, or words left out


class _Line(NamedTuple):
    """A line with its number and its columns."""

    number: int
    columns: tuple[str, ...]


_Sentence = list[_Line]


def read_rows(
    path: Path, encoding: str, annotated: bool, notes: Notes
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields a row per sentence: the text of its tokens and the spans of their tags.

    Args:
        path: a file with a token a line, gzipped if it ends in .gz.
        encoding: what encodings.resolve returned.
        annotated: False reads no tags.
        notes: collect what is not read.

    Raises:
        ValueError: naming file and line, for what is in another format, or in columns that can be
            read in two ways.
    """
    sentences = _without_comments(_sentences(path, encoding), path, annotated, notes)
    sentences = _without_counters(sentences, path, annotated, notes)
    _check_columns(sentences, path, annotated)
    numbered = bool(sentences) and all(map(_is_numbered, sentences))
    # Where each token is a character, Latin words have no spaces between them.
    apart = not numbered and any(len(line.columns[0]) > 1 for line in _lines(sentences))
    for sentence in sentences:
        yield sentence[0].number, _row(sentence, path, annotated, numbered, apart)


def _lines(sentences: Iterable[_Sentence]) -> Iterator[_Line]:
    return itertools.chain.from_iterable(sentences)


def _sentences(path: Path, encoding: str) -> list[_Sentence]:
    """Returns the lines between empty ones; columns end at tabs where all lines have one."""
    lines = [(n, line.rstrip("\r\n")) for n, line in encodings.lines(path, encoding, newline="")]
    tabs = all("\t" in line for _, line in lines if line.strip(" \t") and line[0] != "#")
    sentences: list[_Sentence] = [[]]
    for number, line in lines:
        # Blanks and tabs alone: the full-width blank is a token.
        if not line.strip(" \t"):
            sentences.append([])
            continue
        if tabs:  # a column, such as a token, may be a blank
            columns = re.split("\t+", line.rstrip(" \t").lstrip("\t"))
            columns = [column.strip(" ") or " " for column in columns]
        else:
            columns = re.split("[ \t]+", line.strip(" \t"))
        if columns[0] != "-DOCSTART-":
            sentences[-1].append(_Line(number, tuple(columns)))
    return [sentence for sentence in sentences if sentence]


def _without_comments(
    sentences: list[_Sentence], path: Path, annotated: bool, notes: Notes
) -> list[_Sentence]:
    """Leaves out lines before a sentence that begin with # and are no token."""
    starts = [line.columns[0][:1] for line in _lines(sentences)]
    widths = Counter(len(line.columns) for line in _lines(sentences) if line.columns[0][:1] != "#")
    width = max(widths, key=widths.__getitem__, default=0)
    counted = bool(widths) and all(start == "#" or start.isdecimal() for start in starts)

    def is_comment(line: _Line) -> bool:
        if line.columns[0][:1] != "#" or width < 2:
            return False
        tagged = not annotated or _TAG.fullmatch(line.columns[-1])
        return counted or len(line.columns) != width or not tagged

    kept = [list(itertools.dropwhile(is_comment, sentence)) for sentence in sentences]
    if dropped := len(starts) - sum(map(len, kept)):
        first = next(filter(is_comment, _lines(sentences)))
        sentence = "{count} comments of CoNLL files are not read"
        notes.count(sentence, f"{path}:{first.number}", count=dropped)
    return [sentence for sentence in kept if sentence]


def _without_counters(
    sentences: list[_Sentence], path: Path, annotated: bool, notes: Notes
) -> list[_Sentence]:
    """Leaves out the columns before the tokens, and lines of CoNLL-U that are no words."""
    least, skipped = 2 if annotated else 1, 0
    while sentences and all(len(line.columns) > least for line in _lines(sentences)):
        words = [[line for line in s if not _RANGE.fullmatch(line.columns[0])] for s in sentences]
        words = [sentence for sentence in words if sentence] or sentences
        following = {line.columns[1] for line in _lines(words)}
        if all(map(_TAG.fullmatch, following)) or not _is_idle(words, path, least):
            break
        if ranges := sum(map(len, sentences)) - sum(map(len, words)):
            sentence = "{count} lines of CoNLL files cover several words or none and are not"
            notes.count(f"{sentence} read", f"{path}:{sentences[0][0].number}", count=ranges)
        sentences = [[_Line(n, columns[1:]) for n, columns in sentence] for sentence in words]
        skipped += 1
    if skipped:
        what = "column counts" if skipped == 1 else f"{skipped} columns count"
        notes.decide(str(path), f"the first {what} tokens or sentences, not read")
    return sentences


def _check_columns(sentences: list[_Sentence], path: Path, annotated: bool) -> None:
    """Raises for a line without a tag, tags before tokens, and sentences of uneven columns."""
    for line in _lines(sentences):
        if annotated and len(line.columns) < 2:
            expected = "a token and its tag with a tab or blanks between them"
            raise ValueError(
                f"{path}:{line.number}: found {' '.join(line.columns)!r}; expected {expected}, and "
                "an empty line after each sentence"
            )
    lines = [line.columns for line in _lines(sentences)]
    tags_first = bool(lines) and all(len(c) > 1 and _TAG.fullmatch(c[0]) for c in lines)
    if tags_first and not all(_TAG.fullmatch(columns[-1]) for columns in lines):
        remedy = "write the token first and the tag last"
        raise ValueError(
            f"{path}:{sentences[0][0].number}: the tags come before the tokens; {remedy}"
        )
    for first, *rest in sentences:
        for line in rest:
            if len(line.columns) != len(first.columns):
                raise ValueError(
                    f"{path}:{line.number}: found {len(line.columns)} columns, but line "
                    f"{first.number} of the same sentence has {len(first.columns)}; a token that "
                    "holds a blank needs tabs between the columns of the whole file"
                )


def _is_idle(sentences: Sequence[_Sentence], path: Path, least: int) -> bool:
    """Returns whether the first column counts, or is the same in each sentence.

    Args:
        sentences: all of them.
        path: the file, for errors.
        least: how many columns the token and the tag take.

    Raises:
        ValueError: it counts, but not throughout, or no column after it can be the tokens.
    """
    shortest = min(len(line.columns) for line in _lines(sentences))
    later = range(1, shortest - least + 1)
    text_follows = not all(_is_constant(sentences, column) for column in later)
    if _is_constant(sentences, 0) and sum(len(sentence) > 1 for sentence in sentences) > 1:
        return text_follows
    steps = pairs = counted = 0
    faults: list[_Line] = []
    for sentence in sentences:
        before = None
        for line in sentence:
            match = _COUNTER.fullmatch(line.columns[0])
            value = int(match[1]) if match else None
            counted += value is not None
            if None not in (value, before):
                pairs, steps = pairs + 1, steps + (value == before + 1)
            if value is None or (before is not None and value <= before):
                faults.append(line)
            before = value
    lines = sum(map(len, sentences))
    firsts, seconds = ({line.columns[i] for line in _lines(sentences)} for i in (0, 1))
    if lines == len(sentences) and firsts in ({"0"}, {"1"}) and len(seconds) > 1:
        return True  # sentences of one token
    if not steps or steps < pairs / 2 or counted < lines / 2:
        return False
    if faults or not text_follows:
        place = faults[0].number if faults else sentences[0][0].number
        found = f"here it is {faults[0].columns[0]!r}" if faults else "no other differs"
        remedy = "correct it (an empty line ends each sentence), or leave that column out"
        raise ValueError(
            f"{path}:{place}: the first column counts tokens in most lines, but {found}; {remedy}"
        )
    return True


def _is_constant(sentences: Sequence[_Sentence], column: int) -> bool:
    """Returns whether a column is the same in all lines of each sentence."""
    return all(len({line.columns[column] for line in sentence}) == 1 for sentence in sentences)


def _is_numbered(sentence: _Sentence) -> bool:
    """Returns whether each token is a character with its place in the word: 科0 技1."""
    places = [_NUMBERED.fullmatch(line.columns[0]) for line in sentence]
    return all(places) and int(places[0][2]) == 0


def _row(
    sentence: _Sentence, path: Path, annotated: bool, numbered: bool, apart: bool
) -> dict[str, Any]:
    """Returns the row of one sentence.

    Args:
        sentence: its lines, with the token first and the tag last.
        path: the file, for errors.
        annotated: whether there are tags.
        numbered: leave out what `_is_numbered` finds.
        apart: put a space between two tokens that are Latin where they meet.
    """
    text, spans, previous = "", [], ""
    for number, columns in sentence:
        token, tag = columns[0], columns[-1] if annotated else "O"
        token = _NUMBERED.fullmatch(token)[1] if numbered else token
        if apart and _is_latin(text[-1:]) and _is_latin(token[:1]):
            text += " "
        if not _TAG.fullmatch(tag):
            expected = f"O, or a letter of {'-, '.join(_TAGS)}- and a label, such as B-PER"
            raise ValueError(
                f"{path}:{number}: the tag is {tag!r}; expected {expected}, in the last column"
            )
        prefix, _, label = tag.partition("-")
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
