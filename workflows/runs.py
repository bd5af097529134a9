"""One run of a sweep or search: started, or found finished, and its outcome as a record."""

import copy
import gc
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from configs.stored import differences
from evaluation.metrics import estimate
from input_pipeline import hosts
from input_pipeline.files import write_json
from reporting import report
from reporting.stored_scores import read_scores
from training.compilation import resolve_dtype
from training.train import OnEvaluation
from workflows.planning import Planned
from workflows.train import train

Record = dict[str, Any]  # of a run, JSON-ready; see `run_one`


def from_recipe(recipe: str, name: str, otherwise: str) -> Any:
    """Calls a function of the recipe's file, and returns its value."""
    functions = runpy.run_path(recipe.partition(":")[0])
    if name not in functions:
        raise ValueError(
            f"--config={recipe} has no function {name}(), which lists the runs: see "
            f"configs/sweeping.py, or pass {otherwise}"
        )
    return functions[name]()


def run_one(run: Planned, on_evaluation: OnEvaluation | None = None) -> Record:
    """Runs what is not finished, and returns its record.

    Returns:
      'name', 'setting', 'overrides', 'status' ('finished' or 'failed'); of a finished one
      'split', 'metric' (as results.json has it), 'value', 'standard_error', 'count' and 'rank'
      (greater is better) of its chosen model; of a failed one 'message'.
    """
    gc.collect()  # frees the arrays of the run before, before this one allocates as much
    try:
        if is_finished(run):
            print(f"Finished before: {run.workdir}")
        else:
            train(run.config, run.workdir, on_evaluation=on_evaluation)
        return run.facts | {"status": "finished"} | outcome(run)
    # Errors of one run: its values, a file it names, its size (out of memory).
    except (ValueError, FileNotFoundError, jax.errors.JaxRuntimeError) as error:
        if not hosts.all_fail(error):
            raise  # the others wait in this run, or one is gone: no run can follow
        if hosts.writes():
            print(f"Failed: {error}", file=sys.stderr)
        return run.facts | {"status": "failed", "message": str(error)}


def is_finished(run: Planned) -> bool:
    """Returns whether the folder holds the results of this config; reads no data and no model."""
    path, config = run.workdir / "config.json", copy.deepcopy(run.config)
    if not (run.workdir / "results.json").exists() or not path.exists():
        return False
    resolve_dtype(config, run.workdir, lambda line: None)  # as it was stored
    return not differences(json.loads(path.read_text(encoding="utf-8")), config)


def outcome(run: Planned) -> Record:
    """Returns the result of a finished run's chosen model, the last of its table.

    Raises:
      ValueError: only the test split was evaluated, by which nothing may be chosen.
    """
    for split in ("test", "validation") if run.config.eval.test else ("validation",):
        path = run.workdir / f"scores_{split}.npz"
        if path.exists():
            *_, scores = read_scores(path).values()
            metric = scores.metric(run.config.eval.metric)
            result = estimate(scores, metric.name)
            sign = 1 if metric.higher_is_better else -1
            rank = sign * result["value"]
            return {"split": split, "metric": report.shown(metric), "rank": rank} | result
    raise ValueError(
        f"{run.workdir} has no {path.name}: delete its results.json, and the next start evaluates "
        "it on the validation split, without training"
    )


def note(records: Sequence[Record], workdir: Path) -> None:
    """Writes sweep.json."""
    write_json(workdir / "sweep.json", {"runs": records})
