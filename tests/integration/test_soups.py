"""Properties of weighted means of parameter trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from integration import soups


def make_trees(count, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [
        {"backbone/kernel": rng.normal(size=(3, 4)).astype(dtype), "bias": rng.normal(size=2)}
        for _ in range(count)
    ]


def loads_of(trees):
    return [lambda tree=tree: jax.tree.map(jnp.asarray, tree) for tree in trees]


def leaves_equal(tree, other):
    return jax.tree.all(jax.tree.map(np.array_equal, tree, other))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_soup_of_equal_trees_is_that_tree_bit_for_bit(count, dtype):
    [load] = loads_of(make_trees(1, dtype))
    found = soups.soup([load] * count, np.arange(1, count + 1))
    assert leaves_equal(found, load())
    assert found["backbone/kernel"].dtype == dtype


def test_all_the_weight_on_one_tree_is_that_tree_and_loads_no_other():
    [load] = loads_of(make_trees(1))
    assert leaves_equal(soups.soup([pytest.fail, load, pytest.fail], [0, 3, 0]), load())


def test_a_soup_is_the_weighted_mean_whatever_the_order():
    trees, weights = make_trees(5), np.array([0.5, 1, 2, 0, 3])
    found = soups.soup(loads_of(trees), weights)
    for path in trees[0]:
        mean = sum(w * tree[path] for w, tree in zip(weights / weights.sum(), trees, strict=True))
        np.testing.assert_allclose(found[path], mean, rtol=1e-5, atol=1e-6)
    order = [3, 1, 4, 0, 2]
    other = soups.soup(loads_of([trees[i] for i in order]), weights[order])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, other)


def test_steps_below_the_precision_of_the_leaves_are_not_lost():
    # bfloat16 has no number between 256 and 258; the mean is 257.5.
    trees = [{"kernel": jnp.full(3, value, jnp.bfloat16)} for value in (256, 258, 258, 258)]
    assert (soups.soup(loads_of(trees))["kernel"] == 258).all()


@pytest.mark.parametrize("weights", [[1], [0, 0], [2, -1], [np.nan, 1]])
def test_weights_that_make_no_mean_are_refused(weights):
    with pytest.raises(ValueError, match="a soup of 2 models needs as many weights"):
        soups.soup([pytest.fail, pytest.fail], weights)


def test_unlike_trees_are_refused_naming_paths_and_shapes():
    trees = [{"kernel": np.zeros((2, 3))}, {"kernel": np.zeros((2, 4)), "bias": np.zeros(4)}]
    with pytest.raises(ValueError, match=r"bias: absent against \(4,\); kernel: \(2, 3\) against"):
        soups.soup(loads_of(trees))


def distance(tree):
    """How far a tree is from 1, the greater the better."""
    return -abs(float(tree["x"][0]) - 1)


def test_the_greedy_soup_takes_what_helps_and_is_never_worse_than_the_best():
    values = [0.6, 1.6, -5.0, 0.9]  # 0.9 and 1.6 make 1.25, worse; 0.9, 0.6: 0.75, worse; ...
    rng = np.random.default_rng(0)
    for drawn in [values, *rng.normal(1, 1, (20, 6)).tolist()]:
        ranked = sorted(drawn, key=lambda v: abs(v - 1))
        loads = loads_of([{"x": np.float32([v])} for v in ranked])
        chosen, best = soups.grow(loads, distance, distance(loads[0]()), rank=lambda r: r)
        assert chosen[0] == 0 and chosen == sorted(chosen)
        assert best >= distance(loads[0]())
        assert distance(soups.soup([loads[i] for i in chosen])) == pytest.approx(best, abs=1e-6)
    loads = loads_of([{"x": np.float32([v])} for v in (0.8, 1.3, 9.0, 0.9)])
    # 1.05 is better than 0.8; with 9 it is worse, with 0.9 it is 1: better still.
    assert soups.grow(loads, distance, distance(loads[0]()), rank=lambda r: r)[0] == [0, 1, 3]


def test_however_many_trees_share_one_program():
    before = soups._move._cache_size()
    soups.soup(loads_of([{"y": np.full(13, v, np.float32)} for v in range(6)]), range(1, 7))
    assert soups._move._cache_size() == before + 1


def test_one_tree_is_held_beside_the_mean():
    live = []

    def load():
        live.append(sum(array.shape == (7, 19) for array in jax.live_arrays()))
        return {"kernel": jnp.full((7, 19), len(live), jnp.float32)}

    soups.soup([load] * 6)
    assert max(live) <= 2
