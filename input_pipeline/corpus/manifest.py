"""What the manifest of prepared data says of copies across splits, and of labels without examples.

Called by preparation.py, which writes the manifest.
"""

from collections.abc import Iterable, Mapping, Sequence

from input_pipeline.records import Record

_SHOWN = 3  # labels

Copies = Sequence[tuple[str, str, int]]  # of a split, dropped for those of another: how many


def remark(read: int, dropped: Mapping[str, int], copies: Copies) -> str:
    """Returns what an error may come of: how many of the examples read were dropped; '' if none."""
    if not any(dropped.values()):
        return ""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
    said = f"; of {read:,} examples read, {sum(dropped.values()):,} were dropped: {counts}"
    if copies:
        said += f". {copied(copies)}: give each split examples of its own"
    return said


def copied(copies: Copies) -> str:
    """Returns a sentence, without its stop."""
    return " and ".join(
        f"{count:,} {split} examples were dropped as copies of {kept} examples"
        for split, kept, count in copies
    )


def without_examples(split: str, labels: Sequence[str]) -> str:
    """Returns a sentence about labels of `untaught`."""
    some = ", ".join(labels[:_SHOWN]) + ", ..." * (len(labels) > _SHOWN)
    return f"{len(labels):,} labels of {split} have no training example: {some}."


def untaught(splits: Mapping[str, Iterable[Record]]) -> dict[str, list[str]]:
    """Returns the labels of other splits that no training example has; numbers of choices do."""
    labels = {
        name: {
            label
            for record in records
            if not record.choices
            for label in (*record.labels, *(span.label for span in record.spans))
        }
        for name, records in splits.items()
    }
    missing = {name: sorted(labels[name] - labels["train"]) for name in labels}
    return {name: names for name, names in missing.items() if names}
