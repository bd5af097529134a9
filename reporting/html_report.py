"""report.html: one run, or several side by side, as a page that needs no network.

All that is told lies in the workdir: results.json, metrics.jsonl, config.json, the errors and
comparison.json. What is absent has no section. The page is templates/report.html.jinja; figures
come from figures.py as SVG. Called by workflows/finish.py and comparison.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from configs import common
from configs.stored import present_config, stored_config
from evaluation.metrics import Metric
from input_pipeline.files import write_text
from reporting import figures, report
from reporting.model_card import caveats
from training.data import RunData, SeveralData
from workflows import robustness

_MISTAKES = 20
_TEXTS = ("text", "pair", "question", "prompt", "answer")
_HIDDEN = (*_TEXTS, "wrong", "probabilities", "n_best", "scores", "worst", "history", "choices")
_PLAIN = {"scale": 1, "digits": 3}  # how a number without a metric is shown
_PERCENT = {"scale": 100, "digits": 1}


def write_html(workdir: str | Path) -> Path:
    """Writes report.html into a finished run's workdir, or beside a comparison.json.

    Returns:
        The file.

    Raises:
        FileNotFoundError: the folder holds neither results.json nor comparison.json.
    """
    workdir = Path(workdir)
    results, comparison = (_read(workdir / f"{name}.json") for name in ("results", "comparison"))
    if not results and not comparison:
        raise FileNotFoundError(f"{workdir} holds neither results.json nor comparison.json")
    facts: dict[str, Any] = {"title": workdir.resolve().name, "results": results}
    facts["comparison"] = comparison
    if comparison:
        facts["compared"] = _compared(comparison)
    if results:
        facts |= _run_facts(workdir, results)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reporting"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # a section whose facts are absent is left out
        keep_trailing_newline=True,
    )
    path = workdir / "report.html"
    write_text(path, environment.get_template("report.html.jinja").render(facts))
    return path


def _run_facts(workdir: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the template tells of one run."""
    metrics = {metric["name"]: metric for metric in results["metrics"]}
    last = list(results["models"])[-1]
    summary, metric = results["models"][last], metrics[results["metric"]]
    headline = _number(report.cell(summary[metric["name"]], metric))
    config = stored_config(_read(workdir / "config.json"))
    default = present_config(common.get_config())
    changed = {key: value for key, value in config.items() if default.get(key) != value}
    command = workdir / "command.txt"
    columns, rows = report.cells(results["models"], results["metrics"])
    # A metric's title and digits are all that a figure takes of it.
    drawn = Metric(**metric, value=None)
    left_out = [each["sentence"] for each in results.get("left_out", ())]  # none in older files
    curves = figures.curves(workdir, metric=drawn, integration=results["integration"])
    return {
        "last": last,
        "metric": metric,
        "headline": headline or "not defined",
        "caveats": caveats(results),
        "count": f"{summary[metric['name']]['count']:,}",
        "table": {"columns": columns, "rows": [[r[0], *map(_number, r[1:])] for r in rows]},
        "curves": Markup(figures.svg(curves)),
        "candidates": _candidates(results["integration"], metric),
        "calibration": _calibration(results["calibration"]),
        "robustness": [_card(name, rows, drawn) for name, rows in results["robustness"].items()],
        "data": {
            "prose": "\n".join([results["data"], *left_out]),
            "tables": _data_tables(results.get("manifest", {})),
        },
        "openings": [
            (opening["time"], opening["model"], _short(opening["fingerprint"]))
            for opening in results["test_openings"]
        ],
        "command": command.read_text(encoding="utf-8") if command.exists() else "",
        "changed": "\n".join(f"{key} = {value!r}" for key, value in changed.items()),
        "whole": "\n".join(f"{key} = {value!r}" for key, value in config.items()),
        "environment": results["environment"],
        **_classes(summary),
        **_mistakes(workdir / f"errors_{results['split']}.jsonl"),
    }


def data_counts(data: RunData | SeveralData) -> dict[str, dict[str, Any]]:
    """Returns the numbers of manifest.json, for results.json: none of its texts.

    Returns:
        Name of a task, '' where there is one alone -> 'read'; 'dropped', by reason; 'splits' with
        their 'examples', of them 'used', and 'leaked'; 'audit' of each split that was audited.
    """
    members = data.members if isinstance(data, SeveralData) else {"": data}
    found = {}
    for name, member in members.items():
        manifest = member.prepared.manifest
        found[name] = {
            "read": manifest["read"],
            "dropped": {reason: count for reason, count in manifest["dropped"].items() if count},
            "splits": {
                split: {
                    "examples": part["examples"],
                    "used": member.used(split),
                    "leaked": part["leaked"],
                }
                for split, part in manifest["splits"].items()
            },
            "audit": {
                split: {key: value for key, value in part.items() if key != "worst"}
                for split, part in manifest["audit"].items()
            },
        }
    return found


