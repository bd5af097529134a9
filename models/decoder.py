"""Decoder-only language models in Linen: Gemma 2 and 3, Llama 2 and 3, Qwen 2 to 3, Mistral.

The architectures' choices are fields of `DecoderConfig`. Layers are unrolled: parameter paths name
their layer, which is what regex tables and layer-wise decay match. Every RMSNorm stores its
effective scale, one where nothing is scaled; checkpoints of scale - 1 are shifted on reading.
`start` and `step` read one token at a time with the keys and values so far in a `Cache`, which is
what models/generation.py loops over. Which checkpoint has which choices is known to
models/pretrained/decoder.py; heads live in models/heads.py. Called through models/backbone.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from models.layers import Rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shapes and choices of a decoder. Defaults are those of Gemma 3.

    Attributes:
        model_type: of config.json, which family's checkpoints this is written as.
        vocab_size: V.
        width: D.
        num_layers: number of layers.
        num_heads: H.
        num_kv_heads: K, a divisor of H.
        head_size: N, even; not tied to D / H.
        hidden: F, feed-forward width.
        windows: for each layer the positions it sees, itself included; 0 is all. If bidirectional,
            half a window on each side.
        ropes: for each layer its rotary positions.
        attention_scale: factor on query times key.
        embedding_scale: factor on the embeddings at the input; the output reads them unscaled.
        max_length: positions it was trained for; 0 is unknown.
        norm_epsilon: of every RMSNorm.
        activation: key of layers.ACTIVATIONS.
        query_key_norm: RMSNorm over each head of queries and keys.
        post_norms: RMSNorm also behind attention and feed-forward ("sandwich").
        attention_bias: biases of queries, keys and values.
        output_bias: bias of attention's output.
        mlp_bias: biases of the feed-forward block.
        attention_cap: soft cap of attention scores; 0 is off.
        logit_cap: soft cap of the logits; 0 is off.
        tied: the embedding is the output projection too; else 'lm_head' is.
        bidirectional: positions see what follows them too, as in an encoder.
    """

    model_type: str = "gemma3_text"
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden: int
    windows: tuple[int, ...]
    ropes: tuple[Rope, ...]
    attention_scale: float
    embedding_scale: float
    max_length: int = 0
    norm_epsilon: float = 1e-6
    activation: str = "gelu_tanh"
    query_key_norm: bool = True
    post_norms: bool = True
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    tied: bool = True
    bidirectional: bool = False

    def __post_init__(self):
        for name in ("windows", "ropes"):
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


KeysValues = tuple[jax.Array, jax.Array]


class Cache(NamedTuple):
    """What decoding step by step remembers of B examples.

    Attributes:
        layers: for each layer keys and values of M slots, 2 * [B, M, K, N]; a token's slot is its
            position.
        lengths_B: int32, tokens so far.
    """

    layers: tuple[KeysValues, ...]
    lengths_B: jax.Array


