"""Linear-chain conditional random field on packed rows (Lafferty et al. 2001), pure functions.

A row may hold several segments, and positions without a tag: template, marks. Each segment is a
separate chain over its tagged positions alone, and all results are exact. A chain's score is the
sum of its tags' logits, a transition score for each pair of neighbours, and a start and an end
score. With zeros for these, tags are independent; with FORBIDDEN ones, only legal chains are
decoded. The parameters are those of models/token_heads.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FORBIDDEN = -1e9  # added to a score: outweighs every sum of other scores, and stays finite


class Scores(NamedTuple):
    """The scores of chains beside logits: transitions [C, C] from, to; starts, ends [C]."""

    transitions: jax.Array
    starts: jax.Array
    ends: jax.Array


class Chains(NamedTuple):
    """Where the chains of packed rows lie, all [R, L].

    Attributes:
        asked: bool, positions with a tag.
        first, last: bool, those at the start and the end of a chain.
        previous: int32, the index in the row of the asked position before.
    """

    asked: jax.Array
    first: jax.Array
    last: jax.Array
    previous: jax.Array


def chains(asked_RxL: jax.Array, segments_RxL: jax.Array) -> Chains:
    """Finds the chains.

    Args:
        asked_RxL: bool, which positions have a tag; none of padding.
        segments_RxL: int32; positions of a segment stand together.
    """
    length = asked_RxL.shape[1]
    places_L = jnp.arange(length)
    # For each place the last asked one up to it, then shifted by one; and likewise from the right.
    upto_RxL = jax.lax.cummax(jnp.where(asked_RxL, places_L, -1), axis=1)
    from_RxL = jax.lax.cummin(jnp.where(asked_RxL, places_L, length), axis=1, reverse=True)
    before_RxL = jnp.pad(upto_RxL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    behind_RxL = jnp.pad(from_RxL[:, 1:], ((0, 0), (0, 1)), constant_values=length)

    def joined(places_RxL: jax.Array) -> jax.Array:
        """Returns whether a place is in the row and of the same segment."""
        inside_RxL = (places_RxL >= 0) & (places_RxL < length)
        there_RxL = jnp.take_along_axis(segments_RxL, jnp.clip(places_RxL, 0, length - 1), axis=1)
        return inside_RxL & (there_RxL == segments_RxL)

    return Chains(
        asked_RxL,
        asked_RxL & ~joined(before_RxL),
        asked_RxL & ~joined(behind_RxL),
        jnp.maximum(before_RxL, 0),
    )


def log_partitions(logits_RxLxC: jax.Array, where: Chains, scores: Scores) -> jax.Array:
    """Sums over all labellings of a chain: log of the sum of exp(score), the forward algorithm.

    Args:
        logits_RxLxC: float32; those of positions without a tag do not matter, if finite.
        where: the chains.
        scores: of the chains.

    Returns:
        float32 [R, L], at the last position of each chain; 0 elsewhere.
    """

    @jax.checkpoint  # otherwise the backward pass would keep [L, R, C, C]
    def step(alpha_RxC: jax.Array, at: list) -> tuple[jax.Array, jax.Array]:
        logits_RxC, asked_R, first_R, last_R = at
        longer_RxC = jax.nn.logsumexp(alpha_RxC[:, :, None] + scores.transitions, axis=1)
        new_RxC = logits_RxC + jnp.where(first_R[:, None], scores.starts, longer_RxC)
        alpha_RxC = jnp.where(asked_R[:, None], new_RxC, alpha_RxC)
        whole_R = jax.nn.logsumexp(alpha_RxC + scores.ends, axis=1)
        return alpha_RxC, jnp.where(last_R, whole_R, 0.0)

    places = _by_place(logits_RxLxC, where.asked, where.first, where.last)
    _, partitions_LxR = jax.lax.scan(step, jnp.zeros_like(logits_RxLxC[:, 0]), places)
    return partitions_LxR.T


def log_likelihoods(
    logits_RxLxC: jax.Array,
    tags_RxL: jax.Array,
    where: Chains,
    scores: Scores,
    *,
    smoothing: float = 0.0,
) -> jax.Array:
    """Log probabilities of tags; the sum over a segment is the chain's.

    Args:
        logits_RxLxC: float32, see `log_partitions`.
        tags_RxL: int32 in [0, C) at the positions with a tag.
        where: the chains.
        scores: of the chains.
        smoothing: share of each score that is the mean over all taggings (1512.00567).

    Returns:
        float32 [R, L], 0 at positions without a tag; single ones may be above 0, sums are not.
    """
    # Normalising changes no chain's probability, but keeps partitions and rounding errors small.
    logits_RxLxC = jax.nn.log_softmax(logits_RxLxC)
    tags_RxL = jnp.where(where.asked, tags_RxL, 0)
    before_RxL = jnp.take_along_axis(tags_RxL, where.previous, axis=1)
    moves_RxL = scores.transitions[before_RxL, tags_RxL]
    entered_RxL = jnp.where(where.first, scores.starts[tags_RxL], moves_RxL)
    scores_RxL = jnp.take_along_axis(logits_RxLxC, tags_RxL[..., None], axis=-1)[..., 0]
    scores_RxL += entered_RxL + jnp.where(where.last, scores.ends[tags_RxL], 0.0)
    if smoothing:
        entered_RxL = jnp.where(where.first, scores.starts.mean(), scores.transitions.mean())
        mean_RxL = logits_RxLxC.mean(axis=-1) + entered_RxL
        mean_RxL += jnp.where(where.last, scores.ends.mean(), 0.0)
        scores_RxL = (1 - smoothing) * scores_RxL + smoothing * mean_RxL
    return jnp.where(where.asked, scores_RxL, 0.0) - log_partitions(logits_RxLxC, where, scores)


def decode(logits_RxLxC: jax.Array, where: Chains, scores: Scores) -> jax.Array:
    """Returns the best labelling of each chain (Viterbi): int32 [R, L], 0 where nothing is asked.

    Args:
        logits_RxLxC: float32, see `log_partitions`.
        where: the chains.
        scores: of the chains.
    """
    logits_RxLxC = jax.nn.log_softmax(logits_RxLxC)
    classes_C = jnp.arange(logits_RxLxC.shape[-1], dtype=jnp.int32)

    def forward(best_RxC: jax.Array, at: list) -> tuple[jax.Array, tuple]:
        logits_RxC, asked_R, first_R = at
        longer_RxCxC = best_RxC[:, :, None] + scores.transitions
        longer_RxC = jnp.max(longer_RxCxC, axis=1)
        new_RxC = logits_RxC + jnp.where(first_R[:, None], scores.starts, longer_RxC)
        best_RxC = jnp.where(asked_R[:, None], new_RxC, best_RxC)
        came_RxC = jnp.argmax(longer_RxCxC, axis=1).astype(jnp.int32)
        came_RxC = jnp.where(asked_R[:, None], came_RxC, classes_C)  # skipped places pass tags on
        last_R = jnp.argmax(best_RxC + scores.ends, axis=1).astype(jnp.int32)
        return best_RxC, (came_RxC, last_R)

    def backward(tag_R: jax.Array, at: tuple) -> tuple[jax.Array, jax.Array]:
        came_RxC, best_R, last_R = at
        tag_R = jnp.where(last_R, best_R, tag_R)
        return jnp.take_along_axis(came_RxC, tag_R[:, None], axis=1)[:, 0], tag_R

    places = _by_place(logits_RxLxC, where.asked, where.first)
    start_RxC = jnp.zeros_like(logits_RxLxC[:, 0])
    _, (came_LxRxC, best_LxR) = jax.lax.scan(forward, start_RxC, places)
    ends = came_LxRxC, best_LxR, where.last.T
    _, tags_LxR = jax.lax.scan(backward, best_LxR[-1], ends, reverse=True)
    return jnp.where(where.asked, tags_LxR.T, 0)


def marginals(logits_RxLxC: jax.Array, where: Chains, scores: Scores) -> jax.Array:
    """Returns the probability of each tag at each position, over all labellings: [R, L, C].

    It is the gradient of the log partition; 0 at positions without a tag.
    """

    def total(logits_RxLxC: jax.Array) -> jax.Array:
        return jnp.sum(log_partitions(logits_RxLxC, where, scores))

    return jax.grad(total)(jax.nn.log_softmax(logits_RxLxC))


def _by_place(*arrays: jax.Array) -> list[jax.Array]:
    """Moves the axis of positions to the front, for scans over it."""
    return [array.swapaxes(0, 1) for array in arrays]
