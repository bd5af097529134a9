"""What a checkpoint's folder holds: its config, its weight files, and which family they are.

Folders as transformers writes them (safetensors or .bin, in one file or in shards with an index),
and those of Google's and HFL's TensorFlow checkpoints.
"""

from pathlib import Path

from models.pretrained.families import FAMILIES, supported
from models.pretrained.fields import Fields
from models.pretrained.files import refuse_pointer
from models.pretrained.safetensors import read as read_safetensors
from models.pretrained.tables import Family, Format, StoredTensor, listing
from models.pretrained.tensorflow_file import read as read_tensorflow
from models.pretrained.torch_file import read as read_torch

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_TORCH_WEIGHTS = "pytorch_model.bin"
_READERS = {WEIGHTS: read_safetensors, _TORCH_WEIGHTS: read_torch}  # in order of preference
_OLD_CONFIGS = ("bert_config*.json", "albert_config*.json", "electra_config*.json")
# For config.json files older than the field model_type; the first match wins.
_BY_FIELDS = (
    ("t5", ("d_kv",)),
    ("albert", ("embedding_size", "num_hidden_groups")),
    ("electra", ("embedding_size", "type_vocab_size")),
    ("bert", ("type_vocab_size",)),
)


def read_fields(directory: Path) -> tuple[Fields, Family, str]:
    """Reads config.json (bert_config.json and the like beside a TensorFlow checkpoint).

    Returns:
        Its fields with model_type filled in, the family, and a sentence on how model_type was
        guessed if the file lacks it, else ''.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: its family isn't supported; lists those that are.
    """
    path = directory / CONFIG
    if not path.exists():
        path = next((file for name in _OLD_CONFIGS for file in sorted(directory.glob(name))), path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: expected a Hugging Face folder with {CONFIG} and {WEIGHTS}, or a "
            f"TensorFlow checkpoint with bert_config.json; found {_contents(directory)}. Copy the "
            "whole folder."
        )
    refuse_pointer(path)
    fields, note = Fields.read(path), ""
    if "model_type" not in fields.values:
        model_type, why = _guess(fields)
        note = f"{path} has no model_type; read as {model_type}, for {why}."
        fields.values["model_type"] = model_type
    model_type = fields.take("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return fields, family, note
    raise ValueError(
        f"{path}: model_type {model_type!r} (architectures {fields.get('architectures', [])}) is "
        f"not supported. {supported()}"
    )


def read_weights(directory: Path) -> tuple[Format, list[Path], dict[str, StoredTensor]]:
    """Reads the headers of a folder's weights: safetensors if present, else .bin, else TensorFlow.

    Returns:
        Whose names the tensors have, the files in order, and the tensors by name.

    Raises:
        FileNotFoundError: the weights, or shards that the index names, are missing.
        ValueError: a file is truncated, of another format, or lacks tensors the index names.
    """
    for name, reader in _READERS.items():
        index = directory / f"{name}.index.json"
        if (directory / name).exists():
            files, weight_map = [directory / name], {}
        elif index.exists():
            refuse_pointer(index)
            weight_map = Fields.read(index).take("weight_map")
            files = [directory / shard for shard in sorted(set(weight_map.values()))]
            if missing := [str(file) for file in files if not file.exists()]:
                raise FileNotFoundError(
                    f"{listing(missing)} is missing, a shard that {index.name} names: copy all "
                    f"{len(files)} shards"
                )
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
        return "huggingface", files, stored
    indices = sorted(directory.glob("*.index"))
    if len(indices) != 1:
        raise FileNotFoundError(
            f"{directory / WEIGHTS} is missing: expected {WEIGHTS} or {_TORCH_WEIGHTS} (or their "
            "shards with the index), or one TensorFlow checkpoint (bert_model.ckpt.index); found "
            f"{_contents(directory)}. Copy the whole folder."
        )
    refuse_pointer(indices[0])
    stored, data_files = read_tensorflow(indices[0])
    return "tensorflow", [indices[0], *data_files], stored


def _guess(fields: Fields) -> tuple[str, str]:
    """Returns the model_type that architectures or other fields imply, and which of them did."""
    known = sorted((key for family in FAMILIES for key in family.model_types), key=len)
    for name in fields.get("architectures", []):
        for model_type in reversed(known):  # longest first: 'XLMRobertaModel' is no 'Roberta'
            if name.lower().startswith(model_type.replace("_", "").replace("-", "")):
                return model_type, f"its architectures name {name}"
    for model_type, keys in _BY_FIELDS:
        if fields.values.keys() >= set(keys):
            return model_type, f"it has {' and '.join(keys)}"
    raise ValueError(
        f"{fields.file} has no field 'model_type', and its other fields are of no known family: "
        f"use the {CONFIG} saved with the weights. {supported()}"
    )


def _contents(directory: Path) -> str:
    return listing(sorted(file.name for file in directory.iterdir()))
