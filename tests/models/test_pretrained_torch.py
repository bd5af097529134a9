"""PyTorch's .bin files: values of both layouts, folders of them, and refusal of programs."""

import builtins
import collections
import json
import os
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from models.pretrained import load_pretrained, open_checkpoint, torch_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
LAYOUTS = ("zip.bin", "stream.bin")  # as fixtures/make_torch_files.py wrote them


def values(path):
    return {name: tensor.read() for name, tensor in torch_file.read(path).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_has_the_values_that_pytorch_saved(layout):
    found = values(FIXTURES / "torch" / layout)
    dtypes = {"bfloat16": ml_dtypes.bfloat16} | {
        name: np.dtype(name)
        for name in ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8")
    }
    expected = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in dtypes.items()}
    shared = np.arange(24, dtype=np.float32)
    expected |= {
        "bool": np.array([True, False, True]),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "first": shared[:12].reshape(3, 4),
        "second": shared[12:].reshape(3, 4),
        "strided": shared.reshape(4, 6)[1:3, ::2],
        "broadcast": np.ones((2, 3), np.float32),
        "parameter": np.full((2, 2), 0.5, np.float32),
        "scalar": np.float32(7),
        "empty": np.zeros((0, 4), np.float32),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert not found[name].flags.writeable or name == "empty"
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


class Storage:
    def __init__(self, array, kind):
        self.array, self.kind = array, kind


class StatePickler(pickle.Pickler):
    """Writes arrays as PyTorch writes tensors; the names it uses needn't be PyTorch's own."""

    def __init__(self, file, torch):
        super().__init__(file, protocol=2)
        self.torch, self.storages = torch, []

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            self.storages.append(obj.array)
            return ("storage", obj.kind, str(len(self.storages) - 1), "cpu", obj.array.size)
        return None

    def reducer_override(self, obj):
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        storage = Storage(np.ascontiguousarray(obj), self.torch.FloatStorage)
        strides = tuple(step // 4 for step in storage.array.strides)
        rest = (False, collections.OrderedDict())
        return self.torch._utils._rebuild_tensor_v2, (storage, 0, obj.shape, strides, *rest)


@pytest.fixture
def save(monkeypatch):
    """A function that writes float32 arrays, and whatever else is given, as torch.save does."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild():
        raise AssertionError("only named, never called")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2, torch._utils = rebuild, utils
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})

    def write(path, state, *, compression=zipfile.ZIP_STORED):
        with (
            monkeypatch.context() as patch,
            zipfile.ZipFile(path, "w", compression) as archive,
        ):
            patch.setitem(sys.modules, "torch", torch)
            patch.setitem(sys.modules, "torch._utils", utils)
            with archive.open("archive/data.pkl", "w") as file:
                pickler = StatePickler(file, torch)
                pickler.dump(state)
            for key, array in enumerate(pickler.storages):
                archive.writestr(f"archive/data/{key}", array.tobytes())

    return write


@pytest.fixture
def folder(save, tmp_path):
    """BERT's folder, its weights as pytorch_model.bin, float32."""
    folder = shutil.copytree(FIXTURES / "families" / "bert", tmp_path / "bert")
    state = {name: x.astype("f4") for name, x in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    save(folder / "pytorch_model.bin", state)
    return folder, state


def test_a_folder_of_bin_gives_the_parameters_of_safetensors(folder):
    checkpoint = open_checkpoint(folder[0])
    expected = open_checkpoint(FIXTURES / "families" / "bert").read(("pooler", "mlm_head"))
    assert checkpoint.parts == ("pooler", "mlm_head")
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read(checkpoint.parts), expected)


def test_a_value_that_is_not_finite_names_file_and_tensor(folder, save):
    folder, state = folder
    name = "bert.encoder.layer.0.output.dense.weight"
    state[name][0, 5] = np.nan
    save(folder / "pytorch_model.bin", state)
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin: tensor {name} holds 1 of"):
        load_pretrained(folder)


def test_shards_of_bin_are_read_as_one_and_a_missing_one_is_named(folder, save):
    folder, state = folder
    before = load_pretrained(folder).params
    (folder / "pytorch_model.bin").unlink()
    weight_map = {}
    for i, part in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        save(folder / f"pytorch_model-{i}.bin", {name: state[name] for name in part})
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder).params, before)
    (folder / "pytorch_model-1.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-1.bin is missing.* 2 shards"):
        open_checkpoint(folder)


