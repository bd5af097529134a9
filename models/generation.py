"""Generation: the loops that feed a model its own tokens: greedy, drawn, or by beam search.

Of a model the loops need just a function that takes a cache and a token of each example and returns
the logits of the next ones: `step` of models/decoder.py or models/t5.py. All is pure and meant to
run under jit, compiled once for each shape of the prompts. Token ids only, no texts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]
_NEVER = -1e30  # a score that no sequence has; finite, so that differences stay finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen. Hashable, so that it can be static under jit.

    Attributes:
        max_tokens: T, the maximum number of tokens of an example, its end included.
        end_ids: tokens that end an example; they are part of the result.
        pad_id: fills the places after the end.
        temperature: divides the logits before a token is drawn; 0 takes the likeliest.
        top_k: draw among this many likeliest tokens; 0 is all.
        top_p: and among the likeliest that together have this probability (1904.09751).
        beams: sequences that beam search keeps, without a temperature; 1 is no search.
        length_penalty: exponent of the length by which a sequence's log probability is divided.
    """

    max_tokens: int
    end_ids: tuple[int, ...]
    pad_id: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0


def choose(
    logits_BxV: jax.Array, decoding: Decoding, *, keys_B: jax.Array | None = None
) -> jax.Array:
    """Chooses a token of each example: the likeliest at temperature 0, else drawn.

    Args:
        logits_BxV: float32.
        decoding: its temperature, top_k and top_p.
        keys_B: of the draws; unused at temperature 0.

    Returns:
        int32 [B].
    """
    if not decoding.temperature:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    logits_BxV = logits_BxV / decoding.temperature
    if decoding.top_k:
        least_Bx1 = jax.lax.top_k(logits_BxV, min(decoding.top_k, logits_BxV.shape[1]))[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
    if decoding.top_p < 1:
        sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
        shares_BxV = jax.nn.softmax(sorted_BxV)
        # A token stays if the likelier ones don't reach the share: at least one stays.
        stays_BxV = jnp.cumsum(shares_BxV, axis=-1) - shares_BxV < decoding.top_p
        least_Bx1 = jnp.min(jnp.where(stays_BxV, sorted_BxV, jnp.inf), axis=-1, keepdims=True)
        logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BxV).astype(jnp.int32)


