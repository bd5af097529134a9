"""Reading and writing checkpoints: parity, round trips, completeness, damage."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy as official
from hypothesis import given
from hypothesis import strategies as st

from models.decoder import Decoder
from models.pretrained import (
    files,
    load_pretrained,
    open_checkpoint,
    resolve,
    tables,
    write_pretrained,
)
from models.pretrained.families import FAMILIES

FIXTURES = Path(__file__).parents[1] / "fixtures"


def assert_trees_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny Hugging Face folder, to be changed."""
    return shutil.copytree(tiny_folder, tmp_path / "folder")


@pytest.fixture
def bert_folder(tmp_path):
    """A copy of a folder of BERT with its pooler and masked-language-model head."""
    return shutil.copytree(FIXTURES / "families" / "bert", tmp_path / "bert")


def change_tensors(folder, change):
    """Rewrites model.safetensors with `change` applied to the dict of its arrays."""
    path = folder / "model.safetensors"
    tensors = official.load_file(path)
    change(tensors)
    official.save_file(tensors, path)


def change_config(folder, *, drop=(), **changes):
    path = folder / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if key not in drop}))


def test_tiny_logits_equal_transformers(tiny, tiny_folder):
    with np.load(tiny_folder / "golden.npz") as golden:
        tokens, expected = golden["tokens"], golden["logits"]
    assert tokens.shape[1] > 2 * max(tiny.config.windows)
    decoder = Decoder(tiny.config)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def logits_of(params):
        hidden = decoder.apply(params, tokens, positions, jnp.ones_like(tokens))
        return decoder.apply(params, hidden, method="logits")

    np.testing.assert_allclose(logits_of({"params": tiny.params}), expected, rtol=0, atol=1e-4)


def test_written_folder_loads_back_equal(tiny, tmp_path):
    write_pretrained(tmp_path / "new" / "model", tiny.config, tiny.params)
    again = load_pretrained(tmp_path / "new" / "model")
    assert again.config == tiny.config
    assert_trees_equal(again.params, tiny.params)
    names = sorted(path.name for path in (tmp_path / "new" / "model").iterdir())
    assert names == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("changes", [{"post_norms": False}, {"embedding_scale": 1.0}])
def test_a_config_without_a_place_in_the_format_is_not_written(make_config, tmp_path, changes):
    with pytest.raises(ValueError, match=f"can't be written with {next(iter(changes))}"):
        write_pretrained(tmp_path / "model", make_config(**changes), {})
    assert not (tmp_path / "model").exists()


def test_parameters_without_a_place_in_the_format_are_not_written(tiny, tmp_path):
    params = tiny.params | {"head": {"kernel": np.zeros((32, 2))}}
    with pytest.raises(ValueError, match="head/kernel"):
        write_pretrained(tmp_path / "model", tiny.config, params)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_every_dtype_is_read_as_float32(tiny, folder, dtype):
    change_tensors(folder, lambda all_: all_.update({k: v.astype(dtype) for k, v in all_.items()}))
    params = load_pretrained(folder).params
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), params, tiny.params)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_value_that_is_not_finite_names_file_and_tensor(folder, dtype, value):
    def spoil(tensors):
        tensors |= {name: array.astype(dtype) for name, array in tensors.items()}
        tensors["model.layers.1.mlp.up_proj.weight"][-1, -1] = value

    change_tensors(folder, spoil)
    with pytest.raises(ValueError, match=r"up_proj\.weight holds 1 of [\d,]+ values") as error:
        load_pretrained(folder)
    assert str(error.value).startswith(f"{folder / 'model.safetensors'}: tensor model.layers.1.")


