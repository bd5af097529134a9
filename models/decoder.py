"""Decoder-only language models in Linen: Gemma 2 and 3, Llama 2 and 3, Qwen 2 to 3, Mistral.

The architectures' choices are fields of `DecoderConfig`; models/pretrained/decoder.py reads them
from checkpoints. Layers are unrolled: parameter paths name their layer, which regex tables and
layer-wise decay match. Every RMSNorm stores its effective scale; checkpoints of scale - 1 are
shifted on reading. models/generation.py writes with `start` and `step`, which read one token at a
time with the keys and values so far in a `Cache`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import attention, layers
from models.layers import KeysValues, Rope


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shapes and choices of a decoder. Defaults are those of Gemma 3.

    Attributes:
        model_type: of config.json: the family as whose checkpoint this is written.
        vocab_size: V.
        width: D.
        num_layers: number of layers.
        num_heads: H.
        num_kv_heads: K, a divisor of H.
        head_size: N, even; not tied to D / H.
        hidden: F, feed-forward width.
        windows: for each layer how many positions it sees, the query's included; 0 is all. If
            bidirectional, half a window on each side.
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
        tied: the embedding is the output projection too, instead of 'lm_head'.
        bidirectional: positions see later ones too, as in an encoder.
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
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig: {self.num_heads} heads can't share {self.num_kv_heads} key/value "
                "heads evenly: num_kv_heads must divide num_heads"
            )


class Cache(NamedTuple):
    """State of step-by-step decoding of B examples.

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
    dropout: float
    fused: attention.Fused | None

    @nn.compact
    def __call__(
        self,
        x_PxD: jax.Array,
        view: attention.Visible,
        rope: tuple[jax.Array, jax.Array],
        past: tuple[KeysValues, jax.Array] | None,
        deterministic: bool,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Maps [P, D] to [P, D], reading within rows of L positions, or of M slots of a cache.

        Args:
            x_PxD: hidden states of R rows of L positions.
            view: who may read whom; M is L without `past`.
            rope: tables of the positions.
            past: keys and values in a cache, each [R, M, K, N], and the slots [R, L] for these
                positions; None without a cache.
            deterministic: no dropout.

        Returns:
            The output, and the cache with these positions, None without one.
        """
        config, dtype = self.config, self.dtype
        rows, length, _ = view.mask_RxLxM.shape

        def project(name: str, heads: int) -> jax.Array:
            width, bias = heads * config.head_size, config.attention_bias
            dense = layers.dense(width, dtype, use_bias=bias, name=name)
            return dense(x_PxD).reshape(rows, length, heads, config.head_size)

        query_RxLxHxN = project("query", config.num_heads)
        key_RxMxKxN = project("key", config.num_kv_heads)
        value_RxMxKxN = project("value", config.num_kv_heads)
        if config.query_key_norm:
            query_RxLxHxN = rms_norm(config, dtype, name="query_norm")(query_RxLxHxN)
            key_RxMxKxN = rms_norm(config, dtype, name="key_norm")(key_RxMxKxN)
        query_RxLxHxN, key_RxMxKxN = (layers.rotate(x, rope) for x in (query_RxLxHxN, key_RxMxKxN))
        cached = None
        if past is not None:
            (old_keys, old_values), slots_RxL = past
            place = (jnp.arange(rows)[:, None], slots_RxL)
            key_RxMxKxN = old_keys.at[place].set(key_RxMxKxN)
            value_RxMxKxN = old_values.at[place].set(value_RxMxKxN)
            cached = key_RxMxKxN, value_RxMxKxN
        mixed_RxLxHxN = attention.mixed(
            self.fused,
            query_RxLxHxN,
            key_RxMxKxN,
            value_RxMxKxN,
            view,
            scale=config.attention_scale,
            cap=config.attention_cap,
            drop=attention.dropping(nn.Dropout(self.dropout), deterministic=deterministic),
        )
        output = layers.dense(config.width, dtype, use_bias=config.output_bias, name="output")
        return output(mixed_RxLxHxN.reshape(rows * length, -1)), cached


class Layer(nn.Module):
    """One decoder layer: attention and feed-forward, each with its residual and norms."""

    config: DecoderConfig
    dtype: jnp.dtype
    dropout: float
    attention_dropout: float
    fused: attention.Fused | None

    @nn.compact
    def __call__(
        self, x_PxD: jax.Array, deterministic: bool, *attended: Any
    ) -> tuple[jax.Array, KeysValues | None]:
        """Maps [P, D] to [P, D]; other arguments and the second result are those of `Attention`."""
        config, dtype = self.config, self.dtype
        attend = Attention(config, dtype, self.attention_dropout, self.fused, name="attention")
        mlp = layers.FeedForward(
            config.hidden, config.activation, dtype, config.mlp_bias, name="mlp"
        )

        def before(name: str, x_PxD: jax.Array) -> jax.Array:
            return rms_norm(config, dtype, name=f"pre_{name}_norm")(x_PxD)

        def after(name: str, y_PxD: jax.Array) -> jax.Array:
            if config.post_norms:
                y_PxD = rms_norm(config, dtype, name=f"post_{name}_norm")(y_PxD)
            return nn.Dropout(self.dropout)(y_PxD, deterministic=deterministic)

        y_PxD, cached = attend(before("attention", x_PxD), *attended, deterministic)
        x_PxD += after("attention", y_PxD)
        return x_PxD + after("mlp", mlp(before("mlp", x_PxD))), cached


class Decoder(layers.Backbone):
    """A decoder; `logits` is its output projection, tied to the embedding or the part 'lm_head'."""

    PARTS: ClassVar[tuple[str, ...]] = ("lm_head",)

    def setup(self):
        """Declares the parameters: embedder/embedding, layer_0/..., final_norm/scale, lm_head."""
        config = self.config
        self.embedder = layers.Embedder(config.vocab_size, config.width)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.layer = self.make_layers(Layer, config.num_layers, self.fused)
        self.final_norm = rms_norm(config, self.dtype)
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
        """Returns the hidden states after the final norm, [R, L, D] in the compute dtype.

        Args:
            tokens_RxL: int32; an id outside the vocabulary gives NaN, never another token's vector.
            positions_RxL: int32, restarting at 0 in each segment, 0 where padding.
            segments_RxL: int32, 0 where padding. Segments never attend to each other.
            types_RxL: ignored.
            deterministic: False applies dropout.
            noise_RxLxE: added to the tokens' vectors.
        """
        causal = not self.config.bidirectional

        def view_of(window: int) -> attention.Visible:
            return attention.visible(positions_RxL, segments_RxL, window=window, causal=causal)

        return self._run(
            tokens_RxL,
            positions_RxL,
            view_of,
            deterministic=deterministic,
            noise_RxLxE=noise_RxLxE,
        )[0]

    def embed(self, tokens_RxL: jax.Array) -> jax.Array:
        """Returns the tokens' vectors [P, D], to which noise may be added."""
        return self.embedder(tokens_RxL.reshape(-1)) * self.config.embedding_scale

    def _run(
        self,
        tokens_RxL: jax.Array,
        positions_RxL: jax.Array,
        view_of: Callable[[int], attention.Visible],
        *,
        past: Sequence[KeysValues] | None = None,
        deterministic: bool = True,
        noise_RxLxE: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple]:
        """Returns hidden states and each layer's cache, whose slots are the positions.

        `view_of` returns who may read whom with a window; 0 is no window.
        """
        config = self.config
        # A window that is longer than the row hides nothing: one view serves all layers then.
        length = tokens_RxL.shape[1] if past is None else past[0][0].shape[1]
        reach = 2 * length if config.bidirectional else length
        windows = [window if window < reach else 0 for window in config.windows]
        views = {window: view_of(window) for window in dict.fromkeys(windows)}
        tables = {
            rope: layers.rope_tables(positions_RxL, config.head_size, rope)
            for rope in dict.fromkeys(config.ropes)
        }
        x_PxD = layers.noisy(self.embed(tokens_RxL), noise_RxLxE)
        x_PxD = self.embedding_dropout(
            x_PxD.astype(layers.between(self.dtype)), deterministic=deterministic
        )
        cache = []
        for i, layer in enumerate(self.layer):
            view, rope = views[windows[i]], tables[config.ropes[i]]
            layer_past = None if past is None else (past[i], positions_RxL)
            x_PxD, keys_values = layer(x_PxD, deterministic, view, rope, layer_past)
            cache.append(keys_values)
        return self.final_norm(x_PxD).reshape(*tokens_RxL.shape, config.width), tuple(cache)

    def start(
        self, tokens_BxL: jax.Array, lengths_B: jax.Array, *, length: int
    ) -> tuple[jax.Array, Cache]:
        """Reads prompts, one a row, and reserves slots for `length` more tokens of each.

        Args:
            tokens_BxL: int32; each row begins with its prompt, followed by padding.
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
        empty = jnp.zeros(size, layers.between(self.dtype))
        cache = Cache(((empty, empty),) * config.num_layers, jnp.zeros(batch, jnp.int32))
        positions_BxL = jnp.broadcast_to(jnp.arange(prompt), tokens_BxL.shape)
        # Slots filled by padding after a prompt are overwritten before any position reads them.
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
        """Returns hidden states of tokens at these positions, which read the slots before them."""
        slots_M = jnp.arange(cache.layers[0][0].shape[1])
        distance_BxLxM = positions_BxL[:, :, None] - slots_M

        def view_of(window: int) -> attention.Visible:
            near_BxLxM = (distance_BxLxM < window) if window else True
            return attention.Visible((distance_BxLxM >= 0) & near_BxLxM)

        hidden, keys_values = self._run(tokens_BxL, positions_BxL, view_of, past=cache.layers)
        return hidden, cache._replace(layers=keys_values)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, float32 [..., V], of hidden states [..., D] from `__call__`."""
        project = self.embedder.attend if self.config.tied else self.lm_head
        return layers.soft_cap(project(hidden), self.config.logit_cap)

    def everything(self, *batch: jax.Array) -> None:
        """Calls all submodules on the batch of `__call__`, so that `init` makes all parameters."""
        self.logits(self(*batch))


def rms_norm(config: DecoderConfig, dtype: jnp.dtype, name: str | None = None) -> nn.RMSNorm:
    """RMSNorm (1910.07467) over the last axis, computed in float32; parameter `scale`."""
    return nn.RMSNorm(epsilon=config.norm_epsilon, dtype=layers.between(dtype), name=name)