def generate(
    step: Step, start: tuple[jax.Array, Any], decoding: Decoding, *, keys_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Generates until each example has ended, at most `decoding.max_tokens` each.

    Args:
        step: (cache, tokens_B) -> (logits_BxV of the next tokens, cache).
        start: logits_BxV of the first tokens, and the cache, with room for max_tokens - 1 steps.
            The first axis of its arrays, except scalars, is that of examples.
        decoding: how tokens are chosen.
        keys_B: jax.random keys, one an example, required with a temperature: the draws depend on an
            example's key and the place alone, not on the other examples.

    Returns:
        int32 [B, T], and the log probability of each under the model, float32 [B]; with beam search
        divided by its length to the power of the penalty.
    """
    if decoding.beams > 1:
        return _search(step, start, decoding)
    logits_BxV, cache = start

    def write(written: tuple, logits_BxV: jax.Array) -> tuple:
        """Adds one token to each example, padding after its end."""
        place, tokens_BxT, ended_B, score_B = written
        keys = None
        if decoding.temperature:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, place)
        next_B = choose(logits_BxV, decoding, keys_B=keys)
        gain_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), next_B[:, None], 1)[:, 0]
        score_B += jnp.where(ended_B, 0, gain_B)
        next_B = jnp.where(ended_B, decoding.pad_id, next_B)
        tokens_BxT = tokens_BxT.at[:, place].set(next_B)
        return place + 1, tokens_BxT, ended_B | _ends(next_B, decoding), score_B

    def going_on(state: tuple) -> jax.Array:
        (place, _, ended_B, _), _ = state
        return (place < decoding.max_tokens) & ~jnp.all(ended_B)

    def advance(state: tuple) -> tuple:
        written, cache = state
        place, tokens_BxT, *_ = written
        logits_BxV, cache = step(cache, tokens_BxT[:, place - 1])
        return write(written, logits_BxV), cache

    count = len(logits_BxV)
    blank_BxT = jnp.full((count, decoding.max_tokens), decoding.pad_id, jnp.int32)
    written = (jnp.int32(0), blank_BxT, jnp.zeros(count, bool), jnp.zeros(count))
    state = (write(written, logits_BxV), cache)
    (_, tokens_BxT, _, score_B), _ = jax.lax.while_loop(going_on, advance, state)
    return tokens_BxT, score_B


def _ends(tokens: jax.Array, decoding: Decoding) -> jax.Array:
    return jnp.isin(tokens, jnp.array(decoding.end_ids, jnp.int32))


def _search(
    step: Step, start: tuple[jax.Array, Any], decoding: Decoding
) -> tuple[jax.Array, jax.Array]:
    """Beam search: the best of the sequences that ended and of those cut off at T.

    It stops when no unfinished sequence can become better than the best finished one.
    """
    logits_BxV, cache = start
    count, beams, length = len(logits_BxV), decoding.beams, decoding.max_tokens
    rows_Bx1 = jnp.arange(count)[:, None]

    def by_length(scores: jax.Array, size: jax.Array | int) -> jax.Array:
        return scores / jnp.asarray(size, jnp.float32) ** decoding.length_penalty

    def take(tree: Any, parents_BxK: jax.Array) -> Any:
        """Reorders the rows B * K of what the cache holds."""
        index = (rows_Bx1 * beams + parents_BxK).reshape(-1)
        return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, tree)

    def extend(state: tuple, log_BxKxV: jax.Array) -> tuple:
        """Takes the best continuations; each beam has one ending per end id, so K don't end."""
        place, alive_BxKxT, scores_BxK, best_BxT, best_B, cache = state
        vocabulary = log_BxKxV.shape[-1]
        total_BxKV = (scores_BxK[:, :, None] + log_BxKxV).reshape(count, -1)
        wanted = beams * (1 + len(decoding.end_ids))
        top_BxC, index_BxC = jax.lax.top_k(total_BxKV, min(wanted, total_BxKV.shape[1]))
        parents_BxC, next_BxC = index_BxC // vocabulary, (index_BxC % vocabulary).astype(jnp.int32)
        grown_BxCxT = alive_BxKxT[rows_Bx1, parents_BxC].at[:, :, place].set(next_BxC)
        ended_BxC = _ends(next_BxC, decoding)
        # The best sequence that ends here, or that ended before.
        ending_BxC = jnp.where(ended_BxC, by_length(top_BxC, place + 1), _NEVER)
        top_B = jnp.argmax(ending_BxC, axis=1)
        value_B = jnp.take_along_axis(ending_BxC, top_B[:, None], 1)[:, 0]
        better_B = value_B > best_B
        best_BxT = jnp.where(better_B[:, None], grown_BxCxT[jnp.arange(count), top_B], best_BxT)
        # The K best unfinished sequences.
        scores_BxK, kept_BxK = jax.lax.top_k(jnp.where(ended_BxC, _NEVER, top_BxC), beams)
        alive_BxKxT = grown_BxCxT[rows_Bx1, kept_BxK]
        parents_BxK = jnp.take_along_axis(parents_BxC, kept_BxK, 1)
        best_B = jnp.maximum(best_B, value_B)
        return place + 1, alive_BxKxT, scores_BxK, best_BxT, best_B, take(cache, parents_BxK)

    def going_on(state: tuple) -> jax.Array:
        place, _, scores_BxK, _, best_B, _ = state
        hope_B = by_length(scores_BxK[:, 0], length)  # scores are negative: length raises them
        return (place < length) & jnp.any(hope_B > best_B)

    def advance(state: tuple) -> tuple:
        place, alive_BxKxT, *_, cache = state
        last_BK = alive_BxKxT[:, :, place - 1].reshape(-1)
        logits_BKxV, cache = step(cache, last_BK)
        log_BxKxV = jax.nn.log_softmax(logits_BKxV).reshape(count, beams, -1)
        return extend((*state[:-1], cache), log_BxKxV)

    alive_BxKxT = jnp.full((count, beams, length), decoding.pad_id, jnp.int32)
    # At first all beams are equal: only the first counts.
    scores_BxK = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER) * jnp.ones((count, 1))
    state = (jnp.int32(0), alive_BxKxT, scores_BxK, alive_BxKxT[:, 0], jnp.full(count, _NEVER))
    repeated = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, beams, axis=0) if leaf.ndim else leaf, cache
    )
    log_BxKxV = jnp.repeat(jax.nn.log_softmax(logits_BxV)[:, None], beams, axis=1)
    state = jax.lax.while_loop(going_on, advance, extend((*state, repeated), log_BxKxV))
    place, alive_BxKxT, scores_BxK, best_BxT, best_B, _ = state
    cut_B = jnp.where(place == length, by_length(scores_BxK[:, 0], length), _NEVER)
    tokens_BxT = jnp.where((cut_B > best_B)[:, None], alive_BxKxT[:, 0], best_BxT)
    return tokens_BxT, jnp.maximum(cut_B, best_B)


def generate_batch(
    model: nn.Module,
    params: Mapping,
    tokens_BxL: jax.Array,
    lengths_B: jax.Array,
    *,
    decoding: Decoding,
    keys_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generates what follows B prompts, or the targets of B sources, one a row. Pure.

    Args:
        model: a Decoder, or a T5 with its decoder.
        params: its parameters, parts included; nested.
        tokens_BxL: int32; each row begins with its prompt, followed by padding.
        lengths_B: int32, tokens of each prompt, at least 1.
        decoding: how tokens are chosen.
        keys_B: see `generate`.

    Returns:
        int32 [B, T] and float32 [B], see `generate`.
    """
    call = functools.partial(model.apply, {"params": params})
    start = call(tokens_BxL, lengths_B, length=decoding.max_tokens, method="start")
    step = functools.partial(call, method="step")
    return generate(step, start, decoding, keys_B=keys_B)
