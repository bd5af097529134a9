"""--mode=retrieve: queries search a corpus, judged by a file of relevance (BEIR, C-MTEB, TREC)."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from evaluation import lexical, retrieval, significance
from evaluation.metrics import Scores, summarise
from input_pipeline.corpus import encodings, formats
from input_pipeline.corpus.notes import Misfit, Notes
from input_pipeline.corpus.preparation import read_unlabelled
from input_pipeline.eta import working
from input_pipeline.examples import Ragged
from input_pipeline.files import replacing, write_json
from reporting import report
from reporting.stored_scores import write_scores
from tasks import require
from tasks.embedding import BM25
from tasks.task import digest
from training.experiment import Experiment, build
from training.workdir import has_checkpoint
from workflows.integrate.integrate import stored
from workflows.restoring import Restored, final, read_meta, restore
from workflows.vectors import Vectors

_DEPTH = 100  # passages of each query that are ranked
_TEXT_IDS = ("_id", "id", "qid", "pid", "cid", "docid")
_QUERY, _PASSAGE = ("query-id", "qid", "query_id"), ("corpus-id", "pid", "cid", "docid", "doc_id")
_GRADE = ("score", "relevance", "rel", "label")


def retrieve(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Prints how BM25, the model before training and the run's rank a corpus for queries.

    Writes retrieval.json, scores_retrieval.npz with the metrics of each query, and retrieval.trec,
    the first passages of each query by the last model, as trec_eval reads them.

    Raises:
        ValueError: a task without vectors, a file that cannot be read, or relevance of queries or
            passages that are not there.
    """
    require(config, "READY", "--mode=retrieve")
    options = config.embedding
    for key in ("corpus", "queries", "relevance"):
        if not options[key]:
            raise ValueError(
                f"--mode=retrieve needs config.embedding.{key}: a corpus and queries with ids and "
                "texts, and which passages belong to which query"
            )
    corpus, queries = (_texts(options[key], config.data) for key in ("corpus", "queries"))
    judged = _judged(options.relevance, queries, corpus)
    if without := len(queries) - len(judged):
        print(
            f"Left out: {without:,} of {len(queries):,} queries, which have no relevant passage in "
            f"{options.relevance}."
        )
    experiment, models = _models(config, workdir)
    ranked: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    passages, asked = list(corpus.values()), [queries[query] for query in judged]
    for name, words in BM25.items():
        with working(name):
            ranked[name] = lexical.bm25(asked, passages, words=words, count=_DEPTH)
    vectors = Vectors(experiment, models[report.BEFORE])
    for name, restored in models.items():
        vectors.restored = restored
        if name == list(models)[-1]:  # whose vectors are kept
            passages_PxE = vectors.of_corpus(passages, workdir)
        else:
            passages_PxE = vectors(passages, "passage")
        ranked[name] = retrieval.nearest(vectors(asked, "query"), passages_PxE, count=_DEPTH)
    places = {key: place for place, key in enumerate(corpus)}
    relevant = Ragged.of([[places[p] for p in found] for found in judged.values()], np.int64)
    grades = Ragged.of([list(found.values()) for found in judged.values()], np.float64)
    numbers, truth = np.arange(len(judged)), digest(relevant.values)
    scores = {}
    for name, (_, rows_QxK) in ranked.items():
        statistics = retrieval.ranking_statistics(rows_QxK, relevant, grades)
        detail = {"passages": len(corpus)}
        scores[name] = Scores(retrieval.METRICS, numbers, statistics, detail, truth, numbers)
    with replacing(workdir / "retrieval.trec") as path, path.open("w", encoding="utf-8") as file:
        file.writelines(_run_lines(judged, list(corpus), *ranked[name]))
    return _report(config, workdir, scores)


def _models(config: ConfigDict, workdir: Path) -> tuple[Experiment, dict[str, Restored]]:
    """Returns the experiment, and the weights of each row: before training, and of the run."""
    meta = read_meta(config, workdir) if has_checkpoint(workdir) else {"labels": []}
    experiment = build(config, workdir, meta["labels"], print)
    start = experiment.put(experiment.initial)
    unfitted = {"fitted": experiment.task.unfitted}
    models = {report.BEFORE: Restored(start, unfitted, "the pretrained weights", 0)}
    if has_checkpoint(workdir):
        models[report.FINETUNED] = restore(experiment, workdir, "best")
    if final(workdir) == "integrated":
        chosen = restore(experiment, workdir, "integrated")
        if stored(chosen.meta)["changed"]:
            models[f"{report.INTEGRATED} ({chosen.meta['written']})"] = chosen
    return experiment, models


