"""What adapters add, what they train, and that it is what the papers say."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs.common import get_config
from models import adapters
from models.backbone import parameter_shapes
from models.bert import BertConfig
from models.heads import ClassifierHead, Model
from models.t5 import T5Config

ADDED_KINDS = (*adapters.LORA_KINDS, "ia3")


# These programs run for less time than it takes to optimise them.
jitted = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def model_of(num_layers):
    config = BertConfig(
        model_type="bert",
        vocab_size=20,
        width=16,
        num_layers=num_layers,
        num_distinct_layers=num_layers,
        num_heads=2,
        hidden=24,
        embedding_size=16,
        max_length=16,
    )
    return Model(config, ClassifierHead(2))


def adapt_of(kind, **more):
    adapt = get_config().adapt
    adapt.update({"kind": kind, "rank": 4, "layers": 1, "prompt_length": 3, **more})
    return adapt


@functools.cache
def inputs():
    """Six examples of eight tokens; the label is whether token 3 is among them."""
    rng = np.random.default_rng(0)
    tokens_BxL = rng.integers(4, 20, (6, 8)).astype(np.int32)
    tokens_BxL[::2, 4] = 3
    positions_BxL = np.tile(np.arange(8, dtype=np.int32), (6, 1))
    segments_BxL = np.repeat(np.arange(1, 7, dtype=np.int32)[:, None], 8, axis=1)
    return tokens_BxL, positions_BxL, segments_BxL


def batch_of(tokens_RxL, positions_RxL, segments_RxL):
    return {
        "tokens_RxL": tokens_RxL,
        "positions_RxL": positions_RxL,
        "segments_RxL": segments_RxL,
        "types_RxL": jnp.zeros_like(tokens_RxL),
        "weights_B": jnp.ones(6),
    }


def apply(tree, *batch):
    found = model_of(1).apply({"params": tree}, batch_of(*batch), deterministic=True)
    return found["logits_BxC"]


@functools.cache
def weights(num_layers=1):
    """Flat parameters, none of them at its initial zero or one."""
    init = functools.partial(model_of(num_layers).init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), batch_of(*inputs()))["params"]
    rng = np.random.default_rng(1)
    return {
        path: (path.endswith("scale") + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
        for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }


def leaves_of(adapt, *, noise=0.0, num_layers=1):
    """The adapter's leaves as drawn, plus noise, since what is drawn changes nothing."""
    rng = np.random.default_rng(2)
    params = weights(num_layers)
    added = adapters.init(adapt, params, jax.random.key(1), params=params)
    return {
        path: value + np.float32(noise) * rng.standard_normal(value.shape).astype(np.float32)
        for path, value in added.items()
    }


def nested(flat):
    return traverse_util.unflatten_dict(dict(flat), sep="/")


@pytest.mark.parametrize("kind", ["rslora", "dora", "ia3"])
def test_beside_the_activations_equals_folded_in_values_and_gradients(kind):
    adapt = adapt_of(kind)
    leaves = leaves_of(adapt, noise=0.3)
    frozen = weights()

    def loss_of(run):
        return lambda trained: jnp.sum(jnp.cos(run({**frozen, **trained}, *inputs())))

    def folded(flat, *batch):
        return apply(nested(adapters.fold(adapt, flat)), *batch)

    with jax.default_matmul_precision("highest"):
        value, gradients = jitted(jax.value_and_grad(loss_of(adapters.adapted(adapt, apply))))(
            leaves
        )
        expected, expected_gradients = jitted(jax.value_and_grad(loss_of(folded)))(leaves)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for path, gradient in expected_gradients.items():
        np.testing.assert_allclose(gradients[path], gradient, rtol=1e-3, atol=2e-5, err_msg=path)


@pytest.mark.parametrize("kind", ADDED_KINDS)
def test_as_drawn_an_adapter_changes_nothing(kind):
    folded = adapters.fold(adapt_of(kind), {**weights(), **leaves_of(adapt_of(kind))})
    assert folded.keys() == weights().keys()
    for path, value in weights().items():
        np.testing.assert_allclose(folded[path], value, rtol=1e-5, atol=1e-7)


def test_scales_are_those_of_the_papers():
    path = "backbone/layer_0/mlp/up"
    kernel, a, b = (
        np.random.default_rng(i).standard_normal(shape).astype(np.float32)
        for i, shape in enumerate([(6, 5), (6, 4), (4, 5)])
    )
    flat = {f"{path}/kernel": kernel, f"{path}/lora_a": a, f"{path}/lora_b": b}
    for kind, scale in (("lora", 12 / 4), ("rslora", 12 / 2)):
        folded = adapters.fold(adapt_of(kind, alpha=12.0), flat)[f"{path}/kernel"]
        np.testing.assert_allclose(folded, kernel + scale * a @ b, rtol=1e-4, atol=1e-5)
    flat[f"{path}/magnitude"] = np.arange(1, 6, dtype=np.float32)
    folded = adapters.fold(adapt_of("dora"), flat)[f"{path}/kernel"]
    np.testing.assert_allclose(np.linalg.norm(folded, axis=0), np.arange(1, 6), rtol=1e-5)


