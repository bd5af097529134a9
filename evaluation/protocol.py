"""What is done with checkpoints: evaluate, predict, integrate, and the one look at the test split.

The functions named after modes are called by main.py, `finish` by the training at its end.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from evaluation import report
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, find
from input_pipeline.examples import Examples
from input_pipeline.mixture import Mixture, member_configs
from input_pipeline.preparation import read_unlabelled
from integration.interpolation import interpolate
from training.checkpoints import Checkpoints, Meta
from training.data import RunData, load_data
from training.experiment import Experiment, build
from training.workdir import flatten_config

# What must be as in training for a checkpoint's numbers to mean the same. Weights and tokeniser are
# compared by fingerprint.
_BOUND = ("task", "classification.kind", "classification.separator", "tagging.characters")
_BOUND += ("tagging.head", "tagging.head_size", "generation.chat_template")
_BOUND += ("model.init", "model.head", "model.pooling", "model.label_words", "model.bidirectional")
_BOUND += ("adapt.kind", "adapt.targets", "adapt.rank", "adapt.alpha", "adapt.layers")
_BOUND += ("adapt.prompt_length", "adapt.frozen_dtype", "optimizer.lr_table", "features.use")
_BOUND += ("tokenizer.marks", "tokenizer.keep_others", "tokenizer.new_pieces")
_BOUND += ("data.template", "data.normalization", "layout.max_length")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's parameters on the devices, and where they came from."""

    params: dict[str, jax.Array]
    meta: Meta
    name: str


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Evaluates config.eval.checkpoint on config.eval.split; writes numbers and errors to files."""
    data = load_data(config)
    split = config.eval.split
    if split not in data.splits:
        raise ValueError(
            f"config.eval.split: found {split!r}, expected one of {sorted(data.splits)}"
        )
    meta = read_meta(config, workdir)
    if data.labels != meta["labels"]:
        raise ValueError(
            f"the data has the labels {data.labels} but the checkpoint was trained on "
            f"{meta['labels']}: set config.data.labels to the latter, or evaluate other data"
        )
    experiment = build(config, workdir, data.labels, print)
    restored = restore(experiment, workdir)
    if split == "test":
        _note_test_opening(workdir, data, restored.name)
    examples = data.split(split)
    experiment.task.check(examples, split)
    predictions = experiment.predict(restored.params, examples, complete=True)
    scores = experiment.task.score(predictions, examples)
    summary = report.summarise_with_leaks(scores, examples.leaked_ids)
    result = {
        "checkpoint": restored.name,
        "split": split,
        "fingerprint": data.fingerprints[split],
        **summary,
    }
    report.write_json(workdir / f"evaluation_{split}.json", result)
    errors = report.write_errors(
        workdir / f"errors_{split}.jsonl", experiment.task.describe(predictions, examples)
    )
    report.show_summary(scores, f"{restored.name} on {split}")
    print(f"{errors:,} wrong predictions are in {workdir / f'errors_{split}.jsonl'}")
    return result


def predict(config: ConfigDict, workdir: Path) -> Path:
    """Writes what the model says of config.predict.input as JSONL, a line per example."""
    if not config.predict.input:
        raise ValueError(
            "--mode=predict needs --config.predict.input=FILE (.txt, .jsonl, .csv, .tsv)"
        )
    meta = read_meta(config, workdir)
    if config.task == "multi_task":  # every member says what it has to say of every text
        examples = Mixture(
            {
                name: read_unlabelled(config.predict.input, own.data)
                for name, own in member_configs(config).items()
            }
        )
    else:
        examples = read_unlabelled(config.predict.input, config.data)
    experiment = build(config, workdir, meta["labels"], print)
    restored = restore(experiment, workdir)
    predictions = experiment.predict(restored.params, examples, complete=True)
    output = Path(config.predict.output or workdir / "predictions.jsonl")
    report.write_jsonl(output, experiment.task.describe(predictions, examples))
    print(f"{len(predictions):,} predictions by {restored.name} are in {output}")
    return output


def integrate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Interpolates config.eval.checkpoint with the pretrained weights; writes the winner."""
    if config.eval.checkpoint == "integrated":
        raise ValueError(
            "config.eval.checkpoint: an integrated checkpoint can't be integrated again"
        )
    data = load_data(config)
    read_meta(config, workdir)
    experiment = build(config, workdir, data.labels, print)
    restored = restore(experiment, workdir)
    alpha, curve, _ = _integrate(experiment, workdir, restored, data.split("validation"))
    metric = _metric(experiment)
    report.show_curve(curve, alpha, metric)
    return {"alpha": alpha, "curve": curve}


