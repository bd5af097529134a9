"""Several runs: --mode=sweep, and --mode=train with config.seeds > 1.

Each run is an ordinary one in a folder of its own, named after what it changes; they run one after
another in this process. Finished runs are skipped and interrupted ones resume, so that the same
command resumes a sweep, and reports runs that were started elsewhere (search.print_commands). At
the end all are compared with the first of the recipe. A sweep chooses by the validation split and
never opens the test split: --mode=test tests the best, by the command that is printed. Repeats that
differ only in seed or fold choose nothing and may test. configs/sweeping.py says how sweeps are
written.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import sweeping
from reporting import report
from workflows import rate_range, search
from workflows import report as comparison
from workflows.planning import Planned, command, plan
from workflows.runs import Record, from_recipe, note, run_one


def sweep(config: ConfigDict, workdir: Path, *, recipe: str) -> list[Record]:
    """Runs the recipe's sweep(), each of it config.seeds times, or searches its space().

    With config.search.range_test a range test of the learning rate instead: see rate_range.py.

    Args:
      config: what all runs share.
      workdir: runs are folders in it; sweep.json holds their records.
      recipe: as given to --config: 'configs/x.py:arg'.

    Returns:
      A record for each run.

    Raises:
      ValueError: the sweep is empty, holds a run twice, an unknown key or a wrong value; and, after
        all others are done, if runs failed.
      Interrupted: a signal came; the same command goes on.
    """
    if config.search.range_test:
        if config.search.trials or config.search.print_commands or config.seeds > 1:
            raise ValueError(
                "config.search.range_test is one short training: set search.trials=0, "
                "search.print_commands=False and seeds=1, or leave it empty"
            )
        rate_range.rate_range(config, workdir)
        return []
    if config.search.trials:
        planned, records = search.search(config, workdir, recipe=recipe)
        return conclude(planned, records, workdir=workdir, recipe=recipe)
    entries = from_recipe(recipe, "sweep", "--config.search.trials=N for its space()")
    if config.seeds > 1:
        entries = sweeping.product(entries, _seeds(config))
    planned = plan(config, workdir, entries, recipe=recipe)
    return _run(planned, workdir, recipe, commands=config.search.print_commands)


def repeat(config: ConfigDict, workdir: Path, *, recipe: str) -> list[Record]:
    """Runs a config config.seeds times, with seed, seed + 1, ... See `sweep`.

    The splits have a seed of their own (config.data.split.seed): all runs share them.
    """
    planned = plan(config, workdir, sweeping.product(_seeds(config)), recipe=recipe)
    names = [f"seed_{run.config.seed}" for run in planned]
    planned = [
        dataclasses.replace(run, name=name, workdir=workdir / name)
        for run, name in zip(planned, names, strict=True)
    ]
    return _run(planned, workdir, recipe, commands=config.search.print_commands)


def conclude(
    planned: Sequence[Planned], records: Sequence[Record], *, workdir: Path, recipe: str
) -> list[Record]:
    """Shows the results of the settings and how to test the best; raises if runs failed.

    A setting of several runs counts by their mean. Of equal settings the first is the best.
    """
    finished = [record for record in records if record["status"] == "finished"]
    settings: dict[str, list[Record]] = {}
    for record in finished:
        settings.setdefault(record["setting"], []).append(record)
    ranked = sorted(settings.values(), key=lambda runs: -_mean_rank(runs))
    if ranked:
        best = max(ranked[0], key=lambda record: record["rank"])
        folders = [workdir / record["name"] for runs in ranked for record in runs]
        # All are compared with the first run of the recipe: the best was chosen by the same
        # examples, and would look better than the others by chance alone.
        first = str(workdir / finished[0]["name"])
        try:  # on the split of the choice, even if a run was tested since
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
        raise ValueError(
            f"{len(failed)} of {len(records)} runs in {workdir} failed:{lines}\nStart the same "
            "command again to retry them; finished runs are kept."
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
    return mean if np.isfinite(mean) else -np.inf  # NaN ranks last


def _mean_cells(runs: Sequence[Record]) -> tuple[str, str, str]:
    """Returns the cells of a setting: its name, the metric, and the mean over its runs."""
    shown = runs[0]["metric"]
    mean = {"value": float(np.mean([run["value"] for run in runs])), "standard_error": None}
    return runs[0]["setting"], shown["title"], report.cell(mean, shown)


def _seeds(config: ConfigDict) -> dict[str, range]:
    return {"seed": range(config.seed, config.seed + config.seeds)}
