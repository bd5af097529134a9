"""Tables, JSON and lists of errors that a person reads, from scores and what results.json holds.

The numbers come from evaluation/. Cells are text, one function for the console, the page and the
model card alike.
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
from evaluation.metrics import Metric, Scores, summarise
from input_pipeline.eta import working
from input_pipeline.files import write_json, write_jsonl
from reporting import figures

# Names of the rows of the results table; those of baselines are the tasks'.
ENCODER = "encoder alone"
ALL_EXAMPLES = "model of all examples"
BEFORE = "before training"
PROBE = "linear probe"  # before training, with a fitted head
FINETUNED = "fine-tuned"
BOTH = "encoder and features"
INTEGRATED = "integrated"

READABLE_CLASSES = 20  # of a confusion matrix that people look at
MATRIX_CLASSES = 100  # of one that is stored whole, and how many confusions are stored of more

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")
Shown = Mapping[str, Any]  # how a metric is shown; see `shown`
Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]  # columns and rows of a table


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
    elsewhere: Mapping[str, Scores] | None = None,
) -> dict[str, Any]:
    """Writes results.json and curves.png into the workdir and prints the results.

    Args:
        workdir: holds metrics.jsonl.
        scores: row name -> scores on the split, in the order of the table. The closing sentences
            are about the last, the model that the run ends with.
        floor: the row that it is compared with first, if it is there.
        fingerprints: of the splits and of what else the numbers depend on.
        split: name of the split that the numbers are about.
        metric: what chose the model.
        integration: 'integration' of results.json, or None.
        leaked_ids: examples with a copy in another split; a second number leaves them out.
        extra: more JSON-ready facts to keep.
        elsewhere: row name -> scores on a shifted set, of the rows that have some.

    Returns:
        What was written to results.json.

    Raises:
        ValueError: if the rows are not about the same examples.
    """
    workdir, last = Path(workdir), list(scores)[-1]
    # What a person would ask about: the floor, other trainings, and the model before training and
    # before integration.
    titles = {floor: floor} | {row: f"the {row}" for row in (ENCODER, ALL_EXAMPLES, PROBE)}
    titles |= {BEFORE: "the model before training"}
    titles |= {row: f"the {row} model" for row in (FINETUNED, BOTH)}
    models = {name: summarise_with_leaks(row, leaked_ids) for name, row in scores.items()}
    with working("Comparing the models"):
        comparisons = significance.compare_last(scores, titles, metric, split=split)
        told = list(comparisons)
        if elsewhere:
            told += significance.compare_last(elsewhere, titles, metric, split="shifted")
            for name, row in elsewhere.items():
                models[name]["shifted"] = _compact(summarise(row))
    results = {
        "conclusion": "\n".join(comparison["sentence"] for comparison in told),
        "models": models,
        "comparisons": comparisons,
        "minus_baseline": significance.gains(scores, comparisons[0]) if comparisons else {},
        "fingerprints": fingerprints,
        "split": split,
        "metric": metric.name,
        "metrics": [
            shown(m._replace(shown=m.shown or m.name == metric.name)) for m in scores[last].metrics
        ],
        "integration": integration,
        **extra,
    }
    figures.save_curves(workdir, metric=shown(metric), integration=integration)
    write_json(workdir / "results.json", results)  # last: its presence marks the run as finished
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
    predicted class, count]. The numbers of each class keep four decimals.
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
        pairs = zip(*np.unravel_index(order, wrong_CxC.shape), strict=True)
        compact["confusions"] = [
            [labels[i], labels[j], int(wrong_CxC[i, j])] for i, j in pairs if wrong_CxC[i, j]
        ]
    compact["per_class"] = {
        label: {key: value and round(value, 4) for key, value in row.items()}
        for label, row in compact["per_class"].items()
    }
    return compact


def environment() -> str:
    """Returns what computed: packages and devices."""
    devices = jax.devices()
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"Python {platform.python_version()}, {packages}; {len(devices)} x {devices[0].device_kind}"
    )


def write_errors(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes the wrong ones among `records` as JSONL, the most confident first; returns how many.

    Those on top are as often wrong labels as wrong predictions.

    Args:
        path: the file.
        records: from tasks.task.Task.describe, with 'wrong' and 'confidence' where the truth is
            known; the others are neither right nor wrong.
    """
    wrong = [record for record in records if record.get("wrong")]
    return write_jsonl(path, sorted(wrong, key=lambda record: -record["confidence"]))


