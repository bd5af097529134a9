"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

What models/adapters.py adds, under the names that the adapted modules have in transformers, so
that `peft.PeftModel.from_pretrained` loads it. A linear head travels along where transformers'
classifier of the family computes the same: then the adapter is one of
AutoModelForSequenceClassification, else of AutoModel, and the head stands beside it in
head.safetensors. Called by training/experiment.py (config.adapt.start) and
workflows/export/export.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.files import write_json
from models import adapters, pretrained
from models.backbone import BackboneConfig, parameter_shapes, parts_of
from models.bert import BertConfig
from models.decoder import DecoderConfig
from models.pretrained import safetensors, tables
from models.pretrained.fields import Fields

_TYPES = {
    "lora": "LORA",
    "rslora": "LORA",
    "dora": "LORA",
    "ia3": "IA3",
    "prompt": "PROMPT_TUNING",
}
KINDS = tuple(_TYPES)
CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
# Ends of tensor names, and of our leaves. PEFT stores all matrices transposed.
_LEAVES = {
    ".lora_A.weight": "lora_a",
    ".lora_B.weight": "lora_b",
    ".lora_magnitude_vector": "magnitude",
    ".ia3_l": "ia3",
}
# Encoders whose classifier is one linear map behind the pooler; others have layers of their own.
_LINEAR_CLASSIFIERS = ("bert", "ernie", "albert")
# Fields that say how the adapter was made or found, not what it computes, or that are read below.
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
        folder: made if missing.
        config: of the backbone.
        adapt: config.adapt, as it was trained.
        params: flat; of the backbone's only what the adapter added is written.
        base: where others find the checkpoint: base_model_name_or_path.
        pooling: config.model.pooling; transformers' classifiers want 'pooler' with an encoder and
            'last' with a decoder, else the head can't be theirs.

    Returns:
        A sentence that says how to load it.

    Raises:
        ValueError: a kind that isn't one of PEFT's.
    """
    folder = Path(folder)
    if adapt.kind not in KINDS:
        raise ValueError(
            f"config.adapt.kind {adapt.kind!r} trains parameters of the model itself, which PEFT "
            "has no format for: export with config.export.formats=('huggingface',)"
        )
    added = {p: np.asarray(v, np.float32) for p, v in params.items() if adapters.is_added(p)}
    heads = {
        p: np.asarray(v, np.float32) for p, v in params.items() if not p.startswith("backbone/")
    }
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
        # PEFT wants all of these, though a prompt depends on just the first two.
        fields |= {"num_virtual_tokens": size, "token_dim": width, "num_transformer_submodules": 1}
        fields |= {"num_attention_heads": config.num_heads, "num_layers": config.num_layers}
    else:
        names = _modules(config, bare=not classifier)
        ends = {leaf: end for end, leaf in _LEAVES.items()}
        for path, value in added.items():
            parent, _, leaf = path.rpartition("/")
            value = value[:, None] if leaf == "ia3" and value.ndim == 1 else value.T
            tensors[prefix + names[f"{parent}/kernel"] + ends[leaf]] = value
        fields |= _targets(adapt, added, names)
    if classifier:
        tensors |= {
            f"{prefix}{classifier}.{'bias' if value.ndim == 1 else 'weight'}": value.T
            for value in heads.values()
        }
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / WEIGHTS, tensors)
    (folder / HEAD).unlink(missing_ok=True)
    if heads and not classifier:
        safetensors.write(folder / HEAD, heads)
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
        config: of the backbone that it is for.
        adapt: config.adapt, which must say the same as the folder.

    Returns:
        Flat leaves as `adapters.init` gives them, and 'head/kernel', 'head/bias'; float32.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: what differs from `adapt`, options that aren't implemented, or tensors that
            don't fit the model; by name.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: config.adapt.start wants a folder that PEFT's "
                "save_pretrained wrote, with safe_serialization"
            )
    fields = Fields.read(folder / CONFIG)
    _refuse_unknown(fields)
    _compare(fields, adapt)
    stored = {
        name: tensor.read_finite(name).astype(np.float32)
        for name, tensor in safetensors.read(folder / WEIGHTS).items()
    }
    leaves, left = {}, []
    parents = _parents(config)
    canonical = _table(config).canonical
    for name, value in stored.items():
        short = re.sub(r"^base_model\.(model\.)?(?=classifier|score)", "", name)
        end = next((end for end in _LEAVES if name.endswith(end)), None)
        module = name.removesuffix(end or "").removeprefix("base_model.model.")
        parent = parents.get(canonical(f"{module}.weight")) if end else None
        if name == "prompt_embeddings":
            leaves["backbone/embedder/prompt"] = value / _embedding_scale(config)
        elif re.fullmatch(r"(classifier|score)\.(weight|bias)", short):
            leaves["head/kernel" if value.ndim == 2 else "head/bias"] = value.T
        elif parent is None:
            left.append(name)
        else:
            # A column of IA3 scales outputs, a row inputs; ours are [out] and [in, 1].
            outputs = end == ".ia3_l" and value.shape[1] == 1
            leaves[f"{parent}/{_LEAVES[end]}"] = value[:, 0] if outputs else value.T
    if left:
        raise ValueError(
            f"{folder / WEIGHTS}: tensors of no layer of this {config.model_type}: "
            f"{tables.listing(left)}. Use the adapter with the checkpoint that it was trained on"
        )
    _check_leaves(folder, config, adapt, leaves)
    if (folder / HEAD).is_file():
        leaves |= {p: t.read_finite(p) for p, t in safetensors.read(folder / HEAD).items()}
    return {path: np.ascontiguousarray(value, np.float32) for path, value in leaves.items()}


def _classifier(config: BackboneConfig, heads: Mapping[str, np.ndarray], pooling: str) -> str:
    """Name of transformers' linear classifier if it computes the same head, else ''."""
    if isinstance(config, BertConfig) and config.model_type in _LINEAR_CLASSIFIERS:
        fits = pooling == "pooler" and heads.keys() == {"head/kernel", "head/bias"}
        return "classifier" if fits else ""
    if isinstance(config, DecoderConfig) and not config.bidirectional:
        return "score" if pooling == "last" and heads.keys() == {"head/kernel"} else ""
    return ""


