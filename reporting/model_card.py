"""MODEL_CARD.md: what a model is, its results and how to use it, as model hubs show it.

All comes from results.json, config.json and command.txt.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from configs.stored import stored_config
from input_pipeline.files import write_text
from reporting import report, robustness_card


def write_model_card(workdir: str | Path) -> Path:
    """Writes MODEL_CARD.md into a finished run's workdir; returns the file."""
    workdir = Path(workdir)
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    config = stored_config(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
    trained = (workdir / "command.txt").read_text(encoding="utf-8").strip()
    last = list(results["models"])[-1]
    metrics = {metric["name"]: metric for metric in results["metrics"]}
    card, labels = results["robustness"].get(last), results["labels"]
    checkpoint = "integrated" if last.startswith(report.INTEGRATED) else "best"
    facts = {
        "title": workdir.resolve().name,
        "results": results,
        "config": config,
        "base": Path(str(config["model.checkpoint"])).name,
        "task": config["task"].replace("_", " "),
        "labels": ", ".join(labels) if isinstance(labels, list) else "several tasks",
        "train_examples": f"{results['train_examples']:,}",
        "names": [name for name, metric in metrics.items() if metric["shown"]],
        "table": report.markdown_table(results),
        "caveats": caveats(results),
        "calibration": results["calibration"].get(last),
        "robustness": card and robustness_card.conclusion(card, metrics[results["metric"]]),
        "command": f"{trained} --mode=predict --config.eval.checkpoint={checkpoint} "
        "--config.predict.input=texts.txt",
    }
    return render("model_card.md.jinja", facts, workdir / "MODEL_CARD.md")


def render(
    template: str, facts: Mapping[str, Any], path: Path, *, undefined: Any = jinja2.StrictUndefined
) -> Path:
    """Writes a file of reporting/templates, filled in; HTML is escaped. Returns the path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reporting"),
        autoescape=path.suffix == ".html",
        undefined=undefined,
        keep_trailing_newline=True,
    )
    environment.filters["small_error"] = _small_error
    write_text(path, environment.get_template(template).render(facts))
    return path


def _small_error(text: Any) -> Markup:
    """Sets the error of 'value ± error' smaller in HTML."""
    value, mark, error = str(text).partition(" ± ")
    return Markup("{} <small>± {}</small>").format(value, error) if mark else Markup.escape(value)


def caveats(results: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what has to be known before the numbers of results.json are believed."""
    sentences = []
    for collapse in results.get("collapses", ()):
        rate = collapse["learning_rate"]
        what = collapse["found"].partition(". The likely cause")[0]  # the rest is what to do
        sentences.append(
            f"{what[:1].upper()}{what[1:]}. It was started again at a learning rate of "
            f"{rate / 2:g}, half of {rate:g}."
        )
    if results["split"] == "validation":
        chosen = ["the checkpoint", *["the integration"] * bool(results["integration"])]
        if any(card["temperature"] != 1 for card in results["calibration"].values()):
            chosen.append("the temperature")
        remedy = "--mode=test opens the test split"
        if "test" not in results["fingerprints"]:
            remedy = "config.data.split.test or config.data.test_files makes a test split"
        what = " and ".join(filter(None, (", ".join(chosen[:-1]), chosen[-1]))).capitalize()
        sentences.append(
            f"{what} {'were' if chosen[1:] else 'was'} chosen on this very split, validation, so "
            f"that its numbers are too good; {remedy}."
        )
    return sentences
