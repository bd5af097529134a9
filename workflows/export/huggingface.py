"""A classifier as a folder that transformers loads: which class, which tensors, which tokeniser.

Where transformers' class for sequence classification computes what ours does, the folder is one of
it; else it holds the backbone, with the head in a file of its own and the reason in README.md.
Called by workflows/export/export.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.heads import Model
from models.pretrained import open_checkpoint, safetensors
from models.pretrained.tables import KERNEL, Row, Rows, tensors_from
from training.experiment import Experiment

MODEL, HEAD = "model.safetensors", "head.safetensors"
# Stems of transformers' class names by model_type.
STEMS = {
    "bert": "Bert",
    "ernie": "Ernie",
    "albert": "Albert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "electra": "Electra",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "t5": "T5Encoder",
    "mt5": "MT5Encoder",
    "umt5": "UMT5Encoder",
}
_HEAD_ALONE = (Row("head/kernel", "weight", KERNEL), Row("head/bias", "bias"))
# Heads behind the pooler: plain ones, and RoBERTa's, whose pooler is part of the head.
_PLAIN = (Row("head/kernel", "classifier.weight", KERNEL), Row("head/bias", "classifier.bias"))
_DENSE = (
    Row("backbone/pooler/kernel", "classifier.dense.weight", KERNEL),
    Row("backbone/pooler/bias", "classifier.dense.bias"),
    Row("head/kernel", "classifier.out_proj.weight", KERNEL),
    Row("head/bias", "classifier.out_proj.bias"),
)
_ENCODERS = {"bert": _PLAIN, "ernie": _PLAIN, "albert": _PLAIN}
_ENCODERS |= {"roberta": _DENSE, "xlm-roberta": _DENSE}
_SAMPLE = "我们在北京看了《红楼梦》，2024 年 OK。"  # that the tokeniser is compared on
_SCORE = (Row("head/kernel", "score.weight", KERNEL),)

# Classes by a file that only they have.
_TOKENIZERS = {
    "vocab.txt": "BertTokenizer",
    "merges.txt": "RobertaTokenizer",
    "sentencepiece.bpe.model": "XLMRobertaTokenizer",
    "spiece.model": "T5Tokenizer",
}


class Form(NamedTuple):
    """How a classifier is stored.

    Attributes:
        architecture: transformers' class that loads the folder.
        rows: where the head's parameters are, and those of the backbone that belong to its head.
        file: which file these are in.
        prose: one line on what it is and, for a backbone, why.
    """

    architecture: str
    rows: tuple[Row, ...]
    file: str
    prose: str


def form_of(model: Model) -> Form:
    """Chooses the form of a classifier."""
    model_type = model.config.model_type
    stem, kind = STEMS[model_type], model.task_head.pooling
    whole = f"{stem}ForSequenceClassification"
    if model_type in _ENCODERS and kind == "pooler":
        return Form(whole, _ENCODERS[model_type], MODEL, f"{whole} of transformers")
    is_decoder = hasattr(model.config, "bidirectional")
    if is_decoder and kind == "last" and not model.task_head.bias:
        return Form(whole, _SCORE, MODEL, f"{whole} of transformers")
    if is_decoder and kind == "last":
        why = f"{whole} has no bias on its head (train with config.model.head_bias=False for it)"
    elif is_decoder:
        why = f"{whole} reads the last position (train with config.model.pooling='last' for it)"
    elif model_type in _ENCODERS:
        why = f"{whole} has a pooler (train with config.model.pooling='pooler' for it)"
    else:
        why = f"{whole.replace('Encoder', '')} has another head"
    rows = _HEAD_ALONE if model.task_head.bias else _HEAD_ALONE[:1]
    return Form(f"{stem}Model", rows, HEAD, f"{stem}Model of transformers and {HEAD}, since {why}")


def write(experiment: Experiment, params: Mapping[str, Any], folder: Path, title: str) -> Form:
    """Writes weights, config.json, tokeniser and README.md.

    Args:
        experiment: of the run.
        params: flat numpy arrays of the checkpoint, without an adapter.
        folder: to write to; empty.
        title: names the checkpoint, for README.md.

    Raises:
        ValueError: a config that the family's format can't say.
    """
    model, family = experiment.model, experiment.checkpoint.family
    form = form_of(model)
    if "head/bias" not in params:  # those of encoders always have one
        params = {**params, "head/bias": np.zeros(model.task_head.num_classes, np.float32)}
    named = {row.parameter for row in form.rows}
    head = tensors_from({p: v for p, v in params.items() if p in named}, Rows(form.rows))
    backbone = {
        path.removeprefix("backbone/"): value
        for path, value in params.items()
        if path.startswith("backbone/") and path not in named
    }
    tensors = tensors_from(backbone, family.table(model.config, "huggingface"))
    fields = family.write_config(model.config) | _fields(experiment, form)
    if form.file == HEAD:
        safetensors.write(folder / HEAD, head)
    safetensors.write(folder / MODEL, tensors if form.file == HEAD else tensors | head)
    _write_json(folder / "config.json", fields)
    for name, content in tokenizer_files(experiment, fields).items():
        (folder / name).write_bytes(content)
    check_tokenizer(experiment.tokenizer, folder)
    readme = _readme(experiment, form, title)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return form


def read(form: Form, model: Model, folder: Path) -> dict[str, np.ndarray]:
    """Reads back what `write` wrote: flat parameters."""
    checkpoint = open_checkpoint(folder)
    parts = [
        part
        for part in checkpoint.parts
        if part == "pooler" and model.task_head.pooling == "pooler"
    ]
    params: dict[str, np.ndarray] = {}

    def place(path: str, value: np.ndarray) -> None:
        params[f"backbone/{path}"] = np.array(value, np.float32)

    checkpoint.read(parts, place=place)
    stored = safetensors.read(folder / form.file)
    for row in form.rows:
        params[row.parameter] = np.array(row.kind.read(stored[row.name].read()), np.float32)
    return params


def _fields(experiment: Experiment, form: Form) -> dict[str, Any]:
    """Returns what config.json says beside the backbone's shapes."""
    labels, tokenizer = experiment.task.labels, experiment.tokenizer
    fields: dict[str, Any] = {
        "architectures": [form.architecture],
        "dtype": "float32",
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
        "pad_token_id": pad_id(experiment),
    }
    for role in ("bos", "eos"):
        if (token_id := getattr(tokenizer, f"{role}_id")) >= 0:
            fields[f"{role}_token_id"] = token_id
    return fields


