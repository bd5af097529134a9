"""The teacher of a run: another run's model, or probabilities from a file.

Not here: their parts of the loss (training/tuning/regularizers.py, tasks/teaching.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.corpus.json_files import object_rows
from input_pipeline.examples import Examples
from tasks import require, task_class
from training.experiment import Experiment, build
from training.tuning.regularizers import Teacher
from workflows.restoring import final, open_checkpoints, read_config, restore

_SLACK = 1e-3  # of sums and of copies: the probabilities are rounded
_SAME = ("task", "data.template", "data.normalization", "embedding.passage_template")
_SAME += ("classification.kind", "model.label_words", "tagging.head", "tagging.slots")
_SAME += ("tagging.characters", "tokenizer.marks")


def check(config: ConfigDict) -> None:
    """Raises where config.teach names two teachers, one that is not there, or one without use."""
    teach = config.teach
    if teach.targets and teach.run:
        raise ValueError("config.teach.run and config.teach.targets are two teachers: keep one")
    if teach.targets:
        require(config, "TEACHABLE", "config.teach.targets")
    if teach.targets and not Path(teach.targets).is_file():
        raise FileNotFoundError(
            f"config.teach.targets: there is no file {Path(teach.targets).absolute()}; the "
            "teacher's run writes it with config.integrate.targets, or --mode=predict"
        )
    if teach.run:
        read_config(Path(teach.run))


def load(experiment: Experiment, labels: Any, *, read: bool = True) -> None:
    """Gives the experiment the model of config.teach.run, without dropout, if that is set.

    It is the integrated model of that run, else its best checkpoint, and reads the batches of this
    run, so that it must tokenise them alike. With `read` False its parameters are shapes.

    Raises:
        ValueError: it has another task, labels or tokeniser, or needs more than the batches hold.
    """
    config = experiment.config
    if not config.teach.run:
        return
    folder = Path(config.teach.run)
    its = read_config(folder)
    for side in (its, *its.multi.members.values()):
        side.model.update(hidden_dropout=0.0, attention_dropout=0.0, dropout=0.0, dropout_samples=1)
        side.tagging.dropout = 0.0
    its.model.update(dtype=config.model.dtype, attention=config.model.attention)
    its.model.head_start = "random"  # its weights come with the others
    its.sharding = config.sharding
    theirs, ours = (task_class(side).member_configs(side) for side in (its, config))
    sides = {f"multi.members.{n}.": (theirs[n], ours[n]) for n in theirs if n in ours}
    problems = [
        f"{prefix}{key} is {before!r} there and {now!r} here"
        for prefix, both in ({"": (its, config)} | sides).items()
        for key, before, now in ((k, *(_value(side, k) for side in both)) for k in _SAME)
        if before != now
    ]
    for name, one in (("there", its), ("here", config)):
        if one.adapt.kind == "prompt" or one.features.use != "none":
            problems.append(f"{name} the model reads a trained prompt or features")
    name = final(folder)
    checkpoints, step = open_checkpoints(folder, name)
    known = checkpoints.meta(step)["labels"]
    checkpoints.close()
    if known != labels:
        problems.append(f"the labels are {known} there and {labels} here")
    if not problems:
        other = build(its, folder, labels, lambda line: None, read=read)
        if other.fingerprints["tokenizer"] != experiment.fingerprints["tokenizer"]:
            problems.append("the tokenisers differ, which must cut the texts alike")
        vectors = experiment.task.READY  # which are compared as they are
        if vectors and other.model.config.width != experiment.model.config.width:
            problems.append(
                f"vectors have {other.model.config.width} dimensions there and "
                f"{experiment.model.config.width} here"
            )
    if problems:
        raise ValueError(
            f"config.teach.run: the model of {folder} cannot teach this one: {'; '.join(problems)}"
        )
    params = {**other.frozen, **other.initial}
    if read:
        restored = restore(other, folder, name)
        name, params = restored.name, {**other.frozen, **restored.params}
    shared = _shared(other.frozen, experiment) if read else ()
    own = {path: leaf for path, leaf in params.items() if path not in shared}
    experiment.teacher = Teacher(own, tuple(params), other.passes(), config.teach.share)
    experiment.fingerprints["teacher"] = f"{other.fingerprints['pretrained']}, {name}"
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    experiment.say(
        f"Teacher: the {name} of {folder}, {other.num_layers} layers, {count:,} "
        f"parameters; its share of the loss is {config.teach.share:g}."
    )


def _shared(frozen: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """Returns the paths of frozen parameters that are the experiment's own too."""
    alike = jax.jit(lambda a, b: jax.tree.reduce(jnp.logical_and, jax.tree.map(_equal, a, b)))
    pairs = {path: (leaf, experiment.frozen.get(path)) for path, leaf in frozen.items()}
    return [
        path
        for path, pair in pairs.items()
        if len({str(jax.tree.map(lambda x: (x.shape, x.dtype), leaf)) for leaf in pair}) == 1
        and alike(*pair)
    ]


