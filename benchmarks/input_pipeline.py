"""Speed of the input pipeline alone, in real tokens/s, beside what users write with transformers.

    pip install -e '.[demo,augment,bench]' && python -m benchmarks.input_pipeline

On the training split of the reviews, with Gemma's vocabulary and a template: our pipeline in
training order, in each layout, packed with each augmentation at a rate of 0.1, and packed with all
of them as in configs/augmented.py; and a fast tokenizer of transformers behind a torch DataLoader
with two workers and dynamic padding. They take turns in one process, for some seconds in each of
several rounds; the table holds medians over the rounds. Without torch and transformers it measures
ours alone.
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np

from configs import augmented, common
from input_pipeline.batches.layout import KINDS
from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples
from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from models.pretrained import gguf, open_checkpoint, resolve
from tasks.classification import Classification

PEER = "transformers + DataLoader, 2 workers"
TEMPLATE = "评论：{text}\n总的来说，很"
MAX_LENGTH = 256
Counts = tuple[int, int, int]  # examples, real tokens, positions of a batch
Start = Callable[[], Iterator[Counts]]
NONE: Mapping[str, float] = {}


def ours(
    examples: Examples, *, batch_size: int, kind: str = "pack", rates: Mapping[str, float] = NONE
) -> Start:
    """Returns what starts our training batches, as their counts."""
    config = common.get_config()
    config.layout.update(kind=kind, max_length=MAX_LENGTH, row_length=384)
    config.augmentation.update(rates)
    path = resolve("gemma3-270m")
    tokenizer = tokenizer_from_gguf(gguf.metadata(path), file=str(path), marks="bos")
    pipeline = TextPipeline(
        Classification(
            config, ("0", "1"), tokenizer=tokenizer, backbone=open_checkpoint(path).config
        ),
        template=TEMPLATE,
        layout=config.layout,
        augmentation=config.augmentation,
        batch_size=batch_size,
        microbatches=1,
        row_multiple=1,
        seed=0,
        eval_rows=8,
    )
    pipeline.plan(examples)

    def start() -> Iterator[Counts]:
        for batch in pipeline.train(examples, first_example=0):
            segments = batch["segments_RxL"]
            yield batch_size, int(np.count_nonzero(segments)), segments.size

    return start


def with_transformers(texts: list[str], *, batch_size: int) -> Start:
    """Returns what starts the batches of a DataLoader, as their counts."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    path = resolve("gemma3-270m")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def collate(batch: list[str]):
        encoding = tokenizer(
            [TEMPLATE.format(text=text) for text in batch],
            truncation=True,
            max_length=MAX_LENGTH,
            padding="longest",
            return_tensors="pt",
        )
        return dict(encoding)  # tensors alone: a BatchEncoding also sends its alignments

    loader = DataLoader(
        texts,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
        num_workers=2,
        persistent_workers=True,
    )

    def start() -> Iterator[Counts]:
        for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
            mask = batch["attention_mask"].numpy()
            yield batch_size, int(np.count_nonzero(mask)), mask.size

    next(start())  # starts the workers
    return start


def measure(start: Start, seconds: float) -> tuple[float, float, float]:
    """Returns examples/s, real tokens/s and the real share of positions, after some warm-up."""
    counts, totals = start(), np.zeros(3, np.int64)
    warm = time.perf_counter() + seconds / 2
    while time.perf_counter() < warm:
        next(counts)
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        totals += next(counts)
    return totals[0] / elapsed, totals[1] / elapsed, totals[1] / totals[2]


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="per pipeline and round")
    options = parser.parse_args()

    recipe = augmented.get_config()
    examples = load_split(prepare(recipe.data), "train")
    size = options.batch_size
    pipelines: dict[str, Start] = {}
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        pipelines[PEER] = with_transformers(examples.texts_N.tolist(), batch_size=size)
    else:
        print("torch and transformers are missing (pip install -e '.[bench]'): ours alone.")
    for kind in KINDS:
        pipelines[f"ours, {kind}"] = ours(examples, batch_size=size, kind=kind)
    rates = {k: v for k, v in recipe.augmentation.items() if k.endswith("_rate") and v}
    for name in rates:
        pipelines[f"ours, pack, {name}"] = ours(examples, batch_size=size, rates={name: 0.1})
    everything = rates | {"share": 1.0}
    pipelines["ours, pack, all of these"] = ours(examples, batch_size=size, rates=everything)
    rounds = [
        {name: measure(start, options.seconds) for name, start in pipelines.items()}
        for _ in range(options.rounds)
    ]
    print(
        f"\n{len(examples):,} reviews, batch size {size}, {os.cpu_count()} cores, "
        f"median of {options.rounds} rounds of {options.seconds:g} s each\n\n"
        "| pipeline | real tokens/s | times peer | examples/s | real share of positions |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for name in pipelines:
        columns = zip(*(one[name] for one in rounds), strict=True)
        examples_s, tokens_s, share = (statistics.median(column) for column in columns)
        ratio = "-"
        if PEER in pipelines:
            ratio = f"{statistics.median(one[name][1] / one[PEER][1] for one in rounds):.2f}"
        print(f"| {name} | {tokens_s:,.0f} | {ratio} | {examples_s:,.0f} | {share:.1%} |")


if __name__ == "__main__":
    main()
