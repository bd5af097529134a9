"""Speed of the input pipeline alone, in real tokens/s, beside what users write with transformers.

    pip install -e '.[demo,augment,bench]' && python -m benchmarks.input_pipeline

On the training split of the reviews, with Gemma's vocabulary and a template: our pipeline in
training order, in each layout, packed with each augmentation at a rate of 0.1, and packed with all
of them as in configs/augmented.py; large batches, whole and as one of several processes makes them,
where the tokens are those of the whole batch; and a fast tokenizer of transformers behind a torch
DataLoader with two workers and dynamic padding. They take turns in one process, for `--seconds` in
each of several rounds; the table holds medians over the rounds. Without torch and transformers it
measures ours alone.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np

from benchmarks import timing
from configs import augmented
from input_pipeline.batches.layout import KINDS
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples
from models.pretrained import open_checkpoint, resolve
from tasks.classification import Classification
from training.experiment import make_pipeline
from training.run_tokenizer import load_original

PEER = "transformers + DataLoader, 2 workers"
TEMPLATE = "评论：{text}\n总的来说，很"
MAX_LENGTH = 256
_LARGE = 1024  # examples of a batch for several hosts
Counts = tuple[int, int, int]  # examples, real tokens, positions of a batch
Start = Callable[[], Iterator[Counts]]


def ours(
    examples: Examples, batch_size: int, *, kind: str = "pack", hosts: int = 1, **rates: float
) -> Start:
    """Returns what starts our training batches, as their counts; `rates` are the augmentation.

    With several `hosts`, those of the first of so many processes.
    """
    config = augmented.get_config()
    config.layout.update(kind=kind, max_length=MAX_LENGTH, row_length=384)
    config.augmentation.update({k: 0.0 for k in config.augmentation if k.endswith("_rate")})
    config.augmentation.update(share=1.0, **rates)
    config.data.update(template=TEMPLATE, batch_size=batch_size)
    backbone = open_checkpoint(resolve(config.model.checkpoint)).config
    task = Classification(config, ("0", "1"), tokenizer=load_original(config), backbone=backbone)
    split = {"row_multiple": hosts, "shards": [0]} if hosts > 1 else {}
    pipeline = make_pipeline(config, task, **split)
    pipeline.plan(examples)

    def start() -> Iterator[Counts]:
        for batch in pipeline.train(examples, first_example=0):
            segments = batch["segments_RxL"]
            lengths = batch.get("lengths_B", segments > 0)
            yield batch_size, int(lengths.sum()), segments.size

    return start


def with_transformers(texts: list[str], batch_size: int) -> Start:
    """Returns what starts the batches of a DataLoader, as their counts."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    path = resolve("gemma3-270m")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def collate(batch: list[str]) -> dict:
        encoding = tokenizer(
            [TEMPLATE.format(text=text) for text in batch],
            truncation=True,
            max_length=MAX_LENGTH,
            padding="longest",
            return_tensors="pt",
        )
        return dict(encoding)  # tensors alone: a BatchEncoding also sends its alignments

    options = {"batch_size": batch_size, "num_workers": 2, "persistent_workers": True}
    loader = DataLoader(texts, shuffle=True, drop_last=True, collate_fn=collate, **options)

    def start() -> Iterator[Counts]:
        for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
            mask = batch["attention_mask"].numpy()
            yield batch_size, int(np.count_nonzero(mask)), mask.size

    next(start())  # starts the workers
    return start


def measure(start: Start, seconds: float) -> tuple[float, float, float]:
    """Returns examples/s, real tokens/s and the real share of positions, after some warm-up."""
    batches, totals = start(), np.zeros(3, np.int64)
    warm = time.perf_counter() + seconds / 2
    while time.perf_counter() < warm:
        next(batches)
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        totals += next(batches)
    return totals[0] / elapsed, totals[1] / elapsed, totals[1] / totals[2]


def main() -> None:
    """Measures and prints the table."""
    options = timing.arguments(__doc__, batch_size=16, rounds=7, seconds=2.0)
    timing.show_machine()
    recipe = augmented.get_config()
    examples = load_split(prepare(recipe.data), "train")
    pipelines = {}
    if timing.has_pytorch():
        pipelines[PEER] = with_transformers(examples.texts_N.tolist(), options.batch_size)
    make = partial(ours, examples, options.batch_size)
    pipelines |= {f"ours, {kind}": make(kind=kind) for kind in KINDS}
    rates = {k: v for k, v in recipe.augmentation.items() if k.endswith("_rate") and v}
    pipelines |= {f"ours, pack, {name}": make(**{name: 0.1}) for name in rates}
    pipelines["ours, pack, all of these"] = make(**rates)
    large = partial(ours, examples, _LARGE)
    pipelines |= {f"ours, pack, batch {_LARGE}": large()}
    for hosts in (2, 8):
        pipelines[f"one of {hosts} processes, batch {_LARGE}"] = large(hosts=hosts)
    rounds = timing.take_turns(
        {name: partial(measure, start, options.seconds) for name, start in pipelines.items()},
        options.rounds,
    )
    rows = []
    for name, measured in rounds.items():
        examples_s, tokens_s, share = map(statistics.median, zip(*measured, strict=True))
        pairs = zip(measured, rounds.get(PEER, ()), strict=False)
        ratios = [a[1] / b[1] for a, b in pairs]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        rows.append((name, f"{tokens_s:,.0f}", ratio, f"{examples_s:,.0f}", f"{share:.1%}"))
    columns = ("pipeline", "real tokens/s", "times peer", "examples/s", "real share of positions")
    timing.show_table(columns, rows)


if __name__ == "__main__":
    main()
