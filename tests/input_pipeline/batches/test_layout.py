"""Layouts: packing, the arrays, and the choice of shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from input_pipeline.batches import layout

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(np.array)


def choose_shapes(kind, lengths_SxMxB, *, row_multiple=1, **options):
    return layout.choose_shapes(ConfigDict({"kind": kind, **options}), lengths_SxMxB, row_multiple)


@given(LENGTHS, st.integers(40, 100), st.none() | st.integers(1, 5))
def test_packed_examples_lie_whole_in_rows_and_never_overlap(lengths_B, row_length, max_per_row):
    rows_B, offsets_B = layout.pack_rows(lengths_B, row_length, max_per_row=max_per_row)
    used = np.zeros((rows_B.max() + 1, row_length), int)
    for length, row, offset in zip(lengths_B, rows_B, offsets_B, strict=True):
        assert offset + length <= row_length
        used[row, offset : offset + length] += 1
    assert used.max() == 1 and (used.sum(axis=1) > 0).all()
    if max_per_row:
        assert np.bincount(rows_B).max() <= max_per_row


@given(LENGTHS, st.integers(40, 100))
def test_packing_keeps_its_bound_on_rows(lengths_B, row_length):
    rows_B, _ = layout.pack_rows(lengths_B, row_length)
    assert rows_B.max() + 1 <= -(-len(lengths_B) // (row_length // lengths_B.max()))


def test_packing_takes_the_fullest_row_that_fits():
    lengths_B = np.array([6, 4, 5, 3, 2])
    rows_B, offsets_B = layout.pack_rows(lengths_B, 10)
    assert rows_B.tolist() == [0, 0, 1, 1, 1]
    assert offsets_B.tolist() == [0, 6, 0, 5, 8]


@given(LENGTHS, st.sampled_from(layout.KINDS), st.integers(1, 4))
def test_examples_are_found_again_in_their_rows(lengths_B, kind, row_multiple):
    num_rows = -(-len(lengths_B) // row_multiple) * row_multiple
    rows_B, offsets_B = layout.place(kind, lengths_B, (num_rows, 40))
    tokens = np.arange(1, lengths_B.sum() + 1)
    positions, segments, ids, types = layout.fill(
        np.stack([tokens, tokens % 2]),
        lengths_B,
        rows_B * 40 + offsets_B,
        1 + np.arange(len(lengths_B)),
        size=num_rows * 40,
    ).reshape(4, num_rows, 40)
    found = [ids[segments == 1 + example] for example in range(len(lengths_B))]
    np.testing.assert_array_equal(np.concatenate(found), tokens)
    assert [len(part) for part in found] == lengths_B.tolist()
    for example, length in enumerate(lengths_B):
        assert positions[segments == 1 + example].tolist() == list(range(length))
        assert len(np.unique(np.nonzero(segments == 1 + example)[0])) == 1
    np.testing.assert_array_equal(types, ids % 2)
    assert not ids[segments == 0].any() and not positions[segments == 0].any()


@given(
    st.sampled_from(layout.KINDS),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_every_batch_fits_a_shape_and_shapes_are_few(
    kind, num_examples, microbatches, max_shapes, row_multiple, seed
):
    rng = np.random.default_rng(seed)
    simulated = rng.integers(1, 33, (20, microbatches, num_examples))
    shapes = choose_shapes(
        kind,
        simulated,
        max_length=40,
        row_length=64,
        max_shapes=max_shapes,
        row_multiple=row_multiple,
    )
    assert len(shapes) <= max_shapes
    assert all(rows % row_multiple == 0 and 1 <= length <= 64 for rows, length in shapes)
    positions = [rows * length for rows, length in shapes]
    assert positions == sorted(positions)
    longest = np.full(num_examples, 40)
    for lengths_B in (longest, *simulated[:, 0]):
        assert any(layout.place(kind, lengths_B, shape) for shape in shapes)


def test_a_batch_that_does_not_fit_is_refused():
    assert layout.place("pack", np.array([6, 6, 6]), (2, 10)) is None  # 18 of 20 positions, 3 rows
    assert layout.place("bucket", np.array([11]), (2, 10)) is None
    assert layout.place("pack", np.array([6, 4, 6]), (2, 10)) is not None


def test_more_shapes_never_take_more_positions():
    rng = np.random.default_rng(0)
    simulated = np.minimum(1 + rng.geometric(0.02, (200, 1, 16)), 256)
    for kind in ("bucket", "pack"):
        totals = []
        for max_shapes in (1, 2, 3, 4):
            shapes = choose_shapes(
                kind,
                simulated,
                max_length=256,
                row_length=384,
                max_shapes=max_shapes,
                row_multiple=1,
            )
            totals.append(
                sum(
                    next(r * n for r, n in shapes if layout.place(kind, lengths_B, (r, n)))
                    for (lengths_B,) in simulated
                )
            )
        assert totals == sorted(totals, reverse=True) and totals[-1] < totals[0]


def test_bucket_lengths_follow_the_data():
    simulated = np.full((10, 1, 4), 20)
    simulated[:5, 0, 0] = 50
    shapes = choose_shapes(
        "bucket", simulated, max_length=256, row_length=256, max_shapes=3, row_multiple=1
    )
    assert shapes == ((4, 32), (4, 64), (4, 256))


@pytest.mark.parametrize("kind", ["pad", "pack"])
def test_one_shape_is_that_of_pad(kind):
    shapes = choose_shapes(
        kind,
        np.full((2, 1, 5), 3),
        max_length=40,
        row_length=64,
        max_shapes=1,
        row_multiple=4,
    )
    assert shapes == ((8, 40),)


@given(
    st.integers(1, 5).flatmap(
        lambda count: st.lists(
            st.lists(st.integers(0, 12), min_size=count, max_size=count), min_size=1, max_size=40
        )
    ),
    st.integers(1, 4),
)
def test_sequences_of_one_example_share_a_batch_and_find_room(lengths, rows):
    """Each example comes once, with all its sequences, in rows that hold them."""
    lengths_NxK = np.array(lengths)
    count = lengths_NxK.shape[1]
    rows = max(rows, -(-count // 2))  # any two sequences fit a row
    seen = []
    for chosen, rows_S, offsets_S in layout.pack_together(lengths_NxK, rows, 24, 4):
        seen += chosen.tolist()
        used = np.zeros((rows, 24), int)
        lengths_S = lengths_NxK[chosen].reshape(-1)
        for length, row, offset in zip(lengths_S, rows_S, offsets_S, strict=True):
            assert offset + length <= 24
            used[row, offset : offset + length] += 1
        assert used.max() <= 1
    assert sorted(seen) == list(range(len(lengths)))
