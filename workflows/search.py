"""--mode=sweep with config.search.trials: Optuna's tree-structured Parzen estimators, with pruning.

The values of trial n are a function of the seed, n and the earlier results, so no database is
needed: the same command replays the search from the workdirs, where finished runs cost nothing, and
resumes where it was interrupted. A trial is an ordinary run in a folder of its own. It is pruned if
it falls behind the median of the earlier trials at the same evaluation, except at its last one
(Bergstra et al. 2011; Golovin et al. 2017). Optuna is the extra 'search'.
"""

import json
import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.sweeping import check_space
from workflows import planning, runs

_PATIENCE = {"n_startup_trials": 5, "n_warmup_steps": 2}  # finished trials; evaluations of this one


class _Pruned(Exception):
    """This trial falls behind the others."""


def search(
    config: ConfigDict, workdir: Path, *, recipe: str
) -> tuple[list[planning.Planned], list[runs.Record]]:
    """Runs config.search.trials trials over the recipe's space(), earlier ones included.

    Returns:
      The runs and their records, see runs.run_one; 'status' may be 'pruned' too, and 'evaluations'
      holds [step, rank] of each evaluation during training.

    Raises:
      ValueError: Optuna or the space is missing, or config.seeds is above 1.
      Interrupted: a signal came.
    """
    if config.search.print_commands:
        raise ValueError(
            "config.search.print_commands: a search chooses each trial by the earlier ones, so its "
            "commands are not known in advance: set config.search.trials=0 to print sweep()'s"
        )
    if config.seeds > 1:
        raise ValueError(
            f"config.seeds={config.seeds}: a search tries each point once: search with one seed, "
            "then repeat the best with --mode=train --config.seeds=N"
        )
    optuna = _optuna()
    space = runs.from_recipe(recipe, "space", "--config.search.trials=0, for one that has sweep(),")
    check_space(space)
    path = workdir / "sweep.json"
    before = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    known = {record["name"]: record.get("evaluations", []) for record in before}
    pruner = optuna.pruners.MedianPruner(**_PATIENCE)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    config = config.copy_and_resolve_references()
    config.eval.test = False  # also in a search over the seed alone
    planned: dict[str, planning.Planned] = {}
    records: dict[str, runs.Record] = {}
    for number in range(config.search.trials):
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = study.ask()
        overrides = {key: values.suggest(trial, key) for key, values in space.items()}
        (run,) = planning.plan(config, workdir, [overrides], recipe=recipe)
        print(f"Trial {number + 1} of {config.search.trials}: {run.name}")
        planned[run.name] = run

        def save(record: runs.Record) -> None:
            records[record["name"]] = record
            later = [old for old in before if old["name"] not in records]  # not replayed yet
            runs.note([*records.values(), *later], workdir)

        record = _try(run, trial, known.get(run.name, []), save)
        save(record)
        state = {"pruned": "PRUNED", "failed": "FAIL"}.get(record["status"])
        state = state and optuna.trial.TrialState[state]
        study.tell(trial, record["rank"] if state is None else None, state)
    return list(planned.values()), list(records.values())


def _try(
    run: planning.Planned,
    trial: Any,
    earlier: Sequence[tuple[int, float]],
    save: Callable[[runs.Record], None],
) -> runs.Record:
    """Runs a trial until it ends or is pruned; evaluations of an `earlier` start count at once."""
    evaluations: dict[int, float] = {}
    finished = runs.is_finished(run)
    partial = run.facts | {"status": "unfinished"}

    def on_evaluation(step: int, rank: Sequence[float]) -> None:
        if step not in evaluations:
            evaluations[step] = rank[0]
            trial.report(rank[0], len(evaluations))  # by number: batch sizes may differ
            save(partial | {"evaluations": list(evaluations.items())})
        if not finished and trial.should_prune():
            raise _Pruned

    try:
        for step, value in earlier:
            on_evaluation(step, [math.nan if value is None else value])
        record = runs.run_one(run, on_evaluation)
    except _Pruned:
        print(f"Pruned: {run.name} falls behind the median of the earlier trials.")
        record = run.facts | {"status": "pruned"}
    return record | {"evaluations": list(evaluations.items())}


def _optuna() -> types.ModuleType:
    """Imports Optuna, an extra."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise ValueError(
            "config.search.trials needs Optuna: pip install -e '.[search]', or set it to 0"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
