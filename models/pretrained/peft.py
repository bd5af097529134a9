"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

The leaves that models/adapters.py adds, under the names of the adapted modules in transformers, so
that `peft.PeftModel.from_pretrained` loads them. A linear head is included where transformers'
classifier of the family computes the same: then the adapter is one of
AutoModelForSequenceClassification. Otherwise it is one of AutoModel, and the head is written beside
it to head.safetensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.files import write_json
from models import adapters
from models.backbone import BackboneConfig, flatten, parameter_shapes, parts_of
from models.bert import BertConfig
from models.decoder import DecoderConfig
from models.pretrained.families import family_of
from models.pretrained.fields import Fields
from models.pretrained.safetensors import read as read_safetensors
from models.pretrained.safetensors import write as write_safetensors
from models.pretrained.tables import listing

_TYPES = {"lora": "LORA", "rslora": "LORA", "dora": "LORA", "ia3": "IA3", "prompt": "PROMPT_TUNING"}
KINDS = tuple(_TYPES)
CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
# Ends of tensor names -> our leaves. PEFT stores all matrices transposed.
_LEAVES = {
    ".lora_A.weight": "lora_a",
    ".lora_B.weight": "lora_b",
    ".lora_magnitude_vector": "magnitude",
    ".ia3_l": "ia3",
}
# Encoders whose classifier is one linear map after the pooler; others have layers of their own.
_LINEAR_CLASSIFIERS = ("bert", "ernie", "albert")
# Fields on the origin of the adapter, not on what it computes, or that are read below.
_KNOWN = re.compile(
    r"(auto_mapping|base_model_name_or_path|peft_type|peft_version|task_type|revision|runtime_config"
    r"|inference_mode|init_ia3_weights|(corda|eva|lora_ga|loftq|megatron)_config|megatron_core"
    r"|qalora_group_size|layers_pattern|lora_dropout|tokenizer_(kwargs|name_or_path)"
    r"|num_(attention_heads|layers|virtual_tokens|transformer_submodules)|token_dim"
    r"|prompt_tuning_init(_text)?|(target|exclude|feedforward)_modules|r|lora_alpha|use_(dora|rslora))"
)
_ALLOWED = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "modules_to_save": (None, "classifier", "score"),
    "num_transformer_submodules": (None, 1),
}


def write_peft(
    folder: str | Path,
    config: BackboneConfig,
    adapt: ConfigDict,
    params: Mapping[str, Any],
    *,
    base: str = "",
    pooling: str = "",
) -> str:
    """Writes an adapter, each file only when complete.

    Args:
        folder: created if missing.
        config: of the backbone.
        adapt: config.adapt, as it was trained.
        params: flat; of the backbone only the leaves of the adapter are written.
        base: where users find the checkpoint: base_model_name_or_path.
        pooling: config.model.pooling. transformers' classifiers use 'pooler' with an encoder and
            'last' with a decoder; with another one the head is written apart.

    Returns:
        A sentence on how to load it.

    Raises:
        ValueError: a kind that PEFT doesn't have.
    """
    folder = Path(folder)
    if adapt.kind not in KINDS:
        raise ValueError(
            f"config.adapt.kind {adapt.kind!r} trains parameters of the model itself, which PEFT "
            "has no format for: export with config.export.formats=('huggingface',)"
        )
    arrays = {path: np.asarray(value, np.float32) for path, value in params.items()}
    added = {path: value for path, value in arrays.items() if adapters.is_added(path)}
    heads = {path: value for path, value in arrays.items() if not path.startswith("backbone/")}
    classifier = _classifier(config, heads, pooling)
    fields: dict[str, Any] = {
        "peft_type": _TYPES[adapt.kind],
        "task_type": "SEQ_CLS" if classifier else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": [classifier] if classifier else None,
    }
    prefix = "base_model." if adapt.kind == "prompt" else "base_model.model."
    tensors = {}
    if adapt.kind == "prompt":
        prompt_TxE = next(iter(added.values()))
        tensors["prompt_embeddings"] = prompt_TxE * _embedding_scale(config)
        size, width = prompt_TxE.shape
        # PEFT requires all of these, though a prompt depends on just the first two.
        fields |= {"num_virtual_tokens": size, "token_dim": width, "num_transformer_submodules": 1}
        fields |= {"num_attention_heads": config.num_heads, "num_layers": config.num_layers}
    else:
        # Without a classifier, names lack the attribute of the backbone.
        bare = "" if classifier else r"^(bert|roberta|ernie|electra|albert|model)\."
        names = {path: re.sub(bare, "", name) for path, name in _modules(config).items()}
        ends = {leaf: end for end, leaf in _LEAVES.items()}
        for path, value in added.items():
            parent, _, leaf = path.rpartition("/")
            value = value[:, None] if leaf == "ia3" and value.ndim == 1 else value.T
            tensors[prefix + names[parent] + ends[leaf]] = value
        fields |= _targets(adapt, added, names)
    if classifier:
        for value in heads.values():
            tensors[f"{prefix}{classifier}.{'bias' if value.ndim == 1 else 'weight'}"] = value.T
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, tensors)
    (folder / HEAD).unlink(missing_ok=True)
    if heads and not classifier:
        write_safetensors(folder / HEAD, heads)
    write_json(folder / CONFIG, fields)
    if classifier:
        return f"{folder} is loaded by PEFT on AutoModelForSequenceClassification, head included"
    return (
        f"{folder} is loaded by PEFT on AutoModel; the head is in {HEAD}, since transformers' "
        f"classifiers of {config.model_type} compute another one with config.model.pooling="
        f"{pooling!r} and config.model.head_bias={'head/bias' in heads}"
    )


