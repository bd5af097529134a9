"""Several runs: --mode=sweep, and --mode=train with config.seeds > 1.

Each run is an ordinary one in a folder of its own, named after what it changes, and they follow one
another in this process. What is finished is left alone and what was stopped goes on, so that the
same command resumes a sweep, and tells what runs started elsewhere (search.print_commands) have
found. At the end all are compared with the first of the recipe. A sweep chooses by the validation
split and leaves the test split shut: its winner is tested by --mode=test, with the command that is
printed. Repeats that differ in their seed alone choose nothing and may test. How sweeps are
written: configs/sweeping.py; Optuna: workflows/search.py.
"""

import dataclasses
import gc
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import sweeping
from configs.stored import differences
from evaluation.metrics import estimate
from input_pipeline.files import write_json
from reporting import report
from reporting.stored_scores import read_scores
from training.train import OnEvaluation, train
from workflows import report as comparison
from workflows.planning import Planned, command, plan

Record = dict[str, Any]  # of a run, JSON-ready; see `run_one`


def sweep(config: ConfigDict, workdir: Path, *, recipe: str) -> list[Record]:
    """Runs the recipe's sweep(), each of it config.seeds times, or searches its space().

    Args:
      config: what all runs share.
      workdir: runs are folders in it; sweep.json says what became of them.
      recipe: as given to --config: 'configs/x.py:arg'.

    Returns:
      A record for each run.

    Raises:
      ValueError: a sweep that is empty or holds a run twice, an unknown key, a wrong value; and,
        when all others are done, runs that failed.
      Interrupted: a signal came; the same command goes on.
    """
    if config.search.trials:
        from workflows import search  # which imports this module

        planned, records = search.search(config, workdir, recipe=recipe)
        return conclude(planned, records, workdir=workdir, recipe=recipe)
    entries = from_recipe(recipe, "sweep", "--config.search.trials=N for its space()")
    if config.seeds > 1:
        entries = sweeping.product(entries, _seeds(config))
    planned = plan(config, workdir, entries, recipe=recipe)
    return _run(planned, workdir, recipe, commands=config.search.print_commands)


def repeat(config: ConfigDict, workdir: Path, *, recipe: str) -> list[Record]:
    """Runs a config config.seeds times, with seed, seed + 1, ...; arguments as of `sweep`.

    The splits have a seed of their own (config.data.split.seed): all runs share them.
    """
    planned = plan(config, workdir, sweeping.product(_seeds(config)), recipe=recipe)
    names = [f"seed_{run.config.seed}" for run in planned]
    planned = [
        dataclasses.replace(run, name=name, workdir=workdir / name)
        for run, name in zip(planned, names, strict=True)
    ]
    return _run(planned, workdir, recipe, commands=config.search.print_commands)


def from_recipe(recipe: str, name: str, otherwise: str) -> Any:
    """Returns what a function of the recipe's file returns."""
    functions = runpy.run_path(recipe.partition(":")[0])
    if name not in functions:
        raise ValueError(
            f"--config={recipe} has no function {name}(), which says what to run: see "
            f"configs/sweeping.py, or pass {otherwise}"
        )
    return functions[name]()


def run_one(run: Planned, on_evaluation: OnEvaluation | None = None) -> Record:
    """Runs what is not finished, and returns what became of it.

    Returns:
      'name', 'setting', 'overrides', 'status' ('finished' or 'failed'); of a finished one
      'split', 'metric' (as results.json has it), 'value', 'standard_error', 'count' and 'rank'
      (greater is better) of its chosen model; of a failed one 'message'.
    """
    gc.collect()  # what the run before has held, before this one allocates as much
    try:
        if is_finished(run):
            print(f"Finished before: {run.workdir}")
        else:
            train(run.config, run.workdir, on_evaluation=on_evaluation)
        return run.facts | {"status": "finished"} | outcome(run)
    # What is wrong with one run: its values, a file it names, its size (out of memory).
    except (ValueError, FileNotFoundError, jax.errors.JaxRuntimeError) as error:
        print(f"Failed: {error}", file=sys.stderr)
        return run.facts | {"status": "failed", "message": str(error)}


