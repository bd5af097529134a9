"""Training speed on one accelerator in one go: fused attention, plain attention, and PyTorch.

    pip install -e '.[cuda,bench]' && python -m benchmarks.accelerator

An encoder of BERT-base's shape takes rows of 128, 256 and 512 tokens without padding. Then it and a
decoder of Gemma 3 270M's shape take examples as long as the reviews (log-normal, median 52 and mean
74 tokens, at most 256): packed in rows of 384 tokens, and a row for each. Weights and tokens are
drawn here: neither TensorFlow nor a download is needed. Both sides compute in bfloat16, with AdamW
and frozen token embeddings; PyTorch by autocast, with its default attention (sdpa), which gets a
mask where rows are packed. The first steps must agree (throughput.py). MFU counts the operations
that the real tokens need, or those of all positions. `--size=tiny` tries it on a CPU.
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import models, throughput, timing
from benchmarks.timing import OURS, Worker
from benchmarks.trainers import Data, Ours, PyTorch
from input_pipeline.batches.layout import pack_rows

ROW, LONGEST = 384, 256  # of packed rows and of examples, tokens
_BATCHES = 4


def cases(kind: str, lengths: list[int], tokens: int) -> Iterator[tuple[str, str, list]]:
    """Yields the name, layout and batches of each case, of about so many real tokens a step."""
    for length in lengths if kind == "encoder" else ():
        rows = max(1, tokens // length)
        batch = models.make_batch(np.full(rows, length), (rows, length))
        yield f"rows of {length}", "pad", [batch]
    rng, count = np.random.default_rng(0), max(2, tokens // 74)
    drawn = rng.lognormal(np.log(52), 0.84, (_BATCHES, count))
    drawn = np.clip(drawn, 4, LONGEST).astype(np.int64)
    rows = max(pack_rows(lengths_B, ROW)[0].max() for lengths_B in drawn) + 1
    for layout, shape in {"pack": (rows, ROW), "pad": (count, LONGEST)}.items():
        yield (
            f"reviews, {layout}",
            layout,
            [models.make_batch(lengths_B, shape, layout, i) for i, lengths_B in enumerate(drawn)],
        )


def shrink(model: Any) -> Any:
    """Returns a model of the same kind for a try."""
    sizes = {"num_layers": 2, "width": 64, "num_heads": 2, "hidden": 128}
    if hasattr(model, "head_size"):
        sizes |= {"head_size": 32, "embedding_scale": 8.0}
        layers = {"windows": model.windows[4:6], "ropes": model.ropes[4:6]}
        return dataclasses.replace(model, **sizes, **layers)
    return dataclasses.replace(model, **sizes, num_distinct_layers=2, embedding_size=64)


def compare(folder: Path, config: Any, batches: list, layout: str, options: Any) -> None:
    """Measures ours with the kernel and plain, and PyTorch, and prints the table."""
    data, workers = Data(("0", "1"), batches=batches), []
    config.data.batch_size = batches[0]["labels_B"].size

    def start(name: str, make: Any, *args: Any) -> None:
        worker = Worker(name, make, *args)
        workers.append(worker)
        throughput.compare_first(name, worker.first, workers[0].first, dtype="bfloat16")
        worker.call("training_step")  # untimed

    for wanted in ("auto", "plain"):
        config.model.attention = wanted
        start(f"{OURS}, attention {wanted}", Ours, config, data)
        used = workers[-1].first.model["attention"]
        workers[-1].name = f"{OURS}, {used} attention"
        if used == "plain":
            break  # the second would be the same
    if timing.has_pytorch():
        frozen = "embed_tokens|word_embeddings|pooler"
        peer = partial(PyTorch, frozen=frozen, autocast=True, packed=layout == "pack")
        start(throughput.BFLOAT16, peer, config, data, folder, workers[0].first)
    steps = {worker.name: partial(worker.call, "block", options.steps) for worker in workers}
    blocks = timing.take_turns(steps, options.rounds)
    for worker in workers:
        worker.stop()
    throughput.show(workers, blocks, "bfloat16")


def main() -> None:
    """Measures and prints; a user's mistake ends as one message."""
    options = timing.arguments(
        __doc__, size="full", lengths="128,256,512", tokens=16384, rounds=5, steps=20
    )
    timing.show_machine()
    try:
        for kind in ("encoder", "gemma"):
            with tempfile.TemporaryDirectory() as folder:
                model = models.model_config(kind)
                model = shrink(model) if options.size == "tiny" else model
                config = models.write_checkpoint(model, Path(folder))
                config.model.dtype = "bfloat16"
                config.optimizer.lr_table = (("backbone/embedder/.*", None), (".*", 1.0))
                lengths = list(map(int, options.lengths.split(",")))
                for name, layout, batches in cases(kind, lengths, options.tokens):
                    print(f"\n{kind}, {name}", flush=True)
                    compare(Path(folder), config, batches, layout, options)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
