"""--mode=retrieve: a corpus, queries and relevance from files, through main.py's function."""

import json
import re

import numpy as np
import pytest

from reporting.stored_scores import read_scores
from workflows.retrieve import retrieve
from workflows.train import train

TEXTS = [f"{place}的{thing}" for place in ("北京", "上海", "广州", "成都") for thing in
         ("天气", "美食", "景点", "房价", "大学")]  # fmt: skip
PASSAGES = {f"d{i}": f"关于{text}，这里有介绍。" for i, text in enumerate(TEXTS)}
QUERIES = {f"q{i}": f"{text}怎么样" for i, text in enumerate(TEXTS[:12])}
RELEVANT = {("q3", "d3"): 1, ("q0", "d0"): 2, ("q0", "d1"): 1, ("q1", "d1"): 1, ("q2", "d9"): 0}


def write_rows(path, texts, id_name):
    rows = ({id_name: key, "text": text} for key, text in texts.items())
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def config(tiny_config, tmp_path):
    tiny_config.task = "embedding"
    tiny_config.model.update(head="linear", pooling="mean", label_words=())
    tiny_config.data.update(label_column="", pair_column="pair", template="{text}")
    tiny_config.embedding.update(
        corpus=write_rows(tmp_path / "corpus.jsonl", PASSAGES, "_id"),
        queries=write_rows(tmp_path / "queries.jsonl", QUERIES, "qid"),
        relevance=str(tmp_path / "dev.tsv"),
    )
    rows = "".join(f"{q}\t{d}\t{grade}\n" for (q, d), grade in RELEVANT.items())
    (tmp_path / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows, "utf-8")
    return tiny_config


def test_queries_rank_the_corpus_and_the_files_say_the_same(config, tmp_path, capsys):
    results = retrieve(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert "examples, the model before training " in said
    assert "Left out: 9 of 12 queries, which have no relevant passage" in said
    assert list(results["models"]) == ["BM25 on characters", "BM25 on words", "before training"]
    ranked = {}
    for line in (tmp_path / "run" / "retrieval.trec").read_text("utf-8").splitlines():
        query, _, passage, rank, _, _ = line.split()
        ranked.setdefault(query, []).append(passage)
        assert int(rank) == len(ranked[query])
    assert list(ranked) == ["q0", "q1", "q3"] and {len(row) for row in ranked.values()} == {20}
    gains = [[RELEVANT.get((query, d), 0) for d in row[:10]] for query, row in ranked.items()]
    ideals = [[2, 1], [1], [1]]
    found = [
        sum(g / np.log2(rank + 2) for rank, g in enumerate(row))
        / sum(g / np.log2(rank + 2) for rank, g in enumerate(ideal))
        for row, ideal in zip(gains, ideals, strict=True)
    ]
    stored = read_scores(tmp_path / "run" / "scores_retrieval.npz")["before training"]
    np.testing.assert_allclose(stored.statistics["ndcg_10"][:, 0], found)
    # The words of each query are in its passage.
    assert results["models"]["BM25 on words"]["mrr_10"]["value"] == 1.0


def test_a_title_stands_before_its_text(config, tmp_path, capsys):
    rows = [{"_id": key, "text": text[3:], "title": text[:3]} for key, text in PASSAGES.items()]
    rows[0] = {"_id": "d0", "text": PASSAGES["d0"]}
    rows[1] = {"_id": "d1", "text": PASSAGES["d1"], "title": None}
    joined = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in rows}
    config.embedding.corpus = write_rows(tmp_path / "joined.jsonl", joined, "id")
    expected = retrieve(config, tmp_path / "run")["models"]
    assert "'title'" not in capsys.readouterr().out
    config.embedding.corpus = str(tmp_path / "titled.jsonl")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "titled.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    found = retrieve(config, tmp_path / "again")["models"]
    assert "The column 'title' of" in capsys.readouterr().out
    assert {name: row["ndcg_10"] for name, row in found.items()} == {
        name: row["ndcg_10"] for name, row in expected.items()
    }


