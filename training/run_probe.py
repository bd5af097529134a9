"""The probe of a run: fitted on its training split once, and kept in its workdir."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.examples import Examples
from models.pretrained import safetensors
from tasks import require, task_class
from training.workdir import has_checkpoint


def run_probe(
    config: ConfigDict,
    workdir: Path,
    training: Examples | None,
    fit: Callable[[Examples], dict[str, np.ndarray]],
    drawn: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Returns parameters of the head: fitted by `fit`, or those that the run was started with.

    `drawn` are the parameters that they replace.

    Raises:
        ValueError: from these examples nothing can be learned, or the run had another head.
        FileNotFoundError: the run has checkpoints, but its probe is missing.
    """
    path = workdir / "probe.safetensors"
    if training is not None and not has_checkpoint(workdir):
        safetensors.write(path, fit(training))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the head that this run started from. Put it back, or train again "
            "in another --workdir (a run that started without: config.model.head_start='random')"
        )
    heads = {name: tensor.read() for name, tensor in safetensors.read(path).items()}
    for name, head in heads.items():
        if name not in drawn or head.shape != drawn[name].shape:
            raise ValueError(
                f"{path}: the run started from {name} of shape {head.shape}, which does not fit "
                f"the config: use {workdir / 'config.json'}, or choose another --workdir"
            )
    return heads


def check(config: ConfigDict) -> None:
    """Raises ValueError where config.model.head_start='probe' cannot be."""
    if config.model.head_start != "probe":
        return
    knob = "config.model.head_start='probe'"
    require(config, "PROBE", knob)
    if config.model.init == "scratch":
        raise ValueError(f"{knob} needs pretrained weights, but config.model.init='scratch'")
    members = task_class(config).member_configs(config)
    able = {name: own for name, own in members.items() if task_class(own).PROBE}
    if members and not able:
        raise ValueError(f"{knob}: none of the members {list(members)} has a head that it can fit")
    for name, own in (able or {"": config}).items():
        key = f"config.multi.members.{name}.model" if name else "config.model"
        if own.model.head != "linear" or not own.model.head_bias:
            raise ValueError(
                f"{knob} needs {key}.head='linear' and head_bias=True, found {own.model.head!r} "
                f"and {own.model.head_bias}: label words are a start of their own; set "
                "head_start='random'"
            )
