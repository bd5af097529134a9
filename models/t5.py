"""Encoder-decoders of the T5 family in Linen: T5 1.0 and 1.1, mT5, Mengzi-T5, umT5.

Calling `T5` runs the encoder, so that it serves as the backbone of classifiers; its decoder and its
output layer are parts that a checkpoint may lack. There are two ways to decode with the same
layers: `decode` takes whole targets (teacher forcing, packed rows too), `step` one token at a time
with the keys and values so far in a `Cache`, for models/generation.py. Attention without a scale
and a bias by distance instead of position embeddings are T5's (1910.10683).
models/pretrained/t5.py reads checkpoints.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import attention, layers
from models.layers import KeysValues


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
        num_buckets: of distances, each with a bias per head; a multiple of 4.
        max_distance: from here on all distances share a bucket.
        norm_epsilon: of every RMSNorm.
        activation: key of layers.ACTIVATIONS.
        gated: the feed-forward has a gate (1.1), or is two dense layers (1.0).
        bias_per_layer: each layer has biases of its own (umT5), or all share those of the first.
        tied: logits come from the token table, after scaling by D ** -0.5 (1.0), or from lm_head.
        start_id: token from which the first one is predicted.
        end_id: token that ends a target.
        pad_id: token of padding.
        max_length: maximum number of positions of a text; 0, no limit.
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
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"T5Config: {self.num_buckets} buckets for distances up to {self.max_distance}: "
                "num_buckets must be a multiple of 4 and max_distance above half of it"
            )


class Cache(NamedTuple):
    """State of step-by-step decoding of B examples.

    Attributes:
        targets: for each layer the keys and values of tokens so far, 2 * [B, T, H, N].
        source: for each layer the keys and values of the source, 2 * [B, L, H, N].
        source_mask_BxL: True where the source is no padding.
        length: int32, tokens so far.
    """

    targets: tuple[KeysValues, ...]
    source: tuple[KeysValues, ...]
    source_mask_BxL: jax.Array
    length: jax.Array


def distance_buckets(num_buckets: int, max_distance: int, *, causal: bool) -> np.ndarray:
    """Returns the bucket of each distance key - query in -max_distance..max_distance.

    Half of the buckets of a direction hold one distance, the others grow logarithmically. Computed
    in float32, as for the checkpoints, since rounding decides at the edges.
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
        causal: later keys are never read, all buckets are for earlier ones.
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
        # A small look-up by bucket, then a plain one by distance for each pair of positions.
        buckets = distance_buckets(config.num_buckets, far, causal=self.causal)
        by_distance = table.astype(jnp.float32)[buckets]
        index_RxLxM = jnp.clip(distance_RxLxM, -far, far) + far
        return jnp.take(by_distance, index_RxLxM, axis=0).transpose(0, 3, 1, 2)


