"""The results of a finished training: its models and what they are compared with, on one split.

The test split is opened here alone, and each opening is recorded.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from evaluation.metrics import Scores
from input_pipeline.eta import working
from input_pipeline.examples import Examples
from input_pipeline.files import append_line
from integration import methods
from reporting import html_report, report
from reporting.model_card import caveats, write_model_card
from reporting.stored_scores import write_scores
from training import collapse
from training.data import RunData
from training.experiment import Experiment, build
from workflows import robustness
from workflows.integrate.integrate import stored
from workflows.integrate.shifted import shifted_examples
from workflows.restoring import Restored, restore


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run with its data and its model.

    Attributes:
        experiment: its parts.
        workdir: its folder, with its checkpoints.
        data: the splits.
        train_split: the training examples that are used.
        others: config and workdir of finished runs to compare with, by the name of their row.
    """

    experiment: Experiment
    workdir: Path
    data: RunData
    train_split: Examples
    others: Mapping[str, tuple[ConfigDict, Path]]


def write(run: Prepared, split: str) -> dict[str, Any]:
    """Evaluates the chosen models and those they are compared with on a split; writes files."""
    experiment, workdir, data = run.experiment, run.workdir, run.data
    config, task, train_split = experiment.config, experiment.task, run.train_split
    restored = restore(experiment, workdir, "best")
    models = {report.BOTH if experiment.features else report.FINETUNED: restored}
    probed = config.model.head_start == "probe"
    if (config.eval.at_start or probed or task.READY) and not config.resume_from:
        start = experiment.put(experiment.initial)
        _, fitted = experiment.score(start, data.split("validation"))
        meta = restored.meta | {"fitted": fitted}
        name = report.PROBE if probed else report.BEFORE
        models = {name: Restored(start, meta, name, 0), **models}
    integration = None
    if (workdir / "integrated").is_dir():
        chosen = restore(experiment, workdir, "integrated")
        integration = stored(chosen.meta)
        if integration["changed"]:
            models[f"{report.INTEGRATED} ({integration['written']})"] = chosen
    openings = []
    if split == "test":
        opened_for = f"{restored.name}: {', '.join([*run.others, *models])}"
        openings = _note_test_opening(workdir, data, opened_for)
    examples = data.split(split)
    experiment.check(examples, split, complete=True)
    if experiment.features:
        train_split, examples = (experiment.with_features(e) for e in (train_split, examples))
    with working("Baselines"):
        scores = task.baselines(train_split, examples)
    for row, (other, folder) in run.others.items():
        bare = examples if other.features.use != "none" else examples.without_features()
        scores[row] = score_with(other, folder, data, bare)
    shifted = shifted_examples(experiment, data)
    elsewhere = {} if shifted is None else task.baselines(train_split, shifted)
    calibration, cards = {}, {}
    for row, model in models.items():
        with working(f"Evaluating on {split}, {row}"):
            predictions = experiment.predict(model.params, examples, model.fitted, complete=True)
            scores[row] = task.score(predictions, examples)
            if shifted is not None:
                there = experiment.predict(model.params, shifted, model.fitted)
                elsewhere[row] = task.score(there, shifted)
        if card := task.calibration(predictions, examples):
            calibration[row] = card
        if config.eval.robustness:
            cards[row] = robustness.robustness(
                experiment, model.params, examples=examples, predictions=predictions
            )
    write_scores(workdir / f"scores_{split}.npz", scores)
    errors = task.describe(predictions, examples)
    report.write_errors(workdir / f"errors_{split}.jsonl", errors)
    results = report.write_results(
        workdir,
        scores,
        floor=task.FLOOR,
        fingerprints=restored.meta["fingerprints"],
        split=split,
        metric=experiment.metric,
        integration=integration,
        leaked_ids=examples.leaked_ids,
        elsewhere=elsewhere,
        extra={
            "labels": data.labels,
            "checkpoint": restored.name,
            "train_examples": len(train_split),
            "validation_examples": len(data.split("validation")),
            "test_openings": openings,
            "collapses": collapse.history(workdir),
            "data": data.prose(),
            "manifest": html_report.data_counts(data),
            "left_out": experiment.left_out,
            "environment": report.environment(),
            "calibration": calibration,
            "robustness": cards,
        },
    )
    for row, card in cards.items():
        robustness.show_card(row, card, experiment.metric)
    for caveat in caveats(results):
        print(f"Note: {caveat}")
    if len(openings) > 1:
        print(
            f"Note: the test split was opened {len(openings)} times: a number chosen by looking at "
            "it is too good."
        )
    write_model_card(workdir)
    print(f"Report: {html_report.write_html(workdir)}")
    return results


def score_with(config: ConfigDict, workdir: Path, data: RunData, examples: Examples) -> Scores:
    """Returns the scores of another finished run, with its own fitted values."""
    experiment = build(config, workdir, data.labels, lambda line: None)
    restored = restore(experiment, workdir, "integrated" if methods.apply(config) else "best")
    predictions = experiment.predict(restored.params, examples, restored.fitted)
    return experiment.task.score(predictions, examples)


def _note_test_opening(workdir: Path, data: RunData, what: str) -> list[dict[str, str]]:
    """Records that the test split is opened; returns all openings so far."""
    path = workdir / "test_openings.jsonl"
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": what,
        "fingerprint": data.fingerprints["test"],
    }
    append_line(path, json.dumps(entry))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
