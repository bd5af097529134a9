"""--mode=mine: hard negatives for the training queries, by the run's model or BM25."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evaluation import lexical, retrieval
from input_pipeline.examples import Examples, object_array
from input_pipeline.files import write_jsonl
from tasks import require
from training.data import load_data
from training.experiment import build
from training.workdir import has_checkpoint
from workflows.restoring import Restored, final, read_config, read_meta, restore
from workflows.vectors import Vectors, read_corpus

_SAMPLES = 3
_BM25 = "bm25"


def mine(config: ConfigDict, workdir: Path) -> Path:
    """Writes the training queries with what is near them and does not belong to them, as JSONL of
    data.format='flag_embedding'.

    Candidates are the passages of config.embedding.corpus, or those of the training split. Of those
    that are none of the query's, the ranks config.mine.ranks are taken, without what is as similar
    to the query as config.mine.below times its passage: that is likely to belong to it (0.95 as in
    NV-Retriever, 2407.15831). BM25 has no such filter. Of twice as many as are wanted, the run
    config.mine.reranker drops those that it does not put behind the query's passage. The first
    config.mine.negatives are kept.

    Raises:
        ValueError: a task without vectors, graded pairs, or a corpus that cannot be read.
    """
    require(config, "READY", "--mode=mine")
    if config.data.label_kind == "number":
        raise ValueError(
            "--mode=mine: with config.data.label_kind='number' pairs have grades, and none belongs "
            "to another: mine with pairs that belong together"
        )
    data = load_data(config)
    examples = data.split("train")
    belonging: dict[str, dict[str, None]] = {}
    for text, pair in zip(examples.texts_N, examples.pairs_N, strict=True):
        if pair:
            belonging.setdefault(text, {})[pair] = None
    own = list(dict.fromkeys(pair for pairs in belonging.values() for pair in pairs))
    corpus = list(dict.fromkeys(read_corpus(config))) if config.embedding.corpus else own
    # Enough that the query and all that belongs to it can be left out.
    count = min(len(corpus), config.mine.ranks[1] + max(map(len, belonging.values())) + 1)
    if config.mine.by == _BM25:
        by, limits_Q = "BM25 on characters", np.full(len(belonging), np.inf)
        found = lexical.bm25(list(belonging), corpus, words=False, count=count)
    else:
        vectors = _vectors(config, workdir, data.labels, examples)
        by = vectors.restored.name
        limits_Q, found = _near(vectors, workdir, belonging, own, corpus, count)
    records, near = _records(config, belonging, corpus, limits_Q, *found)
    above = _rerank(config, records) if config.mine.reranker else 0
    output = Path(config.mine.output or workdir / "mined.jsonl")
    write_jsonl(output, records)
    _say(config, records, near, above, by, len(corpus), output)
    return output


def _vectors(config: ConfigDict, workdir: Path, labels: Any, examples: Examples) -> Vectors:
    """Returns what encodes by the run's checkpoint, or by the pretrained weights without one."""
    if has_checkpoint(workdir):
        read_meta(config, workdir)
        experiment = build(config, workdir, labels, print)
        return Vectors(experiment, restore(experiment, workdir))
    experiment = build(config, workdir, labels, print, examples)
    meta = {"fitted": experiment.task.unfitted}
    start = experiment.put(experiment.initial)
    return Vectors(experiment, Restored(start, meta, "the pretrained weights", 0))


