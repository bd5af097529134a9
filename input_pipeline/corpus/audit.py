"""Finds validation and test examples that have a copy, or nearly one, in another split.

Here: the search, its report, and stopping at leaks. Not here: how near-duplicates are found
(near_duplicates.py), and the metric without them (evaluation/).

A model that has seen a test example in training is not tested by it. Copies within a split are
left to cleaning.py.
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
    """The leaks across splits; all is empty if the audit is off.

    Attributes:
        leaks: the leaks of validation and test, the most similar first.
        leaked: for validation and test a bool array [N]: which of its examples leak.
        report: for validation and test, ready for JSON: the number of examples and of leaks; of
            these, the exact ones, those per split of the copy, and those whose copy has other
            labels; how many examples share one of their two texts with train but do not leak (the
            same premise with another hypothesis); up to 5 leaks, the most similar first.
    """

    leaks: list[Leak]
    leaked: dict[str, np.ndarray]
    report: dict[str, Any]


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
    result = Audit([], {}, {})
    if audit.kind == "off":
        if audit.on_leak == "stop":
            found = "config.data.audit.on_leak='stop' with config.data.audit.kind='off'"
            remedy = "set kind to 'exact' or 'near'"
            raise ValueError(f"{found} would find nothing to stop at: {remedy}")
        return result
    paired = any(record.pair for records in splits.values() for record in records)
    forms = {name: [_form(r, paired) for r in records] for name, records in splits.items()}
    best = _matches(forms, audit.threshold if audit.kind == "near" else None)
    trained = {text for form in forms["train"] for text in form}
    for name, earlier in _SEEN_BEFORE.items():
        result.leaked[name] = np.zeros(len(forms[name]), bool)
        leaks, shared = [], 0
        for index, form in enumerate(forms[name]):
            matches = [best[form, other] for other in earlier if (form, other) in best]
            if matches:
                leaks.append(Leak(name, index, *max(matches, key=lambda match: match[-1])))
                result.leaked[name][index] = True
            elif paired:
                shared += not trained.isdisjoint(form)
        leaks.sort(key=lambda leak: -leak.similarity)
        result.leaks.extend(leaks)
        result.report[name] = _report(leaks, splits, len(forms[name]), shared)
    result.leaks.sort(key=lambda leak: -leak.similarity)
    return result


def _report(
    leaks: Sequence[Leak], splits: Mapping[str, Sequence[Record]], examples: int, shared: int
) -> dict[str, Any]:
    rows = []
    for leak in leaks:
        record, copy = splits[leak.split][leak.index], splits[leak.other_split][leak.other_index]
        agree = (set(record.labels), record.number) == (set(copy.labels), copy.number)
        rows.append((leak, record, copy, agree))
    worst = [
        {
            "similarity": round(leak.similarity, 4),
            "where": record.where,
            "text": _snippet(record),
            "copy_split": leak.other_split,
            "copy_where": copy.where,
            "copy_text": _snippet(copy),
            "labels_agree": agree,
        }
        for leak, record, copy, agree in rows[:_EXAMPLES]
    ]
    return {
        "examples": examples,
        "leaked": len(rows),
        "exact": sum(_form(record, True) == _form(copy, True) for _, record, copy, _ in rows),
        "copies_in": dict(Counter(leak.other_split for leak in leaks)),
        "other_labels": sum(not agree for *_, agree in rows),
        "shared_text": shared,
        "worst": worst,
    }


def stop_on_leak(report: Mapping[str, Any]) -> None:
    """Refuses to go on with splits that leak: what config.data.audit.on_leak='stop' asks for.

    Args:
        report: `Audit.report`.

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
        f"{counts} have a copy in a split seen before: {shown}. Drop copies with config.data."
        "cleaning.near_duplicates='drop', keep groups on one side with config.data.split.kind="
        "'group', or report the metric with and without them by config.data.audit.on_leak='report'"
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

    A form that is in several splits is compared with other forms from the first of them only: it
    is a leak of the later ones anyway.
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
    near = near_duplicates.near_duplicates(
        distinct,
        threshold=threshold,
        sides_N=np.array([_ORDER.index(next(iter(first[form]))) for form in distinct]),
        either_order=True,
    )
    for (i, j), similarity in zip(near.pairs_Px2.tolist(), near.similarity_P, strict=True):
        for form, other in ((distinct[i], distinct[j]), (distinct[j], distinct[i])):
            for name, index in first[other].items():
                if similarity > best.get((form, name), ("", 0, 0.0))[-1]:
                    best[form, name] = (name, index, float(similarity))
    return best


def _snippet(record: Record) -> str:
    texts = (record.text, record.pair) if record.pair else (record.text,)
    return " | ".join(text[:_SHOWN] for text in texts)
