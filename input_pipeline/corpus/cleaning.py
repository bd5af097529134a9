"""Decides which records are fit to learn from, and counts the rest by reason.

Here: stripping, and what is dropped for its length, script, garbage, template, contradiction or
repetition. Not here: changing characters inside a text (normalization.py), or copies of a text in
other splits (audit.py).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.corpus import near_duplicates
from input_pipeline.records import Record, Span

REASONS = ("empty", "too_short", "too_long", "not_chinese", "repetitive", "template")
REASONS += ("contradictory", "duplicate", "near_duplicate")
_EXAMPLES = 3  # shown of each reason
_SHOWN = 40  # characters of them
_HAN = re.compile(
    "[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\U00030000-\U000323af]"
)
_LETTER = re.compile(r"[^\W\d_]")
# What wrong decoding leaves behind: replacement characters and the characters that replace
# them when they are read as GBK; controls, private use and lone surrogates.
_BROKEN = re.compile("[\ufffd\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff]|锟斤拷")
_DIGITS = re.compile(r"\d+")


_Verdict = tuple[str, Record | None]  # why a record is dropped, '' if it is not; what it copies


class Cleaned(NamedTuple):
    """What cleaning makes of records.

    Attributes:
        kept: the records kept, stripped, in their order.
        dropped: for each of REASONS, the `where` of those dropped.
        examples: for each reason that occurred, up to 3 as a dict of 'where', 'text' (its first 40
            characters), and 'kept', the `where` of the one that is kept, or 'found', the labels.
        copies: how many of the dropped are copies across splits that the source gives, by the split
            of the copy and that of the one kept.
    """

    kept: list[Record]
    dropped: dict[str, list[str]]
    examples: dict[str, list[dict[str, Any]]]
    copies: dict[tuple[str, str], int]


def clean(records: Iterable[Record], cleaning: ConfigDict) -> Cleaned:
    """Strips white space and drops what cannot be learned from, or would be learned twice.

    A record's identity is its text, pair, choices and history. The reasons, of which the first that
    applies counts; where there are pairs, reasons on one text apply if either text has them. The
    pair of a record without labels, number or spans is no second text to read but an answer to
    write: it may be as short as it is, and its task counts those that are empty. In splits that the
    source gives, labels may contradict each other across splits (audit.py counts those), and of
    copies that of test is kept, then that of validation:

    - 'empty': no text, or no pair where other records have one.
    - 'too_short', 'too_long': under `min_characters`, over `max_characters`.
    - 'not_chinese': a share of Chinese characters among its letters under `min_chinese_share`.
    - 'repetitive': `repetition` over `max_repetition`.
    - 'template': more than `max_template` different records are equal but for their digits.
    - 'contradictory': a record that occurs with other labels, spans or numbers too. With
      `label_conflicts`='drop' every copy of it; with 'majority' those that differ from the
      most frequent labels, or every copy where two are; with 'keep' none, so that it stays once
      with each outcome.
    - 'duplicate': every copy but the first, and with 'keep' of each outcome.
    - 'near_duplicate', with `near_duplicates`='drop': what is as similar as `threshold` to a record
      that is kept (near_duplicates.originals); the labels play no part.

    Args:
        records: as they were read and normalised.
        cleaning: config.data.cleaning.
    """
    stripped = [strip(record) for record in records]
    paired = any(record.pair for record in stripped)
    report = _Report()
    fit = report.sift(stripped, lambda record: (_unfit(record, cleaning, paired=paired), None))
    if cleaning.max_template:
        fit = _drop_templates(fit, cleaning.max_template, report)
    if cleaning.label_conflicts != "keep":
        fit = _drop_contradictions(fit, cleaning.label_conflicts, report)
    kept = _drop_duplicates(fit, report)
    if cleaning.near_duplicates == "drop":
        both = paired or any(record.choices + record.negatives for record in kept)
        kept = _drop_near_duplicates(kept, cleaning.threshold, report, paired=both)
    return Cleaned(kept, report.dropped, report.examples, dict(report.copies))


def strip(record: Record) -> Record:
    """Strips the record's texts and moves its spans along; white space within a span stays."""
    text = record.text
    margin = len(text) - len(text.lstrip())
    start = max(0, min([margin, *(span.start for span in record.spans)]))
    stop = max([len(text.rstrip()), *(span.stop for span in record.spans)])
    spans = (Span(span.start - start, span.stop - start, span.label) for span in record.spans)
    return record._replace(text=text[start:stop], pair=record.pair.strip(), spans=tuple(spans))


def distinct_negatives(record: Record) -> tuple[Record, int]:
    """Returns a record without negatives that are empty, equal its pair or another one, which would
    be told to be near and far; and how many those are."""
    kept = dict.fromkeys(negative.strip() for negative in record.negatives)
    kept = tuple(negative for negative in kept if negative and negative != record.pair.strip())
    return record._replace(negatives=kept), len(record.negatives) - len(kept)


def chinese_share(text: str) -> float:
    """Returns the share of Chinese characters among the letters of a text, 0 where it has none."""
    letters = len(_LETTER.findall(text))
    return len(_HAN.findall(text)) / letters if letters else 0.0