@given(
    st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]),
    st.lists(st.floats(width=16), max_size=20),
    st.integers(0, 3),
)
def test_values_that_are_not_finite_are_counted(dtype, values, blocks):
    array = np.array(values, dtype)
    padded = np.concatenate([np.full(blocks * files._BLOCK // 2, 2, dtype), array])
    assert files.count_not_finite(padded) == sum(not np.isfinite(value) for value in values)
    assert files.count_not_finite(padded[::-1][:, None]) == files.count_not_finite(array)
    assert files.count_not_finite(np.arange(3)) == files.count_not_finite(np.zeros((0, 4))) == 0


def test_shards_are_read_as_one(tiny, folder):
    tensors = official.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[:20], "model-2-of-2.safetensors": names[20:]}
    for shard, held in shards.items():
        official.save_file({name: tensors[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    assert_trees_equal(load_pretrained(folder).params, tiny.params)
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-2-of-2\.safetensors is missing"):
        load_pretrained(folder)


def test_parts_are_read_where_they_are_asked_for(bert_folder):
    checkpoint = open_checkpoint(bert_folder)
    assert checkpoint.parts == ("pooler", "mlm_head")
    assert {"pooler", "mlm_head"}.isdisjoint(checkpoint.read())
    assert {"pooler"} == checkpoint.read(["pooler"]).keys() - checkpoint.read().keys()
    change_tensors(bert_folder, lambda all_: all_.pop("bert.pooler.dense.bias"))
    checkpoint = open_checkpoint(bert_folder)
    assert checkpoint.parts == ("mlm_head",)
    with pytest.raises(ValueError, match="doesn't hold pooler; beside its backbone .* mlm_head"):
        checkpoint.read(["pooler"])


def test_headers_hold_special_ids_and_format(folder):
    change_config(folder, eos_token_id=[1, 106])
    checkpoint = open_checkpoint(folder)
    assert checkpoint.special_ids == {"bos": 2, "eos": 1, "pad": 0}
    assert (checkpoint.format, checkpoint.note) == ("huggingface", "")
    assert checkpoint.files == (folder / "config.json", folder / "model.safetensors")


def test_place_gets_views_of_the_file_in_its_dtype_and_decides_the_leaf(folder, tiny):
    def place(path, array):
        assert path.endswith("scale") or (array.dtype == ml_dtypes.bfloat16)
        assert path.endswith("scale") or not array.flags.owndata
        return path, np.array(array, np.float16)

    params = open_checkpoint(folder).read(place=place)
    path, value = params["layer_1"]["mlp"]["up"]["kernel"]
    assert path == "layer_1/mlp/up/kernel" and value.dtype == np.float16
    np.testing.assert_allclose(value, tiny.params["layer_1"]["mlp"]["up"]["kernel"], atol=1e-3)


def test_what_was_read_is_no_part_of_the_file(folder):
    change_tensors(folder, lambda all_: all_.update({k: v.astype("f4") for k, v in all_.items()}))
    params = load_pretrained(folder).params
    for leaf in jax.tree.leaves(params):
        assert leaf.flags.c_contiguous and leaf.flags.writeable and type(leaf) is np.ndarray


def test_the_official_library_reads_what_was_written(bert_folder, tmp_path):
    checkpoint = open_checkpoint(bert_folder)
    params = checkpoint.read(checkpoint.parts)
    write_pretrained(
        tmp_path / "new",
        checkpoint.config,
        params,
        architectures=["BertForMaskedLM"],
        fields={"id2label": {"0": "差"}},
    )
    expected = tables.tensors_from(
        params, checkpoint.family.table(checkpoint.config, "huggingface")
    )
    found = official.load_file(tmp_path / "new" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.astype(np.float32), strict=True)
    with official.safe_open(tmp_path / "new" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"] and config["id2label"] == {"0": "差"}
    assert (config["model_type"], config["dtype"]) == ("bert", "float32")


@pytest.mark.parametrize(
    ("family", "drop", "reason"),
    [
        ("bert", ("architectures",), "bert, for it has type_vocab_size"),
        ("albert", ("architectures",), "albert, for it has embedding_size and num_hidden_groups"),
        ("electra", ("architectures",), "electra, for it has embedding_size and type_vocab_size"),
        ("roberta", (), "roberta, for its architectures name Roberta"),
        ("xlm_roberta", (), "xlm-roberta, for its architectures name XLMRoberta"),
    ],
)
def test_configs_older_than_model_type_are_read_by_their_fields(tmp_path, family, drop, reason):
    original = FIXTURES / "families" / family
    folder = shutil.copytree(original, tmp_path / "old")
    change_config(folder, drop=("model_type", *drop))
    checkpoint = open_checkpoint(folder)
    assert f"{folder / 'config.json'} has no model_type; read as {reason}" in checkpoint.note
    assert checkpoint.config == open_checkpoint(original).config
    assert_trees_equal(checkpoint.read(), load_pretrained(original).params)


def test_an_unknown_architecture_gets_the_list_of_what_is_supported(folder):
    change_config(folder, model_type="mamba", architectures=["MambaForCausalLM"])
    with pytest.raises(ValueError) as error:
        open_checkpoint(folder)
    for part in ("config.json", "'mamba'", "MambaForCausalLM"):
        assert part in str(error.value)
    for model_type in ("bert", "xlm-roberta", "llama", "qwen3", "umt5"):
        assert model_type in str(error.value)
    assert all(name in str(error.value) for each in FAMILIES for name in each.model_types)
    change_config(folder, drop=("model_type", "architectures"))
    with pytest.raises(ValueError, match="has no field 'model_type'.*Supported model_type: bert"):
        open_checkpoint(folder)


def test_a_config_that_lacks_a_field_names_it(bert_folder):
    change_config(bert_folder, drop=("hidden_size",))
    with pytest.raises(ValueError, match=r"config.json has no field 'hidden_size': use the config"):
        open_checkpoint(bert_folder)
    (bert_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        open_checkpoint(bert_folder)


@pytest.mark.parametrize("size", [31, 33])
def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(folder, size):
    change_config(folder, vocab_size=size)
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    for part in ("model.embed_tokens.weight", f"vocab_size says {size}, the embedding has 64 rows"):
        assert part in str(error.value)


def test_an_index_that_promises_more_than_its_shards_hold_is_refused(folder):
    weight_map = dict.fromkeys(official.load_file(folder / "model.safetensors"), "all.safetensors")
    (folder / "model.safetensors").rename(folder / "all.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map | {"model.more": "all.safetensors"}}))
    with pytest.raises(ValueError, match="index.json names tensors .* don't hold: model.more"):
        load_pretrained(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="index.json has no field 'weight_map'"):
        load_pretrained(folder)


def test_missing_and_unknown_tensors_are_both_listed(folder):
    def rename(tensors):
        tensors["model.norm.wieght"] = tensors.pop("model.norm.weight")

    change_tensors(folder, rename)
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    assert "without a parameter: model.norm.wieght" in str(error.value)
    assert "without a tensor: final_norm/scale" in str(error.value)


def test_a_misfit_names_tensor_shapes_and_remedy(folder):
    change_config(folder, intermediate_size=40)
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    for part in (
        "model.layers.0.mlp.down_proj.weight",
        "(32, 48), expected (32, 40)",
        "layer_0/mlp/down/kernel",
        "use the one saved with the weights",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("keep", [0, 6, 40, 900, -1])
def test_a_truncated_file_gives_one_error_with_its_size(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    message = str(error.value)
    assert str(path) in message and f"found {len(data[:keep]):,} bytes" in message
    assert "expected" in message and "Delete it and fetch it again" in message
    assert error.value.__cause__ is None and error.value.__suppress_context__


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_named_as_one(folder, name):
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=f"{name} is a pointer left by git lfs.*'git lfs pull'"):
        load_pretrained(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        resolve(str(tmp_path / "nowhere.gguf"))
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_pretrained(tmp_path)
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match=r"'.h5', expected .gguf or .bin, or a folder"):
        load_pretrained(tmp_path / "weights.h5")


def test_a_folder_without_weights_says_what_it_has(folder):
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(FileNotFoundError) as error:
        load_pretrained(folder)
    for part in ("model.safetensors is missing", "pytorch_model.bin", "tf_model.h5"):
        assert part in str(error.value)


def test_the_fingerprint_changes_with_the_weights(folder, tiny):
    assert load_pretrained(folder).fingerprint == tiny.fingerprint
    change_tensors(folder, lambda all_: all_["model.norm.weight"].fill(0))
    assert load_pretrained(folder).fingerprint != tiny.fingerprint
