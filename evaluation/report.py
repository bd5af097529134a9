"""Turns predictions into what a person reads: tables, JSON, lists of errors, learning curves.

The numbers come from evaluation/metrics.py. The main job calls `write_results` once, after it has
opened the test split; the other modes write and show with the rest. `markdown_table` makes the
table of the README.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.evaluate import Predictions
from evaluation.metrics import NAMES, paired_difference, summarise
from training.progress import read_metrics

# Names of the rows of the results table.
MAJORITY = "majority class"
TFIDF = "TF-IDF + logistic regression"
FEATURES = "features alone"
ENCODER = "encoder alone"
FINETUNED = "fine-tuned"
BOTH = "encoder and features"
INTEGRATED = "integrated"

_SHOWN = {"accuracy": "accuracy, %", "macro_f1": "macro-F1, %", "loss": "loss"}
_SCALE = {"accuracy": 100, "macro_f1": 100, "loss": 1}
_COLUMNS = ("model", *(_SHOWN[metric] for metric in NAMES), "examples")
_LEAK_FREE = ("without leaks: accuracy, %", "macro-F1, %", "examples")


def write_results(
    workdir: str | Path,
    predictions: Mapping[str, Predictions],
    *,
    labels: Sequence[str],
    fingerprints: Mapping[str, str],
    split: str,
    metric: str,
    integration: Mapping[str, Any] | None,
    leaked_ids: np.ndarray,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes results.json and curves.png into the workdir and prints the results.

    Args:
        workdir: where metrics.jsonl lies.
        predictions: row name -> predictions on the split, in the order of the table, TFIDF
            among them. The closing sentence is about the last, the model that the run ends with.
        labels: names in class order.
        fingerprints: of the splits and of what else the numbers depend on.
        split: name of the split that the numbers are about.
        metric: what chose the model: 'accuracy', 'macro_f1' or 'loss'.
        integration: {'alpha', 'curve'} as integration.interpolation.interpolate returned, or None.
        leaked_ids: examples with a copy in another split; a second number leaves them out.
        extra: more JSON-ready facts to keep.

    Returns:
        What was written to results.json.

    Raises:
        ValueError: if there is no row TFIDF, or the rows are not about the same examples.
    """
    if TFIDF not in predictions:
        raise ValueError(f"The results need a row {TFIDF!r}, found {', '.join(predictions)}.")
    workdir, last = Path(workdir), list(predictions)[-1]
    differences = {
        name: paired_difference(row, predictions[TFIDF], metric="accuracy")
        for name, row in predictions.items()
        if name != TFIDF
    }
    conclusion = _conclusion(last, differences[last], split, TFIDF)
    if ENCODER in predictions:
        gain = paired_difference(predictions[last], predictions[ENCODER], metric="accuracy")
        conclusion += "\n" + _conclusion(last, gain, split, f"the {ENCODER}")
    results = {
        "conclusion": conclusion,
        "models": {
            name: summarise_with_leaks(row, labels, leaked_ids) for name, row in predictions.items()
        },
        "accuracy_minus_baseline": differences,
        "labels": list(labels),
        "fingerprints": fingerprints,
        "split": split,
        "metric": metric,
        "integration": integration,
        **extra,
    }
    plot_curves(workdir, metric=metric, integration=integration)
    write_json(workdir / "results.json", results)  # last: its presence says that the run is done
    return show_results(workdir)


def show_results(workdir: str | Path) -> dict[str, Any]:
    """Prints what results.json of a finished run holds, and returns it."""
    results = json.loads((Path(workdir) / "results.json").read_text(encoding="utf-8"))
    _print(_table(*_cells(results["models"])), results["conclusion"])
    return results


def summarise_with_leaks(
    predictions: Predictions, labels: Sequence[str], leaked_ids: np.ndarray
) -> dict[str, Any]:
    """Returns what `summarise` does and, if there are leaks, 'leak_free': the same without them."""
    summary = summarise(predictions, labels)
    clean = predictions.without(leaked_ids)
    if 0 < len(clean.ids_N) < len(predictions.ids_N):
        summary["leak_free"] = summarise(clean, labels)
    return summary


def show_summary(summary: Mapping[str, Any], name: str) -> None:
    """Prints what evaluation.metrics.summarise returned for the model `name`."""
    per_class = summary["per_class"]
    classes = [
        (
            label,
            *(f"{100 * scores[key]:.1f}" for key in ("precision", "recall", "f1")),
            f"{scores['support']:,}",
            *(f"{count:,}" for count in counts_C),
        )
        for (label, scores), counts_C in zip(
            per_class.items(), summary["confusion_matrix"], strict=True
        )
    ]
    columns = ("class", "precision, %", "recall, %", "F1, %", "examples")
    predicted = (f"as {label}" for label in per_class)
    _print(_table(*_cells({name: summary})), _table((*columns, *predicted), classes))


def show_curve(curve: Sequence[Mapping[str, float]], alpha: float, metric: str) -> None:
    """Prints the metric between the pretrained and the fine-tuned weights."""
    points = [
        (f"{point['alpha']:g}", _cell(point, metric), "chosen" if point["alpha"] == alpha else "")
        for point in curve
    ]
    _print(_table(("alpha", _SHOWN[metric], ""), points))


def markdown_table(results: Mapping[str, Any]) -> str:
    """The results table in Markdown, for a README, from what results.json holds."""
    columns, rows = _cells(results["models"])
    head = [columns, ("---", *["---:"] * (len(columns) - 1))]
    return "".join(f"| {' | '.join(row)} |\n" for row in [*head, *rows])


