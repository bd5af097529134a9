"""Reads PyTorch's .bin files without PyTorch, and without running the code in their pickle.

A .bin file is a pickle, that is a program: loading one may run anything. Here the pickle may only
call what state dicts are made of, a closed list of names that stand for inert functions of this
module; any other name is rejected before a call. Both layouts are read: the zip archive that
PyTorch writes since 1.6, and the older stream of pickles, the layout of most Chinese checkpoints
of 2019 and 2020. Storages aren't copied but mapped from the file.
Layouts: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py.
"""

import collections
import functools
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from models.pretrained.files import mapped, truncated
from models.pretrained.tables import StoredTensor, listing

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the old layout
_LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name and extra field
# What pickle and zipfile raise on damaged bytes.
_DAMAGES = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, zlib.error)
_DAMAGES += (AttributeError, EOFError, LookupError, MemoryError, OSError, OverflowError)
_DAMAGES += (RuntimeError, TypeError, ValueError)
_STORAGES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _RefusedError(ValueError):
    """An error whose message is complete, unlike those of damaged bytes."""


class _Storage(NamedTuple):
    """A storage as the pickle describes it; where its bytes are is known later."""

    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuild:
    """Replaces PyTorch's functions that build tensors and parameters; gradients and hooks are lost.

    An object without attributes, since a pickle may set those of whatever it holds.
    """

    __slots__ = ()

    def __call__(self, source: Any, *view: Any) -> _Tensor:
        """Returns a view, after a check that it lies within its storage."""
        if isinstance(source, _Tensor):
            return source  # a parameter is its tensor
        offset, shape, strides, *_ = view
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise pickle.UnpicklingError(f"tensor of shape {shape} and strides {strides}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and last >= source.count:
            raise pickle.UnpicklingError(f"tensor of {shape} in a storage of {source.count}")
        return _Tensor(source, offset, tuple(shape), tuple(strides))


_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _Rebuild(),
    "torch._utils._rebuild_tensor_v2": _Rebuild(),
    "torch._utils._rebuild_parameter": _Rebuild(),
    **{f"torch.{name}": name for name in _STORAGES},
}


class _Unpickler(pickle._Unpickler):
    """Unpickles a state dict to `_Tensor`s, and rejects everything that isn't part of one.

    Derived from the unpickler in Python: pickles of state dicts are small, and the one in C
    allocates as much memory as a damaged byte asks for.

    Attributes:
        storages: named by the pickle, by key.
    """

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file, encoding="utf-8")
        self._path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a global here."""
        if (path := f"{module}.{name}") not in _ALLOWED:
            raise _RefusedError(
                f"{self._path} is refused: its pickle calls {path}, which no file of weights needs "
                "and which could run any code. Nothing was run. Get the weights as safetensors; if "
                "you trust the source, convert with torch.load and safetensors.torch.save_file."
            )
        return _ALLOWED[path]

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns a storage; views of another storage, long out of use, are rejected."""
        match pid:
            case ("storage", str(kind), str(key), _, int(count), *view) if not any(view):
                storage = _Storage(key, np.dtype(_STORAGES[kind]), count)
                if count >= 0 and self.storages.setdefault(key, storage) == storage:
                    return storage
        raise pickle.UnpicklingError(f"reference of an unknown kind, {str(pid)[:80]}")


def read(path: Path) -> dict[str, StoredTensor]:
    """Reads the pickle of one .bin file; returns its tensors by name, still in the file.

    Raises:
        ValueError: the pickle calls a forbidden name, the file is truncated, damaged or no PyTorch
            file, or it holds something else than a dict of tensors.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            return _stored(*(_read_zip if is_zip else _read_stream)(file, path), path)
        except _RefusedError:
            raise
        except _DAMAGES as error:
            raise ValueError(
                f"{path} is truncated, damaged or no PyTorch file ({type(error).__name__}: "
                f"{error}): found {path.stat().st_size:,} bytes. Delete it and fetch it again."
            ) from None


def _stored(state: Any, offsets: Mapping[str, int], path: Path) -> dict[str, StoredTensor]:
    """Turns an unpickled state dict into tensors that can be read."""
    if not isinstance(state, Mapping):
        raise _RefusedError(f"{path} holds no dict of tensors but a {type(state).__name__}")
    if rest := [str(key) for key, value in state.items() if not isinstance(value, _Tensor)]:
        raise _RefusedError(
            f"{path} holds more than tensors: {listing(rest)}. Save the model's state_dict() alone."
        )
    return {
        name: StoredTensor(
            tensor.shape,
            functools.partial(_read_tensor, path, tensor, offsets[tensor.storage.key]),
            path,
        )
        for name, tensor in state.items()
    }


def _read_zip(file: BinaryIO, path: Path) -> tuple[Any, dict[str, int]]:
    """Reads data.pkl; returns its object, and where each storage starts in the file."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise _big_endian(path)
        with archive.open(entries["data.pkl"]) as pickled:
            unpickler = _Unpickler(pickled, path)
            state, offsets = unpickler.load(), {}
    for key, storage in unpickler.storages.items():
        entry = entries[f"data/{key}"]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _RefusedError(
                f"{path}: entry {entry.filename} is compressed, which PyTorch never does: unpack "
                "the archive and zip it again without compression (zip -0)"
            )
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offsets[key] = entry.header_offset + _LOCAL_HEADER + names
        size = storage.count * storage.dtype.itemsize
        if entry.file_size != size or offsets[key] + size > path.stat().st_size:
            raise pickle.UnpicklingError(f"{entry.filename} doesn't hold {storage}")
    return state, offsets


def _read_stream(file: BinaryIO, path: Path) -> tuple[Any, dict[str, int]]:
    """Reads the layout before 1.6: pickles one after the other, then the storages' bytes."""
    magic = _Unpickler(file, path).load()
    if magic != _MAGIC:
        raise pickle.UnpicklingError(f"it starts with {str(magic)[:40]!r}")
    _, system = _Unpickler(file, path).load(), _Unpickler(file, path).load()
    if not system["little_endian"]:
        raise _big_endian(path)
    unpickler = _Unpickler(file, path)
    state, keys, offsets = unpickler.load(), _Unpickler(file, path).load(), {}
    position = file.tell()
    for key in keys:  # each: int64 number of elements, and the elements
        storage = unpickler.storages[key]
        offsets[key] = position + 8
        position = offsets[key] + storage.count * storage.dtype.itemsize
        if position > path.stat().st_size:
            raise _RefusedError(str(truncated(path, position, at_least=key != keys[-1])))
    return state, offsets


def _read_tensor(path: Path, tensor: _Tensor, start: int) -> np.ndarray:
    """Maps the elements from the first to the last of a view; strides select among them."""
    dtype, shape = tensor.storage.dtype, tensor.shape
    if 0 in shape:
        return np.zeros(shape, dtype)
    count = 1 + sum((n - 1) * step for n, step in zip(shape, tensor.strides, strict=True))
    flat = mapped(path, dtype, (count,), start + tensor.offset * dtype.itemsize)
    steps = tuple(step * dtype.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


def _big_endian(path: Path) -> _RefusedError:
    return _RefusedError(f"{path} was written on a big-endian machine: save it anew on another")