def show_summary(scores: Scores, name: str) -> None:
    """Prints the metrics of the model `name`, and the numbers of each class."""
    tables = [cells({name: summarise(scores)}, [shown(metric) for metric in scores.metrics])]
    if per_class := scores.detail.get("per_class"):
        columns, rows = class_cells(per_class)
        matrix = scores.detail.get("confusion_matrix")
        if matrix and len(per_class) <= READABLE_CLASSES:
            columns += tuple(f"as {label}" for label in per_class)
            counts = [tuple(f"{count:,}" for count in line) for line in matrix]
            rows = [row + more for row, more in zip(rows, counts, strict=True)]
        tables.append((columns, rows))
    show(*(table(*part) for part in tables))


def show_candidates(rows: Sequence[Mapping[str, Any]], chosen: str, metric: Metric) -> None:
    """Prints the candidates of integration.candidates.choose."""
    _show_choice(*candidate_cells(rows, shown(metric)), chosen)


def show_curve(curve: Sequence[Mapping[str, float]], alpha: float, metric: Metric) -> None:
    """Prints what decides between the pretrained and the fine-tuned weights."""
    rows = [(f"{point['alpha']:g}", *choice_cells(point, shown(metric))) for point in curve]
    _show_choice(("alpha", metric.title, *_CHOICE), rows, f"{alpha:g}")


def _show_choice(columns: Sequence[str], rows: Iterable[tuple[str, ...]], chosen: str) -> None:
    marked = [(*row, "chosen" if row[0] == chosen else "") for row in rows]
    show(table((*columns, ""), marked))


def show(*parts: Table | str) -> None:
    """Prints to the console; text is never broken, tables only where a terminal is too narrow."""
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False, markup=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, text: int = 1) -> Table:
    """Returns a console table; all columns but the first `text` hold numbers."""
    drawn = Table(box=box.SIMPLE)
    for index, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if index < text else "right")
    for row in rows:
        drawn.add_row(*map(Text, row))  # labels may look like markup
    return drawn


def markdown_table(results: Mapping[str, Any]) -> str:
    """Returns the results table in Markdown, from what results.json holds."""
    columns, rows = cells(results["models"], results["metrics"])
    head = [columns, ("---", *["---:"] * (len(columns) - 1))]
    return "".join(f"| {' | '.join(row)} |\n" for row in [*head, *rows])


def shown(metric: Metric) -> dict[str, Any]:
    """Returns how a metric is shown; JSON-ready."""
    names = ("name", "title", "scale", "digits", "shown", "higher_is_better")
    return {name: getattr(metric, name) for name in names}


def cells(models: Mapping[str, Mapping[str, Any]], metrics: Sequence[Shown]) -> Cells:
    """Returns the results table, a row per model."""
    metrics = [metric for metric in metrics if metric["shown"]]
    columns = ["model", *(metric["title"] for metric in metrics), "examples"]
    rows = [[name, *_row(summary, metrics)] for name, summary in models.items()]
    if any("leak_free" in summary for summary in models.values()):
        few = metrics[:2]
        columns += ["without leaks: " + few[0]["title"], *(m["title"] for m in few[1:]), "examples"]
        for row, summary in zip(rows, models.values(), strict=True):
            row += _row(summary["leak_free"], few)
    if any("shifted" in summary for summary in models.values()):
        few = metrics[:2]
        columns += ["shifted set: " + few[0]["title"], *(m["title"] for m in few[1:]), "examples"]
        for row, summary in zip(rows, models.values(), strict=True):
            row += _row(summary.get("shifted", {}), few)
    return tuple(columns), list(map(tuple, rows))


def _row(summary: Mapping[str, Any], metrics: Sequence[Shown]) -> list[str]:
    """Returns a cell per metric, empty where a model has none, and the number of examples."""
    known = [summary[metric["name"]] for metric in metrics if metric["name"] in summary]
    values = [cell(summary[m["name"]], m) if m["name"] in summary else "" for m in metrics]
    if not known:
        return [*values, ""]
    groups = f" in {known[0]['groups']:,} groups" if "groups" in known[0] else ""
    return [*values, f"{known[0]['count']:,}{groups}"]


