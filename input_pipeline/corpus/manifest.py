"""The sentences about prepared data: what was read, dropped and kept, and what may be wrong."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.records import Record

_SHOWN = 3  # labels


def prose(manifest: dict[str, Any]) -> str:
    """Returns a manifest's counts as a few sentences."""
    dropped, splits = manifest["dropped"], manifest["splits"]
    sizes = _counted({name: part["examples"] for name, part in splits.items()}, ", ", all=True)
    sentences = [
        f"Prepared {manifest['source']['name']}: read {manifest['read']:,} examples, dropped "
        f"{sum(dropped.values()):,} ({_counted(dropped, ', ') or 'none'}), kept {sizes}."
    ]
    if manifest["copies"]:
        sentences.append(f"{_copies(manifest['copies'])}.")
    for split, labels in manifest["untaught"].items():
        some = ", ".join(labels[:_SHOWN]) + ", ..." * (len(labels) > _SHOWN)
        sentences.append(f"{len(labels):,} labels of {split} have no training example: {some}.")
    if others := sorted({e for e in manifest["encodings"].values() if e != "utf-8"}):
        sentences.append(f"Encodings: {', '.join(others)}.")
    if manifest["merged"]:
        remedy = "data.split.kind='given' keeps them."
        sentences.append(f"The source's own splits were merged and split anew: {remedy}")
    if manifest["lost_spans"]:
        sentences.append(f"Recoding left nothing of {manifest['lost_spans']:,} spans.")
    if manifest["lost_negatives"]:
        sentences.append(
            f"Left out: {manifest['lost_negatives']:,} negatives that are empty, or equal the "
            "positive or another negative."
        )
    if leaked := _counted({name: part["leaked"] for name, part in splits.items()}):
        sentences.append(
            f"Audit: {leaked} examples have a copy or near-duplicate in another split; results "
            "are given with and without them."
        )
    if shared := _counted({name: part["shared_text"] for name, part in manifest["audit"].items()}):
        grouped = manifest["options"]["split"]["kind"] == "group"
        remedy = "" if grouped else ": data.split.kind='group' keeps them apart"
        sentences.append(f"{shared} pairs share one of their texts with train{remedy}.")
    return " ".join(sentences)


def remark(read: int, dropped: Mapping[str, int], copies: Sequence[tuple[str, str, int]]) -> str:
    """Returns a possible cause of an error: how many examples were dropped and why; '' if none."""
    if not any(dropped.values()):
        return ""
    total = sum(dropped.values())
    said = f"; of {read:,} examples read, {total:,} were dropped: {_counted(dropped, ', ')}"
    return said + (f". {_copies(copies)}: give each split examples of its own" if copies else "")


def untaught(splits: Mapping[str, Iterable[Record]]) -> dict[str, list[str]]:
    """Returns the labels of other splits that no training example has; indices of choices do."""
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


def _counted(counts: Mapping[str, int], join: str = " and ", *, all: bool = False) -> str:
    return join.join(f"{count:,} {name}" for name, count in counts.items() if count or all)


def _copies(copies: Sequence[tuple[str, str, int]]) -> str:
    return " and ".join(
        f"{count:,} {split} examples were dropped as copies of {kept} examples"
        for split, kept, count in copies
    )
