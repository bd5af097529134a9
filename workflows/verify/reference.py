"""What the reference implementation computes: read from a golden file, or live from PyTorch.

A golden file is an .npz of padded inputs and outputs, float32 and int32:

    tokens_BxL, mask_BxL (1 = real)    inputs; types_BxL where there are types
    hidden_BxLxD                       last hidden states (of an encoder-decoder: the encoder's)
    pooled_BxD                         behind BERT's pooler, if any
    logits_BxLxV                       of the language-model head, if any
    targets_BxT, target_mask_BxT       encoder-decoders: what is decoded; logits are _BxTxV

Where the vocabulary is large it holds, instead of all logits, those of some ids of each position
(the highest among them): logit_ids_BxLxC beside logits_BxLxC, and log_normalizer_BxL, the
logarithm of the sum of exp(logits) over the whole vocabulary. Here everything is flat: P real
positions of all texts, one behind the other. Called by workflows/verify/verify.py and tests.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.decoder import DecoderConfig
from models.pretrained import Checkpoint
from models.t5 import T5Config

_WHOLE = 1024  # largest vocabulary of which a golden file holds all logits
_HIGHEST, _OTHERS = 32, 32  # ids of each position that it holds else


class Inputs(NamedTuple):
    """What both sides read.

    Attributes:
        tokens: int32 ids of each text.
        types: kinds of text of each token, or None.
        targets: of an encoder-decoder, what is decoded for each text; else None.
    """

    tokens: list[np.ndarray]
    types: list[np.ndarray] | None = None
    targets: list[np.ndarray] | None = None


class Logits(NamedTuple):
    """Logits of P positions.

    Attributes:
        values_PxC: of C ids each, or of all.
        ids_PxC: which; None is the whole vocabulary in order.
        log_normalizer_P: log of the sum of exp over the whole vocabulary; None is unknown.
    """

    values_PxC: np.ndarray
    ids_PxC: np.ndarray | None = None
    log_normalizer_P: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference's answers.

    Attributes:
        name: what computed them, for people.
        inputs: what it read.
        hidden_PxD: last hidden states.
        pooled_BxD: behind the pooler.
        logits: of the language-model head.
    """

    name: str
    inputs: Inputs
    hidden_PxD: np.ndarray | None = None
    pooled_BxD: np.ndarray | None = None
    logits: Logits | None = None


