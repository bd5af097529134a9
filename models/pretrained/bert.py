"""Encoder checkpoints: config.json and tensor names of BERT, RoBERTa, ERNIE, ELECTRA and ALBERT.

Hugging Face folders of all of them, and the TensorFlow checkpoints of BERT and ALBERT as Google
released them. The module itself is models/bert.py. Called through `FAMILY` by models/pretrained/.
"""

import re
from typing import Any

from models.bert import BertConfig
from models.pretrained.families import Family
from models.pretrained.fields import Fields
from models.pretrained.tables import AS_IS, KERNEL, Format, Row, Rows

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
# Names that hold for the whole family: ours -> of the field in config.json.
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
        ValueError: naming a field that is missing or asks for what the module doesn't do.
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
    activation = _ACTIVATIONS[fields.expect("hidden_act", _ACTIVATIONS.keys(), default="gelu")]
    offset, distinct, size = 0, num_layers, width
    if model_type in _ROBERTAS:
        offset = fields.get("pad_token_id", 1) + 1
    if model_type == "albert":
        fields.expect("inner_group_num", (1,), default=1)
        divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
        distinct = fields.expect("num_hidden_groups", divisors, default=1)
    if model_type in ("albert", "electra"):
        size = fields.take("embedding_size")
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
    written = {theirs: getattr(config, ours) for ours, theirs in _SHAPES.items()}
    written |= {
        "model_type": config.model_type,
        "max_position_embeddings": config.max_length + config.position_offset,
        "type_vocab_size": config.num_types,
        "hidden_act": next(
            name for name, ours in _ACTIVATIONS.items() if ours == config.activation
        ),
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
    """Returns where the parameters of a config are stored.

    Raises:
        ValueError: these models don't come in this format.
    """
    if format == "huggingface":
        return _huggingface(config)
    if format == "tensorflow" and config.model_type in ("bert", "albert"):
        return _tensorflow(config)
    raise ValueError(
        f"Checkpoints of {FAMILY.model_types[config.model_type]} in the format {format!r} can't be "
        "read: use a Hugging Face folder (config.json and model.safetensors or pytorch_model.bin)"
    )


# Where the parts of a layer, of the input and of the heads are stored: path -> name.
_BERT_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_ALBERT_LAYER = {
    "attention/query": "attention.query",
    "attention/key": "attention.key",
    "attention/value": "attention.value",
    "attention/output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "mlp/up": "ffn",
    "mlp/down": "ffn_output",
    "mlp_norm": "full_layer_layer_norm",
}
_ALBERT_TENSORFLOW_LAYER = {
    "attention/query": "attention_1/self/query",
    "attention/key": "attention_1/self/key",
    "attention/value": "attention_1/self/value",
    "attention/output": "attention_1/output/dense",
    "attention_norm": "LayerNorm",
    "mlp/up": "ffn_1/intermediate/dense",
    "mlp/down": "ffn_1/intermediate/output/dense",
    "mlp_norm": "LayerNorm_1",
}
_TABLES = {
    "embedder": "embeddings.word_embeddings",
    "embedder_positions": "embeddings.position_embeddings",
    "embedder_types": "embeddings.token_type_embeddings",
    "embedder_tasks": "embeddings.task_type_embeddings",
}
# Of the masked-language-model head by model_type: dense layer, norm, names of the output's bias.
_BERT_HEAD = (
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
)
_ROBERTA_HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder.bias")
_HEADS = {
    "bert": _BERT_HEAD,
    "ernie": _BERT_HEAD,
    "roberta": _ROBERTA_HEAD,
    "xlm-roberta": _ROBERTA_HEAD,
    "electra": (
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head.bias",
    ),
    "albert": (
        "predictions.dense",
        "predictions.LayerNorm",
        "predictions.bias",
        "predictions.decoder.bias",
    ),
}


def _huggingface(config: BertConfig) -> Rows:
    model_type = config.model_type
    prefix = "roberta." if model_type in _ROBERTAS else f"{model_type}."
    albert = model_type == "albert"
    numbered = "encoder.albert_layer_groups.{}.albert_layers.0" if albert else "encoder.layer.{}"
    projection = "encoder.embedding_hidden_mapping_in" if albert else "embeddings_project"
    modules = {"embedder_norm": "embeddings.LayerNorm", "embedder_projection": projection}
    # ELECTRA has no pooler.
    modules |= {} if model_type == "electra" else {"pooler": "pooler" if albert else "pooler.dense"}
    for path, name in (_ALBERT_LAYER if albert else _BERT_LAYER).items():
        modules[f"layer_{{}}/{path}"] = f"{numbered}.{name}"
    modules = {path: prefix + name for path, name in modules.items()}
    modules["mlm_head/transform"], modules["mlm_head/norm"], *biases = _HEADS[model_type]
    rows = [Row(f"{path}/embedding", f"{prefix}{name}.weight") for path, name in _TABLES.items()]
    for path, name in modules.items():
        weight = ("scale", AS_IS) if path.endswith("norm") else ("kernel", KERNEL)
        rows.append(Row(f"{path}/{weight[0]}", f"{name}.weight", weight[1]))
        rows.append(Row(f"{path}/bias", f"{name}.bias"))
    rows += [Row("mlm_head/bias", name) for name in biases]

    def canonical(name: str) -> str:
        name = re.sub(r"^(bert|roberta|ernie|electra|albert)\.", "", name)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        of_backbone = re.match(r"(embeddings|embeddings_project|encoder|pooler)\.", name)
        return prefix + name if of_backbone else name

    return Rows(rows, _HUGGINGFACE_IGNORED, canonical)


_HUGGINGFACE_IGNORED = (
    (r".*embeddings\.(position_ids|token_type_ids)", "constants that old versions saved"),
    (
        r"((cls\.)?predictions|lm_head)\.decoder\.weight|generator_lm_head\.weight",
        "the output's copy of the token embedding, to which it is tied",
    ),
    (r"cls\.seq_relationship\..*", "next-sentence prediction, a task of pretraining only"),
    (r"sop_classifier\..*", "sentence-order prediction, a task of pretraining only"),
    (r"discriminator_predictions\..*", "replaced-token detection, a task of pretraining only"),
    (
        r"(classifier|qa_outputs)\..*",
        "the head of the task this checkpoint was fine-tuned for; a run has a head of its own",
    ),
)


def _tensorflow(config: BertConfig) -> Rows:
    albert = config.model_type == "albert"
    numbered = "encoder/transformer/group_{}/inner_group_0" if albert else "encoder/layer_{}"
    modules = {
        "embedder_norm": "bert/embeddings/LayerNorm",
        "embedder_projection": "bert/encoder/embedding_hidden_mapping_in",
        "pooler": "bert/pooler/dense",
        "mlm_head/transform": "cls/predictions/transform/dense",
        "mlm_head/norm": "cls/predictions/transform/LayerNorm",
    }
    for path, name in (_ALBERT_TENSORFLOW_LAYER if albert else _BERT_LAYER).items():
        modules[f"layer_{{}}/{path}"] = f"bert/{numbered}/{name.replace('.', '/')}"
    rows = [
        Row(f"{path}/embedding", f"bert/{name.replace('.', '/')}") for path, name in _TABLES.items()
    ]
    for path, name in modules.items():
        norm = path.endswith("norm")
        rows.append(
            Row(
                f"{path}/{'scale' if norm else 'kernel'}", f"{name}/{'gamma' if norm else 'kernel'}"
            )
        )
        rows.append(Row(f"{path}/bias", f"{name}/{'beta' if norm else 'bias'}"))
    rows.append(Row("mlm_head/bias", "cls/predictions/output_bias"))
    return Rows(rows, _TENSORFLOW_IGNORED, lambda name: name.removeprefix("module/"))


_TENSORFLOW_IGNORED = (
    (r"global_step", "the step of the pretraining"),
    (r".*/(adam|lamb)_[mv](_\d+)?", "the optimiser's moments"),
    (r"(module/)?cls/seq_relationship/.*", "next-sentence prediction, a task of pretraining only"),
    (
        r"output_(weights|bias)(/.*)?",
        "the head of the task this checkpoint was fine-tuned for; a run has a head of its own",
    ),
)

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
