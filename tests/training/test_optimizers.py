"""Regex tables, layer-wise decay, freezing, and AdamW against optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from training.optimizers import (
    describe,
    layer_decay_table,
    learning_rate_factors,
    make_optimizer,
    match_table,
)

PATHS = [
    "backbone/embedder/embedding",
    "backbone/layer_0/mlp/up/kernel",
    "backbone/layer_1/mlp/up/kernel",
    "backbone/final_norm/scale",
    "head/kernel",
    "head/bias",
]


def optimizer_config(**options):
    config = common.get_config().optimizer
    config.update(options)
    return config


def test_first_full_match_wins():
    table = ((".*layer_1.*", 3.0), ("backbone/.*", 2.0), ("head", 9.0), (".*", 1.0))
    assert list(match_table(table, PATHS, "k").values()) == [2, 2, 3, 2, 1, 1]


def test_unmatched_parameters_and_bad_regexes_are_refused():
    with pytest.raises(ValueError, match=r"config\.k: no row matches head/kernel, head/bias"):
        match_table((("backbone/.*", 1.0),), PATHS, "k")
    with pytest.raises(ValueError, match=r"config\.k: .* is not a regex"):
        match_table((("(", 1.0),), PATHS, "k")


def test_layer_decay_falls_from_the_head_down():
    values = match_table(layer_decay_table(2, 0.5), PATHS, "k")
    assert list(values.values()) == [0.125, 0.25, 0.5, 1, 1, 1]


def test_layer_decay_tells_layer_1_from_layer_10():
    values = match_table(
        layer_decay_table(12, 0.5), ["backbone/layer_1/x", "backbone/layer_10/x"], "k"
    )
    assert list(values.values()) == [0.5**11, 0.5**2]


def test_factors_combine_table_and_decay_and_freeze():
    config = optimizer_config(
        lr_table=((".*embedder.*", None), ("head/.*", 10.0), (".*", 1.0)), layer_decay=0.5
    )
    factors = learning_rate_factors(config, PATHS, 2)
    assert list(factors.values()) == [None, 0.25, 0.5, 1, 10, 10]


def test_equals_optax_adamw_where_the_table_is_uniform():
    config = optimizer_config(decay_table=((".*bias", 0.0), (".*", 1.0)), weight_decay=0.1)
    rng = np.random.default_rng(0)
    params = {path: jnp.array(rng.normal(size=(3, 2)), jnp.float32) for path in PATHS}
    ours = make_optimizer(config, dict.fromkeys(PATHS, 1.0))
    mask = {path: not path.endswith("bias") for path in PATHS}
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(0.01, weight_decay=0.1, mask=mask),
    )
    state, reference_state, other = ours.init(params), reference.init(params), params
    for _ in range(3):
        gradients = {path: jnp.array(rng.normal(size=(3, 2)), jnp.float32) for path in PATHS}
        updates, state = ours.update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p + 0.01 * u, params, updates)
        updates, reference_state = reference.update(gradients, reference_state, other)
        other = optax.apply_updates(other, updates)
    for path in PATHS:
        np.testing.assert_allclose(params[path], other[path], rtol=2e-6, atol=1e-7)


def test_description_counts_each_parameter_once():
    params = {path: np.zeros((10, 100_000)) for path in PATHS}
    config = optimizer_config(lr_table=(("backbone/.*", None), (".*", 1.0)), layer_decay=0.5)
    lines = describe(config, params, 2)
    assert "'backbone/.*' (frozen) took 4 parameters, 4.0M values" in lines[0]
    assert "'.*' (x1) took 2 parameters, 2.0M values" in lines[1]
    assert "embeddings learn at x0.12" in lines[-1]
