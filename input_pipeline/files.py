"""Files that are written whole or not at all: a crash leaves the old one."""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; what lies there at the end takes the place of `path` at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # others may write it too
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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


def _finite(value: Any) -> Any:
    """Replaces numbers that JSON does not know by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
