"""Reads and writes .safetensors files through the official library, one tensor at a time."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from input_pipeline.files import replacing
from models.pretrained.tables import StoredTensor


def read(path: Path) -> dict[str, StoredTensor]:
    """Reads the header of one .safetensors file; returns its tensors by name.

    Raises:
        ValueError: the file is truncated, damaged or of another format.
    """
    try:
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}): found {path.stat().st_size:,} bytes, "
            "expected a whole safetensors file. Delete it and fetch it again."
        ) from None
    return {
        name: StoredTensor(shape, functools.partial(_read, path, name), path)
        for name, shape in shapes.items()
    }


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 tensors by name to one file, which appears only when complete."""
    arrays = {name: np.asarray(tensor, np.float32, order="C") for name, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(arrays, partial, metadata={"format": "pt"})  # transformers requires the format


def _read(path: Path, name: str) -> np.ndarray:
    with safe_open(path, "np") as file:
        return file.get_tensor(name)