def read_peft(folder: str | Path, config: BackboneConfig, adapt: ConfigDict) -> dict[str, Any]:
    """Reads an adapter, and its head if it has one.

    Args:
        folder: as PEFT or `write_peft` wrote it.
        config: of the backbone.
        adapt: config.adapt, which must agree with the folder.

    Returns:
        Flat leaves as `adapters.init` returns them, and 'head/kernel', 'head/bias'; float32.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: differences from `adapt`, options that aren't implemented, or tensors that
            don't fit the model; by name.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: config.adapt.start expects a folder that PEFT's "
                "save_pretrained wrote, with safe_serialization"
            )
    fields = Fields.read(folder / CONFIG)
    _reject_unknown(fields)
    _compare(fields, adapt)
    leaves, unmapped = {}, []
    parents = {name: parent for parent, name in _modules(config).items()}
    canonical = family_of(config).table(config, "huggingface").canonical
    for name, tensor in read_safetensors(folder / WEIGHTS).items():
        value = tensor.read_finite(name).astype(np.float32)
        end = next((end for end in _LEAVES if name.endswith(end)), "")
        module = name.removesuffix(end).removeprefix("base_model.model.")
        parent = parents.get(canonical(f"{module}.weight").removesuffix(".weight")) if end else None
        if name == "prompt_embeddings":
            leaves["backbone/embedder/prompt"] = value / _embedding_scale(config)
        elif re.fullmatch(r"(base_model\.(model\.)?)?(classifier|score)\.(weight|bias)", name):
            leaves["head/kernel" if value.ndim == 2 else "head/bias"] = value.T
        elif parent is None:
            unmapped.append(name)
        else:
            # A column of IA3 scales outputs, a row inputs; ours are [out] and [in, 1].
            outputs = end == ".ia3_l" and value.shape[1] == 1
            leaves[f"{parent}/{_LEAVES[end]}"] = value[:, 0] if outputs else value.T
    if unmapped:
        raise ValueError(
            f"{folder / WEIGHTS}: tensors of no layer of this {config.model_type}: "
            f"{listing(unmapped)}. Use the adapter with the checkpoint that it was trained on"
        )
    _check_leaves(folder / WEIGHTS, config, adapt, leaves)
    if (folder / HEAD).is_file():
        head = read_safetensors(folder / HEAD)
        leaves |= {path: tensor.read_finite(path) for path, tensor in head.items()}
    return {path: np.ascontiguousarray(value, np.float32) for path, value in leaves.items()}


def _classifier(config: BackboneConfig, heads: Mapping[str, np.ndarray], pooling: str) -> str:
    """Returns the name of transformers' linear classifier if it computes the same head, else ''."""
    if isinstance(config, BertConfig) and config.model_type in _LINEAR_CLASSIFIERS:
        fits = pooling == "pooler" and heads.keys() == {"head/kernel", "head/bias"}
        return "classifier" if fits else ""
    if isinstance(config, DecoderConfig) and not config.bidirectional:
        return "score" if pooling == "last" and heads.keys() == {"head/kernel"} else ""
    return ""


def _embedding_scale(config: BackboneConfig) -> float:
    """Gemma's embeddings are scaled before PEFT (transformers >= 5) puts the prompt beside them."""
    return config.embedding_scale if isinstance(config, DecoderConfig) else 1.0


def _modules(config: BackboneConfig) -> dict[str, str]:
    """Returns for the path of each dense layer its module's name in a checkpoint."""
    table, modules = family_of(config).table(config, "huggingface"), {}
    for path in flatten(parameter_shapes(config, parts_of(config))):
        if path.endswith("/kernel") and (match := table.tensor_of(path)):
            modules[f"backbone/{path.removesuffix('/kernel')}"] = match[0].removesuffix(".weight")
    return modules


