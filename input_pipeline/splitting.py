"""Splits records into train, validation and test.

Here: the kinds of splits and k-fold, the stored order, and the fingerprint of a split. Not here:
finding copies across splits (audit.py), or writing them. Called by preparation.py.

Whatever is drawn is drawn by a hash of the seed and the text, or group: nothing depends on the
order of the records, and new data moves few of the old.
"""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.records import Record

SPLITS = ("train", "validation", "test")
_PASSES = 3  # over the groups, to bring the counts of labels closer to what they should be
_RARE = 20  # texts of a set of several labels, under which it is no stratum of its own

Splits = dict[str, list[Record]]


def split(records: Iterable[Record], split: ConfigDict) -> Splits:
    """Returns the records of 'train', 'validation' and 'test'.

    The test split is taken first, so that it depends neither on the size of validation nor on the
    fold. Sizes below 1 are shares of the records, others are counts, 0 is none. The kinds:

    - 'stratified': within each label, the lowest hashes of the text are the test split, then comes
      validation. Labels are stratified as sets where texts have several; of these, the rare sets
      form one stratum. Records without labels form one.
    - 'group': in the order of their hash, groups go to the test split, or leave it again, where
      that brings its counts of all labels closer to what they should be; then to validation. So
      sizes and shares of labels are met as far as groups allow; `imbalance` says how far.
    - 'time': the newest are the test split, then comes validation. What is of one time stays
      together, so that sizes are met as closely as times allow.
    - 'given': by `Record.split`. What is missing is taken from 'train', by group if all have one.

    With `folds`, what is not the test split is dealt into so many parts of equal label ratio, whole
    groups each, of which number `fold` is validation.

    Each split is stored in the order of another part of the hash, so that its first N are a random
    sample. Copies of a text, as with several labels, are on one side, but for those of different
    groups, times or given splits.

    Args:
        records: with texts as cleaning leaves them.
        split: config.data.split.

    Raises:
        ValueError: if the sizes make no sense, a split that was asked for comes out empty, or a
            record lacks the group, time or split that the kind asks for.
    """
    records = list(records)
    _check(split, len(records), grouped=any(record.group for record in records))
    sizes = {"test": split.test, "validation": 0 if split.folds else split.validation}
    if split.kind == "given":
        splits = _as_given(records, sizes, split)
    else:
        take = {"group": _by_group, "time": _by_time}.get(split.kind, _by_label)
        splits = take(records, sizes, split.seed)
    if split.folds:
        splits |= _fold(splits["train"], split)
    for name in SPLITS:
        if not splits[name] and (name == "train" or split[name] > 0 or split.folds):
            what = {"group": "group", "time": "time"}.get(split.kind, "labels")
            found = len({getattr(record, what) for record in records})
            raise ValueError(
                f"the {name} split is empty: {len(records)} examples of {found} "
                f"{what.rstrip('s')}s are too few for {_named(split)}; add data or change these"
            )
    return {name: sorted(splits[name], key=_stored_order(split.seed)) for name in SPLITS}


