"""GGUF files: the same parameters as from safetensors, dequantisation, refusal of what is odd."""

import gguf
import jax
import numpy as np
import pytest

from models.layers import Rope
from models.pretrained import decoder, load_pretrained, open_checkpoint, tables

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


@pytest.fixture
def write_gguf(tiny, tmp_path):
    """Writes the tiny model as GGUF; Q8_0 where rows allow and it is asked for."""

    def write(
        *,
        header=HEADER,
        drop=(),
        add=(),
        architecture="gemma3",
        quantised=False,
        pieces=64,
        ids=None,
    ):
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_token_list(["<pad>", *map(str, range(1, pieces))])
        writer.add_token_scores([0.0] * pieces)
        for key, value in (ids or {}).items():
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
        for key, value in header.items():
            write_value = writer.add_uint32 if isinstance(value, int) else writer.add_float32
            write_value(f"{architecture}.{key}", value)
        tensors = tables.tensors_from(tiny.params, decoder.FAMILY.table(tiny.config, "gguf"))
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


def test_gguf_and_safetensors_give_the_same_parameters(tiny, write_gguf):
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(write_gguf()).params, tiny.params)


def test_gguf_metadata_gives_the_config(write_gguf):
    config = load_pretrained(write_gguf()).config
    assert config.windows == (7, 7, 7) and config.ropes == (Rope(base=1e4),) * 3
    assert (config.vocab_size, config.width, config.hidden) == (64, 32, 48)
    assert config.attention_scale == 8**-0.5


def test_quantised_tensors_are_dequantised(tiny, write_gguf):
    params = load_pretrained(write_gguf(quantised=True)).params
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, tiny.params)
    # Q8_0 stores 127 steps up to the largest of each 32 values.
    assert 0 < errors["embedder"]["embedding"] < 1 / 127
    assert 0 < errors["layer_1"]["attention"]["query"]["kernel"] < 1 / 127
    assert errors["final_norm"]["scale"] == 0


def test_a_scale_of_a_block_that_is_not_finite_names_file_and_tensor(tiny, write_gguf, monkeypatch):
    broken = np.full((32, 48), np.inf, np.float32)
    monkeypatch.setitem(tiny.params["layer_1"]["mlp"]["up"], "kernel", broken)
    with np.errstate(invalid="ignore"):
        path = write_gguf(quantised=True)
    with pytest.raises(ValueError, match=r"^\S*tiny\.gguf: tensor blk\.1\.ffn_up\.weight holds"):
        load_pretrained(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "mamba"}, "'mamba' is not supported. .* GGUF: .*gemma3 .Gemma 3."),
        ({"header": HEADER | {"logit_scale": 8.0}}, "unknown, .* .'logit_scale'"),
        ({"drop": ("blk.1.ffn_up.weight",)}, "without a tensor: layer_1/mlp/up/kernel"),
        ({"add": (("odd", np.ones(32, np.int32)),)}, "odd has type 26, which the installed gguf"),
        ({"drop": ("token_embd.weight",)}, "has no tensor token_embd.weight"),
        ({"header": HEADER | {"block_count": 2}}, "without a parameter: blk.2.attn_k.weight"),
        ({"header": HEADER | {"feed_forward_length": 40}}, r"\(48, 32\), expected \(40, 32\)"),
    ],
)
def test_a_gguf_that_is_not_exactly_the_model_is_refused(write_gguf, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(write_gguf(**arguments))


@pytest.mark.parametrize("pieces", [63, 65])
def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(write_gguf, pieces):
    message = f"tokenizer.ggml.tokens has {pieces} pieces, but token_embd.weight has 64 rows"
    with pytest.raises(ValueError, match=message):
        load_pretrained(write_gguf(pieces=pieces))


def test_special_ids_are_those_of_the_header(write_gguf):
    ids = {"bos_token_id": 2, "padding_token_id": 0, "seperator_token_id": 3}
    assert open_checkpoint(write_gguf(ids=ids)).special_ids == {"bos": 2, "pad": 0, "sep": 3}


@pytest.mark.parametrize("keep", [6, 40, 900, -1])
def test_a_truncated_file_gives_one_error_with_both_sizes(write_gguf, keep):
    path = write_gguf()
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(ValueError) as error:
        load_pretrained(path)
    message = str(error.value)
    assert str(path) in message and f"found {len(data[:keep]):,} bytes" in message
    assert "expected" in message and "Delete it and fetch it again" in message
    if keep == -1:
        assert f"expected {len(data):,}." in message
    assert error.value.__cause__ is None and error.value.__context__ is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a GGUF file"), (b"version https://git-lfs.github.com/spec/v1", "git lfs pull")],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path / "model.gguf")
