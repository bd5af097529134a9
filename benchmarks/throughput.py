"""Training speed and memory beside PyTorch: same reviews, weights, batch size and optimiser.

    pip install -e '.[demo,bench]'
    python -m benchmarks.throughput --config=configs/reviews_decoder.py

Ours is what main.py trains with: the pipeline with its layout, and the compiled train step. PyTorch
is what users write with transformers: AutoModel, a DataLoader that shuffles and pads each batch to
its longest example, AdamW, clip_grad_norm_; in float32 and under bfloat16 autocast. All pool the
last position or the mean, start from ours' head, and freeze the embeddings. PyTorch tokenises
before the loop (in its time to first step), ours in the pipeline, while it trains; its checkpoint
is first rewritten as the folder that a hub would have of a package's file.

Each variant runs in a process of its own, which gives its memory and its time to first step. They
take turns, `--steps` steps at a time for `--repeats` rounds. All start with the same examples, on
which their losses and gradient norms must agree.

A machine without TensorFlow (an accelerator, mostly), and PyTorch with multilingual-e5-small, of
which no tokeniser file is written, train on batches written before:

    recipe=configs/reviews_decoder.py:full  # or configs/reviews.py
    python -m benchmarks.throughput --config=$recipe --write_batches=batches.npz
    python -m benchmarks.throughput --config=$recipe --batches=batches.npz

There, float32 means TF32 on both sides, which is JAX's default; `--config.model.dtype=bfloat16`
puts ours beside PyTorch's autocast. Not here: the speed of the input pipeline by itself
(input_pipeline.py beside this file).
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # inherited by the variants' processes
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TQDM_DISABLE", "1")  # transformers has a bar for every file

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from benchmarks import timing
from benchmarks.timing import OURS, PYTORCH, Worker
from benchmarks.trainers import Block, Data, First, Ours, PyTorch

BFLOAT16 = "PyTorch bfloat16 autocast"
TOLERANCE = 1e-2  # of the first loss and, relative, its gradient; seen: 1e-5 and 5e-4
_BFLOAT16_TOLERANCE = 0.1


def read_data(config: ConfigDict) -> Data:
    """Returns the training split that `config` names; imports TensorFlow."""
    from input_pipeline.corpus.preparation import load_split, prepare

    prepared = prepare(config.data)
    limit = config.data.max_train_examples
    return Data(prepared.labels, load_split(prepared, "train", limit=limit))


def write_batches(path: Path, config: ConfigDict, count: int) -> None:
    """Writes the first `count` training batches for machines without TensorFlow."""
    from training.experiment import build

    data = read_data(config)
    experiment = build(config, Path(), data.labels, print)
    batches = list(
        itertools.islice(experiment.pipeline.train(data.examples, first_example=0), count)
    )
    arrays = {
        f"{i}/{name}": part for i, batch in enumerate(batches) for name, part in batch.items()
    }
    np.savez_compressed(path, labels=np.array(data.labels), **arrays)
    print(f"{count} batches of {config.data.batch_size} examples are in {path}")


def read_batches(path: Path, config: ConfigDict) -> Data:
    """Reads what `write_batches` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the batches are of another size than the config's.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"--batches={path}: no such file; write it where TensorFlow is installed, with "
            f"--write_batches={path.name}"
        )
    with np.load(path) as file:
        labels, batches = tuple(file["labels"].tolist()), collections.defaultdict(dict)
        for key in set(file.files) - {"labels"}:
            number, name = key.split("/")
            batches[int(number)][name] = file[key]
    size = batches[0]["labels_B"].size
    if size != config.data.batch_size:
        raise ValueError(
            f"{path} holds batches of {size} examples, but config.data.batch_size is "
            f"{config.data.batch_size}: pass --config.data.batch_size={size}"
        )
    return Data(labels, batches=[batches[number] for number in sorted(batches)])


