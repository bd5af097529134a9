"""Fused kernels give what the plain form gives, and are in the programs of their platforms.

No accelerator is needed: splash attention runs in Pallas' interpreter, and programs for CUDA and
TPU are lowered, not compiled. cuDNN's kernel cannot be run here.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from models import attention, backbone
from models.attention import Fused
from models.backbone import choose_attention
from models.bert import Bert
from models.decoder import Decoder
from models.pretrained import load_pretrained

ROOT = Path(__file__).parents[2]
LENGTH = 150  # no multiple of a block


@pytest.fixture
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.fixture
def splash(mesh, monkeypatch):
    """The kernel of TPUs, in Pallas' interpreter."""
    name = "make_splash_mha_single_device"
    interpreted = functools.partial(getattr(splash_attention, name), interpret=True)
    monkeypatch.setattr(splash_attention, name, interpreted)
    attention.problem.cache_clear()
    return Fused("splash", mesh)


def arrays(segments_RxL, heads, kv_heads, dtype=jnp.float32, size=8):
    """Query, key, value, and a gradient that padding does not get."""
    rng = np.random.default_rng(0)
    shapes = ((*segments_RxL.shape, count, size) for count in (heads, kv_heads, kv_heads, heads))
    *inputs, slope = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    return *inputs, slope * (segments_RxL > 0)[:, :, None, None].astype(dtype)


def mix(fused, options, positions_RxL, segments_RxL, query, key, value, slope, cap=0.0):
    """The result and the gradients of query, key and value."""
    view = attention.visible(positions_RxL, segments_RxL, **options)

    def mixed(*inputs):
        return attention.mixed(fused, *inputs, view, scale=0.5, cap=cap)

    result, pull = jax.vjp(mixed, query, key, value)
    return result, *pull(slope)


@pytest.mark.parametrize(
    ("options", "heads", "kv_heads", "cap"),
    [
        ({"causal": False}, 2, 2, 0.0),
        ({"causal": False, "window": 21}, 2, 1, 0.0),
        ({"causal": True}, 2, 1, 2.0),
        ({"causal": True, "window": 20}, 4, 2, 0.0),
    ],
)
def test_splash_equals_plain_with_its_gradients(splash, pack, options, heads, kv_heads, cap):
    """On packed rows, one of padding alone; padding stays finite."""
    _, positions, segments = pack([[60, 70], [LENGTH], []], LENGTH)
    inputs = arrays(segments, heads, kv_heads)
    fused, plain = (
        jax.jit(functools.partial(mix, kernel, options, cap=cap))(positions, segments, *inputs)
        for kernel in (splash, None)
    )
    is_real = (segments > 0)[:, :, None, None]
    assert all(np.isfinite(array).all() for array in (*fused, *plain))
    np.testing.assert_allclose(fused[0] * is_real, plain[0] * is_real, atol=1e-5)
    for one, other in zip(fused[1:], plain[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_models_equal_themselves_with_the_kernel(splash, pack, make_config, random_params, family):
    """With recomputed layers: hidden states and the gradients of all parameters."""
    if family == "decoder":
        module, config = Decoder, make_config(attention_cap=3.0)
        params = random_params(config)
    else:
        pretrained = load_pretrained(ROOT / "tests/fixtures/families/bert")
        module, config, params = Bert, pretrained.config, pretrained.params
    batch = pack([[9, 5], [16]], 18)

    def loss(params, fused):
        hidden = module(config, remat="dots", fused=fused).apply({"params": params}, *batch)
        return jnp.sum(jnp.where((batch[2] > 0)[:, :, None], jnp.sin(hidden), 0))

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (one, gradients), (other, expected) = (gradient(params, fused) for fused in (splash, None))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for left, right in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4 * max(1.0, abs(right).max()))


# What lowers a training's attention on a mesh of 2 x 2 devices, and runs it if that can be.
LOWER = """
import functools, sys, jax, jax.numpy as jnp, numpy as np
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu import splash_attention
from models.attention import Fused
from tests.models.test_attention import arrays, mix

kernel, platform = sys.argv[1:]
fused_attention_stablehlo.check_cudnn_version = lambda: 91300  # this machine has no cuDNN
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rows = jax.ShapeDtypeStruct((6, 256), jnp.int32)
inputs = [jax.ShapeDtypeStruct((6, 256, count, 64), jnp.bfloat16) for count in (4, 2, 2, 4)]
step = jax.jit(functools.partial(mix, Fused(kernel, mesh), {"causal": True, "window": 100}))
print(step.trace(rows, rows, *inputs).lower(lowering_platforms=(platform,)).as_text())
if kernel == "splash":
    name = "make_splash_mha_single_device"
    interpreted = functools.partial(getattr(splash_attention, name), interpret=True)
    setattr(splash_attention, name, interpreted)
    segments = np.repeat([[1, 2], [3, 0]], 65, axis=1).astype(np.int32)
    batch = (np.tile(np.arange(65, dtype=np.int32), (2, 2)), segments, *arrays(segments, 4, 2))
    fused, plain = (
        jax.jit(functools.partial(mix, form, {"causal": False}))(*batch)
        for form in (Fused(kernel, mesh), None)
    )
    for one, other in zip(fused, plain, strict=True):
        np.testing.assert_allclose(one[segments > 0], other[segments > 0], atol=2e-5)
    assert len(one.sharding.device_set) == 4
"""


@pytest.mark.parametrize(
    ("kernel", "platform", "calls"),
    [
        ("splash", "tpu", ["tpu_custom_call"] * 3),
        ("cudnn", "cuda", ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]),
    ],
)
def test_programs_of_accelerators_call_the_kernel_on_each_devices_part(kernel, platform, calls):
    """Forward and backward, of 3 of 6 rows and 2 of 4 heads."""
    result = subprocess.run(
        [sys.executable, "-c", LOWER, kernel, platform],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if "custom_call @" in line]
    found = [line for line in lines if calls[0] in line]
    assert sorted(re.search(r"custom_call @([\w$]+)", line)[1] for line in found) == calls
    part = "3x2x256x64xbf16" if kernel == "splash" else "3x256x2x64xbf16"
    assert all(f"tensor<{part}>" in line for line in found)


