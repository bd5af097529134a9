"""Pretrained weights: from a name or path to a config and a parameter tree, and back to a folder.

`resolve` finds the files, `open_checkpoint` reads their headers, `Checkpoint.read` the tensors
through the weight table of the family, `write_pretrained` writes a Hugging Face folder. Called by
training/experiment.py, evaluation/ and tests; the tokeniser is read elsewhere
(input_pipeline/tokenizers/tokenization.py).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.files import write_json
from models import backbone
from models.pretrained import bert, decoder, folder, gguf, safetensors, t5, tables
from models.pretrained.families import Family
from models.pretrained.files import refuse_pointer
from models.pretrained.hub import resolve
from models.pretrained.tables import Place, StoredTensor

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Pretrained",
    "load_pretrained",
    "open_checkpoint",
    "place_float32",
    "place_on",
    "resolve",
    "write_pretrained",
]

FAMILIES: tuple[Family, ...] = (bert.FAMILY, decoder.FAMILY, t5.FAMILY)
_GGUF_NAMES = {"padding": "pad", "unknown": "unk", "seperator": "sep", "separator": "sep"}


def place_float32(path: str, array: np.ndarray) -> np.ndarray:
    """The default `Place`: a contiguous float32 array in memory, of no file."""
    return np.require(array, np.float32, ["C", "A", "W", "E"])


def place_on(
    sharding_of: Callable[[str], jax.sharding.Sharding],
    *,
    dtype_of: Callable[[str], Any] = lambda path: np.float32,
) -> Place:
    """Returns a `Place` that puts parameters on devices; each reads only its shard of the file.

    Args:
        sharding_of: from a parameter's path to where it goes.
        dtype_of: from a parameter's path to its dtype there.
    """

    def place(path: str, array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            # A copy: on CPU, JAX would take over the mapping and keep reading the file.
            return np.array(array[index], dtype_of(path), order="C")

        return jax.make_array_from_callback(array.shape, sharding_of(path), shard)

    return place


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint in memory.

    Attributes:
        config: of the backbone.
        params: nested dict of its parameters; numpy float32 unless they were placed otherwise.
        fingerprint: see `Checkpoint`.
    """

    config: backbone.BackboneConfig
    params: dict
    fingerprint: str