def test_safetensors_go_before_bin(folder):
    shutil.copy(FIXTURES / "families" / "bert" / "model.safetensors", folder[0])
    (folder[0] / "pytorch_model.bin").write_bytes(b"never looked at")
    assert [file.name for file in open_checkpoint(folder[0]).files][1:] == ["model.safetensors"]


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("position", ["state", "value", "stream"])
@pytest.mark.parametrize(
    ("call", "name"),
    [(os.system, "posix.system"), (builtins.exec, "__builtin__.exec|builtins.exec")],
)
def test_a_pickle_that_would_run_code_is_refused_and_nothing_is_run(
    save, tmp_path, position, call, name
):
    marker, path = tmp_path / "was_run", tmp_path / "pytorch_model.bin"
    code = f"touch {marker}" if call is os.system else f"open({str(marker)!r}, 'w')"
    evil = Evil(call, code)
    if position == "stream":
        path.write_bytes(pickle.dumps(evil))
    else:
        save(path, evil if position == "state" else {"weight": np.ones(2, "f4"), "evil": evil})
    with pytest.raises(ValueError, match=f"{path} is refused: its pickle calls ({name}).*Nothing"):
        torch_file.read(path)
    assert not marker.exists()
    with pytest.raises(ValueError, match="is refused"):  # the names that are allowed are whole
        path.write_bytes(b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.")
        torch_file.read(path)


@pytest.mark.parametrize("name", [b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage"])
def test_a_pickle_can_t_change_what_its_names_mean(tmp_path, name):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02c" + name + b"\n}U\x08__call__K\x01sb.")
    with pytest.raises(ValueError, match="damaged or no PyTorch file .AttributeError"):
        torch_file.read(path)
    path.write_bytes(b"\x80\x02c" + name + b"\nN}U\x08__call__K\x01s\x86b.")
    with pytest.raises(ValueError, match="damaged or no PyTorch file .AttributeError"):
        torch_file.read(path)


def test_a_view_that_leaves_its_storage_is_refused(save, tmp_path, monkeypatch):
    class Longer(StatePickler):
        def reducer_override(self, obj):
            reduced = super().reducer_override(obj)
            if reduced is NotImplemented:
                return reduced
            storage, _, shape, *rest = reduced[1]
            return reduced[0], (storage, 1, shape, *rest)

    monkeypatch.setitem(globals(), "StatePickler", Longer)
    save(tmp_path / "long.bin", {"weight": np.ones((2, 3), "f4")})
    with pytest.raises(ValueError, match=r"tensor of \(2, 3\) in a storage of 6"):
        torch_file.read(tmp_path / "long.bin")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0, 3, 100, 900, -1])
def test_a_truncated_file_is_named_with_its_size(tmp_path, layout, keep):
    data = (FIXTURES / "torch" / layout).read_bytes()[:keep]
    (tmp_path / layout).write_bytes(data)
    with pytest.raises(ValueError, match=f"{layout} is truncated.* found {len(data):,} bytes"):
        torch_file.read(tmp_path / layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_anywhere_is_read_or_refused_by_name(tmp_path, layout):
    path, rng = tmp_path / layout, np.random.default_rng(0)
    whole = np.frombuffer((FIXTURES / "torch" / layout).read_bytes(), np.uint8)
    refused = 0
    for _ in range(300):
        data = whole.copy()
        data[rng.integers(len(data), size=2)] = rng.integers(256, size=2)
        path.write_bytes(data.tobytes())
        try:
            tensors = torch_file.read(path).values()
            for tensor in tensors:
                tensor.read()
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(path))
    assert refused > 100


def test_what_holds_no_state_dict_is_told_so(save, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    save(path, {"weight": np.ones(2, "f4"), "epoch": 3})
    with pytest.raises(ValueError, match=r"more than tensors: epoch. Save the model's state_dict"):
        torch_file.read(path)
    save(path, [1, 2])
    with pytest.raises(ValueError, match="holds no dict of tensors but a list"):
        torch_file.read(path)
    save(path, {"weight": np.ones(2, "f4")}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="archive/data/0 is compressed"):
        torch_file.read(path)
