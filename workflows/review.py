"""--mode=review: a list of likely label errors, found by training, for a person to go through.

The training split is cut into folds. For each fold a model is trained on all the others, by the
real trainer. Its probabilities for the held-out fold go into confident learning
(evaluation/label_issues.py); its pooled states give the nearest training examples. Training
dynamics are recorded for the next fold, which it learns from, at each evaluation. So every example
is judged once by a model that has not seen it, and watched once while it is learned. A forward pass
is a third of a training step's work: 5 folds of 3 epochs with config.eval.every='25%' cost 36
passes over the split, the dynamics 4 more, the neighbours 5.
"""

import csv
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from configs import common
from configs.overrides import companion
from configs.stored import own_key, present_config
from evaluation import calibration, label_issues
from evaluation.evaluate import Predictions, predict
from evaluation.label_issues import LabelIssues
from input_pipeline.examples import Examples
from input_pipeline.files import replacing, write_text
from models import adapters
from models.heads import ClassifierHead
from tasks import require
from tasks.task import rows_of
from training import run_probe
from training.data import RunData, load_data
from training.experiment import Experiment, build
from training.sharding import put_batch
from training.state import TrainState
from training.train import Run
from training.workdir import NOT_OF_THE_WEIGHTS, check_workdir, has_checkpoint
from workflows import marks
from workflows.restoring import Restored, restore

_SHOWN = 5  # of the list, on the console
_NEIGHBOURS = 3  # nearest training examples that are shown for each error
_FORMULA = tuple("=+-@\t\r")  # what spreadsheet programs compute, if a cell begins so


def review(config: ConfigDict, workdir: Path) -> Path:
    """Trains the folds and writes review.csv; an interrupted review resumes.

    All labelled training examples are reviewed, also those that config.review.exclude names.

    Returns:
        The file: one row per example, the most likely label error first.

    Raises:
        Interrupted: a signal came while training; everything is saved.
        ValueError: another task, too few folds or examples, or an existing review.
        OSError: a file could not be read or written.
    """
    require(config, "REVIEW", "--mode=review")
    run_probe.check(config)
    if config.teach.targets or config.teach.run:
        raise ValueError(
            "config.teach: a teacher has seen the labels that --mode=review judges: leave its "
            "run and targets empty"
        )
    path = workdir / "review.csv"
    if path.exists():
        raise ValueError(
            f"{path} exists and may hold a person's marks: rename it, or choose another --workdir"
        )
    data = load_data(config)
    print(data.prose())
    examples = data.split("train")
    if examples.labels_N is not None:
        total, examples = len(examples), examples.take(examples.labels_N >= 0)
        if len(examples) < total:
            print(f"Note: {total - len(examples):,} of {total:,} examples have no label to review.")
    count = config.review.folds
    if examples.labels_N is None or not 2 <= count <= len(examples):
        raise ValueError(
            f"config.review.folds={count}: expected from 2 to the number of labelled training "
            f"examples, {0 if examples.labels_N is None else len(examples)}"
        )
    folds_N = label_issues.assign_folds(examples.labels_N, count, seed=config.seed)
    outcomes = []
    for fold in range(count):
        print(f"Review: fold {fold + 1} of {count}.")
        folder = workdir / "review" / f"fold_{fold}"
        outcomes.append(_fold(fold_config(config), folder, data, examples, folds_N, fold))
    joined = {name: _join(examples, outcomes, name) for name in outcomes[0] if name != "key"}
    issues = label_issues.find_label_issues(examples.labels_N, joined["probabilities"])
    _write(path, records(examples, data.labels, issues, joined))
    print(prose(examples, data.labels, issues, joined["probabilities"]))
    print(
        f"All {len(examples):,} examples are in {path}, the most likely label error first. Flagged "
        "ones have a 1 under 'exclude': read them, correct the marks, then train without the "
        f"marked ones by --config.review.exclude={path}"
    )
    return path


def fold_config(config: ConfigDict) -> ConfigDict:
    """Returns the config of a fold's training: the model alone, without a test."""
    config = companion(config)
    config.review.exclude = ""
    config.train.integrate, config.seeds = False, 1
    return config


