"""Decides which records are fit to learn from, and counts the others by reason.

Here: stripping, length, exact duplicates and contradictory labels. Not here: changing characters
inside a text, or near duplicates. Called by preparation.py.
"""

from collections import defaultdict
from collections.abc import Iterable

from input_pipeline.sources import Record

REASONS = ("empty", "too_short", "contradictory", "duplicate")


def clean(
    records: Iterable[Record], *, min_characters: int
) -> tuple[list[Record], dict[str, list[str]]]:
    """Strips white space and drops what cannot be learned from, or would be learned twice.

    The reasons, the first that applies: 'empty'; 'too_short', under `min_characters`;
    'contradictory', every copy of a text that occurs with more than one label; 'duplicate', every
    copy but the first.

    Returns:
        The records kept, in their order, and for each of REASONS the `where` of those dropped.
    """
    dropped: dict[str, list[str]] = {reason: [] for reason in REASONS}
    candidates = []
    labels = defaultdict(set)
    for record in records:
        record = record._replace(text=record.text.strip())
        if not record.text:
            dropped["empty"].append(record.where)
        elif len(record.text) < min_characters:
            dropped["too_short"].append(record.where)
        else:
            candidates.append(record)
            labels[record.text].add(record.label)

    kept, seen = [], set()
    for record in candidates:
        if len(labels[record.text]) > 1:
            dropped["contradictory"].append(record.where)
        elif record.text in seen:
            dropped["duplicate"].append(record.where)
        else:
            seen.add(record.text)
            kept.append(record)
    return kept, dropped
