"""Encoder checkpoints: config.json and tensor names of BERT, RoBERTa, ERNIE, ELECTRA and ALBERT.

Hugging Face folders of all of them, and the TensorFlow checkpoints of BERT and ALBERT as Google
released them. The module itself is models/bert.py.
"""

import re
from typing import Any

from models.bert import BertConfig
from models.pretrained.fields import Fields
from models.pretrained.tables import (
    AS_IS,
    KERNEL,
    OTHER_HEAD,
    Family,
    Format,
    Row,
    Rows,
    unreadable,
)

# `hidden_act` -> key of layers.ACTIVATIONS; the first of several is what is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_ROBERTAS = ("roberta", "xlm-roberta")
# Names that hold for the whole family: ours -> the field in config.json.
_SHAPES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden": "intermediate_size",
}


def read_config(fields: Fields) -> BertConfig:
    """Reads config.json, or the bert_config.json of a TensorFlow checkpoint.

    Raises:
        ValueError: names a field that is missing or asks for an unimplemented feature.
    """
    model_type = fields.get("model_type", "bert")
    shapes = {ours: fields.take(theirs) for ours, theirs in _SHAPES.items()}
    width, num_layers = shapes["width"], shapes["num_layers"]
    if width % shapes["num_heads"]:
        raise ValueError(
            f"{fields.file}: hidden_size {width} is no multiple of num_attention_heads "
            f"{shapes['num_heads']}: use the config.json saved with the weights"
        )
    fields.expect("position_embedding_type", ("absolute",), default="absolute")
    fields.expect("is_decoder", (False,), default=False)
    fields.expect("tie_word_embeddings", (True,), default=True)
    activation = _ACTIVATIONS[fields.expect("hidden_act", _ACTIVATIONS, default="gelu")]
    # RoBERTa's positions start behind its padding id.
    offset = fields.get("pad_token_id", 1) + 1 if model_type in _ROBERTAS else 0
    distinct = num_layers
    if model_type == "albert":
        fields.expect("inner_group_num", (1,), default=1)
        divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
        distinct = fields.expect("num_hidden_groups", divisors, default=1)
    size = fields.take("embedding_size") if model_type in ("albert", "electra") else width
    uses_tasks = model_type == "ernie" and fields.get("use_task_id", False)
    return BertConfig(
        model_type=model_type,
        num_distinct_layers=distinct,
        max_length=fields.take("max_position_embeddings") - offset,
        position_offset=offset,
        num_types=fields.get("type_vocab_size", 2),
        num_tasks=fields.get("task_type_vocab_size", 3) if uses_tasks else 0,
        embedding_size=size,
        embedder_projection=model_type == "albert" or size != width,
        activation=activation,
        # RoBERTa and ELECTRA have it in their code, whatever hidden_act says.
        head_activation="gelu" if model_type in (*_ROBERTAS, "electra") else activation,
        norm_epsilon=fields.get("layer_norm_eps", 1e-12),
        **shapes,
    )


def write_config(config: BertConfig) -> dict[str, Any]:
    """Returns the contents of config.json, without "architectures"."""
    activations = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}  # the first wins
    written = {
        **{theirs: getattr(config, ours) for ours, theirs in _SHAPES.items()},
        "model_type": config.model_type,
        "max_position_embeddings": config.max_length + config.position_offset,
        "type_vocab_size": config.num_types,
        "hidden_act": activations[config.activation],
        "layer_norm_eps": config.norm_epsilon,
    }
    if config.model_type in _ROBERTAS:
        written["pad_token_id"] = config.position_offset - 1
    if config.model_type in ("albert", "electra"):
        written["embedding_size"] = config.embedding_size
    if config.model_type == "albert":
        written |= {"num_hidden_groups": config.num_distinct_layers, "inner_group_num": 1}
    if config.model_type == "ernie":
        written["use_task_id"] = bool(config.num_tasks)
        written["task_type_vocab_size"] = config.num_tasks or 3
    return written


def table(config: BertConfig, format: Format) -> Rows:
    """Returns where the parameters of a config are stored; ValueError for another format."""
    if format in ("huggingface", "e5"):  # e5.py gives its tensors the same names
        return _huggingface(config)
    if format == "tensorflow" and config.model_type in ("bert", "albert"):
        return _tensorflow(config)
    raise unreadable(FAMILY.model_types[config.model_type], format)


