"""The checkpoint that a training starts from, its own or another run's, and whether it belongs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from training.checkpoints import Checkpoints, Meta


def check_origin(
    saved: Meta, meta: Meta, name: str, config: ConfigDict, *, parts: Sequence[str] = ()
) -> None:
    """Compares the fingerprints of data, tokeniser and weights with a checkpoint's.

    Args:
      saved: of the checkpoint.
      meta: of the run.
      name: of the checkpoint, for messages.
      config: of the run; train.on_config_change='continue' goes on despite a difference.
      parts: names of the fingerprints; () compares all.

    Raises:
      ValueError: they differ.
    """
    parts = parts or list(meta["fingerprints"])
    current, before = meta["fingerprints"], saved["fingerprints"]
    changed = [part for part in parts if before.get(part) != current[part]]
    if not changed:
        return
    text = f"{name} was trained with another {' and another '.join(changed)}"
    if config.train.on_config_change == "continue":
        print(f"Note: {text} (by fingerprint), and goes on with the current one.")
    else:
        raise ValueError(
            f"{text} (the fingerprints differ): restore the files it was trained on, choose "
            "another --workdir, or pass --config.train.on_config_change=continue"
        )


def start_from_run(config: ConfigDict, meta: Meta, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the best (else the latest) parameters of the run in config.resume_from.

    Args:
      config: of the run.
      meta: of the run.
      like: describes its parameters.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: it has other labels, weights or another tokeniser.
    """
    folder = Path(config.resume_from) / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"config.resume_from: there is no folder {folder.absolute()}")
    other = Checkpoints(folder, read_only=True)
    step = other.resolve("latest" if other.best() is None else "best")
    saved = other.meta(step)
    name = f"checkpoint {step} of {config.resume_from}"
    if saved["labels"] != meta["labels"]:
        raise ValueError(
            f"config.resume_from: {name} has the labels {saved['labels']}, the data has "
            f"{meta['labels']}: set config.data.labels to the former"
        )
    check_origin(saved, meta, name, config, parts=("pretrained", "tokenizer"))
    params = other.restore_params(step, like)
    print(f"Start: from the weights of {name}.")
    return params
