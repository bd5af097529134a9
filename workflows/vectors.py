"""Texts to vectors by an embedding run, and a corpus's vectors, kept beside the run."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from evaluation import retrieval
from input_pipeline.corpus.preparation import read_unlabelled
from input_pipeline.examples import Examples, object_array
from input_pipeline.files import remove, write_array, write_json
from training.experiment import Experiment, make_pipeline
from training.sharding import own_shards
from workflows.restoring import Restored


def encode(
    experiment: Experiment, restored: Restored, texts: Sequence[str], *, passages: bool = True
) -> np.ndarray:
    """Returns normalised vectors of passages, or of queries, float32 [N, E], in their order."""
    task = experiment.task.alone(passages=passages)
    examples = Examples(object_array(texts), None, np.arange(len(texts), dtype=np.int64))
    single = dataclasses.replace(
        experiment,
        task=task,
        model=experiment.model.clone(task_head=task.head(num_features=0)),
        pipeline=make_pipeline(
            experiment.config,
            task,
            row_multiple=experiment.mesh.shape["data"],
            shards=own_shards(experiment.mesh),
        ),
    )
    predictions = single.predict(restored.params, examples, restored.fitted)
    return retrieval.normalised(predictions["vectors_NxKxE"][:, 0])


def read_corpus(config: ConfigDict) -> list[str]:
    """Returns the passages of config.embedding.corpus: .txt, or the column 'text' of another file.

    Raises:
        ValueError: one of them is empty, or the file has none.
    """
    data = copy.deepcopy(config.data)
    data.update(text_column="text", format="")
    for key in ("pair_column", "negatives_column", "id_column", "label_column", "group_column"):
        data[key] = ""
    texts = list(read_unlabelled(config.embedding.corpus, data).texts_N)
    if empty := sum(not text for text in texts):
        raise ValueError(
            f"{config.embedding.corpus}: {empty:,} of {len(texts):,} passages are empty: give them "
            "a text, or remove them"
        )
    return texts


def corpus_vectors(
    experiment: Experiment, restored: Restored, texts: Sequence[str], workdir: Path
) -> np.ndarray:
    """Returns the vectors of a corpus; those of the same texts, template and weights are read."""
    config, passages = experiment.config, "\0".join(texts)
    template = config.embedding.passage_template or config.data.template
    facts = {
        "texts": hashlib.sha256(passages.encode()).hexdigest(),
        "template": template,
        "max_length": config.layout.max_length,
        "checkpoint": restored.name,
        "weights": restored.meta["fingerprints"],
    }
    path, about = workdir / "corpus.npy", workdir / "corpus.json"
    if about.exists() and path.exists():
        stored = json.loads(about.read_text(encoding="utf-8"))
        if stored == facts:
            print(f"The vectors of the corpus are read from {path}.")
            return np.load(path, mmap_mode="r")
        changed = [name for name, value in facts.items() if stored.get(name) != value]
        print(f"{path} is of other {' and '.join(changed)}: its vectors are made again.")
    vectors_NxE = encode(experiment, restored, texts)
    remove(about)
    write_array(path, vectors_NxE)
    write_json(about, facts)
    return vectors_NxE