class Attention(nn.Module):
    """Attention without scale and without biases on its projections, over given keys.

    Attributes:
        config: of the model.
        dtype: of the computation.
        has_bias: whether the layer has a relative bias of its own.
        causal: see `RelativeBias`.
        dropout: of the softmax, when not deterministic.
    """

    config: T5Config
    dtype: jnp.dtype
    has_bias: bool
    causal: bool
    dropout: float

    def setup(self):
        """Declares query, key, value, output and, for umT5, relative_bias."""
        config = self.config
        dense = functools.partial(layers.dense, dtype=self.dtype, use_bias=False)
        width = config.num_heads * config.head_size
        # The queries are initialised with the scale that the scores lack.
        init = nn.initializers.variance_scaling(1 / config.head_size, "fan_in", "normal")
        self.query = dense(width, kernel_init=init)
        self.key, self.value, self.output = dense(width), dense(width), dense(config.width)
        self.drop = nn.Dropout(self.dropout)
        if self.has_bias:
            self.relative_bias = RelativeBias(config, self.causal)

    def keys_values(self, x_PxD: jax.Array, rows: int) -> KeysValues:
        """Maps [P, D] to the keys and values of R rows, each [R, L, H, N]."""
        shape = (rows, -1, self.config.num_heads, self.config.head_size)
        return self.key(x_PxD).reshape(shape), self.value(x_PxD).reshape(shape)

    def __call__(
        self,
        x_PxD: jax.Array,
        keys_values: KeysValues,
        mask_RxLxM: jax.Array,
        distance_RxLxM: jax.Array | None = None,
        bias: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Maps [P, D] to [P, D]; the distances are for a bias of the layer's own."""
        if self.has_bias:
            bias = self.relative_bias(distance_RxLxM)
        rows, _, heads, size = keys_values[0].shape
        query_RxLxHxN = self.query(x_PxD).reshape(rows, -1, heads, size)
        drop = attention.dropping(self.drop, deterministic=deterministic)
        mixed = attention.attend(
            query_RxLxHxN, *keys_values, mask_RxLxM, scale=1.0, bias=bias, drop=drop
        )
        return self.output(mixed.reshape(x_PxD.shape[0], -1))


class Layer(nn.Module):
    """One layer: attention, in the decoder attention to the source, and feed-forward."""

    config: T5Config
    dtype: jnp.dtype
    dropout: float
    attention_dropout: float
    is_decoder: bool

    def setup(self):
        """Declares the blocks, each with the norm before it."""
        config, dtype = self.config, self.dtype
        norm = functools.partial(
            nn.RMSNorm, epsilon=config.norm_epsilon, dtype=layers.between(dtype)
        )
        self.pre_attention_norm = norm()
        rate, causal = self.attention_dropout, self.is_decoder
        self.attention = Attention(config, dtype, config.bias_per_layer, causal, rate)
        if self.is_decoder:
            self.pre_cross_attention_norm = norm()
            self.cross_attention = Attention(config, dtype, False, False, rate)  # has_bias, causal
        self.pre_mlp_norm = norm()
        self.mlp = layers.FeedForward(config.hidden, config.activation, dtype, gated=config.gated)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        x_PxD: jax.Array,
        deterministic: bool,
        view: tuple,
        past: tuple[KeysValues, jax.Array] | None,
        source: tuple[KeysValues, jax.Array] | None,
    ) -> tuple[jax.Array, KeysValues]:
        """Maps [P, D] to [P, D].

        Args:
            x_PxD: hidden states of R rows.
            deterministic: no dropout; static.
            view: mask_RxLxM, distance_RxLxM, and a shared bias or None, of the positions to read.
            past: None, or keys and values so far, 2 * [R, M, H, N], and the slot of the new ones.
            source: None in the encoder; keys and values 2 * [R, S, H, N] and the mask [R, L, S].

        Returns:
            [P, D] and the keys and values that were read.
        """
        y_PxD = self.pre_attention_norm(x_PxD)
        # len() would fail where the number of rows is symbolic.
        rows = (view[0] if past is None else past[0][0]).shape[0]
        keys_values = self.attention.keys_values(y_PxD, rows)
        if past is not None:
            old, slot = past
            update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
            keys_values = tuple(update(*pair, slot) for pair in zip(old, keys_values, strict=True))
        y_PxD = self.attention(y_PxD, keys_values, *view, deterministic=deterministic)
        x_PxD += self.drop(y_PxD, deterministic=deterministic)
        if self.is_decoder:
            y_PxD = self.pre_cross_attention_norm(x_PxD)
            y_PxD = self.cross_attention(y_PxD, *source, deterministic=deterministic)
            x_PxD += self.drop(y_PxD, deterministic=deterministic)
        y_PxD = self.mlp(self.pre_mlp_norm(x_PxD))
        return x_PxD + self.drop(y_PxD, deterministic=deterministic), keys_values


class Stack(layers.Backbone):
    """Layers between embeddings and the final norm, of the encoder or of the decoder.

    Attributes:
        is_decoder: which of both it is.
    """

    is_decoder: bool = False

    def setup(self):
        """Declares layer_0/..., final_norm/scale and, but for umT5, relative_bias/embedding."""
        config = self.config
        number = config.num_decoder_layers if self.is_decoder else config.num_layers
        self.layer = self.make_layers(Layer, number, self.is_decoder)
        dtype = layers.between(self.dtype)
        self.final_norm = nn.RMSNorm(epsilon=config.norm_epsilon, dtype=dtype)
        self.drop = nn.Dropout(self.dropout)
        if not config.bias_per_layer:
            self.relative_bias = RelativeBias(config, self.is_decoder)

    def run(
        self,
        x_PxD: jax.Array,
        positions: tuple[jax.Array, jax.Array],
        mask_RxLxM: jax.Array,
        *,
        past: tuple[Sequence[KeysValues], jax.Array] | None = None,
        source: tuple[Sequence[KeysValues], jax.Array] | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple]:
        """Maps embeddings to hidden states after the final norm, [P, D].

        Args:
            x_PxD: float32 embeddings.
            positions: of queries [R, L] and of keys [R, M].
            mask_RxLxM: who may read whom.
            past: None, or for each layer keys and values so far, and the slot of the new ones.
            source: in the decoder: for each layer keys and values of the source, and
                mask_RxLxS, who may read which source position.
            deterministic: no dropout.

        Returns:
            Hidden states and each layer's keys and values.
        """
        queries_RxL, keys_RxM = positions
        distance_RxLxM = keys_RxM[:, None, :] - queries_RxL[:, :, None]
        bias = None if self.config.bias_per_layer else self.relative_bias(distance_RxLxM)
        view = (mask_RxLxM, distance_RxLxM, bias)
        x_PxD = self.drop(x_PxD.astype(layers.between(self.dtype)), deterministic=deterministic)
        cache = []
        for i, layer in enumerate(self.layer):
            layer_past = None if past is None else (past[0][i], past[1])
            layer_source = None if source is None else (source[0][i], source[1])
            x_PxD, keys_values = layer(x_PxD, deterministic, view, layer_past, layer_source)
            cache.append(keys_values)
        return self.final_norm(x_PxD), tuple(cache)

    def source_keys_values(self, hidden_RxLxD: jax.Array) -> tuple[KeysValues, ...]:
        """Returns for each layer the keys and values of the encoder's hidden states."""
        rows, _, width = hidden_RxLxD.shape
        hidden_PxD = hidden_RxLxD.reshape(-1, width)
        return tuple(layer.cross_attention.keys_values(hidden_PxD, rows) for layer in self.layer)


