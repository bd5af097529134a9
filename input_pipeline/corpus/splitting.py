"""Splits records into train, validation and test.

Here: the kinds of splits and k-fold, the stored order, and the fingerprint of a split. Not here:
finding copies across splits (audit.py), or writing them.

Whatever is drawn is drawn by a hash of the seed and the text, or group: nothing depends on the
order of the records, and new data moves few of the old.
"""

import functools
import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.records import Record

SPLITS = ("train", "validation", "test")
_PASSES = 3  # over the groups, to bring the counts of labels closer to what they should be
_WEIGHTS = (1, 10, 100, 1000)  # of a split's size beside its counts of labels
_RARE = 20  # texts of a set of several labels, under which it is no stratum of its own

Splits = dict[str, list[Record]]


def split(records: Iterable[Record], split: ConfigDict) -> Splits:
    """Returns the records of 'train', 'validation' and 'test'.

    The test split comes first, so that it depends neither on the size of validation nor on the
    fold. Sizes below 1 are shares of the records, larger ones are counts, 0 is none. The kinds:

    - 'stratified': within each label, the lowest hashes of the text are the test split, then comes
      validation, each label with as many as its share is, rounded up or down so that the shares
      hold over all labels. Labels are stratified as sets where texts have several; of these, the
      rare sets form one stratum. Records without labels form one.
    - 'group': in the order of their hash, groups go to the test split, or leave it again, where
      that brings its counts of all labels closer to what they should be; then to validation. So
      sizes and shares of labels are met as far as groups allow; `imbalance` reports how far.
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
        asked = name == "train" or split[name] > 0 or (split.folds and name == "validation")
        if asked and not splits[name]:
            what = {"group": "group", "time": "time"}.get(split.kind, "labels")
            count = len({getattr(record, what) for record in records})
            found = f"{len(records)} examples of {count} {what.rstrip('s')}s are too few"
            raise ValueError(
                f"the {name} split is empty: {found} for {_named(split)}; add data or change these"
            )
    return {name: sorted(splits[name], key=_stored_order(split.seed)) for name in SPLITS}


def fingerprint(records: Iterable[Record]) -> str:
    """Returns the sha256 of the sorted texts with their labels: the same for any order.

    Whatever else they have counts where there is some, so that texts with one label have the
    fingerprint that they had before there was more.
    """
    lines = []
    for record in records:
        labels, more = sorted(record.labels), [record.choices, record.number, record.history]
        more += [record.negatives] * bool(record.negatives)  # older fingerprints have none
        order = (record.text, labels, record.pair, sorted(record.spans))
        content = list(order)
        if any(part not in ((), None, "") for part in more):
            content += more
        elif len(labels) == 1 and not record.pair and not record.spans:
            content = [record.text, labels[0]]
        lines.append((order, json.dumps(content)))
    return hashlib.sha256("".join(f"{line}\n" for _, line in sorted(lines)).encode()).hexdigest()


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


class _Stratum(NamedTuple):
    """Units of one set of labels, in their order, and a hash of the labels."""

    digest: bytes
    units: list[_Unit]


def _named(split: ConfigDict) -> str:
    names = ("test", "folds") if split.folds else ("validation", "test")
    values = " and ".join(f"config.data.split.{name}={split[name]}" for name in names)
    return f"config.data.split.kind={split.kind!r}, {values}"


def _check(split: ConfigDict, total: int, *, grouped: bool) -> None:
    key, sizes = "config.data.split", [split.test]
    sizes += [] if split.folds else [split.validation]
    if sum(size if size < 1 else size / max(total, 1) for size in sizes) >= 1:
        expected = f"shares or counts that leave some of the {total} examples for training"
        raise ValueError(f"{_named(split)}: expected {expected}")
    if split.folds and split.fold >= split.folds:
        expected = f"expected one of {key}.folds={split.folds}, counted from 0"
        raise ValueError(f"{key}.fold={split.fold}: {expected}")
    divided = any(sizes) or split.folds
    if grouped and divided and split.kind in ("stratified", "time"):
        raise ValueError(
            f"{key}.kind={split.kind!r} would put one group on several sides: pass "
            "--config.data.split.kind=group, or --config.data.group_column= if groups don't matter"
        )
    if split.folds and split.kind == "time":
        raise ValueError(
            f"{key}.folds has no meaning with {key}.kind='time': a fold would be trained on what "
            "came after it; set folds to 0"
        )


def _required(record: Record, name: str) -> str:
    """Returns a record's group or time."""
    if not getattr(record, name):
        raise ValueError(
            f"{record.where}: no {name}, which config.data.split.kind={name!r} needs; name the "
            f"column that has it in config.data.{name}_column, and fill or remove the row"
        )
    return getattr(record, name)


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
    return sorted(_Unit(_hash(seed, key), key, same) for key, same in together.items())


