"""Reranking: ties win nothing, both losses, whole runs."""

import json
import re

import numpy as np
import pytest

from evaluation.evaluate import Predictions
from evaluation.metrics import summarise
from input_pipeline.examples import Examples, object_array
from tasks.reranking import Reranking
from workflows.mine import mine
from workflows.predict import predict
from workflows.train import train


@pytest.fixture
def rank_config(tiny_config, reviews, tmp_path):
    path, texts = tmp_path / "triples.jsonl", [text for text, _ in reviews]
    rows = [
        {"query": text[:7], "pos": text, "neg": [texts[(i + 77) % 360], texts[(i + 9) % 360]]}
        for i, text in enumerate(texts[:90])
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    tiny_config.task = "reranking"
    tiny_config.data.update(files=str(path), text_column="query", pair_column="pos")
    tiny_config.data.update(label_column="", negatives_column="neg", template="{text}\n{pair}")
    tiny_config.model.update(head="linear", pooling="last", label_words=())
    tiny_config.embedding.negatives = 2
    return tiny_config


def examples():
    return Examples(
        texts_N=object_array(["a", "b", "c"]),
        labels_N=None,
        ids_N=np.arange(3),
        pairs_N=object_array(["p", "q", ""]),
        negatives_N=object_array([("n", "m"), ("n",), ("n",)]),
    )


def test_equal_scores_for_everything_win_nothing(rank_config):
    task = Reranking(rank_config, (), tokenizer=None, backbone=None)
    logits = np.array([[0, 0, 0], [0, 0, -1e9], [0, -1e9, -1e9]])
    scores = task.score(Predictions(np.arange(3), {"logits_NxC": logits}), examples())
    summary = summarise(scores)
    assert summary["recall_1"]["value"] == 0
    assert summary["recall_1"]["count"] == 2  # the third has no passage
    assert summary["mrr_10"]["value"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    logits[0, 0] = 1
    scores = task.score(Predictions(np.arange(3), {"logits_NxC": logits}), examples())
    assert summarise(scores)["recall_1"]["value"] == 0.5


@pytest.mark.parametrize("loss", ["listwise", "pointwise"])
def test_a_run_ranks_and_is_compared_with_bm25(rank_config, tmp_path, loss):
    rank_config.embedding.update(loss=loss, negatives=1)
    rank_config.train.duration = "4 epochs"
    results = train(rank_config, tmp_path / loss)
    rows = results["models"]
    assert list(rows)[:2] == ["BM25 on characters", "BM25 on words"]
    assert {"mrr_10", "recall_1", "loss"} <= rows[list(rows)[-1]].keys()
    assert "negatives are beyond config.embedding.negatives" in json.dumps(results["left_out"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding.negatives": 0}, "1 or more negatives"),
        ({"embedding.loss": "info_nce"}, "'listwise' or 'pointwise'"),
        ({"data.template": "{text}"}, "write '{text}{pair}'"),
        ({"data.negatives_column": ""}, "has a negative"),
        ({"data.pair_column": ""}, "has a passage"),
    ],
)
def test_bad_input_is_named(rank_config, tmp_path, change, message):
    rank_config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        train(rank_config, tmp_path / "run")


def test_mining_leaves_out_what_a_reranker_does_not_put_behind(rank_config, tmp_path, capsys):
    rank_config.train.update(duration="12 steps", integrate=False)
    rank_config.eval.update(every="12 steps", test=False)
    train(rank_config, tmp_path / "reranker")
    config = rank_config.copy_and_resolve_references()
    config.task, config.data.template = "embedding", "{text}"
    config.mine.update(by="bm25", ranks=(1, 8), negatives=3)
    config.mine.reranker = str(tmp_path / "reranker")
    capsys.readouterr()
    output = mine(config, tmp_path / "run")
    printed = capsys.readouterr().out
    above = re.search(r"Left out: (\d+) that \S+reranker does not put behind", printed)
    assert int(above[1]) > 0
    records = [json.loads(line) for line in output.open()]
    assert {len(record["neg"]) for record in records} <= {0, 1, 2, 3}
    rank_config.embedding.negatives, rank_config.data.format = 3, "flag_embedding"
    rank_config.data.update(text_column="query", pair_column="pos", negatives_column="neg")
    rank_config.predict.input = str(output)
    for line in predict(rank_config, tmp_path / "reranker").open():
        first, *others = json.loads(line)["scores"]
        assert first > max(others, default=first - 1), line
    config.mine.ranks = (900, 901)
    assert not any(json.loads(line)["neg"] for line in mine(config, tmp_path / "run").open())
    config.mine.reranker = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        mine(config, tmp_path / "run")
