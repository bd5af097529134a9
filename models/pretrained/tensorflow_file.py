"""Reads TensorFlow checkpoints (bert_model.ckpt.index and .data-*) without TensorFlow.

The index is a table of sorted keys in LevelDB's format. Its values are protocol buffers with the
place of a tensor in the data files. Tensors are mapped.
Sources: tensorflow/core/protobuf/tensor_bundle.proto and
https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from models.pretrained.files import mapped, refuse_pointer, truncated
from models.pretrained.tables import StoredTensor

_FOOTER, _MAGIC = 48, (0xDB4775248B80FB57).to_bytes(8, "little")
# Numbers of tensorflow/core/framework/types.proto.
_DTYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    14: ml_dtypes.bfloat16,
    19: np.float16,
}


def read(index: Path) -> tuple[dict[str, StoredTensor], list[Path]]:
    """Reads the index of a checkpoint.

    Args:
        index: the file PREFIX.index; PREFIX.data-00000-of-00001 and so on lie beside it.

    Returns:
        Tensors by name, and the data files.

    Raises:
        FileNotFoundError: a data file is missing.
        ValueError: a file is truncated or of another format, or a tensor is stored in slices of a
            partitioned variable.
    """
    data = index.read_bytes()
    if data[-8:] != _MAGIC:
        raise ValueError(
            f"{index} is no TensorFlow index or truncated: found {len(data):,} bytes without its "
            "end mark. Delete it and fetch it again."
        )
    try:
        # Keys that start with a zero byte are of slices; the variable's entry lists them.
        entries = {key: _fields(value) for key, value in _entries(data, index) if key[:1] != b"\0"}
        header = entries.pop(b"")
        files = _data_files(index, header.get(1, [0])[0])
        if header.get(2, [0])[0]:
            raise ValueError(f"{index} was written on a big-endian machine: save it anew")
        names = {key.decode(): entry for key, entry in entries.items()}
        stored = {name: _tensor(name, entry, files, index) for name, entry in names.items()}
    except (DecodeError, LookupError, TypeError, UnicodeDecodeError):
        raise ValueError(f"{index} is damaged: delete it and fetch it again") from None
    return stored, files


def _tensor(name: str, entry: dict[int, list], files: list[Path], index: Path) -> StoredTensor:
    """Reads a BundleEntryProto: dtype 1, shape 2, shard 3, offset 4, size 5, slices 7."""
    if 7 in entry:
        raise ValueError(
            f"{index}: tensor {name} is stored in slices of a partitioned variable, which can't "
            "be read: save the checkpoint without partitioning"
        )
    code, shard, offset, size = (entry.get(field, [0])[0] for field in (1, 3, 4, 5))
    dimensions = _fields(entry[2][0]).get(2, []) if 2 in entry else []
    shape = tuple(_fields(dimension).get(1, [0])[0] for dimension in dimensions)
    if code not in _DTYPES:  # strings and the like: listed, never read as weights
        return StoredTensor(shape, functools.partial(_refuse, name, code, index))
    dtype = np.dtype(_DTYPES[code])
    if size != math.prod(shape) * dtype.itemsize:
        raise KeyError(name)
    file = files[shard]
    if offset + size > file.stat().st_size:
        raise truncated(file, offset + size, at_least=True)
    return StoredTensor(shape, functools.partial(mapped, file, dtype, shape, offset), file)


def _data_files(index: Path, count: int) -> list[Path]:
    prefix = index.name.removesuffix(".index")
    files = [index.with_name(f"{prefix}.data-{i:05}-of-{count:05}") for i in range(count)]
    if missing := [str(file) for file in files if not file.exists()]:
        raise FileNotFoundError(
            f"{', '.join(missing)} is missing: {index.name} names {count} data files; copy them all"
        )
    for file in files:
        refuse_pointer(file)
    return files


def _refuse(name: str, code: int, index: Path) -> np.ndarray:
    raise ValueError(
        f"{index}: tensor {name} has TensorFlow's dtype {code}, which holds no weights"
    )


def _entries(data: bytes, index: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields all keys and values of a table, whose footer holds the place of its list of blocks."""
    footer = data[-_FOOTER:]
    _, position = _handle(footer, 0)  # of the meta index, which is empty
    (offset, size), _ = _handle(footer, position)
    for _, handle in _block(data, offset, size, index):
        yield from _block(data, *_handle(handle, 0)[0], index)


def _block(data: bytes, offset: int, size: int, index: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a block; a stored key leaves out what it shares with the last.

    After the entries come offsets for binary search and, in the last 4 bytes, their number.
    """
    if data[offset + size]:
        raise ValueError(f"{index} is compressed, which TensorFlow doesn't do: save it anew")
    end = offset + size - 4
    end -= 4 * int.from_bytes(data[end : end + 4], "little")
    key = b""
    while offset < end:
        shared, offset = _varint(data, offset)
        fresh, offset = _varint(data, offset)
        length, offset = _varint(data, offset)
        key = key[:shared] + data[offset : offset + fresh]
        offset += fresh + length
        yield key, data[offset - length : offset]


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Reads a block's offset and size; returns them and the position behind."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a number of 7 bits a byte, lowest first; returns it and the position behind."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _fields(message: bytes) -> dict[int, list]:
    """Parses a protocol buffer one level deep: numbers, or bytes, by field number."""
    # To a message without fields, all fields are unknown ones.
    unknown = Empty.FromString(message)
    fields: dict[int, list] = {}
    for field in UnknownFieldSet(unknown):
        fields.setdefault(field.field_number, []).append(field.data)
    return fields