class T5(Stack):
    """The encoder when called; with `decode`, `step` and `logits` the whole model.

    Parameters beside the encoder's: embedder/embedding; the parts decoder/... and lm_head/kernel.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("decoder", "lm_head")

    def setup(self):
        """Declares the encoder as a stack does, embedder, decoder and lm_head."""
        super().setup()
        config = self.config
        self.embedder = layers.Embedder(config.vocab_size, config.width)
        rates = self.dropout, self.attention_dropout
        self.decoder = Stack(config, self.dtype, self.remat, *rates, is_decoder=True)
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
        noise_RxLxE: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the encoder's hidden states after its final norm, [R, L, D].

        Args:
            tokens_RxL: int32; an id outside the vocabulary gives NaN.
            positions_RxL: int32, restarting at 0 in each segment, 0 where padding.
            segments_RxL: int32, 0 where padding. Segments never attend to each other.
            types_RxL: ignored.
            deterministic: False applies dropout, which then needs the rng 'dropout'.
            noise_RxLxE: added to the tokens' vectors.
        """
        mask_RxLxL = attention.attention_mask(positions_RxL, segments_RxL, causal=False)
        positions = (positions_RxL, positions_RxL)
        x_PxD = layers.noisy(self.embed(tokens_RxL), noise_RxLxE)
        x_PxD, _ = self.run(x_PxD, positions, mask_RxLxL, deterministic=deterministic)
        return x_PxD.reshape(*tokens_RxL.shape, -1)

    def embed(self, tokens_RxL: jax.Array) -> jax.Array:
        """Returns the encoder's token vectors [P, D], to which noise may be added."""
        return self.embedder(tokens_RxL.reshape(-1))

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
        mask_RxTxL = segments_RxT[:, :, None] == source_segments_RxL[:, None, :]
        x_PxD, _ = self.decoder.run(
            self.embedder(inputs_RxT.reshape(-1)),
            (positions_RxT, positions_RxT),
            attention.attention_mask(positions_RxT, segments_RxT),
            source=(self.decoder.source_keys_values(hidden_RxLxD), mask_RxTxL),
            deterministic=deterministic,
        )
        return x_PxD.reshape(*inputs_RxT.shape, -1)

    def start(
        self, tokens_BxL: jax.Array, lengths_B: jax.Array, *, length: int
    ) -> tuple[jax.Array, Cache]:
        """Reads sources, one a row, and reserves slots for `length` target tokens of each.

        Returns:
            logits_BxV of the first tokens, float32, and the cache.
        """
        config, batch = self.config, len(tokens_BxL)
        positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
        segments_BxL = (positions_BxL < lengths_B[:, None]).astype(jnp.int32)
        hidden_BxLxD = self(tokens_BxL, positions_BxL * segments_BxL, segments_BxL)
        empty = jnp.zeros(
            (batch, length, config.num_heads, config.head_size), layers.between(self.dtype)
        )
        targets = ((empty, empty),) * config.num_decoder_layers
        source = self.decoder.source_keys_values(hidden_BxLxD)
        cache = Cache(targets, source, segments_BxL > 0, jnp.int32(0))
        return self.step(cache, jnp.full(batch, config.start_id))

    def step(self, cache: Cache, tokens_B: jax.Array) -> tuple[jax.Array, Cache]:
        """Reads one more token of each example; returns the next one's logits_BxV, float32."""
        slots_1xT = jnp.arange(cache.targets[0][0].shape[1])[None]
        x_BxD, targets = self.decoder.run(
            self.embedder(tokens_B),
            (cache.length.reshape(1, 1), slots_1xT),
            (slots_1xT <= cache.length)[:, None, :],
            past=(cache.targets, cache.length),
            source=(cache.source, cache.source_mask_BxL[:, None, :]),
        )
        return self.logits(x_BxD), cache._replace(targets=targets, length=cache.length + 1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits over the vocabulary, float32 [..., V], of the decoder's hidden states [..., D]."""
        if self.config.tied:
            return self.embedder.attend(hidden * self.config.width**-0.5)
        return self.lm_head(hidden)

    def everything(self, *batch: jax.Array) -> None:
        """Calls all submodules on the batch of `__call__`, so that `init` makes all parameters."""
        segments_RxL = batch[2]
        self.logits(self.decode(*batch[:3], self(*batch), segments_RxL))


def shift_right(tokens_RxT: jax.Array, segments_RxT: jax.Array, *, start_id: int) -> jax.Array:
    """Returns what the decoder reads to predict targets: start_id first in each segment.

    Args:
        tokens_RxT: int32, targets, possibly with sources between them.
        segments_RxT: int32, 0 where there is no target.
        start_id: the token from which each target's first token is predicted.
    """

    def previous(x_RxT: jax.Array) -> jax.Array:
        return jnp.pad(x_RxT, ((0, 0), (1, 0)))[:, :-1]

    return jnp.where(segments_RxT != previous(segments_RxT), start_id, previous(tokens_RxT))
