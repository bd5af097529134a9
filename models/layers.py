"""Parts shared by the architectures: token table, rotary positions, products, feed-forward.

Pure functions and small Linen modules without knowledge of any checkpoint format or task. Attention
is in attention.py beside this file. Dense layers work on flattened positions, P = R * L, because a
weight gradient that contracts two axes is slow on CPU (123 against 178 GFLOP/s).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


# Of BERT-base at 512 tokens in bfloat16 "dots" keeps 90 MiB a row and computes 4% more, "layers" 11
# MiB and 34% more, "none" 530 MiB: most of that is scores and activations (2205.05198).
REMAT: dict[str, Callable | None] = {
    "layers": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

Batch = Mapping[str, jax.Array]
KeysValues = tuple[jax.Array, jax.Array]


class Backbone(nn.Module):
    """Base of the architectures; models/backbone.py lists the methods that they have in common.

    Attributes:
        config: shapes and choices.
        dtype: of the computation; parameters are float32.
        remat: what the backward pass computes again, to store less: 'none' or a key of REMAT.
        dropout: rate behind the embeddings and in each residual branch, when not deterministic.
        attention_dropout: rate of what a position reads of others, likewise.
        fused: the kernel of attention, see attention.Fused; None is the plain form.
    """

    config: Any
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    fused: Any = None

    def make_layers(self, layer_class: Any, number: int, *options: Any) -> list[nn.Module]:
        """Returns layers to assign in setup; the second argument of their calls is static."""
        if self.remat != "none":
            layer_class = nn.remat(layer_class, static_argnums=(2,), policy=REMAT[self.remat])
        rates = self.dropout, self.attention_dropout
        return [layer_class(self.config, self.dtype, *rates, *options) for _ in range(number)]


class Embedder(nn.Module):
    """The token table: parameter 'embedding' [V, E].

    A tree may hold 'prompt' [T, E] beside it (prompt tuning, 2104.08691): ids V..V+T-1 read that.

    Attributes:
        vocab_size: V.
        size: E.
    """

    vocab_size: int
    size: int

    def setup(self):
        """Declares the table."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        self.embedding = self.param("embedding", init, (self.vocab_size, self.size))

    def __call__(self, tokens_P: jax.Array) -> jax.Array:
        """Looks up int32 ids: float32 [P, E], NaN for an id outside, never another id's vector."""

        def rows_of(table: jax.Array, ids_P: jax.Array) -> jax.Array:
            ids_P = jnp.where(ids_P < 0, len(table), ids_P)  # else they count from the end
            # Cast after the look-up: the whole table would be a second copy of it.
            return jnp.take(table, ids_P, axis=0, mode="fill").astype(jnp.float32)

        x_PxE = rows_of(self.embedding, tokens_P)
        if not self.has_variable("params", "prompt"):
            return x_PxE
        prompt_TxE = self.get_variable("params", "prompt")
        is_prompt_P = tokens_P >= self.vocab_size
        prompts_PxE = rows_of(prompt_TxE, tokens_P - self.vocab_size)
        return jnp.where(is_prompt_P[:, None], prompts_PxE, x_PxE)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """Products of [..., E] with every token's vector: float32 [..., V]."""
        table_VxE = self.embedding.astype(hidden.dtype)
        return product("...e,ve->...v", hidden, table_VxE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (RoFormer, 2104.09864), possibly stretched to longer texts.

    'linear' divides all frequencies by `factor` (2306.15595). 'llama3' (2407.21783) and 'yarn'
    (2309.00071) divide those that turn fewer than `slow` times in `original_length` positions, keep
    those that turn more than `fast` times, and blend between: llama3 in turns, yarn in the index.

    Attributes:
        base: wavelengths run from 2 pi to 2 pi * base.
        kind: 'default', 'linear', 'llama3' or 'yarn'.
        factor: how much longer the texts became.
        original_length: positions in the pretraining before that.
        slow, fast: turns, see above.
        amplitude: factor on cosines and sines (yarn).
        whole: yarn rounds the indices between which it blends.
    """

    base: float
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0
    slow: float = 1.0
    fast: float = 1.0
    amplitude: float = 1.0
    whole: bool = True

    def frequencies(self, size: int) -> np.ndarray:
        """Radians per position, float32 [N/2], for heads of an even size N."""
        index = np.arange(size // 2)
        plain = self.base ** (-2.0 * index / size)
        if self.kind in ("default", "linear"):
            kept = np.full(len(plain), float(self.kind == "default"))
        elif self.kind == "llama3":
            turns = self.original_length * plain / (2 * math.pi)
            kept = (turns - self.slow) / (self.fast - self.slow)
        else:
            first, last = (self._index(turns, size) for turns in (self.fast, self.slow))
            if self.whole:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, size - 1)
            kept = 1 - (index - first) / max(last - first, 1e-3)
        kept = np.clip(kept, 0, 1)
        return (plain * (kept + (1 - kept) / self.factor)).astype(np.float32)

    def _index(self, turns: float, size: int) -> float:
        """Returns the index of the frequency with so many turns in the original length."""
        wavelength = self.original_length / turns
        return size * math.log(wavelength / (2 * math.pi)) / (2 * math.log(self.base))


def yarn(base: float, *, factor: float, **options: Any) -> Rope:
    """Returns YaRN's rotary positions, with the paper's values where `options` has none."""
    defaults = {"fast": 32.0, "amplitude": 0.1 * math.log(max(factor, 1.0)) + 1}
    return Rope(base=base, kind="yarn", factor=factor, **defaults | options)


def rope_tables(positions_RxL: jax.Array, size: int, rope: Rope) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary positions, float32.

    Args:
        positions_RxL: int32 positions.
        size: head size N, even.
        rope: the frequencies.

    Returns:
        Two arrays [R, L, 1, N/2], the third axis being there to broadcast over heads.
    """
    angles = positions_RxL[:, :, None, None].astype(jnp.float32) * rope.frequencies(size)
    return jnp.cos(angles) * rope.amplitude, jnp.sin(angles) * rope.amplitude


def rotate(x_RxLxHxN: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies rotary positions; pairs are (i, i + N/2), as in Llama and Gemma. Keeps the dtype."""
    cosine, sine = tables
    first, second = jnp.split(x_RxLxHxN.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x_RxLxHxN.dtype)


def noisy(x_PxE: jax.Array, noise_RxLxE: jax.Array | None) -> jax.Array:
    """Returns the vectors with the noise of training/tuning/regularizers.py, if there is any."""
    return x_PxE if noise_RxLxE is None else x_PxE + noise_RxLxE.reshape(x_PxE.shape)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """Bounds `x` smoothly to (-cap, cap) as Gemma 2 does (2408.00118); 0 leaves it alone."""
    return jnp.tanh(x / cap) * cap if cap else x


def vocabulary_head(vocab_size: int, dtype: jnp.dtype) -> nn.Dense:
    """An untied output projection, parameter 'kernel' [D, V], whose logits are float32."""
    if is_narrow(dtype):
        return dense(vocab_size, dtype, use_bias=False)

    def float32_out(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return product("...d,dv->...v", x, kernel)

    return nn.Dense(vocab_size, use_bias=False, dtype=dtype, dot_general=float32_out)


def divergence(logits: jax.Array, others: jax.Array, *, where: Any = True) -> jax.Array:
    """Returns KL(p, q) + KL(q, p) of the softmax over the last axis: float32 [...].

    Args:
        logits, others: [..., C], finite.
        where: bool, the classes that exist.
    """
    logits, others = (jnp.where(where, x, -1e9).astype(jnp.float32) for x in (logits, others))
    logs, other_logs = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    products = (jnp.exp(logs) - jnp.exp(other_logs)) * (logs - other_logs)
    return jnp.sum(jnp.where(where, products, 0.0), axis=-1)


def binary_divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """Returns KL(p, q) + KL(q, p) of the sigmoids of logits: float32, of their shape."""
    return (jax.nn.sigmoid(logits) - jax.nn.sigmoid(others)) * (logits - others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns an einsum in float32; the products of its gradients are in the operands' dtype.

    Otherwise a float32 gradient would meet a bfloat16 operand there, and accelerators would
    multiply both in float32, several times slower.
    """
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _product_forward(subscripts: str, *operands: jax.Array) -> tuple[jax.Array, tuple]:
    return product(subscripts, *operands), operands


def _product_backward(subscripts: str, operands: tuple, gradient: jax.Array) -> tuple:
    _, pull = jax.vjp(functools.partial(jnp.einsum, subscripts), *operands)
    return pull(gradient.astype(operands[0].dtype))


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def narrow_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x @ kernel in float32, of both rounded to bfloat16; its gradients are such products.

    CPUs with bfloat16 instructions take these faster than float32's; with a bfloat16 result they
    would not. Sums are in float32.

    Args:
        x: [..., D].
        kernel: [D, F].
    """
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _narrow_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    # Kept as rounded, in half the memory; the empty arrays tell the gradients' dtypes.
    kept = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return narrow_product(*kept), (*kept, jnp.zeros(0, x.dtype), jnp.zeros(0, kernel.dtype))


def _narrow_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel, like_x, like_kernel = kept
    gradient = gradient.astype(jnp.bfloat16)
    to_x = narrow_product(gradient, kernel.T)
    x_PxD, gradient_PxF = (array.reshape(-1, array.shape[-1]) for array in (x, gradient))
    count, size = x_PxD.shape
    # XLA for CPU takes a product with a transposed first operand in float32, at 0.6 times the
    # speed. It does not see that this is one.
    x_DxP = x_PxD.T if size % 2 else x_PxD.reshape(count, -1, 2).transpose(1, 2, 0)
    to_kernel = narrow_product(x_DxP.reshape(size, count), gradient_PxF)
    return to_x.astype(like_x.dtype), to_kernel.astype(like_kernel.dtype)


narrow_product.defvjp(_narrow_forward, _narrow_backward)


def narrow_dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Returns narrow_product(x, kernel), called as nn.Dense calls it."""
    return narrow_product(x, kernel)


def is_narrow(dtype: jnp.dtype) -> bool:
    """Returns whether a model that computes in `dtype` does so in its products alone."""
    return dtype == jnp.bfloat16 and jax.default_backend() == "cpu"


def between(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype between the products of a model that computes in `dtype`."""
    return jnp.dtype(jnp.float32) if is_narrow(dtype) else dtype


def dense(width: int, dtype: jnp.dtype, **options: Any) -> nn.Dense:
    """Returns a dense layer of a model that computes in `dtype`."""
    if is_narrow(dtype):
        options["dot_general"] = narrow_dot_general
    return nn.Dense(width, dtype=between(dtype), **options)


class FeedForward(nn.Module):
    """Feed-forward block on flattened positions, with a gate (GLU variants, 2002.05202) or without.

    Attributes:
        hidden: feed-forward width F.
        activation: key of ACTIVATIONS, applied to the gate, or to 'up' without one.
        dtype: of the computation.
        bias: whether the maps have one.
        gated: whether it has the map 'gate'.
    """

    hidden: int
    activation: str
    dtype: jnp.dtype
    bias: bool = False
    gated: bool = True

    @nn.compact
    def __call__(self, x_PxD: jax.Array) -> jax.Array:
        """Maps [P, D] to [P, D]."""

        linear = functools.partial(dense, dtype=self.dtype, use_bias=self.bias)
        first_PxF = linear(self.hidden, name="gate" if self.gated else "up")(x_PxD)
        inner_PxF = ACTIVATIONS[self.activation](first_PxF)
        if self.gated:
            inner_PxF *= linear(self.hidden, name="up")(x_PxD)
        return linear(x_PxD.shape[-1], name="down")(inner_PxF)
