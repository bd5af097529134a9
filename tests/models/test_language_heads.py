"""Chunked log probabilities against whole logits of every kind of output, and their memory."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from ml_collections import ConfigDict

from models import adapters
from models.backbone import flatten, unflatten
from models.heads import Model
from models.language_heads import LanguageHead, Seq2SeqHead, divergences, log_probabilities
from models.layers import divergence
from models.pretrained import Pretrained, load_pretrained, open_checkpoint
from models.t5 import shift_right

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"
EXACT = {"rtol": 0, "atol": 2e-4}
# Tied, with a soft cap, untied, BERT's with and without factorised embeddings.
LANGUAGE_MODELS = ("gemma3", "gemma2", "llama2", "bert", "electra_generator", "albert")


@functools.cache
def load(name: str) -> Pretrained:
    return load_pretrained(FAMILIES / name, parts=open_checkpoint(FAMILIES / name).parts)


def golden_batch(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The batch of a golden file, and transformers' logits of it."""
    arrays = dict(np.load(FAMILIES / name / "golden.npz"))
    mask = arrays["mask_BxL"] > 0
    batch = {
        "tokens_RxL": arrays["tokens_BxL"].astype(np.int32),
        "positions_RxL": np.where(mask, np.cumsum(mask, axis=1) - 1, 0).astype(np.int32),
        "segments_RxL": (mask * np.arange(1, 1 + len(mask))[:, None]).astype(np.int32),
        "types_RxL": arrays.get("types_BxL", np.zeros_like(mask)).astype(np.int32),
    }
    return batch, arrays


def scores_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log probabilities from whole logits; 0 where nothing is asked."""
    logits = logits.astype(np.float64)
    highest = logits.max(-1, keepdims=True)
    total = highest[..., 0] + np.log(np.exp(logits - highest).sum(-1))
    chosen = np.take_along_axis(logits, np.maximum(targets - 1, 0)[..., None], -1)[..., 0]
    return np.where(targets > 0, chosen - total, 0)


def ask(shape: tuple[int, ...], mask: np.ndarray, *, vocab_size: int) -> np.ndarray:
    """Random targets at two of three positions of a mask."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(1, vocab_size + 1, shape)
    return np.where(mask & (rng.random(shape) < 0.67), drawn, 0).astype(np.int32)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_log_probabilities_are_those_of_the_reference(name):
    pretrained = load(name)
    batch, arrays = golden_batch(name)
    mask = batch["segments_RxL"] > 0
    targets = ask(mask.shape, mask, vocab_size=pretrained.config.vocab_size)
    model = Model(pretrained.config, LanguageHead(chunk=5))
    params = {"backbone": pretrained.params}
    outputs = model.apply({"params": params}, batch | {"targets_RxL": targets}, deterministic=True)
    logits = arrays["logits_BxLxV"]
    expected = scores_of(logits, targets)
    np.testing.assert_allclose(outputs["log_probability_RxL"], expected, **EXACT)
    np.testing.assert_array_equal(outputs["best_RxL"], np.where(targets > 0, logits.argmax(-1), 0))


@pytest.mark.parametrize("name", ["t5_v1_0", "t5_v1_1", "mt5", "umt5"])
def test_packed_sources_and_targets_equal_the_reference_apart(name):
    """Both pairs of the golden file in one row, source and target in one segment."""
    pretrained = load(name)
    arrays = dict(np.load(FAMILIES / name / "golden.npz"))
    tokens, positions, segments, is_target, expected, best = ([] for _ in range(6))
    for pair in range(2):
        source = arrays["tokens_BxL"][pair][arrays["mask_BxL"][pair] > 0]
        kept = arrays["target_mask_BxT"][pair] > 0
        target, logits = arrays["targets_BxT"][pair][kept], arrays["logits_BxTxV"][pair][kept]
        total = len(source) + len(target)
        tokens += [*source, *target]
        positions += range(total)
        segments += [pair + 1] * total
        is_target += [0] * len(source) + [1] * len(target)
        expected += [0.0] * len(source) + [*scores_of(logits, target + 1)]
        best += [0] * len(source) + [*logits.argmax(-1)]
    batch = {
        "tokens_RxL": tokens,
        "positions_RxL": positions,
        "segments_RxL": segments,
        "types_RxL": [0] * len(tokens),
        "is_target_RxL": is_target,
        "targets_RxL": np.where(is_target, np.array(tokens) + 1, 0),
    }
    batch = {name: np.array([[*row, 0, 0]], np.int32) for name, row in batch.items()}
    model = Model(pretrained.config, Seq2SeqHead(chunk=7))
    outputs = model.apply({"params": {"backbone": pretrained.params}}, batch, deterministic=True)
    np.testing.assert_allclose(outputs["log_probability_RxL"][0], [*expected, 0, 0], **EXACT)
    np.testing.assert_array_equal(outputs["best_RxL"][0], [*best, 0, 0])


