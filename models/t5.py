"""Encoder-decoders of the T5 family in Linen: T5 1.0 and 1.1, mT5, Mengzi-T5, umT5.

`T5` called is the encoder, so that it serves as the backbone of classifiers; its decoder and its
output layer are parts that a checkpoint may lack. Decoding comes in two ways over the same layers:
`decode` takes whole targets (teacher forcing, packed rows too), `step` one token at a time with the
keys and values so far in a `Cache`, which is what models/generation.py loops over. Both the
attention without scale and the bias by distance instead of position embeddings are T5's
(1910.10683). Reading of checkpoints lives in models/pretrained/t5.py.
"""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Shapes and choices of an encoder-decoder. Defaults are those of T5 1.1.

    Attributes:
        model_type: 't5' (also 1.1 and Mengzi), 'mt5' or 'umt5', as config.json has it.
        vocab_size: V.
        width: D.
        num_layers: of the encoder.
        num_decoder_layers: of the decoder.
        num_heads: H.
        head_size: N; not tied to D / H.
        hidden: F, feed-forward width.
        num_buckets: of distances, each with a bias per head; even.
        max_distance: from here on all distances share a bucket.
        norm_epsilon: of every RMSNorm.
        activation: key of layers.ACTIVATIONS.
        gated: the feed-forward has a gate (1.1), or is two dense layers (1.0).
        bias_per_layer: each layer has biases of its own (umT5), or the first's serve all.
        tied: logits come from the token table, after scaling by D ** -0.5 (1.0), or from lm_head.
        start_id: token that decoding starts from.
        end_id: token that ends a target.
        pad_id: token of padding.
        max_length: positions a text may take; 0, there is no limit.
    """

    model_type: str = "t5"
    vocab_size: int
    width: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    head_size: int
    hidden: int
    num_buckets: int = 32
    max_distance: int = 128
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"
    gated: bool = True
    bias_per_layer: bool = False
    tied: bool = False
    start_id: int = 0
    end_id: int = 1
    pad_id: int = 0
    max_length: int = 0

    def __post_init__(self):
        if self.activation not in layers.ACTIVATIONS:
            raise ValueError(
                f"T5Config.activation is {self.activation!r}: choose from "
                f"{list(layers.ACTIVATIONS)}"
            )
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"T5Config: {self.num_buckets} buckets for distances up to {self.max_distance}: "
                "num_buckets must be a multiple of 4 and max_distance above half of it"
            )


class Cache(NamedTuple):
    """What decoding step by step remembers of B examples.

    Attributes:
        own: for each layer the keys and values of tokens so far, 2 * [B, T, H, N].
        source: for each layer the keys and values of the source, 2 * [B, L, H, N].
        source_mask_BxL: True where the source is no padding.
        length: int32, tokens so far.
    """

    own: tuple[tuple[jax.Array, jax.Array], ...]
    source: tuple[tuple[jax.Array, jax.Array], ...]
    source_mask_BxL: jax.Array
    length: jax.Array


def distance_buckets(num_buckets: int, max_distance: int, *, causal: bool) -> np.ndarray:
    """Returns the bucket of each distance key - query in -max_distance..max_distance.

    Half of the buckets of a direction hold a distance each, the others grow logarithmically. In
    float32, since on the edges rounding decides, and checkpoints were trained with that.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    offset = np.zeros_like(distance)
    if causal:
        distance = np.maximum(-distance, 0)
    else:
        num_buckets //= 2
        offset = (distance > 0) * num_buckets
        distance = np.abs(distance)
    exact = num_buckets // 2
    share = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    share = share / np.float32(math.log(max_distance / exact)) * np.float32(num_buckets - exact)
    far = np.minimum(exact + share.astype(np.int32), num_buckets - 1)
    return offset + np.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """Bias of attention scores by distance: parameter 'embedding' [buckets, H].

    Attributes:
        config: of the model.
        causal: later keys are never read, all buckets serve earlier ones.
    """

    config: T5Config
    causal: bool

    @nn.compact
    def __call__(self, distance_RxLxM: jax.Array) -> jax.Array:
        """Maps distances (key - query position) to float32 [R, H, L, M]."""
        config = self.config
        init = nn.initializers.normal(config.width**-0.5)
        table = self.param("embedding", init, (config.num_buckets, config.num_heads))
        far = config.max_distance
        # One small look-up by bucket, then a plain one by distance.
        buckets = distance_buckets(config.num_buckets, far, causal=self.causal)
        by_distance = table.astype(jnp.float32)[buckets]
        index_RxLxM = jnp.clip(distance_RxLxM, -far, far) + far
        return jnp.take(by_distance, index_RxLxM, axis=0).transpose(0, 3, 1, 2)