@pytest.mark.parametrize("kind", ["trec", "plain", "jsonl", "csv"])
def test_relevance_is_read_in_any_of_its_forms(config, tmp_path, kind):
    expected = retrieve(config, tmp_path / "run")["models"]
    config.embedding.relevance = str(tmp_path / f"qrels.{'txt' if kind == 'plain' else kind}")
    lines = {
        "trec": [f"{q} 0 {d} {g}" for (q, d), g in RELEVANT.items()],
        "plain": [f"{q} {d} {g}" for (q, d), g in RELEVANT.items()],
        "jsonl": [json.dumps({"qid": q, "pid": d, "score": g}) for (q, d), g in RELEVANT.items()],
        "csv": ["qid,pid,score", *(f"{q},{d},{g}" for (q, d), g in RELEVANT.items())],
    }[kind]
    (tmp_path / config.embedding.relevance).write_text("\n".join(lines) + "\n", "utf-8")
    assert retrieve(config, tmp_path / "again")["models"] == expected


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("relevance", "q0 0 d0 1\nq0 0 d99 1\n", "1 of 2 lines are about passages.* 'd99'"),
        ("relevance", "q77 0 d0 1\n", "1 of 1 lines are about queries that are not there.*'q77'"),
        ("relevance", "q0 0 d0 0\n", "no query has a relevant passage"),
        ("relevance", "q0 d0 ja\n", "expected 'query passage grade'"),
        ("relevance", "qid\tpid\tscore\nq0\td0\t\n", "tsv:2: expected a query, a passage and a n"),
        ("relevance", '{"qid": "q0", "pid": "d0", "score": "A"}\n', "jsonl:1: expected .*'A'"),
        ("relevance", "qid\tpid\tscore\nq0\td0\t1\t2\n", "tsv:2: "),
        ("relevance", '{"qid": "q0", "pid": "d0"}\n{"qid": "q1"}\n', "jsonl:2: expected"),
        ("queries", '{"text": "好"}\n', "expected the column 'text' and one of"),
        ("queries", '{"id": 1, "text": "好"}\n{"id": 1, "text": "坏"}\n', "an id that came before"),
    ],
)
def test_what_does_not_fit_is_one_error(config, tmp_path, key, text, message):
    suffix = "jsonl" if text.startswith("{") else "tsv" if "\t" in text else "txt"
    path = tmp_path / f"other.{suffix}"
    path.write_text(text, "utf-8")
    config.embedding[key] = str(path)
    with pytest.raises(ValueError, match=message):
        retrieve(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.pooling", "first", "pooling"),
        ("model.bidirectional", True, "attention"),
        ("tokenizer.marks", "none", "tokenizer and marks|marks"),
    ],
)
def test_vectors_that_another_model_would_make_are_not_read(
    config, tmp_path, capsys, key, value, said
):
    retrieve(config, tmp_path / "run")
    config.update_from_flattened_dict({key: value})
    expected = retrieve(config, tmp_path / "other")["models"]
    capsys.readouterr()
    assert retrieve(config, tmp_path / "run")["models"] == expected
    assert re.search(rf"is of other ({said}): its vectors", capsys.readouterr().out)


def test_a_missing_key_or_another_task_is_named(config, tiny_config, tmp_path):
    config.embedding.queries = ""
    with pytest.raises(ValueError, match=r"needs config.embedding.queries"):
        retrieve(config, tmp_path / "run")
    config.task = "classification"
    with pytest.raises(ValueError, match="--mode=retrieve"):
        retrieve(config, tmp_path / "run")


def test_a_trained_run_is_compared_with_its_start(config, tmp_path, capsys):
    rows = [{"text": f"{t}怎么样", "pair": f"关于{t}，这里有介绍。"} for t in TEXTS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    config.data.files = str(path)
    config.train.update(duration="12 steps")
    config.eval.update(every="12 steps", test=False)
    train(config, tmp_path / "run")
    capsys.readouterr()
    results = retrieve(config, tmp_path / "run")
    assert list(results["models"])[2:4] == ["before training", "fine-tuned"]
    said = capsys.readouterr().out
    assert "the model before training" in said
    retrieve(config, tmp_path / "run")
    assert "The vectors of the corpus are read from" in capsys.readouterr().out
