"""Properties of merging by task vectors."""

import jax.numpy as jnp
import numpy as np

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
