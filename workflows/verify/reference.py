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
positions of all texts, one behind the other.
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

    def of(self, part: slice) -> "Logits":
        """Returns those of some positions."""
        return Logits(*(None if array is None else array[part] for array in self))


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference's outputs.

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
    """Returns why PyTorch can't run here; '' where it can."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install -e '.[bench]'"
    if checkpoint.format in ("tensorflow", "e5"):
        return f"transformers doesn't read the format {checkpoint.format!r}: name a golden file"
    return ""


def read_golden(path: Path) -> Reference:
    """Reads a golden file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no .npz, or lacks arrays; the message names them.
    """
    try:
        with np.load(path) as file:
            arrays = {re.sub(r"_[A-Z](x[A-Z])*$", "", name): file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"config.verify.golden: {path} doesn't exist. Where PyTorch and transformers are "
            "installed, --mode=verify without verify.golden writes a golden.npz into its workdir"
        ) from None
    except (ValueError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is no golden file ({error}): expected an .npz") from None
    missing = ", ".join(name for name in ("tokens", "mask") if name not in arrays)
    if not missing and not {"hidden", "pooled", "logits"} & arrays.keys():
        missing = "hidden, pooled or logits to compare with"
    if missing:
        raise ValueError(f"{path} has no array {missing}: see workflows/verify/reference.py")
    mask = logits_mask = arrays["mask"] > 0
    target_mask = None
    if "targets" in arrays:
        target_mask = logits_mask = arrays.get("target_mask", np.ones_like(arrays["targets"])) > 0

    def texts(name: str, mask: np.ndarray | None) -> list[np.ndarray] | None:
        if mask is None or name not in arrays:
            return None
        return [row[real] for row, real in zip(arrays[name], mask, strict=True)]

    def flat(name: str, mask: np.ndarray) -> np.ndarray | None:
        return arrays[name][mask] if name in arrays else None

    logits = Logits(
        *(flat(name, logits_mask) for name in ("logits", "logit_ids", "log_normalizer"))
    )
    return Reference(
        name=f"golden file {path.name}" + f" of {arrays.get('source')}" * ("source" in arrays),
        inputs=Inputs(texts("tokens", mask), texts("types", mask), texts("targets", target_mask)),
        hidden_PxD=flat("hidden", mask),
        pooled_BxD=arrays.get("pooled"),
        logits=logits if "logits" in arrays else None,
    )


def write_golden(path: Path, reference: Reference) -> None:
    """Writes a reference's outputs, of a large vocabulary just some logits of each position."""
    inputs, logits = reference.inputs, reference.logits
    arrays: dict[str, Any] = {"source": np.array(reference.name)}
    lengths = list(map(len, inputs.tokens))
    spans = lengths if inputs.targets is None else list(map(len, inputs.targets))
    padded = {
        "tokens_BxL": (np.concatenate(inputs.tokens), lengths),
        "mask_BxL": (np.ones(sum(lengths), np.int32), lengths),
    }
    if inputs.types is not None:
        padded["types_BxL"] = (np.concatenate(inputs.types), lengths)
    if inputs.targets is not None:
        padded["targets_BxT"] = (np.concatenate(inputs.targets), spans)
        padded["target_mask_BxT"] = (np.ones(sum(spans), np.int32), spans)
    if reference.pooled_BxD is not None:
        arrays["pooled_BxD"] = reference.pooled_BxD
    if logits is None:
        padded["hidden_BxLxD"] = (reference.hidden_PxD, lengths)
    elif logits.values_PxC.shape[1] <= _WHOLE:
        padded["logits_BxLxV"] = (logits.values_PxC, spans)
    else:
        names = ("logits_BxLxC", "logit_ids_BxLxC", "log_normalizer_BxL")
        padded |= {n: (x, spans) for n, x in zip(names, _some_of(logits.values_PxC), strict=True)}
    arrays |= {name: _padded(*values_and_lengths) for name, values_and_lengths in padded.items()}
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
    options = {**source, "dtype": torch.float32, "attn_implementation": "eager"}
    for name in classes:
        if name == "AutoModel" and isinstance(checkpoint.config, T5Config):
            name = "AutoModelForTextEncoding"
        model = getattr(transformers, name).from_pretrained(**options)
        with torch.no_grad():
            _collect(model.eval(), inputs, checkpoint, results)
        del model  # before the next one is loaded
    flat = {key: np.concatenate(values) for key, values in results.items()}
    return Reference(
        name=f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
        inputs=inputs,
        hidden_PxD=flat.get("last_hidden_state"),
        pooled_BxD=flat.get("pooler_output") if "pooler" in checkpoint.parts else None,
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
