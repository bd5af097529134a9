"""The stated cost is that of the model: parameters, bytes, and FLOPs by a closed formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from models import heads
from models.backbone import flatten
from models.bert import BertConfig
from models.pretrained import open_checkpoint
from training import cost
from training.state import TrainState, merge
from training.train_step import make_train_step
from training.tuning.regularizers import Passes, Regularizers

ROWS, LENGTH, EXAMPLES = 4, 64, 8
INTS = ("tokens_RxL", "positions_RxL", "segments_RxL", "types_RxL")


def encoder():
    return BertConfig(
        model_type="bert",
        vocab_size=300,
        width=128,
        num_layers=2,
        num_distinct_layers=2,
        num_heads=4,
        hidden=512,
        max_length=64,
        embedding_size=128,
    )


def decoder():
    fields = {
        "vocab_size": 300,
        "width": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 32,
        "hidden": 256,
    }
    found = open_checkpoint("tests/fixtures/tiny_gemma3").config
    windows = {"windows": (0, 0)}
    rest = {
        name: getattr(found, name)[:1] * 2
        for name, value in vars(found).items()
        if isinstance(value, tuple) and name != "windows"
    }
    return dataclasses.replace(found, **fields, **windows, **rest)


def batch(microbatches=1):
    tokens = jax.ShapeDtypeStruct((microbatches, ROWS, LENGTH), jnp.int32)
    weights = np.zeros((microbatches, EXAMPLES), np.float32)
    return {name: tokens for name in INTS} | {"weights_B": weights}


def flops_per_example(function, *args):
    return cost.flops_per_example(jax.jit(function).lower(*args), args[-1])


class Model:
    def __init__(self, config):
        self.model = heads.Model(config, heads.ClassifierHead(2, "first"))
        part = {name: jnp.zeros((1, 1), jnp.int32) for name in INTS} | {"weights_B": jnp.ones(1)}

        def init(rng):
            return self.model.init(rng, part, deterministic=True)["params"]

        self.params = flatten(jax.eval_shape(init, jax.random.key(0)))
        self.optimizer = optax.scale_by_adam()
        self.state = jax.eval_shape(
            lambda params: TrainState(
                jnp.int32(0), jnp.int32(0), params, self.optimizer.init(params)
            ),
            self.params,
        )
        passes = Passes(
            lambda params, part, rng: [self.forward(params, part)],
            lambda logits, part: (logits.sum(), part["weights_B"].sum(), {}),
        )
        self.train_step = make_train_step(
            Regularizers(common.get_config().regularize, passes, seed=0),
            self.optimizer,
            learning_rate=1e-3,
            schedule=lambda examples: dict.fromkeys(self.params, jnp.float32(1)),
            batch_size=EXAMPLES,
        )

    def forward(self, params, part):
        return self.model.apply({"params": merge(params)}, part, deterministic=True)["logits_BxC"]

    def matmul_flops(self, config):
        """2 per parameter of a product and position; 4 per channel and pair, of attention."""
        kernels = [v.size for p, v in self.params.items() if "layer_" in p and p.endswith("kernel")]
        head_size = getattr(config, "head_size", config.width // config.num_heads)
        positions, pairs = ROWS * LENGTH, ROWS * LENGTH * LENGTH
        attention = 4 * config.num_layers * config.num_heads * head_size * pairs
        return (2 * sum(kernels) * positions + attention) / EXAMPLES


@pytest.mark.parametrize("make", [encoder, decoder])
def test_flops_are_those_of_the_closed_formula_and_the_work_between_products(make):
    config = make()
    model = Model(config)
    part = {name: jnp.zeros(array.shape[1:], array.dtype) for name, array in batch().items()}
    expected = model.matmul_flops(config)
    forward = flops_per_example(model.forward, model.params, part)
    assert expected < forward < 1.15 * expected
    # The backward pass needs two products for each one.
    step = flops_per_example(model.train_step, model.state, {}, batch())
    assert 2.9 * expected < step < 3.5 * expected
    again = flops_per_example(model.train_step, model.state, {}, batch(microbatches=3))
    assert again == pytest.approx(step, rel=0.02)  # not a third of it, though the loop is one


def test_frozen_parameters_cost_no_gradients():
    model = Model(encoder())
    head = {path: value for path, value in model.params.items() if path.startswith("head")}
    frozen = {path: value for path, value in model.params.items() if path not in head}
    state = jax.eval_shape(
        lambda params: TrainState(jnp.int32(0), jnp.int32(0), params, model.optimizer.init(params)),
        head,
    )
    all_trained = flops_per_example(model.train_step, model.state, {}, batch())
    one_trained = flops_per_example(model.train_step, state, frozen, batch())
    assert one_trained < 0.4 * all_trained
    step = jax.jit(model.train_step).lower(state, frozen, batch())
    flops = cost.flops_per_example(step, batch())
    lines = cost.describe(state, frozen, batch(), flops=flops)
    total, trained = (sum(v.size for v in tree.values()) for tree in (model.params, head))
    assert f"{total / 1e6:,.1f}M" in lines[0] and f"({trained / total:.1%}) are trained" in lines[0]
    assert "32 positions per example" in lines[2]


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("TPU v4", 275),
        ("TPU v4 lite", None),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_is_that_of_no_other(device, teraflops):
    found = cost.peak_flops(device, bfloat16=True)
    assert found == (teraflops and teraflops * 1e12)


def test_memory_counts_each_dtype_in_its_bytes():
    tree = {
        "a": jnp.zeros((3, 5), jnp.bfloat16),
        "b": (jnp.zeros((4, 2), jnp.int8), jnp.zeros(2, jnp.float32)),
    }
    assert cost.memory(tree) == {"bfloat16": 30, "int8": 8, "float32": 8}
    trained = {"backbone/embedder/embedding": jax.ShapeDtypeStruct((2**20, 2), jnp.float32)}
    frozen = {"backbone/layer_0/x/kernel": jax.ShapeDtypeStruct((2**20, 3), jnp.bfloat16)}
    state = TrainState(0, 0, trained, [trained, trained])
    line = cost.describe_memory(state, frozen)
    assert "8 MiB trained and 6 MiB (bfloat16) frozen, gradients 8 MiB, optimiser state 16" in line
    parameters = cost.describe_parameters(trained, frozen)
    assert parameters == (
        "Parameters: 5.2M, of which 2.1M (40.0%) are trained; 2.1M are embeddings."
    )
