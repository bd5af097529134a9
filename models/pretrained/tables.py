"""The engine of the weight tables: a checkpoint's tensors to a parameter tree, and back.

A family (bert.py, decoder.py, t5.py beside this file) gives rows that bind a parameter's path in
our tree to a tensor's name in one format; `{}` stands for the layer number. `parameters_from` reads
through the rows and refuses gaps on either side, `tensors_from` is its inverse. Bytes are the
business of the readers. Called by `load_pretrained`, `write_pretrained` and peft.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import traverse_util

from models.pretrained.files import count_not_finite

Format = Literal["huggingface", "gguf", "tensorflow"]
Place = Callable[[str, np.ndarray], Any]


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, known without reading, and how to read it.

    `read` returns the stored dtype where numpy has it, mapped from the file if it can be.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    file: Path | None = None

    def read_finite(self, name: str) -> np.ndarray:
        """Reads the tensor.

        Raises:
            ValueError: it holds a NaN or an infinity; names the file, and the tensor by `name`.
        """
        array = self.read()
        if broken := count_not_finite(array):
            raise ValueError(
                f"{self.file}: tensor {name} holds {broken:,} of {array.size:,} values that are "
                "NaN or infinite, of which no training recovers: delete the file and fetch it "
                "again, or take a checkpoint from before its training diverged"
            )
        return array


class Kind(NamedTuple):
    """How a stored tensor becomes a parameter (`read`) and back (`write`).

    Attributes:
        read: stored array -> parameter, a view where that is possible.
        write: its inverse.
        shape: the parameter's shape -> the stored shape.
    """

    read: Callable[[np.ndarray], np.ndarray] = lambda x: x
    write: Callable[[np.ndarray], np.ndarray] = lambda x: x
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape


AS_IS = Kind()
KERNEL = Kind(np.transpose, np.transpose, lambda shape: shape[::-1])  # stored [out, in]
# RMSNorm scales stored as their difference to one (Gemma in safetensors).
MINUS_ONE = Kind(lambda x: x.astype(np.float32) + 1, lambda x: x - np.float32(1))


class Row(NamedTuple):
    """Where one kind of parameter is stored.

    Attributes:
        parameter: path in our tree, '/' between levels; `{}` is the layer number.
        name: of the tensor in the checkpoint, likewise.
        kind: how the one becomes the other.
    """

    parameter: str
    name: str
    kind: Kind = AS_IS


class Rows(NamedTuple):
    """What a family's table for one config and one format says.

    Attributes:
        rows: one for each kind of parameter, parts included. The first row of a parameter is the
            name it is written under; further rows of the same parameter are other names that
            checkpoints use for it.
        ignored: (regex, why) of tensors that are known and not read: position ids, duplicates of
            tied weights, heads of other tasks. Full match.
        canonical: a checkpoint's tensor name -> the name the rows use: strips prefixes such as
            'bert.', renames 'LayerNorm.gamma'.
    """

    rows: Sequence[Row]
    ignored: Sequence[tuple[str, str]] = ()
    canonical: Callable[[str], str] = lambda name: name


def parameters_from(
    stored: Mapping[str, StoredTensor],
    shapes: Mapping,
    table: Rows,
    *,
    optional: Iterable[str] = (),
    place: Place,
    file: str,
) -> dict:
    """Reads a checkpoint's tensors into a parameter tree, one at a time.

    Args:
        stored: tensors of the checkpoint by their name there.
        shapes: nested dict of what is wanted; leaves have `.shape`.
        table: of the family, for this config and format.
        optional: top levels of the tree ('pooler') whose tensors may be there unwanted.
        place: takes a parameter's path and its value as read, a view of the file where possible;
            what it returns becomes the leaf. It decides dtype and device, so that a caller that
            puts shards on devices never holds a second copy.
        file: the checkpoint, for messages.

    Returns:
        Nested dict like `shapes` of what `place` returned.

    Raises:
        ValueError: naming every tensor that no parameter takes, every parameter that no tensor
            fills, or every tensor whose shape doesn't fit; or a tensor that isn't finite.
    """
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    source: dict[str, tuple[str, Kind]] = {}
    unmapped = []
    for name in stored:
        match = _parameter_of(table.canonical(name), table.rows)
        if match and (match[0] in expected or match[0].split("/")[0] in set(optional)):
            source.setdefault(match[0], (name, match[1]))
        elif not any(re.fullmatch(pattern, name) for pattern, _ in table.ignored):
            unmapped.append(name)
    unfilled = sorted(expected.keys() - source.keys())
    if unmapped or unfilled:
        raise ValueError(
            f"{file} doesn't hold this model.\n"
            f"Tensors without a parameter: {listing(sorted(unmapped))}.\n"
            f"Parameters without a tensor: {listing(unfilled)}.\n"
            "Use a whole checkpoint of a supported family, or add its names to the family's table "
            "in models/pretrained/."
        )
    misfits = []
    for path, shape in expected.items():
        name, kind = source[path]
        if (found := tuple(stored[name].shape)) != (wanted := tuple(kind.shape(shape))):
            misfits.append(f"{name} has shape {found}, expected {wanted} for {path}")
            if path == "embedder/embedding" and found[1:] == wanted[1:]:
                misfits[-1] += f" (vocab_size says {wanted[0]}, the embedding has {found[0]} rows)"
    if misfits:
        raise ValueError(
            f"{file}: shapes don't fit its own metadata.\n{listing(misfits, separator='; ')}.\n"
            "The metadata (config.json or GGUF header) is another model's: use the one saved with "
            "the weights."
        )
    flat = {}
    for path in expected:
        name, kind = source[path]
        flat[path] = place(path, kind.read(stored[name].read_finite(name)))
    return traverse_util.unflatten_dict(flat, sep="/")


def ignored(stored: Iterable[str], table: Rows) -> dict[str, int]:
    """Counts the tensors that are known and not read, by the reason."""
    counts: dict[str, int] = {}
    for name in stored:
        if _parameter_of(table.canonical(name), table.rows) is None:
            why = next((why for regex, why in table.ignored if re.fullmatch(regex, name)), None)
            if why:
                counts[why] = counts.get(why, 0) + 1
    return counts


def tensors_from(parameters: Mapping, table: Rows) -> dict[str, np.ndarray]:
    """Inverse of `parameters_from`: arrays by the names of the table's format, views if possible.

    Raises:
        ValueError: naming every parameter that the table doesn't know.
    """
    tensors, unmapped = {}, []
    for path, value in flatten(parameters).items():
        match = tensor_of(path, table.rows)
        if match:
            tensors[match[0]] = match[1].write(np.asarray(value))
        else:
            unmapped.append(path)
    if unmapped:
        raise ValueError(
            f"Parameters without a name in this format: {listing(unmapped)}. Write the backbone "
            "only, or add them to the family's table in models/pretrained/."
        )
    return tensors


def held(stored: Iterable[str], table: Rows) -> set[str]:
    """Paths of the parameters that the tensors of these names fill."""
    matches = (_parameter_of(table.canonical(name), table.rows) for name in stored)
    return {match[0] for match in matches if match}


def tensor_of(path: str, rows: Sequence[Row]) -> tuple[str, Kind] | None:
    """Returns the name under which the parameter at `path` is stored, and its kind."""
    return _translate(path, rows, "parameter", "name")


def _parameter_of(name: str, rows: Sequence[Row]) -> tuple[str, Kind] | None:
    return _translate(name, rows, "name", "parameter")


def _translate(name: str, rows: Sequence[Row], source: str, target: str) -> Any:
    """Finds the first row whose `source` matches; returns its `target` and its kind."""
    for row in rows:
        pattern = re.escape(getattr(row, source)).replace(r"\{\}", r"(\d+)")
        if match := re.fullmatch(pattern, name):
            return getattr(row, target).format(*match.groups()), row.kind
    return None


def flatten(tree: Mapping) -> dict:
    """Flattens nested dicts to {'a/b/c': leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def listing(items: Sequence[str], *, separator: str = ", ") -> str:
    """Items for a message: all of a few, the first of many."""
    shown = separator.join(items[:20]) or "none"
    return shown if len(items) <= 20 else f"{shown} and {len(items) - 20} more"