def class_cells(per_class: Mapping[str, Mapping[str, Any]]) -> Cells:
    """Returns the table of the classes, from 'per_class' of a summary."""
    rows = [
        (
            label,
            # Files of older versions hold no errors.
            *(
                number(row[share], row.get(f"{share}_error"), scale=100, digits=1)
                for share in ("precision", "recall", "f1")
            ),
            f"{row['support']:,}",
        )
        for label, row in per_class.items()
    ]
    return ("class", "precision, %", "recall, %", "F1, %", "examples"), rows


def cell(estimate: Mapping[str, Any], metric: Shown) -> str:
    """Returns an estimate of a metric as value ± standard error."""
    scale, digits = metric["scale"], metric["digits"]
    return number(estimate["value"], estimate["standard_error"], scale=scale, digits=digits)


def number(
    value: float | None, error: float | None = None, *, scale: float = 1, digits: int = 3
) -> str:
    """Returns value ± error; '' for a value, and no ±, where a number is None or not finite."""
    value, error = (scale * (math.nan if x is None else x) for x in (value, error))
    if not math.isfinite(value):
        return ""
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


_CHOICE = ("loss", "behind the best")


def choice_cells(row: Mapping[str, Any], metric: Shown) -> tuple[str, str, str]:
    """Returns value, loss and distance from the best of what integration chose among.

    The distance is of the loss where the task has one (integration/interpolation.py).
    """
    loss = row.get("loss")  # absent in runs that chose by the metric
    form = {"scale": metric["scale"], "digits": metric["digits"]} if loss is None else {"digits": 4}
    behind = number(row["behind_best"], row["behind_best_error"], **form)
    return cell(row, metric), number(loss, digits=4), behind


def candidate_cells(rows: Sequence[Mapping[str, Any]], metric: Shown) -> Cells:
    """Returns the table of 'candidates' of results.json."""
    costs = ("evaluations", "seconds", "inference cost")
    lines = [
        (
            row["name"],
            *choice_cells(row, metric),
            f"{row['evaluations']}",
            f"{row['seconds']:.1f}",
            f"{row['inference_cost']}",
        )
        for row in rows
    ]
    return ("candidate", metric["title"], *_CHOICE, *costs), lines


def short_names(folders: Iterable[Path]) -> dict[Path, str]:
    """Returns the shortest ends of paths, of one length, that tell them apart."""
    folders = list(dict.fromkeys(folders))
    names: dict[Path, str] = {}
    for count in range(1, max((len(folder.parts) for folder in folders), default=0) + 1):
        names = {folder: str(Path(*folder.parts[-count:])) for folder in folders}
        if len(set(names.values())) == len(folders):
            break
    return names


def short_fingerprint(fingerprint: str) -> str:
    """Returns the start of a fingerprint, or of each of those of several tasks."""
    return " ".join(part[:12] for part in fingerprint.split(" "))


def run_titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns names of groups of runs that differ in seed or fold alone, by their first folders."""
    firsts = [Path(row["workdirs"][0]) for row in rows]
    names = short_names(firsts)
    more = [row["count"] - 1 for row in rows]
    return [
        names[first] + f" and {n} more run{'s' * (n > 1)}" * (n > 0)
        for first, n in zip(firsts, more, strict=True)
    ]


def run_cells(rows: Sequence[Mapping[str, Any]], metric: Shown) -> Cells:
    """Returns the table of groups of runs.

    Args:
        rows: 'runs' of comparison.json.
        metric: see `shown`.
    """
    form = {"scale": metric["scale"], "digits": metric["digits"]}
    lines = [
        (
            title,
            ", ".join(f"{key}={value}" for key, value in row["differs"].items()),
            str(row["count"]),
            number(row["mean"], row["standard_error"], **form),
            number(row["deviation"], **form),
            " to ".join(number(bound, **form) for bound in row["interval"] or ()),
            number(row.get("detectable"), **form),
            str(row["test_openings"]),
        )
        for title, row in zip(run_titles(rows), rows, strict=True)
    ]
    columns = ("run", "what differs", "runs", metric["title"], "deviation over runs")
    columns += ("95 % interval over runs", "difference found in 80 of 100")
    return (*columns, "looks at the test split"), lines
