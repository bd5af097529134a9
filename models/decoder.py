"""Decoder-only language models in Linen: Gemma 3 text.

The architecture's choices are fields of `DecoderConfig`, so that relatives (Llama, Qwen, Gemma 2)
are other values of the same fields. Layers are unrolled: parameter paths name their layer, which is
what regex tables and layer-wise decay match. Every RMSNorm stores its effective scale, one where
nothing is scaled; checkpoints of scale - 1 are shifted on reading (models/pretrained/tables.py).
Pooling and classification live in models/heads.py, reading of checkpoints in models/pretrained/.
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shapes and choices of a decoder. Defaults are those of Gemma 3.

    Attributes:
        vocab_size: V.
        width: D.
        num_layers: number of layers.
        num_heads: H.
        num_kv_heads: K, a divisor of H.
        head_size: N; not tied to D / H.
        hidden: F, feed-forward width.
        windows: for each layer the positions it sees, itself included; 0 is all.
        rope_bases: for each layer the base of its rotary positions.
        attention_scale: factor on query times key.
        norm_epsilon: of every RMSNorm.
        activation: key of layers.ACTIVATIONS.
        embedding_scale: factor on the embeddings at the input; the output reads them unscaled.
        query_key_norm: RMSNorm over each head of queries and keys.
        post_norms: RMSNorm also behind attention and feed-forward ("sandwich").
        attention_cap: soft cap of attention scores; 0 is off.
        logit_cap: soft cap of the logits; 0 is off.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden: int
    windows: tuple[int, ...]
    rope_bases: tuple[float, ...]
    attention_scale: float
    embedding_scale: float
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"
    query_key_norm: bool = True
    post_norms: bool = True
    attention_cap: float = 0.0
    logit_cap: float = 0.0

    def __post_init__(self):
        for name in ("windows", "rope_bases"):
            if (found := len(getattr(self, name))) != self.num_layers:
                raise ValueError(
                    f"DecoderConfig.{name} has {found} entries for {self.num_layers} layers: give "
                    "one each"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig: {self.num_heads} heads can't share {self.num_kv_heads} key/value "
                "heads evenly: num_kv_heads must divide num_heads"
            )
        if self.activation not in layers.ACTIVATIONS:
            raise ValueError(
                f"DecoderConfig.activation is {self.activation!r}: choose from "
                f"{list(layers.ACTIVATIONS)}"
            )


class Attention(nn.Module):
    """Self-attention with grouped queries, rotary positions and a mask per row."""

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_PxD: jax.Array, mask_RxLxL: jax.Array, rope: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Maps [P, D] to [P, D], reading within rows of L positions."""
        config = self.config
        rows, length, _ = mask_RxLxL.shape

        def project(name: str, heads: int) -> jax.Array:
            dense = nn.Dense(heads * config.head_size, use_bias=False, dtype=self.dtype, name=name)
            return dense(x_PxD).reshape(rows, length, heads, config.head_size)

        query_RxLxHxN = project("query", config.num_heads)
        key_RxLxKxN = project("key", config.num_kv_heads)
        value_RxLxKxN = project("value", config.num_kv_heads)
        if config.query_key_norm:
            query_RxLxHxN = rms_norm(config, self.dtype, "query_norm")(query_RxLxHxN)
            key_RxLxKxN = rms_norm(config, self.dtype, "key_norm")(key_RxLxKxN)
        mixed_RxLxHxN = layers.attend(
            layers.rotate(query_RxLxHxN, rope),
            layers.rotate(key_RxLxKxN, rope),
            value_RxLxKxN,
            mask_RxLxL,
            scale=config.attention_scale,
            cap=config.attention_cap,
        )
        output = nn.Dense(config.width, use_bias=False, dtype=self.dtype, name="output")
        return output(mixed_RxLxHxN.reshape(rows * length, -1))


