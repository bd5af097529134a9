"""Checkpoints to parameters on the devices, after checks that they belong to the config."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from configs.stored import differences, own_key
from tasks import task_class
from training.checkpoints import Checkpoints, Meta
from training.data import RunData, SeveralData
from training.experiment import Experiment

# What must be as in training for a checkpoint's numbers to mean the same. Weights and tokeniser are
# compared by fingerprint.
_BOUND = ("task", "model.init", "model.head", "model.pooling", "model.label_words")
_BOUND += ("model.keep_layers", "model.bidirectional", "tokenizer.marks")
_BOUND += ("adapt.kind", "adapt.targets", "adapt.rank", "adapt.alpha", "adapt.layers")
_BOUND += ("adapt.prompt_length", "adapt.frozen_dtype", "optimizer.lr_table", "features.use")
_BOUND += ("tokenizer.keep_others", "tokenizer.new_pieces")
_BOUND += ("data.template", "data.normalization", "layout.max_length")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's parameters on the devices, and their origin."""

    params: dict[str, jax.Array]
    meta: Meta
    name: str
    step: int

    @property
    def fitted(self) -> Mapping[str, Any]:
        """Returns what tasks.task.Task.fit chose for these parameters."""
        return self.meta["fitted"]


def read_config(folder: Path) -> ConfigDict:
    """Returns the config of another run, from its config.json.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder.absolute()} holds no run (it has no config.json)")
    return ConfigDict(_with_tuples(json.loads(path.read_text(encoding="utf-8"))))


def _with_tuples(value: Any) -> Any:
    """Returns JSON with its lists as tuples, as configs have them."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def final(folder: Path) -> str:
    """Returns the name of the checkpoint that a run ended with."""
    return "integrated" if (folder / "integrated").is_dir() else "best"


def open_checkpoints(workdir: Path, name: str, **options: Any) -> tuple[Checkpoints, int]:
    """Returns the checkpoints and the step that `name` stands for."""
    folder = "integrated" if name == "integrated" else "checkpoints"
    checkpoints = Checkpoints(workdir / folder, read_only=True, **options)
    return checkpoints, checkpoints.resolve("latest" if name == "integrated" else name)


def read_meta(config: ConfigDict, workdir: Path) -> Meta:
    """Returns a checkpoint's meta after a check that the config describes the same model."""
    checkpoints, step = open_checkpoints(workdir, config.eval.checkpoint)
    meta = checkpoints.meta(step)
    checkpoints.close()
    configs = (config, *task_class(config).member_configs(config).values())
    bound = _BOUND + tuple(key for own in configs for key in task_class(own).BOUND)
    changed = [
        f"  {key}: {saved!r} in the checkpoint, {now!r} now"
        for key, (saved, now) in differences(meta["config"], config).items()
        if own_key(key).startswith(bound)
    ]
    if changed:
        raise ValueError(
            f"checkpoint {step} of {workdir} was trained with another model:\n"
            + "\n".join(changed)
            + f"\nUse the values of the checkpoint ({workdir / 'config.json'})."
        )
    return meta


def restore(experiment: Experiment, workdir: Path, name: str | None = None) -> Restored:
    """Restores the checkpoint `name`, or the one config.eval.checkpoint names.

    Raises:
      ValueError: there is none, or it was trained on other files than the experiment has.
    """
    config = experiment.config
    name = name or config.eval.checkpoint
    checkpoints, step = open_checkpoints(workdir, name, rank=experiment.rank)
    meta = checkpoints.meta(step)
    changed = [
        part
        for part, fingerprint in experiment.fingerprints.items()
        if meta["fingerprints"][part] != fingerprint
    ]
    if changed:
        raise ValueError(
            f"checkpoint {step} of {workdir} was trained with another {' and '.join(changed)} file "
            "(the fingerprints differ), which holds its frozen parameters: restore that file"
        )
    params = checkpoints.restore_params(step, experiment.like())
    checkpoints.close()
    title = f"{name} checkpoint, step {step}"
    if name == "integrated":
        title = f"integrated ({meta['written']})"
    return Restored(params, meta, title, step)


def check_data(meta: Meta, data: RunData | SeveralData, config: ConfigDict, workdir: Path) -> None:
    """Checks that a run is tested on the data by which it was chosen.

    Raises:
      ValueError: other labels, or other examples in a split.
    """
    if data.labels != meta["labels"]:
        raise ValueError(
            f"the data have the labels {data.labels}, but the run in {workdir} was trained on "
            f"{meta['labels']}: set config.data.labels to the latter"
        )
    saved = meta["fingerprints"]
    if changed := [name for name, value in data.fingerprints.items() if saved.get(name) != value]:
        keys = [
            f"{key}: {before!r} before, {now!r} now"
            for key, (before, now) in differences(meta["config"], config).items()
            if "data." in key or key == "task"
        ]
        raise ValueError(
            f"the run in {workdir} was chosen on other data: the splits {changed} have changed (by "
            f"fingerprint; {'; '.join(keys) or 'config.data is the same, so the files have'}). Use "
            "its config.data and files, or train again"
        )