@pytest.mark.parametrize("kind", adapters.KINDS)
def test_every_kind_trains_the_loss_down_with_state_for_trained_leaves_only(kind):
    adapt = adapt_of(kind)
    chosen = adapters.trained_paths(adapt, weights(), num_layers=1)
    params = {path: weights()[path] for path in chosen} | leaves_of(adapt)
    frozen = {p: adapters.freeze(adapt, p, v) for p, v in weights().items() if p not in chosen}
    tokens_BxL, positions_BxL, segments_BxL = inputs()
    if kind == "prompt":
        prompt_BxT = np.tile(np.arange(20, 23, dtype=np.int32), (6, 1))
        tokens_BxL = np.concatenate([prompt_BxT, tokens_BxL], axis=1)
        positions_BxL = np.tile(np.arange(11, dtype=np.int32), (6, 1))
        segments_BxL = np.repeat(segments_BxL[:, :1], 11, axis=1)
    run = adapters.adapted(adapt, apply)

    @jitted
    @jax.value_and_grad
    def loss(params):
        logits_BxC = run({**frozen, **params}, tokens_BxL, positions_BxL, segments_BxL)
        labels_B = jnp.arange(6) % 2
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxC, labels_B).mean()

    state = jax.eval_shape(optax.scale_by_adam().init, params)
    values = sum(value.size for value in params.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 1 + 2 * values
    losses = []
    for _ in range(25):
        value, gradients = loss(params)
        losses.append(float(value))
        # The sign of the gradient is what Adam's first step takes.
        params = {path: params[path] - 0.01 * np.sign(gradients[path]) for path in params}
    assert losses[-1] < 0.9 * losses[0]
    idle = {path for path, gradient in gradients.items() if not np.any(gradient)}
    assert all(path.endswith("key/bias") or "pooler" in path for path in idle), idle


def test_kinds_choose_what_their_names_say():
    def chosen(kind, **more):
        paths = adapters.trained_paths(adapt_of(kind, **more), weights(2), num_layers=2)
        assert {"head/kernel", "head/bias"} <= paths
        return paths - {"head/kernel", "head/bias"}

    own = weights(2).keys() - {"head/kernel", "head/bias"}
    assert chosen("full") == own
    assert chosen("bitfit") == {path for path in own if path.endswith("bias")}
    assert chosen("norms") == {path for path in own if "norm/" in path}
    assert chosen("last_layers") == {path for path in own if "/layer_1/" in path}
    assert chosen("last_layers", layers=2) == {path for path in own if "/layer_" in path}
    for kind in ("head", "prompt", *ADDED_KINDS):
        assert not chosen(kind)


def test_targets_narrow_what_is_adapted():
    adapt = adapt_of("lora", targets=".*layer_1/attention/query/kernel")
    parent = "backbone/layer_1/attention/query"
    assert leaves_of(adapt, num_layers=2).keys() == {f"{parent}/lora_a", f"{parent}/lora_b"}
    ends = {path.split("/")[-2] for path in leaves_of(adapt_of("ia3"), num_layers=2)}
    assert ends == {"key", "value", "down"}


def test_leaves_depend_on_seed_and_path_alone():
    few = adapt_of("lora", targets=".*/key/kernel")
    every = leaves_of(adapt_of("lora"), num_layers=2)
    assert all(
        np.array_equal(every[path], value) for path, value in leaves_of(few, num_layers=2).items()
    )
    first, second = (every[f"backbone/layer_{i}/attention/key/lora_a"] for i in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        (
            "lora",
            {"targets": ".*/querry/kernel"},
            r"matches none of the 12 kernels .*attention/key",
        ),
        ("last_layers", {"layers": 3}, "layers is 3, but the model has 2"),
    ],
)
def test_what_cannot_be_followed_is_named(kind, more, message):
    with pytest.raises(ValueError, match=message):
        adapters.trained_paths(adapt_of(kind, **more), weights(2), num_layers=2)


def test_a_model_without_biases_has_nothing_for_bitfit():
    without = {p: v for p, v in weights(2).items() if not p.endswith("bias")}
    with pytest.raises(ValueError, match="finds nothing to train"):
        adapters.trained_paths(adapt_of("bitfit"), without, num_layers=2)


