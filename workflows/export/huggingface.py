"""A model as a folder that transformers loads: which class, which tensors, which tokeniser.

Where transformers' class for sequence classification computes what ours does, a classifier is one
of it; else the folder holds the backbone, with the head in a separate file and the reason in
README.md. A language model is written whole, so that its folder is config.model.checkpoint of
whatever is fine-tuned from it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.files import write_json, write_text
from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from input_pipeline.tokenizers.tokenization import Tokenizer
from input_pipeline.tokenizers.tokenizer_json import put_marks
from models.backbone import flatten, parts_of
from models.heads import Model
from models.pretrained import open_checkpoint, safetensors, sentence_transformers
from models.pretrained.tables import KERNEL, Row, Rows, tensors_from
from training.experiment import Experiment

MODEL, HEAD = "model.safetensors", "head.safetensors"
_HEAD_ALONE = (Row("head/kernel", "weight", KERNEL), Row("head/bias", "bias"))
# Heads behind the pooler: plain ones, and RoBERTa's, whose pooler is part of the head.
_PLAIN = (Row("head/kernel", "classifier.weight", KERNEL), Row("head/bias", "classifier.bias"))
_DENSE = (
    Row("backbone/pooler/kernel", "classifier.dense.weight", KERNEL),
    Row("backbone/pooler/bias", "classifier.dense.bias"),
    Row("head/kernel", "classifier.out_proj.weight", KERNEL),
    Row("head/bias", "classifier.out_proj.bias"),
)
_ENCODERS = dict.fromkeys(("bert", "ernie", "albert"), _PLAIN)
_ENCODERS |= dict.fromkeys(("roberta", "xlm-roberta"), _DENSE)
_SCORE = (Row("head/kernel", "score.weight", KERNEL),)
_SAMPLES = ("这家酒店的早餐很好", "2024年", "OK，谢谢", "《红楼梦》", " 空格")
_SAMPLE = "我们在北京看了《红楼梦》，2024 年 OK。"  # that the tokeniser is compared on

# Classes by a file that only they have.
_TOKENIZERS = {
    "vocab.txt": "BertTokenizer",
    "merges.txt": "RobertaTokenizer",
    "sentencepiece.bpe.model": "XLMRobertaTokenizer",
    "spiece.model": "T5Tokenizer",
}
_POOLED = {
    "pooler": "tanh(pooler(hidden of the first position))",
    "first": "the hidden state of each text's first position",
    "last": "the hidden state of each text's last position",
    "mean": "the mean of the hidden states of each text's positions, marks included",
}


class Form(NamedTuple):
    """How a model is stored.

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
    model_type, kind = model.config.model_type, model.task_head.pooling
    stem = _stem(model_type)
    whole, bare = f"{stem}ForSequenceClassification", f"{stem}Model"
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
        why = f"{whole} has another head"
    if model_type.endswith("t5"):
        bare = f"{stem}EncoderModel"
    rows = _HEAD_ALONE if model.task_head.bias else _HEAD_ALONE[:1]
    return Form(bare, rows, HEAD, f"{bare} of transformers and {HEAD}, since {why}")


def _stem(model_type: str) -> str:
    """Returns the stem of transformers' class names, such as 'Gemma3Text'."""
    if model_type == "xlm-roberta":
        return "XLMRoberta"
    if model_type.endswith("t5"):
        return model_type.upper()
    return "".join(map(str.capitalize, model_type.split("_")))


