"""What is done with checkpoints: evaluate, predict, integrate, and the one look at the test split.

The functions named after modes are called by main.py, `finish` by the training at its end.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from evaluation import baselines, report
from evaluation.evaluate import Predictions
from input_pipeline.examples import Examples
from input_pipeline.preparation import Prepared, load_split, prepare, read_unlabelled
from integration.interpolation import interpolate
from training.checkpoints import Checkpoints, Meta
from training.experiment import Experiment, build
from training.workdir import flatten_config

# What must be as in training for a checkpoint's numbers to mean the same. Weights and tokeniser are
# compared by fingerprint.
_BOUND = ("model.init", "model.head", "model.pooling", "model.label_words", "model.bidirectional")
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
    prepared = prepare(config.data)
    split = config.eval.split
    if split not in prepared.manifest["splits"]:
        raise ValueError(
            f"config.eval.split: found {split!r}, expected one of "
            f"{sorted(prepared.manifest['splits'])}"
        )
    meta = read_meta(config, workdir)
    if list(prepared.labels) != meta["labels"]:
        raise ValueError(
            f"the data has the labels {list(prepared.labels)} but the checkpoint was trained on "
            f"{meta['labels']}: set config.data.labels to the latter, or evaluate other data"
        )
    experiment = build(config, workdir, prepared.labels, print)
    restored = restore(experiment, workdir)
    if split == "test":
        _note_test_opening(workdir, prepared, restored.name)
    examples = load_split(prepared, split, limit=config.data[f"max_{split}_examples"])
    predictions = experiment.predict(restored.params, examples)
    summary = report.summarise_with_leaks(predictions, prepared.labels, examples.leaked_ids)
    fingerprint = prepared.manifest["splits"][split]["fingerprint"]
    result = {"checkpoint": restored.name, "split": split, "fingerprint": fingerprint, **summary}
    report.write_json(workdir / f"evaluation_{split}.json", result)
    errors = report.write_errors(
        workdir / f"errors_{split}.jsonl", experiment.task.describe(predictions, examples)
    )
    report.show_summary(summary, f"{restored.name} on {split}")
    print(f"{errors:,} wrong predictions are in {workdir / f'errors_{split}.jsonl'}")
    return result


def predict(config: ConfigDict, workdir: Path) -> Path:
    """Writes labels and probabilities for config.predict.input as JSONL, a line per text."""
    if not config.predict.input:
        raise ValueError(
            "--mode=predict needs --config.predict.input=FILE (.txt, .jsonl, .csv, .tsv)"
        )
    meta = read_meta(config, workdir)
    examples = read_unlabelled(config.predict.input, config.data)
    experiment = build(config, workdir, meta["labels"], print)
    restored = restore(experiment, workdir)
    predictions = experiment.predict(restored.params, examples)
    output = Path(config.predict.output or workdir / "predictions.jsonl")
    report.write_jsonl(output, experiment.task.describe(predictions, examples))
    print(f"{len(predictions.ids_N):,} predictions by {restored.name} are in {output}")
    return output


def integrate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Interpolates config.eval.checkpoint with the pretrained weights; writes the winner."""
    if config.eval.checkpoint == "integrated":
        raise ValueError(
            "config.eval.checkpoint: an integrated checkpoint can't be integrated again"
        )
    prepared = prepare(config.data)
    read_meta(config, workdir)
    experiment = build(config, workdir, prepared.labels, print)
    restored = restore(experiment, workdir)
    limit = config.data.max_validation_examples
    validation = load_split(prepared, "validation", limit=limit)
    alpha, curve, _ = _integrate(experiment, workdir, restored, validation)
    report.show_curve(curve, alpha, config.eval.metric)
    return {"alpha": alpha, "curve": curve}


