"""Finds validation and test examples that have a copy, or nearly one, in another split.

Here: the search, its report, and the refusal. Not here: how near-duplicates are found
(near_duplicates.py), and the metric without them (evaluation/). Called by preparation.py.

A model that has seen a test example in training is not tested by it. Copies within a split are
none of the audit's business: cleaning.py drops those.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.corpus import near_duplicates
from input_pipeline.corpus.near_duplicates import Form
from input_pipeline.records import Record

_ORDER = ("train", "validation", "test")  # in which a model sees the splits
_SEEN_BEFORE = {"validation": ("train",), "test": ("train", "validation")}
_EXAMPLES = 5  # in the report, of each split
_SHOWN = 40  # characters of them


class Leak(NamedTuple):
    """Example `index` of split `split`, and the most similar one of a split seen before it."""

    split: str
    index: int
    other_split: str
    other_index: int
    similarity: float


class Audit(NamedTuple):
    """What an audit found.

    Attributes:
        leaks: the leaks of validation and test, the most similar first.
        leaked: for validation and test a bool array [N]: which of its examples leak.
        shared: for validation and test, the number of examples that share one of their two texts
            with train but do not leak: the same premise with another hypothesis.
        splits: the records that were searched; none, as all above, if the audit is off.
    """

    leaks: list[Leak]
    leaked: dict[str, np.ndarray]
    shared: dict[str, int]
    splits: Mapping[str, Sequence[Record]]

    def report(self) -> dict[str, Any]:
        """Returns counts and the worst examples of validation and test, ready for JSON.

        Of each: the number of examples and of leaks; of these, the exact ones, those per split of
        the copy, and those whose copy has other labels; the `shared` ones; up to 5 examples.
        """
        return {name: self._report(name) for name in self.leaked}

    def _report(self, name: str) -> dict[str, Any]:
        leaks = [leak for leak in self.leaks if leak.split == name]
        return {
            "examples": len(self.splits[name]),
            "leaked": len(leaks),
            "exact": sum(_form(a, True) == _form(b, True) for a, b in map(self._records, leaks)),
            "copies_in": dict(Counter(leak.other_split for leak in leaks)),
            "other_labels": sum(not self._agree(leak) for leak in leaks),
            "shared_text": self.shared[name],
            "worst": [self._describe(leak) for leak in leaks[:_EXAMPLES]],
        }

    def _records(self, leak: Leak) -> tuple[Record, Record]:
        return (
            self.splits[leak.split][leak.index],
            self.splits[leak.other_split][leak.other_index],
        )

    def _agree(self, leak: Leak) -> bool:
        record, other = self._records(leak)
        return (set(record.labels), record.number) == (set(other.labels), other.number)

    def _describe(self, leak: Leak) -> dict[str, Any]:
        record, other = self._records(leak)
        return {
            "similarity": round(leak.similarity, 4),
            "where": record.where,
            "text": _snippet(record),
            "copy_split": leak.other_split,
            "copy_where": other.where,
            "copy_text": _snippet(other),
            "labels_agree": self._agree(leak),
        }


def audit(splits: Mapping[str, Sequence[Record]], audit: ConfigDict) -> Audit:
    """Searches validation for copies from train, and test for copies from both.

    Texts are compared in their comparison form, the two texts of a pair whatever their order, and
    prompts with the messages before them.

    Args:
        splits: the records of 'train', 'validation' and 'test'.
        audit: config.data.audit. `kind` 'exact' finds equal forms alone, 'near' those as similar
            as `threshold` too, 'off' nothing. `on_leak` is left to `stop_on_leak`.

    Raises:
        ValueError: to stop at a leak that is not looked for.
    """
    if audit.kind == "off" and audit.on_leak == "stop":
        raise ValueError(
            "config.data.audit.on_leak='stop' with config.data.audit.kind='off' would find nothing "
            "to stop at: set kind to 'exact' or 'near'"
        )
    if audit.kind == "off":
        return Audit([], {}, {}, {})
    paired = any(record.pair for records in splits.values() for record in records)
    forms = {name: [_form(r, paired) for r in records] for name, records in splits.items()}
    best = _matches(forms, audit.threshold if audit.kind == "near" else None)
    found = Audit([], {}, {}, splits)
    for name, earlier in _SEEN_BEFORE.items():
        found.leaked[name] = np.zeros(len(forms[name]), bool)
        for index, form in enumerate(forms[name]):
            matches = [best[form, other] for other in earlier if (form, other) in best]
            if matches:
                found.leaks.append(Leak(name, index, *max(matches, key=lambda match: match[-1])))
                found.leaked[name][index] = True
        found.shared[name] = (
            _count_shared(forms[name], forms["train"], found.leaked[name]) if paired else 0
        )
    found.leaks.sort(key=lambda leak: -leak.similarity)
    return found


def stop_on_leak(report: Mapping[str, Any]) -> None:
    """Refuses to go on with splits that leak: what config.data.audit.on_leak='stop' asks for.

    Args:
        report: `Audit.report()`.

    Raises:
        ValueError: if there is a leak, with counts, the two worst examples, and what to do.
    """
    leaking = {name: part for name, part in report.items() if part["leaked"]}
    if not leaking:
        return
    counts = " and ".join(
        f"{part['leaked']} of {part['examples']} {name} examples" for name, part in leaking.items()
    )
    worst = [example for part in leaking.values() for example in part["worst"]]
    worst.sort(key=lambda example: -example["similarity"])
    shown = "; ".join(
        f"{e['where']} {e['text']!r} is like {e['copy_where']} {e['copy_text']!r} in "
        f"{e['copy_split']} (similarity {e['similarity']})"
        for e in worst[:2]
    )
    raise ValueError(
        f"{counts} have a copy in a split seen before: {shown}. Drop copies with "
        "config.data.cleaning.near_duplicates='drop', keep what belongs together on one side with "
        "config.data.split.kind='group', or go on with config.data.audit.on_leak='report', which "
        "reports the metric without them too"
    )


def _form(record: Record, paired: bool) -> Form:
    """Returns what is compared: of a pair both forms, sorted, so that their order is lost."""
    text = record.history + record.text
    texts = (text, record.pair) if paired else (text,)
    return tuple(sorted(map(near_duplicates.comparison_form, texts)))


def _matches(
    forms: Mapping[str, Sequence[Form]], threshold: float | None
) -> dict[tuple[Form, str], tuple[str, int, float]]:
    """Returns the best match of a form in a split: (split, index, similarity), where it has one.

    A form that stands in several splits is looked for as of the first of them: it is a leak of the
    others anyway.
    """
    first: dict[Form, dict[str, int]] = defaultdict(dict)  # split -> index, in order of the splits
    for name in _ORDER:
        for index, form in enumerate(forms[name]):
            first[form].setdefault(name, index)
    best = {
        (form, name): (name, index, 1.0)
        for form, places in first.items()
        if len(places) > 1
        for name, index in places.items()
    }
    if threshold is None:
        return best
    distinct = sorted(first)
    found = near_duplicates.near_duplicates(
        distinct,
        threshold=threshold,
        sides_N=np.array([_ORDER.index(next(iter(first[form]))) for form in distinct]),
        either_order=True,
    )
    for (i, j), similarity in zip(found.pairs_Px2.tolist(), found.similarity_P, strict=True):
        for form, other in ((distinct[i], distinct[j]), (distinct[j], distinct[i])):
            for name, index in first[other].items():
                if similarity > best.get((form, name), ("", 0, 0.0))[-1]:
                    best[form, name] = (name, index, float(similarity))
    return best


def _count_shared(forms: Sequence[Form], train: Sequence[Form], leaked_N: np.ndarray) -> int:
    known = {text for form in train for text in form}
    return sum(
        not leaked and not known.isdisjoint(form)
        for form, leaked in zip(forms, leaked_N.tolist(), strict=True)
    )


def _snippet(record: Record) -> str:
    texts = (record.text, record.pair) if record.pair else (record.text,)
    return " | ".join(text[:_SHOWN] for text in texts)
