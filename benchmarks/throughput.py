"""Training speed and memory beside PyTorch: same reviews, weights, batch size and optimiser.

    pip install -e '.[demo,bench]' && python -m benchmarks.throughput --config=configs/reviews.py

Ours is what main.py trains with: the pipeline with its layout, and the compiled train step. PyTorch
is what users write with transformers: AutoModel, a DataLoader that shuffles and pads each batch to
its longest example, AdamW, clip_grad_norm_; in float32 and under bfloat16 autocast. All read the
last position through a head that starts from the label words, and freeze the embeddings. PyTorch
tokenises before the loop (in its time to first step), ours in the pipeline, while it trains; its
checkpoint is first rewritten as the folder that a hub would have of the GGUF file.

Each variant runs in a process of its own, so that its memory and its time to first step are its
own. They take turns, `--steps` steps at a time for `--repeats` rounds, so that a noisy machine is
noisy for all; speeds are medians over the rounds, ratios medians of the rounds' ratios. All start
with the same examples, on which their losses and gradient norms must agree.

A machine without TensorFlow (an accelerator, mostly) trains on batches written elsewhere:

    python -m benchmarks.throughput --config=configs/reviews.py:full --write_batches=batches.npz
    python -m benchmarks.throughput --config=configs/reviews.py:full --batches=batches.npz

There, float32 means TF32 on both sides, which is JAX's default; `--config.model.dtype=bfloat16`
puts ours beside PyTorch's autocast. Not here: the speed of the input pipeline by itself
(input_pipeline.py beside this file).
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # inherited by the variants' processes
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TQDM_DISABLE", "1")  # transformers has a bar for every file

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.table import Table

from benchmarks.trainers import (
    Data,
    First,
    Ours,
    PyTorch,
    Trainer,
    pipeline_batches,
    write_hub_folder,
)

OURS, FLOAT32, BFLOAT16 = "ours", "PyTorch float32", "PyTorch bfloat16 autocast"
TOLERANCE = 1e-2  # of the first loss and, relative, its gradient; seen: 1e-5 and 5e-4
_BFLOAT16_TOLERANCE = 0.1
_PAUSE = 0.5  # seconds in which the threads of the variant before come to rest
_QUIET = 0.5  # load average above which another program is at work

# Dense peaks in TFLOP/s from NVIDIA's data sheets, bfloat16 and TF32; the first match wins.
PEAKS = (
    ("H100 PCIe", 756, 378),
    ("H100 NVL", 835, 417),
    ("H100", 989, 494),
    ("H200", 989, 494),
    ("A100", 312, 156),
    ("L4", 121, 60),
)


@dataclasses.dataclass(frozen=True)
class Block:
    """Some steps of a variant.

    Attributes:
      seconds: wall time.
      lengths: tokens of every example.
      positions: tokens and padding.
      peak_bytes: the most memory the process (on a GPU: its device) ever held.
    """

    seconds: float
    lengths: np.ndarray
    positions: int
    peak_bytes: int

    @property
    def examples_per_second(self) -> float:
        """Speed, the measure that layouts cannot flatter."""
        return len(self.lengths) / self.seconds


def read_data(config: ConfigDict) -> Data:
    """Returns the training split that `config` names; imports TensorFlow."""
    from input_pipeline.corpus.preparation import load_split, prepare

    prepared = prepare(config.data)
    examples = load_split(prepared, "train", limit=config.data.max_train_examples)
    return Data(prepared.labels, examples.texts_N, examples.labels_N, examples.ids_N)


def write_batches(path: Path, config: ConfigDict, count: int) -> None:
    """Writes the first `count` training batches for machines without TensorFlow."""
    from training.experiment import build

    data = read_data(config)
    experiment = build(config, Path(), data.labels, print)
    words = [experiment.tokenizer.piece_ids(word) for word in config.model.label_words]
    meta = {"labels": data.labels, "word_ids": words, "count": count}
    batches = itertools.islice(pipeline_batches(experiment.pipeline, data), count)
    arrays = {
        f"{i}/{name}": part for i, batch in enumerate(batches) for name, part in batch.items()
    }
    np.savez_compressed(path, meta=json.dumps(meta), **arrays)
    print(f"{count} batches of {config.data.batch_size} examples are in {path}")


def read_batches(path: Path, config: ConfigDict) -> Data:
    """Reads what `write_batches` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the batches are of another size than the config's.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"--batches={path}: there is no such file; write it where TensorFlow is installed, "
            f"with --write_batches={path.name}"
        )
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        batches: list[dict[str, np.ndarray]] = [{} for _ in range(meta["count"])]
        for key in file.files:
            if key != "meta":
                number, name = key.split("/")
                batches[int(number)][name] = file[key]
    size = batches[0]["labels_B"].size
    if size != config.data.batch_size:
        raise ValueError(
            f"{path} holds batches of {size} examples, but config.data.batch_size is "
            f"{config.data.batch_size}: pass --config.data.batch_size={size}"
        )
    return Data(tuple(meta["labels"]), batches=batches, word_ids=meta["word_ids"])


