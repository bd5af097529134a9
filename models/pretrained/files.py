"""Bytes of checkpoint files: arrays mapped from them, and errors of files that aren't whole.

Nothing here knows a format. Called by the readers beside this file.
"""

from pathlib import Path
from typing import Any

import numpy as np


def mapped(path: Path, dtype: Any, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """Returns part of a file as a read-only array whose pages are read when they are touched.

    Each call makes a mapping of its own, which goes with its array: what was read of one tensor
    doesn't stay in memory while the next one is read.
    """
    if 0 in shape:  # nothing can't be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)


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
