"""Turns predictions into what a person reads: tables, JSON, lists of errors.

The numbers come from evaluation/metrics.py. The main job calls `write_results` once, after it has
opened the test split; the other modes write and show with the rest. `markdown_table` makes the
table of the README.
"""

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation import significance
from evaluation.metrics import Metric, Scores, paired_difference, summarise
from input_pipeline.eta import working
from input_pipeline.files import write_json, write_jsonl
from reporting import figures

# Names of the rows of the results table; those of baselines are the tasks'.
ENCODER = "encoder alone"
TEACHER = "model without unlabelled texts"
ALL_EXAMPLES = "model of all examples"
BEFORE = "before training"
FINETUNED = "fine-tuned"
BOTH = "encoder and features"
INTEGRATED = "integrated"

READABLE_CLASSES = 20  # of a confusion matrix that people look at
MATRIX_CLASSES = 100  # of one that is stored whole, and how many confusions are stored of more

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")
CHOICE_COLUMNS = ("loss", "behind the best")
_Shown = Mapping[str, Any]  # of a Metric: name, title, scale, digits


def write_results(
    workdir: str | Path,
    scores: Mapping[str, Scores],
    *,
    floor: str,
    fingerprints: Mapping[str, str],
    split: str,
    metric: Metric,
    integration: Mapping[str, Any] | None,
    leaked_ids: np.ndarray,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes results.json and curves.png into the workdir and prints the results.

    Args:
        workdir: where metrics.jsonl lies.
        scores: row name -> scores on the split, in the order of the table. The closing sentences
            are about the last, the model that the run ends with.
        floor: the row that it is compared with first, if it is there.
        fingerprints: of the splits and of what else the numbers depend on.
        split: name of the split that the numbers are about.
        metric: what chose the model.
        integration: as of workflows.integrate.integrate.Integration.results, or None.
        leaked_ids: examples with a copy in another split; a second number leaves them out.
        extra: more JSON-ready facts to keep.

    Returns:
        What was written to results.json.

    Raises:
        ValueError: if the rows are not about the same examples.
    """
    workdir, last = Path(workdir), list(scores)[-1]
    with working("Comparing the models"):
        comparisons = _compare_last(scores, floor, metric, split)
    results = {
        "conclusion": "\n".join(each["sentence"] for each in comparisons),
        "models": {name: summarise_with_leaks(row, leaked_ids) for name, row in scores.items()},
        "comparisons": comparisons,
        "minus_baseline": _gains(scores, comparisons[0]) if comparisons else {},
        "fingerprints": fingerprints,
        "split": split,
        "metric": metric.name,
        "metrics": [
            shown(m._replace(shown=m.shown or m.name == metric.name)) for m in scores[last].metrics
        ],
        "integration": integration,
        **extra,
    }
    figures.save_curves(workdir, metric=metric, integration=integration)
    write_json(workdir / "results.json", results)  # last: its presence says that the run is done
    return show_results(workdir)


def show_results(workdir: str | Path) -> dict[str, Any]:
    """Prints what results.json of a finished run holds, and returns it."""
    results = json.loads((Path(workdir) / "results.json").read_text(encoding="utf-8"))
    show(table(*cells(results["models"], results["metrics"])), results["conclusion"])
    return results


def summarise_with_leaks(scores: Scores, leaked_ids: np.ndarray) -> dict[str, Any]:
    """Returns what `summarise` does and, if there are leaks, 'leak_free': the same without them."""
    summary = _compact(summarise(scores))
    clean = scores.without(leaked_ids)
    if 0 < len(clean.ids_N) < len(scores.ids_N):
        summary["leak_free"] = summarise(clean)
    return summary


def _compact(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a summary that stays small with many classes, in its members too.

    The confusion matrix, C x C numbers, becomes 'confusions': the most frequent ones as [class,
    predicted class, count]. What is known of each class keeps four decimals.
    """
    compact = {
        key: _compact(value) if isinstance(value, Mapping) and "per_class" in value else value
        for key, value in summary.items()
    }
    labels = list(compact.get("per_class", ()))
    if len(labels) <= MATRIX_CLASSES:
        return compact
    if matrix := compact.pop("confusion_matrix", None):
        wrong_CxC = np.array(matrix) * (1 - np.eye(len(labels), dtype=int))
        order = np.argsort(-wrong_CxC, axis=None, kind="stable")[:MATRIX_CLASSES]
        cells = [(*divmod(cell, len(labels)), int(wrong_CxC.flat[cell])) for cell in order]
        compact["confusions"] = [[labels[i], labels[j], count] for i, j, count in cells if count]
    compact["per_class"] = {
        label: {key: value and round(value, 4) for key, value in row.items()}
        for label, row in compact["per_class"].items()
    }
    return compact


def show_summary(scores: Scores, name: str) -> None:
    """Prints the metrics of the model `name`, and what is known of each class."""
    summary, metrics = summarise(scores), [shown(metric) for metric in scores.metrics]
    tables = [table(*cells({name: summary}, metrics))]
    per_class, confusion = scores.detail.get("per_class"), scores.detail.get("confusion_matrix")
    if per_class and len(per_class) > READABLE_CLASSES:
        confusion = None
    if per_class:
        rows = [
            (
                label,
                *(f"{100 * found[key]:.1f}" for key in ("precision", "recall", "f1")),
                f"{found['support']:,}",
                *(f"{count:,}" for count in (confusion[i] if confusion else ())),
            )
            for i, (label, found) in enumerate(per_class.items())
        ]
        columns = ("class", "precision, %", "recall, %", "F1, %", "examples")
        predicted = (f"as {label}" for label in per_class if confusion)
        tables.append(table((*columns, *predicted), rows))
    show(*tables)


def show_curve(curve: Sequence[Mapping[str, float]], alpha: float, metric: Metric) -> None:
    """Prints what decides between the pretrained and the fine-tuned weights."""
    points = [
        (
            f"{p['alpha']:g}",
            *choice_cells(p, shown(metric)),
            "chosen" if p["alpha"] == alpha else "",
        )
        for p in curve
    ]
    show(table(("alpha", metric.title, *CHOICE_COLUMNS, ""), points))


def markdown_table(results: Mapping[str, Any]) -> str:
    """The results table in Markdown, for a README, from what results.json holds."""
    columns, rows = cells(results["models"], results["metrics"])
    head = [columns, ("---", *["---:"] * (len(columns) - 1))]
    return "".join(f"| {' | '.join(row)} |\n" for row in [*head, *rows])


def environment() -> str:
    """Says what computed: packages and devices."""
    devices = jax.devices()
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"Python {platform.python_version()}, {packages}; {len(devices)} x {devices[0].device_kind}"
    )


