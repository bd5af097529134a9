"""Forward pass and training step beside PyTorch float32 on this CPU: one encoder, one decoder.

    pip install -e '.[bench]' && python -m benchmarks.models

The encoder has the shape of a Chinese BERT-base (12 layers of width 768, vocabulary of 21,128; 102M
parameters), the decoder is Llama-like of the same size (RMSNorm, SiLU, rotary positions, 3 query
heads for each key/value head). Both classify 8 rows of 128 tokens, without padding, at the first or
last position. Weights are drawn here, written by `write_pretrained` and read by transformers, as
users do, with its default attention (sdpa) and AdamW; dropout is off. The losses of the first three
steps must agree within 1e-3, else nothing is measured. A round has `--steps` training steps of each
side, and three times as many forward passes. Not here: the trainers (trainers.py), the pipeline,
layouts, and memory (throughput.py).
"""

import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.timing import OURS, PYTORCH, Worker
from benchmarks.trainers import Data, Ours, PyTorch
from configs import common
from input_pipeline.batches import layout

KINDS = ("encoder", "decoder")
TOLERANCE = 1e-3  # of the losses of the first steps
_VOCABULARY = 21128
# So low that the losses of the first steps stay away from 0: else comparing them could not fail.
_LEARNING_RATE = 1e-6
_LOWEST_LOSS = 0.05


def model_config(kind: str) -> Any:
    """Returns the shape of BERT-base with a Chinese vocabulary, a Llama of its size, or Gemma's.

    'gemma' is Gemma 3 270M but for the vocabulary, whose frozen table is only looked up.
    """
    from models.bert import BertConfig
    from models.decoder import DecoderConfig
    from models.layers import Rope

    shared = {"vocab_size": _VOCABULARY, "width": 768, "num_layers": 12, "num_heads": 12}
    if kind == "encoder":
        shared |= {"num_distinct_layers": 12, "hidden": 3072, "embedding_size": 768}
        return BertConfig(model_type="bert", max_length=512, **shared)
    if kind == "gemma":
        return DecoderConfig(
            vocab_size=_VOCABULARY,
            width=640,
            num_layers=18,
            num_heads=4,
            num_kv_heads=1,
            head_size=256,
            hidden=2048,
            max_length=32768,
            windows=((512,) * 5 + (0,)) * 3,
            ropes=((Rope(base=1e4),) * 5 + (Rope(base=1e6),)) * 3,
            attention_scale=256**-0.5,
            embedding_scale=640**0.5,
        )
    return DecoderConfig(
        model_type="llama",
        num_kv_heads=4,
        head_size=64,
        hidden=2304,
        max_length=2048,
        windows=(0,) * 12,
        ropes=(Rope(base=10_000.0),) * 12,
        attention_scale=64**-0.5,
        embedding_scale=1.0,
        activation="silu",
        query_key_norm=False,
        post_norms=False,
        **shared,
    )


def write_checkpoint(model: Any, folder: Path) -> ConfigDict:
    """Draws weights, writes them with a vocabulary, and returns a config that trains them."""
    import jax

    from models.backbone import flatten, parameter_shapes, parts_of
    from models.pretrained import write_pretrained
    from training.state import merge

    encoder, rng, params = "pooler" in parts_of(model), np.random.default_rng(0), {}
    for path, leaf in flatten(parameter_shapes(model, ("pooler",) * encoder)).items():
        drawn = rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        params[path] = drawn + 1 if path.endswith("scale") else drawn
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tree = jax.tree.map(np.asarray, merge(params))
    write_pretrained(folder, model, tree, fields=no_dropout if encoder else None)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(5, _VOCABULARY))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    size = sum(value.size for value in params.values())
    print(f"\nA {model.model_type}: {size / 1e6:.1f}M parameters")
    config = common.get_config()
    config.model.update(checkpoint=str(folder), pooling="first" if encoder else "last")
    config.optimizer.learning_rate = _LEARNING_RATE
    return config


def make_batch(
    lengths_B: np.ndarray, shape: tuple[int, int], kind: str = "pad", seed: int = 1
) -> dict[str, np.ndarray]:
    """Returns a training batch of random tokens, laid out in rows of `shape` as `kind` does."""
    rng, count = np.random.default_rng(seed), len(lengths_B)
    tokens_1xP = rng.integers(1, _VOCABULARY, (1, lengths_B.sum())).astype(np.int32)
    rows_B, offsets_B = layout.place(kind, lengths_B, shape)
    starts_B, segments_B = rows_B * shape[1] + offsets_B, np.arange(1, count + 1)
    arrays = layout.fill(tokens_1xP, lengths_B, starts_B, segments_B, size=math.prod(shape))
    names = ("positions_RxL", "segments_RxL", "tokens_RxL")
    return {
        **dict(zip(names, arrays.reshape(3, 1, *shape), strict=True)),
        "types_RxL": np.zeros((1, *shape), np.int32),
        "labels_B": rng.integers(0, 2, (1, count)).astype(np.int32),
        "weights_B": np.ones((1, count), np.float32),
        "ids_B": np.arange(count)[None] + seed * count,
    }


def compare_losses(losses: Mapping[str, Sequence[float]]) -> None:
    """Raises ValueError unless both sides train alike, from losses that can differ."""
    print("Losses of the first steps:", losses)
    if not np.ptp(list(losses.values()), axis=0).max() <= TOLERANCE:
        raise ValueError(f"the losses of the first steps differ, so do the trainings: {losses}")
    if np.min(list(losses.values())) < _LOWEST_LOSS:
        raise ValueError(f"losses near 0 agree whatever is computed: {losses}")


def main() -> None:
    """Measures and prints; a user's mistake ends as one message."""
    options = timing.arguments(
        __doc__, models=",".join(KINDS), rows=8, length=128, rounds=8, steps=2
    )
    timing.show_machine()
    with_pytorch = timing.has_pytorch()
    shape = options.rows, options.length
    data = Data(("0", "1"), batches=[make_batch(np.full(options.rows, options.length), shape)])
    try:
        for kind in options.models.split(","):
            with tempfile.TemporaryDirectory() as folder:
                config = write_checkpoint(model_config(kind), Path(folder))
                config.data.batch_size = options.rows
                workers = [Worker(OURS, Ours, config, data)]
                if with_pytorch:
                    torch = partial(PyTorch, frozen="pooler")
                    first = workers[0].first
                    workers.append(Worker(PYTORCH, torch, config, data, folder, first))
                losses = {w.name: [w.first.loss] for w in workers}
                for worker in [*workers, *workers]:
                    losses[worker.name].append(worker.call("training_step"))
                compare_losses(losses)
                calls = {
                    "forward": (3 * options.steps, "forward"),
                    "training step": (options.steps, "training_step"),
                }
                timing.compare(workers, calls, rounds=options.rounds)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
