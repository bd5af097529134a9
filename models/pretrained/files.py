"""Bytes of checkpoint files: arrays mapped from them, and errors of files that aren't whole.

Nothing here knows a format. Called by the readers beside this file.
"""

from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 1 << 18  # values looked at in one go, which stay in the cache


def mapped(path: Path, dtype: Any, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """Returns part of a file as a read-only array whose pages are read when they are touched.

    Each call makes a mapping of its own, which goes with its array: what was read of one tensor
    doesn't stay in memory while the next one is read.
    """
    if 0 in shape:  # nothing can't be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)


def count_not_finite(array: np.ndarray) -> int:
    """Returns how many values are NaN or infinite in float32; takes 0.05 s for a GB."""
    if array.dtype.kind in "iub":
        return 0
    flat, count = array.reshape(-1), 0
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        # NumPy is 20 times slower with floats of 16 bits than with their bits: without its sign,
        # what is not finite is at least the infinity.
        if block.itemsize == 2:
            bits, sign = block.view(np.uint16), np.uint16(0x7FFF)
            infinity = np.array(np.inf, block.dtype).view(np.uint16)
            if (bits & sign).max() < infinity:
                continue
        with np.errstate(over="ignore"):
            finite = np.isfinite(block.astype(np.float32, copy=False))
        count += 0 if finite.all() else int(np.sum(~finite))
    return count


def truncated(path: Path, *, found: int, expected: int, at_least: bool = False) -> ValueError:
    """The one error for a file that ends early."""
    return ValueError(
        f"{path} is truncated: found {found:,} bytes, expected {'at least ' * at_least}"
        f"{expected:,}. Delete it and fetch it again."
    )


def refuse_pointer(path: Path) -> None:
    """Raises ValueError for what git leaves where git-lfs wasn't there to fetch the file."""
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise ValueError(
                f"{path} is a pointer left by git lfs, not the file itself: run 'git lfs pull' in "
                "its folder, or download the file"
            )