def finish(
    experiment: Experiment,
    workdir: Path,
    data: RunData,
    train_split: Examples,
    others: Mapping[str, tuple[ConfigDict, Path]],
) -> dict[str, Any]:
    """Integrates, opens the test split once, and reports; does nothing twice.

    Args:
      experiment: as trained; its checkpoints are in `workdir`.
      workdir: results.json, errors_test.jsonl and curves.png go here.
      data: the splits.
      train_split: the training examples that were used.
      others: config and workdir of finished runs to compare with, by the name of their row.

    Returns:
      What results.json holds.
    """
    config, task = experiment.config, experiment.task
    if (workdir / "results.json").exists():
        print(f"This run is finished; its results are in {workdir / 'results.json'}:")
        return report.show_results(workdir)
    restored = restore(experiment, workdir, "best")
    trained = report.BOTH if experiment.features else report.FINETUNED
    models, integration = {trained: restored}, None
    if config.eval.at_start and not config.resume_from:
        before = Restored(experiment.put(experiment.initial), restored.meta, report.BEFORE)
        models = {report.BEFORE: before, **models}
    if config.train.integrate and config.model.init == "pretrained":
        validation = data.split("validation")
        alpha, curve, integrated = _integrate(experiment, workdir, restored, validation)
        integration = {"alpha": alpha, "curve": curve}
        if alpha < 1:
            models[f"{report.INTEGRATED} (alpha {alpha:g})"] = integrated
    name = "validation"
    openings = []
    if config.eval.test and "test" in data.splits:
        rows = [*others, *models]
        name, opened_for = "test", f"{restored.name}: {', '.join(rows)}"
        openings = _note_test_opening(workdir, data, opened_for)
    examples = data.split(name)
    task.check(examples, name)
    if experiment.features:
        train_split, examples = (experiment.with_features(e) for e in (train_split, examples))
    scores = task.baselines(train_split, examples)
    for row, (own, folder) in others.items():
        bare = examples if own.features.use != "none" else examples.without_features()
        scores[row] = task.score(predict_with(own, folder, data, bare), bare)
    for row, model in models.items():
        task.fitted = model.meta["fitted"]
        predictions = experiment.predict(model.params, examples, complete=True)
        scores[row] = task.score(predictions, examples)
    errors = task.describe(predictions, examples)
    report.write_errors(workdir / f"errors_{name}.jsonl", errors)
    return report.write_results(
        workdir,
        scores,
        floor=task.FLOOR,
        fingerprints=restored.meta["fingerprints"],
        split=name,
        metric=_metric(experiment),
        integration=integration,
        leaked_ids=examples.leaked_ids,
        extra={
            "labels": data.labels,
            "checkpoint": restored.name,
            "train_examples": len(train_split),
            "validation_examples": len(data.split("validation")),
            "test_openings": openings,
        },
    )


def _metric(experiment: Experiment) -> Metric:
    """Returns the metric that chooses."""
    return find(experiment.task.metrics, experiment.config.eval.metric)


def predict_with(
    config: ConfigDict, workdir: Path, data: RunData, examples: Examples
) -> Predictions:
    """Returns what another finished run says, integrated if it is."""
    experiment = build(config, workdir, data.labels, lambda line: None)
    integrated = config.train.integrate and config.model.init == "pretrained"
    restored = restore(experiment, workdir, "integrated" if integrated else "best")
    return experiment.predict(restored.params, examples)