class Attention(nn.Module):
    """Self-attention with grouped queries, rotary positions and a mask per row."""

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_PxD: jax.Array,
        mask_RxLxM: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        past: KeysValues | None = None,
        slots_RxL: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Maps [P, D] to [P, D], reading within rows of L positions, or of M slots of a cache.

        Args:
            x_PxD: hidden states of R rows of L positions.
            mask_RxLxM: who reads what; M is L without `past`.
            rope: tables of the positions.
            past: keys and values in a cache, each [R, M, K, N].
            slots_RxL: where these positions' own go in it.

        Returns:
            The output, and the cache with these positions, None without one.
        """
        config = self.config
        rows, length, _ = mask_RxLxM.shape

        def project(name: str, heads: int) -> jax.Array:
            width, bias = heads * config.head_size, config.attention_bias
            dense = nn.Dense(width, use_bias=bias, dtype=self.dtype, name=name)
            return dense(x_PxD).reshape(rows, length, heads, config.head_size)

        query_RxLxHxN = project("query", config.num_heads)
        key_RxLxKxN = project("key", config.num_kv_heads)
        value_RxLxKxN = project("value", config.num_kv_heads)
        if config.query_key_norm:
            query_RxLxHxN = rms_norm(config, self.dtype, "query_norm")(query_RxLxHxN)
            key_RxLxKxN = rms_norm(config, self.dtype, "key_norm")(key_RxLxKxN)
        key_RxMxKxN, value_RxMxKxN = layers.rotate(key_RxLxKxN, rope), value_RxLxKxN
        if past is not None:
            place = (jnp.arange(rows)[:, None], slots_RxL)
            new = (key_RxMxKxN, value_RxMxKxN)
            past = tuple(old.at[place].set(own) for old, own in zip(past, new, strict=True))
            key_RxMxKxN, value_RxMxKxN = past
        mixed_RxLxHxN = layers.attend(
            layers.rotate(query_RxLxHxN, rope),
            key_RxMxKxN,
            value_RxMxKxN,
            mask_RxLxM,
            scale=config.attention_scale,
            cap=config.attention_cap,
        )
        output = nn.Dense(
            config.width, use_bias=config.output_bias, dtype=self.dtype, name="output"
        )
        return output(mixed_RxLxHxN.reshape(rows * length, -1)), past


class Layer(nn.Module):
    """One decoder layer: attention and feed-forward, each with its residual and norms."""

    config: DecoderConfig
    dtype: jnp.dtype
    dropout: float

    @nn.compact
    def __call__(
        self,
        x_PxD: jax.Array,
        mask_RxLxM: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        deterministic: bool,
        past: KeysValues | None = None,
        slots_RxL: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Maps [P, D] to [P, D]; cache and slots are those of `Attention`."""
        config = self.config
        attention = Attention(config, self.dtype, name="attention")
        mlp = layers.FeedForward(
            config.hidden, config.activation, self.dtype, config.mlp_bias, name="mlp"
        )

        def norm(name: str, x_PxD: jax.Array) -> jax.Array:
            return rms_norm(config, self.dtype, name)(x_PxD)

        def branch(name: str, y_PxD: jax.Array) -> jax.Array:
            y_PxD = norm(name, y_PxD) if config.post_norms else y_PxD
            return nn.Dropout(self.dropout)(y_PxD, deterministic=deterministic)

        y_PxD, past = attention(
            norm("pre_attention_norm", x_PxD), mask_RxLxM, rope, past, slots_RxL
        )
        x_PxD += branch("post_attention_norm", y_PxD)
        return x_PxD + branch("post_mlp_norm", mlp(norm("pre_mlp_norm", x_PxD))), past