# Parts of a layer: our path, BERT's name, ALBERT's name, ALBERT's name in TensorFlow.
_LAYER = (
    ("attention/query", "attention.self.query", "attention.query", "attention_1/self/query"),
    ("attention/key", "attention.self.key", "attention.key", "attention_1/self/key"),
    ("attention/value", "attention.self.value", "attention.value", "attention_1/self/value"),
    ("attention/output", "attention.output.dense", "attention.dense", "attention_1/output/dense"),
    ("attention_norm", "attention.output.LayerNorm", "attention.LayerNorm", "LayerNorm"),
    ("mlp/up", "intermediate.dense", "ffn", "ffn_1/intermediate/dense"),
    ("mlp/down", "output.dense", "ffn_output", "ffn_1/intermediate/output/dense"),
    ("mlp_norm", "output.LayerNorm", "full_layer_layer_norm", "LayerNorm_1"),
)
_TABLES = {
    "embedder": "embeddings.word_embeddings",
    "embedder_positions": "embeddings.position_embeddings",
    "embedder_types": "embeddings.token_type_embeddings",
    "embedder_tasks": "embeddings.task_type_embeddings",
}
# The masked-language-model head: prefix of its names; dense layer, norm, the output's biases.
_BERT_HEAD = ("cls.predictions.", "transform.dense", "transform.LayerNorm", "bias", "decoder.bias")
_ROBERTA_HEAD = ("lm_head.", "dense", "layer_norm", "bias", "decoder.bias")
_HEADS = {
    "bert": _BERT_HEAD,
    "ernie": _BERT_HEAD,
    "roberta": _ROBERTA_HEAD,
    "xlm-roberta": _ROBERTA_HEAD,
    "electra": ("generator_", "predictions.dense", "predictions.LayerNorm", "lm_head.bias"),
    "albert": ("predictions.", "dense", "LayerNorm", "bias", "decoder.bias"),
}
_HUGGINGFACE_IGNORED = (
    (r".*embeddings\.(position_ids|token_type_ids)", "constants that old versions saved"),
    (
        r"((cls\.)?predictions|lm_head)\.decoder\.weight|generator_lm_head\.weight",
        "the output's copy of the token embedding, to which it is tied",
    ),
    (r"cls\.seq_relationship\..*", "next-sentence prediction, a task of pretraining only"),
    (r"sop_classifier\..*", "sentence-order prediction, a task of pretraining only"),
    (r"discriminator_predictions\..*", "replaced-token detection, a task of pretraining only"),
    (r"(classifier|qa_outputs)\..*", OTHER_HEAD),
)
_TENSORFLOW_IGNORED = (
    (r"global_step", "the step of the pretraining"),
    (r".*/(adam|lamb)_[mv](_\d+)?", "the optimiser's moments"),
    (r"(module/)?cls/seq_relationship/.*", "next-sentence prediction, a task of pretraining only"),
    (r"output_(weights|bias)(/.*)?", OTHER_HEAD),
)


def _huggingface(config: BertConfig) -> Rows:
    model_type = config.model_type
    prefix = "roberta." if model_type in _ROBERTAS else f"{model_type}."
    albert = model_type == "albert"
    layer = "encoder.albert_layer_groups.{}.albert_layers.0" if albert else "encoder.layer.{}"
    projection = "encoder.embedding_hidden_mapping_in" if albert else "embeddings_project"
    modules = {"embedder_norm": "embeddings.LayerNorm", "embedder_projection": projection}
    if model_type != "electra":  # which has no pooler
        modules["pooler"] = "pooler" if albert else "pooler.dense"
    for path, *names in _LAYER:
        modules[f"layer_{{}}/{path}"] = f"{layer}.{names[1 if albert else 0]}"
    modules = {path: prefix + name for path, name in modules.items()}
    of_head, *names = _HEADS[model_type]
    transform, norm, *biases = (of_head + name for name in names)
    modules |= {"mlm_head/transform": transform, "mlm_head/norm": norm}
    rows = [Row(f"{path}/embedding", f"{prefix}{name}.weight") for path, name in _TABLES.items()]
    for path, name in modules.items():
        leaf, kind = ("scale", AS_IS) if path.endswith("norm") else ("kernel", KERNEL)
        rows.append(Row(f"{path}/{leaf}", f"{name}.weight", kind))
        rows.append(Row(f"{path}/bias", f"{name}.bias"))
    rows += [Row("mlm_head/bias", name) for name in biases]

    def canonical(name: str) -> str:
        name = re.sub(r"^(bert|roberta|ernie|electra|albert)\.", "", name)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        of_backbone = re.match(r"(embeddings|embeddings_project|encoder|pooler)\.", name)
        return prefix + name if of_backbone else name

    return Rows(rows, _HUGGINGFACE_IGNORED, canonical)


def _tensorflow(config: BertConfig) -> Rows:
    albert = config.model_type == "albert"
    layer = "encoder/transformer/group_{}/inner_group_0" if albert else "encoder/layer_{}"
    modules = {
        "embedder_norm": "bert/embeddings/LayerNorm",
        "embedder_projection": "bert/encoder/embedding_hidden_mapping_in",
        "pooler": "bert/pooler/dense",
        "mlm_head/transform": "cls/predictions/transform/dense",
        "mlm_head/norm": "cls/predictions/transform/LayerNorm",
    }
    for path, bert_name, _, albert_name in _LAYER:
        name = albert_name if albert else bert_name.replace(".", "/")
        modules[f"layer_{{}}/{path}"] = f"bert/{layer}/{name}"
    rows = [Row("mlm_head/bias", "cls/predictions/output_bias")]
    for path, name in _TABLES.items():
        rows.append(Row(f"{path}/embedding", f"bert/{name.replace('.', '/')}"))
    for path, name in modules.items():
        norm = path.endswith("norm")
        weight, stored, bias = ("scale", "gamma", "beta") if norm else ("kernel", "kernel", "bias")
        rows += [Row(f"{path}/{weight}", f"{name}/{stored}"), Row(f"{path}/bias", f"{name}/{bias}")]
    return Rows(rows, _TENSORFLOW_IGNORED, lambda name: name.removeprefix("module/"))


FAMILY = Family(
    config_class=BertConfig,
    model_types={
        "bert": "BERT (RoBERTa-wwm, MacBERT)",
        "roberta": "RoBERTa",
        "xlm-roberta": "XLM-R",
        "ernie": "ERNIE",
        "electra": "ELECTRA",
        "albert": "ALBERT",
    },
    read_config=read_config,
    write_config=write_config,
    table=table,
)