def _equal(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.all(one == other)


def _value(config: ConfigDict, key: str) -> Any:
    """Returns the value at a dotted key, None where an older config lacks it."""
    for part in key.split("."):
        config = config.get(part) if config is not None else None
    return config


def with_targets(config: ConfigDict, examples: Examples, labels: Sequence[str]) -> Examples:
    """Returns the training examples with the probabilities of config.teach.targets, if it is set.

    They are joined by text and pair, or by id where the file has no texts; of embeddings, scores
    by query and passage. Says how many examples have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a task that has no use for it, other labels than the run's, what is no
            probability, or none for any of the examples.
    """
    check(config)
    if not (path := config.teach.targets):
        return examples
    if task_class(config).READY:
        known, teacher_NxC = _scores(Path(path), examples)
        finite_NxC, kind = np.isfinite(teacher_NxC), "scores"
        taught_N = finite_NxC[:, 0] & (finite_NxC.sum(axis=1) > 1)
    else:
        known = _read(Path(path), labels, several=task_class(config).AVERAGE != "softmax")
        pairs_N = [""] * len(examples) if examples.pairs_N is None else examples.pairs_N
        none_C, teacher_NxC = np.full(len(labels), np.nan), []
        for id_, text, pair in zip(examples.ids_N, examples.texts_N, pairs_N, strict=True):
            teacher_NxC.append(known.get((text, pair), known.get(int(id_), none_C)))
        taught_N, kind = np.isfinite(teacher_NxC).all(axis=1), "probabilities"
    examples = dataclasses.replace(examples, teacher_NxC=np.array(teacher_NxC, np.float32))
    if not taught_N.any():
        raise ValueError(
            f"config.teach.targets: none of the {len(examples):,} training examples is among the "
            f"{len(known):,} of {path}: have the teacher predict the texts of this config.data"
        )
    unlabelled = 0 if examples.labels_N is None else int((examples.labels_N[taught_N] < 0).sum())
    print(
        f"Teacher: {path} has {kind} of {int(taught_N.sum()):,} of {len(examples):,} "
        f"training examples, {unlabelled:,} of them without a label; "
        f"{int((~taught_N).sum()):,} have none and learn from labels alone. Its share of the loss "
        f"is {config.teach.share:g}, at temperature {config.teach.temperature:g}."
    )
    return examples


def _read(path: Path, labels: Sequence[str], *, several: bool) -> dict[Any, np.ndarray]:
    """Returns the probabilities [C] by (text, pair), or by id where a row has no text.

    Args:
        path: JSONL of what Task.describe yields.
        labels: of the run.
        several: whether the probabilities of an example need not sum to one.
    """
    known: dict[Any, np.ndarray] = {}
    for line, row in object_rows(path, "utf-8", "jsonl"):
        place, given = f"{path}:{line}", row.get("probabilities")
        if not isinstance(given, Mapping) or not ("text" in row or "id" in row):
            raise ValueError(
                f"{place}: expected 'probabilities' by label, and 'text' or 'id', found the keys "
                f"{list(row)}: write it with config.integrate.targets, or --mode=predict"
            )
        if list(given) != list(labels):
            raise ValueError(
                f"{place}: the teacher has the labels {list(given)}, this run has {list(labels)}: "
                "set config.data.labels of both to the same, in one order"
            )
        try:
            values_C = np.array(list(given.values()), np.float64)
        except (TypeError, ValueError):
            values_C = np.full(len(labels), np.nan)
        total = 1.0 if several else values_C.sum()
        # Not `or`: a NaN must fail too.
        if not ((values_C >= 0).all() and (values_C <= 1).all() and abs(total - 1) <= _SLACK):
            what = "numbers from 0 to 1" + " that sum to 1" * (not several)
            raise ValueError(f"{place}: found the probabilities {given}, expected {what}")
        key = (row["text"], row.get("pair", "")) if "text" in row else row["id"]
        if np.abs(known.setdefault(key, values_C) - values_C).max() > _SLACK:
            raise ValueError(
                f"{place}: {key!r} has other probabilities than in a line before: keep one of them"
            )
    return known


def _scores(path: Path, examples: Examples) -> tuple[dict[tuple[str, str], float], np.ndarray]:
    """Returns the scores of a file by query and passage, and those of each example's passage and
    negatives [N, 1 + most negatives], NaN where there are none.

    Args:
        path: JSONL of {"query": .., "pos": [..], "pos_scores": [..], "neg": [..], "neg_scores":
            [..]}, as --mode=mine writes it with config.mine.reranker.
        examples: to join them to.
    """
    known: dict[tuple[str, str], float] = {}
    for line, row in object_rows(path, "utf-8", "jsonl"):
        for side in ("pos", "neg") if row.get("neg") else ():
            texts, scores = row.get(side), row.get(f"{side}_scores")
            fits = isinstance(texts, list) and isinstance(scores, list)
            numbers = fits and all(isinstance(s, int | float) and np.isfinite(s) for s in scores)
            if not numbers or len(texts) != len(scores):
                raise ValueError(
                    f"{path}:{line}: expected {side!r} and '{side}_scores', lists of one length: "
                    "write them by --mode=mine with config.mine.reranker"
                )
            known |= {(row.get("query"), text): s for text, s in zip(texts, scores, strict=True)}
    others_N = [()] * len(examples) if examples.negatives_N is None else examples.negatives_N
    scores_NxP = np.full((len(examples), 1 + max(map(len, others_N))), np.nan, np.float32)
    rows = zip(examples.texts_N, examples.pairs_N, others_N, strict=True)
    for row, (text, pair, others) in enumerate(rows):
        scores = [known.get((text, passage), np.nan) for passage in (pair, *others)]
        scores_NxP[row, : len(scores)] = scores
    return known, scores_NxP
