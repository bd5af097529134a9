"""The models that soups, merges and ensembles are made of, checked but not yet loaded.

Without config.integrate.runs they are the checkpoints of this run; with it the best checkpoint of
each run, this one's among them. Where a run kept a running average of its weights
(config.train.ema), this run's is one more.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from reporting import report
from tasks import task_class
from training.checkpoints import Checkpoints, Meta
from training.experiment import Experiment
from training.workdir import has_checkpoint
from workflows.report import find_workdirs
from workflows.restoring import Restored, read_meta


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """One model.

    Attributes:
        name: in tables.
        workdir: of its run.
        item: 'params', or 'average' of them.
    """

    name: str
    workdir: Path
    step: int
    item: str = "params"

    @property
    def title(self) -> str:
        """Where it comes from, for the record."""
        part = " (running average)" if self.item == "average" else ""
        return f"{self.workdir}, step {self.step}{part}"

    def load(self, experiment: Experiment) -> dict[str, jax.Array]:
        """Returns the parameters."""
        checkpoints = Checkpoints(self.workdir / "checkpoints", read_only=True)
        params = checkpoints.restore_params(self.step, experiment.like(), item=self.item)
        checkpoints.close()
        return params


def find_runs(config: ConfigDict, workdir: Path) -> list[Path]:
    """Returns the workdirs that config.integrate.runs names, without this one, in order.

    Raises:
        ValueError: a name or glob that stands for no run.
    """
    key, patterns = "config.integrate.runs", config.integrate.runs
    runs = find_workdirs(key, patterns, has_checkpoint, "checkpoints")
    return sorted(run for run in runs if run != workdir.resolve())


def find(
    experiment: Experiment, workdir: Path, *, restored: Restored, fingerprints: Mapping
) -> list[Ingredient]:
    """Returns the ingredients, the checkpoint that was restored first.

    Args:
        experiment: of this run.
        workdir: of this run.
        restored: config.eval.checkpoint.
        fingerprints: of the splits of the data.

    Raises:
        ValueError: another run is not about the same task, labels, data or pretrained weights.
    """
    config, step = experiment.config, restored.step
    first = Ingredient(restored.name, workdir, step)
    runs, ingredients = find_runs(config, workdir), [first]
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if checkpoints.has_average(step):
        ingredients.append(
            dataclasses.replace(first, name=f"average up to step {step}", item="average")
        )
    checkpoints.close()
    if not config.integrate.runs:
        children = (workdir / "checkpoints").iterdir()
        steps = {int(child.name) for child in children if child.name.isdigit()} - {step}
        ingredients += [Ingredient(f"step {other}", workdir, other) for other in sorted(steps)]
    wanted = {**experiment.fingerprints, **fingerprints}
    names = report.short_names([workdir.resolve(), *runs])
    for run in runs:
        if not (run / "results.json").exists():
            print(f"Note: {run} is not finished; its best checkpoint so far is used.")
        try:
            ingredients.append(_best(config, run, names[run], restored.meta, wanted))
        except ValueError as error:
            raise ValueError(f"config.integrate.runs: {error}") from None
    return ingredients


def _best(
    config: ConfigDict, run: Path, name: str, own: Meta, wanted: Mapping[str, str]
) -> Ingredient:
    """Returns the best checkpoint of another run after a check that it belongs to this one."""
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    step = checkpoints.resolve("latest" if checkpoints.best() is None else "best")
    checkpoints.close()
    config = config.copy_and_resolve_references()
    config.eval.checkpoint = str(step)
    meta = read_meta(config, run)
    if meta["labels"] != own["labels"]:
        raise ValueError(
            f"{run} has the labels {meta['labels']}, this run {own['labels']}: name runs of the "
            "same labels in the same order (config.data.labels)"
        )
    for part, fingerprint in wanted.items():
        if (saved := meta["fingerprints"].get(part)) != fingerprint:
            raise ValueError(
                f"{run} and this run do not share their {part}: its fingerprint is there "
                f"{str(saved)[:12]}, here {fingerprint[:12]}. Name runs of the same data, splits, "
                "tokeniser and pretrained checkpoint"
            )
    if task_class(config).UNIT and meta["fitted"] != own["fitted"]:
        raise ValueError(
            f"{run} learned numbers on the scale {meta['fitted']}, this run on {own['fitted']}: "
            "name runs with the same config.data.max_train_examples"
        )
    return Ingredient(f"{name}, step {step}", run, step)