class Attention(nn.Module):
    """Attention without scale and without biases on its projections, over given keys."""

    config: T5Config
    dtype: jnp.dtype
    own_bias: bool
    causal: bool

    def setup(self):
        """Declares query, key, value, output and, for umT5, relative_bias."""
        config = self.config
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        width = config.num_heads * config.head_size
        # The scale that the scores lack is in the queries from the start.
        init = nn.initializers.variance_scaling(1 / config.head_size, "fan_in", "normal")
        self.query = dense(width, kernel_init=init)
        self.key = dense(width)
        self.value = dense(width)
        self.output = dense(config.width)
        if self.own_bias:
            self.relative_bias = RelativeBias(config, self.causal)

    def keys_values(self, x_PxD: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
        """Returns what queries read of [P, D]: keys and values, each [R, L, H, N]."""
        shape = (rows, -1, self.config.num_heads, self.config.head_size)
        return self.key(x_PxD).reshape(shape), self.value(x_PxD).reshape(shape)

    def __call__(
        self,
        x_PxD: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        mask_RxLxM: jax.Array,
        *,
        bias: jax.Array | None = None,
        distance_RxLxM: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [P, D] to [P, D]; `distance_RxLxM` serves a bias of the layer's own."""
        if self.own_bias:
            bias = self.relative_bias(distance_RxLxM)
        rows, _, heads, size = keys_values[0].shape
        query_RxLxHxN = self.query(x_PxD).reshape(rows, -1, heads, size)
        mixed = layers.attend(query_RxLxHxN, *keys_values, mask_RxLxM, scale=1.0, bias=bias)
        return self.output(mixed.reshape(x_PxD.shape[0], -1))


class FeedForward(nn.Module):
    """The feed-forward of T5 1.0, without a gate, on flattened positions."""

    config: T5Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_PxD: jax.Array) -> jax.Array:
        """Maps [P, D] to [P, D]."""
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        activation = layers.ACTIVATIONS[self.config.activation]
        inner_PxF = activation(dense(self.config.hidden, name="up")(x_PxD))
        return dense(x_PxD.shape[-1], name="down")(inner_PxF)


class Layer(nn.Module):
    """One layer: attention, in the decoder attention to the source, and feed-forward."""

    config: T5Config
    dtype: jnp.dtype
    dropout: float
    is_decoder: bool

    def setup(self):
        """Declares the blocks, each with the norm before it."""
        config, dtype = self.config, self.dtype
        norm = functools.partial(nn.RMSNorm, epsilon=config.norm_epsilon, dtype=dtype)
        self.pre_attention_norm = norm()
        self.attention = Attention(config, dtype, config.bias_per_layer, causal=self.is_decoder)
        if self.is_decoder:
            self.pre_cross_attention_norm = norm()
            self.cross_attention = Attention(config, dtype, own_bias=False, causal=False)
        self.pre_mlp_norm = norm()
        if config.gated:
            self.mlp = layers.FeedForward(config.hidden, config.activation, dtype)
        else:
            self.mlp = FeedForward(config, dtype)
        self.drop = nn.Dropout(self.dropout)

    def source_keys_values(self, x_PxD: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
        """Returns what this layer reads of the encoder's hidden states, 2 * [R, L, H, N]."""
        return self.cross_attention.keys_values(x_PxD, rows)

    def __call__(
        self,
        x_PxD: jax.Array,
        view: tuple,
        own: tuple[jax.Array, jax.Array] | None,
        source: tuple | None,
        start: jax.Array | int,
        deterministic: bool,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Maps [P, D] to [P, D].

        Args:
            x_PxD: hidden states of R rows.
            view: mask_RxLxM, distance_RxLxM, bias or None: of the positions that are read.
            own: None, or keys and values so far, 2 * [R, M, H, N], to which these are added.
            source: None in the encoder; keys and values 2 * [R, S, H, N] and the mask [R, L, S].
            start: where these positions stand in `own`.
            deterministic: no dropout; static.

        Returns:
            [P, D] and keys and values as they are now.
        """
        mask_RxLxM, distance_RxLxM, bias = view
        y_PxD = self.pre_attention_norm(x_PxD)
        rows = (mask_RxLxM if own is None else own[0]).shape[0]  # len() fails where it is symbolic
        now = self.attention.keys_values(y_PxD, rows)
        if own is not None:
            update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
            now = tuple(update(old, new, start) for old, new in zip(own, now, strict=True))
        y_PxD = self.attention(y_PxD, now, mask_RxLxM, bias=bias, distance_RxLxM=distance_RxLxM)
        x_PxD += self.drop(y_PxD, deterministic=deterministic)
        if self.is_decoder:
            y_PxD = self.cross_attention(self.pre_cross_attention_norm(x_PxD), *source)
            x_PxD += self.drop(y_PxD, deterministic=deterministic)
        y_PxD = self.mlp(self.pre_mlp_norm(x_PxD))
        return x_PxD + self.drop(y_PxD, deterministic=deterministic), now


class Stack(nn.Module):
    """Layers between embeddings and the final norm, of the encoder or of the decoder.

    Attributes:
        config: shapes and choices.
        dtype: of the computation; parameters are float32.
        remat: recompute each layer in the backward pass instead of storing its activations.
        dropout: behind the embeddings and in each residual branch, while training.
        is_decoder: which of both it is.
    """

    config: T5Config
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    dropout: float = 0.0
    is_decoder: bool = False

    def setup(self):
        """Declares layer_0/..., final_norm/scale and, but for umT5, relative_bias/embedding."""
        config = self.config
        number = config.num_decoder_layers if self.is_decoder else config.num_layers
        layer_class = nn.remat(Layer, static_argnums=(6,)) if self.remat else Layer
        self.layer = [
            layer_class(config, self.dtype, self.dropout, self.is_decoder) for _ in range(number)
        ]
        self.final_norm = nn.RMSNorm(epsilon=config.norm_epsilon, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)
        if not config.bias_per_layer:
            self.relative_bias = RelativeBias(config, self.is_decoder)

    def run(
        self,
        x_PxD: jax.Array,
        positions: tuple[jax.Array, jax.Array],
        mask_RxLxM: jax.Array,
        *,
        own: tuple | None = None,
        source: tuple | None = None,
        source_mask_RxLxS: jax.Array | None = None,
        start: jax.Array | int = 0,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple]:
        """Maps embeddings to hidden states behind the final norm, [P, D].

        Args:
            x_PxD: float32 embeddings.
            positions: of queries [R, L] and of keys [R, M].
            mask_RxLxM: who may read whom.
            own: None, or for each layer keys and values so far.
            source: in the decoder: for each layer keys and values of the source.
            source_mask_RxLxS: who may read which source position.
            start: where these positions stand in `own`.
            deterministic: no dropout.

        Returns:
            Hidden states and each layer's keys and values as they are now.
        """
        queries_RxL, keys_RxM = positions
        distance_RxLxM = keys_RxM[:, None, :] - queries_RxL[:, :, None]
        bias = None if self.config.bias_per_layer else self.relative_bias(distance_RxLxM)
        view = (mask_RxLxM, distance_RxLxM, bias)
        x_PxD = self.drop(x_PxD.astype(self.dtype), deterministic=deterministic)
        now = []
        for number, layer in enumerate(self.layer):
            read = None if source is None else (source[number], source_mask_RxLxS)
            past = None if own is None else own[number]
            x_PxD, keys_values = layer(x_PxD, view, past, read, start, deterministic)
            now.append(keys_values)
        return self.final_norm(x_PxD), tuple(now)

    def source_keys_values(self, x_PxD: jax.Array, rows: int) -> tuple:
        """Returns for each layer the keys and values of the encoder's hidden states [P, D]."""
        return tuple(layer.source_keys_values(x_PxD, rows) for layer in self.layer)


class T5(Stack):
    """The encoder when called; with `decode`, `step` and `logits` the whole model.

    Parameters beside the encoder's: embedder/embedding; the parts decoder/... and lm_head/kernel.

    Attributes are those of `Stack`, where is_decoder stays False.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("decoder", "lm_head")

    def setup(self):
        """Declares the encoder as a stack does, embedder, decoder and lm_head."""
        super().setup()
        config = self.config
        self.embedder = layers.Embedder(config.vocab_size, config.width)
        self.decoder = Stack(config, self.dtype, self.remat, self.dropout, is_decoder=True)
        if not config.tied:
            self.lm_head = layers.vocabulary_head(config.vocab_size, self.dtype)

    def __call__(
        self,
        tokens_RxL: jax.Array,
        positions_RxL: jax.Array,
        segments_RxL: jax.Array,
        types_RxL: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Returns the encoder's hidden states behind its final norm, [R, L, D].

        Args:
            tokens_RxL: int32; an id outside the vocabulary gives NaN.
            positions_RxL: int32, restarting at 0 in each segment, 0 where padding.
            segments_RxL: int32, 0 where padding. Segments never attend to each other.
            types_RxL: of no meaning here.
            deterministic: False applies dropout, which then needs the rng 'dropout'.
        """
        mask_RxLxL = layers.attention_mask(positions_RxL, segments_RxL, causal=False)
        positions = (positions_RxL, positions_RxL)
        x_PxD = self.embedder(tokens_RxL.reshape(-1))
        x_PxD, _ = self.run(x_PxD, positions, mask_RxLxL, deterministic=deterministic)
        return x_PxD.reshape(*tokens_RxL.shape, -1)

    def decode(
        self,
        inputs_RxT: jax.Array,
        positions_RxT: jax.Array,
        segments_RxT: jax.Array,
        hidden_RxLxD: jax.Array,
        source_segments_RxL: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Returns the decoder's hidden states [R, T, D] of whole targets, for `logits`.

        Args:
            inputs_RxT: int32, the targets shifted by one place (`shift_right`).
            positions_RxT: int32, restarting at 0 in each segment, 0 where padding.
            segments_RxT: int32, 0 where padding. A target reads the source of its own segment.
            hidden_RxLxD: of the encoder.
            source_segments_RxL: the encoder's segments.
            deterministic: as in `__call__`.
        """
        rows = len(inputs_RxT)
        x_PxD, _ = self.decoder.run(
            self.embedder(inputs_RxT.reshape(-1)),
            (positions_RxT, positions_RxT),
            layers.attention_mask(positions_RxT, segments_RxT),
            source=self.decoder.source_keys_values(_flat(hidden_RxLxD), rows),
            source_mask_RxLxS=segments_RxT[:, :, None] == source_segments_RxL[:, None, :],
            deterministic=deterministic,
        )
        return x_PxD.reshape(*inputs_RxT.shape, -1)

    def start(self, hidden_BxLxD: jax.Array, segments_BxL: jax.Array, *, length: int) -> Cache:
        """Returns the cache before the first of at most `length` steps; one example a row."""
        config, batch = self.config, len(hidden_BxLxD)
        empty = jnp.zeros((batch, length, config.num_heads, config.head_size), self.dtype)
        source = self.decoder.source_keys_values(_flat(hidden_BxLxD), batch)
        own = ((empty, empty),) * config.num_decoder_layers
        return Cache(own, source, segments_BxL > 0, jnp.int32(0))

    def begin(
        self, tokens_BxL: jax.Array, lengths_B: jax.Array, *, length: int
    ) -> tuple[jax.Array, Cache]:
        """Reads sources, one a row; returns logits_BxV of the first tokens and the cache."""
        positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
        segments_BxL = (positions_BxL < lengths_B[:, None]).astype(jnp.int32)
        hidden_BxLxD = self(tokens_BxL, positions_BxL * segments_BxL, segments_BxL)
        cache = self.start(hidden_BxLxD, segments_BxL, length=length)
        return self.step(cache, jnp.full(len(tokens_BxL), self.config.start_id))

    def step(self, cache: Cache, tokens_B: jax.Array) -> tuple[jax.Array, Cache]:
        """Reads one more token of each example; returns the next one's logits_BxV, float32."""
        keys_1xT = jnp.arange(cache.own[0][0].shape[1])[None]
        x_BxD, own = self.decoder.run(
            self.embedder(tokens_B),
            (cache.length.reshape(1, 1), keys_1xT),
            (keys_1xT <= cache.length)[:, None, :],
            own=cache.own,
            source=cache.source,
            source_mask_RxLxS=cache.source_mask_BxL[:, None, :],
            start=cache.length,
        )
        return self.logits(x_BxD), cache._replace(own=own, length=cache.length + 1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits over the vocabulary, float32 [..., V], of the decoder's hidden states [..., D]."""
        if self.config.tied:
            return self.embedder.attend(hidden * self.config.width**-0.5)
        return self.lm_head(hidden)

    def everything(
        self,
        tokens_RxL: jax.Array,
        positions_RxL: jax.Array,
        segments_RxL: jax.Array,
        types_RxL: jax.Array | None = None,
    ) -> None:
        """Calls all submodules, so that `init` makes all parameters."""
        hidden_RxLxD = self(tokens_RxL, positions_RxL, segments_RxL)
        batch = (tokens_RxL, positions_RxL, segments_RxL)
        self.logits(self.decode(*batch, hidden_RxLxD, segments_RxL))


def shift_right(targets_RxT: jax.Array, positions_RxT: jax.Array, *, start_id: int) -> jax.Array:
    """Returns what the decoder reads to predict `targets_RxT`: start_id first in each segment."""
    return jnp.where(positions_RxT == 0, start_id, jnp.roll(targets_RxT, 1, axis=1))


def _flat(hidden_RxLxD: jax.Array) -> jax.Array:
    return hidden_RxLxD.reshape(-1, hidden_RxLxD.shape[-1])
