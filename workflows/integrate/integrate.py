"""Joins models after training: tries config.integrate.methods, compares, writes the winner.

For --mode=integrate and at the end of a training. The winner becomes an ordinary checkpoint in
workdir/integrated, whose meta records how it was made.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from integration import methods
from integration.candidates import choose
from reporting import figures, report
from training.checkpoints import Checkpoints
from training.data import RunData, load_data
from training.experiment import Experiment, build
from workflows.integrate import shifted
from workflows.integrate.ingredients import find_runs
from workflows.integrate.trials import Trials
from workflows.restoring import check_data, read_meta, restore


def integrate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Integrates config.eval.checkpoint of a finished run; returns 'integration' of results.json.

    Raises:
        ValueError: options that cannot be, runs that do not belong together, or methods for several
            models where there is one.
    """
    if config.eval.checkpoint == "integrated":
        raise ValueError("config.eval.checkpoint: 'integrated' can't be integrated: use 'best'")
    check(config, workdir)
    data = load_data(config)
    check_data(read_meta(config, workdir), data, config, workdir)
    experiment = build(config, workdir, data.labels, print)
    if (workdir / "integrated").is_dir():
        before = restore(experiment, workdir, "integrated").name
        print(
            f"The model {before} is replaced; results.json, report.html and MODEL_CARD.md describe "
            "it until --mode=test."
        )
    results = integrate_run(experiment, workdir, data, config.eval.checkpoint, alone="stop")
    metric = experiment.metric
    if "curve" in results:
        report.show_curve(results["curve"], results["alpha"], metric)
    if "shifted_curve" in results:
        print(f"On the shifted set, {config.integrate.shifted_files}:")
        report.show_curve(results["shifted_curve"], results["alpha"], metric)
    figures.save_curves(workdir, metric=report.shown(metric), integration=results)
    return results


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError where config.integrate cannot be followed: before a training, not after."""
    methods.check(config)
    find_runs(config, workdir)
    shifted.check(config)


def integrate_run(
    experiment: Experiment,
    workdir: Path,
    data: RunData,
    name: str = "best",
    *,
    alone: str = "skip",
) -> dict[str, Any]:
    """Tries config.integrate.methods on the validation split and writes the winner.

    Args:
        experiment: of the run.
        workdir: of the run.
        data: validation chooses; train is read for config.integrate.targets alone.
        name: the checkpoint that all is compared with: 'best', 'latest' or a step.
        alone: what becomes of methods that this run has too few models, or no pretrained weights,
            for: 'skip' reports them and goes on, 'stop' raises.

    Returns:
        'integration' of results.json.

    Raises:
        ValueError: as for `integrate`.
    """
    trials = Trials(experiment, workdir, data, name, alone=alone)
    candidates, metric = trials.run(), experiment.metric
    chosen, rows = choose(candidates, metric=metric.name)
    written, note = chosen, ""
    if chosen.make is None:
        written, _ = choose([c for c in candidates if c.make], metric=metric.name)
        note = f" An ensemble is no checkpoint: {written.name} is written in its place."
    report.show_candidates(rows, chosen.name, metric)
    params = written.make()
    results = {
        **trials.record,
        "chosen": chosen.name,
        "written": written.name,
        "changed": trials.is_changed(written),
        "candidates": rows,
    }
    meta = {**trials.restored.meta, **results, "of": trials.restored.name}
    meta["fitted"] = written.judged.fitted
    checkpoints = Checkpoints(workdir / "integrated")
    checkpoints.save_params(params, meta)
    checkpoints.close()
    print(f"Integration: {chosen.name} is chosen; it is in {workdir / 'integrated'}.{note}")
    return results


def stored(meta: dict[str, Any]) -> dict[str, Any]:
    """Returns 'integration' of results.json from the meta of an integrated checkpoint."""
    keys = ("alpha", "curve", "shifted_curve", "targets")
    keys += ("chosen", "written", "changed", "candidates")
    return {key: meta[key] for key in keys if key in meta}
