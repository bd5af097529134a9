"""From the header of a GGUF file to the fields of a decoder's config.json.

gguf.py reads the bytes; decoder.py reads the fields and holds the names of the tensors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.layers import Rope
from models.pretrained.fields import Fields
from models.pretrained.tables import StoredTensor

GGUF_ARCHITECTURES = {
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "llama": "Llama 2 and 3, Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3",
}
# Keys of all architectures -> fields of config.json: those that a file must have, and may have.
_REQUIRED = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
# Keys of single architectures -> fields, likewise.
_SPECIAL = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Keys that are read otherwise, or whose value is known from elsewhere.
_OTHERS = {
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}
# Beyond those of all: what an architecture must have, and may have.
_EXTRA: dict[str, tuple[set[str], set[str]]] = {
    "gemma2": ({"attention.key_length", *_SPECIAL}, set()),
    "gemma3": (
        {"attention.key_length", "attention.sliding_window", "rope.freq_base"},
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


def read_gguf(metadata: Mapping[str, Any], stored: Mapping[str, StoredTensor], file: str) -> Fields:
    """Returns the fields of config.json for GGUF metadata and the tensors of the file.

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
    keys = _REQUIRED | _OPTIONAL | _SPECIAL
    fields = {field: values[key] for key, field in keys.items() if key in values}
    plain_size = fields["hidden_size"] // fields["num_attention_heads"]
    head_size = fields.setdefault("head_dim", plain_size)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := values.get(key, head_size)) != head_size:
            raise ValueError(
                f"{file}: {architecture}.{key} is {size}, expected the head size {head_size}: "
                "this feature of the architecture is not implemented"
            )
    model_type, rope = architecture, _rope(values, stored, head_size, file)
    if architecture == "llama" and "sliding_window" in fields:
        model_type = "mistral"
    if architecture == "gemma3":
        model_type, local = "gemma3_text", {"rope_theta": values.get("rope.freq_base_swa", 1e4)}
        rope = {"full_attention": rope, "sliding_attention": local}
    whole = fields["num_hidden_layers"] == _LAYERS_OF_27B.get(architecture)
    fields |= {
        "model_type": model_type,
        "vocab_size": stored[_EMBEDDING].shape[0],
        "query_pre_attn_scalar": plain_size if whole else head_size,
        "rope_parameters": rope,
        "attention_bias": "blk.0.attn_q.bias" in stored,
        "attention_output_bias": "blk.0.attn_output.bias" in stored,
        "mlp_bias": "blk.0.ffn_up.bias" in stored,
        "tie_word_embeddings": "output.weight" not in stored,
    }
    return Fields(fields, file)


def _values(metadata: Mapping[str, Any], architecture: str, file: str) -> dict[str, Any]:
    """Returns the numbers of the architecture, all of them known and single."""
    prefix = f"{architecture}."
    values = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    more_required, more_optional = _EXTRA[architecture]
    required = _REQUIRED.keys() | more_required
    missing = sorted(required - values.keys())
    unknown = sorted(values.keys() - required - _OPTIONAL.keys() - _OTHERS - more_optional)
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
) -> dict[str, Any]:
    """Returns rope_parameters, from the metadata or, for Llama 3, from a tensor."""
    base, kind = values.get("rope.freq_base", 1e4), values.get("rope.scaling.type", "none")
    rope = {"rope_theta": base}
    if kind != "none":
        rope |= {"rope_type": kind, "factor": values.get("rope.scaling.factor", 1.0)}
        if kind == "yarn":
            length = values.get("rope.scaling.original_context_length")
            rope["original_max_position_embeddings"] = length
        return rope
    if _FREQUENCIES not in stored:
        return rope
    # Llama 3.1 and later: the file holds what their rule divides each frequency by. Its numbers
    # other than the factor were the same in all releases.
    divisors = stored[_FREQUENCIES].read()
    plain, factor = Rope(base=base), float(divisors.max())
    scaled = Rope(base=base, kind="llama3", factor=factor, original_length=8192, fast=4.0)
    expected = plain.frequencies(head_size) / scaled.frequencies(head_size)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(
            f"{file}: tensor {_FREQUENCIES} is {divisors.tolist()}, expected Llama 3's "
            f"{expected.tolist()}: scaling by other rules is not implemented"
        )
    if factor != 1.0:
        rope |= {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": 8192}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope
