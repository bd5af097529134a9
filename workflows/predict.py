"""--mode=predict: a checkpoint's predictions for texts of a file."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evaluation import retrieval
from input_pipeline.batches.mixture import Mixture
from input_pipeline.corpus.preparation import read_unlabelled
from input_pipeline.files import write_array, write_jsonl
from tasks import require, task_class
from training.experiment import build
from workflows import vectors
from workflows.restoring import read_meta, restore


def predict(config: ConfigDict, workdir: Path) -> Path:
    """Writes the predictions for config.predict.input as JSONL, a line per example."""
    if not config.predict.input:
        raise ValueError(
            "--mode=predict needs --config.predict.input=FILE (.txt, .jsonl, .csv, .tsv)"
        )
    corpus = []
    if config.embedding.corpus:
        require(config, "READY", "config.embedding.corpus")
        corpus = vectors.read_corpus(config)
    meta = read_meta(config, workdir)
    path, members = config.predict.input, task_class(config).member_configs(config)
    if members:  # each of them predicts every text
        examples = Mixture({name: read_unlabelled(path, m.data) for name, m in members.items()})
    else:
        examples = read_unlabelled(path, config.data)
    experiment = build(config, workdir, meta["labels"], print)
    restored = restore(experiment, workdir)
    experiment.check(examples, "given", complete=True, labelled=False)
    if empty := sum(not text.strip() for text in examples.texts_N):
        print(
            f"Note: {empty:,} of {len(examples):,} texts are empty: their predictions mean nothing."
        )
    predictions = experiment.predict(restored.params, examples, restored.fitted, complete=True)
    output = Path(config.predict.output or workdir / "predictions.jsonl")
    records = experiment.task.describe(predictions, examples)
    for name, array in (arrays := experiment.task.arrays(predictions)).items():
        write_array(path := output.with_name(f"{output.stem}_{name}.npy"), array)
        print(f"{name.capitalize()} {array.shape}, in the order of the lines, are in {path}")
    if corpus:
        corpus_PxE = vectors.Vectors(experiment, restored).of_corpus(corpus, workdir)
        count = config.embedding.nearest
        found = retrieval.nearest(arrays["vectors"], corpus_PxE, count=count)
        records = _with_nearest(records, corpus, *found)
    write_jsonl(output, records)
    print(f"{len(predictions):,} predictions by {restored.name} are in {output}")
    return output


def _with_nearest(
    records: Iterable[dict[str, Any]],
    corpus: Sequence[str],
    scores_NxK: np.ndarray,
    rows_NxK: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Yields records with the passages that are nearest to each, numbered from 1 on."""
    for record, scores_K, rows_K in zip(records, scores_NxK, rows_NxK, strict=True):
        nearest = [
            {"number": int(row) + 1, "text": corpus[row], "cosine": round(float(score), 6)}
            for score, row in zip(scores_K, rows_K, strict=True)
        ]
        yield record | {"nearest": nearest}
