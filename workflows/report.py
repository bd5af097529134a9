"""--mode=report: finished runs side by side. What differs, the value of each, and what is chance.

Reads results.json, config.json and the stored scores of any number of workdirs; no model and no
data. Runs that differ in seed or fold alone are one group, whose spread is reported.
"""

import dataclasses
import glob
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.stored import stored_config
from evaluation import significance
from evaluation.metrics import Metric, Scores, estimate
from input_pipeline.eta import working
from input_pipeline.files import write_json
from reporting import report as tables
from reporting.html_report import write_html
from reporting.stored_scores import read_scores
from training.workdir import NOT_OF_THE_WEIGHTS
from workflows.planning import REPEATED

_REPEATED = (*REPEATED, "seeds")  # what runs of a group may differ in


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a workdir holds.

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
        """The config without seed and fold."""
        return {key: value for key, value in self.config.items() if key not in _REPEATED}

    @property
    def repeat(self) -> str:
        """Which run of its setting it is: 'seed/fold'."""
        return "/".join(str(self.config[key]) for key in REPEATED)


@working("Comparing the runs")
def report(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Compares config.report.runs and writes comparison.json into the workdir.

    Raises:
        ValueError: no run, unfinished ones, or ones that cannot be compared.
    """
    return compare(find_runs(config.report.runs, workdir), workdir, config.report.baseline)


def find_runs(patterns: Sequence[str], workdir: Path) -> list[Path]:
    """Returns the finished runs of `find_workdirs`; of the workdir where no pattern is given."""
    if not patterns:
        own = _is_finished(workdir)
        patterns = [str(workdir if own else Path(glob.escape(str(workdir))) / "*")]
    return find_workdirs("config.report.runs", patterns, _is_finished, "results.json")


def find_workdirs(
    key: str, patterns: Sequence[str], is_run: Callable[[Path], bool], what: str
) -> list[Path]:
    """Returns the workdirs that folders or globs stand for: whole paths, each once.

    Args:
        key: of the config, for the message.
        patterns: its value.
        is_run: whether a folder is a workdir.
        what: the files by which `is_run` judges, for the message.

    Raises:
        ValueError: a pattern without a run.
    """
    runs: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        # A folder is used as it is: its name may hold what means something in a glob.
        paths = [path] if path.is_dir() else map(Path, sorted(glob.glob(str(path))))
        folders = [folder.resolve() for folder in paths if folder.is_dir()]
        matches = dict.fromkeys(filter(is_run, folders))
        if not matches:
            raise ValueError(
                f"{key}: {pattern!r} matches {len(folders)} folders, none of them with {what}: "
                "expected workdirs of runs, or globs of them, such as 'runs/*'"
            )
        runs |= matches
    return list(runs)


def _is_finished(folder: Path) -> bool:
    return (folder / "results.json").exists()


def compare(
    folders: Sequence[Path], output: Path, baseline: str = "", *, split: str = ""
) -> dict[str, Any]:
    """Compares finished runs, prints the outcome and writes it to comparison.json.

    Args:
        folders: their workdirs.
        output: folder of comparison.json.
        baseline: workdir whose group all others are compared with; '' is the first.
        split: 'validation' or 'test'; '' is the one that the runs' results are about, validation
            where these are about different ones.

    Returns:
        {'split', 'metric', 'runs': one for each group, 'comparisons', 'conclusion'}.

    Raises:
        ValueError: runs of different tasks, labels, splits, metrics or data; one run twice; no such
            baseline.
    """
    runs = [_read(Path(folder).resolve(), split) for folder in folders]
    if len({run.split for run in runs}) > 1:  # only the winner of a sweep was tested
        print("Not all of the runs were tested: they are compared by the validation split.")
        runs = [_read(run.folder, "validation") for run in runs]
    _check_alike(runs)
    groups = _grouped(runs)
    if baseline:
        wanted = Path(baseline).expanduser().resolve()
        groups.sort(key=lambda group: wanted not in [run.folder for run in group])
        if wanted not in [run.folder for run in groups[0]]:
            names = [str(run.folder) for run in runs]
            raise ValueError(f"config.report.baseline: {baseline} is none of the runs {names}")
    metric, split = runs[0].scores.metric(runs[0].results["metric"]), runs[0].split
    rows = [_describe(group, groups, metric) for group in groups]
    comparisons = _comparisons(rows, groups, metric, split)
    result = {
        "split": split,
        "metric": tables.shown(metric),
        "runs": rows,
        "comparisons": comparisons,
        "conclusion": "\n".join(row["sentence"] for row in comparisons),
    }
    write_json(output / "comparison.json", result)
    tables.show(tables.table(*tables.run_cells(rows, result["metric"])), result["conclusion"])
    print(f"Report: {write_html(output)}")
    return result


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
    first, *others = map(_question, runs)
    for run, other in zip(runs[1:], others, strict=True):
        for name, value in first.items():
            if value != other[name]:
                raise ValueError(
                    f"{runs[0].folder} and {run.folder} cannot be compared, their {name} differ: "
                    f"{value!r} and {other[name]!r}"
                )


def _question(run: FinishedRun) -> dict[str, Any]:
    return {
        "task": run.config["task"],
        "labels": run.results["labels"],
        "split": run.split,
        "metric": run.results["metric"],
        "splits (by fingerprint)": tables.short_fingerprint(run.results["fingerprints"][run.split]),
        "number of examples": len(run.scores.ids_N),
    }


def _grouped(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Returns the runs of each setting.

    Raises:
        ValueError: two runs of a setting have the same seed and fold: a copy shows no spread.
    """
    groups: dict[str, dict[str, FinishedRun]] = {}
    for run in runs:
        group = groups.setdefault(json.dumps(run.setting, sort_keys=True), {})
        same = group.setdefault(run.repeat, run)
        if same is not run:
            raise ValueError(
                f"{same.folder} and {run.folder} have the same config, seed and fold "
                f"({run.repeat}): a copy shows no spread; leave one out of config.report.runs"
            )
    return [list(group.values()) for group in groups.values()]


def _describe(
    group: Sequence[FinishedRun], groups: Sequence[Sequence[FinishedRun]], metric: Metric
) -> dict[str, Any]:
    """Returns the row of a group: what differs in it, and its value."""
    settings, own = [runs[0].setting for runs in groups], group[0].setting
    values = [estimate(run.scores, metric.name)["value"] for run in group]
    pooled = significance.pooled([run.scores for run in group], metric.name)
    mean = estimate(pooled, metric.name)
    return {
        "workdirs": [str(run.folder) for run in group],
        "repeats": [run.repeat for run in group],
        "model": group[0].model,
        "differs": {
            key: value
            for key, value in own.items()
            if any(setting.get(key) != value for setting in settings)
        },
        "values": values,
        **significance.over_seeds(values),
        "standard_error": mean["standard_error"],
        "examples": mean["count"],
        "test_openings": sum(len(run.results["test_openings"]) for run in group),
    }


def _comparisons(
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[Sequence[FinishedRun]],
    metric: Metric,
    split: str,
) -> list[dict[str, Any]]:
    """Returns each group against the first, with Holm's correction over all."""
    baseline, *scores = [[run.scores for run in group] for group in groups]
    comparisons = significance.correct(
        [significance.compare(group, baseline, metric) for group in scores]
    )
    second, *firsts = tables.run_titles(rows)
    for comparison, first, group in zip(comparisons, firsts, groups[1:], strict=True):
        comparison |= {"first": first, "second": second}
        comparison["p_mcnemar_by_repeat"] = _mcnemar_by_repeat(group, groups[0], metric)
        comparison["sentence"] = significance.sentence(
            comparison, metric, first=first, second=second, split=split
        )
    return comparisons


def _mcnemar_by_repeat(
    first: Sequence[FinishedRun], second: Sequence[FinishedRun], metric: Metric
) -> dict[str, float]:
    """Returns McNemar's p value of each pair of runs with the same seed and fold, by these.

    The mean of several runs is no share of 0 and 1; {} for metrics that are none anyway.
    """
    partners = {run.repeat: run.scores for run in second}
    pairs = {
        run.repeat: significance.mcnemar(run.scores, partners[run.repeat], metric)
        for run in first
        if run.repeat in partners
    }
    return {repeat: p for repeat, p in pairs.items() if p is not None}