def write_errors(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes the wrong ones among `records` as JSONL, the most confident first.

    Those on top are as often wrong labels as wrong predictions: worth reading.

    Args:
        path: the file.
        records: as tasks.task.Task.describe yields, with 'wrong' and 'confidence' where the truth
            is known; the others are neither right nor wrong.

    Returns:
        How many are wrong.
    """
    wrong = [dict(record) for record in records if record.get("wrong")]
    wrong.sort(key=lambda record: -record["confidence"])
    return write_jsonl(path, wrong)


def _compare_last(
    scores: Mapping[str, Scores], floor: str, metric: Metric, split: str
) -> list[dict[str, Any]]:
    """Returns the last row against the floor and the models that a person would ask about.

    Each is as of significance.correct, with 'first', 'second' (the rows) and 'sentence'.
    """
    last, names = list(scores)[-1], {floor: floor}
    names |= {row: f"the {row}" for row in (ENCODER, TEACHER, ALL_EXAMPLES)}
    names |= {row: f"the {row} model" for row in (FINETUNED, BOTH)}  # of one that is integrated
    others = [row for row in names if row in scores and row != last]
    metrics = [_comparable(scores[last], scores[other], metric) for other in others]
    compared = significance.correct(
        [
            significance.compare([scores[last]], [scores[other]], each)
            for other, each in zip(others, metrics, strict=True)
        ]
    )
    for found, other, each in zip(compared, others, metrics, strict=True):
        found |= {"first": last, "second": other}
        found["sentence"] = significance.sentence(
            found, each, first=f"the {last} model", second=names[other], split=split
        )
    return compared


def _gains(
    scores: Mapping[str, Scores], compared: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Returns the difference of every row to the one that a comparison is about."""
    name, other = compared["metric"], compared["second"]
    return {
        row: paired_difference(each, scores[other], metric=name)
        for row, each in scores.items()
        if row != other and name in each.statistics
    }


def _comparable(first: Scores, second: Scores, metric: Metric) -> Metric:
    """Returns the metric that chose the model or, where one row lacks it, the first that both have.

    Raises:
        ValueError: there is none.
    """
    both = [m for m in (metric, *first.metrics) if {m.name} <= first.statistics.keys()]
    for candidate in both:
        if candidate.name in second.statistics:
            return candidate
    raise ValueError(
        f"{sorted(first.statistics)} and {sorted(second.statistics)} have no metric in common"
    )


def shown(metric: Metric) -> dict[str, Any]:
    """Returns how a metric is shown; JSON-ready."""
    names = ("name", "title", "scale", "digits", "shown", "higher_is_better")
    return {name: getattr(metric, name) for name in names}


def show(*parts: Table | str) -> None:
    """Prints to the console; text is never broken, tables only where a terminal is too narrow."""
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False, markup=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Returns a console table; all columns but the first hold numbers."""
    found = Table(box=box.SIMPLE)
    for index, column in enumerate(columns):
        found.add_column(Text(column), justify="right" if index else "left")
    for row in rows:
        found.add_row(*map(Text, row))  # labels may look like markup
    return found


def cells(
    models: Mapping[str, Mapping[str, Any]], metrics: Sequence[_Shown]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the columns of the results table and the cells of its rows, one per model."""
    metrics = [metric for metric in metrics if metric["shown"]]
    leaks = any("leak_free" in summary for summary in models.values())
    some = metrics[:2]  # of the leak-free part
    columns = ("model", *(metric["title"] for metric in metrics), "examples")
    if leaks:
        first, *rest = (metric["title"] for metric in some)
        columns += (f"without leaks: {first}", *rest, "examples")
    rows = []
    for name, summary in models.items():
        row = [name, *_row(summary, metrics)]
        if leaks:
            row += _row(summary["leak_free"], some)
        rows.append(tuple(row))
    return columns, rows


def _row(summary: Mapping[str, Any], metrics: Sequence[_Shown]) -> list[str]:
    """The cells of some metrics, empty where a model has none, and the number of examples."""
    known = [metric for metric in metrics if metric["name"] in summary]
    cells = [cell(summary[m["name"]], m) if m in known else "" for m in metrics]
    return [*cells, f"{summary[known[0]['name']]['count']:,}" if known else ""]


def cell(estimate: Mapping[str, Any], metric: _Shown) -> str:
    """Value ± standard error, which is left out where it does not exist."""
    if estimate["value"] is None or not math.isfinite(estimate["value"]):
        return ""
    text = f"{metric['scale'] * estimate['value']:.{metric['digits']}f}"
    error = estimate["standard_error"]
    known = error is not None and math.isfinite(error)
    return f"{text} ± {metric['scale'] * error:.{metric['digits']}f}" if known else text


def choice_cells(row: Mapping[str, Any], metric: _Shown) -> tuple[str, str, str]:
    """Value, loss and distance from the best of what integration chose among.

    The distance is of the loss where the task has one (integration/interpolation.py).
    """
    loss = row.get("loss")  # absent in runs that chose by the metric
    behind = {"value": row["behind_best"], "standard_error": row["behind_best_error"]}
    decides = metric if loss is None else {"scale": 1.0, "digits": 4}
    return cell(row, metric), "" if loss is None else f"{loss:.4f}", cell(behind, decides)


def short_names(folders: Iterable[Path]) -> dict[Path, str]:
    """Returns the shortest ends of paths, of one length, that tell them apart."""
    folders = list(dict.fromkeys(folders))
    names: dict[Path, str] = {}
    for count in range(1, max((len(folder.parts) for folder in folders), default=0) + 1):
        names = {folder: str(Path(*folder.parts[-count:])) for folder in folders}
        if len(set(names.values())) == len(folders):
            break
    return names


def run_titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names groups of runs that differ in their seed alone, each by its first folder."""
    firsts = [Path(row["workdirs"][0]) for row in rows]
    names = short_names(firsts)
    titles = []
    for first, row in zip(firsts, rows, strict=True):
        more = row["count"] - 1
        titles.append(names[first] + f" and {more} more seed{'s' * (more > 1)}" * (more > 0))
    return titles


def run_cells(
    rows: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns columns and cells of the table of groups.

    Args:
        rows: 'runs' of comparison.json.
        metric: as of `shown`.
    """

    def number(value: float | None, error: float | None = None) -> str:
        return cell({"value": value, "standard_error": error}, metric)

    found = [
        (
            title,
            ", ".join(f"{key}={value}" for key, value in row["differs"].items()),
            str(row["count"]),
            number(row["mean"], row["standard_error"]),
            number(row["deviation"]),
            " to ".join(map(number, row["interval"] or ())),
            str(row["test_openings"]),
        )
        for title, row in zip(run_titles(rows), rows, strict=True)
    ]
    columns = ("run", "what differs", "seeds", metric["title"], "deviation over seeds")
    return (*columns, "95 % interval of the mean", "looks at the test split"), found