def _embedding_scale(config: BackboneConfig) -> float:
    """Gemma's embeddings are scaled before PEFT (transformers >= 5) puts the prompt beside them."""
    return config.embedding_scale if isinstance(config, DecoderConfig) else 1.0


def _table(config: BackboneConfig) -> tables.Rows:
    family = next(each for each in pretrained.FAMILIES if isinstance(config, each.config_class))
    return family.table(config, "huggingface")


def _shapes(config: BackboneConfig) -> dict[str, Any]:
    """Shapes by path, of all kernels in layers that a model of the config can have."""
    flat = tables.flatten({"backbone": parameter_shapes(config, parts_of(config))})
    return {path: leaf for path, leaf in flat.items() if path.endswith("/kernel")}


def _stored_names(config: BackboneConfig) -> dict[str, str]:
    """Each kernel's path -> the name of its tensor in a checkpoint."""
    rows = _table(config).rows
    found = {
        path: tables.tensor_of(path.removeprefix("backbone/"), rows) for path in _shapes(config)
    }
    return {path: match[0] for path, match in found.items() if match}


def _parents(config: BackboneConfig) -> dict[str, str]:
    return {name: path.removesuffix("/kernel") for path, name in _stored_names(config).items()}


def _modules(config: BackboneConfig, *, bare: bool) -> dict[str, str]:
    """Each kernel's path -> its module's name; `bare` without the backbone's attribute."""
    prefixes = r"^(bert|roberta|ernie|electra|albert|model)\." if bare else "^$"
    return {
        path: re.sub(prefixes, "", name.removesuffix(".weight"))
        for path, name in _stored_names(config).items()
    }


def _targets(
    adapt: ConfigDict, added: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, Any]:
    """Fields of LoRA or IA3: which modules, and how."""
    chosen = {f"{path.rpartition('/')[0]}/kernel" for path in added}

    def described(paths: set[str]) -> list[str]:
        # PEFT matches ends of names: the last word where it means these modules and no other.
        last = {path: name.rpartition(".")[2] for path, name in names.items()}
        # Classifiers have modules of the name 'dense' too.
        unclear = {"dense"} | {word for path, word in last.items() if path not in paths}
        return sorted({names[p] if last[p] in unclear else last[p] for p in paths})

    if adapt.kind == "ia3":
        inputs = {f"{p.rpartition('/')[0]}/kernel" for p, value in added.items() if value.ndim == 2}
        outputs, inputs = described(chosen - inputs), described(inputs)
        return {"target_modules": sorted(outputs + inputs), "feedforward_modules": inputs}
    return {
        "target_modules": described(chosen),
        "r": adapt.rank,
        "lora_alpha": adapt.alpha,
        "use_rslora": adapt.kind == "rslora",
        "use_dora": adapt.kind == "dora",
    }


