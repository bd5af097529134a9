"""Encoder-decoder checkpoints: config.json and tensor names of T5, mT5, Mengzi-T5 and umT5.

Hugging Face folders of all of them, whole models or the encoder alone. feed_forward_proj and the
tying of the output layer determine which of T5's versions a folder holds. The module itself is
models/t5.py.
"""

from typing import Any

from models.pretrained.fields import Fields
from models.pretrained.tables import KERNEL, OTHER_HEAD, Family, Format, Row, Rows, unreadable
from models.t5 import T5Config

# `feed_forward_proj` -> activation, gated. 'gelu' has always meant the tanh form in gated ones.
_FEED_FORWARDS = {
    "relu": ("relu", False),
    "gated-relu": ("relu", True),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-gelu_new": ("gelu_tanh", True),
    "silu": ("silu", False),
    "gated-silu": ("silu", True),
}
# Ours -> the field in config.json: required fields, and fields with a default.
_SHAPES = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "head_size": "d_kv",
    "hidden": "d_ff",
}
_OPTIONS = {
    "num_buckets": ("relative_attention_num_buckets", 32),
    "max_distance": ("relative_attention_max_distance", 128),
    "norm_epsilon": ("layer_norm_epsilon", 1e-6),
    "pad_id": ("pad_token_id", 0),
}
_IGNORED = (
    (
        r".*EncDecAttention\.relative_attention_bias\.weight",
        "old versions saved it; attention to the source never had a bias",
    ),
    (r"(classification_head|classifier|qa_outputs)\..*", OTHER_HEAD),
)


def read_config(fields: Fields) -> T5Config:
    """Reads config.json.

    Raises:
        ValueError: names a field that is missing or asks for an unimplemented feature.
    """
    model_type = fields.take("model_type")
    default = "relu" if model_type == "t5" else "gated-gelu"
    kind = fields.expect("feed_forward_proj", _FEED_FORWARDS, default=default)
    activation, gated = _FEED_FORWARDS[kind]
    shapes = {ours: fields.take(theirs) for ours, theirs in _SHAPES.items()}
    options = {ours: fields.get(*field) for ours, field in _OPTIONS.items()}
    end_id = fields.get("eos_token_id", 1)
    return T5Config(
        model_type=model_type,
        num_decoder_layers=fields.get("num_decoder_layers", shapes["num_layers"]),
        activation=activation,
        gated=gated,
        bias_per_layer=model_type == "umt5",
        tied=_is_tied(fields, model_type),
        start_id=fields.get("decoder_start_token_id", options["pad_id"]),
        end_id=end_id[0] if isinstance(end_id, list) else end_id,
        **shapes,
        **options,
    )


def _is_tied(fields: Fields, model_type: str) -> bool:
    """Returns whether logits come from the token table.

    Up to version 4 transformers said so in tie_word_embeddings. Version 5 always writes True there,
    whether the file holds an output layer or not. For T5 scale_decoder_outputs then distinguishes
    1.0 from 1.1; no tied checkpoint of mT5 or umT5 was released.
    """
    tied = fields.get("tie_word_embeddings", True)
    if model_type == "t5":
        return fields.get("scale_decoder_outputs", tied)
    version = str(fields.get("transformers_version", "4"))
    return tied and version.split(".")[0] in ("2", "3", "4")


def write_config(config: T5Config) -> dict[str, Any]:
    """Returns the contents of config.json, without "architectures"."""
    kinds = {choice: name for name, choice in reversed(_FEED_FORWARDS.items())}  # the first wins
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _SHAPES.items()},
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _OPTIONS.items()},
        "model_type": config.model_type,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": kinds[config.activation, config.gated],
        "tie_word_embeddings": config.tied,
        "decoder_start_token_id": config.start_id,
        "eos_token_id": config.end_id,
        "is_encoder_decoder": True,
    }


def table(config: T5Config, format: Format) -> Rows:
    """Returns where the parameters of a config are stored; ValueError for another format."""
    if format != "huggingface":
        raise unreadable(FAMILY.model_types[config.model_type], format)
    # A tied table may be stored under any of its names, or under several.
    names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]
    names += ["lm_head"] if config.tied else []
    rows = [Row("embedder/embedding", f"{name}.weight") for name in names]
    rows += [] if config.tied else [Row("lm_head/kernel", "lm_head.weight", KERNEL)]
    rows += _stack(config, "", "encoder") + _stack(config, "decoder/", "decoder")
    return Rows(rows, _IGNORED, lambda name: name.removeprefix("transformer."))


def _stack(config: T5Config, path: str, name: str) -> list[Row]:
    """Returns the rows of the encoder (path '') or the decoder (path 'decoder/')."""
    layer, block = f"{path}layer_{{}}", f"{name}.block.{{}}.layer"
    attentions = {"q": "query", "k": "key", "v": "value", "o": "output"}
    maps = {"wi_0": "gate", "wi_1": "up"} if config.gated else {"wi": "up"}
    # In the order in which a layer of the checkpoint numbers its blocks.
    blocks = {"attention": ("SelfAttention", attentions)}
    if name == "decoder":
        blocks["cross_attention"] = ("EncDecAttention", attentions)
    blocks["mlp"] = ("DenseReluDense", maps | {"wo": "down"})
    rows = [Row(f"{path}final_norm/scale", f"{name}.final_layer_norm.weight")]
    for number, (ours, (theirs, parts)) in enumerate(blocks.items()):
        rows.append(Row(f"{layer}/pre_{ours}_norm/scale", f"{block}.{number}.layer_norm.weight"))
        for stored, part in parts.items():
            tensor = f"{block}.{number}.{theirs}.{stored}.weight"
            rows.append(Row(f"{layer}/{ours}/{part}/kernel", tensor, KERNEL))
    owner, index = (f"{layer}/attention/", "{}") if config.bias_per_layer else (path, "0")
    bias = f"{name}.block.{index}.layer.0.SelfAttention.relative_attention_bias.weight"
    return [*rows, Row(f"{owner}relative_bias/embedding", bias)]


FAMILY = Family(
    config_class=T5Config,
    model_types={"t5": "T5 (1.1, Mengzi-T5)", "mt5": "mT5", "umt5": "umT5"},
    read_config=read_config,
    write_config=write_config,
    table=table,
)
