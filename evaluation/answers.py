"""Exact match and F1 of answers as CMRC 2018 defines them (1810.07366).

Here: two strings to two numbers, equal to those of the official cmrc2018_evaluate.py (v5); the best
answers by scores of their starts and ends; and a guess at an answer without a model.

Both strings are lower-cased and lose the marks of `_REMOVED`. They match exactly if nothing else
differs. For F1 they become segments, a Chinese character or a word of other scripts each, and what
counts is the longest stretch of segments that both have (not, as in SQuAD, the segments they
share). Of several true answers the best counts.

The script passes what is between two Chinese characters through nltk.word_tokenize. Digits and
letters are one word between spaces in any case; its rules on commas, quotes, brackets and
contractions are below. It also finds sentences with a trained model, which decides whether a full
stop within an answer, before a space, is a separate segment ('3 p.m. in' or 'it. He'): here that
is a rule with some abbreviations.
"""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_REMOVED = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # no '……': that is two
_CHINESE = re.compile(r"([\u4e00-\u9fa5])")  # not the whole block: the official one ends here

# A mark ends a sentence before white space or another mark; a full stop does not behind a letter,
# a number (unless one follows) or one of these.
_SENTENCE_END = re.compile(r"""(?<=[.?!])(?:["')\]}‘«»]*(?:\s+|$)|(?=[)"\]}@'({\[?!;‘«»]))""")
_LAST_WORD = re.compile(r"""[^\s"&#@(){}\[\],;]*$""")
_ABBREVIATION = re.compile(
    r"[^\W\d_]|mr|mrs|ms|dr|prof|st|vs|jr|sr|inc|co|corp|ltd|gen|rep|sen|u\.[skn]|d\.c|p\.m|ph\.d"
)

# The rules of nltk.word_tokenize that what remains can meet, in their order.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[«‘„]", r" \g<0> "),
        (r'^"', " `` "),
        (r"""([ (\[{<])(?:"|'')""", r"\1 `` "),
        (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
        (r"""(?<=[^.])\.([\])}>"'» ]*)\s*$""", r" . \1 "),
        (r",(\D)", r" , \1"),
        (r",$", " , "),
        (r"\.{2,}|[;@#$%&‒–—―?!]", r" \g<0> "),
        (r"(?<=[^'])' ", " ' "),
        (r"[][(){}<>]", r" \g<0> "),
        (r"^|$", " "),
        (r"»", " » "),
        (r"""''|\"""", " '' "),
        (r"\s+", " "),
        (r"([^' ])('[smd]?) ", r"\1 \2 "),
        (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
        (
            r"\b(?:can(?=not\b)|d(?='ye\b)|gim(?=me\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b)"
            r"|more(?='n\b)|wan(?=na\s))",
            r"\g<0> ",
        ),
    )
)


class Answer(NamedTuple):
    """A stretch of a context, in characters, and its log probability."""

    start: int
    stop: int
    score: float


def n_best(
    starts_L: np.ndarray,
    ends_L: np.ndarray,
    offsets_Lx2: np.ndarray,
    *,
    count: int,
    max_characters: int,
) -> list[Answer]:
    """Returns the best answers, best first, among the best starts and the best ends.

    Args:
        starts_L: log probability of each token to be the answer's first.
        ends_L: to be its last.
        offsets_Lx2: characters of the tokens.
        count: of starts, of ends and of answers, at most.
        max_characters: of an answer.
    """
    firsts_S = np.argsort(-starts_L, kind="stable")[:count]
    lasts_E = np.argsort(-ends_L, kind="stable")[:count]
    lengths_SxE = offsets_Lx2[lasts_E, 1] - offsets_Lx2[firsts_S, 0][:, None]
    s, e = np.nonzero((lasts_E >= firsts_S[:, None]) & (lengths_SxE <= max_characters))
    scores = starts_L[firsts_S[s]] + ends_L[lasts_E[e]]
    best = np.argsort(-scores, kind="stable")[:count]
    starts, stops = offsets_Lx2[firsts_S[s], 0], offsets_Lx2[lasts_E[e], 1]
    return [Answer(int(starts[i]), int(stops[i]), float(scores[i])) for i in best]


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1.0 if the prediction is one of the answers but for case and marks, else 0.0.

    Args:
        prediction: '' where none is given.
        answers: the true ones; without any, '' is right.
    """
    return float(_kept(prediction) in map(_kept, answers or [""]))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Returns the best F1, 0 to 1, of the prediction's segments with those of an answer.

    Args:
        prediction: '' where none is given.
        answers: the true ones; without any, '' is right.
    """
    if not answers:
        return exact_match(prediction, answers)
    predicted, scores = segments(prediction), []
    for true in map(segments, answers):
        common = _longest_common(predicted, true)
        scores.append(2 * common / (len(predicted) + len(true)) if common else 0.0)
    return max(scores)


def most_alike(context: str, question: str, *, marks: str = "") -> str:
    """Returns the sentence of a context that has most of a question, as a guess at its answer.

    Args:
        context: a text.
        question: its characters and pairs of characters are sought.
        marks: what ends a stretch beside the ends of sentences: '，' for clauses.

    Returns:
        the first of equal ones; '' if there is none.
    """
    stretches = re.findall(f"[^。！？；\n{marks}]+", context)
    wanted = _grams(question)
    return max(stretches, key=lambda stretch: len(wanted & _grams(stretch)), default="")


def _grams(text: str) -> set[str]:
    return {text[i : i + n] for n in (1, 2) for i in range(len(text) - n + 1)}


def segments(text: str) -> list[str]:
    """Returns the segments of an answer that F1 compares, without the marks that are removed."""
    first, *rest = _CHINESE.split(_kept(text))  # characters alternate with what is between them
    result = _words(first)
    for character, between in zip(rest[::2], rest[1::2], strict=True):
        result += [character, *_words(between)]
    return result


def _kept(text: str) -> str:
    """Returns the text in lower case and without the marks."""
    return "".join(c for c in text.lower().strip() if c not in _REMOVED)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest stretch that both have."""
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return matcher.find_longest_match().size


def _words(text: str) -> list[str]:
    """Returns the words of a stretch without Chinese characters."""
    words: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if _ends_sentence(text[start : match.start()], text[match.end() :]):
            words += _words_of_sentence(text[start : match.end()])
            start = match.end()
    return words + _words_of_sentence(text[start:])


def _ends_sentence(before: str, after: str) -> bool:
    """Whether a mark, the last of `before`, ends a sentence."""
    word = _LAST_WORD.search(before)[0][:-1]
    if before[-1] != ".":
        return True
    if word.replace(",", "").isdecimal():
        return after[:1].isdigit()
    return not _ABBREVIATION.fullmatch(word)


def _words_of_sentence(text: str) -> list[str]:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.split()
