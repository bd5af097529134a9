"""Finished runs side by side (--mode=report): what differs, what each is worth, what is chance.

Reads results.json, config.json and the stored scores of any number of workdirs; no model and no
data. Runs that differ in their seed alone are one group, whose spread is told. Called by main.py,
and by training/sweep.py at the end of several runs.
"""

import dataclasses
import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evaluation import report as tables
from evaluation import significance
from evaluation.html_report import write_html
from evaluation.metrics import Metric, Scores, estimate
from evaluation.stored_scores import read_scores
from training.workdir import NOT_OF_THE_WEIGHTS, flatten_config

_REPEATED = ("seed", "seeds")  # what runs of a group may differ in


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a workdir says about itself.

    Attributes:
        folder: the workdir.
        config: flat, without what does not touch the model.
        results: of results.json.
        split: that is compared.
        model: the row of the model that the run ended with.
        scores: of that model on that split.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    split: str
    model: str
    scores: Scores

    @property
    def setting(self) -> dict[str, Any]:
        """The config without the seed."""
        return {key: value for key, value in self.config.items() if key not in _REPEATED}


def report(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Compares config.report.runs and writes comparison.json into the workdir.

    Raises:
        ValueError: no run, unfinished ones, or ones that cannot be compared.
    """
    return compare(find_runs(config.report.runs, workdir), workdir, config.report.baseline)


def find_runs(patterns: Sequence[str], workdir: Path) -> list[Path]:
    """Returns the finished runs that globs, or else a workdir, stand for.

    Raises:
        ValueError: a pattern stands for nothing.
    """
    if not patterns:
        own = [workdir] if (workdir / "results.json").exists() else []
        patterns = [str(folder) for folder in own] or [str(workdir / "*")]
    found: dict[Path, None] = {}
    for pattern in patterns:
        folders = [Path(name) for name in sorted(glob.glob(pattern))]
        runs = [folder for folder in folders if (folder / "results.json").exists()]
        if not runs:
            there = f"{len(folders)} folders without results.json" if folders else "nothing"
            raise ValueError(
                f"--mode=report: {pattern} stands for {there}: name workdirs of finished runs in "
                "config.report.runs"
            )
        found |= dict.fromkeys(runs)
    return list(found)


def compare(
    folders: Sequence[Path], output: Path, baseline: str = "", *, split: str = ""
) -> dict[str, Any]:
    """Compares finished runs, prints what was found and writes it to comparison.json.

    Args:
        folders: their workdirs.
        output: folder of comparison.json.
        baseline: workdir whose group all others are compared with; '' takes the first.
        split: 'validation' or 'test'; '' takes the one that each run's results are about.

    Returns:
        {'split', 'metric', 'runs': one for each group, 'comparisons', 'conclusion'}.

    Raises:
        ValueError: runs of different tasks, labels, splits, metrics or data; no such baseline.
    """
    runs = [_read(Path(folder), split) for folder in folders]
    _check_alike(runs)
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.setting, sort_keys=True), []).append(run)
    ordered = list(groups.values())
    if baseline:
        ordered.sort(key=lambda group: Path(baseline) not in [run.folder for run in group])
        if Path(baseline) not in [run.folder for run in ordered[0]]:
            raise ValueError(
                f"config.report.baseline: {baseline} is none of the runs "
                f"{[str(run.folder) for run in runs]}"
            )
    metric, split = runs[0].scores.metric(runs[0].results["metric"]), runs[0].split
    rows = [_describe(group, ordered, metric) for group in ordered]
    comparisons = _comparisons(rows, ordered, metric, split)
    found = {
        "split": split,
        "metric": tables.shown(metric),
        "runs": rows,
        "comparisons": comparisons,
        "conclusion": "\n".join(row["sentence"] for row in comparisons),
    }
    tables.write_json(output / "comparison.json", found)
    tables.show(tables.table(*tables.run_cells(rows, found["metric"])), found["conclusion"])
    print(f"All of it, as a page: {write_html(output)}")
    return found


def _read(folder: Path, split: str) -> FinishedRun:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    split = split or results["split"]
    path = folder / f"scores_{split}.npz"
    if not path.exists():
        raise ValueError(
            f"{folder} holds results.json but no {path.name}: it was not evaluated on that split, "
            "or by an older version (--mode=test writes scores_test.npz)"
        )
    config = flatten_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    config = {
        key: value
        for key, value in config.items()
        if key.startswith("integrate.") or not key.startswith(NOT_OF_THE_WEIGHTS)
    }
    model, scores = list(read_scores(path).items())[-1]
    return FinishedRun(folder, config, results, split, model, scores)


def _check_alike(runs: Sequence[FinishedRun]) -> None:
    """Raises ValueError where two runs are not about the same question."""
    first = runs[0]
    for run in runs[1:]:
        sides = [
            {
                "task": each.config["task"],
                "labels": each.results["labels"],
                "split": each.split,
                "metric": each.results["metric"],
                "examples": each.results["fingerprints"][each.split],
            }
            for each in (first, run)
        ]
        for name, found in sides[0].items():
            if found != sides[1][name]:
                raise ValueError(
                    f"{first.folder} and {run.folder} cannot be compared, their {name} differ: "
                    f"{found!r} and {sides[1][name]!r}"
                )


def _pooled(group: Sequence[FinishedRun], metric: Metric) -> Scores:
    """Returns the scores of a group: each example's statistics on average over the seeds."""
    ids_N = group[0].scores.ids_N
    values = [run.scores.statistics[metric.name] for run in group]
    if any(len(each) != len(values[0]) for each in values):
        names = [str(run.folder) for run in group]
        raise ValueError(f"the runs {names} were evaluated on different numbers of examples")
    return Scores(
        (metric,), ids_N, {metric.name: np.mean(values, axis=0)}, truth=group[0].scores.truth
    )


def _describe(
    group: Sequence[FinishedRun], groups: Sequence[Sequence[FinishedRun]], metric: Metric
) -> dict[str, Any]:
    """Returns the row of a group: what differs in it, and what it is worth."""
    settings = [each[0].setting for each in groups]
    differing = {
        key: group[0].setting[key]
        for key in group[0].setting
        if any(setting.get(key) != group[0].setting[key] for setting in settings)
    }
    values = [estimate(run.scores, metric.name)["value"] for run in group]
    error = estimate(_pooled(group, metric), metric.name)["standard_error"]
    return {
        "workdirs": [str(run.folder) for run in group],
        "seeds": [run.config["seed"] for run in group],
        "model": group[0].model,
        "differs": differing,
        "values": values,
        **significance.over_seeds(values),
        "standard_error": error,
        "examples": len(group[0].scores.ids_N),
        "test_openings": sum(len(run.results["test_openings"]) for run in group),
    }


def _comparisons(
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[FinishedRun]],
    metric: Metric,
    split: str,
) -> list[dict[str, Any]]:
    """Returns each group against the first, with Holm's correction over all."""
    pooled = [_pooled(group, metric) for group in groups]
    found = [significance.compare(scores, pooled[0], metric) for scores in pooled[1:]]
    corrected = significance.holm([each["p_bootstrap"] for each in found])
    first = tables.run_title(rows[0])
    for each, p_holm, row in zip(found, corrected, rows[1:], strict=True):
        each |= {"first": tables.run_title(row), "second": first, "p_holm": p_holm}
        each["p_seeds"] = significance.seeds_differ(row["values"], rows[0]["values"])
        each["sentence"] = significance.sentence(
            each, metric, first=tables.run_title(row), second=first, split=split, family=len(found)
        )
    return found
