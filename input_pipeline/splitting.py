"""Splits records into train, validation and test by a hash of their text.

Here: the assignment, the stored order and the fingerprint of a split. Not here: writing them.
Called by preparation.py.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable

from input_pipeline.sources import Record


def split(
    records: Iterable[Record], *, validation_share: float, test_share: float, seed: int
) -> dict[str, list[Record]]:
    """Returns the records of 'train', 'validation' and 'test', stratified by label.

    Within each label the records are sorted by the first half of sha256(seed, text) and cut: the
    lowest hashes are the test split, then comes validation, so that a change of `validation_share`
    leaves the test split as it is. Each split is then ordered by the second half, so that its first
    N are a random sample. Neither depends on the order of `records`, whose texts must be distinct.

    Raises:
        ValueError: if the shares make no sense, or a share that was asked for comes out empty.
    """
    shares = {"test": test_share, "validation": validation_share}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise ValueError(
            f"config.data.validation_share={validation_share} and "
            f"config.data.test_share={test_share}: expected shares of 0 or more, under 1 in sum"
        )
    by_label = defaultdict(list)
    for record in records:
        digest = hashlib.sha256(f"{seed}\n{record.text}".encode()).digest()
        by_label[record.label].append((digest, record))

    splits: dict[str, list[tuple[bytes, Record]]] = {"train": [], "validation": [], "test": []}
    for hashed in by_label.values():
        hashed.sort()
        start = 0
        for name, share in shares.items():
            stop = start + int(share * len(hashed) + 0.5)
            splits[name] += hashed[start:stop]
            start = stop
        splits["train"] += hashed[start:]

    for name, hashed in splits.items():
        if not hashed and shares.get(name, 1) > 0:
            raise ValueError(
                f"the {name} split is empty: {sum(map(len, by_label.values()))} examples of "
                f"{len(by_label)} labels are too few for "
                f"config.data.validation_share={validation_share} and "
                f"config.data.test_share={test_share}; add data or change the shares"
            )
    return {
        name: [record for _, record in sorted(hashed, key=lambda pair: pair[0][16:])]
        for name, hashed in splits.items()
    }


def fingerprint(records: Iterable[Record]) -> str:
    """Returns the sha256 of the sorted (text, label) pairs: the same for any order."""
    digest = hashlib.sha256()
    for text, label in sorted((record.text, record.label) for record in records):
        digest.update(json.dumps([text, label]).encode() + b"\n")
    return digest.hexdigest()
