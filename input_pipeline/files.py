"""Files that are written whole or not at all: a crash leaves the old one.

Of several processes the first writes and deletes. All wait before and after: up to here all of them
see the old files, even a slow one that decides by them whether to write, and afterwards the new.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import hosts


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; what lies there at the end takes the place of `path` at once."""
    path = Path(path)
    hosts.wait(f"to write {path.name}")
    if not hosts.writes():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, path.name)
        hosts.wait(f"written {path.name}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # others may write it too
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    hosts.wait(f"written {path.name}")


def remove(*paths: Path) -> None:
    """Deletes files and folders; those that are not there are fine."""
    hosts.wait("to delete")
    if hosts.writes():
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    hosts.wait("deleted")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file."""
    hosts.wait(f"to add to {path.name}")
    if hosts.writes():
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    hosts.wait(f"written {path.name}")


def write_text(path: str | Path, text: str, *, encoding: str = "utf-8") -> None:
    """Writes a text file; line ends stay as they are."""
    with replacing(path) as partial:
        partial.write_text(text, encoding=encoding, newline="")


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object per line; returns how many."""
    lines = [json.dumps(_finite(record), ensure_ascii=False) + "\n" for record in records]
    write_text(path, "".join(lines))
    return len(lines)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Writes an array as .npy, whole or not at all."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def _finite(value: Any) -> Any:
    """Replaces numbers that JSON does not know by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
