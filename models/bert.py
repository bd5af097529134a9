"""Encoders in Linen: BERT, RoBERTa, XLM-R, ERNIE, ELECTRA and ALBERT.

One architecture: learned absolute positions, attention in both directions, a LayerNorm after each
residual sum (1810.04805). The families differ in fields of `BertConfig`. RoBERTa-wwm and MacBERT of
the Chinese series are plain BERT. Layers are unrolled; ALBERT's tree holds each of its distinct
layers once. All tables and the norm of the input are named 'embedder...', so that the regex
'backbone/embedder.*' matches the whole input. Checkpoint formats are in models/pretrained/bert.py,
pooling over positions and classification in models/heads.py.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import attention, layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Shapes and choices of an encoder.

    Attributes:
        model_type: as config.json has it: 'bert', 'roberta', 'xlm-roberta', 'ernie', 'electra',
            'albert'.
        vocab_size: V.
        width: D.
        num_layers: layers that a text passes through.
        num_distinct_layers: layers with parameters of their own; each is applied equally many times
            in a row (ALBERT, 1909.11942). Equal to num_layers elsewhere.
        num_heads: H, a divisor of D.
        hidden: F, feed-forward width.
        max_length: maximum number of positions of a text.
        position_offset: row of the position table that the first position reads; RoBERTa starts
            after its padding id.
        num_types: rows of the token type table.
        num_tasks: rows of ERNIE's table of tasks (2107.02137), of which row 0 is read; 0 is none.
        embedding_size: E, of all tables and of the masked-language-model head; D where the
            embeddings are not factorised.
        embedder_projection: whether a dense layer leads from E to D.
        activation: of the feed-forward block, key of layers.ACTIVATIONS.
        head_activation: of the masked-language-model head, likewise.
        norm_epsilon: of every LayerNorm.
    """

    model_type: str
    vocab_size: int
    width: int
    num_layers: int
    num_distinct_layers: int
    num_heads: int
    hidden: int
    max_length: int
    embedding_size: int
    position_offset: int = 0
    num_types: int = 2
    num_tasks: int = 0
    embedder_projection: bool = False
    activation: str = "gelu"
    head_activation: str = "gelu"
    norm_epsilon: float = 1e-12