def run_block(trainer: Trainer, steps: int) -> Block:
    """Takes `steps` timed steps, and again if a new batch shape was compiled among them."""
    while True:
        before, start = trainer.compilations, time.perf_counter()
        lengths, positions = zip(*(trainer.step() for _ in range(steps)), strict=True)
        trainer.wait()
        seconds = time.perf_counter() - start
        if trainer.compilations == before:
            peak = trainer.peak_bytes() or peak_process_bytes()
            return Block(seconds, np.concatenate(lengths), sum(positions), peak)


def peak_process_bytes() -> int:
    """Returns the most memory this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, which on Linux starts from the parent's peak
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text("utf-8"))[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def work(connection: Connection, variant: str, config: ConfigDict, data: Data, peer: dict) -> None:
    """Runs in a variant's process: sends its First, then a Block for each number received."""
    sys.stdout.reconfigure(line_buffering=True)
    trainer: Trainer = (
        Ours(config, data)
        if variant == OURS
        else PyTorch(config, data, autocast=variant == BFLOAT16, **peer)
    )
    connection.send(trainer.first())
    while steps := connection.recv():
        connection.send(run_block(trainer, steps))


class Worker:
    """A variant in its process."""

    def __init__(self, variant: str, config: ConfigDict, data: Data, peer: dict):
        """Starts it and waits for its first step, then takes an untimed second one."""
        self.variant, self.blocks = variant, []
        context = multiprocessing.get_context("spawn")  # nothing of the parent's memory
        self._connection, other = context.Pipe()
        start = time.perf_counter()
        self.process = context.Process(
            target=work, args=(other, variant, config, data, peer), daemon=True
        )
        self.process.start()
        other.close()
        first = self._receive()
        self.first: First = dataclasses.replace(first, seconds=time.perf_counter() - start)
        self._connection.send(1)
        self._receive()

    def run(self, steps: int) -> Block:
        """Runs a block while every other process waits."""
        time.sleep(_PAUSE)
        self._connection.send(steps)
        self.blocks.append(self._receive())
        return self.blocks[-1]

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self.process.join()
            sys.exit(
                f"Error: {self.variant} ended with exit code {self.process.exitcode}; its message "
                "stands above (-9 is usually a lack of memory)"
            )

    def stop(self) -> None:
        """Ends the process."""
        self._connection.send(0)
        self.process.join()


def measure(config: ConfigDict, data: Data, *, steps: int, repeats: int) -> list[Worker]:
    """Runs all variants that are installed here, ours first; prints as it goes.

    Raises:
      ValueError: the config is not what the PyTorch loop does, or the first steps differ.
    """
    from models.pretrained import resolve

    if (config.model.pooling, config.model.head) != ("last", "label_words"):
        raise ValueError(
            f"config.model has pooling {config.model.pooling!r} and head {config.model.head!r}, "
            "but the PyTorch loop is written for 'last' and 'label_words'"
        )
    workers = [Worker(OURS, config, data, {})]
    first = workers[0].first
    compare_first(OURS, first, first, dtype=config.model.dtype)
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        print(f"No PyTorch rows, for want of {' and '.join(missing)}: pip install -e '.[bench]'")
    else:
        with hub_folder(resolve(config.model.checkpoint)) as folder:
            peer = {"checkpoint": folder, "first_ids": first.ids}
            for variant in (FLOAT32, BFLOAT16):
                workers.append(Worker(variant, config, data, peer))
                compare_first(variant, workers[-1].first, first, dtype=config.model.dtype)
    for number in range(1, repeats + 1):
        speeds = [f"{w.variant} {w.run(steps).examples_per_second:.2f}" for w in workers]
        print(f"round {number}/{repeats}, examples/s: {', '.join(speeds)}")
    for worker in workers:
        worker.stop()
    return workers


@contextlib.contextmanager
def hub_folder(checkpoint: Path) -> Iterator[Path]:
    """Gives a checkpoint as a folder for transformers; one made from a GGUF file is temporary."""
    if checkpoint.is_dir():
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=write_hub_folder, args=(checkpoint, Path(folder)))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"Error: transformers could not read {checkpoint}; its message stands above")
        yield Path(folder)


def compare_first(variant: str, first: First, ours: First, *, dtype: str) -> None:
    """Prints a variant's first step, and raises where it is not the same training as ours."""
    print(
        f"First step of {variant} on {first.device} after {first.seconds:.1f} s: loss "
        f"{first.loss:.5f}, gradient norm {first.gradient_norm:.5g}, on the same "
        f"{len(first.ids)} examples"
    )
    exact = variant != BFLOAT16 and dtype == "float32"
    tolerance = TOLERANCE if exact else _BFLOAT16_TOLERANCE
    differences = (first.loss - ours.loss, first.gradient_norm / ours.gradient_norm - 1)
    if not all(abs(difference) <= tolerance for difference in differences):
        raise ValueError(
            f"the first step of {variant} has loss {first.loss:.5f} and gradient norm "
            f"{first.gradient_norm:.5g}, ours {ours.loss:.5f} and {ours.gradient_norm:.5g}: "
            "they do not train the same model on the same task"
        )


