"""The step as a function: microbatches, frozen parameters, masked labels, rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from configs.checks import OPTIMIZERS
from models.backbone import flatten
from models.decoder import DecoderConfig
from models.heads import ClassifierHead, Model
from models.layers import Rope
from tasks.classification import Classification
from training.state import TrainState, merge, random_stream
from training.train_step import make_train_step
from training.tuning.optimizers import make_optimizer
from training.tuning.regularizers import Passes, Regularizers

CONFIG = DecoderConfig(
    vocab_size=64,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_size=8,
    hidden=32,
    windows=(0,),
    ropes=(Rope(base=1e4),),
    attention_scale=0.35,
    embedding_scale=4.0,
)
MODEL = Model(CONFIG, ClassifierHead(2))
TASK = Classification(common.get_config(), ("a", "b"), tokenizer=None, backbone=CONFIG)


# Plain gradients show a wrong normalisation that Adam would hide.
PLAIN = {"b1": 0.0, "b2": 0.0, "eps": 1.0, "clip_norm": 0.0, "weight_decay": 0.0}


def padded_batch(examples: int, microbatches: int = 1) -> dict[str, np.ndarray]:
    """Examples of uneven length, one a row, the same whatever the number of microbatches."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, examples)
    real = np.arange(12) < lengths[:, None]
    per_part = examples // microbatches
    batch = {
        "tokens_RxL": np.where(real, rng.integers(1, 64, (examples, 12)), 0),
        "positions_RxL": np.where(real, np.arange(12), 0),
        "segments_RxL": np.where(real, np.arange(examples)[:, None] % per_part + 1, 0),
        "types_RxL": np.zeros((examples, 12)),
        "labels_B": rng.integers(0, 2, examples),
        "weights_B": np.where(np.arange(examples) % 5 == 4, 0, 1).astype("f4"),  # uneven weights
    }
    return {
        name: np.asarray(array, "f4" if name == "weights_B" else "i4").reshape(
            microbatches, per_part, *array.shape[1:]
        )
        for name, array in batch.items()
    }


def apply(params, batch, rng=None):
    return [MODEL.apply({"params": merge(params)}, batch, deterministic=True)]


@functools.cache
def initial_params():
    draw = functools.partial(MODEL.init, deterministic=True)
    blank = TASK.blank(num_features=0)
    return flatten(jax.jit(draw)(jax.random.key(1), blank)["params"])


def one_step(
    batch,
    *,
    frozen=(),
    schedule=lambda n: 1.0,
    batch_size=8,
    ema=None,
    taken=0,
    loss=TASK.loss,
    options=PLAIN,
):
    params, regularize = dict(initial_params()), common.get_config().regularize
    fixed = {path: params.pop(path) for path in list(params) if path.startswith(tuple(frozen))}
    config = common.get_config().optimizer
    config.update(options)
    optimizer = make_optimizer(config, dict.fromkeys(params, 1.0))
    step = make_train_step(
        Regularizers(regularize, Passes(apply, loss), seed=0),
        optimizer,
        learning_rate=1.0,
        schedule=lambda n: dict.fromkeys(params, schedule(n)),
        batch_size=batch_size,
        ema=ema or 0.0,
    )
    average = None if ema is None else jax.tree.map(lambda value: value + 1, params)
    state = TrainState(jnp.int32(taken), jnp.int32(0), params, optimizer.init(params), average)
    return params, *jax.jit(step)(state, fixed, batch)


