"""What a checkpoint's folder holds: its config, its weight files, and which family they are.

Folders as transformers writes them (safetensors or .bin, in one file or in shards with an index),
and those of Google's and HFL's TensorFlow checkpoints. Called by `open_checkpoint`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from models.pretrained import safetensors, tensorflow_file, torch_file
from models.pretrained.families import Family
from models.pretrained.fields import Fields
from models.pretrained.files import refuse_pointer
from models.pretrained.tables import Format, StoredTensor, listing

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_TORCH_WEIGHTS = "pytorch_model.bin"
_READERS = {WEIGHTS: safetensors.read, _TORCH_WEIGHTS: torch_file.read}  # in order of preference
# Of config.json files older than the field model_type; first match wins, the last one always does.
_BY_FIELDS = (
    ("t5", ("d_kv",)),
    ("albert", ("embedding_size", "num_hidden_groups")),
    ("electra", ("embedding_size", "type_vocab_size")),
    ("bert", ("type_vocab_size",)),
)


class Folder(NamedTuple):
    """The files of one checkpoint, their headers read.

    Attributes:
        format: whose names the tensors have.
        files: config first, then the weights in order.
        stored: tensors by name.
    """

    format: Format
    files: list[Path]
    stored: dict[str, StoredTensor]


def read_fields(directory: Path, families: Sequence[Family]) -> tuple[Fields, Family, str]:
    """Reads config.json (bert_config.json and the like beside a TensorFlow checkpoint).

    Returns:
        Its fields with model_type filled in, the family, and a sentence on how model_type was found
        where the file doesn't say it, else ''.

    Raises:
        FileNotFoundError: there is none.
        ValueError: of a family that isn't supported; names those that are.
    """
    path = directory / CONFIG
    if not path.exists():
        names = ("bert_config*.json", "albert_config*.json", "electra_config*.json")
        path = next((file for name in names for file in sorted(directory.glob(name))), path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: expected a Hugging Face folder with {CONFIG} and {WEIGHTS}, or a "
            f"TensorFlow checkpoint with bert_config.json; found {_contents(directory)}. Copy the "
            "whole folder."
        )
    refuse_pointer(path)
    fields, note = Fields.read(path), ""
    if "model_type" not in fields.found:
        model_type, why = _guess(fields, families)
        note = f"{path} has no model_type; read as {model_type}, for {why}."
        fields = Fields({**fields.found, "model_type": model_type}, fields.file)
    model_type = fields.take("model_type")
    for family in families:
        if model_type in family.model_types:
            return fields, family, note
    raise ValueError(
        f"{path}: model_type {model_type!r} (architectures {fields.get('architectures', [])}) is "
        f"not supported. {supported(families)}"
    )


def supported(families: Iterable[Family]) -> str:
    """A sentence for messages: all that can be read."""
    types = [f"{key} ({name})" for each in families for key, name in each.model_types.items()]
    gguf = [f"{key} ({name})" for each in families for key, name in each.gguf.items()]
    return f"Supported model_type: {', '.join(types)}. Supported GGUF: {', '.join(gguf)}."


def read(directory: Path, config: Path) -> Folder:
    """Reads the headers of a folder's weights: safetensors if there, else .bin, else TensorFlow.

    Args:
        directory: the folder.
        config: its config.json, for the list of files.

    Raises:
        FileNotFoundError: no weights, or shards that the index names are missing.
        ValueError: a file is truncated, of another kind, or lacks tensors the index promises.
    """
    for name, reader in _READERS.items():
        index = directory / f"{name}.index.json"
        if (directory / name).exists():
            files, weight_map = [directory / name], {}
        elif index.exists():
            refuse_pointer(index)
            weight_map = Fields.read(index).take("weight_map")
            files = [directory / shard for shard in sorted(set(weight_map.values()))]
            _refuse_missing(files, index)
        else:
            continue
        stored = {}
        for file in files:
            refuse_pointer(file)
            stored |= reader(file)
        if lacking := sorted(weight_map.keys() - stored.keys()):
            raise ValueError(
                f"{index} names tensors that its shards don't hold: {listing(lacking)}. The index "
                "and the shards are of different checkpoints: copy the whole folder again."
            )
        return Folder("huggingface", [config, *files], stored)
    indices = sorted(directory.glob("*.index"))
    if len(indices) != 1:
        raise FileNotFoundError(
            f"{directory / WEIGHTS} is missing: expected {WEIGHTS} or {_TORCH_WEIGHTS} (or their "
            "shards with the index), or one TensorFlow checkpoint (bert_model.ckpt.index); found "
            f"{_contents(directory)}. Copy the whole folder."
        )
    refuse_pointer(indices[0])
    stored, data_files = tensorflow_file.read(indices[0])
    return Folder("tensorflow", [config, indices[0], *data_files], stored)


def _guess(fields: Fields, families: Sequence[Family]) -> tuple[str, str]:
    """Returns the model_type that architectures or fields tell of, and in words which of them."""
    known = sorted((key for each in families for key in each.model_types), key=len, reverse=True)
    for name in fields.get("architectures", []):
        for model_type in known:  # longest first: 'XLMRobertaModel' is no 'Roberta'
            if name.lower().startswith(model_type.replace("_", "").replace("-", "")):
                return model_type, f"its architectures name {name}"
    for model_type, keys in _BY_FIELDS:
        if fields.found.keys() >= set(keys):
            return model_type, f"it has {' and '.join(keys)}"
    raise ValueError(
        f"{fields.file} has no field 'model_type', and its other fields are of no known family: "
        f"use the {CONFIG} saved with the weights. {supported(families)}"
    )


def _refuse_missing(files: Sequence[Path], index: Path) -> None:
    if missing := [file for file in files if not file.exists()]:
        raise FileNotFoundError(
            f"{listing([str(file) for file in missing])} is missing, a shard that {index.name} "
            f"names: copy all {len(files)} shards"
        )


def _contents(directory: Path) -> str:
    return listing(sorted(file.name for file in directory.iterdir())) or "nothing"