def test_a_trial_finds_a_kernel_that_ignores_segments_or_is_not_finite(splash, monkeypatch):
    trial = functools.partial(attention.problem, splash, (2, 1, 8), jnp.dtype("float32"))
    assert trial(64, True, 0.0) == ""
    run = attention._splash

    def ignoring(*args):
        return run(*args[:-1], jnp.ones_like(args[-1]))

    def broken(*args):
        return run(*args).at[:, 180].set(jnp.nan)  # padding

    for kernel in (ignoring, broken):
        monkeypatch.setattr(attention, "_splash", kernel)
        attention.problem.cache_clear()
        assert "differs from the plain one" in trial(64, True, 0.0)


def test_a_kernel_that_fails_without_a_message_is_no_crash(splash, monkeypatch):
    def fail(*_):
        raise NotImplementedError

    monkeypatch.setattr(attention, "_splash", fail)
    reason = attention.problem(splash, (2, 1, 8), jnp.dtype("float32"), 0, True, 0.0)
    assert reason == "the splash kernel does not run here: NotImplementedError"


def test_the_choice_is_said_with_its_reason(splash, mesh, make_config, monkeypatch):
    said = []

    def choose(wanted, config, dtype="bfloat16"):
        return choose_attention(wanted, config, dtype=dtype, mesh=mesh, say=said.append)

    config = make_config()
    assert choose("auto", config) is None and not said  # on a CPU nothing is expected
    with pytest.raises(ValueError, match=r"config.model.attention='fused', but .* on cpu"):
        choose("fused", config)
    monkeypatch.setattr(backbone, "_KERNELS", {"cpu": "splash"})
    assert choose("auto", config) == choose("fused", config) == splash
    assert choose("plain", config) is None
    t5 = load_pretrained(ROOT / "tests/fixtures/families/t5_v1_1").config
    assert choose("auto", t5) is None
    monkeypatch.setattr(backbone, "_KERNELS", {"cpu": "cudnn"})
    assert choose("auto", make_config(attention_cap=30.0)) is None
    assert choose("auto", config, "float32") is None
    assert choose("auto", config) is None
    reasons = ["splash", "splash", "T5 adds a bias", "no soft cap", "not float32", "not detected"]
    assert len(said) == len(reasons)
    assert all(reason in line for line, reason in zip(said, reasons, strict=True)), said


def test_cudnn_is_asked_for_masks_by_segment_and_skips_later_positions(mesh, monkeypatch, pack):
    """The mask that cuDNN gets gives the plain form's result in XLA's attention."""
    _, positions, segments = pack([[9, 5], [16]], 18)
    inputs = arrays(segments, 4, 2, jnp.bfloat16)
    xla = jax.nn.dot_product_attention

    def in_xla(*args, implementation, **options):
        assert implementation == "cudnn" and options["is_causal"]
        return xla(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla)
    options = {"causal": True, "window": 4}
    fused, plain = (
        jax.jit(functools.partial(mix, kernel, options))(positions, segments, *inputs)
        for kernel in (Fused("cudnn", mesh), None)
    )
    is_real = (segments > 0)[:, :, None, None]
    for one, other in zip(fused, plain, strict=True):
        one, other = (np.asarray(array * is_real, np.float32) for array in (one, other))
        np.testing.assert_allclose(one, other, atol=0.03 * abs(other).max())


@pytest.mark.parametrize("name", ["gemma3", "bert", "t5_v1_1"])
def test_attention_dropout_acts_in_every_family_by_its_key_alone(name):
    pretrained = load_pretrained(ROOT / "tests/fixtures/families" / name)
    model = backbone.make_backbone(pretrained.config, attention_dropout=0.2)
    batch = [jnp.ones((1, 6), jnp.int32) * 5, jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32)]

    def hidden(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": pretrained.params}, *batch, deterministic=False, rngs=rngs)

    plain = model.apply({"params": pretrained.params}, *batch)
    assert not np.allclose(hidden(0), plain, atol=1e-3)
    np.testing.assert_array_equal(hidden(0), hidden(0))


def test_dropped_shares_are_those_of_the_softmax():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))
    mask, scale = jnp.ones((2, 5, 5), bool), 8**-0.5
    shares = jax.nn.softmax(jnp.einsum("rlhn,rmhn->rhlm", query, key) * scale)
    kept = jax.random.bernoulli(jax.random.key(1), 0.7, shares.shape) / 0.7
    found = attention.attend(
        query, key, value, mask, scale=scale, drop=lambda weights: weights * kept
    )
    expected = jnp.einsum("rhlm,rmhn->rlhn", shares * kept, value)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert attention.dropping(nn.Dropout(0.1), deterministic=True) is None
    assert attention.dropping(nn.Dropout(0.0), deterministic=False) is None
