"""Generation: the loop that feeds a model its own tokens, greedy or sampled, under jit.

The loop knows of a model just a function that takes a cache and a token of each example and returns
the logits of the next ones: `T5.step`, or that of any decoder with a cache. `generate` is pure and
is called under jit; `generate_targets` is the whole way of an encoder-decoder, compiled. Called by
whoever wants text: evaluation, tests, a notebook. Token ids only; texts are the tokeniser's.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.t5 import T5

Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


def choose(
    logits_BxV: jax.Array, *, temperature: float, top_k: int, key: jax.Array | None
) -> jax.Array:
    """Chooses a token of each example: the likeliest at temperature 0, else drawn.

    Args:
        logits_BxV: float32.
        temperature: divides the logits before drawing; static.
        top_k: draw among so many likeliest; 0 is all; static.
        key: of the draw; not needed at temperature 0.

    Returns:
        int32 [B].
    """
    if not temperature:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    if top_k:
        least_Bx1 = jax.lax.top_k(logits_BxV, top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
    return jax.random.categorical(key, logits_BxV / temperature).astype(jnp.int32)


def generate(
    step: Step,
    cache: Any,
    *,
    first_B: jax.Array,
    max_tokens: int,
    end_id: int,
    pad_id: int,
    temperature: float = 0.0,
    top_k: int = 0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Generates until each example has ended, at most `max_tokens` each.

    Args:
        step: (cache, tokens_B) -> (logits_BxV of the next tokens, cache).
        cache: before the first step, with room for `max_tokens` steps.
        first_B: int32, the tokens of the first step: a start token, or a prompt's last.
        max_tokens: T.
        end_id: ends an example; it is part of the result.
        pad_id: stands behind the end.
        temperature: 0 is greedy.
        top_k: see `choose`.
        key: of all draws, which do not depend on how long other examples go on.

    Returns:
        int32 [B, T], `first_B` not among them.

    Raises:
        ValueError: sampling was asked for without a key, or with a negative temperature or top_k.
    """
    if temperature < 0 or top_k < 0 or (temperature and key is None):
        raise ValueError(
            f"temperature is {temperature}, top_k {top_k}, key {key}: neither may be negative, and "
            "temperatures above 0 need a jax.random.key"
        )

    def going_on(state: tuple) -> jax.Array:
        place, _, _, ended_B, _ = state
        return (place < max_tokens) & ~jnp.all(ended_B)

    def advance(state: tuple) -> tuple:
        place, tokens_BxT, last_B, ended_B, cache = state
        logits_BxV, cache = step(cache, last_B)
        draw = jax.random.fold_in(key, place) if temperature else None
        next_B = choose(logits_BxV, temperature=temperature, top_k=top_k, key=draw)
        next_B = jnp.where(ended_B, pad_id, next_B)
        tokens_BxT = tokens_BxT.at[:, place].set(next_B)
        return place + 1, tokens_BxT, next_B, ended_B | (next_B == end_id), cache

    tokens_BxT = jnp.full((len(first_B), max_tokens), pad_id, jnp.int32)
    ended_B = jnp.zeros(len(first_B), bool)
    first_B = first_B.astype(jnp.int32)
    state = (jnp.int32(0), tokens_BxT, first_B, ended_B, cache)
    return jax.lax.while_loop(going_on, advance, state)[1]


@functools.partial(jax.jit, static_argnames=("model", "max_tokens", "temperature", "top_k"))
def generate_targets(
    model: T5,
    params: Mapping,
    tokens_BxL: jax.Array,
    segments_BxL: jax.Array,
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Generates the targets of B sources, one a row.

    Args:
        model: with decoder; static.
        params: its parameters, parts included.
        tokens_BxL: int32 sources.
        segments_BxL: 1 where the source is, 0 where padding; the source begins its row.
        max_tokens: T.
        temperature: see `generate`, as are `top_k` and `key`.
        top_k: likewise.
        key: likewise.

    Returns:
        int32 [B, T]; the end token is part of it, padding stands behind.
    """
    config = model.config

    def call(method: Callable, *args: Any, **kwargs: Any) -> Any:
        return model.apply({"params": params}, *args, method=method, **kwargs)

    positions_BxL = jnp.maximum(jnp.cumsum(segments_BxL > 0, axis=1) - 1, 0)
    hidden_BxLxD = call(T5.__call__, tokens_BxL, positions_BxL, segments_BxL)
    return generate(
        functools.partial(call, T5.step),
        call(T5.start, hidden_BxLxD, segments_BxL, length=max_tokens),
        first_B=jnp.full(len(tokens_BxL), config.start_id),
        max_tokens=max_tokens,
        end_id=config.end_id,
        pad_id=config.pad_id,
        temperature=temperature,
        top_k=top_k,
        key=key,
    )
