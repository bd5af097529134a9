"""The order of examples: permutations, seeking, other batch sizes, and balanced lengths."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.batches.stream import Stream

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**40)


def lengths(count):
    return np.random.default_rng(count).geometric(0.02, count)


@given(SIZES, SEEDS, st.integers(0, 5))
def test_each_epoch_is_a_permutation(count, seed, epoch):
    indices, epochs = Stream(lengths(count), seed=seed).at(epoch * count, count)
    assert sorted(indices.tolist()) == list(range(count))
    assert set(epochs.tolist()) == {epoch}


@given(SIZES, SEEDS, st.integers(0, 1000), st.integers(1, 64))
def test_seeking_equals_iterating(count, seed, first, batch_size):
    walked, _ = Stream(lengths(count), seed=seed).at(0, first + batch_size)
    sought, _ = Stream(lengths(count), seed=seed).at(first, batch_size)
    assert sought.tolist() == walked[first:].tolist()


def test_another_batch_size_continues_at_the_same_example():
    stream = Stream(lengths(100), seed=3)
    one_run = [stream.at(first, 16)[0] for first in range(0, 480, 16)]
    resumed = [stream.at(first, 16)[0] for first in range(0, 240, 16)]
    resumed += [stream.at(first, 24)[0] for first in range(240, 480, 24)]
    np.testing.assert_array_equal(np.concatenate(one_run), np.concatenate(resumed))


def test_seeds_and_epochs_give_different_orders():
    stream = Stream(lengths(200), seed=0)
    first, second = stream.at(0, 200)[0], stream.at(200, 200)[0]
    other = Stream(lengths(200), seed=1).at(0, 200)[0]
    # Two random orders agree in one place on average.
    assert (first == second).sum() < 20 and (first == other).sum() < 20


def test_a_far_position_costs_one_permutation(monkeypatch):
    drawn, draw = [], Stream._draw
    monkeypatch.setattr(
        Stream, "_draw", lambda self, epoch: drawn.append(epoch) or draw(self, epoch)
    )
    stream = Stream(lengths(1000), seed=0)
    for first in range(10**12, 10**12 + 160, 16):
        stream.at(first, 16)
    assert drawn == [10**9]


def test_aligned_runs_take_one_example_from_each_quantile_of_length():
    sizes = np.arange(1024)
    indices, _ = Stream(sizes, seed=5).at(3 * 1024, 1024)
    for run in (8, 16, 64, 256):
        quantiles = sizes[indices].reshape(-1, run) * run // 1024
        assert (np.sort(quantiles, axis=1) == np.arange(run)).all()


def test_batches_need_nearly_equal_room_even_where_epochs_meet():
    sizes = lengths(1000)
    indices, _ = Stream(sizes, seed=0).at(0, 16_000)
    totals = sizes[indices].reshape(-1, 16).sum(axis=1)
    shuffled = np.random.default_rng(0).choice(sizes, (1000, 16)).sum(axis=1)
    assert totals.std() < shuffled.std() / 2


def test_places_are_uniform():
    """An example stands anywhere in the epoch: quarters of it are equally likely."""
    sizes = np.arange(64)
    stream = Stream(sizes, seed=0)
    places = np.array([np.argsort(stream.at(64 * epoch, 64)[0]) for epoch in range(400)])
    for example in (0, 13, 63):
        counts = np.bincount(places[:, example] // 16, minlength=4)
        assert counts.min() > 60  # expected 100, standard deviation 8.7


def test_the_order_depends_on_no_method_of_numpys_generator(monkeypatch):
    """If this changes, running trainings go on with other examples: no change may want that."""
    monkeypatch.setattr(np.random, "default_rng", None)
    monkeypatch.setattr(np.random, "Generator", None)
    first = [7, 11, 9, 5, 3, 1, 8, 10, 2, 6, 4, 0]
    second = [11, 4, 5, 7, 6, 8, 0, 3, 1, 9, 10, 2]
    assert Stream(np.arange(12) % 5, seed=7).at(0, 24)[0].tolist() == first + second
    assert Stream(np.arange(12) % 5, seed=2**40).at(12 * 10**9, 12)[0].tolist() == [
        4,
        10,
        2,
        6,
        9,
        0,
        3,
        11,
        8,
        5,
        7,
        1,
    ]
    digest = hashlib.sha256()
    for count in (1, 2, 3, 16, 17, 1000):
        digest.update(Stream(np.arange(count) * 7 % 50, seed=3).at(0, 3 * count)[0].tobytes())
    assert digest.hexdigest()[:16] == "2ecf431ce2d6697e"


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="training split is empty"):
        Stream(np.zeros(0, int), seed=0)
