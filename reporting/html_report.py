"""report.html: one run, or several side by side, as a page that needs no network.

All facts come from the workdir: results.json, metrics.jsonl, config.json, the errors and
comparison.json. What is absent has no section. The page is templates/report.html.jinja; figures
come from figures.py as SVG.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from configs import common
from configs.stored import present_config, stored_config
from reporting import figures, report, robustness_card
from reporting.model_card import caveats, render
from reporting.report import Cells, number
from training.data import RunData, SeveralData

_MISTAKES = 20
_TEXTS = ("text", "pair", "question", "prompt", "answer")
_HIDDEN = (*_TEXTS, "wrong", "probabilities", "n_best", "scores", "worst", "history", "choices")


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
    facts = {"title": workdir.resolve().name, "results": results, "comparison": comparison}
    if comparison:
        facts["compared"] = report.run_cells(comparison["runs"], comparison["metric"])
    if results:
        facts |= _run_facts(workdir, results)
    # A section whose facts are absent is left out.
    undefined = jinja2.ChainableUndefined
    return render("report.html.jinja", facts, workdir / "report.html", undefined=undefined)


def _run_facts(workdir: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the template shows of one run."""
    metric = {metric["name"]: metric for metric in results["metrics"]}[results["metric"]]
    last, summary = list(results["models"].items())[-1]
    config = stored_config(_read(workdir / "config.json"))
    default = present_config(common.get_config())
    changed = {key: value for key, value in config.items() if default.get(key) != value}
    command, integration = workdir / "command.txt", results["integration"]
    left_out = [each["sentence"] for each in results.get("left_out", ())]  # none in older files
    curves = figures.curves(workdir, metric=metric, integration=integration)
    return {
        "last": last,
        "metric": metric,
        "headline": report.cell(summary[metric["name"]], metric) or "not defined",
        "caveats": caveats(results),
        "count": f"{summary[metric['name']]['count']:,}",
        "table": report.cells(results["models"], results["metrics"]),
        "curves": Markup(figures.svg(curves)),
        "candidates": integration and report.candidate_cells(integration["candidates"], metric),
        "calibration": _calibration(results["calibration"]),
        "robustness": [
            (robustness_card.cells(name, rows, metric), robustness_card.conclusion(rows, metric))
            for name, rows in results["robustness"].items()
        ],
        "data": {
            "prose": "\n".join([results["data"], *left_out]),
            "tables": _data_tables(results.get("manifest", {})),
        },
        "openings": [
            (look["time"], look["model"], report.short_fingerprint(look["fingerprint"]))
            for look in results["test_openings"]
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
        Name of a task, '' where the run has a single one -> 'read'; 'dropped', by reason; 'splits'
        with their 'examples', of them 'used', and 'leaked'; 'audit' of each audited split.
    """
    members = data.members if isinstance(data, SeveralData) else {"": data}
    counts = {}
    for name, member in members.items():
        manifest = member.prepared.manifest
        counts[name] = {
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
    return counts


def _data_tables(manifests: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Cells]]:
    """Returns titles and tables of `data_counts`: splits, what was dropped, and the audit."""
    splits, dropped, audited = [], [], []
    for name, counts in manifests.items():
        task = (name,) if name else ()
        for split, part in counts["splits"].items():
            leaked = f"{part['leaked']:,}" if split in counts["audit"] else "not searched"
            splits.append((*task, split, f"{part['examples']:,}", leaked))
        kept = sum(part["examples"] for part in counts["splits"].values())
        reasons = {"read": counts["read"], **counts["dropped"], "kept": kept}
        dropped += [(*task, key.replace("_", " "), f"{n:,}") for key, n in reasons.items()]
        for split, part in counts["audit"].items():
            copies = ", ".join(f"{n:,} in {other}" for other, n in part["copies_in"].items())
            numbers = (f"{part[key]:,}" for key in ("exact", "other_labels", "shared_text"))
            audited.append((*task, split, copies or "none", *numbers))
    first = ("task",) if any(manifests) else ()
    audit = ("split", "copies", "exact ones", "with another label", "shared texts")
    tables = {
        "Splits": (("split", "examples", "leaks"), splits),
        "What was read, dropped and kept": (("reason", "examples"), dropped),
        "What the audit found": (audit, audited),
    }
    return [
        (title, ((*first, *columns), rows)) for title, (columns, rows) in tables.items() if rows
    ]


def _read(path: Path) -> dict[str, Any]:
    """Returns a file of JSON; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _calibration(cards: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the table of all models and the figure of the last."""
    if not cards:
        return None
    rows = []
    for name, card in cards.items():
        for when in ("before", "after"):
            part = card[when]
            # Files of older versions hold neither p nor error.
            p = number(part.get("ece_p"))
            brier = number(part["brier"], part.get("brier_error"))
            temperature = f"{card['temperature']:.2f}" if when == "after" else ""
            chance = f"{part['ece_by_chance']:.3f}"
            rows.append((f"{name}, {when}", f"{part['ece']:.3f}", chance, p, brier, temperature))
    last = list(cards.values())[-1]
    return {
        "table": (("model", "ECE", "by chance", "p", "Brier score", "temperature"), rows),
        "figure": Markup(figures.svg(figures.calibration(last))),
    }


def _classes(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tables of single classes, as far as a task has them."""
    facts: dict[str, Any] = {}
    if per_class := summary.get("per_class"):
        facts["per_class"] = report.class_cells(per_class)
        matrix = summary.get("confusion_matrix")
        if matrix and len(matrix) <= report.READABLE_CLASSES:
            facts["confusion"] = [
                (label, [(n, round(0.6 * n / max(1, sum(counts)), 2)) for n in counts])
                for label, counts in zip(per_class, matrix, strict=True)
            ]
        if confusions := summary.get("confusions", ())[:_MISTAKES]:
            facts["confusions"] = (("class", "predicted class", "examples"), confusions)
    return facts


def _mistakes(path: Path) -> dict[str, Any]:
    """Returns the first mistakes: texts, and facts about them."""
    if not path.exists():
        return {}
    lines, mistakes = path.read_text(encoding="utf-8").splitlines(), []
    for record in map(json.loads, lines[:_MISTAKES]):
        texts = [(name, record[name]) for name in _TEXTS if isinstance(record.get(name), str)]
        facts = [(name, value) for name, value in record.items() if name not in _HIDDEN]
        mistakes.append({"texts": texts, "facts": facts})
    return {"mistakes": mistakes, "mistakes_count": f"{len(lines):,}", "mistakes_file": path.name}