def _integrate(
    experiment: Experiment, workdir: Path, restored: Restored, validation: Examples
) -> tuple[float, list[dict[str, float]], Restored]:
    """Returns the chosen alpha, the curve, and the chosen point as a checkpoint."""
    config = experiment.config
    chosen = validation.first(config.integrate.max_examples or len(validation))
    fitted: dict[int, dict] = {}

    def score(params: dict[str, jax.Array]) -> Scores:
        scores, fitted[len(fitted)] = experiment.score(params, chosen)
        return scores

    alpha, curve, params = interpolate(
        score,
        experiment.pretrained_end(restored.params),
        restored.params,
        points=config.integrate.points,
        metric=_metric(experiment).name,
    )
    place = [point["alpha"] for point in curve].index(alpha)
    integrated = Checkpoints(workdir / "integrated")
    meta = {**restored.meta, "of": restored.name, "alpha": alpha, "curve": curve}
    meta["fitted"] = fitted[place]
    integrated.save_params(params, meta)
    integrated.close()
    return alpha, curve, Restored(params, meta, f"integrated (alpha {alpha:g})")


def _open(workdir: Path, name: str, **options: Any) -> tuple[Checkpoints, int]:
    """Returns the checkpoints and the step that `name` stands for."""
    folder = "integrated" if name == "integrated" else "checkpoints"
    checkpoints = Checkpoints(workdir / folder, read_only=True, **options)
    return checkpoints, checkpoints.resolve("latest" if name == "integrated" else name)


def read_meta(config: ConfigDict, workdir: Path) -> Meta:
    """Returns a checkpoint's meta after a check that the config describes the same model."""
    checkpoints, step = _open(workdir, config.eval.checkpoint)
    meta = checkpoints.meta(step)
    checkpoints.close()
    saved = flatten_config(meta["config"])
    current = flatten_config(json.loads(config.to_json()))
    changed = [
        f"  {key}: {saved.get(key, '(absent)')!r} in the checkpoint, {value!r} now"
        for key, value in current.items()
        if re.sub(r"^multi\.members\.\w+\.", "", key).startswith(_BOUND)
        and saved.get(key, value) != value
    ]
    if changed:
        raise ValueError(
            f"checkpoint {step} of {workdir} was trained with another model:\n"
            + "\n".join(changed)
            + f"\nUse the values of the checkpoint ({workdir / 'config.json'})."
        )
    return meta


def restore(experiment: Experiment, workdir: Path, name: str | None = None) -> Restored:
    """Restores the checkpoint `name`, or the one config.eval.checkpoint names.

    Raises:
      ValueError: there is none, or it was trained on other files than the experiment has.
    """
    config = experiment.config
    name = name or config.eval.checkpoint
    checkpoints, step = _open(workdir, name, rank=experiment.rank)
    meta = checkpoints.meta(step)
    changed = [
        part
        for part, fingerprint in experiment.fingerprints.items()
        if meta["fingerprints"][part] != fingerprint
    ]
    if changed:
        raise ValueError(
            f"checkpoint {step} of {workdir} was trained on another {' and '.join(changed)} file "
            "(the fingerprints differ): its frozen parameters are read from there; restore it"
        )
    params = checkpoints.restore_params(step, experiment.like())
    checkpoints.close()
    experiment.task.fitted = meta["fitted"]
    title = f"{name} checkpoint, step {step}"
    if name == "integrated":
        title = f"integrated (alpha {meta['alpha']:g} of the {meta['of']})"
    return Restored(params, meta, title)


def _note_test_opening(workdir: Path, data: RunData, what: str) -> list[dict[str, str]]:
    """Records that the test split is opened now; returns all openings so far."""
    path = workdir / "test_openings.jsonl"
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": what,
        "fingerprint": data.fingerprints["test"],
    }
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return [json.loads(line) for line in path.read_text().splitlines()]