class Decoder(nn.Module):
    """A decoder; `logits` is its output projection, tied to the embedding or the part 'lm_head'.

    Attributes:
        config: shapes and choices.
        dtype: of the computation; parameters are float32.
        remat: recompute each layer in the backward pass instead of storing its activations.
        dropout: rate behind the embeddings and in each residual branch (rng 'dropout').
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    dropout: float = 0.0

    PARTS: ClassVar[tuple[str, ...]] = ("lm_head",)

    def setup(self):
        """Declares the parameters: embedder/embedding, layer_0/..., final_norm/scale, lm_head."""
        config = self.config
        self.embedder = layers.Embedder(config.vocab_size, config.width)
        self.embedding_dropout = nn.Dropout(self.dropout)
        layer_class = nn.remat(Layer, static_argnums=(4,)) if self.remat else Layer
        self.layer = [
            layer_class(config, self.dtype, self.dropout) for _ in range(config.num_layers)
        ]
        self.final_norm = rms_norm(config, self.dtype, None)
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
        """Returns the hidden states behind the final norm, [R, L, D] in the compute dtype.

        Args:
            tokens_RxL: int32; an id outside the vocabulary gives NaN, never another token's vector.
            positions_RxL: int32, restarting at 0 in each segment, 0 where padding.
            segments_RxL: int32, 0 where padding. Segments never attend to each other.
            types_RxL: of no meaning to decoders.
            deterministic: False applies dropout.
        """
        config, length = self.config, tokens_RxL.shape[1]
        # A window that reaches over the row is none: 1 mask serves all layers of short rows.
        reach = 2 * length if config.bidirectional else length
        windows = [window if window < reach else 0 for window in config.windows]
        masks = {
            window: layers.attention_mask(
                positions_RxL, segments_RxL, window=window, causal=not config.bidirectional
            )
            for window in set(windows)
        }
        masks = [masks[window] for window in windows]
        hidden_RxLxD, _ = self._run(tokens_RxL, positions_RxL, masks, deterministic)
        return hidden_RxLxD

    def _run(
        self,
        tokens_RxL: jax.Array,
        positions_RxL: jax.Array,
        masks: Sequence[jax.Array],
        deterministic: bool,
        past: Sequence[KeysValues] | None = None,
    ) -> tuple[jax.Array, tuple]:
        """Returns hidden states and each layer's cache; slots in it are the positions."""
        config = self.config
        ropes = {
            rope: layers.rope_tables(positions_RxL, config.head_size, rope)
            for rope in dict.fromkeys(config.ropes)
        }
        # Positions are flattened because a weight gradient that contracts two axes is slow on CPU
        # (123 against 178 GFLOP/s).
        x_PxD = self.embedder(tokens_RxL.reshape(-1)) * config.embedding_scale
        x_PxD = self.embedding_dropout(x_PxD.astype(self.dtype), deterministic=deterministic)
        now = []
        for i, (layer, mask, rope) in enumerate(zip(self.layer, masks, config.ropes, strict=True)):
            cached = () if past is None else (past[i], positions_RxL)
            x_PxD, keys_values = layer(x_PxD, mask, ropes[rope], deterministic, *cached)
            now.append(keys_values)
        return self.final_norm(x_PxD).reshape(*tokens_RxL.shape, config.width), tuple(now)

    def start(
        self, tokens_BxL: jax.Array, lengths_B: jax.Array, *, length: int
    ) -> tuple[jax.Array, Cache]:
        """Reads prompts, one a row, and makes room for `length` more tokens of each.

        Args:
            tokens_BxL: int32; each row begins with its prompt, padding stands behind.
            lengths_B: int32, tokens of each prompt, at least 1.
            length: T.

        Returns:
            logits_BxV of the first tokens, float32, and the cache.

        Raises:
            ValueError: a bidirectional decoder, which can't write.
        """
        config = self.config
        if config.bidirectional:
            raise ValueError(
                "config.model.bidirectional=True: such a model reads what follows, and can't write"
            )
        batch, prompt = tokens_BxL.shape
        size = (batch, prompt + length, config.num_kv_heads, config.head_size)
        empty = jnp.zeros(size, self.dtype)
        cache = Cache(((empty, empty),) * config.num_layers, jnp.zeros(batch, jnp.int32))
        positions_BxL = jnp.broadcast_to(jnp.arange(prompt), tokens_BxL.shape)
        # What padding leaves behind a prompt is written over before anyone reads it.
        hidden_BxLxD, cache = self._read(tokens_BxL, positions_BxL, cache)
        last_BxD = jnp.take_along_axis(hidden_BxLxD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
        return self.logits(last_BxD), cache._replace(lengths_B=lengths_B.astype(jnp.int32))

    def step(self, cache: Cache, tokens_B: jax.Array) -> tuple[jax.Array, Cache]:
        """Reads one more token of each example; returns the next one's logits_BxV, float32."""
        hidden_Bx1xD, cache = self._read(tokens_B[:, None], cache.lengths_B[:, None], cache)
        return self.logits(hidden_Bx1xD[:, 0]), cache._replace(lengths_B=cache.lengths_B + 1)

    def _read(
        self, tokens_BxL: jax.Array, positions_BxL: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Returns hidden states of tokens at these positions, which read what is before them."""
        slots_M = jnp.arange(cache.layers[0][0].shape[1])
        distance_BxLxM = positions_BxL[:, :, None] - slots_M
        masks = {
            window: (distance_BxLxM >= 0) & ((distance_BxLxM < window) if window else True)
            for window in set(self.config.windows)
        }
        masks = [masks[window] for window in self.config.windows]
        hidden, layers_now = self._run(tokens_BxL, positions_BxL, masks, True, cache.layers)
        return hidden, cache._replace(layers=layers_now)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, float32 [..., V], of hidden states [..., D] from `__call__`."""
        project = self.embedder.attend if self.config.tied else self.lm_head
        return layers.soft_cap(project(hidden), self.config.logit_cap)

    def everything(self, *batch: jax.Array) -> None:
        """Calls all submodules on what `__call__` takes, so that `init` makes all parameters."""
        self.logits(self(*batch))


def rms_norm(config: DecoderConfig, dtype: jnp.dtype, name: str | None) -> nn.RMSNorm:
    """RMSNorm (1910.07467) over the last axis, computed in float32; parameter `scale`."""
    return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=dtype, name=name)