def _targets(
    adapt: ConfigDict, added: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the fields of LoRA or IA3: which modules, and how."""

    def described(parents: set[str]) -> list[str]:
        # PEFT matches ends of names: the last word where it means these modules and no other.
        last = {path: name.rpartition(".")[2] for path, name in names.items()}
        # Classifiers have modules of the name 'dense' too.
        unclear = {"dense"} | {word for path, word in last.items() if path not in parents}
        return sorted({names[p] if last[p] in unclear else last[p] for p in parents})

    parents = {path.rpartition("/")[0] for path in added}
    if adapt.kind == "ia3":
        inputs = {path.rpartition("/")[0] for path, value in added.items() if value.ndim == 2}
        modules = sorted(described(parents - inputs) + described(inputs))
        return {"target_modules": modules, "feedforward_modules": described(inputs)}
    return {
        "target_modules": described(parents),
        "r": adapt.rank,
        "lora_alpha": adapt.alpha,
        "use_rslora": adapt.kind == "rslora",
        "use_dora": adapt.kind == "dora",
    }


def _reject_unknown(fields: Fields) -> None:
    """Raises ValueError if the adapter computes something that isn't implemented."""
    wrong = []
    for key, value in fields.values.items():
        items = value if isinstance(value, list) else [value]
        if key in _ALLOWED:
            unknown = any(item not in _ALLOWED[key] for item in items)
        else:
            unknown = value and not _KNOWN.fullmatch(key)
        if unknown:
            wrong.append(f"{key}={value!r}")
    if fields.values.get("use_dora") and fields.values.get("use_rslora"):
        wrong.append("use_dora with use_rslora")
    if wrong:
        raise ValueError(
            f"{fields.file}: {', '.join(wrong)}: not implemented. Merge the adapter with PEFT "
            "(merge_and_unload) and start from the merged checkpoint"
        )


def _compare(fields: Fields, adapt: ConfigDict) -> None:
    """Raises ValueError with what the folder and config.adapt disagree on."""
    kinds = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt"}
    if (kind := kinds.get(fields.take("peft_type"))) is None:
        raise ValueError(
            f"{fields.file}: peft_type is {fields.take('peft_type')!r}, expected one of "
            f"{list(kinds)}: merge the adapter with PEFT and start from that"
        )
    if kind == "lora":
        kind = next((k for k in ("rslora", "dora") if fields.get(f"use_{k}", False)), "lora")
    stored = {"kind": kind}
    if kind in adapters.LORA_KINDS:
        stored |= {"rank": fields.take("r"), "alpha": float(fields.take("lora_alpha"))}
    if kind == "prompt":
        stored["prompt_length"] = fields.take("num_virtual_tokens")
    if differing := {key: value for key, value in stored.items() if adapt[key] != value}:
        pairs = (f"{key} {value!r}, not {adapt[key]!r}" for key, value in differing.items())
        settings = (f"config.adapt.{key}={value!r}" for key, value in differing.items())
        raise ValueError(
            f"{fields.file} is another adapter than config.adapt: {', '.join(pairs)}. "
            f"Set {', '.join(settings)}"
        )


def _check_leaves(
    file: Path, config: BackboneConfig, adapt: ConfigDict, leaves: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError if the leaves aren't those of config.adapt, or of another model."""
    parameters = flatten({"backbone": parameter_shapes(config, parts_of(config))})
    if not any(path.startswith("backbone/decoder/") for path in leaves):  # of the encoder alone
        parameters = {p: v for p, v in parameters.items() if not p.startswith("backbone/decoder/")}
    shapes = {path: value.shape for path, value in leaves.items() if adapters.is_added(path)}
    # PEFT may scale any module at its input, where the leaf is a column.
    columns = {path.rpartition("/")[0] for path, shape in shapes.items() if shape[1:] == (1,)}
    wanted = adapters.added_shapes(adapt, parameters, inputs=columns)
    missing, more = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    if missing or more:
        raise ValueError(
            f"{file} adapts other modules than config.adapt.targets.\nMissing: {listing(missing)}."
            f"\nNot among the targets: {listing(more)}.\n"
            "Set config.adapt.targets to a regex of the modules that the file adapts"
        )
    misfits = [f"{p} {shapes[p]}, expected {wanted[p]}" for p in wanted if shapes[p] != wanted[p]]
    if misfits:
        raise ValueError(
            f"{file}: shapes don't fit the model: {listing(misfits, separator='; ')}. Use the "
            "adapter with the checkpoint that it was trained on"
        )
