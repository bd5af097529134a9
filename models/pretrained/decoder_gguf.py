"""From the header of a GGUF file to the config of a decoder.

gguf.py reads the bytes; decoder.py holds the names of the tensors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.decoder import DecoderConfig
from models.layers import Rope, yarn
from models.pretrained.tables import StoredTensor

GGUF_ARCHITECTURES = {
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "llama": "Llama 2 and 3, Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3",
}
_REQUIRED = {
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "context_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}
_CAPS = {"attn_logit_softcapping", "final_logit_softcapping"}
_HEADS_AND_WINDOW = {"attention.key_length", "attention.sliding_window"}
# Beyond those above: what an architecture must have, and may have.
_EXTRA: dict[str, tuple[set[str], set[str]]] = {
    "gemma2": (_HEADS_AND_WINDOW | _CAPS, set()),
    "gemma3": (
        _HEADS_AND_WINDOW | {"rope.freq_base"},
        {"rope.freq_base_swa", "final_logit_softcapping"},
    ),
    "llama": (set(), {"attention.sliding_window"}),
    "qwen2": (set(), set()),
    "qwen3": ({"attention.key_length"}, set()),
}
# The number of layers of the one model of each family whose attention scale is of D / H instead of
# N; the format doesn't hold the scale, and llama.cpp goes by this number too.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
_EMBEDDING, _FREQUENCIES = "token_embd.weight", "rope_freqs.weight"


def read_gguf(
    metadata: Mapping[str, Any], stored: Mapping[str, StoredTensor], file: str
) -> DecoderConfig:
    """Builds the config from GGUF metadata, and from which tensors the file holds.

    Args:
        metadata: of the header; numbers under '<architecture>.'.
        stored: tensors by name.
        file: for messages.

    Raises:
        ValueError: a key is missing, or an unknown one might change what the model computes.
    """
    architecture = metadata["general.architecture"]
    values = _values(metadata, architecture, file)
    if _EMBEDDING not in stored:
        raise ValueError(f"{file} has no tensor {_EMBEDDING}: fetch the file again")
    width, num_layers = values["embedding_length"], values["block_count"]
    num_heads = values["attention.head_count"]
    head_size = values.get("attention.key_length", width // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := values.get(key, head_size)) != head_size:
            raise ValueError(
                f"{file}: {architecture}.{key} is {size}, expected the head size {head_size}: "
                "this feature of the architecture is not implemented"
            )
    gemma, window = architecture.startswith("gemma"), values.get("attention.sliding_window", 0)
    period = {"gemma2": 2, "gemma3": 6}.get(architecture, num_layers + 1)
    windows = tuple(window if (layer + 1) % period else 0 for layer in range(num_layers))
    rope = local = _rope(values, stored, head_size, file)
    model_type = "mistral" if architecture == "llama" and window else architecture
    if architecture == "gemma3":
        model_type, local = "gemma3_text", Rope(base=values.get("rope.freq_base_swa", 1e4))
    whole = num_layers == _LAYERS_OF_27B.get(architecture)
    return DecoderConfig(
        model_type=model_type,
        vocab_size=stored[_EMBEDDING].shape[0],
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=values.get("attention.head_count_kv", num_heads),
        head_size=head_size,
        hidden=values["feed_forward_length"],
        windows=windows,
        ropes=tuple(local if window else rope for window in windows),
        attention_scale=(width // num_heads if whole else head_size) ** -0.5,
        embedding_scale=width**0.5 if gemma else 1.0,
        max_length=values.get("context_length", 0),
        norm_epsilon=values["attention.layer_norm_rms_epsilon"],
        activation="gelu_tanh" if gemma else "silu",
        query_key_norm=architecture in ("gemma3", "qwen3"),
        post_norms=gemma,
        attention_bias="blk.0.attn_q.bias" in stored,
        output_bias="blk.0.attn_output.bias" in stored,
        mlp_bias="blk.0.ffn_up.bias" in stored,
        attention_cap=values.get("attn_logit_softcapping", 0.0),
        logit_cap=values.get("final_logit_softcapping", 0.0),
        tied="output.weight" not in stored,
    )


def _values(metadata: Mapping[str, Any], architecture: str, file: str) -> dict[str, Any]:
    """Returns the numbers of the architecture, all of them known and single."""
    prefix = f"{architecture}."
    values = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    more_required, more_optional = _EXTRA[architecture]
    required = _REQUIRED | more_required
    missing = sorted(required - values.keys())
    unknown = sorted(values.keys() - required - _OPTIONAL - more_optional)
    unknown += sorted(key for key in values if isinstance(values[key], list))
    if missing or unknown:
        raise ValueError(
            f"{file}: the metadata are not those of a {GGUF_ARCHITECTURES[architecture]} that can "
            f"be read. Missing: {missing}; unknown, or different by layer: {unknown} (each under "
            f"{prefix!r}). Use a GGUF of a plain text model, converted by llama.cpp."
        )
    return values


def _rope(
    values: Mapping[str, Any], stored: Mapping[str, StoredTensor], head_size: int, file: str
) -> Rope:
    base = values.get("rope.freq_base", 1e4)
    kind, factor = values.get("rope.scaling.type", "none"), values.get("rope.scaling.factor", 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{file}: rope.scaling.type is {kind!r}, expected none, linear or yarn")
    if kind == "linear":
        return Rope(base=base, kind="linear", factor=factor)
    if kind == "yarn":
        length = values.get("rope.scaling.original_context_length", values.get("context_length"))
        if not length:
            raise ValueError(f"{file} lacks rope.scaling.original_context_length, which yarn needs")
        return yarn(base, factor=factor, original_length=length)
    rope = plain = Rope(base=base)
    if _FREQUENCIES not in stored:
        return rope
    # Llama 3.1 and later: the file holds what their rule divides each frequency by. Its numbers
    # other than the factor were the same in all releases.
    divisors = stored[_FREQUENCIES].read()
    if (factor := float(divisors.max())) != 1.0:
        rope = Rope(base=base, kind="llama3", factor=factor, original_length=8192, fast=4.0)
    expected = plain.frequencies(head_size) / rope.frequencies(head_size)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(
            f"{file}: tensor {_FREQUENCIES} is {divisors.tolist()}, expected Llama 3's "
            f"{expected.tolist()}: scaling by other rules is not implemented"
        )
    return rope
