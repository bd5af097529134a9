"""Products in bfloat16 on CPUs: their values and gradients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from models import layers
from models.backbone import make_backbone
from models.pretrained import load_pretrained, open_checkpoint

FAMILIES = Path(__file__).parents[1] / "fixtures/families"


@settings(max_examples=25, deadline=None)
@given(
    leading=st.lists(st.integers(1, 4), max_size=2),
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 2**20),
)
def test_narrow_product_and_gradients_equal_float64_of_rounded_operands(leading, sizes, seed):
    count, size, width = sizes
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(*leading, count, size)), rng.normal(size=(size, width))
    slope = rng.normal(size=(*leading, count, width))
    x, kernel, slope = (jnp.asarray(array, jnp.float32) for array in (x, kernel, slope))

    @jax.jit
    def products(x, kernel, slope):
        y, pull = jax.vjp(layers.narrow_product, x, kernel)
        return y, *pull(slope)

    x64, kernel64, slope64 = (
        np.asarray(array.astype(jnp.bfloat16), np.float64) for array in (x, kernel, slope)
    )
    to_kernel = x64.reshape(-1, size).T @ slope64.reshape(-1, width)
    expected = x64 @ kernel64, slope64 @ kernel64.T, to_kernel
    for result, wanted in zip(products(x, kernel, slope), expected, strict=True):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_have_the_dtypes_of_their_operands(dtype):
    x, kernel = jnp.ones((4, 2)), jnp.ones((2, 6), dtype)
    gradients = jax.grad(lambda *pair: layers.narrow_product(*pair).sum(), (0, 1))(x, kernel)
    assert [gradient.dtype for gradient in gradients] == [jnp.float32, dtype]


@pytest.mark.parametrize("family", ["bert", "t5_v1_0", "t5_v1_1", "gemma2", "llama3", "qwen2"])
def test_gradients_of_every_family_are_near_those_in_float32(family, pack):
    """Of all parameters, through attention, feed-forward and logits; each family has its own."""
    folder = FAMILIES / family
    pretrained = load_pretrained(folder, parts=open_checkpoint(folder).parts)
    tokens, *places = pack([[5, 4], [7]], 12)
    batch = (tokens % pretrained.config.vocab_size, *places)

    def loss(params, dtype):
        model = make_backbone(pretrained.config, dtype=dtype, remat="dots")
        hidden = model.apply({"params": params}, *batch)
        logits = model.apply({"params": params}, hidden, method="logits")
        return jnp.mean(jax.nn.log_softmax(logits)[..., 0]) + jnp.mean(jnp.square(hidden))

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (value, exact), (narrow_value, narrow) = (
        gradient(pretrained.params, dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_allclose(narrow_value, value, rtol=0.02)
    assert narrow_value != value
    exact, narrow = (
        np.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (exact, narrow)
    )
    assert np.linalg.norm(narrow - exact) < 0.1 * np.linalg.norm(exact)


def test_divergences_are_both_kullback_leibler_divergences_of_what_exists():
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 4, 5)).astype(np.float32) * 3
    where = np.array([True, True, False, True, False])
    p, q = (scipy.special.softmax(x[:, where].astype(np.float64), axis=1) for x in (logits, others))
    expected = scipy.stats.entropy(p, q, axis=1) + scipy.stats.entropy(q, p, axis=1)
    found = layers.divergence(logits, others, where=where)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: layers.divergence(x, x, where=where).sum())(logits)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e-6
    pair = np.stack([np.zeros_like(logits), logits], -1), np.stack([0 * others, others], -1)
    np.testing.assert_allclose(
        layers.binary_divergence(logits, others), layers.divergence(*pair), rtol=1e-4, atol=1e-6
    )
