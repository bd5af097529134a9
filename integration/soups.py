"""Weighted means of models (model soups, arXiv 2203.05482): uniform and greedy.

Functions on parameter trees. A model comes as a function that loads it, so that however many there
are, a few trees are held at a time: the mean so far and the one that is added to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from integration.interpolation import check_alike

Params = Any
Load = Callable[[], Params]


def soup(loads: Sequence[Load], weights: Sequence[float] | None = None) -> Params:
    """Returns the weighted mean of models, in float32, each leaf in its own dtype.

    Equal models give that model, bit for bit, and so does a model with all the weight: each is
    added as its share of the distance to it. Models of weight 0 are not loaded.

    Args:
        loads: each returns a tree; all alike.
        weights: at least 0, one above; they are divided by their sum. None is equal weights.

    Raises:
        ValueError: weights that cannot be divided so, or trees that differ.
    """
    weights = np.ones(len(loads)) if weights is None else np.asarray(weights, np.float64)
    if len(weights) != len(loads) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(
            f"a soup of {len(loads)} models needs as many weights of at least 0, one of them "
            f"above; found {weights.tolist()}"
        )
    mean, dtypes, total = None, None, 0.0
    for load, weight in zip(loads, weights.tolist(), strict=True):
        if weight:
            tree, total = load(), total + weight
            if mean is None:
                mean, dtypes = _widened(tree)
            else:
                mean = _moved(mean, tree, weight / total)
    return _narrowed(mean, dtypes)


def grow(
    loads: Sequence[Load], evaluate: Callable[[Params], Any], first: Any, *, rank: Callable
) -> tuple[list[int], Any]:
    """The greedy soup: models are added in their order where that makes the mean no worse.

    Args:
        loads: the best model first, the others by how good they are.
        evaluate: params -> any result.
        first: the result of the first model.
        rank: result -> what orders them, greater is better.

    Returns:
        The indices of the models in the soup, and its result.
    """
    mean, dtypes = _widened(loads[0]())
    chosen, best = [0], first
    for index, load in enumerate(loads[1:], start=1):
        wider = _moved(mean, load(), 1 / (len(chosen) + 1))
        result = evaluate(_narrowed(wider, dtypes))
        if rank(result) >= rank(best):
            mean, best = wider, result
            chosen.append(index)
    return chosen, best


def _widened(tree: Params) -> tuple[Params, Params]:
    """Returns a tree in float32, and its dtypes."""
    widened = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    return widened, jax.tree.map(lambda leaf: leaf.dtype, tree)


def _moved(mean: Params, tree: Params, share: float) -> Params:
    """Moves the mean by its share of the way to a model."""
    check_alike(mean, tree, names=("one model", "another"))
    return _move(mean, tree, share)


@jax.jit
def _move(mean: Params, tree: Params, share: jax.Array) -> Params:
    return jax.tree.map(lambda m, leaf: m + share * (leaf.astype(jnp.float32) - m), mean, tree)


def _narrowed(mean: Params, dtypes: Params) -> Params:
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), mean, dtypes)