def fingerprint(records: Iterable[Record]) -> str:
    """Returns the sha256 of the sorted texts with their labels: the same for any order.

    Whatever else they have counts where there is some, so that texts with one label have the
    fingerprint that they had before there was more.
    """
    digest = hashlib.sha256()
    lines = []
    for record in records:
        labels, more = sorted(record.labels), [record.choices, record.number, record.history]
        content = [record.text, labels, record.pair, sorted(record.spans)]
        if any(part not in ((), None, "") for part in more):
            content += more
        elif len(labels) == 1 and not record.pair and not record.spans:
            content = [record.text, labels[0]]
        order = (record.text, labels, record.pair, sorted(record.spans))
        lines.append((order, json.dumps(content)))
    for _, line in sorted(lines):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def imbalance(splits: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    """Returns for each split and label the label's share of the split less its share of all.

    Splits without records are left out; shares are of records.
    """
    counts = {
        name: Counter(label for record in records for label in record.labels)
        for name, records in splits.items()
    }
    every = sum(counts.values(), Counter())
    total = sum(map(len, splits.values()))
    return {
        name: {
            label: counts[name][label] / len(records) - every[label] / total
            for label in sorted(every)
        }
        for name, records in splits.items()
        if records
    }


class _Unit(NamedTuple):
    """Records that stay together; units sort by the hash of what they share."""

    digest: bytes
    key: str
    records: list[Record]


def _named(split: ConfigDict) -> str:
    names = ("test", "folds") if split.folds else ("validation", "test")
    values = " and ".join(f"config.data.split.{name}={split[name]}" for name in names)
    return f"config.data.split.kind={split.kind!r}, {values}"


def _check(split: ConfigDict, total: int, *, grouped: bool) -> None:
    sizes = [split.test] if split.folds else [split.validation, split.test]
    if sum(size if size < 1 else size / max(total, 1) for size in sizes) >= 1:
        raise ValueError(
            f"{_named(split)}: expected shares or counts that leave some of the {total} examples "
            "for training"
        )
    if split.folds and split.fold >= split.folds:
        raise ValueError(
            f"config.data.split.fold={split.fold}: expected one of "
            f"config.data.split.folds={split.folds}, counted from 0"
        )
    if grouped and split.kind in ("stratified", "time"):
        raise ValueError(
            f"config.data.split.kind={split.kind!r} would put one group on several sides: pass "
            "--config.data.split.kind=group, or --config.data.group_column= if groups don't matter"
        )
    if split.folds and split.kind == "time":
        raise ValueError(
            "config.data.split.folds has no meaning with config.data.split.kind='time': a fold "
            "would be trained on what came after it; set folds to 0"
        )


def _hash(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).digest()


def _identity(record: Record) -> str:
    return "\n".join([record.text, *filter(None, record.identity[1:])])


def _stored_order(seed: int) -> Callable[[Record], Hashable]:
    def order(record: Record) -> Hashable:
        key = _identity(record)
        return _hash(seed, key)[16:], key, record.labels, record.spans, record.where

    return order


def _units(records: Iterable[Record], key: Callable[[Record], str], seed: int) -> list[_Unit]:
    together: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        together[key(record)].append(record)
    return sorted(_Unit(_hash(seed, key), key, found) for key, found in together.items())


def _group(record: Record) -> str:
    if not record.group:
        raise ValueError(
            f"{record.where}: no group, which config.data.split.kind='group' needs; name the "
            "column that has it in config.data.group_column, and fill or remove the row"
        )
    return record.group


def _strata(units: Iterable[_Unit]) -> list[list[_Unit]]:
    """Returns the units of each set of labels, those of rare sets of several labels together."""
    by_labels: dict[tuple[str, ...], list[_Unit]] = defaultdict(list)
    for unit in units:
        labels = {label for record in unit.records for label in record.labels}
        by_labels[tuple(sorted(labels))].append(unit)
    strata: dict[tuple[str, ...], list[_Unit]] = defaultdict(list)
    for labels, members in sorted(by_labels.items()):
        strata[() if len(labels) > 1 and len(members) < _RARE else labels] += members
    return [sorted(members) for members in strata.values()]


def _allot(size: float, counts: Sequence[int]) -> list[int]:
    """Returns how many of each stratum make a split of `size`.

    A share is rounded within each stratum; a count is shared out by largest remainders.
    """
    if size < 1:
        return [int(size * count + 0.5) for count in counts]
    exact = [size * count / sum(counts) for count in counts]
    allotted = [math.floor(quota) for quota in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: allotted[i] - exact[i])
    for i in by_remainder[: int(size) - sum(allotted)]:
        allotted[i] += 1
    return allotted


def _by_label(records: Sequence[Record], sizes: Mapping[str, float], seed: int) -> Splits:
    strata = _strata(_units(records, _identity, seed))
    splits: Splits = {"train": []}
    starts = [0] * len(strata)
    for name, size in sizes.items():
        allotted = _allot(size, [len(units) for units in strata])
        stops = [start + count for start, count in zip(starts, allotted, strict=True)]
        cuts = zip(strata, starts, stops, strict=True)
        splits[name] = [r for units, a, b in cuts for unit in units[a:b] for r in unit.records]
        starts = stops
    for units, start in zip(strata, starts, strict=True):
        splits["train"] += [record for unit in units[start:] for record in unit.records]
    return splits


def _label_counts(units: Sequence[_Unit]) -> np.ndarray:
    """Returns float64 [G, L + 1]: each unit's records of each label, and all of them."""
    labels = sorted({label for unit in units for r in unit.records for label in r.labels})
    column = {label: index for index, label in enumerate(labels)}
    counts_GxL1 = np.zeros((len(units), len(labels) + 1))
    for row, unit in zip(counts_GxL1, units, strict=True):
        row[-1] = len(unit.records)
        for record in unit.records:
            for label in record.labels:
                row[column[label]] += 1
    return counts_GxL1


def _by_group(records: Sequence[Record], sizes: Mapping[str, float], seed: int) -> Splits:
    units = _units(records, _group, seed)
    counts_GxL1 = _label_counts(units)
    totals_L1 = counts_GxL1.sum(axis=0)
    splits: Splits = {}
    for name, size in sizes.items():
        short_L1 = totals_L1 * (size if size < 1 else size / max(len(records), 1))
        signs_G = np.ones(len(units))  # 1 to put a group in, -1 to take it out again
        for _ in range(_PASSES):
            for group, sign in enumerate(signs_G):
                change_L1 = sign * counts_GxL1[group]
                # The change of the sum of short**2 / total.
                if np.sum(change_L1 * (change_L1 - 2 * short_L1) / totals_L1) < 0:
                    signs_G[group] *= -1
                    short_L1 -= change_L1
        splits[name] = [
            r for unit, sign in zip(units, signs_G, strict=True) if sign < 0 for r in unit.records
        ]
        units = [unit for unit, sign in zip(units, signs_G, strict=True) if sign > 0]
        counts_GxL1 = counts_GxL1[signs_G > 0]
    splits["train"] = [record for unit in units for record in unit.records]
    return splits


def _by_time(records: Sequence[Record], sizes: Mapping[str, float], seed: int) -> Splits:
    del seed  # nothing is drawn
    for record in records:
        if not record.time:
            raise ValueError(
                f"{record.where}: no time, which config.data.split.kind='time' needs; name the "
                "column that has it in config.data.time_column, and fill or remove the row"
            )
    newest = sorted(records, key=lambda record: record.time, reverse=True)
    cuts = [0]
    for _, same in groupby(newest, key=lambda record: record.time):
        cuts.append(cuts[-1] + len(list(same)))
    splits: Splits = {}
    start = 0
    for name, size in sizes.items():
        wanted = start + (size * len(records) if size < 1 else size)
        stop = max(start, min(cuts, key=lambda cut, wanted=wanted: (abs(cut - wanted), cut)))
        splits[name] = newest[start:stop]
        start = stop
    splits["train"] = newest[start:]
    return splits


def _as_given(records: Sequence[Record], sizes: Mapping[str, float], split: ConfigDict) -> Splits:
    splits: Splits = {name: [] for name in SPLITS}
    for record in records:
        if record.split not in SPLITS:
            raise ValueError(
                f"{record.where}: split {record.split!r}, where config.data.split.kind='given' "
                f"expects one of {SPLITS}; name the files of each split in config.data.files, "
                "validation_files and test_files, or choose another kind"
            )
        splits[record.split].append(record)
    if split.folds:
        splits["train"] += splits.pop("validation")
    missing = {name: size for name, size in sizes.items() if not splits.get(name)}
    take = _by_group if _grouped(splits["train"]) else _by_label
    return splits | take(splits["train"], missing, split.seed)


def _grouped(records: Iterable[Record]) -> bool:
    return all(record.group for record in records)


def _fold(records: Sequence[Record], split: ConfigDict) -> Splits:
    """Deals records into folds of equal label ratio: a fold is validation, the rest is train."""
    folds: list[list[Record]] = [[] for _ in range(split.folds)]
    if split.kind == "group" or (split.kind == "given" and _grouped(records)):
        units = _units(records, _group, split.seed)
        counts_GxL1 = _label_counts(units)
        share_GxL1 = counts_GxL1 / counts_GxL1.sum(axis=0)
        dealt_FxL1 = np.zeros((split.folds, counts_GxL1.shape[1]))
        for index in np.argsort(-counts_GxL1[:, -1], kind="stable"):  # the largest groups first
            emptiest = int(np.argmin(dealt_FxL1 @ share_GxL1[index]))
            dealt_FxL1[emptiest] += counts_GxL1[index]
            folds[emptiest] += units[index].records
    else:
        strata = _strata(_units(records, _identity, split.seed))
        for index, unit in enumerate(unit for units in strata for unit in units):
            folds[index % split.folds] += unit.records
    validation = folds.pop(split.fold)
    return {"validation": validation, "train": [record for fold in folds for record in fold]}
