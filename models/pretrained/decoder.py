"""Checkpoints of decoders: Gemma 2 and 3, Llama 2 and 3, Qwen 2, 2.5 and 3, Mistral.

Their config.json, as transformers 4 and 5 write it, and the names of their tensors in Hugging Face
folders and GGUF files. decoder_gguf.py reads the config from the header of a GGUF file.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from models.decoder import DecoderConfig
from models.layers import Rope, yarn
from models.pretrained.decoder_gguf import GGUF_ARCHITECTURES, read_gguf
from models.pretrained.fields import Fields
from models.pretrained.tables import AS_IS, KERNEL, MINUS_ONE, Family, Format, Kind, Row, Rows

MODEL_TYPES = {
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3, the text part",
    "gemma3_text": "Gemma 3",
    "llama": "Llama 2 and 3",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3",
    "mistral": "Mistral",
}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "gelu": "gelu", "relu": "relu"}
# Ours -> the field in config.json, where both mean the same.
_SHAPES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
# What a multimodal config.json leaves out of its text part: the defaults of transformers.
_GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}
# Kinds of rope scaling: key of config.json -> attribute of Rope.
_STRETCHED = {"factor": "factor", "original_max_position_embeddings": "original_length"}
_YARN_OPTIONS = {
    "beta_slow": "slow",
    "beta_fast": "fast",
    "attention_factor": "amplitude",
    "truncate": "whole",
}
_ROPE_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": _STRETCHED | {"low_freq_factor": "slow", "high_freq_factor": "fast"},
    "yarn": _STRETCHED | _YARN_OPTIONS,
}


def read_config(fields: Fields) -> DecoderConfig:
    """Builds the config from config.json, in the layout of transformers 4 or 5.

    Raises:
        ValueError: a field is missing, or asks for what models/decoder.py doesn't do.
    """
    model_type = fields.take("model_type")
    if model_type == "gemma3":
        text = _GEMMA3_DEFAULTS | fields.take("text_config")
        model_type, fields = "gemma3_text", Fields(text, f"{fields.file} (text_config)")
    fields.expect("quantization_config", (None,))
    fields.expect("partial_rotary_factor", (None, 1.0))
    gemma = model_type.startswith("gemma")
    shapes = {ours: fields.take(theirs) for ours, theirs in _SHAPES.items()}
    width, num_heads = shapes["width"], shapes["num_heads"]
    # Gemma's heads are not of size D / H, so that it must state theirs.
    head_size = fields.take("head_dim") if gemma else fields.get("head_dim", width // num_heads)
    bidirectional = _bidirectional(fields, model_type)
    kinds = _kinds_of_layers(fields, model_type)
    window = fields.take("sliding_window") if _SLIDING in kinds else 0
    if bidirectional and model_type != "gemma3_text":
        window *= 2  # theirs is what is seen on each side, ours on both
    ropes = _ropes(fields, model_type)
    key, default = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    activation = fields.expect(key, _ACTIVATIONS, default=default)
    biases = {"qwen2": True, "mistral": False}
    all_biases = model_type not in biases and fields.get("attention_bias", False)
    return DecoderConfig(
        model_type=model_type,
        num_layers=len(kinds),
        num_kv_heads=fields.get("num_key_value_heads", num_heads),
        head_size=head_size,
        windows=tuple(window if kind == _SLIDING else 0 for kind in kinds),
        ropes=tuple(ropes[kind] for kind in kinds),
        attention_scale=(fields.take("query_pre_attn_scalar") if gemma else head_size) ** -0.5,
        embedding_scale=width**0.5 if gemma else 1.0,
        max_length=fields.get("max_position_embeddings", 0),
        activation=_ACTIVATIONS[activation],
        query_key_norm=model_type in ("gemma3_text", "qwen3"),
        post_norms=gemma,
        attention_bias=biases.get(model_type, all_biases),
        output_bias=fields.get("attention_output_bias", all_biases),  # known for GGUF alone
        mlp_bias=model_type == "llama" and fields.get("mlp_bias", False),
        attention_cap=_cap(fields, "attn_logit_softcapping", model_type),
        logit_cap=_cap(fields, "final_logit_softcapping", model_type),
        tied=fields.get("tie_word_embeddings", gemma),
        bidirectional=bidirectional,
        **shapes,
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Inverse of `read_config`: the contents of config.json, for transformers 4 and 5.

    Raises:
        ValueError: the format of `config.model_type` can't express the config.
    """
    model_type = config.model_type
    gemma = model_type.startswith("gemma")
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    kinds = [_SLIDING if window else _FULL for window in config.windows]
    window = max(config.windows)
    if config.bidirectional and model_type != "gemma3_text":
        window //= 2
        # The middle position of an odd window is the query itself: one less is the same window.
        even = tuple(size // 2 * 2 for size in config.windows)
        config = dataclasses.replace(config, windows=even)
    written = {
        **{theirs: getattr(config, ours) for ours, theirs in _SHAPES.items()},
        "model_type": model_type,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_activation" if gemma else "hidden_act": activations.get(config.activation),
        "tie_word_embeddings": config.tied,
        **_ropes_json(config, kinds),
    }
    if config.max_length:
        written["max_position_embeddings"] = config.max_length
    if model_type not in ("qwen2", "mistral"):
        written["attention_bias"] = config.attention_bias
    if model_type == "llama":
        written["mlp_bias"] = config.mlp_bias
    else:
        written["sliding_window"] = window or (4096 if gemma else None)
    if model_type not in ("llama", "mistral"):
        written["layer_types"] = kinds
    if model_type.startswith("qwen"):
        written["use_sliding_window"] = bool(window)
        written["max_window_layers"] = (*kinds, _SLIDING).index(_SLIDING)
    if gemma:
        written["query_pre_attn_scalar"] = round(config.attention_scale**-2)
        written["attn_logit_softcapping"] = config.attention_cap or None
        written["final_logit_softcapping"] = config.logit_cap or None
    if config.bidirectional and model_type == "gemma3_text":
        written["use_bidirectional_attention"] = True
    elif config.bidirectional:
        written["is_causal"] = False
    read_back = vars(read_config(Fields(written, "the written config.json")))
    wrong = {name: value for name, value in vars(config).items() if read_back[name] != value}
    if wrong:
        wanted, possible = (
            ", ".join(f"{name}={values[name]!r}" for name in wrong) for values in (wrong, read_back)
        )
        raise ValueError(
            f"A {MODEL_TYPES[model_type]} can't be written with {wanted}: its format reads back as "
            f"{possible}"
        )
    return written


def _bidirectional(fields: Fields, model_type: str) -> bool:
    if model_type == "gemma3_text":
        fields.expect("is_causal", (None, True))
        return bool(fields.get("use_bidirectional_attention", False))
    fields.expect("use_bidirectional_attention", (None, False))
    return not fields.get("is_causal", True)


def _cap(fields: Fields, key: str, model_type: str) -> float:
    """Returns a soft cap, 0 for null; required for Gemma 2, where a missing field means a cap."""
    if model_type == "gemma2":
        return fields.take(key) or 0.0
    return fields.get(key, 0.0) if model_type == "gemma3_text" else 0.0


def _kinds_of_layers(fields: Fields, model_type: str) -> list[str]:
    """Returns for each layer whether it has a window."""
    count = fields.take("num_hidden_layers")
    if model_type == "llama":
        return [_FULL] * count
    if model_type == "mistral":
        return [_SLIDING if fields.take("sliding_window") else _FULL] * count
    kinds = fields.get("layer_types", None)
    if kinds is None:  # transformers 4 derives them
        if model_type.startswith("qwen"):
            used = fields.get("use_sliding_window", False)
            first = fields.take("max_window_layers") if used else count
            return [_SLIDING if layer >= first else _FULL for layer in range(count)]
        period = 2 if model_type == "gemma2" else fields.get("sliding_window_pattern", 6)
        return [_SLIDING if (layer + 1) % period else _FULL for layer in range(count)]
    if len(kinds) != count or not {*kinds} <= {_SLIDING, _FULL}:
        raise ValueError(
            f"{fields.file}: layer_types is {kinds}, expected {_SLIDING!r} or {_FULL!r} for each "
            f"of {count} layers"
        )
    return kinds


def _ropes(fields: Fields, model_type: str) -> dict[str, Rope]:
    """Returns the rotary positions by kind of layer, from either layout."""
    values = fields.get("rope_parameters", None)
    if values is None:  # transformers 4
        base = fields.get("rope_theta", 1e6 if model_type == "gemma3_text" else 1e4)
        values = {"rope_theta": base, **fields.get("rope_scaling", {})}
        if model_type == "gemma3_text":
            local = {"rope_theta": fields.get("rope_local_base_freq", 1e4)}
            values = {_FULL: values, _SLIDING: local}
    if not values.keys() & {_SLIDING, _FULL}:
        values = {_SLIDING: values, _FULL: values}
    return {kind: _rope(part, fields) for kind, part in values.items() if part is not None}


def _rope(values: dict[str, Any], fields: Fields) -> Rope:
    values = {key: value for key, value in values.items() if value is not None}
    kind = values.get("rope_type") or values.get("type") or "default"
    known = _ROPE_KEYS.get(kind, {})
    unknown = values.keys() - known.keys() - {"rope_theta", "rope_type", "type"}
    if values.get("partial_rotary_factor") == 1.0:
        unknown -= {"partial_rotary_factor"}
    if kind not in _ROPE_KEYS or unknown:
        raise ValueError(
            f"{fields.file}: the rotary positions (rope_scaling or rope_parameters) are {values}: "
            f"{f'keys {sorted(unknown)} of ' * bool(unknown)}type {kind!r} not implemented; the "
            f"types here are {list(_ROPE_KEYS)}"
        )
    if "original_max_position_embeddings" in known:
        length = "original_max_position_embeddings"
        values.setdefault(length, fields.get("max_position_embeddings", None))
    required = known.keys() - (_YARN_OPTIONS if kind == "yarn" else {})
    if missing := sorted(key for key in required if values.get(key) is None):
        raise ValueError(
            f"{fields.file}: the rotary positions {values} lack {missing}: use the config.json "
            "saved with the weights"
        )
    options = {ours: values[theirs] for theirs, ours in known.items() if theirs in values}
    base = values.get("rope_theta", 1e4)
    return yarn(base, **options) if kind == "yarn" else Rope(base=base, kind=kind, **options)


def _ropes_json(config: DecoderConfig, kinds: list[str]) -> dict[str, Any]:
    """Returns the field of transformers 5 (rope_parameters), and those of 4."""
    gemma3 = config.model_type == "gemma3_text"
    ropes = dict(zip(kinds, config.ropes, strict=True))
    # Gemma 3 requires both kinds, with any values for a kind without layers; the others have one.
    ropes = {
        _SLIDING: ropes.get(_SLIDING, Rope(base=1e4)),
        _FULL: ropes.get(_FULL, Rope(base=1e6) if gemma3 else config.ropes[0]),
    }
    scaling = {
        kind: {"rope_type": rope.kind}
        | {theirs: getattr(rope, ours) for theirs, ours in _ROPE_KEYS[rope.kind].items()}
        for kind, rope in ropes.items()
    }
    new = {kind: {"rope_theta": rope.base, **scaling[kind]} for kind, rope in ropes.items()}
    full = ropes[_FULL]
    old = {
        "rope_theta": full.base,
        "rope_scaling": None if full.kind == "default" else scaling[_FULL],
    }
    if not gemma3:
        return {"rope_parameters": new[_FULL], **old}
    return {"rope_parameters": new, "rope_local_base_freq": ropes[_SLIDING].base, **old}


# Linear maps: our name, the name in Hugging Face folders, in GGUF files.
_MAPS = (
    ("attention/query", "self_attn.q_proj", "attn_q"),
    ("attention/key", "self_attn.k_proj", "attn_k"),
    ("attention/value", "self_attn.v_proj", "attn_v"),
    ("attention/output", "self_attn.o_proj", "attn_output"),
    ("mlp/gate", "mlp.gate_proj", "ffn_gate"),
    ("mlp/up", "mlp.up_proj", "ffn_up"),
    ("mlp/down", "mlp.down_proj", "ffn_down"),
)
_HEAD_NORMS = (
    ("attention/query_norm", "self_attn.q_norm", "attn_q_norm"),
    ("attention/key_norm", "self_attn.k_norm", "attn_k_norm"),
)
_NORMS = (
    ("pre_attention_norm", "input_layernorm", "attn_norm"),
    ("pre_mlp_norm", "post_attention_layernorm", "ffn_norm"),
)
_SANDWICH_NORMS = (
    ("pre_attention_norm", "input_layernorm", "attn_norm"),
    ("post_attention_norm", "post_attention_layernorm", "post_attention_norm"),
    ("pre_mlp_norm", "pre_feedforward_layernorm", "ffn_norm"),
    ("post_mlp_norm", "post_feedforward_layernorm", "post_ffw_norm"),
)
_IGNORED = (
    (r".*rotary_emb\.inv_freq", "computed from the config"),
    (r"rope_freqs\.weight", "checked against the config by read_gguf"),
    (r"blk\.\d+\.attn_rot_embd\.weight|.*\.attn_rot_embd", "computed from the config"),
    (r"(.*\.)?(score|classifier|qa_outputs)\.(weight|bias)", "the head of another task"),
    (r"(.*\.)?(vision_tower|multi_modal_projector)\..*", "reads images, not text"),
)
_TIED = (r"(.*\.)?lm_head\.weight|output\.weight", "the embedding once more: the two are tied")


def table(config: DecoderConfig, format: Format) -> Rows:
    """Returns where the parameters of a config are stored; ValueError for another format."""
    if format not in ("huggingface", "gguf"):
        raise ValueError(f"Decoders don't come in the format {format!r}: use a folder or a .gguf")
    gguf = format == "gguf"
    layer, column = ("blk.{}.", 1) if gguf else ("model.layers.{}.", 0)
    ends = ("token_embd", "output_norm", "output")
    embedding, norm, head = ends if gguf else ("model.embed_tokens", "model.norm", "lm_head")
    scale = MINUS_ONE if config.model_type.startswith("gemma") and not gguf else AS_IS
    rows = [
        Row("embedder/embedding", f"{embedding}.weight"),
        Row("final_norm/scale", f"{norm}.weight", scale),
    ]
    if not config.tied:
        rows.append(Row("lm_head/kernel", f"{head}.weight", KERNEL))
    norms = _SANDWICH_NORMS if config.post_norms else _NORMS
    for path, *names in (*norms, *_HEAD_NORMS):
        rows.append(Row(f"layer_{{}}/{path}/scale", f"{layer}{names[column]}.weight", scale))
    # GGUF's converter reorders the rotary pairs of these architectures only.
    heads = {"attention/query": config.num_heads, "attention/key": config.num_kv_heads}
    reordered = heads if gguf and config.model_type in ("llama", "mistral") else {}
    for path, *names in _MAPS:
        kernel, bias = _interleaved(heads[path]) if path in reordered else (KERNEL, AS_IS)
        rows.append(Row(f"layer_{{}}/{path}/kernel", f"{layer}{names[column]}.weight", kernel))
        rows.append(Row(f"layer_{{}}/{path}/bias", f"{layer}{names[column]}.bias", bias))
    ignored = (*_IGNORED, _TIED) if config.tied else _IGNORED
    return Rows(rows, ignored) if gguf else Rows(rows, ignored, _canonical)


def _canonical(name: str) -> str:
    """Gives tensors of bare, classifying and multimodal models the names of language models."""
    prefixes = r"(model\.language_model|language_model\.model|language_model|model|transformer)\."
    bare = re.sub(f"^{prefixes}", "", name)
    return f"model.{bare}" if re.match(r"(layers|embed_tokens|norm)\.", bare) else bare


def _interleaved(heads: int) -> tuple[Kind, Kind]:
    """Returns the kinds of a kernel and a bias with rotary pairs as neighbours: 0, N/2, 1, ...

    Llama's and Mistral's queries and keys, see `permute` of llama.cpp's convert_hf_to_gguf.py.
    """

    def read(stored: np.ndarray) -> np.ndarray:
        pairs = stored.reshape(heads, -1, 2, *stored.shape[1:])
        return pairs.swapaxes(1, 2).reshape(stored.shape)

    def write(value: np.ndarray) -> np.ndarray:
        halves = value.reshape(heads, 2, -1, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)

    kernel = Kind(lambda stored: read(stored).T, lambda value: write(value.T), KERNEL.shape)
    return kernel, Kind(read, write)


FAMILY = Family(
    DecoderConfig, MODEL_TYPES, read_config, write_config, table, GGUF_ARCHITECTURES, read_gguf
)