class Layer(nn.Module):
    """One decoder layer: attention and feed-forward, each with its residual and norms."""

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_PxD: jax.Array, mask_RxLxL: jax.Array, rope: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Maps [P, D] to [P, D]."""
        config = self.config

        def norm(name: str) -> nn.RMSNorm:
            return rms_norm(config, self.dtype, name)

        y_PxD = norm("pre_attention_norm")(x_PxD)
        y_PxD = Attention(config, self.dtype, name="attention")(y_PxD, mask_RxLxL, rope)
        x_PxD += norm("post_attention_norm")(y_PxD) if config.post_norms else y_PxD
        y_PxD = norm("pre_mlp_norm")(x_PxD)
        y_PxD = layers.FeedForward(config.hidden, config.activation, self.dtype, name="mlp")(y_PxD)
        return x_PxD + (norm("post_mlp_norm")(y_PxD) if config.post_norms else y_PxD)


class Decoder(nn.Module):
    """A decoder without its output projection; `logits` adds it, tied to the embedding.

    Attributes:
        config: shapes and choices.
        dtype: of the computation; parameters are float32.
        remat: recompute each layer in the backward pass instead of storing its activations.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        """Declares the parameters: embedder/embedding, layer_0/..., final_norm/scale."""
        config = self.config
        self.embedder = nn.Embed(config.vocab_size, config.width)
        layer_class = nn.remat(Layer) if self.remat else Layer
        self.layer = [layer_class(config, self.dtype) for _ in range(config.num_layers)]
        self.final_norm = rms_norm(config, self.dtype, None)

    def __call__(
        self, tokens_RxL: jax.Array, positions_RxL: jax.Array, segments_RxL: jax.Array
    ) -> jax.Array:
        """Returns the hidden states behind the final norm, [R, L, D] in the compute dtype.

        Args:
            tokens_RxL: int32; an id outside the vocabulary gives NaN, never another token's vector.
            positions_RxL: int32, restarting at 0 in each segment, 0 where padding.
            segments_RxL: int32, 0 where padding. Segments never attend to each other.
        """
        config = self.config
        rows, length = tokens_RxL.shape
        # A window as long as the row is none: 1 mask serves all layers of short rows.
        windows = [window if window < length else 0 for window in config.windows]
        masks = {
            window: layers.attention_mask(positions_RxL, segments_RxL, window=window)
            for window in set(windows)
        }
        ropes = {
            base: layers.rope_tables(positions_RxL, config.head_size, base=base)
            for base in set(config.rope_bases)
        }
        # Cast behind the look-up, not the whole table before it. Positions are flattened because a
        # weight gradient that contracts two axes is slow on CPU (178 against 123 GFLOP/s).
        x_PxD = jnp.take(self.embedder.embedding, tokens_RxL.reshape(-1), axis=0)
        x_PxD = (x_PxD * config.embedding_scale).astype(self.dtype)
        for layer, window, base in zip(self.layer, windows, config.rope_bases, strict=True):
            x_PxD = layer(x_PxD, masks[window], ropes[base])
        return self.final_norm(x_PxD).reshape(rows, length, config.width)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, float32 [..., V], of hidden states [..., D] from `__call__`."""
        logits = jnp.einsum(
            "...d,vd->...v",
            hidden,
            self.embedder.embedding.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return layers.soft_cap(logits, self.config.logit_cap)


def rms_norm(config: DecoderConfig, dtype: jnp.dtype, name: str | None) -> nn.RMSNorm:
    """RMSNorm (1910.07467) over the last axis, computed in float32; parameter `scale`."""
    return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=dtype, name=name)


def parameter_shapes(config: DecoderConfig) -> dict:
    """Nested dict of jax.ShapeDtypeStruct that a Decoder of this config holds; computes nothing."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), one, one, one)["params"]


def layer_of(path: str) -> int | None:
    """Layer number in a parameter path such as 'backbone/layer_3/mlp/up/kernel', else None."""
    match = re.search(r"layer_(\d+)/", path)
    return int(match[1]) if match else None