class _Watched(Run):
    """A training run that also records its predictions of some training examples."""

    def __init__(self, *args: Any, watched: Examples, folder: Path):
        super().__init__(*args)
        self._watched, self._folder = watched, folder

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluates; then writes the true class's probability and correctness [2, W]."""
        values = super().evaluate(step, state)
        if step:  # at step 0 nothing was learned, or forgotten
            predictions = self._experiment.predict(state.params, self._watched, {})
            logs_WxC = calibration.calibrate(self._experiment.task.logits(predictions), {})
            labels_W = self._watched.labels_N[rows_of(self._watched, predictions.ids_N)]
            true_W = np.exp(logs_WxC[np.arange(len(labels_W)), labels_W])
            self._folder.mkdir(parents=True, exist_ok=True)
            seen = np.stack([true_W, logs_WxC.argmax(axis=1) == labels_W])
            np.save(self._folder / f"{step:09}.npy", seen)
        return values


def _fold(
    config: ConfigDict,
    folder: Path,
    data: RunData,
    examples: Examples,
    folds_N: np.ndarray,
    fold: int,
) -> dict[str, np.ndarray]:
    """Trains on all folds but one, and returns its outcome; ids are ascending.

    Of the held-out examples 'ids', 'probabilities' [H, C] and 'neighbours' [H, K], ids of training
    examples; of the watched ones 'watched_ids' and the statistics of label_issues.dynamics.
    """
    check_workdir(folder, config)
    path, dynamics = folder / "outcome.npz", folder / "dynamics"
    key = _key(config, data, fold)
    if path.exists():
        with np.load(path) as saved:
            if saved["key"] == key:
                print(f"Finished before: {path}")
                return dict(saved)
    if not has_checkpoint(folder):
        shutil.rmtree(dynamics, ignore_errors=True)
    trained, held = examples.take(folds_N != fold), examples.take(folds_N == fold)
    watched = examples.take(folds_N == (fold + 1) % config.review.folds)
    watched = watched.take(np.argsort(watched.ids_N, kind="stable"))
    experiment = build(config, folder, data.labels, print, trained)
    experiment.check(trained, "train", training=True)
    experiment.check(data.split("validation"), "validation")
    _Watched(experiment, folder, data, trained, watched=watched, folder=dynamics).train()
    outcome = {"key": key, "watched_ids": watched.ids_N}
    outcome |= _judged(experiment, restore(experiment, folder, "best"), held, trained)
    seen_Ex2xW = np.stack([np.load(part) for part in sorted(dynamics.iterdir())])
    outcome |= label_issues.dynamics(seen_Ex2xW[:, 0], seen_Ex2xW[:, 1])
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **outcome)
    shutil.rmtree(folder / "checkpoints")  # large, and of no further use
    return outcome


def _key(config: ConfigDict, data: RunData, fold: int) -> np.ndarray:
    """Returns a digest of the config and data that an outcome depends on."""
    defaults = present_config(common.get_config())  # so that a new key changes no digest
    options = {k: v for k, v in present_config(config).items() if defaults.get(own_key(k)) != v}
    options = {k: v for k, v in options.items() if not k.startswith(NOT_OF_THE_WEIGHTS)}
    origin = json.dumps([options, data.fingerprints, fold], sort_keys=True)
    return np.array(hashlib.sha256(origin.encode()).hexdigest())


def _judged(
    experiment: Experiment, best: Restored, held: Examples, trained: Examples
) -> dict[str, np.ndarray]:
    """Returns 'ids', 'probabilities' and 'neighbours' of the held-out examples."""
    queries, keys = (pooled(experiment, best.params, examples) for examples in (held, trained))
    nearest = label_issues.nearest(queries["pooled_NxD"], keys["pooled_NxD"], _NEIGHBOURS)
    queries = dataclasses.replace(queries, fitted=best.fitted)
    return {
        "ids": queries.ids_N,
        "probabilities": np.exp(experiment.task.log_probabilities(queries)),
        "neighbours": keys.ids_N[nearest],
    }