def measure(
    config: ConfigDict, data: Data, *, steps: int, repeats: int
) -> tuple[list[Worker], dict[str, list[Block]]]:
    """Runs all variants that are installed here, ours first; returns their workers and blocks.

    Raises:
      ValueError: the config is not what the PyTorch loop does, or the first steps differ.
    """
    from models.pretrained import resolve
    from training.compilation import resolve_dtype

    if config.model.pooling not in ("last", "mean"):
        raise ValueError(
            f"config.model.pooling is {config.model.pooling!r}, but the PyTorch loop is written "
            "for 'last' and 'mean'"
        )
    resolve_dtype(config, Path(), print)
    workers: list[Worker] = []

    def start(name: str, *args: Any) -> None:
        workers.append(Worker(name, *args))
        print(f"First step of {name} after {workers[-1].seconds:.1f} s")
        compare_first(name, workers[-1].first, workers[0].first, dtype=config.model.dtype)
        workers[-1].call("training_step")  # untimed

    start(OURS, Ours, config, data)
    if timing.has_pytorch():
        with hub_folder(resolve(config.model.checkpoint)) as folder:
            for name in (PYTORCH, BFLOAT16):
                frozen = "embed_tokens|word_embeddings|pooler"
                torch = partial(PyTorch, frozen=frozen, autocast=name == BFLOAT16)
                start(name, torch, config, data, folder, workers[0].first)
    blocks = timing.take_turns({w.name: partial(w.call, "block", steps) for w in workers}, repeats)
    for worker in workers:
        worker.stop()
        speeds = [f"{block.examples_per_second:.2f}" for block in blocks[worker.name]]
        print(f"{worker.name}, examples/s in each round: {', '.join(speeds)}")
    return workers, blocks


@contextlib.contextmanager
def hub_folder(checkpoint: Path) -> Iterator[Path]:
    """Gives a checkpoint as a folder for transformers; one made from a file is temporary."""
    if checkpoint.is_dir():
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=write_hub_folder, args=(checkpoint, Path(folder)))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"Error: transformers could not read {checkpoint}; see its message above")
        yield Path(folder)


def write_hub_folder(file: Path, folder: Path) -> None:
    """Rewrites a package's file as the folder that a hub has of it, weights in float32.

    transformers takes most of a minute to read and convert the demo's file, which its users rarely
    do: that does not belong in PyTorch's time to first step.
    """
    if file.suffix != ".gguf":
        from models.pretrained import load_pretrained, write_pretrained

        pretrained = load_pretrained(file)
        write_pretrained(folder, pretrained.config, pretrained.params)
        return
    import torch
    import transformers

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    loaded = transformers.AutoModel.from_pretrained(**source, dtype=torch.float32)
    del loaded.config.quantization_config  # dequantised, but refuses to be saved
    model = transformers.AutoModel.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)


def compare_first(name: str, first: First, ours: First, *, dtype: str) -> None:
    """Prints a variant's first step, and raises where it is not the same training as ours."""
    print(
        f"{name} on {first.device}: loss {first.loss:.5f}, gradient norm "
        f"{first.gradient_norm:.5g}, on the same {len(first.ids)} examples"
    )
    exact = name != BFLOAT16 and dtype == "float32"
    tolerance = TOLERANCE if exact else _BFLOAT16_TOLERANCE
    differences = (first.loss - ours.loss, first.gradient_norm / ours.gradient_norm - 1)
    if not all(abs(difference) <= tolerance for difference in differences):
        raise ValueError(
            f"the first step of {name} has loss {first.loss:.5f} and gradient norm "
            f"{first.gradient_norm:.5g}, ours {ours.loss:.5f} and {ours.gradient_norm:.5g}: "
            "they do not train the same model on the same task"
        )


