"""Encoder-decoders against transformers' own states, packing, names in checkpoints, generation."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from models.backbone import flatten, parameter_shapes
from models.generation import Decoding, generate_batch
from models.pretrained import Pretrained, load_pretrained, open_checkpoint, write_pretrained
from models.pretrained.fields import Fields
from models.pretrained.t5 import read_config, table
from models.pretrained.tables import StoredTensor, parameters_from
from models.t5 import T5, distance_buckets, shift_right

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"
NAMES = ("t5_v1_0", "t5_v1_1", "mt5", "umt5")
EXACT = {"rtol": 0, "atol": 1e-4}


@functools.cache
def load(name: str) -> Pretrained:
    """The random model of a family with all parts that its checkpoint holds."""
    return load_pretrained(FAMILIES / name, parts=open_checkpoint(FAMILIES / name).parts)


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(FAMILIES / name / "golden.npz"))


def batch_of(tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Tokens, positions and segments, of which each row is one."""
    positions = np.where(mask, np.arange(mask.shape[1]), 0)
    return tokens, positions, mask * np.arange(1, 1 + len(mask))[:, None]


@functools.partial(jax.jit, static_argnums=0, static_argnames="capture")
def whole(model: T5, params, source: tuple, targets: tuple, *, capture: bool = False):
    """Encoder states, decoder states and logits; with `capture` what the layers return too."""

    def run(model: T5):
        hidden = model(*source)
        inputs = shift_right(targets[0], targets[2], start_id=model.config.start_id)
        decoded = model.decode(inputs, *targets[1:], hidden, source[2])
        return hidden, decoded, model.logits(decoded)

    return model.apply({"params": params}, method=run, capture_intermediates=capture)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_equals_the_reference(name):
    pretrained, arrays = load(name), golden(name)
    config = pretrained.config
    source = batch_of(arrays["tokens_BxL"], arrays["mask_BxL"])
    targets = batch_of(arrays["targets_BxT"], arrays["target_mask_BxT"])
    (hidden, decoded, logits), calls = whole(
        T5(config), pretrained.params, source, targets, capture=True
    )
    calls = calls["intermediates"]
    embedded = calls["embedder"]["__call__"]
    for stack, number, first, last, key, segments in (
        (calls, config.num_layers, embedded[0], hidden, "states_NxBxLxD", source[2]),
        (
            calls["decoder"],
            config.num_decoder_layers,
            embedded[1],
            decoded,
            "target_states_NxBxTxD",
            targets[2],
        ),
    ):
        # The reference shows its last layer behind the final norm.
        layers = [stack[f"layer_{i}"]["__call__"][0][0] for i in range(number)]
        states = [first, *layers[:-1], last]
        assert len(states) == len(arrays[key]) == 1 + number
        for found, expected in zip(states, arrays[key], strict=True):
            found, real = np.reshape(found, expected.shape), segments > 0
            np.testing.assert_allclose(found[real], expected[real], **EXACT)
    assert logits.dtype == jnp.float32
    real = targets[2] > 0
    np.testing.assert_allclose(logits[real], arrays["logits_BxTxV"][real], **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_equal_the_reference(causal):
    expected = golden("t5_v1_1")["causal_buckets" if causal else "buckets"]
    found = distance_buckets(32, 128, causal=causal)
    np.testing.assert_array_equal(found, expected[12:-12])
    assert set(expected[:13]) == {found[0]} and set(expected[-13:]) == {found[-1]}


@pytest.mark.parametrize("name", ["t5_v1_0", "umt5"])
def test_packed_equals_unpacked_in_encoder_and_decoder(name):
    """Targets of other lengths than their sources, in another order of segments."""
    pretrained, rng = load(name), np.random.default_rng(0)
    lengths = {1: (7, 4), 2: (3, 9), 3: (6, 2)}  # segment -> length of source, of target

    def part(segment: int, length: int) -> np.ndarray:
        return np.stack([rng.integers(2, 40, length), np.arange(length), np.full(length, segment)])

    parts = {each: (part(each, s), part(each, t)) for each, (s, t) in lengths.items()}

    def pack(side: int, order: tuple[int, ...], length: int) -> tuple[np.ndarray, ...]:
        packed = np.concatenate([parts[each][side] for each in order], axis=1)
        packed = np.pad(packed, ((0, 0), (0, length - packed.shape[1])))
        return tuple(packed[:, None])

    model = T5(pretrained.config)
    source, targets = pack(0, (1, 2, 3), 20), pack(1, (3, 1, 2), 18)
    packed = whole(model, pretrained.params, source, targets)
    for each in lengths:
        alone = pack(0, (each,), 20), pack(1, (each,), 18)
        expected = whole(model, pretrained.params, *alone)
        for side, found in enumerate(packed):
            inside = (source, targets, targets)[side][2] == each
            inside_alone = (*alone, alone[1])[side][2] == each
            np.testing.assert_allclose(found[inside], expected[side][inside_alone], **EXACT)


def test_padding_is_finite_with_its_gradients_whatever_the_precision():
    """A row of nothing, targets without a source, and layers computed twice."""
    pretrained = load("t5_v1_1")
    tokens = np.repeat([[1], [0]], 6, axis=1)
    source = (tokens, tokens * np.arange(6), tokens * 2)
    targets = (tokens, tokens * np.arange(6), tokens)

    def loss(params):
        results = whole(T5(pretrained.config, remat="layers"), params, source, targets)
        return sum(jnp.sum(jnp.square(each)) for each in results)

    value, gradients = jax.value_and_grad(loss)(pretrained.params)
    assert all(np.isfinite(each).all() for each in (value, *jax.tree.leaves(gradients)))
    # What recomputes its layers gives the same.
    plain = whole(T5(pretrained.config), pretrained.params, source, targets)
    np.testing.assert_allclose(value, sum(np.sum(np.square(each)) for each in plain), rtol=1e-5)
    rounded = whole(T5(pretrained.config, jnp.bfloat16), pretrained.params, source, targets)
    assert [each.dtype for each in rounded] == [jnp.float32] * 3  # but for products, on CPUs
    assert all(np.isfinite(each).all() for each in rounded)


def test_dropout_acts_in_both_stacks_only_while_training():
    pretrained, arrays = load("t5_v1_1"), golden("t5_v1_1")
    source = batch_of(arrays["tokens_BxL"], arrays["mask_BxL"])
    model = T5(pretrained.config, dropout=0.5)
    apply = functools.partial(model.apply, {"params": pretrained.params})
    rngs = {"dropout": jax.random.key(0)}
    hidden = apply(*source)
    np.testing.assert_array_equal(hidden, T5(pretrained.config).apply(*apply.args, *source))
    assert np.abs(hidden - apply(*source, deterministic=False, rngs=rngs)).max() > 0.1
    decode = functools.partial(apply, *source, hidden, source[2], method="decode")
    assert np.abs(decode() - decode(deterministic=False, rngs=rngs)).max() > 0.1


@pytest.mark.parametrize("name", ["t5_v1_0", "umt5"])
def test_cached_steps_equal_whole_targets(name):
    pretrained, arrays = load(name), golden(name)
    model = T5(pretrained.config)
    apply = functools.partial(model.apply, {"params": pretrained.params})
    source = batch_of(arrays["tokens_BxL"], arrays["mask_BxL"])
    targets = batch_of(arrays["targets_BxT"], np.ones_like(arrays["targets_BxT"]))
    _, _, expected = whole(model, pretrained.params, source, targets)
    lengths, number = arrays["mask_BxL"].sum(axis=1), targets[0].shape[1]
    logits, cache = apply(source[0], lengths, length=number, method="start")
    step = jax.jit(functools.partial(apply, method="step"))
    np.testing.assert_allclose(logits, expected[:, 0], **EXACT)
    for place in range(1, number):
        logits, cache = step(cache, targets[0][:, place - 1])
        np.testing.assert_allclose(logits, expected[:, place], **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_generated_tokens_equal_the_reference(name):
    pretrained, arrays = load(name), golden(name)
    config, expected = pretrained.config, arrays["generated_BxT"]
    batch = (arrays["tokens_BxL"], arrays["mask_BxL"].sum(axis=1))
    decoding = Decoding(
        max_tokens=expected.shape[1], end_ids=(config.end_id,), pad_id=config.pad_id
    )
    run = jax.jit(functools.partial(generate_batch, T5(config), decoding=decoding))
    found, _ = run(pretrained.params, *batch)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_reads_the_same(name, tmp_path):
    pretrained = load(name)
    write_pretrained(tmp_path, pretrained.config, pretrained.params)
    again = load_pretrained(tmp_path, parts=open_checkpoint(tmp_path).parts)
    assert again.config == pretrained.config
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    original = load_file(FAMILIES / name / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == original.keys()


def test_the_encoder_alone_reads_from_whole_models_and_from_encoders(tmp_path):
    whole_model = load("t5_v1_1")
    alone = load_pretrained(FAMILIES / "t5_v1_1")
    assert not {"decoder", "lm_head"} & set(alone.params)
    write_pretrained(tmp_path, alone.config, alone.params)
    assert open_checkpoint(tmp_path).parts == ()
    again = load_pretrained(tmp_path)
    for path, value in flatten(again.params).items():
        np.testing.assert_array_equal(value, flatten(whole_model.params)[path])


def read_tensors(name: str, tensors: dict[str, np.ndarray], parts: tuple[str, ...]) -> dict:
    stored = {
        each: StoredTensor(value.shape, lambda value=value: value)
        for each, value in tensors.items()
    }
    config = load(name).config
    return parameters_from(
        stored,
        parameter_shapes(config, parts),
        table(config, "huggingface"),
        optional=T5.PARTS,
        place=lambda path, value: np.asarray(value, np.float32),
        file="here",
    )


@pytest.mark.parametrize("kept", ["shared", "encoder.embed_tokens", "lm_head", "all"])
def test_a_tied_table_is_found_under_each_of_its_names(kept):
    """Old files hold all of its copies, others the one that a tool happened to keep."""
    tensors = load_file(FAMILIES / "t5_v1_0" / "model.safetensors")
    value = tensors.pop("shared.weight")
    names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]
    tensors |= {f"{name}.weight": value for name in (names if kept == "all" else [kept])}
    bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[bias] = np.zeros((8, 2))
    tensors = {f"transformer.{name}": value for name, value in tensors.items()}
    tensors["classification_head.dense.weight"] = np.zeros((12, 12))
    found = read_tensors("t5_v1_0", tensors, ("decoder",))
    jax.tree.map(np.testing.assert_array_equal, found, load("t5_v1_0").params)


def test_a_tensor_that_nobody_knows_is_refused():
    tensors = load_file(FAMILIES / "umt5" / "model.safetensors")
    tensors["encoder.block.0.layer.0.SelfAttention.q.bias"] = np.zeros(10)
    with pytest.raises(ValueError, match=r"without a parameter: encoder.*q\.bias"):
        read_tensors("umt5", tensors, ("decoder", "lm_head"))
    with pytest.raises(ValueError, match="mT5 in the format 'gguf'"):
        table(load("mt5").config, "gguf")


# As released: T5 1.0, T5 1.1 and Mengzi-T5, mT5, umT5; then those as transformers 5 saves them.
@pytest.mark.parametrize(
    ("found", "tied"),
    [
        ({"model_type": "t5"}, True),
        ({"model_type": "t5", "tie_word_embeddings": False}, False),
        ({"model_type": "mt5", "tie_word_embeddings": False}, False),
        ({"model_type": "umt5", "tie_word_embeddings": False}, False),
        ({"model_type": "mt5", "transformers_version": "4.57.1"}, True),
        ({"model_type": "t5", "scale_decoder_outputs": True, "tie_word_embeddings": True}, True),
        ({"model_type": "t5", "scale_decoder_outputs": False, "tie_word_embeddings": True}, False),
        (
            {"model_type": "mt5", "transformers_version": "5.23.0", "tie_word_embeddings": True},
            False,
        ),
    ],
)
def test_what_the_config_says_of_tying_is_read_as_its_version_meant_it(found, tied):
    shapes = {"vocab_size": 40, "d_model": 12, "d_kv": 5, "d_ff": 16, "num_heads": 2}
    config = read_config(Fields(found | shapes | {"num_layers": 2}, "config.json"))
    assert config.tied is tied and config.num_decoder_layers == 2
    assert (config.num_buckets, config.max_distance, config.norm_epsilon) == (32, 128, 1e-6)
    assert (config.start_id, config.end_id, config.pad_id) == (0, 1, 0)
    assert config.gated is (found["model_type"] != "t5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-swiglu"}, "config.json: feed_forward_proj is 'gated-swiglu'"),
        ({"d_kv": None}, "config.json has no field 'd_kv'"),
        ({"relative_attention_num_buckets": 6}, "multiple of 4"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(change, message):
    found = json.loads((FAMILIES / "mt5" / "config.json").read_text()) | change
    found = {key: value for key, value in found.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read_config(Fields(found, "config.json"))