def finish(
    experiment: Experiment,
    workdir: Path,
    prepared: Prepared,
    splits: Mapping[str, Examples],
    alone: tuple[ConfigDict, Path] | None = None,
) -> dict[str, Any]:
    """Integrates, opens the test split once, and reports; does nothing twice.

    Args:
      experiment: as trained; its checkpoints are in `workdir`.
      workdir: results.json, errors_test.jsonl and curves.png go here.
      prepared: the data and its manifest.
      splits: the training and validation examples that were used.
      alone: config and workdir of the finished run without features, to compare with.

    Returns:
      What results.json holds.
    """
    config = experiment.config
    if (workdir / "results.json").exists():
        print(f"This run is finished; its results are in {workdir / 'results.json'}:")
        return report.show_results(workdir)
    restored = restore(experiment, workdir, "best")
    trained = report.BOTH if experiment.features else report.FINETUNED
    models, integration = {trained: restored.params}, None
    if config.train.integrate and config.model.init == "pretrained":
        alpha, curve, params = _integrate(experiment, workdir, restored, splits["validation"])
        integration = {"alpha": alpha, "curve": curve}
        if alpha < 1:
            models[f"{report.INTEGRATED} (alpha {alpha:g})"] = params
    name = "validation"
    openings = []
    if config.eval.test:
        rows = [*models, *([report.ENCODER] if alone else [])]
        name, opened_for = "test", f"{restored.name}: {', '.join(rows)}"
        openings = _note_test_opening(workdir, prepared, opened_for)
    examples = load_split(prepared, name, limit=config.data[f"max_{name}_examples"])
    examples = experiment.with_features(examples)
    predictions = _baselines(experiment.with_features(splits["train"]), examples, prepared)
    if alone:
        predictions[report.ENCODER] = _encoder_alone(*alone, prepared, examples)
    for model, params in models.items():
        predictions[model] = experiment.predict(params, examples)
    final = list(predictions.values())[-1]
    errors = experiment.task.describe(final, examples)
    report.write_errors(workdir / f"errors_{name}.jsonl", errors)
    return report.write_results(
        workdir,
        predictions,
        labels=prepared.labels,
        fingerprints=restored.meta["fingerprints"],
        split=name,
        metric=config.eval.metric,
        integration=integration,
        leaked_ids=examples.leaked_ids,
        extra={
            "checkpoint": restored.name,
            "train_examples": len(splits["train"]),
            "validation_examples": len(splits["validation"]),
            "test_openings": openings,
        },
    )


def _baselines(train: Examples, examples: Examples, prepared: Prepared) -> dict[str, Predictions]:
    """Returns what the models say that need no encoder, by the name of their row."""
    models = {
        report.MAJORITY: baselines.majority,
        report.TFIDF: baselines.tfidf_logistic_regression,
    }
    if train.features_NxK is not None:
        models[report.FEATURES] = baselines.features_logistic_regression
    classes = len(prepared.labels)
    return {name: fit(train, examples, num_classes=classes) for name, fit in models.items()}


def _encoder_alone(
    config: ConfigDict, workdir: Path, prepared: Prepared, examples: Examples
) -> Predictions:
    """Returns what the finished run without features says, integrated if this run is."""
    experiment = build(config, workdir, prepared.labels, lambda line: None)
    examples = dataclasses.replace(examples, features_NxK=None)
    integrated = config.train.integrate and config.model.init == "pretrained"
    restored = restore(experiment, workdir, "integrated" if integrated else "best")
    return experiment.predict(restored.params, examples)


def _integrate(
    experiment: Experiment, workdir: Path, restored: Restored, validation: Examples
) -> tuple[float, list[dict[str, float]], dict[str, jax.Array]]:
    config = experiment.config
    limit = config.integrate.max_examples or len(validation.ids_N)
    chosen = experiment.with_features(validation.first(limit))

    alpha, curve, params = interpolate(
        lambda params: experiment.predict(params, chosen),
        experiment.pretrained_end(restored.params),
        restored.params,
        points=config.integrate.points,
        metric=config.eval.metric,
    )
    integrated = Checkpoints(workdir / "integrated")
    meta = {**restored.meta, "of": restored.name, "alpha": alpha, "curve": curve}
    integrated.save_params(params, meta)
    integrated.close()
    return alpha, curve, params


def _open(config: ConfigDict, workdir: Path, name: str) -> tuple[Checkpoints, int]:
    """Returns the checkpoints and the step that config.eval.checkpoint names."""
    folder = "integrated" if name == "integrated" else "checkpoints"
    checkpoints = Checkpoints(
        workdir / folder,
        metric=config.eval.metric,
        read_only=True,
    )
    return checkpoints, checkpoints.resolve("latest" if name == "integrated" else name)


def read_meta(config: ConfigDict, workdir: Path) -> Meta:
    """Returns a checkpoint's meta after a check that the config describes the same model."""
    checkpoints, step = _open(config, workdir, config.eval.checkpoint)
    meta = checkpoints.meta(step)
    checkpoints.close()
    saved = flatten_config(meta["config"])
    current = flatten_config(json.loads(config.to_json()))
    changed = [
        f"  {key}: {saved.get(key, '(absent)')!r} in the checkpoint, {value!r} now"
        for key, value in current.items()
        if key.startswith(_BOUND) and saved.get(key, value) != value
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
    checkpoints, step = _open(config, workdir, name)
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
    title = f"{name} checkpoint, step {step}"
    if name == "integrated":
        title = f"integrated (alpha {meta['alpha']:g} of the {meta['of']})"
    return Restored(params, meta, title)


def _note_test_opening(workdir: Path, prepared: Prepared, what: str) -> list[dict[str, str]]:
    """Records that the test split is opened now; returns all openings so far."""
    path = workdir / "test_openings.jsonl"
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": what,
        "fingerprint": prepared.manifest["splits"]["test"]["fingerprint"],
    }
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return [json.loads(line) for line in path.read_text().splitlines()]