@dataclasses.dataclass(frozen=True, repr=False)
class Checkpoint:
    """A checkpoint whose headers were read.

    Attributes:
        path: file or folder.
        format: 'huggingface' (also of .bin files), 'gguf' or 'tensorflow'.
        family: that reads and writes it.
        config: of the backbone.
        special_ids: {'bos': 2, 'pad': 0, ...} as the config or the GGUF header tells; of several
            ids of a kind the first.
        files: config first, then the weights in order.
        note: a sentence for people on what had to be guessed, or ''.
    """

    path: Path
    format: tables.Format
    family: Family
    config: backbone.BackboneConfig
    special_ids: Mapping[str, int]
    files: tuple[Path, ...]
    note: str
    _stored: Mapping[str, StoredTensor]

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts beside the backbone (pooler, mlm_head, ...) that it holds whole."""
        held = tables.held(self._stored, self._table)
        shapes = {part: self._shapes(part) for part in backbone.parts_of(self.config)}
        return tuple(part for part, paths in shapes.items() if paths and paths <= held)

    @property
    def ignored(self) -> dict[str, int]:
        """How many of its tensors are known and not read, by the reason."""
        return tables.ignored(self._stored, self._table)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the checkpoint's file, or of its files' digests in order."""
        digests = []
        for path in self.files:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(path.stat().st_size for path in self.files)

    def read(self, parts: Iterable[str] = (), *, place: Place | None = None) -> dict:
        """Reads the parameters, one tensor at a time.

        Args:
            parts: top levels of the tree to read beside the backbone, such as 'pooler'.
            place: takes a parameter's path and its value, where possible still in the file and in
                its dtype there; what it returns becomes the leaf. Default: numpy float32.

        Returns:
            Nested dict of the backbone's parameters and those of `parts`.

        Raises:
            ValueError: parts that the checkpoint doesn't hold; tensors that aren't exactly the
                model's, by name.
        """
        parts = tuple(parts)
        if missing := [part for part in parts if part not in self.parts]:
            raise ValueError(
                f"{self.path} doesn't hold {', '.join(missing)}; beside its backbone it holds "
                f"{', '.join(self.parts) or 'nothing'}. Choose model.pooling, model.head or a "
                "checkpoint accordingly."
            )
        return tables.parameters_from(
            self._stored,
            backbone.parameter_shapes(self.config, parts),
            self._table,
            optional=backbone.parts_of(self.config),
            place=place or place_float32,
            file=str(self.path),
        )

    @property
    def _table(self) -> tables.Rows:
        return self.family.table(self.config, self.format)

    def _shapes(self, part: str) -> set[str]:
        shapes = backbone.parameter_shapes(self.config, [part])
        return set(tables.flatten({part: shapes[part]})) if part in shapes else set()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a .gguf file or a folder of a supported family; reads headers only.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated, of another kind, or of a family or with features that
            aren't supported; the message names the file, the field and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        fields, family, note = folder.read_fields(path, FAMILIES)
        config = family.read_config(fields)
        format_, files, stored = folder.read(path, Path(fields.file))
        ids = _special_ids(fields.found)
        return Checkpoint(path, format_, family, config, ids, tuple(files), note, stored)
    if not path.exists():
        raise FileNotFoundError(f"Checkpoint {path} doesn't exist")
    if path.suffix != ".gguf":
        raise ValueError(
            f"Checkpoint {path} has ending {path.suffix!r}, expected .gguf or a folder"
        )
    refuse_pointer(path)
    metadata, stored = gguf.read(path)
    architecture = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.read_gguf and architecture in family.gguf:
            config = family.read_gguf(metadata, stored, file=str(path))
            ids = _special_ids(metadata, prefix="tokenizer.ggml.")
            return Checkpoint(path, "gguf", family, config, ids, (path,), "", stored)
    raise ValueError(
        f"{path}: general.architecture {architecture!r} is not supported. "
        f"{folder.supported(FAMILIES)}"
    )


def load_pretrained(path: str | Path, *, parts: Iterable[str] = ()) -> Pretrained:
    """Loads a checkpoint into memory; see `open_checkpoint` and `Checkpoint.read`."""
    checkpoint = open_checkpoint(path)
    return Pretrained(checkpoint.config, checkpoint.read(parts), checkpoint.fingerprint)


def write_pretrained(
    directory: str | Path,
    config: backbone.BackboneConfig,
    params: Mapping,
    *,
    architectures: Iterable[str] = (),
    dtype: Any = np.float32,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Writes a Hugging Face folder: config.json and model.safetensors, each only when complete.

    Args:
        directory: made if missing; files of these names are replaced.
        config: of the backbone.
        params: nested dict of arrays, the backbone's and those of any parts.
        architectures: class names for config.json, which tell transformers' pipelines and other
            readers of a head; () leaves them out.
        dtype: of the file: float32, bfloat16 or float16.
        fields: more of config.json, which no backbone knows: id2label, pad_token_id.

    Raises:
        ValueError: the config or a parameter has no place in the format.
    """
    directory = Path(directory)
    family = next(each for each in FAMILIES if isinstance(config, each.config_class))
    found = {**family.write_config(config), "dtype": np.dtype(dtype).name, **(fields or {})}
    if architectures := list(architectures):
        found = {"architectures": architectures, **found}
    tensors = tables.tensors_from(params, family.table(config, "huggingface"))
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.write(directory / folder.WEIGHTS, tensors, dtype=dtype)
    write_json(directory / folder.CONFIG, found)


def _special_ids(found: Mapping[str, Any], *, prefix: str = "") -> dict[str, int]:
    """Collects 'bos_token_id': 2 and the like as {'bos': 2}."""
    ids = {}
    for key, value in found.items():
        name = key.removeprefix(prefix).removesuffix("_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if key == f"{prefix}{name}_token_id" and isinstance(value, int):
            ids[_GGUF_NAMES.get(name, name)] = value
    return ids
