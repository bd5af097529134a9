"""How the tokens of a batch are laid out in rows: pad, bucket or pack.

Here, in numpy alone: placing examples in rows, building the arrays, and choosing from the data the
few shapes (rows R, length L) that are compiled. Not here: which examples and which tokens. Layouts
differ in padding only: the examples of a batch, their order and their
tokens are the same, and `segments_RxL` holds which example a position belongs to.

  pad     one example a row, L = max_length
  bucket  one example a row, L the smallest of a few lengths that holds the longest example
  pack    examples share rows whole, R and L the smallest of a few shapes that holds them all
"""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

KINDS = ("pad", "bucket", "pack")
Shape = tuple[int, int]  # R, L
Packed = tuple[np.ndarray, np.ndarray, np.ndarray]  # which examples; row, offset of each sequence
_LENGTH_STEP = 16  # lengths to choose from are multiples of this, beside those configured
_MAX_LENGTHS = 16  # row lengths tried for pack
_RESERVE_WEIGHT = 4  # pack's reserve counts this many times: using it costs a compilation


def pack_rows(
    lengths_B: np.ndarray, row_length: int, *, max_per_row: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Packs examples into rows, best fit decreasing.

    Longest first, each example goes to the row with the least room that still holds it. That takes
    at most ceil(B / k) rows when every row has room for any k of the examples.

    Args:
        lengths_B: tokens per example, at most `row_length`.
        row_length: positions per row.
        max_per_row: examples per row; None is no limit.

    Returns:
        row and offset within the row of each example, int64 [B] each.
    """
    order = np.argsort(-lengths_B, kind="stable")
    rows_B, offsets_B = np.empty((2, len(lengths_B)), np.int64)
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    rooms = 0  # bit n is set where rows_with_room[n] is not empty: the best fit is its lowest bit
    counts: list[int] = []
    for example, length in zip(order.tolist(), lengths_B[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = row_length, len(counts)
            counts.append(0)
        rows_B[example], offsets_B[example] = row, row_length - room
        counts[row] += 1
        if counts[row] != max_per_row:
            rows_with_room[room - length].append(row)
            rooms |= 1 << room - length
    return rows_B, offsets_B


def pack_alone(lengths_Nx1: np.ndarray, rows: int, length: int, per_row: int) -> Iterator[Packed]:
    """Packs examples of one sequence over the whole split, then cuts it into batches of rows."""
    rows_N, offsets_N = pack_rows(lengths_Nx1[:, 0], length, max_per_row=per_row)
    by_row = np.argsort(rows_N, kind="stable")
    firsts = np.arange(0, rows_N.max() + 1, rows)
    bounds = np.searchsorted(rows_N[by_row], [*firsts, rows_N.max() + 1])
    for first, low, high in zip(firsts, bounds[:-1], bounds[1:], strict=True):
        chosen = by_row[low:high]
        yield chosen, rows_N[chosen] - first, offsets_N[chosen]


def pack_together(
    lengths_NxK: np.ndarray, rows: int, length: int, per_row: int
) -> Iterator[Packed]:
    """Packs examples whose sequences must share a batch: as many examples as fit, by length."""
    order = np.argsort(-lengths_NxK.sum(axis=1), kind="stable")
    most = rows * per_row // lengths_NxK.shape[1]
    first = 0
    while first < len(order):
        tokens = np.cumsum(lengths_NxK[order[first : first + most]].sum(axis=1))
        count = max(1, int(np.searchsorted(tokens, rows * length, side="right")))
        while True:
            chosen = order[first : first + count]
            lengths_S = lengths_NxK[chosen].reshape(-1)
            rows_S, offsets_S = pack_rows(lengths_S, length, max_per_row=per_row)
            if rows_S.max() < rows or count == 1:
                break
            count -= max(1, count // 16)
        yield chosen, rows_S, offsets_S
        first += count


def place(kind: str, lengths_B: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns row and offset of each example, int64 [B], or None if they don't fit `shape`."""
    num_rows, length = shape
    if lengths_B.max() > length or lengths_B.sum() > num_rows * length:
        return None
    if kind != "pack":
        return np.arange(len(lengths_B)), np.zeros(len(lengths_B), np.int64)
    rows_B, offsets_B = pack_rows(lengths_B, length)
    return (rows_B, offsets_B) if rows_B.max() < num_rows else None


def fill(
    columns_KxP: np.ndarray,
    lengths_B: np.ndarray,
    starts_B: np.ndarray,
    segments_B: np.ndarray,
    *,
    size: int,
) -> np.ndarray:
    """Writes examples to their places in rows that lie end to end.

    Args:
        columns_KxP: int32, such as tokens and types, of the examples end to end.
        lengths_B: how many of them each example has.
        starts_B: where each example starts.
        segments_B: number of each example's segment, from 1.
        size: positions of all rows.

    Returns:
        int32 [2 + K, size]: positions within the example, segments, columns; 0 where padding.
    """
    arrays = np.zeros((2 + len(columns_KxP), size), np.int32)
    source = np.arange(columns_KxP.shape[1])
    first_B = np.cumsum(lengths_B) - lengths_B
    places = source + np.repeat(starts_B - first_B, lengths_B)
    arrays[0, places] = source - np.repeat(first_B, lengths_B)
    arrays[1, places] = np.repeat(segments_B, lengths_B)
    arrays[2:, places] = columns_KxP
    return arrays


def choose_shapes(
    layout: ConfigDict, lengths_SxMxB: np.ndarray, row_multiple: int
) -> tuple[Shape, ...]:
    """Chooses the shapes with the fewest positions over the given steps.

    The shape of `pad` is always among them, the reserve that every batch fits. The others are
    chosen greedily, then exchanged one by one as long as that saves positions.

    Args:
        layout: config.layout.
        lengths_SxMxB: tokens of the examples in S steps of M microbatches, at most its max_length.
        row_multiple: R is a multiple of this.

    Returns:
        (R, L) in the order in which batches should try them: fewest positions first.
    """
    kind, max_length = layout.kind, layout.max_length
    num_rows = -(-lengths_SxMxB.shape[-1] // row_multiple) * row_multiple
    if kind == "pad" or layout.max_shapes == 1:
        return ((num_rows, max_length),)
    candidates = [(num_rows, max_length, np.ones(len(lengths_SxMxB), bool))]
    if kind == "bucket":
        longest_S = lengths_SxMxB.max(axis=(1, 2))
        lengths = range(_LENGTH_STEP, max_length, _LENGTH_STEP)
        candidates += ((num_rows, length, longest_S <= length) for length in lengths)
    else:
        candidates += _packed(lengths_SxMxB, max_length, layout.row_length, row_multiple)
    limit = num_rows * max_length
    candidates[1:] = [row for row in candidates[1:] if row[0] * row[1] < limit]
    # A shape that a step does not fit counts as the reserve there, which the step then takes.
    cost = limit * (_RESERVE_WEIGHT if kind == "pack" else 1)
    positions_NxS = np.array([np.where(fits_S, r * n, cost) for r, n, fits_S in candidates])
    positions_NxS[0] = cost
    chosen: list[int] = []
    best = np.inf
    while True:
        for slot in range(layout.max_shapes - 1):
            others = [0, *chosen[:slot], *chosen[slot + 1 :]]
            totals_N = np.minimum(positions_NxS[others].min(axis=0), positions_NxS).sum(axis=1)
            chosen[slot : slot + 1] = [int(totals_N.argmin())]
        if totals_N.min() >= best:
            break
        best = totals_N.min()
    shapes = {candidates[i][:2] for i in (0, *chosen)}
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1])))


def _packed(
    lengths_SxMxB: np.ndarray, max_length: int, row_length: int, row_multiple: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields rows and length of shapes to pack in, and which steps they fit, bool [S]."""
    step = -(-max(1, row_length - max_length) // (_LENGTH_STEP * _MAX_LENGTHS)) * _LENGTH_STEP
    multiples = range(-(-max_length // step) * step, row_length, step)
    for length in sorted({max_length, *multiples, row_length}):
        rows_SxM = [[pack_rows(b, length)[0].max() + 1 for b in part] for part in lengths_SxMxB]
        rows_S = -(-np.max(rows_SxM, axis=1) // row_multiple) * row_multiple
        yield from ((rows, length, rows_S <= rows) for rows in np.unique(rows_S).tolist())
