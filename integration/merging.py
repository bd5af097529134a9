"""Merging by task vectors: what trainings changed about the pretrained weights they share.

Functions on flat dicts {path: array}. `start` are the pretrained weights, of the paths that have
some: a head that was drawn at random has no common start, and is left to soups. All return the
change to be added, in float32, before it is scaled. As in soups.py a model comes as a function that
loads it, and a few trees are held at a time.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Flat = Mapping[str, jax.Array]
Load = Callable[[], Flat]

KEEP = 0.2  # share of a task vector that TIES keeps, the paper's


def change(start: Flat, tree: Flat) -> dict[str, jax.Array]:
    """Returns the task vector: the tree minus its start, of the start's paths."""
    return _change(dict(start), {path: tree[path] for path in start})


def add(loads: Sequence[Load], start: Flat) -> dict[str, jax.Array]:
    """Returns the sum of the task vectors (task arithmetic, arXiv 2212.04089)."""
    return functools.reduce(_sum, (change(start, load()) for load in loads))


def ties(loads: Sequence[Load], start: Flat, *, keep: float = KEEP) -> dict[str, jax.Array]:
    """Returns the merged task vector of TIES (arXiv 2306.01708).

    Trim: of each task vector as a whole the `keep` greatest by magnitude stay, the others become 0.
    Elect: each parameter takes the sign of the sum over models. Merge: the mean of those that have
    this sign; 0 where none has, or the sum is 0.
    """
    limits: list[np.float32] = []

    def trimmed(load: Load) -> dict[str, jax.Array]:
        vector = change(start, load())
        limits.append(_limit(vector, keep))
        return _trimmed(vector, limits[-1])

    total = functools.reduce(_sum, map(trimmed, loads))
    # Each model is loaded a second time, so that one is held at a time.
    agreeing = (
        _agreeing(_trimmed(change(start, load()), limit), total)
        for load, limit in zip(loads, limits, strict=True)
    )
    return _means(*functools.reduce(_sum, agreeing))


@jax.jit
def scaled(start: Flat, vector: Flat, scale: jax.Array | float) -> dict[str, jax.Array]:
    """Returns start + scale * vector, each leaf in its start's dtype."""
    return jax.tree.map(
        lambda s, v: (s.astype(jnp.float32) + scale * v).astype(s.dtype), dict(start), dict(vector)
    )


@jax.jit
def _change(start: Flat, tree: Flat) -> dict[str, jax.Array]:
    return jax.tree.map(
        lambda s, leaf: leaf.astype(jnp.float32) - s.astype(jnp.float32), start, tree
    )


@jax.jit
def _sum(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)


def _limit(vector: Flat, keep: float) -> np.float32:
    """Returns the magnitude that the `keep` greatest of all values reach."""
    sizes = np.concatenate([np.abs(np.asarray(leaf)).ravel() for leaf in vector.values()])
    place = len(sizes) - max(1, round(keep * len(sizes)))
    return np.partition(sizes, place)[place]


@jax.jit
def _trimmed(vector: Flat, limit: jax.Array) -> dict[str, jax.Array]:
    return jax.tree.map(lambda leaf: jnp.where(jnp.abs(leaf) >= limit, leaf, 0), vector)


@jax.jit
def _agreeing(vector: Flat, total: Flat) -> tuple:
    """Returns the values that have the sign of the total, and a 1 for each."""
    agrees = jax.tree.map(lambda v, t: jnp.sign(v) * jnp.sign(t) > 0, vector, total)
    values = jax.tree.map(lambda v, a: jnp.where(a, v, 0), vector, agrees)
    return values, jax.tree.map(lambda a: a.astype(jnp.float32), agrees)


@jax.jit
def _means(sums: Flat, counts: Flat) -> dict[str, jax.Array]:
    return jax.tree.map(lambda value, count: value / jnp.maximum(count, 1), sums, counts)
