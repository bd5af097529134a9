"""--mode=mine: hard negatives for the training queries, by the run's model or BM25."""

from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from evaluation import lexical, retrieval
from input_pipeline.examples import Examples
from input_pipeline.files import write_jsonl
from tasks import require
from training.data import load_data
from training.experiment import Experiment, build
from training.workdir import has_checkpoint
from workflows import vectors
from workflows.restoring import Restored, read_meta, restore

_SAMPLES = 3


def mine(config: ConfigDict, workdir: Path) -> Path:
    """Writes the training queries with what is near them and does not belong to them, as JSONL of
    data.format='flag_embedding'.

    Candidates are the passages of config.embedding.corpus, or those of the training split. From the
    ranks config.mine.ranks, the first config.mine.negatives are taken that are none of the query's
    passages and, by a model, less similar to the query than mine.below times its passage (1.0 keeps
    all; 0.95 as in NV-Retriever, 2407.15831): the more similar are likely to belong to it.
    """
    require(config, "READY", "--mode=mine")
    first, last = config.mine.ranks
    data = load_data(config)
    examples = data.split("train")
    belonging: dict[str, dict[str, None]] = {}
    for text, pair in zip(examples.texts_N, examples.pairs_N, strict=True):
        if pair:
            belonging.setdefault(text, {})[pair] = None
    queries = list(belonging)
    passages = list(dict.fromkeys(pair for pairs in belonging.values() for pair in pairs))
    corpus = passages
    if config.embedding.corpus:
        corpus = list(dict.fromkeys(vectors.read_corpus(config)))
    most = max(map(len, belonging.values()))
    count = min(len(corpus), last + most)
    limits = np.full(len(queries), np.inf)
    if config.mine.by == "bm25":
        scores_QxK, rows_QxK = lexical.bm25(queries, corpus, words=False, count=count)
        by = "BM25 on characters"
    else:
        experiment, restored = _model(config, workdir, data.labels, examples)
        queries_QxE = vectors.encode(experiment, restored, queries, passages=False)
        own_PxE = vectors.encode(experiment, restored, passages)
        numbers = {text: number for number, text in enumerate(passages)}
        limits = config.mine.below * np.array(
            [
                min(own_PxE[numbers[pair]] @ queries_QxE[i] for pair in belonging[query])
                for i, query in enumerate(queries)
            ]
        )
        corpus_PxE = own_PxE
        if corpus is not passages:
            corpus_PxE = vectors.corpus_vectors(experiment, restored, corpus, workdir)
        scores_QxK, rows_QxK = retrieval.nearest(queries_QxE, corpus_PxE, count=count)
        by = restored.name
    records, dropped = [], Counter()
    for i, query in enumerate(queries):
        others = [
            (corpus[row], float(score))
            for row, score in zip(rows_QxK[i], scores_QxK[i], strict=True)
            if corpus[row] not in belonging[query] and corpus[row] != query
        ][first - 1 : last]
        kept = [pair for pair in others if pair[1] < limits[i]]
        dropped["near"] += len(others) - len(kept)
        kept = kept[: config.mine.negatives]
        dropped["without"] += not kept
        record = {"query": query, "pos": list(belonging[query]), "neg": [text for text, _ in kept]}
        records.append(record | {"neg_scores": [round(score, 6) for _, score in kept]})
    output = Path(config.mine.output or workdir / "mined.jsonl")
    write_jsonl(output, records)
    found = sum(len(record["neg"]) for record in records)
    print(
        f"{found:,} negatives of {len(queries):,} queries by {by}, of ranks {first} to {last} of "
        f"{len(corpus):,} passages, are in {output}. Left out: {dropped['near']:,} as similar as "
        f"{config.mine.below} times the query's passage; {dropped['without']:,} queries have none."
    )
    for record in records[:_SAMPLES]:
        print(f"  {record['query']}  +  {record['pos'][0]}  -  {'  |  '.join(record['neg'][:3])}")
    print(
        f"To train on them: --config.data.files={output} --config.data.format=flag_embedding "
        f"--config.data.split.kind=group --config.embedding.negatives={config.mine.negatives}. Its "
        "queries are those of training: give validation and test by files of their own "
        "(split.kind=given), or a part of these is held out."
    )
    return output


def _model(
    config: ConfigDict, workdir: Path, labels: list[str], examples: Examples
) -> tuple[Experiment, Restored]:
    """Returns the run's checkpoint, or the pretrained weights where it has none."""
    if has_checkpoint(workdir):
        read_meta(config, workdir)
        experiment = build(config, workdir, labels, print)
        return experiment, restore(experiment, workdir)
    experiment = build(config, workdir, labels, print, examples)
    meta = {"fitted": experiment.task.unfitted, "fingerprints": experiment.fingerprints}
    return experiment, Restored(experiment.put(experiment.initial), meta, "pretrained weights", 0)