def _near(
    vectors: Vectors,
    workdir: Path,
    belonging: Mapping[str, Mapping[str, None]],
    own: Sequence[str],
    corpus: Sequence[str],
    count: int,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns the cosine that a negative of each query must stay below, and what is near."""
    config = vectors.experiment.config
    queries_QxE, own_PxE = vectors(list(belonging), "query"), vectors(own, "passage")
    numbers = {text: number for number, text in enumerate(own)}
    cosines_Q = [
        min(float(own_PxE[numbers[pair]] @ query_E) for pair in pairs)
        for pairs, query_E in zip(belonging.values(), queries_QxE, strict=True)
    ]
    corpus_PxE = vectors.of_corpus(corpus, workdir) if config.embedding.corpus else own_PxE
    found = retrieval.nearest(queries_QxE, corpus_PxE, count=count)
    return config.mine.below * np.array(cosines_Q), found


def _records(
    config: ConfigDict,
    belonging: Mapping[str, Mapping[str, None]],
    corpus: Sequence[str],
    limits_Q: np.ndarray,
    scores_QxK: np.ndarray,
    rows_QxK: np.ndarray,
) -> tuple[list[dict[str, Any]], int]:
    """Returns a record of each query, and how many candidates were too near."""
    first, last = config.mine.ranks
    records, near = [], 0
    count = config.mine.negatives * (2 if config.mine.reranker else 1)
    for (query, pairs), limit, *found in zip(
        belonging.items(), limits_Q, scores_QxK, rows_QxK, strict=True
    ):
        others = [(corpus[row], float(score)) for score, row in zip(*found, strict=True)]
        others = [other for other in others if other[0] not in pairs and other[0] != query]
        others = others[first - 1 : last]
        kept = [other for other in others if other[1] < limit]
        near += len(others) - len(kept)
        texts, scores = zip(*kept[:count], strict=True) if kept else ((), ())
        scores = [round(score, 6) for score in scores]
        records.append({"query": query, "pos": [*pairs], "neg": [*texts], "neg_scores": scores})
    return records, near


def _rerank(config: ConfigDict, records: list[dict[str, Any]]) -> int:
    """Drops what a reranker does not put behind each passage of the query; returns how many.

    Records get its scores.
    """
    folder = Path(config.mine.reranker)
    its = read_config(folder)
    require(its, "RANKS", "config.mine.reranker")
    its.embedding.negatives = max(1, *(len(record["neg"]) for record in records))
    rows = [
        (number, record["query"], pair, tuple(record["neg"]))
        for number, record in enumerate(records)
        for pair in record["pos"]
        if record["neg"]
    ]
    if not rows:
        return 0
    numbers, *columns = zip(*rows, strict=True)
    texts_N, pairs_N, negatives_N = map(object_array, columns)
    ids_N = np.arange(len(rows), dtype=np.int64)
    examples = Examples(texts_N, None, ids_N, pairs_N=pairs_N, negatives_N=negatives_N)
    experiment = build(its, folder, (), print)
    restored = restore(experiment, folder, final(folder))
    experiment.check(examples, "mined", labelled=False)
    predictions = experiment.predict(restored.params, examples, restored.fitted)
    above = 0
    for record in records:
        record |= {"pos_scores": [], "neg_scores": []}
    for number, logits_K in zip(numbers, experiment.task.logits(predictions), strict=True):
        scores = [round(float(logit), 6) for logit in logits_K]
        records[number]["pos_scores"].append(scores[0])
        records[number]["neg_scores"] = scores[1 : 1 + len(records[number]["neg"])]
    for record in records:
        least = min(record["pos_scores"], default=0.0)
        behind = [score < least for score in record["neg_scores"]]
        above += len(behind) - sum(behind)
        for key in ("neg", "neg_scores"):
            kept = itertools.compress(record[key], behind)
            record[key] = list(kept)[: config.mine.negatives]
    return above


def _say(
    config: ConfigDict,
    records: Sequence[Mapping[str, Any]],
    near: int,
    above: int,
    by: str,
    passages: int,
    output: Path,
) -> None:
    """Prints counts, samples to look at, and how to train on them."""
    total, without = sum(len(r["neg"]) for r in records), sum(not r["neg"] for r in records)
    first, last = config.mine.ranks
    print(
        f"{total:,} negatives of {len(records):,} queries by {by}, of ranks {first} to {last} of "
        f"{passages:,} passages, are in {output}; {without:,} queries have none."
    )
    if config.mine.by != _BM25:
        print(
            f"Left out: {near:,} as similar to the query as {config.mine.below} times its passage."
        )
    if config.mine.reranker:
        print(f"Left out: {above:,} that {config.mine.reranker} does not put behind the passage.")
    for record in records[:_SAMPLES]:
        print(f"  {record['query']}  +  {record['pos'][0]}  -  {'  |  '.join(record['neg'][:3])}")
    print(
        f"To train on them: --config.data.files={output} --config.data.format=flag_embedding "
        f"--config.data.split.kind=group --config.embedding.negatives={config.mine.negatives}. "
        "They are the queries of training: give validation and test by files of their own "
        "(config.data.split.kind=given), or a part of these is held out."
    )