def test_int8_errs_by_half_a_step_of_its_column():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((64, 32)).astype(np.float32) * np.logspace(-6, 3, 32)
    kernel[:, 5] = 0
    leaf = adapters.quantize(kernel, "int8")
    assert (leaf.values.dtype, leaf.scale.shape) == (np.int8, (1, 32))
    error = np.abs(np.asarray(adapters.opened(leaf)) - kernel)
    assert (error <= np.abs(kernel).max(axis=0) / 127 * 0.501).all()
    assert not np.any(error[:, 5])


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.01), ("int8", 0.02)])
def test_reduced_weights_give_the_outputs_of_what_they_open_to(dtype, limit):
    adapt = adapt_of("dora", frozen_dtype=dtype)
    leaves = leaves_of(adapt, noise=0.1)
    kept = {path: adapters.freeze(adapt, path, value) for path, value in weights().items()}
    size, whole = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (kept, weights()))
    assert size < (0.65 if dtype == "bfloat16" else 0.5) * whole
    run = adapters.adapted(adapt, apply)
    found_BxC = jitted(run)({**kept, **leaves}, *inputs())
    merged = adapters.merge(adapt, {**kept, **leaves})
    np.testing.assert_allclose(jitted(apply)(nested(merged), *inputs()), found_BxC, atol=1e-5)
    exact_BxC = jitted(run)({**weights(), **leaves}, *inputs())
    assert 0 < np.abs(found_BxC - exact_BxC).max() < limit * np.abs(exact_BxC).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_opened_weights_are_never_all_in_memory_at_once(dtype):
    count, width = 8, 256
    rng = np.random.default_rng(0)
    frozen = {
        f"layer_{i}/kernel": adapters.quantize(rng.standard_normal((width, width)) / 16, dtype)
        for i in range(count)
    }
    trained = {
        f"layer_{i}/{name}": np.full(shape, 0.01, np.float32)
        for i in range(count)
        for name, shape in (("lora_a", (width, 2)), ("lora_b", (2, width)))
    }

    class Chain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(count):
                x = jnp.tanh(nn.Dense(width, use_bias=False, name=f"layer_{i}")(x))
            return x

    run = adapters.adapted(adapt_of("lora"), lambda tree, x: Chain().apply({"params": tree}, x))

    def loss(trained, frozen, x):
        return run({**frozen, **trained}, x).sum()

    step = jitted(jax.grad(loss)).lower(trained, frozen, np.ones((4, width), np.float32)).compile()
    assert step.memory_analysis().temp_size_in_bytes < count * width**2 * 4 / 2


@pytest.mark.parametrize("kind", ADDED_KINDS)
def test_the_pretrained_end_is_pretrained_and_the_line_to_it_straight(kind):
    adapt = adapt_of(kind)
    trained = leaves_of(adapt, noise=0.3)
    own = {"head/bias": weights()["head/bias"]}
    end = adapters.pretrained_end({**trained, **own}, params=weights())
    assert end.keys() == trained.keys()
    weights_at = {
        alpha: adapters.fold(
            adapt,
            {**weights(), **{p: (1 - alpha) * end[p] + alpha * trained[p] for p in trained}},
        )
        for alpha in (0, 0.5, 1)
    }
    for path, value in weights().items():
        np.testing.assert_allclose(weights_at[0][path], value, rtol=1e-5, atol=1e-6)
        middle = (weights_at[0][path] + weights_at[1][path]) / 2
        if kind != "dora":
            np.testing.assert_allclose(weights_at[0.5][path], middle, rtol=1e-4, atol=1e-5)


def test_layers_open_from_the_top_down():
    adapt = adapt_of("full", unfreeze_every="100 examples")
    gate = jitted(adapters.gates(adapt, weights(2), num_layers=2, period_examples=100))
    for examples, opened in ((0, 0), (99, 0), (100, 1), (200, 2), (299, 2), (300, 3)):
        open_paths = {path for path, value in gate(jnp.int32(examples)).items() if value}
        groups = ["backbone/layer_1/", "backbone/layer_0/", "backbone/embedder"]
        closed = tuple(groups[opened:])
        assert open_paths == {p for p in weights(2) if not p.startswith(closed or "nothing")}


def test_a_decoder_stands_above_its_encoder():
    config = T5Config(
        model_type="t5",
        vocab_size=20,
        width=8,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
        head_size=4,
        hidden=8,
    )
    shapes = traverse_util.flatten_dict(
        {"backbone": parameter_shapes(config, ("decoder",))}, sep="/"
    )
    chosen = adapters.trained_paths(adapt_of("last_layers", layers=4), shapes, num_layers=2)
    layers = {path.split("/attention")[0] for path in chosen if "/attention/query" in path}
    decoder = {f"backbone/decoder/layer_{i}" for i in range(3)}
    assert layers == {*decoder, "backbone/layer_1"}
