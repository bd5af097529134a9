"""Encoders against transformers' own states, their names in checkpoints, and packing."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import layers
from models.backbone import flatten, parameter_shapes, parts_of
from models.bert import Bert, BertConfig
from models.pretrained import Pretrained, load_pretrained, open_checkpoint, write_pretrained
from models.pretrained.bert import FAMILY, read_config, table, write_config
from models.pretrained.fields import Fields
from models.pretrained.tables import StoredTensor, parameters_from, tensors_from

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = FIXTURES / "families"
NAMES = ("bert", "roberta", "xlm_roberta", "ernie", "electra", "electra_generator", "albert")
PACKED = [[9, 4, 6], [11, 2]]  # 19 and 13 of 20 positions


@functools.cache
def load(name: str) -> Pretrained:
    """The random model of a family with all parts that its checkpoint holds."""
    checkpoint = open_checkpoint(FAMILIES / name)
    return load_pretrained(FAMILIES / name, parts=checkpoint.parts)


@functools.partial(jax.jit, static_argnums=0)
def hidden_of(bert: Bert, params, tokens, positions, segments, types=None):
    return bert.apply({"params": params}, tokens, positions, segments, types)


def golden(path: Path) -> tuple[dict[str, np.ndarray], tuple]:
    """A reference's arrays, and its batch as the module takes it."""
    arrays = dict(np.load(path))
    mask_BxL = arrays["mask_BxL"]
    positions_BxL = np.where(mask_BxL, np.arange(mask_BxL.shape[1]), 0)
    segments_BxL = mask_BxL * np.arange(1, 1 + len(mask_BxL))[:, None]
    types_BxL = arrays.get("types_BxL")
    return arrays, (arrays["tokens_BxL"], positions_BxL, segments_BxL, types_BxL)