def _data_tables(manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the tables of `data_counts`: splits, what was dropped, and what the audit found."""
    splits, dropped, audited = [], [], []
    for name, found in manifests.items():
        task = (name,) if name else ()
        for split, part in found["splits"].items():
            leaked = f"{part['leaked']:,}" if split in found["audit"] else "not searched"
            splits.append((*task, split, f"{part['examples']:,}", leaked))
        counts = {"read": found["read"]} | found["dropped"]
        counts["kept"] = sum(part["examples"] for part in found["splits"].values())
        dropped += [(*task, key.replace("_", " "), f"{n:,}") for key, n in counts.items()]
        for split, part in found["audit"].items():
            copies = ", ".join(f"{n:,} in {other}" for other, n in part["copies_in"].items())
            numbers = (part["exact"], part["other_labels"], part["shared_text"])
            audited.append((*task, split, copies or "none", *(f"{n:,}" for n in numbers)))
    first = ("task",) if any(manifests) else ()
    tables = (
        ("Splits", ("split", "examples", "leaks"), splits),
        ("What was read, dropped and kept", ("reason", "examples"), dropped),
        (
            "What the audit found",
            ("split", "copies", "exact ones", "with another label", "shared texts"),
            audited,
        ),
    )
    return [
        {"title": title, "columns": (*first, *columns), "rows": rows}
        for title, columns, rows in tables
        if rows
    ]


def _read(path: Path) -> dict[str, Any]:
    """Returns a file of JSON; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _number(text: str) -> Markup:
    """Sets the error of 'value ± error' smaller."""
    value, mark, error = text.partition(" ± ")
    return Markup("{} <small>± {}</small>").format(value, error) if mark else Markup.escape(value)


def _short(fingerprint: str) -> str:
    """Returns the beginning of a fingerprint, or of those of several tasks' splits."""
    return " ".join(part[:12] for part in fingerprint.split())


def _candidates(
    integration: Mapping[str, Any] | None, metric: Mapping[str, Any]
) -> dict[str, Any] | None:
    if not integration:
        return None
    columns = ("candidate", metric["title"], *report.CHOICE_COLUMNS)
    columns += ("evaluations", "seconds", "cost")
    rows = []
    for row in integration["candidates"]:
        values = map(_number, report.choice_cells(row, metric))
        costs = (row["evaluations"], f"{row['seconds']:.1f}", row["inference_cost"])
        rows.append((row["name"], *values, *costs))
    return {"columns": columns, "rows": rows}


def _calibration(cards: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the table of all models and the figure of the last."""
    if not cards:
        return None
    rows = [
        (
            f"{name}, {when}",
            f"{card[when]['ece']:.3f}",
            " to ".join(f"{bound:.3f}" for bound in card[when].get("ece_interval") or ()),
            _number(report.cell(_with_error(card[when], "brier"), _PLAIN)),
            f"{card['temperature']:.2f}" if when == "after" else "",
        )
        for name, card in cards.items()
        for when in ("before", "after")
    ]
    last = list(cards.values())[-1]
    return {
        "columns": ("model", "ECE", "95 % interval", "Brier score", "temperature"),
        "rows": rows,
        "by_chance": f"{last['after']['ece_by_chance']:.3f}",
        "figure": Markup(figures.svg(figures.calibration(last))),
    }


def _with_error(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns one of several numbers as report.cell takes it; older files know of fewer errors."""
    return {"value": found[name], "standard_error": found.get(f"{name}_error")}


def _card(name: str, rows: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, Any]:
    """Returns the robustness card of one model."""
    columns, found = robustness.cells(name, rows, metric)
    return {
        "columns": columns,
        "rows": [[row[0], *map(_number, row[1:])] for row in found],
        "conclusion": robustness.conclusion(rows, metric),
    }


def _classes(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tables of single classes, as far as a task has them."""
    found: dict[str, Any] = {}
    if per_class := summary.get("per_class"):
        shares = ("precision", "recall", "f1")
        found["per_class"] = {
            "columns": ("class", "precision, %", "recall, %", "F1, %", "examples"),
            "rows": [
                (
                    label,
                    *(_number(report.cell(_with_error(row, share), _PERCENT)) for share in shares),
                    f"{row['support']:,}",
                )
                for label, row in per_class.items()
            ],
        }
        matrix = summary.get("confusion_matrix")
        if matrix and len(matrix) <= report.READABLE_CLASSES:
            rows = []
            for label, counts in zip(per_class, matrix, strict=True):
                total = max(1, sum(counts))
                cells = [{"count": n, "share": round(0.6 * n / total, 2)} for n in counts]
                rows.append({"label": label, "cells": cells})
            found["confusion"] = {"labels": list(per_class), "rows": rows}
        if confusions := summary.get("confusions", ())[:_MISTAKES]:
            columns = ("class", "predicted class", "examples")
            found["confusions"] = {"columns": columns, "rows": confusions}
    return found


def _mistakes(path: Path) -> dict[str, Any]:
    """Returns the first mistakes: texts, and facts about them."""
    if not path.exists():
        return {}
    lines, mistakes = path.read_text(encoding="utf-8").splitlines(), []
    for line in lines[:_MISTAKES]:
        record = json.loads(line)
        texts = [(name, record[name]) for name in _TEXTS if isinstance(record.get(name), str)]
        facts = [(name, value) for name, value in record.items() if name not in _HIDDEN]
        mistakes.append({"texts": texts, "facts": facts})
    return {"mistakes": mistakes, "mistakes_count": f"{len(lines):,}", "mistakes_file": path.name}


def _compared(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the table of runs side by side."""
    columns, rows = report.run_cells(comparison["runs"], comparison["metric"])
    return {"columns": columns, "rows": [[*r[:3], *map(_number, r[3:])] for r in rows]}
