"""Reads and writes Hugging Face folders: config.json and one or several .safetensors files.

Format: https://github.com/huggingface/safetensors#format. The header is parsed here, because the
library doesn't say how many bytes a truncated file has and lacks. Called by `load_pretrained` and
`write_pretrained`.
"""

import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from models.decoder import DecoderConfig
from models.pretrained.gguf import truncated
from models.pretrained.tables import StoredTensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}


def files_of(directory: Path) -> list[Path]:
    """Lists the files of a checkpoint: config.json first, then its shards in order.

    Raises:
        FileNotFoundError: naming the file that should be there.
    """
    shards = [WEIGHTS]
    if not (directory / WEIGHTS).exists() and (directory / INDEX).exists():
        shards = sorted(set(_json(directory / INDEX)["weight_map"].values()))
    files = [directory / name for name in (CONFIG, *shards)]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing: expected a Hugging Face folder with {CONFIG} and {WEIGHTS} "
                f"(or {INDEX} and its shards). Copy the whole folder."
            )
    return files


def read(path: Path) -> dict[str, StoredTensor]:
    """Reads the header of one .safetensors file; returns its tensors by name.

    Raises:
        ValueError: truncated (naming bytes found and expected), no safetensors, or of a dtype that
            holds no weights.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the format's own limit
            raise ValueError(
                f"{path} is not a safetensors file (a pointer left by git lfs?): fetch the file "
                "itself"
            )
        if size < 8 + length:
            raise truncated(path, found=size, expected=8 + length, at_least=True)
        try:
            header = json.loads(file.read(length))
        except ValueError:  # both bad UTF-8 and bad JSON
            raise ValueError(
                f"{path} is not a safetensors file: its header is not JSON. Fetch it again."
            ) from None
    header.pop("__metadata__", None)
    expected = 8 + length + max((info["data_offsets"][1] for info in header.values()), default=0)
    if size < expected:
        raise truncated(path, found=size, expected=expected)
    stored = {}
    for name, info in header.items():
        if info["dtype"] not in _DTYPES:
            raise ValueError(
                f"{path}: tensor {name} has dtype {info['dtype']}, expected one of "
                f"{list(_DTYPES)}: convert the checkpoint to bfloat16"
            )
        shape = tuple(info["shape"])
        offset, dtype = 8 + length + info["data_offsets"][0], _DTYPES[info["dtype"]]
        stored[name] = StoredTensor(shape, functools.partial(_read, path, offset, dtype, shape))
    return stored


def write(directory: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Writes config.json and one model.safetensors, which appears only when complete."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    temporary = directory / f"{WEIGHTS}.partial"
    safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, directory / WEIGHTS)


def gemma3_config(directory: Path) -> DecoderConfig:
    """Reads config.json of a Gemma 3 text model, in the layout of transformers 4 or 5.

    Raises:
        ValueError: another model type, or a feature that models/decoder.py doesn't have.
    """
    file = directory / CONFIG
    found = _json(file)

    def take(key: str) -> Any:
        if key not in found:
            raise ValueError(f"{file} has no key {key!r}: use the {CONFIG} saved with the weights")
        return found[key]

    num_layers, head_size = take("num_hidden_layers"), take("head_dim")
    expected = {
        "model_type": ("gemma3_text",),
        "hidden_activation": tuple(_ACTIVATIONS),
        "tie_word_embeddings": (None, True),
        "attention_bias": (None, False),
        "use_bidirectional_attention": (None, False),
        "rope_scaling": (None,),
    }
    for key, allowed in expected.items():
        if found.get(key) not in allowed:
            raise ValueError(
                f"{file}: {key} is {found.get(key)!r}, expected one of {allowed}: only Gemma 3 "
                "text models without extensions are read"
            )
    kinds = found.get("layer_types")
    if kinds is None:  # transformers before 4.54 stored the period instead
        period = take("sliding_window_pattern")
        kinds = [
            "sliding_attention" if (i + 1) % period else "full_attention" for i in range(num_layers)
        ]
    bases = _rope_bases(found, take, file)
    window = take("sliding_window")
    return DecoderConfig(
        vocab_size=take("vocab_size"),
        width=take("hidden_size"),
        num_layers=num_layers,
        num_heads=take("num_attention_heads"),
        num_kv_heads=take("num_key_value_heads"),
        head_size=head_size,
        hidden=take("intermediate_size"),
        windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
        rope_bases=tuple(bases[kind] for kind in kinds),
        attention_scale=take("query_pre_attn_scalar") ** -0.5,
        embedding_scale=take("hidden_size") ** 0.5,
        norm_epsilon=take("rms_norm_eps"),
        activation=_ACTIVATIONS[take("hidden_activation")],
        attention_cap=found.get("attn_logit_softcapping") or 0.0,
        logit_cap=found.get("final_logit_softcapping") or 0.0,
    )


def gemma3_json(config: DecoderConfig) -> dict[str, Any]:
    """Inverse of `gemma3_config`: the contents of config.json.

    Raises:
        ValueError: the config is no Gemma 3 (another embedding scale, norms left out, or windows or
            rope bases that differ within a kind of layer).
    """
    kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
    by_kind = {
        kind: {
            (w, b)
            for k, w, b in zip(kinds, config.windows, config.rope_bases, strict=True)
            if k == kind
        }
        for kind in ("sliding_attention", "full_attention")
    }
    is_gemma3 = config.query_key_norm and config.post_norms
    is_gemma3 &= math.isclose(config.embedding_scale, config.width**0.5)
    if not is_gemma3 or any(len(pairs) > 1 for pairs in by_kind.values()):
        raise ValueError(f"Only Gemma 3 can be written as a Hugging Face folder, found {config}")
    # A kind without layers still needs a window and a base in the file; any will do.
    (window, local_base), (_, base) = (
        next(iter(pairs), (512, 10_000.0)) for pairs in by_kind.values()
    )
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.hidden,
        "layer_types": kinds,
        "sliding_window": window,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": local_base},
            "full_attention": {"rope_type": "default", "rope_theta": base},
        },
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "rms_norm_eps": config.norm_epsilon,
        "hidden_activation": activations[config.activation],
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
        "tie_word_embeddings": True,
    }


def _rope_bases(found: dict, take: Any, file: Path) -> dict[str, float]:
    """Rotary base by kind of layer, from either layout of config.json."""
    if (parameters := found.get("rope_parameters")) is None:  # transformers 4
        bases = (take("rope_local_base_freq"), take("rope_theta"))
        return dict(zip(("sliding_attention", "full_attention"), bases, strict=True))
    if any(each["rope_type"] != "default" for each in parameters.values()):
        raise ValueError(f"{file}: rope_parameters {parameters}, expected rope_type 'default' only")
    return {kind: each["rope_theta"] for kind, each in parameters.items()}


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again") from None


def _read(path: Path, offset: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    with path.open("rb") as file:
        file.seek(offset)
        return np.fromfile(file, dtype, count).reshape(shape).astype(np.float32, copy=False)