def states_of(config: BertConfig, params: dict, batch: tuple) -> list[jax.Array]:
    """What leaves the embeddings and each layer, as transformers' hidden_states."""
    bert = Bert(config)
    run = jax.jit(lambda *batch: bert.apply({"params": params}, *batch, capture_intermediates=True))
    calls = run(*batch)[1]["intermediates"]
    embedded = calls["embedder_projection" if config.embedder_projection else "embedder_dropout"]
    states = [embedded["__call__"][0]]
    for i in range(config.num_distinct_layers):
        states += calls[f"layer_{i}"]["__call__"]
    return [state.reshape(*batch[0].shape, config.width) for state in states]


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_equals_the_reference(name):
    config, params = load(name).config, load(name).params
    arrays, batch = golden(FAMILIES / name / "golden.npz")
    real = batch[2] > 0
    states = states_of(config, params, batch)
    assert len(states) == len(arrays["states_NxBxLxD"]) == 1 + config.num_layers
    for found, expected in zip(states, arrays["states_NxBxLxD"], strict=True):
        np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=1e-4)
    np.testing.assert_allclose(states[-1][real], arrays["hidden_BxLxD"][real], rtol=0, atol=1e-4)
    apply = functools.partial(Bert(config).apply, {"params": params})
    heads = {"pooler": "pooled_BxD", "mlm_head": "logits_BxLxV"}
    assert {part for part, key in heads.items() if key in arrays} == set(parts_of(config)) & set(
        params
    )
    if "pooler" in params:
        pooled = apply(states[-1][:, 0], method="pooled")
        np.testing.assert_allclose(pooled, arrays["pooled_BxD"], rtol=0, atol=1e-4)
    if "mlm_head" in params:
        logits = apply(states[-1], method="logits")
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits[real], arrays["logits_BxLxV"][real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_reads_the_same(name, tmp_path):
    pretrained = load(name)
    write_pretrained(tmp_path, pretrained.config, pretrained.params)
    again = load_pretrained(tmp_path, parts=set(pretrained.params) & set(Bert.PARTS))
    assert again.config == pretrained.config
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    # Under the names that transformers wrote, with the prefix that models with heads need.
    original = set(load_file(FAMILIES / name / "model.safetensors"))
    written = set(load_file(tmp_path / "model.safetensors"))
    if name == "xlm_roberta":
        assert written == {f"roberta.{each}" for each in original}
    else:
        tasks = ("cls.seq_relationship", "discriminator_predictions", "sop_classifier")
        assert written == {each for each in original if not each.startswith(tasks)}


def test_old_spellings_and_extra_tensors_read_the_same(tmp_path):
    """As files of the first PyTorch BERTs: gamma and beta, tied copies, no model_type."""
    tensors = load_file(FAMILIES / "bert" / "model.safetensors")
    old = {}
    for name, value in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    old["bert.embeddings.position_ids"] = np.arange(24)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    old["classifier.weight"] = np.zeros((2, 16), np.float32)
    save_file(old, tmp_path / "model.safetensors")
    found = json.loads((FAMILIES / "bert" / "config.json").read_text())
    del found["model_type"], found["architectures"], found["layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(found))
    # What is left out is told: a run of this checkpoint has lost its fine-tuned head.
    assert any("fine-tuned" in why for why in open_checkpoint(tmp_path).ignored)
    again = load_pretrained(tmp_path, parts=["pooler", "mlm_head"])
    assert again.config == load("bert").config
    jax.tree.map(np.testing.assert_array_equal, again.params, load("bert").params)


def test_a_tensor_that_is_known_to_nobody_is_refused(tmp_path):
    shutil.copy(FAMILIES / "bert" / "config.json", tmp_path)
    tensors = load_file(FAMILIES / "bert" / "model.safetensors")
    tensors["bert.encoder.layer.0.adapter.weight"] = np.zeros((2, 16), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0\.adapter\.weight"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "bert",
            {
                "bert/embeddings/word_embeddings": (40, 16),
                "bert/embeddings/LayerNorm/gamma": (16,),
                "bert/encoder/layer_1/attention/self/query/kernel": (16, 16),
                "bert/encoder/layer_1/attention/output/LayerNorm/beta": (16,),
                "bert/encoder/layer_0/intermediate/dense/kernel": (16, 24),
                "bert/encoder/layer_0/output/dense/kernel": (24, 16),
                "bert/pooler/dense/bias": (16,),
                "cls/predictions/transform/LayerNorm/gamma": (16,),
                "cls/predictions/output_bias": (40,),
            },
        ),
        (
            "albert",
            {
                "bert/embeddings/word_embeddings": (40, 8),
                "bert/encoder/embedding_hidden_mapping_in/kernel": (8, 16),
                "bert/encoder/transformer/group_1/inner_group_0/LayerNorm_1/gamma": (16,),
                "bert/encoder/transformer/group_0/inner_group_0/ffn_1/intermediate/output/dense/"
                "kernel": (24, 16),
                "bert/encoder/transformer/group_0/inner_group_0/attention_1/self/key/bias": (16,),
                "cls/predictions/transform/dense/kernel": (16, 8),
            },
        ),
    ],
)
def test_tensorflow_names_and_kernels(name, expected):
    config, params = load(name).config, load(name).params
    tensors = tensors_from(params, table(config, "tensorflow"))
    assert {key: tensors[key].shape for key in expected} == expected
    query = flatten(params)["layer_0/attention/query/kernel"]
    stored = re.compile(
        r".*(layer_0|group_0/inner_group_0/attention_1|layer_0/attention)/self/query/kernel"
    )
    (name,) = filter(stored.fullmatch, tensors)
    np.testing.assert_array_equal(tensors[name], query)  # [in, out] there too
    for key in list(tensors):
        tensors[f"{key}/adam_m"] = tensors[f"{key}/adam_v"] = tensors[key]
    tensors |= {
        "global_step": np.array(7),
        "cls/seq_relationship/output_weights": np.zeros((2, 16)),
    }
    again = parameters_from(
        {
            key: StoredTensor(value.shape, lambda value=value: value)
            for key, value in tensors.items()
        },
        parameter_shapes(config, Bert.PARTS),
        table(config, "tensorflow"),
        place=lambda path, array: array,
        file="bert_model.ckpt",
    )
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_formats_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"XLM-R .*'tensorflow'"):
        table(load("xlm_roberta").config, "tensorflow")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"num_attention_heads": 3}, "hidden_size 16 is no multiple of num_attention_heads 3"),
        ({"model_type": "electra"}, "no field 'embedding_size'"),
        ({"model_type": "albert", "embedding_size": 8, "inner_group_num": 2}, "inner_group_num"),
        (
            {"model_type": "albert", "embedding_size": 8, "num_hidden_groups": 3},
            "num_hidden_groups is 3",
        ),
    ],
)
def test_configs_of_what_is_not_implemented_are_refused(changes, message):
    found = json.loads((FAMILIES / "bert" / "config.json").read_text()) | changes
    with pytest.raises(ValueError, match=f"here/config.json.* {message}"):
        read_config(Fields(found, "here/config.json"))


