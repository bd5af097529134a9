"""Products in bfloat16 on CPUs: their values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import layers


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
