"""Regex tables, layer-wise decay, freezing, and each optimiser against optax's own."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from models.backbone import flatten, parameter_shapes
from models.t5 import T5, T5Config
from training.cost import memory
from training.tuning.optimizers import (
    check,
    describe,
    gradient_point,
    is_matrix,
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


RATE, DECAY = 0.01, 0.1
ALIKE = {
    "adafactor": lambda: optax.adafactor(RATE),
    "lion": lambda: optax.lion(RATE, 0.9, 0.99, weight_decay=DECAY),
    "sgd": lambda: optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(DECAY), optax.scale(-RATE)
    ),
    "muon": lambda: optax.contrib.muon(
        RATE, weight_decay=DECAY, consistent_rms=0.2, adam_weight_decay=DECAY
    ),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(RATE, weight_decay=DECAY),
}


@pytest.mark.parametrize("name", ALIKE)
def test_each_optimizer_equals_optax_own(name):
    """Where the tables are uniform; of muon the matrices, since optax's Adam is another there."""
    decay = 0.0 if name == "adafactor" else DECAY  # there optax does not scale it with the rate
    config = optimizer_config(
        name=name, decay_table=((".*", 1.0),), weight_decay=decay, clip_norm=0.0
    )
    rng = np.random.default_rng(0)
    shapes = {path: (130, 140) if is_matrix(path) else (3, 2) for path in PATHS}
    draw = lambda: {p: jnp.array(rng.normal(size=s), jnp.float32) for p, s in shapes.items()}  # noqa: E731
    params = other = draw()
    ours, reference = make_optimizer(config, dict.fromkeys(PATHS, 1.0)), ALIKE[name]()
    state, reference_state = ours.init(params), reference.init(other)
    for _ in range(4):
        gradients = draw()
        point = gradient_point(params, state)
        if name == "schedule_free":  # optax's parameters are where the gradient is computed
            for path in PATHS:
                np.testing.assert_allclose(point[path], other[path], rtol=1e-5, atol=1e-6)
        changes, state = ours.update(gradients, state, params, rates=dict.fromkeys(PATHS, RATE))
        params = optax.apply_updates(params, changes)
        updates, reference_state = reference.update(gradients, reference_state, other)
        other = optax.apply_updates(other, updates)
    if name == "schedule_free":
        other = optax.contrib.schedule_free_eval_params(reference_state, other)
    for path in filter(is_matrix, PATHS) if name == "muon" else PATHS:
        np.testing.assert_allclose(params[path], other[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_schedule_free_parameters_are_the_average_by_the_squared_rates_of_each():
    """One that learns from the third step on has forgotten its start by then."""
    config, rng = optimizer_config(name="schedule_free"), np.random.default_rng(0)
    params = {path: jnp.array(rng.normal(size=(3, 2)), jnp.float32) for path in PATHS[:2]}
    optimizer = make_optimizer(config, dict.fromkeys(params, 1.0))
    state, start = optimizer.init(params), params
    sums, totals = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    for rates in ((0.1, 0.0), (0.2, 0.0), (0.3, 0.1), (0.3, 0.2)):
        rates = dict(zip(params, rates, strict=True))
        gradients = {path: jnp.array(rng.normal(size=(3, 2)), jnp.float32) for path in params}
        changes, state = optimizer.update(gradients, state, params, rates=rates)
        params = optax.apply_updates(params, changes)
        for path, rate in rates.items():
            sums[path] += rate**2 * state[-1].z[path]
            totals[path] += rate**2
            expected = sums[path] / totals[path] if totals[path] else start[path]
            np.testing.assert_allclose(params[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "bytes_per_value"),
    [
        ("adamw", 8),
        ("adafactor", 2 * 4 / 256),
        ("lion", 4),
        ("muon", 4),
        ("sgd", 4),
        ("schedule_free", 8),
    ],
)
def test_the_state_has_its_documented_size_and_none_of_frozen_parameters(name, bytes_per_value):
    params = {path: jnp.zeros((256, 256)) for path in PATHS if is_matrix(path)}
    state = make_optimizer(optimizer_config(name=name), dict.fromkeys(params, 1.0)).init(params)
    values = sum(array.size for array in params.values())
    assert sum(memory(state).values()) / values == pytest.approx(bytes_per_value, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer.name": "schedule_free"}, r"set config\.schedule\.name='constant', found 'cos"),
        (
            {"optimizer.name": "schedule_free", "schedule.name": "constant", "train.ema": 0.9},
            r"set config\.train\.ema=0\.0, found 0\.9",
        ),
        (
            {"schedule.table": ((".*", "", "1 step"),), "adapt.unfreeze_every": "1 step"},
            "use one of them",
        ),
    ],
)
def test_methods_that_exclude_each_other_are_refused(values, message):
    config = common.get_config()
    check(config)
    config.update_from_flattened_dict(values)
    with pytest.raises(ValueError, match=message):
        check(config)


def test_description_counts_each_parameter_once():
    params = {path: np.zeros((10, 100_000)) for path in PATHS}
    config = optimizer_config(lr_table=(("backbone/.*", None), (".*", 1.0)), layer_decay=0.5)
    lines = describe(config, params, 2)
    assert "'backbone/.*' (frozen) took 4 parameters, 4.0M values" in lines[0]
    assert "'.*' (x1) took 2 parameters, 2.0M values" in lines[1]
    assert "embeddings learn at x0.12" in lines[-1]
    assert "embeddings learn at x0.031" in describe(config, params, 2, 2)[-1]