@pytest.mark.parametrize("microbatches", [4])
def test_microbatches_equal_the_large_batch(microbatches):
    _, whole, whole_metrics = one_step(padded_batch(8))
    _, parts, metrics = one_step(padded_batch(8, microbatches))
    assert metrics["loss"] == pytest.approx(float(whole_metrics["loss"]), rel=1e-5)
    for path, value in whole.params.items():
        np.testing.assert_allclose(parts.params[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_masked_labels_teach_nothing():
    batch = padded_batch(8)
    _, state, metrics = one_step(batch)
    masked = batch["weights_B"] == 0
    assert masked.any()
    batch["labels_B"] = np.where(masked, 1 - batch["labels_B"], batch["labels_B"])
    _, other, other_metrics = one_step(batch)
    assert float(metrics["loss"]) == float(other_metrics["loss"])
    for path, value in state.params.items():
        np.testing.assert_array_equal(other.params[path], value)


def nothing_to_learn(outputs, batch):
    """A loss that is not even a number, as a mean over no token is."""
    total, weight, sums = TASK.loss(outputs, batch)
    return jnp.where(weight > 0, total, jnp.nan), weight, sums


@pytest.mark.parametrize(("microbatches", "loss"), [(1, TASK.loss), (4, nothing_to_learn)])
def test_a_batch_of_masked_labels_moves_nothing_but_the_counters(microbatches, loss):
    batch = padded_batch(8, microbatches)
    batch["weights_B"] *= 0
    options = {"weight_decay": 0.5, "clip_norm": 1.0}
    params, state, metrics = one_step(batch, ema=0.9, taken=5, loss=loss, options=options)
    assert float(metrics["weight"]) == 0
    assert (int(state.step), int(state.examples)) == (6, 8)
    assert int(state.optimizer[1].count) == 0
    for path, value in params.items():
        np.testing.assert_array_equal(state.params[path], value)
        np.testing.assert_array_equal(state.average[path], value + 1)
        np.testing.assert_array_equal(state.optimizer[1].nu[path], 0 * value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_masked_batch_leaves_the_memory_of_every_optimizer(name):
    """After steps that taught, so that moments, averages and counters are not zero."""
    batch = padded_batch(8)
    config = common.get_config().optimizer
    config.update(name=name, weight_decay=0.5)
    params = initial_params()
    optimizer = make_optimizer(config, dict.fromkeys(params, 1.0))
    step = jax.jit(
        make_train_step(
            Regularizers(common.get_config().regularize, Passes(apply, TASK.loss), seed=0),
            optimizer,
            learning_rate=0.01,
            schedule=lambda n: dict.fromkeys(params, 1.0),
            batch_size=8,
            ema=0.9,
        )
    )
    state = TrainState(
        jnp.int32(0),
        jnp.int32(0),
        params,
        optimizer.init(params),
        params,
        rate=jnp.float32(0.5),
    )
    for _ in range(2):
        state, _ = step(state, {}, batch)
    for path, value in params.items():
        assert (state.params[path] != value).any()
    masked, metrics = step(state, {}, batch | {"weights_B": 0 * batch["weights_B"]})
    assert float(metrics["learning_rate"]) == pytest.approx(0.005)
    assert (int(masked.step), int(masked.examples)) == (3, 24)
    jax.tree.map(np.testing.assert_array_equal, masked[2:], state[2:])


def test_a_masked_microbatch_counts_for_nothing_beside_others():
    batch = padded_batch(8, 4)
    batch["weights_B"][1] = 0
    _, parts, metrics = one_step(batch)
    _, whole, _ = one_step(padded_batch(8) | {"weights_B": batch["weights_B"].reshape(1, 8)})
    assert np.isfinite(metrics["loss"]) and metrics["weight"] == batch["weights_B"].sum()
    for path, value in whole.params.items():
        np.testing.assert_allclose(parts.params[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_frozen_parameters_have_no_optimizer_state_and_change_no_gradient():
    _, state, _ = one_step(padded_batch(8), frozen=["backbone/embedder"])
    _, full, _ = one_step(padded_batch(8))
    moments = flatten(state.optimizer[1].mu)
    assert "backbone/embedder/embedding" not in moments
    assert moments.keys() == state.params.keys()
    for path, value in state.params.items():
        np.testing.assert_allclose(full.params[path], value, rtol=1e-5, atol=1e-7)


def test_rate_follows_the_middle_of_the_examples():
    rates = {}
    for batch_size in (8, 80):
        schedule = lambda examples: examples / 1000  # noqa: E731
        *_, metrics = one_step(padded_batch(8), schedule=schedule, batch_size=batch_size)
        rates[batch_size] = float(metrics["learning_rate"])
    assert rates == pytest.approx({8: 0.004, 80: 0.04})


@pytest.mark.parametrize(("ema", "step", "decay"), [(0.9, 1000, 0.9), (0.9, 5, 6 / 15)])
def test_the_average_follows_the_parameters_and_forgets_a_short_runs_start(ema, step, decay):
    params, state, _ = one_step(padded_batch(8), ema=ema, taken=step)
    for path, start in params.items():
        expected = decay * (start + 1) + (1 - decay) * state.params[path]
        np.testing.assert_allclose(state.average[path], expected, rtol=1e-5, atol=1e-6)


def test_counters_move():
    _, state, _ = one_step(padded_batch(8))
    assert (int(state.step), int(state.examples)) == (1, 8)


def test_training_learns_labels_by_heart():
    batch = padded_batch(8)
    config = common.get_config().optimizer
    params = dict(initial_params())
    optimizer = make_optimizer(config, dict.fromkeys(params, 1.0))
    step = jax.jit(
        make_train_step(
            Regularizers(common.get_config().regularize, Passes(apply, TASK.loss), seed=0),
            optimizer,
            learning_rate=1e-2,
            schedule=lambda n: dict.fromkeys(params, 1.0),
            batch_size=8,
        )
    )
    state = TrainState(jnp.int32(0), jnp.int32(0), params, optimizer.init(params))
    for _ in range(30):
        state, metrics = step(state, {}, batch)
    assert float(metrics["loss"]) < 0.1
    assert float(metrics["correct"]) == 1


def test_random_streams_differ_by_name_and_step():
    keys = [random_stream(0, "dropout", 0), random_stream(0, "dropout", 1)]
    keys += [random_stream(0, "parameters", 0), random_stream(1, "dropout", 0)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4
    again = jax.random.key_data(random_stream(0, "dropout", 0))
    np.testing.assert_array_equal(jax.random.key_data(keys[0]), again)


def test_merge_prefers_the_later_part():
    assert merge({"a/b": 1, "a/c": 2}, {"a/c": 3}) == {"a": {"b": 1, "c": 3}}