def plot_curves(workdir: str | Path, *, metric: str, integration: Mapping[str, Any] | None) -> None:
    """Draws curves.png from metrics.jsonl: training loss, validation metric, interpolation.

    Reads 'loss' and 'validation/<metric>'; what was not logged or measured has no panel.
    """
    lines = read_metrics(Path(workdir) / "metrics.jsonl")
    loss, validation = _series(lines, "loss"), _series(lines, f"validation/{metric}")
    panels = [loss[0].size > 0, validation[0].size > 0, integration is not None]
    columns = max(1, sum(panels))
    figure = Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
    axes = iter(np.ravel(figure.subplots(1, columns)))
    if panels[0]:
        _plot_loss(next(axes), *loss)
    if panels[1]:
        steps, values = validation
        axis = next(axes)
        axis.plot(steps, _SCALE[metric] * values, marker="o", markersize=4, color="tab:green")
        axis.set(title="validation", xlabel="step", ylabel=_SHOWN[metric])
    if panels[2]:
        _plot_interpolation(next(axes), metric, **integration)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(workdir) / "curves.png", dpi=120)


def write_errors(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes the wrongly classified among `records` as JSONL, the most confident first.

    Those on top are as often wrong labels as wrong predictions: worth reading.

    Args:
        path: the file.
        records: as tasks.classification.Classification.describe yields, with 'label'.

    Returns:
        How many there are.
    """
    wrong = [record for record in records if record["prediction"] != record["label"]]
    wrong.sort(key=lambda record: -record["probabilities"][record["prediction"]])
    return write_jsonl(path, wrong)


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object per line, UTF-8, whole or not at all; returns how many."""
    lines = [json.dumps(_nan_to_none(record), ensure_ascii=False) + "\n" for record in records]
    _write_text(path, "".join(lines))
    return len(lines)


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON, UTF-8, whole or not at all; numbers that are not finite become null."""
    _write_text(path, json.dumps(_nan_to_none(value), ensure_ascii=False, indent=2) + "\n")


def _conclusion(name: str, difference: Mapping[str, float], split: str, other: str) -> str:
    """Says by how much a model beats another, or fails to."""
    points, error = 100 * difference["value"], 100 * difference["standard_error"]
    text = f"On {difference['count']:,} {split} examples, the {name} model "
    if points == 0:
        return text + f"is exactly as accurate as {other}."
    verb = "beats" if points > 0 else "falls behind"
    z = abs(difference["z"])
    text += f"{verb} {other} by {abs(points):.1f} ± {error:.1f} points of accuracy"
    text += f" ({z:.1f} standard errors)."
    return text if z >= 2 else text + " A difference this small may be chance."


def _print(*parts: Table | str) -> None:
    """Prints to the console; text is never broken, tables only where a terminal is too narrow."""
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False, markup=False)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A console table; all columns but the first hold numbers."""
    table = Table(box=box.SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # labels may look like markup
    return table


def _cells(
    models: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns of the results table and the cells of its rows, one per model."""
    leaks = any("leak_free" in summary for summary in models.values())
    rows = []
    for name, summary in models.items():
        row = [name, *(_cell(summary[metric], metric) for metric in NAMES)]
        row.append(f"{summary['accuracy']['count']:,}")
        if leaks:
            clean = summary["leak_free"]
            row += [_cell(clean[metric], metric) for metric in ("accuracy", "macro_f1")]
            row.append(f"{clean['accuracy']['count']:,}")
        rows.append(tuple(row))
    return _COLUMNS + (_LEAK_FREE if leaks else ()), rows


def _cell(estimate: Mapping[str, Any], metric: str) -> str:
    """Value ± standard error, which is left out where it does not exist."""
    digits = 3 if metric == "loss" else 1
    text = f"{_SCALE[metric] * estimate['value']:.{digits}f}"
    error = estimate["standard_error"]
    known = error is not None and math.isfinite(error)
    return f"{text} ± {_SCALE[metric] * error:.{digits}f}" if known else text


def _series(lines: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one logged metric, without what was not finite."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _plot_loss(axis: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """The training loss as logged and, from 20 points on, a moving average over a tenth of them."""
    smooth = len(values) >= 20
    axis.plot(steps, values, color="tab:blue", alpha=0.3 if smooth else 1, linewidth=1)
    if smooth:
        decay = 1 - 10 / len(values)
        weights = decay ** np.arange(len(values))
        averages = np.convolve(values, weights)[: len(values)] / np.cumsum(weights)
        axis.plot(steps, averages, color="tab:blue")
    axis.set(title="training", xlabel="step", ylabel="loss")


def _plot_interpolation(
    axis: Axes, metric: str, alpha: float, curve: Sequence[Mapping[str, float]]
) -> None:
    """The metric along the line from pretrained to fine-tuned weights, the choice marked."""
    scale = _SCALE[metric]
    alphas, values, errors = (
        np.array([point[key] for point in curve], np.float64)
        for key in ("alpha", "value", "standard_error")
    )
    style = {"color": "tab:purple", "marker": "o", "markersize": 4, "capsize": 2}
    axis.errorbar(alphas, scale * values, scale * errors, **style)
    axis.axvline(alpha, color="black", linestyle=":", linewidth=1)
    axis.set(title=f"interpolation: {alpha:g} chosen", ylabel=f"{_SHOWN[metric]} (validation)")
    axis.set_xlabel("0 is pretrained, 1 is fine-tuned")


def _nan_to_none(value: Any) -> Any:
    """Replaces numbers that JSON does not know by None."""
    if isinstance(value, Mapping):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_text(path: str | Path, text: str) -> None:
    """Replaces a file at once, so that a crash leaves the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
