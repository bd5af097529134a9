"""Reads and writes .safetensors files.

Format: https://github.com/huggingface/safetensors#format. The header is parsed here, because the
library doesn't say how many bytes a truncated file has and lacks; and the file is written here,
because the library holds a second copy of all tensors. Called by folder.py, `write_pretrained` and
peft.py.
"""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from input_pipeline.files import replacing
from models.pretrained.files import mapped, truncated
from models.pretrained.tables import StoredTensor

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read(path: Path) -> dict[str, StoredTensor]:
    """Reads the header of one .safetensors file; returns its tensors by name.

    Raises:
        ValueError: truncated (naming bytes found and expected), no safetensors, or of an unknown
            dtype.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the format's own limit
            raise ValueError(f"{path} is not a safetensors file: fetch it again")
        if size < 8 + length:
            raise truncated(path, found=size, expected=8 + length, at_least=True)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            infos = {
                name: (info["dtype"], tuple(info["shape"]), int(start), int(end))
                for name, info in header.items()
                for start, end in [info["data_offsets"]]
            }
        except (ValueError, AttributeError, KeyError, TypeError):
            raise ValueError(
                f"{path} is no safetensors file, or damaged: its header is not what the format "
                "says. Delete it and fetch it again."
            ) from None
    expected = 8 + length + max((end for *_, end in infos.values()), default=0)
    if size < expected:
        raise truncated(path, found=size, expected=expected)
    stored = {}
    for name, (code, shape, start, end) in infos.items():
        if code not in _DTYPES:
            raise ValueError(
                f"{path}: tensor {name} has dtype {code}, expected one of {list(_DTYPES)}: convert "
                "the checkpoint to bfloat16"
            )
        dtype = _DTYPES[code]
        if end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"{path} is damaged: tensor {name} of shape {shape} takes {end - start} bytes. "
                "Delete it and fetch it again."
            )
        offset = 8 + length + start
        reader = functools.partial(mapped, path, dtype, shape, offset)
        stored[name] = StoredTensor(shape, reader, path)
    return stored


def write(path: Path, tensors: Mapping[str, np.ndarray], *, dtype: Any = np.float32) -> None:
    """Writes one file, which appears only when complete; holds one tensor at a time.

    Args:
        path: replaced if it is there.
        tensors: by name; views are made contiguous one by one.
        dtype: that all are stored in: float32, bfloat16 or float16.

    Raises:
        ValueError: another dtype.
    """
    dtype = np.dtype(dtype)
    code = next((code for code, known in _DTYPES.items() if known == dtype), None)
    if code not in ("F32", "F16", "BF16"):
        raise ValueError(f"{path}: weights are stored as float32, bfloat16 or float16, not {dtype}")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        shape = tensors[name].shape
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors are aligned
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name], dtype).view(np.uint8).data)
