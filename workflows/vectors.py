"""Texts to vectors by an embedding run, and a corpus's vectors, kept beside the run."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation import retrieval
from input_pipeline.corpus.preparation import read_unlabelled
from input_pipeline.examples import Examples, object_array
from input_pipeline.files import remove, write_array, write_json
from training.experiment import Experiment, make_pipeline
from training.sharding import own_shards
from workflows.restoring import Restored


class Vectors:
    """Encodes texts by a checkpoint of an embedding run; a program serves all calls."""

    def __init__(self, experiment: Experiment, restored: Restored):
        """Builds the experiment of single texts."""
        self.experiment, self.restored = experiment, restored
        self._single = alone(experiment, passages=False)
        both = {"query": self._single, "passage": alone(experiment, passages=True)}
        self._sides = {side: (single.task, single.pipeline) for side, single in both.items()}

    def __call__(self, texts: Sequence[str], side: str) -> np.ndarray:
        """Returns normalised vectors, float32 [N, E], in the order of the texts, each a 'query' or
        a 'passage'; says how many are cut."""
        single, count = self._single, len(texts)
        single.task, single.pipeline = self._sides[side]
        examples = Examples(object_array(texts), None, np.arange(count, dtype=np.int64))
        single.check(examples, side, labelled=False)
        predictions = single.predict(self.restored.params, examples, self.restored.fitted)
        return retrieval.normalised(predictions["vectors_NxKxE"][:, 0])

    def of_corpus(self, texts: Sequence[str], workdir: Path) -> np.ndarray:
        """Returns the vectors of a corpus; those in `workdir` of the same texts, template and
        weights are read."""
        config = self.experiment.config
        facts = {
            "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            "template": self.experiment.task.templates(config.data.template)[1],
            "max_length": config.layout.max_length,
            "pooling": config.model.pooling,
            "attention": "both sides" if config.model.bidirectional else "as pretrained",
            "dtype": config.model.dtype,
            "marks": config.tokenizer.marks,
            "tokenizer": self.experiment.fingerprints["tokenizer"],
            "weights": self._weights(),
        }
        path, about = workdir / "corpus.npy", workdir / "corpus.json"
        if about.exists() and path.exists():
            stored = json.loads(about.read_text(encoding="utf-8"))
            if stored == facts:
                print(f"The vectors of the corpus are read from {path}.")
                return np.load(path, mmap_mode="r")
            changed = [name for name, value in facts.items() if stored.get(name) != value]
            print(f"{path} is of other {' and '.join(changed)}: its vectors are made again.")
        vectors_NxE = self(texts, "passage")
        remove(about)
        write_array(path, vectors_NxE)
        write_json(about, facts)
        return vectors_NxE

    def _weights(self) -> str:
        """Returns a digest of the norms of all parameters, which any training changes."""
        params = {**self.experiment.frozen, **self.restored.params}
        norms = jax.jit(lambda params: jax.tree.map(lambda p: jnp.sum(jnp.square(p * 1.0)), params))
        values = {path: float(value) for path, value in sorted(norms(params).items())}
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def alone(experiment: Experiment, *, passages: bool) -> Experiment:
    """Returns the experiment of single texts, which are passages or queries."""
    task, mesh = experiment.task.alone(passages=passages), experiment.mesh
    split = {"row_multiple": mesh.shape["data"], "shards": own_shards(mesh)}
    pipeline = make_pipeline(experiment.config, task, **split)
    model = experiment.model.clone(task_head=task.head(num_features=0))
    return dataclasses.replace(experiment, task=task, model=model, pipeline=pipeline)


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
