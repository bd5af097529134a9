"""Windows of long texts: which tokens are of the text, and one result from several windows.

Here: host code in numpy. Not here: where texts are cut (input_pipeline/batches/windows.py), tags
(input_pipeline/batches/span_tags.py).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline.batches import span_tags
from input_pipeline.batches.template import FIELDS, Encoded, Encoder
from input_pipeline.examples import Examples, Ragged

_CHUNK = 512  # texts that are tokenised at once

ScoredSpan = tuple[int, int, int, float]  # start, stop, label, score


def in_text(encoded: Encoded) -> np.ndarray:
    """Returns which tokens are of characters of the text, bool, flat."""
    is_text_P = encoded.fields == FIELDS.index("text")
    return is_text_P & (encoded.offsets[:, 0] < encoded.offsets[:, 1])


def rows_of_owners(windows: Examples, examples: Examples) -> np.ndarray:
    """Returns the index of each window's owner among the examples."""
    rows = {int(id_): row for row, id_ in enumerate(examples.ids_N)}
    return np.array([rows[int(owner)] for owner in windows.owners_N], int)


def spread(
    places_T: np.ndarray, offsets_Tx2: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gives each character of a token, up to the number of slots, a slot of its own.

    Args:
        places_T: of tokens of the text.
        offsets_Tx2: their characters. The last slot of a longer token takes the rest of it.
        slots: S.

    Returns:
        place * S + slot of each slot that is used, and its characters.
    """
    counts_T = np.clip(offsets_Tx2[:, 1] - offsets_Tx2[:, 0], 1, slots)
    rows_U = np.repeat(np.arange(len(counts_T)), counts_T)
    slots_U = np.arange(len(rows_U)) - np.repeat(np.cumsum(counts_T) - counts_T, counts_T)
    starts_U = offsets_Tx2[rows_U, 0] + slots_U
    is_last_U = slots_U == counts_T[rows_U] - 1
    stops_U = np.where(is_last_U, offsets_Tx2[rows_U, 1], starts_U + 1)
    return places_T[rows_U] * slots + slots_U, np.stack([starts_U, stops_U], axis=1)


def tokens(
    windows: Examples, encoder: Encoder, *, slots: int = 1
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields for each window its index, which of its tokens are of the text, and their offsets; of
    several slots what `spread` makes of these."""
    for first in range(0, len(windows), _CHUNK):
        part = slice(first, first + _CHUNK)
        pairs_N = windows.pairs_N[part] if "pair" in encoder.fields else None
        encoded = encoder(windows.texts_N[part], pairs_N, offsets=True)
        in_text_P, stops_B = in_text(encoded), encoded.starts_B + encoded.lengths_B
        for row, (start, stop) in enumerate(zip(encoded.starts_B, stops_B, strict=True)):
            places = np.flatnonzero(in_text_P[start:stop])
            yield first + row, *spread(places, encoded.offsets[start:stop][places], slots)


def reachable(
    windows: Examples, examples: Examples, encoder: Encoder, *, flat: bool, slots: int = 1
) -> np.ndarray:
    """Returns how many spans of each example a model with these tokens and windows can find.

    Args:
        windows: with the spans that they hold whole.
        examples: their owners.
        encoder: texts to tokens.
        flat: whether no two spans share a token.
        slots: See `spread`.
    """
    rows_W = rows_of_owners(windows, examples)
    reached: list[set[tuple[int, ...]]] = [set() for _ in range(len(examples))]
    for window, _, offsets_Tx2 in tokens(windows, encoder, slots=slots):
        spans_Sx3, text = windows.spans.row(window), windows.texts_N[window]
        kept_S = span_tags.representable(spans_Sx3, offsets_Tx2, text, flat=flat)
        start = int(windows.starts_N[window])
        moved_Sx3 = spans_Sx3[kept_S] + np.array([start, start, 0])
        reached[rows_W[window]].update(map(tuple, moved_Sx3.tolist()))
    # Windows to learn from also hold what their edges left of spans.
    true = [set(map(tuple, examples.spans.row(row).tolist())) for row in range(len(examples))]
    return np.array([len(both[0] & both[1]) for both in zip(reached, true, strict=True)])


def with_cut_spans(windows: Examples, examples: Examples, *, label: int) -> Examples:
    """Adds what the windows hold of the spans that they do not hold whole, with that label."""
    if len(np.unique(windows.owners_N)) == len(windows):
        return windows
    rows_W, spans = rows_of_owners(windows, examples), []
    for window, text in enumerate(windows.texts_N):
        start = int(windows.starts_N[window])
        all_Sx3 = examples.spans.row(rows_W[window]) - [start, start, 0]
        clipped_Sx3 = np.clip(all_Sx3, 0, [len(text), len(text), label])
        cut_S = (clipped_Sx3[:, 0] < clipped_Sx3[:, 1]) & (clipped_Sx3 != all_Sx3).any(axis=1)
        clipped_Sx3[:, 2] = label
        spans.append(np.concatenate([windows.spans.row(window), clipped_Sx3[cut_S]]))
    dtype = windows.spans.values.dtype
    return dataclasses.replace(windows, spans=Ragged.of(spans, dtype, width=3))


def territories(windows: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Returns from and up to which character of the owner's text a window is believed.

    Neighbours part in the middle of what they share: each character is read where it stands
    farther from the edge. A span is read where its middle is, and so whole if it isn't longer than
    what they share.
    """
    stops_N = windows.starts_N + [len(text) for text in windows.texts_N]
    together = windows.owners_N[1:] == windows.owners_N[:-1]
    borders = (windows.starts_N[1:] + stops_N[:-1]) / 2
    lows_N = np.append(-np.inf, np.where(together, borders, -np.inf))
    highs_N = np.append(np.where(together, borders, np.inf), np.inf)
    return lows_N, highs_N


def in_order(spans: Sequence[ScoredSpan], *, flat: bool) -> list[ScoredSpan]:
    """Sorts the spans of all windows; if flat, without those that overlap the one before."""
    kept: list[ScoredSpan] = []
    for span in sorted(spans):
        if not flat or not kept or kept[-1][1] <= span[0]:
            kept.append(span)
    return kept
