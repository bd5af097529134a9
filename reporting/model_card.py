"""MODEL_CARD.md: what a model is, is worth and how to use it, in Markdown with front matter.

As model hubs show it. All comes from results.json, config.json and command.txt. Called by
protocol.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from configs.stored import stored_config
from evaluation.metrics import Metric
from input_pipeline.files import write_text
from reporting import report
from workflows import robustness


def write_model_card(workdir: str | Path) -> Path:
    """Writes MODEL_CARD.md into a finished run's workdir; returns the file."""
    workdir = Path(workdir)
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    config = stored_config(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
    trained = (workdir / "command.txt").read_text(encoding="utf-8").strip()
    last = list(results["models"])[-1]
    metric = next(each for each in results["metrics"] if each["name"] == results["metric"])
    card = results["robustness"].get(last)
    labels = results["labels"]
    base = Path(str(config["model.checkpoint"])).name
    text = (
        jinja2.Environment(
            loader=jinja2.PackageLoader("reporting"), undefined=jinja2.StrictUndefined
        )
        .get_template("model_card.md.jinja")
        .render(
            title=workdir.resolve().name,
            results=results,
            config=config,
            base=base,
            task=config["task"].replace("_", " "),
            labels=", ".join(labels) if isinstance(labels, list) else "several tasks",
            train_examples=f"{results['train_examples']:,}",
            names=[each["name"] for each in results["metrics"] if each["shown"]],
            table=report.markdown_table(results),
            caveats=caveats(results),
            calibration=results["calibration"].get(last),
            robustness=card and robustness.conclusion(card, Metric(**metric, value=None)),
            command=f"{trained} --mode=predict --config.eval.checkpoint="
            f"{'integrated' if last.startswith(report.INTEGRATED) else 'best'} "
            "--config.predict.input=texts.txt",
        )
    )
    path = workdir / "MODEL_CARD.md"
    write_text(path, text + "\n")
    return path


def caveats(results: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what has to be known before the numbers of results.json are believed."""
    found = []
    for collapse in results.get("collapses", ()):
        rate = collapse["learning_rate"]
        what = collapse["found"].partition(". The likely cause")[0]  # the rest is what to do
        found.append(
            f"{what[:1].upper()}{what[1:]}. It was started again at a learning rate of "
            f"{rate / 2:g}, half of {rate:g}."
        )
    if results["split"] == "validation":
        chosen = "The checkpoint" + " and the integration" * bool(results["integration"])
        if any(card["temperature"] != 1 for card in results["calibration"].values()):
            chosen = f"{chosen.replace(' and', ',')} and the temperature"
        remedy = "--mode=test opens the test split"
        if "test" not in results["fingerprints"]:
            remedy = "config.data.split.test or config.data.test_files makes a test split"
        found.append(
            f"{chosen} {'were' if ' and ' in chosen else 'was'} chosen on this very split, "
            f"validation, so that its numbers are too good; {remedy}."
        )
    return found