def is_finished(run: Planned) -> bool:
    """Whether the folder holds the results of this very config; reads no data and no model."""
    path = run.workdir / "config.json"
    if not (run.workdir / "results.json").exists() or not path.exists():
        return False
    return not differences(json.loads(path.read_text(encoding="utf-8")), run.config)


def outcome(run: Planned) -> Record:
    """Reads what a finished run's chosen model, the last of its table, is worth.

    Raises:
      ValueError: only the test split was evaluated, by which nothing may be chosen.
    """
    for split in ("test", "validation") if run.config.eval.test else ("validation",):
        path = run.workdir / f"scores_{split}.npz"
        if path.exists():
            *_, scores = read_scores(path).values()
            metric = scores.metric(run.config.eval.metric)
            found = estimate(scores, metric.name)
            sign = 1 if metric.higher_is_better else -1
            known = {"split": split, "metric": report.shown(metric), "rank": sign * found["value"]}
            return known | found
    raise ValueError(
        f"{run.workdir} has no {path.name}: delete its results.json, and the next start evaluates "
        "it on the validation split, without training"
    )


def note(records: Sequence[Record], workdir: Path) -> None:
    """Writes sweep.json."""
    write_json(workdir / "sweep.json", {"runs": records})


def conclude(
    planned: Sequence[Planned], records: Sequence[Record], *, workdir: Path, recipe: str
) -> list[Record]:
    """Shows what the settings are worth, and how to test the best; raises if runs failed.

    Of equal settings the first is the best. A setting with several seeds counts by their mean.
    """
    finished = [record for record in records if record["status"] == "finished"]
    settings: dict[str, list[Record]] = {}
    for record in finished:
        settings.setdefault(record["setting"], []).append(record)
    ranked = sorted(settings.values(), key=lambda runs: -_mean_rank(runs))
    if ranked:
        best = max(ranked[0], key=lambda record: record["rank"])
        folders = [workdir / record["name"] for runs in ranked for record in runs]
        # All are compared with the first run of the recipe: the best was chosen by these very
        # examples, and would look better than the others by chance alone.
        first = str(workdir / finished[0]["name"])
        try:  # by the split of the choice, also where a run was tested since
            comparison.compare(folders, workdir, first, split=best["split"])
        except ValueError as error:
            print(f"The runs are not compared example by example: {error}")
            report.show(report.table(("run", "metric", "mean"), map(_mean_cells, ranked)))
    asked = {(record["split"], record["metric"]["name"]) for record in finished}
    if len(ranked) > 1 and len(asked) == 1:  # of several metrics, none is the best
        run = next(run for run in planned if run.name == best["name"])
        tested = command(run, recipe, mode="test")
        print(f"The best on the {best['split']} split is {run.name}. To test it:\n  {tested}")
    if failed := [record for record in records if record["status"] == "failed"]:
        lines = "".join(f"\n  {record['name']}: {record['message']}" for record in failed)
        others = "The others are finished; s" if len(failed) < len(records) else "S"
        raise ValueError(
            f"{len(failed)} of {len(records)} runs in {workdir} failed:{lines}\n{others}tart the "
            "same command again to try these again."
        )
    return list(records)


def _run(planned: Sequence[Planned], workdir: Path, recipe: str, *, commands: bool) -> list[Record]:
    """Runs all one after another, or prints their commands."""
    if commands:
        print("\n".join(command(run, recipe) for run in planned))
        return []
    records: list[Record] = []
    for number, run in enumerate(planned, start=1):
        print(f"Run {number} of {len(planned)}: {run.name}")
        records.append(run_one(run))
        note(records, workdir)
    return conclude(planned, records, workdir=workdir, recipe=recipe)


def _mean_rank(runs: Sequence[Record]) -> float:
    mean = float(np.mean([run["rank"] for run in runs]))
    return mean if np.isfinite(mean) else -np.inf  # of no number, the worst


def _mean_cells(runs: Sequence[Record]) -> tuple[str, str, str]:
    """The cells of a setting: its name, what was measured, and the mean over its runs."""
    shown = runs[0]["metric"]
    mean = {"value": float(np.mean([run["value"] for run in runs])), "standard_error": None}
    return runs[0]["setting"], shown["title"], report.cell(mean, shown)


def _seeds(config: ConfigDict) -> dict[str, range]:
    return {"seed": range(config.seed, config.seed + config.seeds)}