class Attention(nn.Module):
    """Self-attention in both directions, within segments."""

    config: BertConfig
    dtype: jnp.dtype
    dropout: float
    fused: attention.Fused | None

    @nn.compact
    def __call__(self, x_PxD: jax.Array, view: attention.Visible, deterministic: bool) -> jax.Array:
        """Maps [P, D] to [P, D], reading within rows of L positions."""
        rows, length, _ = view.mask_RxLxM.shape
        width, heads = self.config.width, self.config.num_heads
        query, key, value = (
            layers.dense(width, self.dtype, name=name)(x_PxD).reshape(rows, length, heads, -1)
            for name in ("query", "key", "value")
        )
        scale = (width // heads) ** -0.5
        drop = attention.dropping(nn.Dropout(self.dropout), deterministic=deterministic)
        mixed_RxLxHxN = attention.mixed(self.fused, query, key, value, view, scale=scale, drop=drop)
        return layers.dense(width, self.dtype, name="output")(mixed_RxLxHxN.reshape(-1, width))


class Layer(nn.Module):
    """One encoder layer: attention and feed-forward, each with its residual and a norm after it."""

    config: BertConfig
    dtype: jnp.dtype
    dropout: float
    attention_dropout: float
    fused: attention.Fused | None

    @nn.compact
    def __call__(self, x_PxD: jax.Array, deterministic: bool, view: attention.Visible) -> jax.Array:
        """Maps [P, D] to [P, D]."""
        config, dtype = self.config, self.dtype
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        mlp = layers.FeedForward(
            config.hidden, config.activation, dtype, bias=True, gated=False, name="mlp"
        )
        attend = Attention(config, dtype, self.attention_dropout, self.fused, name="attention")
        y_PxD = attend(x_PxD, view, deterministic)
        x_PxD = layer_norm(config, dtype, name="attention_norm")(x_PxD + drop(y_PxD))
        return layer_norm(config, dtype, name="mlp_norm")(x_PxD + drop(mlp(x_PxD)))


class MaskedLanguageModelHead(nn.Module):
    """Transformation after the last layer, whose output is compared with the token embedding."""

    config: BertConfig
    dtype: jnp.dtype

    def setup(self):
        """Declares transform, norm and bias [V]."""
        self.transform = layers.dense(self.config.embedding_size, self.dtype)
        self.norm = layer_norm(self.config, self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (self.config.vocab_size,))

    def before_logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [..., D] to the vectors [..., E] that the output vectors score."""
        activation = layers.ACTIVATIONS[self.config.head_activation]
        return self.norm(activation(self.transform(hidden)))

    def __call__(self, hidden: jax.Array, embedder: layers.Embedder) -> jax.Array:
        """Maps hidden states [..., D] to float32 logits [..., V]."""
        return embedder.attend(self.before_logits(hidden)) + self.bias.astype(jnp.float32)


class Bert(layers.Backbone):
    """An encoder; `pooled` and `logits` add the heads that it was pretrained with."""

    PARTS: ClassVar[tuple[str, ...]] = ("pooler", "mlm_head")

    def setup(self):
        """Declares the parameters: embedder/embedding, embedder_positions/..., layer_0/..."""
        config = self.config
        table = functools.partial(layers.Embedder, size=config.embedding_size)
        self.embedder = table(config.vocab_size)
        self.embedder_positions = table(config.max_length + config.position_offset)
        self.embedder_types = table(config.num_types)
        if config.num_tasks:
            self.embedder_tasks = table(config.num_tasks)
        self.embedder_norm = layer_norm(config, self.dtype)
        if config.embedder_projection:
            self.embedder_projection = layers.dense(config.width, self.dtype)
        self.embedder_dropout = nn.Dropout(self.dropout)
        self.layer = self.make_layers(Layer, config.num_distinct_layers, self.fused)
        self.pooler = layers.dense(config.width, self.dtype)
        self.mlm_head = MaskedLanguageModelHead(config, self.dtype)

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
        """Returns the hidden states after the last layer, [R, L, D] in the compute dtype.

        Ids outside their table (tokens, positions from max_length on, types) give NaN, never
        another row's vector.

        Args:
            tokens_RxL: int32.
            positions_RxL: int32, restarting at 0 in each segment, 0 where padding.
            segments_RxL: int32, 0 where padding. Segments never attend to each other.
            types_RxL: int32, 0 in a first text, 1 in a second one; None is 0 everywhere.
            deterministic: False applies dropout, which then needs the rng 'dropout'.
            noise_RxLxE: added to the tokens' vectors.
        """
        config = self.config
        types_RxL = jnp.zeros_like(tokens_RxL) if types_RxL is None else types_RxL
        x_PxE = layers.noisy(self.embed(tokens_RxL), noise_RxLxE)
        x_PxE += self.embedder_types(types_RxL.reshape(-1))
        x_PxE += self.embedder_positions(positions_RxL.reshape(-1) + config.position_offset)
        if config.num_tasks:
            x_PxE += self.embedder_tasks(jnp.zeros(1, jnp.int32))
        x_PxD = self.embedder_dropout(self.embedder_norm(x_PxE), deterministic=deterministic)
        if config.embedder_projection:
            x_PxD = self.embedder_projection(x_PxD)
        view = attention.visible(positions_RxL, segments_RxL, causal=False)
        for i in range(config.num_layers):
            layer = self.layer[i * config.num_distinct_layers // config.num_layers]
            x_PxD = layer(x_PxD, deterministic, view)
        return x_PxD.reshape(*tokens_RxL.shape, config.width)

    def embed(self, tokens_RxL: jax.Array) -> jax.Array:
        """Returns the tokens' vectors [P, E], to which noise may be added."""
        return self.embedder(tokens_RxL.reshape(-1))

    def pooled(self, first_BxD: jax.Array) -> jax.Array:
        """Passes each text's first hidden state through BERT's dense layer and tanh: [B, D]."""
        return jnp.tanh(self.pooler(first_BxD))

    def before_logits(self, hidden: jax.Array) -> jax.Array:
        """See MaskedLanguageModelHead: [..., E] of [..., D]."""
        return self.mlm_head.before_logits(hidden)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Masked-language-model logits, float32 [..., V], of hidden states [..., D]."""
        return self.mlm_head(hidden, self.embedder)

    def everything(self, *batch: jax.Array) -> None:
        """Calls all submodules on the batch of `__call__`, so that `init` makes all parameters."""
        hidden_RxLxD = self(*batch)
        self.pooled(hidden_RxLxD[:, 0])
        self.logits(hidden_RxLxD)


def layer_norm(config: BertConfig, dtype: jnp.dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm (1607.06450) over the last axis, with statistics in float32."""
    return nn.LayerNorm(epsilon=config.norm_epsilon, dtype=layers.between(dtype), name=name)
