"""Finished runs side by side (--mode=report): what differs, what each is worth, what is chance.

Reads results.json, config.json and the stored scores of any number of workdirs; no model and no
data. Runs that differ in their seed alone are one group, whose spread is told. Called by main.py,
and by workflows/sweep.py at the end of several runs.
"""

import dataclasses
import glob
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.stored import stored_config
from evaluation import significance
from evaluation.metrics import Metric, Scores, estimate
from input_pipeline.eta import working
from reporting import report as tables
from reporting.html_report import write_html
from reporting.stored_scores import read_scores
from training.workdir import NOT_OF_THE_WEIGHTS

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


@working("Comparing the runs")
def report(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Compares config.report.runs and writes comparison.json into the workdir.

    Raises:
        ValueError: no run, unfinished ones, or ones that cannot be compared.
    """
    return compare(find_runs(config.report.runs, workdir), workdir, config.report.baseline)


def find_runs(patterns: Sequence[str], workdir: Path) -> list[Path]:
    """Returns the finished runs that folders or globs, or else a workdir, stand for.

    Returns:
        Whole paths, each once.

    Raises:
        ValueError: a pattern stands for nothing.
    """
    if not patterns:
        own = (workdir / "results.json").exists()
        patterns = [str(workdir if own else Path(glob.escape(str(workdir))) / "*")]
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        # A folder is taken as it is: its name may hold what means something in a glob.
        names = [path] if path.is_dir() else sorted(glob.glob(str(path)))
        folders = [Path(name).resolve() for name in names]
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
        split: 'validation' or 'test'; '' takes the one that the runs' results are about, validation
            where these are about different ones.

    Returns:
        {'split', 'metric', 'runs': one for each group, 'comparisons', 'conclusion'}.

    Raises:
        ValueError: runs of different tasks, labels, splits, metrics or data; one run twice; no such
            baseline.
    """
    runs = [_read(Path(folder).resolve(), split) for folder in folders]
    if len({run.split for run in runs}) > 1:  # the winner of a sweep was tested, and no other
        print("Not all of the runs were tested: they are compared by the validation split.")
        runs = [_read(run.folder, "validation") for run in runs]
    _check_alike(runs)
    ordered = _grouped(runs)
    if baseline:
        wanted = Path(baseline).expanduser().resolve()
        ordered.sort(key=lambda group: wanted not in [run.folder for run in group])
        if wanted not in [run.folder for run in ordered[0]]:
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
    config = stored_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
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
                "splits (by fingerprint)": _short(each.results["fingerprints"][each.split]),
                "number of examples": len(each.scores.ids_N),
            }
            for each in (first, run)
        ]
        for name, found in sides[0].items():
            if found != sides[1][name]:
                raise ValueError(
                    f"{first.folder} and {run.folder} cannot be compared, their {name} differ: "
                    f"{found!r} and {sides[1][name]!r}"
                )


def _short(fingerprint: str) -> str:
    """Returns a fingerprint as a person tells it from others; several tasks' are one by one."""
    return " ".join(part[:12] for part in fingerprint.split(" "))


def _grouped(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Returns the runs of each setting.

    Raises:
        ValueError: two runs of a setting have the same seed: a copy shows no spread.
    """
    groups: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(run.setting, sort_keys=True), {})
        same = group.setdefault(run.config["seed"], run)
        if same is not run:
            raise ValueError(
                f"{same.folder} and {run.folder} have the same config and the same seed, "
                f"{run.config['seed']}: they are one run twice and say nothing about other seeds. "
                "Leave one of them out of config.report.runs"
            )
    return [list(group.values()) for group in groups.values()]


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
    pooled = significance.pooled([run.scores for run in group], metric.name)
    found = estimate(pooled, metric.name)
    return {
        "workdirs": [str(run.folder) for run in group],
        "seeds": [run.config["seed"] for run in group],
        "model": group[0].model,
        "differs": differing,
        "values": values,
        **significance.over_seeds(values),
        "standard_error": found["standard_error"],
        "examples": found["count"],
        "test_openings": sum(len(run.results["test_openings"]) for run in group),
    }


def _comparisons(
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[FinishedRun]],
    metric: Metric,
    split: str,
) -> list[dict[str, Any]]:
    """Returns each group against the first, with Holm's correction over all."""
    scores = [[run.scores for run in group] for group in groups]
    found = significance.correct(
        [significance.compare(group, scores[0], metric) for group in scores[1:]]
    )
    second, *firsts = tables.run_titles(rows)
    for each, first, group in zip(found, firsts, groups[1:], strict=True):
        each |= {"first": first, "second": second}
        each["p_mcnemar_by_seed"] = _mcnemar_by_seed(group, groups[0], metric)
        each["sentence"] = significance.sentence(
            each, metric, first=first, second=second, split=split
        )
    return found


def _mcnemar_by_seed(
    first: Sequence[FinishedRun], second: Sequence[FinishedRun], metric: Metric
) -> dict[str, float]:
    """Returns McNemar's p value of each pair of runs with the same seed, by the seed.

    The mean of several runs is no share of 0 and 1; {} for metrics that are none anyway.
    """
    others = {run.config["seed"]: run.scores for run in second}
    pairs = {
        str(seed): significance.mcnemar(run.scores, others[seed], metric)
        for run in first
        if (seed := run.config["seed"]) in others
    }
    return {seed: p for seed, p in pairs.items() if p is not None}
