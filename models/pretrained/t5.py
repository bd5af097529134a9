"""Encoder-decoder checkpoints: config.json and tensor names of T5, mT5, Mengzi-T5 and umT5.

Hugging Face folders of all of them, whole models or the encoder alone. Which of T5's versions it is
follows from feed_forward_proj and from whether the output layer is tied. The module itself is
models/t5.py. Called through `FAMILY` by models/pretrained/.
"""

from typing import Any

from models.pretrained.families import Family
from models.pretrained.fields import Fields
from models.pretrained.tables import KERNEL, Format, Row, Rows
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
# Ours -> of the field in config.json: fields that must be there, and those with a default.
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


def read_config(fields: Fields) -> T5Config:
    """Reads config.json.

    Raises:
        ValueError: naming a field that is missing or asks for what the module doesn't do.
    """
    model_type = fields.take("model_type")
    default = "relu" if model_type == "t5" else "gated-gelu"
    kind = fields.expect("feed_forward_proj", _FEED_FORWARDS.keys(), default=default)
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
    """Says whether logits come from the token table.

    Up to version 4 transformers said so in tie_word_embeddings. Version 5 always writes True there,
    whether the file holds an output layer or not. For T5 scale_decoder_outputs tells 1.0 from 1.1
    then; of mT5 and umT5 no tied checkpoint was released.
    """
    tied = fields.get("tie_word_embeddings", True)
    if model_type == "t5":
        return fields.get("scale_decoder_outputs", tied)
    version = str(fields.get("transformers_version", "4"))
    return tied and version.split(".")[0] in ("2", "3", "4")


def write_config(config: T5Config) -> dict[str, Any]:
    """Returns the contents of config.json, without "architectures"."""
    written = {theirs: getattr(config, ours) for ours, theirs in _SHAPES.items()}
    written |= {theirs: getattr(config, ours) for ours, (theirs, _) in _OPTIONS.items()}
    feed_forward = (config.activation, config.gated)
    return written | {
        "model_type": config.model_type,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": next(
            name for name, ours in _FEED_FORWARDS.items() if ours == feed_forward
        ),
        "tie_word_embeddings": config.tied,
        "decoder_start_token_id": config.start_id,
        "eos_token_id": config.end_id,
        "is_encoder_decoder": True,
    }


def table(config: T5Config, format: Format) -> Rows:
    """Returns where the parameters of a config are stored.

    Raises:
        ValueError: these models don't come in this format.
    """
    if format != "huggingface":
        raise ValueError(
            f"Checkpoints of {FAMILY.model_types[config.model_type]} in the format {format!r} "
            "can't be read: use a Hugging Face folder (config.json and model.safetensors or "
            "pytorch_model.bin)"
        )
    # A tied table may be stored under any of its names, or under several.
    names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]
    names += ["lm_head"] if config.tied else []
    rows = [Row("embedder/embedding", f"{name}.weight") for name in names]
    rows += [] if config.tied else [Row("lm_head/kernel", "lm_head.weight", KERNEL)]
    return Rows(
        rows + _stack(config, "", "encoder") + _stack(config, "decoder/", "decoder"),
        _IGNORED,
        lambda name: name.removeprefix("transformer."),
    )


def _stack(config: T5Config, path: str, name: str) -> list[Row]:
    """Rows of the encoder (path '') or the decoder (path 'decoder/')."""
    layer, block = f"{path}layer_{{}}", f"{name}.block.{{}}.layer"
    blocks = {"attention": "0.SelfAttention"}
    if name == "decoder":
        blocks["cross_attention"] = "1.EncDecAttention"
    feed_forward = len(blocks)
    rows = [Row(f"{path}final_norm/scale", f"{name}.final_layer_norm.weight")]
    for number, (ours, theirs) in enumerate(blocks.items()):
        rows.append(Row(f"{layer}/pre_{ours}_norm/scale", f"{block}.{number}.layer_norm.weight"))
        for part in ("query", "key", "value", "output"):
            stored = f"{block}.{theirs}.{part[0]}.weight"
            rows.append(Row(f"{layer}/{ours}/{part}/kernel", stored, KERNEL))
    rows.append(Row(f"{layer}/pre_mlp_norm/scale", f"{block}.{feed_forward}.layer_norm.weight"))
    parts = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
    for ours, theirs in (parts | {"down": "wo"}).items():
        stored = f"{block}.{feed_forward}.DenseReluDense.{theirs}.weight"
        rows.append(Row(f"{layer}/mlp/{ours}/kernel", stored, KERNEL))
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    if config.bias_per_layer:
        bias_row = Row(f"{layer}/attention/relative_bias/embedding", f"{name}.block.{{}}.{bias}")
    else:
        bias_row = Row(f"{path}relative_bias/embedding", f"{name}.block.0.{bias}")
    return [*rows, bias_row]


_IGNORED = (
    (
        r".*EncDecAttention\.relative_attention_bias\.weight",
        "old versions saved it; attention to the source never had a bias",
    ),
    (
        r"(classification_head|classifier|qa_outputs)\..*",
        "the head of the task this checkpoint was fine-tuned for; a run has a head of its own",
    ),
)

FAMILY = Family(
    config_class=T5Config,
    model_types={"t5": "T5 (1.1, Mengzi-T5)", "mt5": "mT5", "umt5": "umT5"},
    read_config=read_config,
    write_config=write_config,
    table=table,
)