def model_flops(lengths: np.ndarray, model: Mapping[str, Any]) -> float:
    """Returns the operations that training on examples of these lengths needs, without waste.

    6 per parameter of a matrix product and token (2001.08361), and 12 per attention channel, layer
    and pair of tokens of which one sees the other; embeddings are looked up, not multiplied.
    `model` is that of trainers.First.
    """
    lengths = lengths.astype(np.float64)
    pairs = 0.0
    for window in model["windows"]:
        seen = np.minimum(lengths, window) if window else lengths
        causal = seen * (seen + 1) / 2 + (lengths - seen) * seen
        pairs += (causal if model["causal"] else lengths**2).sum()
    return 6 * model["matmul_params"] * lengths.sum() + 12 * model["attention_width"] * pairs


COLUMNS = {
    "real tokens/s": ",.0f",
    "examples/s": ".2f",
    "x PyTorch": ".2f",
    "padding": ".1%",
    "peak memory, GiB": ".2f",
    "first step after, s": ".1f",
    "model GFLOP/s": ",.0f",
    "MFU": ".1%",
    "MFU, padding too": ".1%",
}


def summarise(
    worker: Worker, model: Mapping[str, Any], blocks: Mapping[str, Sequence[Block]], dtype: str
) -> tuple[float | None, ...]:
    """Returns the numbers of a variant's row; None without PyTorch, or without a known peak.

    PyTorch's variant to compare with is the first that was measured.
    """
    from training import cost

    own, median = blocks[worker.name], statistics.median
    flops = median(model_flops(block.lengths, model) / block.seconds for block in own)
    bfloat16 = worker.name == BFLOAT16 or (worker.name.startswith(OURS) and dtype == "bfloat16")
    peak = cost.peak_flops(worker.first.device, bfloat16=bfloat16)
    peer = blocks.get(PYTORCH, blocks.get(BFLOAT16, ()))
    pairs = zip(own, peer, strict=False)
    ratios = [a.examples_per_second / b.examples_per_second for a, b in pairs]
    share = sum(block.lengths.sum() for block in own) / sum(block.positions for block in own)
    return (
        median(block.lengths.sum() / block.seconds for block in own),
        median(block.examples_per_second for block in own),
        median(ratios) if ratios else None,
        1 - share,
        max(block.peak_bytes for block in own) / 2**30,
        worker.seconds,
        flops / 1e9,
        flops / peak if peak else None,
        flops / share / peak if peak else None,
    )


def show(workers: Sequence[Worker], blocks: Mapping[str, Sequence[Block]], dtype: str) -> None:
    """Prints the table."""
    rows = []
    for worker in workers:
        numbers = summarise(worker, workers[0].first.model, blocks, dtype)
        cells = zip(numbers, COLUMNS.values(), strict=True)
        name = f"{OURS}, {dtype}" if worker.name == OURS else worker.name
        rows.append((name, *("-" if n is None else format(n, form) for n, form in cells)))
    timing.show_table(("", *COLUMNS), rows)


def main(argv: Sequence[str]) -> None:
    """Measures and prints; a user's mistake ends as one message."""
    logging.set_verbosity(logging.ERROR)
    options = flags.FLAGS
    config, steps, repeats = options.config, options.steps, options.repeats
    config.schedule.name, config.model.head_start = "constant", "random"  # see Ours
    try:
        if options.write_batches:
            write_batches(Path(options.write_batches), config, steps * repeats + 2)
            return
        if not options.batches and not find_spec("tensorflow"):
            raise ValueError("without TensorFlow, pass --batches=FILE from --write_batches=FILE")
        timing.show_machine()
        data = read_batches(Path(options.batches), config) if options.batches else read_data(config)
        show(*measure(config, data, steps=steps, repeats=repeats), config.model.dtype)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":  # the variants' processes import this file, without flags
    config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/reviews_decoder.py.")
    flags.DEFINE_integer("steps", 4, "Optimiser steps a variant takes before the next takes its.")
    flags.DEFINE_integer("repeats", 6, "Rounds.")
    flags.DEFINE_string("batches", "", "Train on the batches in this .npz file.")
    flags.DEFINE_string("write_batches", "", "Write batches to this .npz file, and end.")
    flags.mark_flag_as_required("config")
    app.run(main)