def pooled(
    experiment: Experiment, params: Mapping[str, jax.Array], examples: Examples
) -> Predictions:
    """Predicts examples, and also keeps what the head pools.

    Returns:
        'logits_NxC' and 'pooled_NxD', the vector before dropout and the linear layer.
    """

    def forward(tree: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        outputs, kept = experiment.model.apply(
            {"params": tree},
            batch,
            deterministic=True,
            capture_intermediates=_pools,
            mutable=["intermediates"],
        )
        (vectors,) = jax.tree.leaves(kept)
        return {**outputs, "pooled_BxD": vectors.reshape(len(outputs["logits_BxC"]), -1)}

    apply, mesh = adapters.adapted(experiment.config.adapt, forward), experiment.mesh

    @jax.jit
    def run(frozen: Any, params: Any, batch: Any) -> Any:
        outputs = apply({**frozen, **params}, batch)
        return jax.lax.with_sharding_constraint(outputs, experiment.placement.whole)

    windows = experiment.windows(examples, training=False)
    return predict(
        lambda params, batch: run(experiment.frozen, params, put_batch(batch, mesh)),
        params,
        experiment.pipeline.evaluate(windows),
        total=len(windows),
    )


def _pools(module: nn.Module, method: str) -> bool:
    return isinstance(module, ClassifierHead) and method == "pool"


def _join(
    examples: Examples, outcomes: Sequence[Mapping[str, np.ndarray]], name: str
) -> np.ndarray:
    """Returns one outcome of all folds, in the order of the examples."""
    held = name in ("ids", "probabilities", "neighbours")
    ids = np.concatenate([part["ids" if held else "watched_ids"] for part in outcomes])
    joined = np.concatenate([part[name] for part in outcomes])
    return joined[np.argsort(ids)[np.argsort(np.argsort(examples.ids_N))]]


def records(
    examples: Examples,
    labels: Sequence[str],
    issues: LabelIssues,
    outcome: Mapping[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    """Yields the rows of the review in their order.

    Args:
        examples: N of them.
        labels: names of the classes.
        issues: of the examples.
        outcome: 'probabilities' [N, C], 'neighbours' [N, K] (ids), and the statistics of
            label_issues.dynamics.
    """
    rows = {int(id_): row for row, id_ in enumerate(examples.ids_N)}
    for row in issues.order().tolist():
        label, suggested = int(examples.labels_N[row]), int(issues.suggested_N[row])
        record = {"exclude": int(issues.flagged_N[row]), "id": int(examples.ids_N[row])}
        if examples.names_N is not None:
            record["name"] = examples.names_N[row]
        record |= {"label": labels[label], "suggested": labels[suggested]}
        record["text"] = examples.texts_N[row]
        if examples.pairs_N is not None:
            record["pair"] = examples.pairs_N[row]
        record["probability_label"] = round(float(outcome["probabilities"][row, label]), 4)
        record["probability_suggested"] = round(float(outcome["probabilities"][row, suggested]), 4)
        for name in ("confidence", "variability", "correctness"):
            record[name] = round(float(outcome[name][row]), 4)
        record["forgetting"] = int(outcome["forgetting"][row])
        for number, id_ in enumerate(outcome["neighbours"][row].tolist(), start=1):
            shown = suggested != label  # flagged, or predicted as another class
            near = rows[id_]
            record[f"neighbour_{number}"] = examples.texts_N[near] if shown else ""
            near_label = labels[examples.labels_N[near]]
            record[f"neighbour_{number}_label"] = near_label if shown else ""
        record["digest"] = marks.text_digest(examples, row)
        yield record


def prose(
    examples: Examples,
    labels: Sequence[str],
    issues: LabelIssues,
    probabilities_NxC: np.ndarray,
) -> str:
    """Describes how many labels are likely wrong, by class, and shows the first."""
    right_N = probabilities_NxC.argmax(axis=1) == examples.labels_N
    lines = [
        f"Review: {issues.flagged_N.sum():,} of {len(examples):,} labels are likely wrong (about "
        f"{issues.expected:,.0f} by the confident joint, scaled to all); models that have not seen "
        f"the examples agree with {right_N.mean():.1%} of the labels."
    ]
    for index, label in enumerate(labels):
        class_N = examples.labels_N == index
        flagged_N = issues.flagged_N & class_N
        lines.append(f"  {label}: {flagged_N.sum():,} of {class_N.sum():,} flagged")
    for row in issues.order()[: min(_SHOWN, issues.flagged_N.sum())].tolist():
        label, suggested = labels[examples.labels_N[row]], labels[issues.suggested_N[row]]
        text = " ".join(examples.texts_N[row].split())
        lines.append(f"  {label}, more likely {suggested}: {text[:60]}{'…' * (len(text) > 60)}")
    return "\n".join(lines)


def _write(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    """Writes CSV that spreadsheet programs read as UTF-8."""
    rows, text = list(rows), io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue(), encoding="utf-8-sig")


def _cell(value: Any) -> Any:
    """Returns a value that a spreadsheet program shows and never computes."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