_group = functools.partial(_required, name="group")
_time = functools.partial(_required, name="time")


def _strata(units: Iterable[_Unit], seed: int) -> list[_Stratum]:
    """Returns the units of each set of labels, those of rare sets of several labels together."""
    by_labels: dict[tuple[str, ...], list[_Unit]] = defaultdict(list)
    for unit in units:
        labels = {label for record in unit.records for label in record.labels}
        by_labels[tuple(sorted(labels))].append(unit)
    strata: dict[tuple[str, ...], list[_Unit]] = defaultdict(list)
    for labels, members in sorted(by_labels.items()):
        strata[() if len(labels) > 1 and len(members) < _RARE else labels] += members
    return [
        _Stratum(_hash(seed, "\n".join(labels)), sorted(members))
        for labels, members in strata.items()
    ]


def _allot(size: float, strata: Sequence[_Stratum], taken: Sequence[int]) -> list[int]:
    """Returns how many units of each stratum make a split of `size`, where some are taken.

    A share is rounded within each stratum, unless that misses the share of the whole by more than 1
    unit and 1 %, as it does with many small strata. Then, and for a count, what the strata have by
    right is rounded down, and the largest remainders are rounded up. Of equal remainders those come
    first that leave training an example, then, in strata that else get nothing, those of which
    least is taken, in the order of a hash.
    """
    counts = [len(stratum.units) for stratum in strata]
    total = size * sum(counts) if size < 1 else size
    quotas = [size * count if size < 1 else size * count / sum(counts) for count in counts]
    if size < 1:
        rounded = [int(quota + 0.5) for quota in quotas]
        if any(rounded) and abs(sum(rounded) - total) <= max(1, 0.01 * total):
            return rounded
    allotted = [math.floor(quota) for quota in quotas]
    left = [count - used - some for count, used, some in zip(counts, taken, allotted, strict=True)]

    def order(i: int) -> Hashable:
        ties = () if allotted[i] else (taken[i], strata[i].digest)
        return left[i] == 1, allotted[i] - quotas[i], ties

    larger = [i for i in range(len(strata)) if left[i] and quotas[i] > allotted[i]]
    for i in sorted(larger, key=order)[: int(total + 0.5) - sum(allotted)]:
        allotted[i] += 1
    return allotted


def _by_label(records: Sequence[Record], sizes: Mapping[str, float], seed: int) -> Splits:
    strata = _strata(_units(records, _identity, seed), seed)
    starts, splits = [0] * len(strata), {}
    for name, size in sizes.items():
        allotted = _allot(size, strata, starts)
        stops = [start + count for start, count in zip(starts, allotted, strict=True)]
        splits[name] = _cut(strata, starts, stops)
        starts = stops
    return splits | {"train": _cut(strata, starts, [len(stratum.units) for stratum in strata])}


def _cut(strata: Sequence[_Stratum], starts: Sequence[int], stops: Sequence[int]) -> list[Record]:
    """Returns the records of a range of units of each stratum."""
    cuts = zip(strata, starts, stops, strict=True)
    return [r for stratum, a, b in cuts for unit in stratum.units[a:b] for r in unit.records]


def _label_counts(units: Sequence[_Unit]) -> np.ndarray:
    """Returns float64 [G, L + 1]: each unit's records of each label, and all of them."""
    labels = sorted({label for unit in units for r in unit.records for label in r.labels})
    column = {label: index for index, label in enumerate(labels)}
    counts_GxL1 = np.zeros((len(units), len(labels) + 1))
    for row, unit in zip(counts_GxL1, units, strict=True):
        row[-1] = len(unit.records)
        for label in itertools.chain.from_iterable(record.labels for record in unit.records):
            row[column[label]] += 1
    return counts_GxL1


