"""The engine of the weight tables: a checkpoint's tensors to a parameter tree, and back.

A family (bert.py, decoder.py, t5.py) gives rows that bind a parameter's path in our tree to a
tensor's name in one format; `{}` stands for the layer number. `parameters_from` reads through the
rows and rejects gaps on either side, `tensors_from` is its inverse. How bytes become tensors is the
readers' part (safetensors.py, torch_file.py, tensorflow_file.py, gguf.py, e5.py).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from models.backbone import BackboneConfig, flatten, layer_of, unflatten
from models.pretrained.fields import Fields
from models.pretrained.files import count_not_finite

Format = Literal["huggingface", "gguf", "e5", "tensorflow"]
Place = Callable[[str, np.ndarray], Any]
# Reasons to leave a tensor unread that several families share.
NOT_KEPT = "of layers that config.model.keep_layers leaves out"
OTHER_HEAD = "the head of the task this checkpoint was fine-tuned for; a run has a head of its own"


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, known without reading, and how to read it.

    `read` returns the stored dtype where numpy has it, mapped from the file where possible.
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
                "NaN or infinite, from which no training recovers: delete the file and fetch it "
                "again, or use a checkpoint from before its training diverged"
            )
        return array


class Kind(NamedTuple):
    """How a stored tensor becomes a parameter (`read`) and back (`write`).

    Attributes:
        read: stored array -> parameter, a view where possible.
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
    """A family's table for one config and one format.

    Attributes:
        rows: one for each kind of parameter, parts included. A parameter is written under the name
            of its first row; further rows of it are other names that checkpoints use.
        ignored: (regex, why) of tensors that are known and not read: position ids, duplicates of
            tied weights, heads of other tasks. Full match.
        canonical: a checkpoint's tensor name -> the name the rows use: strips prefixes such as
            'bert.', renames 'LayerNorm.gamma'.
        kept: layers of the checkpoint that are read and become layers 0, 1, ...; None is all.
    """

    rows: Sequence[Row]
    ignored: Sequence[tuple[str, str]] = ()
    canonical: Callable[[str], str] = lambda name: name
    kept: tuple[int, ...] | None = None

    def parameter_of(self, name: str) -> tuple[str, Kind] | None:
        """Returns the path of the parameter that a checkpoint's tensor fills, and its kind."""
        match = _translate(self.canonical(name), self.rows, "name", "parameter")
        layer = layer_of(match[0]) if match else None
        if self.kept is None or layer is None:
            return match
        if layer not in self.kept:
            return None
        number = self.kept.index(layer)
        return match[0].replace(f"layer_{layer}/", f"layer_{number}/"), match[1]

    def tensor_of(self, path: str) -> tuple[str, Kind] | None:
        """Returns the name under which the parameter at `path` is stored, and its kind."""
        return _translate(path, self.rows, "parameter", "name")

    def reason_to_ignore(self, name: str) -> str | None:
        """Returns why a tensor is known and not read; None for other tensors."""
        if self.kept is not None and self._replace(kept=None).parameter_of(name):
            return NOT_KEPT
        return next((why for regex, why in self.ignored if re.fullmatch(regex, name)), None)

    def count_ignored(self, names: Iterable[str]) -> Counter[str]:
        """Counts the tensors that are known and not read, by the reason."""
        unread = (name for name in names if self.parameter_of(name) is None)
        return Counter(filter(None, map(self.reason_to_ignore, unread)))

    def held(self, names: Iterable[str]) -> set[str]:
        """Returns the paths of the parameters that the tensors of these names fill."""
        return {match[0] for match in map(self.parameter_of, names) if match}


