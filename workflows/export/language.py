"""A language model as a folder that transformers loads, and that a run takes as a checkpoint.

Here: the whole model with its output layer and tokeniser, for config.task of language modelling and
generation; the folder is config.model.checkpoint of whatever is fine-tuned from it. Called by
workflows/export/export.py; classifiers are export_huggingface.py's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.backbone import flatten, parts_of, unflatten
from models.pretrained import open_checkpoint, write_pretrained
from training.experiment import Experiment
from workflows.export.huggingface import STEMS, check_tokenizer, pad_id, tokenizer_files


def write_language_model(
    experiment: Experiment, params: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Writes weights, config.json and tokeniser, and reads them again.

    Args:
        experiment: of a run whose task's head is the backbone's own output layer.
        params: flat numpy arrays of the checkpoint, an adapter folded in.
        folder: to write to; empty.

    Returns:
        {'form', 'compared', 'difference'} as the writers of workflows/export/export.py do.

    Raises:
        ValueError: what was written is read as something else.
    """
    model, tokenizer = experiment.model, experiment.tokenizer
    own = {
        path.removeprefix("backbone/"): np.asarray(value, np.float32)
        for path, value in params.items()
        if path.startswith("backbone/")
    }
    tree = unflatten(own)
    architecture = _architecture(model.config.model_type, parts_of(model.config))
    fields = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_id")
        for role in ("bos", "eos")
        if getattr(tokenizer, f"{role}_id") >= 0
    }
    fields |= {"model_type": model.config.model_type, "pad_token_id": pad_id(experiment)}
    files = tokenizer_files(experiment, fields)
    del fields["model_type"]
    write_pretrained(folder, model.config, tree, architectures=[architecture], fields=fields)
    for name, content in files.items():
        (folder / name).write_bytes(content)

    checkpoint = open_checkpoint(folder)
    again = flatten(checkpoint.read(checkpoint.parts))
    check_tokenizer(tokenizer, folder)
    if again.keys() != own.keys():
        raise ValueError(
            f"{folder}, read again, holds other parameters than the trained model: don't use it, "
            "and report this with the config"
        )
    difference = max(float(np.abs(again[path] - own[path]).max()) for path in own)
    form = f"{architecture} of transformers; a run takes the folder as config.model.checkpoint"
    return {"form": form, "compared": "parameters", "difference": difference}


def _architecture(model_type: str, parts: tuple[str, ...]) -> str:
    """Returns the name of transformers' class."""
    stem = STEMS[model_type].removesuffix("Encoder").removesuffix("Text")
    if "mlm_head" in parts:
        return f"{stem}ForMaskedLM"
    return f"{stem}ForConditionalGeneration" if "decoder" in parts else f"{stem}ForCausalLM"