def test_targets_between_sources_are_shifted_within_their_segments():
    tokens = jnp.array([[5, 6, 7, 8, 9, 10, 11, 12]])
    target_segments = jnp.array([[1, 1, 0, 2, 2, 3, 0, 0]])
    shifted = shift_right(tokens, target_segments, start_id=99)
    np.testing.assert_array_equal(shifted[0, [0, 1, 3, 4, 5]], [99, 5, 99, 8, 99])


def project(params: dict, hidden_SxD: jax.Array) -> jax.Array:
    return hidden_SxD @ params["kernel"] + params["bias"]


def whole(params: dict, hidden: jax.Array, targets: jax.Array) -> jax.Array:
    logits = project(params, hidden)
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets - 1, 0)[..., None], axis=2)[..., 0]
    return jnp.where(targets > 0, chosen - jax.nn.logsumexp(logits, axis=2), 0)


@pytest.mark.parametrize("chunk", [1, 6, 8, 1000])
def test_gradients_are_those_of_whole_logits(chunk):
    rng = np.random.default_rng(chunk)
    params = {"kernel": rng.normal(size=(4, 9)), "bias": rng.normal(size=9)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    hidden = jnp.asarray(rng.normal(size=(3, 7, 4)), jnp.float32)
    targets = ask((3, 7), np.ones((3, 7), bool), vocab_size=9)
    weights = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)  # each position its own slope

    def chunked(params: dict, hidden: jax.Array) -> jax.Array:
        scores, _ = log_probabilities(project, params, hidden, targets_RxL=targets, chunk=chunk)
        return jnp.sum(weights * scores)

    def reference(params: dict, hidden: jax.Array) -> jax.Array:
        return jnp.sum(weights * whole(params, hidden, targets))

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for argnums in ((0, 1), 0, 1):
        found = jax.jit(jax.value_and_grad(chunked, argnums))(params, hidden)
        jax.tree.map(close, found, jax.value_and_grad(reference, argnums)(params, hidden))


def test_what_is_not_asked_does_not_spread():
    """Not finite hidden states where nothing is asked reach neither scores nor gradients."""
    params = {"kernel": jnp.ones((4, 9)), "bias": jnp.zeros(9)}
    hidden = jnp.ones((2, 6, 4)).at[:, 2:].set(jnp.nan)
    targets = jnp.zeros((2, 6), jnp.int32).at[:, 1].set(5)

    def loss(params: dict, hidden: jax.Array) -> jax.Array:
        return log_probabilities(project, params, hidden, targets_RxL=targets, chunk=6)[0].sum()

    value, gradients = jax.value_and_grad(loss, (0, 1))(params, hidden)
    assert np.isclose(value, -2 * np.log(9))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("trained", [True, False])