def _texts(path: str, data: ConfigDict) -> dict[str, str]:
    """Returns the texts of a file by their ids, recoded as those of training."""
    data, keys = copy.deepcopy(data), _keys(Path(path))
    names = [name for name in _TEXT_IDS if name in keys]
    if not names or "text" not in keys:
        raise ValueError(
            f"{path}: expected the column 'text' and one of {_TEXT_IDS}, found {list(keys)}"
        )
    data.update(text_column="text", format="", id_column=names[0])
    for key in ("negatives_column", "label_column", "group_column"):
        data[key] = ""
    data.pair_column = "title" if "title" in keys else ""
    examples = read_unlabelled(path, data)
    texts = dict(zip(map(str, examples.names_N), examples.texts_N, strict=True))
    if len(texts) < len(examples):
        raise ValueError(
            f"{path}: {len(examples) - len(texts):,} of {len(examples):,} texts have an id that "
            f"came before: the ids of {names[0]!r} must differ"
        )
    if "title" in keys:
        rows = zip(texts, examples.pairs_N, texts.values(), strict=True)
        texts = {key: f"{title} {text}".strip() for key, title, text in rows}
        print(f"The column 'title' of {path} stands before 'text', after it a space, as in BEIR.")
    if empty := sum(not text for text in texts.values()):
        print(f"Note: {empty:,} of {len(texts):,} texts of {path} are empty.")
    return texts


def _judged(
    path: str, queries: Mapping[str, str], corpus: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Returns the grades above 0 of the passages of each query, in the order of the queries."""
    found: dict[str, dict[str, float]] = {}
    count, unknown = 0, {"queries": [], "passages": []}
    for query, passage, grade in _relevance(Path(path)):
        count += 1
        if query not in queries:
            unknown["queries"].append(query)
        elif passage not in corpus:
            unknown["passages"].append(passage)
        elif grade > 0:
            found.setdefault(query, {})[passage] = grade
    for what, ids in unknown.items():
        if ids:
            raise ValueError(
                f"{path}: {len(ids):,} of {count:,} lines are about {what} that are not there, the "
                f"first is {ids[0]!r}: give the file of config.embedding."
                f"{'queries' if what == 'queries' else 'corpus'} that it belongs to"
            )
    if not found:
        raise ValueError(f"{path}: no query has a relevant passage ({count:,} lines)")
    return {query: found[query] for query in queries if query in found}


def _relevance(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yields query, passage and grade of each line: a table with a header, JSONL or Parquet, or
    lines of 'query passage grade' and 'query 0 passage grade' (TREC)."""
    keys = _keys(path)
    names = [
        next((name for name in names if name in keys), "") for names in (_QUERY, _PASSAGE, _GRADE)
    ]
    if names[0] and names[1]:
        notes = Notes()
        for line, row in _rows(path, [name for name in names if name], notes):
            grade = row.get(names[2], 1)
            try:
                yield str(row[names[0]]), str(row[names[1]]), float(grade)
            except (TypeError, ValueError, KeyError):
                raise ValueError(
                    f"{path}:{line}: expected a query, a passage and a number in {names}, found "
                    f"{row!r}"
                ) from None
        notes.report()
        return
    for number, line in encodings.lines(path, encodings.resolve(path, "auto")):
        fields = line.split()
        if not fields:
            continue
        try:
            yield fields[0], fields[-2], float(fields[-1])
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}:{number}: expected 'query passage grade' or TREC's 'query 0 passage "
                f"grade', or a header with one of {_QUERY} and one of {_PASSAGE}, found {line!r}"
            ) from None


def _keys(path: Path) -> Sequence[str]:
    """Returns the columns of a file; () of lines without a header."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.absolute()}")
    if encodings.suffix_of(path) not in formats.FORMATS:
        return ()
    rows = (row for _, row in _rows(path, (), Notes()))
    if encodings.suffix_of(path) in ("json", "jsonl"):  # whose rows may have different keys
        return list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    return list(next(rows, {}))


def _rows(
    path: Path, columns: Sequence[str], notes: Notes
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    kind, encoding = formats.format_of(path, "", "auto")
    rows = formats.read_rows(path, kind, encoding=encoding, columns=columns, notes=notes)
    for line, row in rows:
        if isinstance(row, Misfit):
            raise ValueError(f"{path}:{line}: {row}")
        yield line, row


def _run_lines(
    judged: Mapping[str, Any], ids: Sequence[str], scores_QxK: np.ndarray, rows_QxK: np.ndarray
) -> Iterator[str]:
    for query, scores_K, rows_K in zip(judged, scores_QxK, rows_QxK, strict=True):
        for rank, (score, row) in enumerate(zip(scores_K, rows_K, strict=True), start=1):
            yield f"{query} Q0 {ids[row]} {rank} {score:.6f} weitiao\n"


def _report(config: ConfigDict, workdir: Path, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Prints the table and what the last row is worth, and writes both."""
    titles = {next(iter(BM25)): next(iter(BM25)), report.BEFORE: "the model before training"}
    titles[report.FINETUNED] = f"the {report.FINETUNED} model"
    metric = retrieval.METRICS[0]
    compared = significance.compare_last(scores, titles, metric, split="retrieval")
    results = {
        "conclusion": "\n".join(comparison["sentence"] for comparison in compared),
        "models": {name: summarise(row) for name, row in scores.items()},
        "comparisons": compared,
        "metrics": [report.shown(metric) for metric in retrieval.METRICS],
        "queries": len(next(iter(scores.values())).ids_N),
        "files": {k: config.embedding[k] for k in ("corpus", "queries", "relevance")},
    }
    write_scores(workdir / "scores_retrieval.npz", scores)
    write_json(workdir / "retrieval.json", results)
    report.show(report.table(*report.cells(results["models"], results["metrics"])))
    report.show(results["conclusion"])
    return results
