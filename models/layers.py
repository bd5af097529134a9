"""Parts shared by the architectures: attention masks, rotary positions, attention, feed-forward.

Pure functions and small Linen modules without knowledge of any checkpoint format or task. Called by
models/decoder.py. Dense layers work on flattened positions: P = R * L.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def attention_mask(
    positions_RxL: jax.Array, segments_RxL: jax.Array, *, window: int = 0
) -> jax.Array:
    """Says who may attend to whom: the same segment, not later, and less than `window` away.

    Padding (segment 0, position 0) attends to padding, so that no row of the softmax is empty and
    everything stays finite, gradients too.

    Args:
        positions_RxL: int32, restarting at 0 in each segment.
        segments_RxL: int32, 0 where padding.
        window: positions that are visible, itself included; 0 is all.

    Returns:
        Boolean mask, True where query position l may read key position m: [R, L, L].
    """
    distance_RxLxL = positions_RxL[:, :, None] - positions_RxL[:, None, :]
    mask_RxLxL = (segments_RxL[:, :, None] == segments_RxL[:, None, :]) & (distance_RxLxL >= 0)
    return mask_RxLxL & (distance_RxLxL < window) if window else mask_RxLxL


def rope_tables(positions_RxL: jax.Array, size: int, *, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary position embedding (RoFormer, 2104.09864), float32.

    Args:
        positions_RxL: int32 positions.
        size: head size N, even.
        base: wavelengths run from 2 pi to 2 pi * base.

    Returns:
        Two arrays [R, L, 1, N/2], the third axis being there to broadcast over heads.
    """
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = positions_RxL[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_RxLxHxN: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies rotary positions; pairs are (i, i + N/2), as in Llama and Gemma. Keeps the dtype."""
    cosine, sine = tables
    first, second = jnp.split(x_RxLxHxN.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x_RxLxHxN.dtype)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """Bounds `x` smoothly to (-cap, cap) as Gemma 2 does (2408.00118); 0 leaves it alone."""
    return jnp.tanh(x / cap) * cap if cap else x


def attend(
    query_RxLxHxN: jax.Array,
    key_RxLxKxN: jax.Array,
    value_RxLxKxN: jax.Array,
    mask_RxLxL: jax.Array,
    *,
    scale: float,
    cap: float = 0.0,
) -> jax.Array:
    """Grouped-query attention (2305.13245): H / K query heads read each key/value head.

    The softmax is computed in float32 whatever the dtype of the inputs.

    Returns:
        Mixed values [R, L, H, N] in the dtype of the query.
    """
    rows, length, heads, size = query_RxLxHxN.shape
    kv_heads = key_RxLxKxN.shape[2]
    query_RxLxKxGxN = (query_RxLxHxN * scale).reshape(rows, length, kv_heads, -1, size)
    scores_RxKxGxLxM = jnp.einsum(
        "rlkgn,rmkn->rkglm", query_RxLxKxGxN, key_RxLxKxN, preferred_element_type=jnp.float32
    )
    scores_RxKxGxLxM = soft_cap(scores_RxKxGxLxM, cap)
    lowest = jnp.finfo(jnp.float32).min
    scores_RxKxGxLxM = jnp.where(mask_RxLxL[:, None, None], scores_RxKxGxLxM, lowest)
    weights_RxKxGxLxM = jax.nn.softmax(scores_RxKxGxLxM, axis=-1).astype(value_RxLxKxN.dtype)
    mixed_RxLxKxGxN = jnp.einsum("rkglm,rmkn->rlkgn", weights_RxKxGxLxM, value_RxLxKxN)
    return mixed_RxLxKxGxN.reshape(rows, length, heads, size)


class FeedForward(nn.Module):
    """Gated feed-forward block (GLU variants, 2002.05202) on flattened positions.

    Attributes:
        hidden: feed-forward width F.
        activation: key of ACTIVATIONS, applied to the gate.
        dtype: of the computation.
    """

    hidden: int
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_PxD: jax.Array) -> jax.Array:
        """Maps [P, D] to [P, D]."""

        def dense(name: str, width: int) -> nn.Dense:
            return nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)

        gate_PxF = ACTIVATIONS[self.activation](dense("gate", self.hidden)(x_PxD))
        return dense("down", x_PxD.shape[-1])(gate_PxF * dense("up", self.hidden)(x_PxD))