def pad_id(experiment: Experiment) -> int | None:
    """Returns the id of padding, or one that can serve, since a text can't end in it.

    transformers' classifiers on decoders read the last position that holds another id than this.
    """
    tokenizer, last = experiment.tokenizer, experiment.pipeline.encoder.around[-1][-1:]
    candidates = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id)
    return next((i for i in candidates if i >= 0 and [i] != last), None)


def tokenizer_files(experiment: Experiment, fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the tokeniser's files, with a tokenizer_config.json that says all it needs."""
    tokenizer = experiment.tokenizer
    files = tokenizer.files()
    name = "tokenizer_config.json"
    config = json.loads(files.get(name, b"{}"))
    config["tokenizer_class"] = config.get("tokenizer_class") or _tokenizer_class(
        tokenizer, files, fields["model_type"]
    )
    for role in ("bos", "eos", "pad", "unk", "mask"):
        token_id = fields["pad_token_id"] if role == "pad" else getattr(tokenizer, f"{role}_id")
        if token_id is not None and token_id >= 0:
            config.setdefault(f"{role}_token", tokenizer.piece(token_id))
    config |= {"model_max_length": experiment.config.layout.max_length, "padding_side": "right"}
    config["split_special_tokens"] = True  # '<bos>' in a text is five characters
    if "tokenizer.model" in files:
        config["add_bos_token"] = bool(tokenizer.start_ids)
        config["add_eos_token"] = bool(tokenizer.end_ids)
        config.setdefault("add_prefix_space", tokenizer.processor.normalize("a") != "a")
    return files | {name: json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"}


def _tokenizer_class(tokenizer: Tokenizer, files: Mapping[str, bytes], model_type: str) -> str:
    if "tokenizer.json" in files and not isinstance(tokenizer, SentencePieceTokenizer):
        return "PreTrainedTokenizerFast"
    for file, name in _TOKENIZERS.items():
        if file in files:
            return name
    return "GemmaTokenizer" if model_type.startswith("gemma") else "LlamaTokenizer"


def check_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Reads the tokeniser of a written folder again.

    Raises:
        ValueError: it is read as another one.
    """
    again = load_tokenizer(folder)
    same = again.encode_batch([_SAMPLE]) == tokenizer.encode_batch([_SAMPLE])
    if not same or not again.role_ids.items() >= tokenizer.role_ids.items():
        raise ValueError(
            f"{folder}, read again, holds another tokeniser than the trained model: don't use it, "
            "and report this with the config"
        )


def _readme(experiment: Experiment, form: Form, title: str) -> str:
    """Says how to load the folder, and what texts go through before the tokeniser."""
    config, model = experiment.config, experiment.model
    whole = form.file == MODEL
    auto = "AutoModelForSequenceClassification" if whole else form.architecture
    lines = [
        "# A text classifier",
        "",
        f"{title[0].upper()}{title[1:]}: {form.prose}.",
        f"Labels: {', '.join(experiment.task.labels)}.",
        "",
        "```python",
        f"from transformers import AutoTokenizer, {auto}",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder)",
        "```",
        "",
    ]
    if not whole:
        pooled = {
            "pooler": "tanh(pooler(hidden of the first position))",
            "first": "the hidden state of each text's first position",
            "last": "the hidden state of each text's last position",
            "mean": "the mean of the hidden states of each text's positions, marks included",
        }[model.task_head.pooling]
        bias = " + bias" if model.task_head.bias else ""
        lines += [
            f"The head: logits = pooled @ weight.T{bias} of {HEAD}, where pooled is {pooled}."
        ]
    if model.config.model_type in ("gemma2", "gemma3_text") and model.dtype != np.float32:
        lines += [f"It was trained computing in {np.dtype(model.dtype).name}."]
    lines += [
        f"Texts are read as `{config.data.template}`, cut to {config.layout.max_length} tokens "
        "with the words and marks around them, which are tokenised apart from the text."
    ]
    if ops := tuple(config.data.normalization):
        lines += [f"Before that they are recoded by {', '.join(ops)}; the code is in ../stablehlo."]
    if config.tokenizer.marks != "auto":
        lines += [
            f"Marks were config.tokenizer.marks={config.tokenizer.marks!r}, not what the family "
            "puts around texts: give the model ids with these marks."
        ]
    return "\n".join(lines) + "\n"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