def test_configs_lacking_a_field_are_refused():
    found = json.loads((FAMILIES / "bert" / "config.json").read_text())
    del found["intermediate_size"]
    with pytest.raises(ValueError, match=r"here/config.json has no field 'intermediate_size'"):
        read_config(Fields(found, "here/config.json"))


@pytest.mark.parametrize("name", NAMES)
def test_configs_survive_writing(name):
    config = load(name).config
    assert read_config(Fields(write_config(config), "config.json")) == config
    assert config.model_type in FAMILY.model_types


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_packed_equals_separate_rows(name, pack):
    bert, params = Bert(load(name).config), load(name).params
    tokens, positions, segments = pack(PACKED, 20)
    types = (positions > 1).astype(np.int32) if name == "albert" else None
    packed = hidden_of(bert, params, tokens, positions, segments, types)
    # The same texts, for they are drawn in order, each in a row of its own.
    batch = pack([[length] for row in PACKED for length in row], 11)
    apart = hidden_of(bert, params, *batch, None if types is None else (batch[1] > 1).astype(int))
    for segment in range(1, segments.max() + 1):
        np.testing.assert_array_equal(tokens[segments == segment], batch[0][batch[2] == segment])
        expected = apart[batch[2] == segment]
        np.testing.assert_allclose(packed[segments == segment], expected, rtol=0, atol=1e-5)


def test_changing_one_segment_leaves_the_others_bit_equal(pack):
    bert, params = Bert(load("bert").config), load("bert").params
    tokens, positions, segments = pack(PACKED, 20)
    changed = np.where(segments == 2, (tokens + 7) % 40, tokens)
    before, after = (
        hidden_of(bert, params, each, positions, segments) for each in (tokens, changed)
    )
    before, after = np.asarray(before), np.asarray(after)
    np.testing.assert_array_equal(before[segments != 2], after[segments != 2])
    assert np.all(np.any(before[segments == 2] != after[segments == 2], axis=-1))


def test_a_later_token_changes_earlier_positions(pack):
    bert, params = Bert(load("bert").config), load("bert").params
    tokens, positions, segments = pack([[20], [20]], 20)
    changed = tokens.copy()
    changed[:, 19] = (changed[:, 19] + 7) % 40
    before, after = (
        hidden_of(bert, params, each, positions, segments) for each in (tokens, changed)
    )
    assert np.all(np.any(np.asarray(before != after), axis=-1))


def gradient(bert: Bert, params: dict, batch: tuple, rng=None) -> dict:
    """Gradient of a sum over real positions in the backbone's parameters."""

    random = {} if rng is None else {"deterministic": False, "rngs": {"dropout": rng}}

    def loss(params):
        hidden = bert.apply({"params": params}, *batch, **random)
        return jnp.sum(jnp.sin(hidden.astype(jnp.float32)) * (batch[2] > 0)[..., None])

    return jax.jit(jax.grad(loss))(params)


