"""Self-training: a first model labels texts without labels, and a second learns from them too.

Here: the config of the first model, the texts, and the choice of its labels. Not here: training and
predicting.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.overrides import companion
from evaluation.evaluate import Predictions
from input_pipeline.corpus.preparation import load_split, read_unlabelled
from input_pipeline.examples import Examples, Ragged, object_array
from tasks import require
from training.data import RunData

REST = "rest"  # config.self_training.files: what the training split has beyond its limit


def teacher(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, Path] | None:
    """Returns the run whose model labels the texts; None without self-training.

    Raises:
        ValueError: for a task that is not about one label for each text.
    """
    if not config.self_training.files:
        return None
    require(config, "SELF_TRAINING", "config.self_training.files")
    first = companion(config)
    first.self_training.files = ""
    return first, workdir / "teacher"


def unlabelled(config: ConfigDict, data: RunData) -> Examples:
    """Returns the texts that config.self_training names, with labels where they are known.

    Raises:
        ValueError: with 'rest', if the training split has no more than is trained on.
        OSError: a file could not be read.
    """
    options, limit = config.self_training, config.data.max_train_examples
    if options.files == REST:
        examples = load_split(data.prepared, "train")
        examples = examples.take(np.arange(limit or len(examples), len(examples)))
        if not len(examples):
            raise ValueError(
                "config.self_training.files='rest' takes the training examples beyond "
                f"config.data.max_train_examples={limit}, which are none of {data.available}: "
                "lower the limit, or name a file"
            )
    else:
        examples = read_unlabelled(options.files, config.data)
    taken = examples.first(options.max_examples or len(examples))
    if len(taken) < len(examples):
        print(
            f"Self-training reads the first {len(taken):,} of {len(examples):,} texts "
            "(config.self_training.max_examples)."
        )
    return taken


def extend(
    config: ConfigDict,
    data: RunData,
    train: Examples,
    *,
    predict: Callable[[Examples], Predictions],
) -> tuple[Examples, dict[str, Any]]:
    """Returns the training examples with those that the first model labels, and the summary.

    Args:
        config: of the second model.
        data: of both.
        train: what the first model was trained on.
        predict: the first model; see `pseudo_labelled` for its 'log_probabilities_NxC'.

    Raises:
        ValueError, OSError: see `unlabelled` and `pseudo_labelled`.
    """
    texts = unlabelled(config, data)
    options = config.self_training
    labelled, summary = pseudo_labelled(
        predict(dataclasses.replace(texts, labels_N=None)),
        texts,
        train=train,
        labels=data.labels,
        threshold=options.threshold,
        balance=options.balance,
    )
    return concatenate(train, labelled), summary


def pseudo_labelled(
    predictions: Predictions,
    examples: Examples,
    *,
    train: Examples,
    labels: Sequence[str],
    threshold: float,
    balance: bool,
) -> tuple[Examples, dict[str, Any]]:
    """Returns the examples with labels that a first model is sure of, and a summary.

    Args:
        predictions: 'log_probabilities_NxC' of all `examples`: normalised, and calibrated on the
            validation split, since a model of few examples is overconfident.
        examples: without labels, or with the true ones, which are only compared.
        train: whose ids are in use.
        labels: names of the classes.
        threshold: least probability of an accepted label.
        balance: accept as many of each class as of the rarest, the most probable ones, so that a
            bias of the first model is not learned.

    Returns:
        Examples with ids beyond those of `train`, in the order of theirs, and JSON-ready counts:
        'texts', 'taken', 'per_class', 'expected_accuracy' (mean probability) and, where true labels
        are known, 'accuracy'.

    Raises:
        ValueError: no label is accepted.
    """
    order = np.argsort(examples.ids_N, kind="stable")
    examples = examples.take(order)
    if not np.array_equal(examples.ids_N, predictions.ids_N):
        raise ValueError(
            f"{len(predictions)} predictions are not about the {len(examples)} examples to label"
        )
    probabilities_NxC = np.exp(predictions["log_probabilities_NxC"])
    classes_N, sure_N = probabilities_NxC.argmax(axis=1), probabilities_NxC.max(axis=1)
    rows = select(classes_N, sure_N, num_classes=len(labels), threshold=threshold, balance=balance)
    if not len(rows):
        counts = np.bincount(classes_N[sure_N >= threshold], minlength=len(labels)).tolist()
        raise ValueError(
            f"config.self_training.threshold={threshold}: of {len(examples)} texts, the first "
            f"model is that sure of {dict(zip(labels, counts, strict=True))}"
            + ", of which config.self_training.balance accepts none" * (balance and any(counts))
            + "; lower the threshold, set balance=False, or train the first model for longer"
        )
    counts_C = np.bincount(classes_N[rows], minlength=len(labels))
    summary = {
        "texts": len(examples),
        "taken": len(rows),
        "per_class": dict(zip(labels, counts_C.tolist(), strict=True)),
        "expected_accuracy": float(sure_N[rows].mean()),
    }
    if examples.labels_N is not None and len(known := rows[examples.labels_N[rows] >= 0]):
        summary["accuracy"] = float((examples.labels_N[known] == classes_N[known]).mean())
    taken = dataclasses.replace(
        examples.take(rows),
        labels_N=classes_N[rows].astype(np.int32),
        ids_N=train.ids_N.max() + 1 + np.arange(len(rows)),
    )
    return taken, summary


def select(
    classes_N: np.ndarray,
    sure_N: np.ndarray,
    *,
    num_classes: int,
    threshold: float,
    balance: bool,
) -> np.ndarray:
    """Returns the indices, ascending, of the examples whose predicted class becomes their label.

    Args:
        classes_N: predicted.
        sure_N: their probabilities.
        num_classes: C.
        threshold, balance: see `pseudo_labelled`.
    """
    order = np.argsort(-sure_N, kind="stable")
    order = order[sure_N[order] >= threshold]
    if balance:
        by_class = [order[classes_N[order] == c] for c in range(num_classes)]
        count = min(map(len, by_class))
        order = np.concatenate([rows[:count] for rows in by_class])
    return np.sort(order)


def prose(summary: dict[str, Any]) -> str:
    """Describes the accepted labels."""
    counts = ", ".join(f"{count:,} {label}" for label, count in summary["per_class"].items())
    known = f"; {summary['accuracy']:.1%} are correct" if "accuracy" in summary else ""
    return (
        f"Self-training: of {summary['texts']:,} texts, {summary['taken']:,} labels of the first "
        f"model are accepted ({counts}), with a mean probability of "
        f"{summary['expected_accuracy']:.1%}{known}."
    )


def concatenate(first: Examples, second: Examples) -> Examples:
    """Returns both together; a field that is missing in one of them is dropped.

    Raises:
        ValueError: an id is in both.
    """
    if len(shared := np.intersect1d(first.ids_N, second.ids_N)):
        raise ValueError(
            f"{len(shared)} ids are in both sets of examples, the first is {shared[0]}"
        )
    joined = {}
    for field in dataclasses.fields(Examples):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name == "span_labels" or one is None or other is None:
            joined[field.name] = () if field.name == "span_labels" else None
        elif isinstance(one, Ragged):
            splits = np.concatenate([one.splits_N1, one.splits_N1[-1] + other.splits_N1[1:]])
            joined[field.name] = Ragged(np.concatenate([one.values, other.values]), splits)
        elif one.dtype == object:
            joined[field.name] = object_array([*one, *other])
        else:
            joined[field.name] = np.concatenate([one, other])
    return Examples(**joined)
