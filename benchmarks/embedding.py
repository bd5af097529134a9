"""Embedding models beside sentence-transformers: the same folder, texts, batches and optimiser.

    pip install -e '.[demo,bench]'
    python main.py --config=configs/embedding.py --workdir=runs/embedding --mode=export \\
        --config.data.files=train_rank_1w.json --config.export.formats='("huggingface",)'
    python -m benchmarks.embedding --folder=runs/embedding/export/huggingface \\
        --triples=train_rank_1w.json

Encoding is texts in, normalised vectors out, with tokenisation: ours as --mode=predict does,
theirs `SentenceTransformer.encode` with its default batch size. Training is a step on triples,
queries and titles read from the file: ours the pipeline and the compiled step, theirs
MultipleNegativesRankingLoss, AdamW and clip_grad_norm_ on the collated texts, as its trainer does
in its loop, without the trainer's logging. Word embeddings are frozen on both sides. bfloat16 is
autocast on theirs. Both sides run in processes of their own and take turns.
"""

import itertools
import json
import os
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.timing import Side, Worker

_TYPES = ("float32", "bfloat16")
_WARM = 20  # steps before those that are measured: every shape is compiled
_CLIP, _RATE, _SCALE, _LENGTH = 1.0, 2e-5, 20.0, 64


class Ours(Side):
    """This codebase."""

    def __init__(self, folder: str, triples: list[list[str]], dtype: str, batch: int):
        """Builds the experiment on the folder and the train step."""
        import jax
        import jax.numpy as jnp

        from configs import common
        from input_pipeline.examples import Examples, object_array
        from training.compilation import PerShape, keep_memory
        from training.experiment import build
        from training.sharding import put_batch
        from training.state import TrainState
        from training.train_step import make_train_step
        from training.tuning.optimizers import make_optimizer
        from training.tuning.regularizers import Regularizers
        from workflows import vectors
        from workflows.restoring import Restored

        keep_memory()
        config = common.get_config()
        config.task, config.data.batch_size = "embedding", batch
        config.model.update(checkpoint=folder, pooling="auto", dtype=dtype)
        config.layout.update(max_length=_LENGTH, row_length=128)
        config.optimizer.lr_table = (("backbone/embedder/.*", None), (".*", 1.0))
        config.optimizer.clip_norm = _CLIP
        self._experiment = experiment = build(config, Path(), [], lambda line: None)
        queries, passages, negatives = map(object_array, zip(*triples, strict=True))
        examples = Examples(
            queries,
            None,
            np.arange(len(queries), dtype=np.int64),
            pairs_N=passages,
            negatives_N=object_array([(text,) for text in negatives]),
        )
        optimizer = make_optimizer(config.optimizer, experiment.factors)
        step = make_train_step(
            Regularizers(config.regularize, experiment.passes(), seed=0),
            optimizer,
            learning_rate=_RATE,
            schedule=lambda seen: dict.fromkeys(experiment.factors, jnp.float32(1)),
            batch_size=batch,
        )
        self._step = PerShape(step, "the train step", lambda line: None, donate=(0,))
        zero, params = jnp.int32(0), experiment.put(experiment.initial)
        state = TrainState(zero, zero + 0, params, jax.jit(optimizer.init)(params))
        self._batches = experiment.pipeline.train(examples, first_example=0)
        restored = Restored(experiment.put(experiment.initial), {"fitted": {}}, "", 0)
        self._vectors = vectors.Vectors(experiment, restored)
        self._state, self._put, self._jax = state, put_batch, jax

    def begin(self) -> None:
        """Nothing is measured yet."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """Returns vectors of queries."""
        return self._vectors(texts, "query")

    def train(self, steps: int) -> None:
        """Takes steps and waits for them."""
        for _ in range(steps):
            batch = self._put(next(self._batches), self._experiment.mesh)
            self._state, self._metrics = self._step(self._state, self._experiment.frozen, batch)
        self._jax.block_until_ready(self._metrics)


class Theirs(Side):
    """sentence-transformers."""

    def __init__(self, folder: str, triples: list[list[str]], dtype: str, batch: int):
        """Loads the folder."""
        import torch
        from sentence_transformers import SentenceTransformer, losses

        torch.set_num_threads(os.cpu_count() or 1)
        self._torch, self._autocast = torch, dtype == "bfloat16"
        self._model = model = SentenceTransformer(folder, device="cpu")
        model.max_seq_length = _LENGTH
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("word_embeddings" not in name and "pooler" not in name)
        self._loss = losses.MultipleNegativesRankingLoss(model, scale=_SCALE)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=_RATE)
        prompt = model.prompts.get("query", "")
        self._batches = self._shuffled([[prompt + text for text in row] for row in triples], batch)

    def _shuffled(self, triples: list[list[str]], batch: int) -> Iterator[list[dict[str, Any]]]:
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(len(triples))
            for first in range(0, len(order) - batch + 1, batch):
                rows = [triples[i] for i in order[first : first + batch]]
                yield [self._model.preprocess(list(texts)) for texts in zip(*rows, strict=True)]

    def begin(self) -> None:
        """Nothing is measured yet."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """Returns vectors of queries."""
        with self._torch.autocast("cpu", self._torch.bfloat16, enabled=self._autocast):
            return self._model.encode(
                texts, prompt_name="query", normalize_embeddings=True, show_progress_bar=False
            )

    def train(self, steps: int) -> None:
        """Takes steps."""
        self._model.train()
        for batch in itertools.islice(self._batches, steps):
            with self._torch.autocast("cpu", self._torch.bfloat16, enabled=self._autocast):
                loss = self._loss(batch, None)
            loss.backward()
            self._torch.nn.utils.clip_grad_norm_(self._trained, _CLIP)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self._model.eval()


def main() -> None:
    """Prints both tables."""
    options = timing.arguments(
        __doc__, folder="", triples="", texts=1000, batch=64, steps=4, rounds=7
    )
    timing.show_machine()
    lines = Path(options.triples).read_text(encoding="utf-8").splitlines()
    triples = [list(json.loads(line).values())[:3] for line in lines[:4000]]
    texts = [row[0] for row in triples[: options.texts]]
    rows = []
    for dtype in _TYPES:
        args = options.folder, triples, dtype, options.batch
        workers = [Worker("ours", Ours, *args), Worker("sentence-transformers", Theirs, *args)]
        vectors = [worker.call("encode", texts) for worker in workers]
        apart = float(np.abs(vectors[0] - vectors[1]).max())
        print(f"{dtype}: the vectors of {len(texts)} texts differ by at most {apart:.1e}")
        for worker in workers:
            worker.call("train", _WARM)
        for what, count, call in (
            ("encoding, texts/s", len(texts), ("encode", texts)),
            ("training, triples/s", options.steps * options.batch, ("train", options.steps)),
        ):
            measures = {w.name: partial(w.call, "seconds", 1, *call) for w in workers}
            seconds = timing.take_turns(measures, options.rounds)
            ours, theirs = seconds.values()
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            low, middle, high = np.percentile(ratios, (25, 50, 75))
            speeds = [f"{count / statistics.median(side):,.0f}" for side in (ours, theirs)]
            rows.append((f"{what}, {dtype}", *speeds, f"{middle:.2f}", f"{low:.2f} to {high:.2f}"))
        for worker in workers:
            worker.stop()
    timing.show_table(("", "ours", "sentence-transformers", "ratio", "quartiles"), rows)


if __name__ == "__main__":
    main()