def _refuse_unknown(fields: Fields) -> None:
    """Raises ValueError where the adapter computes something that isn't implemented."""
    wrong = [
        f"{key}={value!r}"
        for key, value in fields.found.items()
        if value and key not in _ALLOWED and not _KNOWN.fullmatch(key)
    ]
    for key, allowed in _ALLOWED.items():
        value = fields.found.get(key, allowed[0])
        for each in value if isinstance(value, list) else [value]:
            if each not in allowed:
                wrong.append(f"{key}={value!r}")
    if fields.found.get("use_dora") and fields.found.get("use_rslora"):
        wrong.append("use_dora with use_rslora")
    if fields.found.get("num_transformer_submodules") not in (None, 1):
        wrong.append("num_transformer_submodules above 1")
    if wrong:
        raise ValueError(
            f"{fields.file}: {', '.join(wrong)}: not implemented. Merge the adapter with PEFT "
            "(merge_and_unload) and start from the merged checkpoint"
        )


def _compare(fields: Fields, adapt: ConfigDict) -> None:
    """Raises ValueError naming what config.adapt says otherwise."""
    found = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt"}.get(fields.take("peft_type"))
    if found is None:
        raise ValueError(
            f"{fields.file}: peft_type is {fields.found['peft_type']!r}, expected one of "
            f"{sorted(set(_TYPES.values()))}: merge the adapter with PEFT and start from that"
        )
    if found == "lora":
        found = next((k for k in ("rslora", "dora") if fields.get(f"use_{k}", False)), "lora")
    pairs = {"kind": found}
    if found in adapters.LORA_KINDS:
        pairs |= {"rank": fields.take("r"), "alpha": float(fields.take("lora_alpha"))}
    if found == "prompt":
        pairs["prompt_length"] = fields.take("num_virtual_tokens")
    differing = {key: value for key, value in pairs.items() if adapt[key] != value}
    if differing:
        raise ValueError(
            f"{fields.file} is another adapter than config.adapt: "
            + ", ".join(f"{key} {value!r}, not {adapt[key]!r}" for key, value in differing.items())
            + ". Set "
            + ", ".join(f"config.adapt.{key}={value!r}" for key, value in differing.items())
        )


def _check_leaves(
    folder: Path, config: BackboneConfig, adapt: ConfigDict, leaves: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError where the leaves aren't those of config.adapt, or of another model."""
    file = folder / WEIGHTS
    if adapt.kind == "prompt":
        size = parameter_shapes(config)["embedder"]["embedding"].shape[1]
        wanted = {"backbone/embedder/prompt": (adapt.prompt_length, size)}
    else:
        kernels = _shapes(config)
        if not any(path.startswith("backbone/decoder/") for path in leaves):
            kernels = {p: v for p, v in kernels.items() if not p.startswith("backbone/decoder/")}
        wanted = {}
        for path in adapters.target_kernels(adapt, kernels):
            parent, (size_in, size_out) = path.removesuffix("/kernel"), kernels[path].shape
            if adapt.kind == "ia3":
                rows = np.ndim(leaves.get(f"{parent}/ia3")) == 2
                wanted[f"{parent}/ia3"] = (size_in, 1) if rows else (size_out,)
                continue
            wanted[f"{parent}/lora_a"] = (size_in, adapt.rank)
            wanted[f"{parent}/lora_b"] = (adapt.rank, size_out)
            if adapt.kind == "dora":
                wanted[f"{parent}/magnitude"] = (size_out,)
    found = {path: value.shape for path, value in leaves.items() if adapters.is_added(path)}
    missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or more:
        raise ValueError(
            f"{file} adapts other modules than config.adapt.targets.\nMissing: "
            f"{tables.listing(missing)}.\nNot among the targets: {tables.listing(more)}.\n"
            "Set config.adapt.targets to a regex of what the file adapts"
        )
    if wrong := [f"{p} {found[p]}, expected {wanted[p]}" for p in wanted if found[p] != wanted[p]]:
        raise ValueError(
            f"{file}: shapes don't fit the model: {tables.listing(wrong, separator='; ')}. Use the "
            "adapter with the checkpoint that it was trained on"
        )