def repetition(text: str) -> float:
    """Returns the share of a text's characters that are garbage.

    That is those that lie in a copy of its most frequent 4-gram, if it occurs twice at least
    ('哈哈哈哈哈哈' 1.0, 'asdasdasd' 7/9), or those that decoding broke, whichever are more.
    """
    starts = defaultdict(list)
    for start in range(len(text) - 3):
        starts[text[start : start + 4]].append(start)
    most = max(map(len, starts.values()), default=0)
    covered = 0
    if most > 1:
        covered = max(
            4 + sum(min(4, after - before) for before, after in pairwise(copies))
            for copies in starts.values()
            if len(copies) == most
        )
    broken = sum(map(len, _BROKEN.findall(text)))
    return max(covered, broken) / max(len(text), 1)


def outcome(record: Record) -> Hashable:
    """Returns what copies of a record must agree on: labels and spans, in any order, and number."""
    return frozenset(record.labels), frozenset(record.spans), record.number


class _Report:
    """Counts and examples of what was dropped."""

    def __init__(self) -> None:
        self.dropped: dict[str, list[str]] = {reason: [] for reason in REASONS}
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self.copies: Counter[tuple[str, str]] = Counter()

    def sift(self, records: Iterable[Record], judge: Callable[[Record], _Verdict]) -> list[Record]:
        """Returns the records without a reason to be dropped, and counts the rest."""
        kept = []
        for record in records:
            reason, original = judge(record)
            if reason:
                self._drop(reason, record, original)
            else:
                kept.append(record)
        return kept

    def _drop(self, reason: str, record: Record, original: Record | None) -> None:
        self.dropped[reason].append(record.where)
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            example = {"where": record.where, "text": record.text[:_SHOWN]}
            example |= {"kept": original.where} if original else {}
            example |= {"found": _described(record)} if reason == "contradictory" else {}
            examples.append(example)
        if original and record.split != original.split:
            self.copies[record.split, original.split] += 1


def _unfit(record: Record, cleaning: ConfigDict, *, paired: bool) -> str:
    """Returns why a record by itself is unfit; '' if it is fit."""
    labelled = record.labels or record.spans or record.negatives or record.number is not None
    texts = [record.text.strip()] + ([record.pair.strip()] if paired and labelled else [])
    shortest, longest = min(map(len, texts)), max(map(len, texts))
    if not shortest:
        return "empty"
    if shortest < cleaning.min_characters:
        return "too_short"
    if 0 < cleaning.max_characters < longest:
        return "too_long"
    if cleaning.min_chinese_share and min(map(chinese_share, texts)) < cleaning.min_chinese_share:
        return "not_chinese"
    if cleaning.max_repetition < 1 and max(map(repetition, texts)) > cleaning.max_repetition:
        return "repetitive"
    return ""


def _drop_templates(records: list[Record], most: int, report: _Report) -> list[Record]:
    def mask(identity: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_DIGITS.sub("0", text) for text in identity)

    counts = Counter(map(mask, {record.identity for record in records}))
    return report.sift(
        records, lambda record: ("template" if counts[mask(record.identity)] > most else "", None)
    )


def _drop_contradictions(records: list[Record], policy: str, report: _Report) -> list[Record]:
    outcomes: dict[Hashable, Counter] = defaultdict(Counter)
    for record in records:
        outcomes[record.split, *record.identity][outcome(record)] += 1

    def judge(record: Record) -> _Verdict:
        (winner, most), *rest = outcomes[record.split, *record.identity].most_common(2)
        agreed = not rest or (policy == "majority" and most > rest[0][1])
        return "" if agreed and outcome(record) == winner else "contradictory", None

    return report.sift(records, judge)


def _drop_duplicates(records: list[Record], report: _Report) -> list[Record]:
    first: dict[Hashable, Record] = {}
    for record in sorted(records, key=_rank):
        first.setdefault((record.identity, outcome(record)), record)

    def judge(record: Record) -> _Verdict:
        original = first[record.identity, outcome(record)]
        return "" if original is record else "duplicate", original

    return report.sift(records, judge)


def _rank(record: Record) -> int:
    return {"test": 0, "validation": 1}.get(record.split, 2)


def _described(record: Record) -> str:
    spans = (f"{span.label} {span.start}-{span.stop}" for span in record.spans)
    numbers = [] if record.number is None else [f"{record.number:g}"]
    return ", ".join([*record.labels, *numbers, *spans])


def _drop_near_duplicates(
    records: list[Record], threshold: float, report: _Report, *, paired: bool
) -> list[Record]:
    first: dict[tuple[str, ...], Record] = {}
    for record in sorted(records, key=_rank):
        first.setdefault(record.identity, record)
    distinct = first.values()
    keepers = near_duplicates.originals(
        [record.history + record.text for record in distinct],
        threshold=threshold,
        pairs=["\n".join([r.pair, *r.choices, *r.negatives]) for r in distinct] if paired else None,
        ranks=[_rank(record) for record in distinct],
    )
    identities = list(first)
    kept_by = {key: identities[i] for key, i in zip(first, keepers.tolist(), strict=True)}

    def judge(record: Record) -> _Verdict:
        keeper = kept_by[record.identity]
        return "" if keeper == record.identity else "near_duplicate", first[keeper]

    return report.sift(records, judge)