class Family(NamedTuple):
    """One architecture and the checkpoints that hold it.

    Attributes:
        config_class: of its module.
        model_types: `model_type` of config.json -> the family's name in messages.
        read_config: fields of config.json -> config.
        write_config: config -> contents of config.json, without "architectures".
        table: (config, format) -> rows; ValueError for a format that the family has no files in.
        gguf: `general.architecture` of GGUF files -> the name in messages.
        read_gguf: (metadata, stored tensors, file) -> fields; None without GGUF files.
    """

    config_class: type
    model_types: Mapping[str, str]
    read_config: Callable[[Fields], BackboneConfig]
    write_config: Callable[[Any], dict[str, Any]]
    table: Callable[[Any, Format], Rows]
    gguf: Mapping[str, str] = {}
    read_gguf: Callable[..., Fields] | None = None


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
        shapes: nested dict of the wanted parameters; leaves have `.shape`.
        table: of the family, for this config and format.
        optional: top levels of the tree ('pooler') whose tensors may be present and unwanted.
        place: maps a parameter's path and its value as read, a view of the file where possible, to
            the leaf. It decides dtype and device, so that a caller that puts shards on devices
            never holds a second copy.
        file: the checkpoint, for messages.

    Returns:
        Nested dict like `shapes` of the leaves.

    Raises:
        ValueError: lists the tensors without a parameter, the parameters without a tensor, or the
            tensors whose shape doesn't fit; or names a tensor that isn't finite.
    """
    expected = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    source: dict[str, tuple[str, Kind]] = {}
    unmapped, optional = [], set(optional)
    for name in stored:
        path, kind = table.parameter_of(name) or ("", AS_IS)
        if path in expected or path.split("/")[0] in optional:
            source.setdefault(path, (name, kind))
        elif not table.reason_to_ignore(name):
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
        actual, wanted = tuple(stored[name].shape), tuple(kind.shape(shape))
        if actual != wanted:
            misfits.append(f"{name} has shape {actual}, expected {wanted} for {path}")
            if path == "embedder/embedding" and actual[1:] == wanted[1:]:
                misfits[-1] += f" (vocab_size says {wanted[0]}, the embedding has {actual[0]} rows)"
    if misfits:
        raise ValueError(
            f"{file}: shapes don't fit its own metadata.\n{listing(misfits, separator='; ')}.\n"
            "The metadata (config.json or GGUF header) is another model's: use the one saved with "
            "the weights."
        )
    leaves = {}
    for path in expected:
        name, kind = source[path]
        leaves[path] = place(path, kind.read(stored[name].read_finite(name)))
    return unflatten(leaves)


def tensors_from(parameters: Mapping, table: Rows) -> dict[str, np.ndarray]:
    """Inverse of `parameters_from`: arrays by the names of the table's format, views if possible.

    Raises:
        ValueError: lists the parameters that the table doesn't know.
    """
    flat = flatten(parameters)
    matches = {path: table.tensor_of(path) for path in flat}
    if unmapped := [path for path, match in matches.items() if match is None]:
        raise ValueError(
            f"Parameters without a name in this format: {listing(unmapped)}. Write the backbone "
            "only, or add them to the family's table in models/pretrained/."
        )
    return {name: kind.write(np.asarray(flat[path])) for path, (name, kind) in matches.items()}


def unreadable(name: str, format: Format) -> ValueError:
    """Returns the error for a family that has no files in a format."""
    return ValueError(
        f"Checkpoints of {name} in the format {format!r} can't be read: use a Hugging Face folder "
        "(config.json and model.safetensors or pytorch_model.bin)"
    )


def listing(items: Sequence[str], *, separator: str = ", ") -> str:
    """Returns items for a message: all of a few, the first of many."""
    shown = separator.join(items[:20]) or "none"
    return shown if len(items) <= 20 else f"{shown} and {len(items) - 20} more"


def _translate(name: str, rows: Sequence[Row], source: str, target: str) -> Any:
    """Returns the `target` and the kind of the first row whose `source` matches."""
    for row in rows:
        pattern = re.escape(getattr(row, source)).replace(r"\{\}", r"(\d+)")
        if match := re.fullmatch(pattern, name):
            return getattr(row, target).format(*match.groups()), row.kind
    return None