def test_memory_is_bounded_by_the_chunk(trained):
    """Gradients of 2,048 positions over 262,144 pieces: two chunks of logits, not 2 GB of them."""
    chunk, vocab_size = 128, 262_144
    shapes = {"kernel": (8, vocab_size), "bias": (vocab_size,)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    hidden = jax.ShapeDtypeStruct((4, 512, 8), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 512), jnp.int32)

    def loss(params: dict, hidden: jax.Array, targets: jax.Array) -> jax.Array:
        scores, _ = log_probabilities(project, params, hidden, targets_RxL=targets, chunk=chunk)
        return scores.sum()

    gradient = jax.jit(jax.grad(loss, (0, 1) if trained else 1))
    compiled = gradient.lower(params, hidden, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3.5 * 4 * chunk * vocab_size


def test_adapters_and_reduced_weights_act_in_both_passes():
    """LoRA over bfloat16 weights, forward and backward, as with the adapter folded in."""
    pretrained = load("llama3")
    adapt = ConfigDict(
        {"kind": "lora", "targets": "", "rank": 2, "alpha": 4.0, "frozen_dtype": "bfloat16"}
    )
    flat = {f"backbone/{path}": leaf for path, leaf in flatten(pretrained.params).items()}
    added = adapters.init(adapt, flat, jax.random.key(0), params=flat)
    added = {path: leaf + 0.1 for path, leaf in added.items()}
    frozen = {path: adapters.freeze(adapt, path, leaf) for path, leaf in flat.items()}
    batch, _ = golden_batch("llama3")
    mask = batch["segments_RxL"] > 0
    batch["targets_RxL"] = ask(mask.shape, mask, vocab_size=pretrained.config.vocab_size)
    model = Model(pretrained.config, LanguageHead(chunk=4))

    def apply(params: dict) -> jax.Array:
        outputs = model.apply({"params": params}, batch, deterministic=True)
        return outputs["log_probability_RxL"].sum()

    def running(added: dict) -> jax.Array:
        return adapters.adapted(adapt, apply)(frozen | added)

    def folded(added: dict) -> jax.Array:
        return apply(unflatten(adapters.fold(adapt, frozen | added)))

    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    found = jax.jit(jax.value_and_grad(running))(added)
    jax.tree.map(close, found, jax.jit(jax.value_and_grad(folded))(added))


def test_smoothing_takes_its_share_from_the_mean_over_the_vocabulary():
    pretrained, (batch, arrays) = load("gemma3"), golden_batch("gemma3")
    mask = batch["segments_RxL"] > 0
    targets = ask(mask.shape, mask, vocab_size=pretrained.config.vocab_size)
    model = Model(pretrained.config, LanguageHead(chunk=5, smoothing=0.2))
    params, inputs = {"backbone": pretrained.params}, batch | {"targets_RxL": targets}
    logits = arrays["logits_BxLxV"].astype(np.float64)
    logs = logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    expected = 0.8 * scores_of(logits, targets) + np.where(targets > 0, 0.2 * logs.mean(-1), 0)
    for deterministic, scores in ((False, expected), (True, scores_of(logits, targets))):
        outputs = model.apply({"params": params}, inputs, deterministic=deterministic)
        np.testing.assert_allclose(outputs["log_probability_RxL"], scores, **EXACT)
    assert outputs.keys() == {"log_probability_RxL", "best_RxL"}  # of an evaluation


def test_divergences_in_chunks_equal_whole_ones_with_their_gradients():
    rng = np.random.default_rng(0)
    hidden, others = rng.normal(size=(2, 3, 7, 4)).astype(np.float32)
    kernel = rng.normal(size=(4, 11)).astype(np.float32)
    targets = ask((3, 7), rng.random((3, 7)) < 0.8, vocab_size=11)
    hidden[targets == 0] = np.nan  # what is not asked for must not matter

    def chunked(kernel, hidden, others):
        projections = (lambda x: x @ kernel,) * 2
        apart = divergences(projections, hidden, others, targets_RxL=targets, chunk=6)
        return apart.sum(), apart

    def whole(kernel, hidden, others):
        sides = (jnp.where(targets[..., None] > 0, x, 0) @ kernel for x in (hidden, others))
        apart = jnp.where(targets > 0, divergence(*sides), 0)
        return apart.sum(), apart

    for function in (chunked, whole):
        gradients, apart = jax.grad(function, (0, 1, 2), has_aux=True)(kernel, hidden, others)
        if function is chunked:
            kept = apart, gradients
    np.testing.assert_allclose(kept[0], apart, rtol=1e-4, atol=1e-6)
    for one, other in zip(kept[1], gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert (kept[0][targets == 0] == 0).all()
