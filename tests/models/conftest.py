"""Tiny models shared by the tests of models/."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.backbone import parameter_shapes
from models.decoder import Decoder, DecoderConfig
from models.layers import Rope
from models.pretrained import Pretrained, load_pretrained

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(autouse=True)
def full_precision():
    """Makes float32 products exact on accelerators too, where the default rounds their inputs."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """A Hugging Face folder as transformers wrote it (fixtures/make_tiny_gemma3.py)."""
    return FIXTURES / "tiny_gemma3"


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Pretrained:
    """Random Gemma 3 with 3 layers of width 32, windows 7, all, 7, vocabulary 64."""
    return load_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def hidden_of(tiny: Pretrained):
    """Jitted: tokens, positions, segments -> hidden states of the tiny model."""
    decoder = Decoder(tiny.config)
    params = jax.tree.map(jnp.asarray, tiny.params)
    apply = jax.jit(lambda *batch: decoder.apply({"params": params}, *batch))
    return lambda *batch: np.asarray(apply(*batch))


def make_config(**changes) -> DecoderConfig:
    """A decoder of two layers, smaller than `tiny`, for what needs no reference."""
    values = {
        "vocab_size": 40,
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_size": 8,
        "hidden": 24,
        "windows": (3, 0),
        "ropes": (Rope(base=1e4), Rope(base=1e6)),
        "attention_scale": 8**-0.5,
        "embedding_scale": 4.0,
    }
    return DecoderConfig(**(values | changes))


def random_params(config: DecoderConfig) -> dict:
    """Parameters drawn by path: two configs agree where both have a parameter of one shape."""

    def draw(path, leaf):
        rng = np.random.default_rng(list(jax.tree_util.keystr(path).encode()))
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.3, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(draw, parameter_shapes(config))


def pack(lengths_per_row: list[list[int]], length: int, *, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Random tokens (below 40) with positions and segments, each [R, length], packed as told."""
    shape = (len(lengths_per_row), length)
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    rng, segment = np.random.default_rng(seed), 0
    for row, lengths in enumerate(lengths_per_row):
        start = 0
        for size in lengths:
            segment += 1
            part = (row, slice(start, start + size))
            tokens[part] = rng.integers(1, 40, size)
            positions[part] = np.arange(size)
            segments[part] = segment
            start += size
    return tokens, positions, segments


@pytest.fixture(scope="session", name="make_config")
def make_config_fixture():
    return make_config


@pytest.fixture(scope="session", name="random_params")
def random_params_fixture():
    return random_params


@pytest.fixture(scope="session", name="pack")
def pack_fixture():
    return pack
