"""Properties of merging by task vectors."""

import jax.numpy as jnp
import numpy as np
import pytest

from integration import merging

START = {"a/kernel": jnp.array([1.0, 2.0, 3.0]), "b/bias": jnp.array([10.0, 20.0])}


def loads_of(*vectors):
    """Models that changed five values by so much, and have a head beyond START."""
    return [
        lambda v=v: {
            "a/kernel": START["a/kernel"] + np.float32(v[:3]),
            "b/bias": START["b/bias"] + np.float32(v[3:]),
            "head/kernel": jnp.ones(4),
        }
        for v in vectors
    ]


def flat(vector):
    assert list(vector) == ["a/kernel", "b/bias"]
    return np.concatenate([vector["a/kernel"], vector["b/bias"]])


def test_adding_sums_the_changes_and_zero_scale_is_the_start_bit_for_bit():
    vector = merging.add(loads_of([1, 0, 0, 2, 0], [1, -1, 0, 0, 0.5]), START)
    np.testing.assert_allclose(flat(vector), [2, -1, 0, 2, 0.5])
    start = merging.scaled(START, vector, 0.0)
    assert all((start[path] == START[path]).all() for path in START)
    np.testing.assert_allclose(merging.scaled(START, vector, 0.5)["a/kernel"], [2, 1.5, 3])


def test_a_model_is_its_start_and_its_change():
    [load] = loads_of([0.5, -1, 2, 4, 8])
    found = merging.scaled(START, merging.add([load], START), 1.0)
    assert all((found[path] == load()[path]).all() for path in START)


def test_ties_trims_each_whole_elects_signs_and_averages_those_that_agree():
    vectors = [[4, 0.1, -3, 0, 5], [-1, 0.2, -5, 6, 3], [2, 0.1, 4, 0, -9]]
    # The 3 greatest of 5 each: [4, 0, -3, 0, 5], [0, 0, -5, 6, 3], [2, 0, 4, 0, -9].
    # Signs of the sums 6, 0, -4, 6, -1.
    found = merging.ties(loads_of(*vectors), START, keep=0.6)
    np.testing.assert_allclose(flat(found), [3, 0, -4, 6, -9], rtol=1e-5)


def test_ties_of_one_whole_model_and_of_equal_ones_is_their_change():
    vector = [4.0, 0.5, -3.0, 1.0, 5.0]
    np.testing.assert_allclose(flat(merging.ties(loads_of(vector), START, keep=1.0)), vector)
    several = merging.ties(loads_of(vector, vector, vector), START, keep=1.0)
    np.testing.assert_allclose(flat(several), vector, rtol=1e-6)


def test_opposite_changes_cancel_in_ties():
    vector = np.array([4.0, 0.5, -3.0, 1.0, 5.0])
    found = merging.ties(loads_of(vector, -vector), START, keep=1.0)
    assert not flat(found).any()


def test_order_does_not_matter():
    vectors = np.random.default_rng(0).normal(size=(4, 5))
    for method in (merging.add, merging.ties):
        found = method(loads_of(*vectors), START)
        other = method(loads_of(*vectors[::-1]), START)
        np.testing.assert_allclose(flat(found), flat(other), rtol=1e-5, atol=1e-6)


def test_dare_keeps_the_expectation_and_is_drawn_by_seed_position_and_path():
    start = {"x": jnp.zeros(20_000), "y": jnp.zeros(20_000)}
    loads = [lambda: {"x": jnp.ones(20_000), "y": jnp.ones(20_000)}] * 2
    found = merging.dare(loads, start, seed=1, drop=0.9)
    # The sum of two changes of 1, each 10 with probability 0.1.
    assert set(np.unique(np.rint(found["x"])).tolist()) == {0.0, 10.0, 20.0}
    assert np.mean(found["x"]) == pytest.approx(2, abs=4 * np.sqrt(2 * 9 / 20_000))
    assert np.mean(found["x"] > 15) == pytest.approx(0.01, abs=0.004)  # models drawn apart
    assert (found["x"] != found["y"]).any()
    again = merging.dare(loads, start, seed=1, drop=0.9)
    assert (found["x"] == again["x"]).all()
    assert (found["x"] != merging.dare(loads, start, seed=2, drop=0.9)["x"]).any()


def test_dropping_nothing_is_adding():
    loads = loads_of([1, 0, 0, 2, 0], [1, -1, 0, 0, 0.5])
    np.testing.assert_allclose(
        flat(merging.dare(loads, START, seed=0, drop=0.0)), flat(merging.add(loads, START))
    )
