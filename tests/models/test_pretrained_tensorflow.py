"""TensorFlow checkpoints, written by TensorFlow and read without it."""

import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from models.pretrained import open_checkpoint, tables, tensorflow_file

BERT = Path(__file__).parents[1] / "fixtures" / "families" / "bert"


def write(prefix, arrays):
    names = list(arrays)
    slices = [""] * len(names)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=slices,
        tensors=[tf.constant(arrays[name]) for name in names],
    )


def values(index):
    return {name: tensor.read() for name, tensor in tensorflow_file.read(index)[0].items()}


@pytest.fixture
def arrays():
    """Arrays of every dtype, names that share beginnings, more than one block of the table."""
    rng = np.random.default_rng(0)
    dtypes = ("f4", "f8", "f2", "i4", "i8", "i2", "i1", "u1", "?", ml_dtypes.bfloat16)
    arrays = {f"a/{i}": rng.normal(size=(3, i)).astype(d) for i, d in enumerate(dtypes)}
    arrays |= {
        f"bert/encoder/layer_{i}/attention/output/dense/kernel/adam_m_{'x' * 60}": rng.normal(
            size=(2, 2)
        ).astype("f4")
        for i in range(200)
    }
    return arrays


def test_every_tensor_is_read_back_to_the_bit(tmp_path, arrays):
    arrays["global_step"] = np.int64(2**40)
    write(tmp_path / "model.ckpt", arrays)
    found = values(tmp_path / "model.ckpt.index")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_several_data_files_are_read_as_one_and_a_missing_one_is_named(tmp_path, arrays):
    names = sorted(arrays)
    prefixes = [str(tmp_path / part) for part in ("one", "two")]
    for prefix, part in zip(prefixes, (names[::2], names[1::2]), strict=True):
        write(prefix, {name: arrays[name] for name in part})
    target = str(tmp_path / "model.ckpt")
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=target, delete_old_dirs=False
    )
    stored, files = tensorflow_file.read(tmp_path / "model.ckpt.index")
    assert [file.name[-14:] for file in files] == ["00000-of-00002", "00001-of-00002"]
    assert stored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name].read(), array, strict=True)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match="data-00001-of-00002 is missing.* 2 data files"):
        tensorflow_file.read(tmp_path / "model.ckpt.index")


@pytest.fixture
def folder(tmp_path):
    """BERT's folder as Google released it: bert_config.json without model_type, bert_model.ckpt."""
    checkpoint = open_checkpoint(BERT)
    table = checkpoint.family.table(checkpoint.config, "tensorflow")
    tensors = tables.tensors_from(checkpoint.read(checkpoint.parts), table)
    moments = {f"{name}/adam_m": np.zeros_like(tensor) for name, tensor in tensors.items()}
    write(tmp_path / "bert_model.ckpt", {**tensors, **moments, "global_step": np.int64(9)})
    text = (BERT / "config.json").read_text()
    dropped = ("model_type", "architectures")
    lines = [line for line in text.splitlines() if not any(f'"{key}"' in line for key in dropped)]
    lines = [line for line in lines if "BertFor" not in line and line.strip() != "],"]
    (tmp_path / "bert_config.json").write_text("\n".join(lines))
    return tmp_path


def test_a_folder_of_google_gives_the_parameters_of_safetensors(folder):
    checkpoint, expected = open_checkpoint(folder), open_checkpoint(BERT)
    assert checkpoint.format == "tensorflow" and checkpoint.parts == ("pooler", "mlm_head")
    assert "bert_config.json has no model_type; read as bert" in checkpoint.note
    assert checkpoint.config == expected.config
    params = checkpoint.read(checkpoint.parts)
    jax.tree.map(np.testing.assert_array_equal, params, expected.read(expected.parts))
    files = [file.name for file in checkpoint.files]
    assert files[1:] == ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"]


def test_a_value_that_is_not_finite_names_file_and_tensor(folder):
    data = folder / "bert_model.ckpt.data-00000-of-00001"
    data.write_bytes(b"\xff" * data.stat().st_size)
    with pytest.raises(ValueError, match=r"data-00000-of-00001: tensor bert/\S+ holds \d+ of"):
        open_checkpoint(folder).read()


def test_safetensors_go_before_tensorflow(folder):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BERT / name, folder)
    assert open_checkpoint(folder).format == "huggingface"


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file_is_named(folder, keep):
    data = folder / "bert_model.ckpt.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=f"{data} is truncated: found {len(whole[:keep]):,} bytes"):
        open_checkpoint(folder)
    data.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="data-00000-of-00001 is a pointer left by git lfs"):
        open_checkpoint(folder)
    data.write_bytes(whole)
    index = folder / "bert_model.ckpt.index"
    index.write_bytes(index.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{index} is no TensorFlow index or truncated"):
        open_checkpoint(folder)


def test_strings_are_named_only_when_they_would_be_weights(tmp_path):
    write(tmp_path / "m", {"weight": np.ones(2, "f4"), "_CHECKPOINTABLE_OBJECT_GRAPH": b"proto"})
    stored, _ = tensorflow_file.read(tmp_path / "m.index")
    np.testing.assert_array_equal(stored["weight"].read(), np.ones(2))
    with pytest.raises(ValueError, match="_CHECKPOINTABLE_OBJECT_GRAPH has TensorFlow's dtype 7"):
        stored["_CHECKPOINTABLE_OBJECT_GRAPH"].read()


def test_slices_of_a_partitioned_variable_are_refused(tmp_path):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"),
        tensor_names=["table"],
        shape_and_slices=["4 2 0,2:0,2"],
        tensors=[tf.ones([2, 2])],
    )
    with pytest.raises(ValueError, match="tensor table is stored in slices"):
        tensorflow_file.read(tmp_path / "m.index")
