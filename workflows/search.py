"""--mode=sweep with config.search.trials: Optuna's tree-structured Parzen estimators, with pruning.

What trial n tries is a function of the seed, n and the results before it, so that there is no
database to keep: the same command replays the search from the workdirs, where finished runs cost
nothing, and goes on where it was stopped. A trial is an ordinary run in a folder of its own; one
that falls behind the median of those before it, at the same evaluation, is pruned, but not at its
last one, when all is paid for (Bergstra et al. 2011; Golovin et al. 2017). Optuna is the extra
'search'.
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
    """This trial falls behind."""


def search(
    config: ConfigDict, workdir: Path, *, recipe: str
) -> tuple[list[planning.Planned], list[runs.Record]]:
    """Runs config.search.trials trials over the recipe's space(), those done before included.

    Returns:
      The runs, and a record of each as of `runs.run_one`; 'status' may be 'pruned' too,
      and 'evaluations' holds [step, rank] of each evaluation while it trained.

    Raises:
      ValueError: Optuna is missing, the space is none, or there is more than one seed.
      Interrupted: a signal came.
    """
    if config.search.print_commands:
        raise ValueError(
            "config.search.print_commands: a search learns from trial to trial, so that its "
            "commands are not known beforehand: set config.search.trials=0 to print sweep()'s"
        )
    if config.seeds > 1:
        raise ValueError(
            f"config.seeds={config.seeds}: a search tries each point once, found more than 1: "
            "search with one seed, then repeat the best with --mode=train --config.seeds=N"
        )
    optuna = _optuna()
    space = runs.from_recipe(recipe, "space", "--config.search.trials=0, for one that has sweep(),")
    check_space(space)
    path = workdir / "sweep.json"
    before = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    known = {record["name"]: record.get("evaluations", []) for record in before}
    pruner = optuna.pruners.MedianPruner(**_PATIENCE)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    shut = config.copy_and_resolve_references()
    shut.eval.test = False  # whatever is searched
    planned: dict[str, planning.Planned] = {}
    records: dict[str, runs.Record] = {}
    for number in range(config.search.trials):
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = study.ask()
        overrides = {key: values.suggest(trial, key) for key, values in space.items()}
        (run,) = planning.plan(shut, workdir, [overrides], recipe=recipe)
        print(f"Trial {number + 1} of {config.search.trials}: {run.name}")
        planned[run.name] = run

        def save(record: runs.Record) -> None:
            records[record["name"]] = record
            later = [old for old in before if old["name"] not in records]  # until they are replayed
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
    """Runs a trial to its end or until it is pruned; what was found `earlier` is not awaited."""
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
        print(f"Pruned: {run.name} falls behind the median of the trials before it.")
        record = run.facts | {"status": "pruned"}
    return record | {"evaluations": list(evaluations.items())}


def _optuna() -> types.ModuleType:
    """Imports Optuna, which most users do without."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise ValueError(
            "config.search.trials needs Optuna: pip install -e '.[search]', or set it to 0"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