def write(experiment: Experiment, params: Mapping[str, Any], folder: Path, title: str) -> Form:
    """Writes a classifier's weights, config.json, tokeniser and README.md.

    Args:
        experiment: of the run.
        params: flat numpy arrays of the checkpoint, without an adapter.
        folder: to write to; empty.
        title: names the checkpoint, for README.md.

    Raises:
        ValueError: a config that the family's format can't express.
    """
    form, labels = form_of(experiment.model), experiment.task.labels
    if "head/bias" not in params:  # those of encoders always have one
        bias = np.zeros(experiment.model.task_head.num_classes, np.float32)
        params = {**params, "head/bias": bias}
    fields = {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
    _write_folder(experiment, form, params, folder, fields)
    write_text(folder / "README.md", _readme(experiment, form, title))
    return form


def write_language_model(
    experiment: Experiment, params: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Writes weights, config.json and tokeniser of a language model, and reads them again.

    Args:
        experiment: of a run whose task's head is the backbone's own output layer.
        params: flat numpy arrays of the checkpoint, an adapter folded in.
        folder: to write to; empty.

    Returns:
        {'form', 'compared', 'difference'}, like the writers of export.py.

    Raises:
        ValueError: the folder, read again, holds another model.
    """
    config = experiment.model.config
    stem, parts = _stem(config.model_type).removesuffix("Text"), parts_of(config)
    kind = "ConditionalGeneration" if "decoder" in parts else "CausalLM"
    architecture = f"{stem}For{'MaskedLM' if 'mlm_head' in parts else kind}"
    prose = f"{architecture} of transformers; a run takes the folder as config.model.checkpoint"
    form = Form(architecture, (), MODEL, prose)
    return _write_backbone(experiment, form, params, folder)


def write_embedding(
    experiment: Experiment, params: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Writes an embedding model as sentence-transformers loads it; see write_language_model.

    A prompt is tokenised together with the text there and apart from it here: of a few texts,
    those for which that makes a difference are counted.
    """
    task, config = experiment.task, experiment.model.config
    stem = _stem(config.model_type)
    architecture = f"{stem}{'Encoder' * config.model_type.endswith('t5')}Model"
    prose = f"{architecture} of transformers, and what sentence-transformers needs beside it"
    templates = task.templates(experiment.config.data.template)
    prompts = [template.removesuffix("{text}") for template in templates]
    if any("{text}" in prompt for prompt in prompts):
        raise ValueError(
            f"the templates {templates} have words behind the text, which sentence-transformers "
            "has no place for: train with words before it alone"
        )
    facts = _write_backbone(experiment, Form(architecture, (), MODEL, prose), params, folder)
    pooling, length = experiment.model.task_head.pooling, experiment.config.layout.max_length
    embedding = sentence_transformers.Embedding(pooling, *prompts, max_length=length)
    sentence_transformers.write(folder, embedding, width=config.width)
    _write_marks(experiment.tokenizer, folder)
    encoder = experiment.pipeline.encoder.query
    apart = [encoder([text]).tokens.tolist() for text in _SAMPLES]
    joined = experiment.tokenizer.encode_batch([prompts[0] + text for text in _SAMPLES])
    marks = experiment.tokenizer.start_ids, experiment.tokenizer.end_ids
    joined = [[*marks[0], *ids, *marks[1]] for ids in joined]
    if differing := sum(a != b for a, b in zip(apart, joined, strict=True)):
        print(
            f"Note: {differing} of {len(_SAMPLES)} texts have other tokens where the prompt "
            f"{prompts[0]!r} is tokenised with them, as sentence-transformers does."
        )
    if ops := tuple(experiment.config.data.normalization):
        print(f"Note: recode texts by {', '.join(ops)} before sentence-transformers reads them.")
    return facts


def _write_marks(tokenizer: Tokenizer, folder: Path) -> None:
    """Puts config.tokenizer.marks into a written tokenizer.json, if they are not what it says."""
    path, again = folder / "tokenizer.json", load_tokenizer(folder)
    if (again.start_ids, again.end_ids) == (tokenizer.start_ids, tokenizer.end_ids):
        return
    if not path.exists():
        raise ValueError(
            "config.tokenizer.marks puts other marks around a text than the files of this "
            "tokeniser can say: train with config.tokenizer.marks='auto'"
        )
    around = tokenizer.start_ids, tokenizer.end_ids
    start, end = ([tokenizer.piece(i) for i in ids] for ids in around)
    spec = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, put_marks(spec, [*start, "A", *end, "B", *end]))


def _write_backbone(
    experiment: Experiment, form: Form, params: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Writes the backbone, reads it again, and returns what export.py prints of it."""
    params = {path: value for path, value in params.items() if path.startswith("backbone/")}
    _write_folder(experiment, form, params, folder, {})
    again = read(form, folder)
    if again.keys() != params.keys():
        raise ValueError(_other(folder, "other parameters"))
    difference = max(float(np.abs(again[path] - params[path]).max()) for path in params)
    return {"form": form.prose, "compared": "parameters", "difference": difference}


def _write_folder(
    experiment: Experiment,
    form: Form,
    params: Mapping[str, Any],
    folder: Path,
    fields: Mapping[str, Any],
) -> None:
    """Writes weights, config.json with more `fields`, and the tokeniser, and reads that again."""
    config, family = experiment.model.config, experiment.checkpoint.family
    tokenizer, in_head = experiment.tokenizer, {row.parameter for row in form.rows}
    head = tensors_from({p: v for p, v in params.items() if p in in_head}, Rows(form.rows))
    backbone = {
        path.removeprefix("backbone/"): value
        for path, value in params.items()
        if path.startswith("backbone/") and path not in in_head
    }
    tensors = tensors_from(backbone, family.table(config, "huggingface"))
    special = {role: getattr(tokenizer, f"{role}_id") for role in ("bos", "eos")}
    fields = {
        **family.write_config(config),
        "architectures": [form.architecture],
        "dtype": "float32",
        **fields,
        "pad_token_id": _pad_id(experiment),
        **{f"{role}_token_id": token_id for role, token_id in special.items() if token_id >= 0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    if form.file == HEAD:
        safetensors.write(folder / HEAD, head)
    safetensors.write(folder / MODEL, tensors if form.file == HEAD else tensors | head)
    write_json(folder / "config.json", fields)
    for name, content in _tokenizer_files(experiment, fields).items():
        (folder / name).write_bytes(content)
    again = load_tokenizer(folder)
    same = again.encode_batch([_SAMPLE]) == tokenizer.encode_batch([_SAMPLE])
    if not same or not again.role_ids.items() >= tokenizer.role_ids.items():
        raise ValueError(_other(folder, "another tokeniser"))


def read(form: Form, folder: Path) -> dict[str, np.ndarray]:
    """Reads a written folder again: flat parameters, float32."""
    checkpoint, head = open_checkpoint(folder), safetensors.read(folder / form.file)
    backbone = flatten(checkpoint.read(checkpoint.parts))
    params = {f"backbone/{path}": value for path, value in backbone.items()}
    for row in form.rows:
        params[row.parameter] = np.array(row.kind.read(head[row.name].read()), np.float32)
    return params


def _other(folder: Path, what: str) -> str:
    return (
        f"{folder}, read again, holds {what} than the trained model: don't use it, and report this "
        "with the config"
    )


def _pad_id(experiment: Experiment) -> int | None:
    """Returns the id of padding, or one that can serve, since a text can't end in it.

    transformers' classifiers on decoders read the last position that holds another id than this.
    """
    tokenizer, last = experiment.tokenizer, experiment.pipeline.encoder.around[-1][-1:]
    ids = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id)
    return next((i for i in ids if i >= 0 and [i] != last), None)


def _tokenizer_files(experiment: Experiment, fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns the tokeniser's files, with a tokenizer_config.json that holds all it needs."""
    tokenizer, name = experiment.tokenizer, "tokenizer_config.json"
    files = tokenizer.files()
    config = json.loads(files.get(name, b"{}"))
    if not config.get("tokenizer_class"):
        config["tokenizer_class"] = _tokenizer_class(tokenizer, files, fields["model_type"])
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
    llama = "GemmaTokenizer" if model_type.startswith("gemma") else "LlamaTokenizer"
    return next((name for file, name in _TOKENIZERS.items() if file in files), llama)


def _readme(experiment: Experiment, form: Form, title: str) -> str:
    """Returns how to load the folder, and what texts go through before the tokeniser."""
    config, model = experiment.config, experiment.model
    auto = "AutoModelForSequenceClassification" if form.file == MODEL else form.architecture
    text = f"""# A text classifier

{title[0].upper()}{title[1:]}: {form.prose}.
Labels: {", ".join(experiment.task.labels)}.

```python
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder)
```

"""
    if form.file == HEAD:
        bias = " + bias" if model.task_head.bias else ""
        text += (
            f"The head: logits = pooled @ weight.T{bias} of {HEAD}, where pooled is "
            f"{_POOLED[model.task_head.pooling]}.\n"
        )
    if model.config.model_type in ("gemma2", "gemma3_text") and model.dtype != np.float32:
        text += f"It was trained computing in {np.dtype(model.dtype).name}.\n"
    text += (
        f"Texts are read as `{config.data.template}`, cut to {config.layout.max_length} tokens "
        "with the words and marks around them, which are tokenised apart from the text.\n"
    )
    if ops := tuple(config.data.normalization):
        text += f"Before that they are recoded by {', '.join(ops)}; the code is in ../stablehlo.\n"
    if config.tokenizer.marks != "auto":
        text += (
            f"Marks were config.tokenizer.marks={config.tokenizer.marks!r}, not what the family "
            "puts around texts: give the model ids with these marks.\n"
        )
    return text