def test_padding_is_finite_and_gives_no_gradient(pack):
    config, params = load("bert").config, load_pretrained(FAMILIES / "bert").params
    batch = pack([PACKED[0], []], 20)  # the second row holds nothing else
    assert np.all(np.isfinite(hidden_of(Bert(config), params, *batch)))
    found = gradient(Bert(config), params, batch)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    rows_V = np.any(np.asarray(found["embedder"]["embedding"]) != 0, axis=-1)
    assert rows_V[np.unique(batch[0])[1:]].all()
    assert not rows_V[0]  # the token of padding, which the texts don't have


def test_remat_changes_nothing_with_dropout(pack):
    config, batch = load("bert").config, pack(PACKED, 20)
    params = load_pretrained(FAMILIES / "bert").params
    rng = jax.random.key(3)
    plain, *others = (
        gradient(Bert(config, remat=remat, dropout=0.2), params, batch, rng)
        for remat in ("none", *layers.REMAT)
    )
    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    for other in others:
        jax.tree.map(same, plain, other)


def test_dropout_needs_an_rng_and_rests_when_deterministic(pack):
    config, params, batch = load("bert").config, load("bert").params, pack(PACKED, 20)
    bert = Bert(config, dropout=0.2)
    np.testing.assert_array_equal(
        hidden_of(bert, params, *batch), hidden_of(Bert(config), params, *batch)
    )
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        bert.apply({"params": params}, *batch, deterministic=False)


@pytest.mark.parametrize("narrow", [True, False])  # on CPUs, on accelerators
def test_bfloat16_is_near_float32(pack, monkeypatch, narrow):
    monkeypatch.setattr(layers, "is_narrow", lambda dtype: narrow and dtype == jnp.bfloat16)
    jax.clear_caches()  # which know nothing of that
    config, params = load("bert").config, load("bert").params
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    batch = pack(PACKED, 20)
    found = hidden_of(Bert(config, dtype=jnp.bfloat16), stored, *batch)
    assert found.dtype == (jnp.float32 if narrow else jnp.bfloat16)
    expected = hidden_of(Bert(config), params, *batch)
    assert np.mean(np.abs(found.astype(jnp.float32) - expected)) < 0.03


def test_ids_outside_their_table_give_nan():
    config, params = load("roberta").config, load("roberta").params
    one = np.ones((1, 1), np.int32)
    assert config.max_length == 22  # of 24, behind the id of padding

    def is_nan(token, position, kind):
        batch = (token * one, position * one, one, kind * one)
        return np.all(np.isnan(hidden_of(Bert(config), params, *batch)))

    assert not is_nan(config.vocab_size - 1, config.max_length - 1, config.num_types - 1)
    assert is_nan(config.vocab_size, 0, 0)
    assert is_nan(0, config.max_length, 0)
    assert is_nan(0, 0, config.num_types)


def test_shared_layers_are_one_tensor_and_learn_from_every_use(pack):
    config = dataclasses.replace(load("albert").config, num_distinct_layers=1, num_layers=2)
    shapes = parameter_shapes(config)
    assert [name for name in shapes if name.startswith("layer_")] == ["layer_0"]
    params = {name: load("albert").params[name] for name in shapes}
    batch = pack(PACKED, 20)
    untied = dataclasses.replace(config, num_distinct_layers=2)
    copies = params | {f"layer_{i}": params["layer_0"] for i in range(2)}
    shared = gradient(Bert(config), params, batch)["layer_0"]
    apart = gradient(Bert(untied), copies, batch)
    summed = jax.tree.map(lambda *each: sum(each), *(apart[f"layer_{i}"] for i in range(2)))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), shared, summed
    )


def test_regex_tables_catch_the_whole_input():
    for name in NAMES:
        config = load(name).config
        tops = {path.split("/")[0] for path in flatten(parameter_shapes(config))}
        assert all(top.startswith(("embedder", "layer_")) for top in tops)