def _by_group(records: Sequence[Record], sizes: Mapping[str, float], seed: int) -> Splits:
    units = _units(records, _group, seed)
    counts_GxL1 = _label_counts(units)
    totals_L1 = counts_GxL1.sum(axis=0)
    splits: Splits = {}
    for name, size in sizes.items():
        wanted_L1 = totals_L1 * (size if size < 1 else size / max(len(records), 1))
        inside_G = _choose_groups(counts_GxL1, wanted_L1, totals_L1)
        chosen = itertools.compress(units, inside_G)
        splits[name] = [record for unit in chosen for record in unit.records]
        units = list(itertools.compress(units, ~inside_G))
        counts_GxL1 = counts_GxL1[~inside_G]
    return splits | {"train": [record for unit in units for record in unit.records]}


def _choose_groups(
    counts_GxL1: np.ndarray, wanted_L1: np.ndarray, totals_L1: np.ndarray
) -> np.ndarray:
    """Returns which groups have the wanted counts of labels, and of all, as nearly as groups allow.

    Many small labels, of each of which a part of an example is wanted, outweigh the size of the
    split. Where that misses it, size counts more and more, and the choice nearest to it wins.

    Args:
        counts_GxL1: records of each group by label, and all of them.
        wanted_L1: what to choose of them.
        totals_L1: of all groups, those of other splits included.

    Returns:
        Bool [G].
    """
    if not len(counts_GxL1):
        return np.zeros(0, bool)
    tolerance = max(1.0, 0.01 * wanted_L1[-1], counts_GxL1[:, -1].mean())
    best_G, nearest = np.zeros(len(counts_GxL1), bool), math.inf
    for weight in _WEIGHTS:
        scales_L1 = totals_L1.copy()
        scales_L1[-1] /= weight
        short_L1 = wanted_L1.copy()
        signs_G = np.ones(len(counts_GxL1))  # 1 to put a group in, -1 to take it out again
        for _ in range(_PASSES):
            for group, sign in enumerate(signs_G):
                change_L1 = sign * counts_GxL1[group]
                # The change of the sum of short**2 / scale.
                if np.sum(change_L1 * (change_L1 - 2 * short_L1) / scales_L1) < 0:
                    signs_G[group] *= -1
                    short_L1 -= change_L1
        if abs(short_L1[-1]) < nearest:
            best_G, nearest = signs_G < 0, abs(short_L1[-1])
        if nearest <= tolerance:
            break
    return best_G


def _by_time(records: Sequence[Record], sizes: Mapping[str, float], seed: int) -> Splits:
    del seed  # nothing is drawn
    newest = sorted(records, key=_time, reverse=True)
    cuts = [
        0,
        *itertools.accumulate(len(list(same)) for _, same in itertools.groupby(newest, _time)),
    ]
    splits: Splits = {}
    start = 0
    for name, size in sizes.items():
        wanted = start + (size * len(records) if size < 1 else size)
        stop = max(start, min(cuts, key=lambda cut, wanted=wanted: (abs(cut - wanted), cut)))
        splits[name] = newest[start:stop]
        start = stop
    return splits | {"train": newest[start:]}


def _as_given(records: Sequence[Record], sizes: Mapping[str, float], split: ConfigDict) -> Splits:
    splits: Splits = {name: [] for name in SPLITS}
    for record in records:
        if record.split not in SPLITS:
            expected = f"config.data.split.kind='given' expects one of {SPLITS}"
            raise ValueError(
                f"{record.where}: split {record.split!r}, where {expected}; name the files of each "
                "in config.data.files, validation_files and test_files, or choose another kind"
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
        strata = _strata(_units(records, _identity, split.seed), split.seed)
        for index, unit in enumerate(unit for stratum in strata for unit in stratum.units):
            folds[index % split.folds] += unit.records
    validation = folds.pop(split.fold)
    return {"validation": validation, "train": [record for fold in folds for record in fold]}