def has_head(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds its language-model head whole."""
    config, parts = checkpoint.config, checkpoint.parts
    if isinstance(config, DecoderConfig):
        return config.tied or "lm_head" in parts
    if isinstance(config, T5Config):
        return "decoder" in parts and (config.tied or "lm_head" in parts)
    return "mlm_head" in parts


def why_not_live(checkpoint: Checkpoint) -> str:
    """Says what keeps PyTorch from being asked; '' is nothing."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install -e '.[bench]'"
    if checkpoint.format == "tensorflow":
        return "transformers doesn't read TensorFlow checkpoints: name a golden file"
    return ""


def read_golden(path: Path) -> Reference:
    """Reads a golden file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no .npz, or lacks arrays; the message names them.
    """
    try:
        with np.load(path) as file:
            found = {re.sub(r"_[A-Z](x[A-Z])*$", "", name): file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"config.verify.golden: {path} doesn't exist. Where PyTorch and transformers are "
            "installed, --mode=verify without verify.golden writes a golden.npz into its workdir"
        ) from None
    except (ValueError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is no golden file ({error}): expected an .npz") from None
    outputs = {"hidden", "pooled", "logits"} & found.keys()
    if missing := [name for name in ("tokens", "mask") if name not in found]:
        raise ValueError(
            f"{path} has no array {', '.join(missing)}: see workflows/verify/reference.py"
        )
    if not outputs:
        raise ValueError(f"{path} has neither hidden, pooled nor logits: nothing to compare with")
    mask = found["mask"] > 0
    target_mask = None
    if "targets" in found:
        target_mask = found.get("target_mask", np.ones_like(found["targets"])) > 0
    logits_mask = mask if target_mask is None else target_mask

    def texts(name: str, which: np.ndarray | None) -> list[np.ndarray] | None:
        if which is None or name not in found:
            return None
        return [row[real] for row, real in zip(found[name], which, strict=True)]

    def flat(name: str, which: np.ndarray) -> np.ndarray | None:
        return found[name][which] if name in found else None

    logits = None
    if "logits" in found:
        logits = Logits(
            flat("logits", logits_mask),
            flat("logit_ids", logits_mask),
            flat("log_normalizer", logits_mask),
        )
    return Reference(
        name=f"golden file {path.name}" + (f" of {found['source']}" if "source" in found else ""),
        inputs=Inputs(texts("tokens", mask), texts("types", mask), texts("targets", target_mask)),
        hidden_PxD=flat("hidden", mask),
        pooled_BxD=found.get("pooled"),
        logits=logits,
    )


def write_golden(path: Path, reference: Reference) -> None:
    """Writes a reference's answers, of a large vocabulary just some logits of each position."""
    inputs, logits = reference.inputs, reference.logits
    arrays: dict[str, Any] = {"source": np.array(reference.name)}
    lengths = [len(each) for each in inputs.tokens]
    spans = lengths if inputs.targets is None else [len(each) for each in inputs.targets]
    arrays["tokens_BxL"] = _padded(np.concatenate(inputs.tokens), lengths)
    arrays["mask_BxL"] = _padded(np.ones(sum(lengths), np.int32), lengths)
    if inputs.types is not None:
        arrays["types_BxL"] = _padded(np.concatenate(inputs.types), lengths)
    if inputs.targets is not None:
        arrays["targets_BxT"] = _padded(np.concatenate(inputs.targets), spans)
        arrays["target_mask_BxT"] = _padded(np.ones(sum(spans), np.int32), spans)
    if reference.pooled_BxD is not None:
        arrays["pooled_BxD"] = reference.pooled_BxD
    if logits is None:
        arrays["hidden_BxLxD"] = _padded(reference.hidden_PxD, lengths)
    elif logits.values_PxC.shape[1] <= _WHOLE:
        arrays["logits_BxLxV"] = _padded(logits.values_PxC, spans)
    else:
        some = _some_of(logits.values_PxC)
        arrays["logits_BxLxC"] = _padded(some.values_PxC, spans)
        arrays["logit_ids_BxLxC"] = _padded(some.ids_PxC, spans)
        arrays["log_normalizer_BxL"] = _padded(some.log_normalizer_P, spans)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def ask_pytorch(checkpoint: Checkpoint, inputs: Inputs) -> Reference:
    """Runs transformers in float32 on each text by itself, without padding.

    Args:
        checkpoint: a Hugging Face folder or a GGUF file.
        inputs: texts; types and targets where the family has them.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = checkpoint.path
    source: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if checkpoint.format == "gguf":
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    heads = {DecoderConfig: "AutoModelForCausalLM", T5Config: "AutoModelForSeq2SeqLM"}
    head = heads.get(type(checkpoint.config), "AutoModelForMaskedLM")
    classes = [head] if has_head(checkpoint) else []
    if "pooler" in checkpoint.parts or not classes:
        classes.append("AutoModel")
    results: dict[str, list[np.ndarray]] = {}
    for name in classes:
        if name == "AutoModel" and isinstance(checkpoint.config, T5Config):
            name = "AutoModelForTextEncoding"
        model = getattr(transformers, name).from_pretrained(
            **source, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            _collect(model.eval(), inputs, checkpoint, results)
        del model
    flat = {key: np.concatenate(values) for key, values in results.items()}
    pooled = flat.get("pooler_output") if "pooler" in checkpoint.parts else None
    return Reference(
        name=f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
        inputs=inputs,
        hidden_PxD=flat.get("last_hidden_state"),
        pooled_BxD=pooled,
        logits=Logits(flat["logits"]) if "logits" in flat else None,
    )


def _collect(
    model: Any, inputs: Inputs, checkpoint: Checkpoint, results: dict[str, list[np.ndarray]]
) -> None:
    """Appends a model's outputs, by their names in transformers, text by text."""
    import torch

    for index, tokens in enumerate(inputs.tokens):
        batch = {"input_ids": torch.tensor(tokens[None], dtype=torch.long)}
        if inputs.types is not None:
            batch["token_type_ids"] = torch.tensor(inputs.types[index][None], dtype=torch.long)
        if inputs.targets is not None and has_head(checkpoint):
            targets = np.concatenate([[checkpoint.config.start_id], inputs.targets[index][:-1]])
            batch["decoder_input_ids"] = torch.tensor(targets[None], dtype=torch.long)
        outputs = model(**batch)
        for key in ("logits", "last_hidden_state", "pooler_output"):
            if key in outputs and outputs[key] is not None:
                value = outputs[key].numpy()
                results.setdefault(key, []).append(value if key == "pooler_output" else value[0])


def _some_of(values_PxV: np.ndarray) -> Logits:
    """Keeps the highest logits of each position and some others, drawn once."""
    size = values_PxV.shape[1]
    highest_PxC = np.argpartition(-values_PxV, _HIGHEST, axis=1)[:, :_HIGHEST]
    others = np.random.default_rng(0).choice(size, _OTHERS + _HIGHEST, replace=False)
    ids = [
        np.concatenate([row, others[~np.isin(others, row)][:_OTHERS]]) for row in highest_PxC
    ]  # each id once, so that probabilities add up
    ids_PxC = np.stack(ids).astype(np.int32)
    top_P = values_PxV.max(axis=1)
    sums_P = np.exp(values_PxV - top_P[:, None], dtype=np.float64).sum(axis=1)
    log_normalizer_P = (top_P + np.log(sums_P)).astype(np.float32)
    return Logits(np.take_along_axis(values_PxV, ids_PxC, axis=1), ids_PxC, log_normalizer_P)


def _padded(flat: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Cuts a flat array into rows of these lengths, and pads them with zeros."""
    padded = np.zeros((len(lengths), max(lengths), *flat.shape[1:]), flat.dtype)
    padded[np.arange(max(lengths)) < np.array(lengths)[:, None]] = flat
    return padded
