"""What a training starts from: its own or another run's checkpoint and whether it belongs; weights
that regularisers change before the first step."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from models import adapters
from training.checkpoints import Checkpoints, Meta
from training.experiment import Experiment
from training.tuning import regularizers


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


def first_weights(
    experiment: Experiment, params: dict[str, jax.Array], pretrained: Sequence[str]
) -> dict[str, jax.Array]:
    """Returns the weights of the first step, with noise or layers anew if so configured.

    Args:
      experiment: of the run.
      params: the trained ones, placed.
      pretrained: paths of those that a checkpoint filled.

    Raises:
      ValueError: layers to draw anew that the model lacks, or that are not trained.
    """
    config, top = experiment.config, []
    options, count = config.regularize, config.regularize.reinit_layers
    if not count and not options.noisy_tune:
        return params
    if count:
        paths = [*experiment.initial, *experiment.frozen]
        top = adapters.top_layers(paths, count, num_layers=experiment.num_layers)
        if frozen := sorted(set(top) - params.keys()):
            raise ValueError(
                f"config.regularize.reinit_layers={count} would draw {frozen[0]} anew, which is "
                "not trained: set it to 0, or config.adapt.kind='full'"
            )
        print(f"Start: the last {count} layers are drawn anew.")
    begin = functools.partial(
        regularizers.first_weights, options, pretrained=pretrained, top=top, seed=config.seed
    )
    places = {path: value.sharding for path, value in params.items()}
    return jax.jit(begin, out_shardings=places)(params)
