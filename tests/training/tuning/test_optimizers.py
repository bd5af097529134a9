"""Regex tables, layer-wise decay, freezing, and AdamW against optax's own."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from models.backbone import flatten, parameter_shapes
from models.t5 import T5, T5Config
from training.tuning.optimizers import (
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


@pytest.mark.parametrize("bias_per_layer", [False, True])
def test_layer_decay_reaches_every_parameter_of_an_encoder_decoder(bias_per_layer):
    """The decoder's layers stand on the encoder's; each bias by distance is in its first layer."""
    config = T5Config(
        vocab_size=8,
        width=8,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
        head_size=4,
        hidden=8,
        bias_per_layer=bias_per_layer,
    )
    paths = [f"backbone/{path}" for path in flatten(parameter_shapes(config, T5.PARTS))]
    paths += [path.replace("kernel", "lora_a") for path in paths if path.endswith("query/kernel")]
    paths += ["backbone/embedder/prompt", "head/kernel"]
    factors = match_table(layer_decay_table(2, 0.5, decoder_layers=3), paths, "k")
    depths = {
        "backbone/embedder/embedding": 6,
        "backbone/layer_0": 5,
        "backbone/relative_bias": 5,
        "backbone/layer_1": 4,
        "backbone/final_norm": 3,  # read by the decoder's first layer
        "backbone/decoder/layer_0": 3,
        "backbone/decoder/relative_bias": 3,
        "backbone/decoder/layer_1": 2,
        "backbone/decoder/layer_2": 1,
        "backbone/decoder/final_norm": 0,
        "backbone/lm_head": 0,
        "backbone/embedder/prompt": 0,
        "head": 0,
    }
    used = set()
    for path, factor in factors.items():
        (place,) = [place for place in depths if f"{path}/".startswith(f"{place}/")]
        assert factor == 0.5 ** depths[place], path
        used.add(place)
    biases = {place for place in depths if place.endswith("relative_bias")}
    assert used == depths.keys() - (biases if bias_per_layer else set())
    alone = [path for path in paths if "decoder" not in path and "lm_head" not in path]
    factors = match_table(layer_decay_table(2, 0.5), alone, "k")  # of a classifier
    assert factors["backbone/final_norm/scale"] == 1
    assert factors["backbone/embedder/embedding"] == 0.125


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
        changes, state = ours.update(gradients, state, params, rates=dict.fromkeys(PATHS, 0.01))
        params = optax.apply_updates(params, changes)
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
    assert "embeddings learn at x0.031" in describe(config, params, 2, 2)[-1]