def model_flops(lengths: np.ndarray, model: Mapping[str, Any]) -> float:
    """Returns the operations that training on examples of these lengths needs, without waste.

    6 per parameter of a matrix product and token (2001.08361), and 12 per attention channel, layer
    and pair of tokens of which one sees the other; embeddings are looked up, not multiplied.
    """
    lengths = lengths.astype(np.float64)
    pairs = 0.0
    for window in model["windows"]:
        seen = np.minimum(lengths, window) if window else lengths
        pairs += (seen * (seen + 1) / 2 + (lengths - seen) * seen).sum()
    return 6 * model["matmul_params"] * lengths.sum() + 12 * model["attention_width"] * pairs


def peak_flops(device: str, *, bfloat16: bool) -> float | None:
    """Returns the peak of a device in FLOP/s; None if it is not known."""
    for name, *teraflops in PEAKS:
        if name in device:
            return 1e12 * teraflops[0 if bfloat16 else 1]
    return None


def summarise(worker: Worker, workers: Sequence[Worker], dtype: str) -> dict[str, float | None]:
    """Returns the numbers of a variant's row."""
    blocks, model = worker.blocks, workers[0].first.model
    baseline = [w for w in workers if w.variant == FLOAT32]
    flops = [model_flops(block.lengths, model) / block.seconds for block in blocks]
    bfloat16 = worker.variant == BFLOAT16 or (worker.variant == OURS and dtype == "bfloat16")
    peak = peak_flops(worker.first.device, bfloat16=bfloat16)
    real = sum(int(block.lengths.sum()) for block in blocks)
    return {
        "tokens_per_second": statistics.median(b.lengths.sum() / b.seconds for b in blocks),
        "examples_per_second": statistics.median(b.examples_per_second for b in blocks),
        "padding_share": 1 - real / sum(block.positions for block in blocks),
        "peak_bytes": max(block.peak_bytes for block in blocks),
        "first_step_seconds": worker.first.seconds,
        "flops_per_second": statistics.median(flops),
        "utilisation": statistics.median(flops) / peak if peak else None,
        "ratio": statistics.median(
            ours.examples_per_second / theirs.examples_per_second
            for ours, theirs in zip(blocks, baseline[0].blocks, strict=True)
        )
        if baseline
        else None,
    }


def show(workers: Sequence[Worker], dtype: str) -> None:
    """Prints the table."""
    table = Table(title="Training on the same reviews, weights, batch size and optimiser")
    for column in (
        "",
        "real tokens/s",
        "examples/s",
        "x PyTorch float32",
        "padding",
        "peak memory",
        "first step after",
        "model GFLOP/s",
        "utilisation",
    ):
        table.add_column(column, justify="right" if column else "left")
    for worker in workers:
        row = summarise(worker, workers, dtype)
        table.add_row(
            f"{OURS} {dtype}" if worker.variant == OURS else worker.variant,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['examples_per_second']:.2f}",
            f"{row['ratio']:.2f}" if row["ratio"] else "-",
            f"{row['padding_share']:.1%}",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
            f"{row['first_step_seconds']:.1f} s",
            f"{row['flops_per_second'] / 1e9:,.0f}",
            f"{row['utilisation']:.1%}" if row["utilisation"] else "-",
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for device in sorted({worker.first.device for worker in workers}):
        if peak_flops(device, bfloat16=True) is None:
            print(f"No peak is known for the device {device!r}, hence no model FLOPs utilisation.")


def main(argv: Sequence[str]) -> None:
    """Measures and prints; a user's mistake ends as one message."""
    logging.set_verbosity(logging.ERROR)
    config = flags.FLAGS.config
    config.schedule.name = "constant"  # see Ours
    steps, repeats = flags.FLAGS.steps, flags.FLAGS.repeats
    try:
        if flags.FLAGS.write_batches:
            write_batches(Path(flags.FLAGS.write_batches), config, steps * repeats + 2)
            return
        file = flags.FLAGS.batches
        if not file and not importlib.util.find_spec("tensorflow"):
            raise ValueError("without TensorFlow, pass --batches=FILE from --write_batches=FILE")
        data = read_batches(Path(file), config) if file else read_data(config)
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} cores, load average {load:.1f}")
        if load > _QUIET:
            print(
                "Other programs are at work: PyTorch was seen to suffer more from that than ours, "
                "so that the ratios flatter us. Measure again without them."
            )
        show(measure(config, data, steps=steps, repeats=repeats), config.model.dtype)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":  # the variants' processes import this file, without flags
    config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/reviews.py.")
    flags.DEFINE_integer("steps", 4, "Optimiser steps a variant takes before the next takes its.")
    flags.DEFINE_integer("repeats", 6, "Rounds.")
    flags.DEFINE_string("batches", "", "Train on the batches in this .npz file.")
    flags.DEFINE_string("write_batches", "", "Write batches to this .npz file, and end.")
    flags.mark_flag_as_required("config")
    app.run(main)
