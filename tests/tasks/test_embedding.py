"""Embeddings: losses as written out, one gradient in any division of a step, whole runs."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import summarise
from input_pipeline.batches.separate import SeparateEncoder
from input_pipeline.batches.template import Encoder
from input_pipeline.corpus import columns, sources
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples, object_array
from input_pipeline.files import remove
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tasks import contrastive
from tasks.embedding import Embedding
from training.collapse import nothing_learned
from training.data import RunData
from training.experiment import build
from training.sharding import put_batch
from training.state import TrainState
from training.train_step import make_train_step
from training.tuning.regularizers import Regularizers
from workflows.mine import mine
from workflows.predict import predict
from workflows.train import train

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def triples_jsonl(reviews, tmp_path_factory):
    """Queries with the review of their own topic and opinion, and one of another."""
    path = tmp_path_factory.mktemp("triples") / "triples.jsonl"
    texts, rows = [text for text, _ in reviews], []
    for i, text in enumerate(texts[:120]):
        others = [texts[(i + step) % len(texts)] for step in (7, 31)][: i % 3]
        row = {"query": f"{text[:9]}？{i % 60}", "pos": text, "neg": [*others, text][: 1 + i % 3]}
        rows.append(row | {"grade": float(i % 4)})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def pair_config(tiny_config, triples_jsonl):
    tiny_config.task = "embedding"
    tiny_config.data.update(files=str(triples_jsonl), text_column="query", pair_column="pos")
    tiny_config.data.update(label_column="", negatives_column="neg", template="问：{text}")
    tiny_config.model.update(head="linear", pooling="mean", label_words=())
    tiny_config.embedding.passage_template = "{text}"
    return tiny_config


def graded(config):
    config.data.update(label_column="grade", label_kind="number", negatives_column="")
    return config


def batch_of(count, places):
    """Normalised vectors of a step with copies of passages and queries, one without weight."""
    vectors = RNG.normal(size=(count, 1 + places, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    passages = RNG.integers(1, 5, (count, places))
    passages[:, 1:] *= RNG.random((count, places - 1)) < 0.7
    weights = np.ones(count, np.float32)
    weights[-1] = 0
    return vectors, {
        "queries_B": RNG.integers(1, 4, count).astype(np.int32),
        "passages_BxP": passages.astype(np.int32),
        "weights_B": weights,
        "numbers_B": RNG.integers(0, 3, count).astype(np.float32),
    }


def test_info_nce_is_the_softmax_over_the_passages_that_are_no_false_negatives():
    for _ in range(10):
        vectors, batch = batch_of(6, 3)
        scale, masked = np.float32(10.0), 0
        for b in range(5):
            own = np.exp(scale * vectors[b, 0] @ vectors[b, 1])
            total = own
            for other in range(5):
                for p in range(3):
                    number = batch["passages_BxP"][other, p]
                    if not number or (other, p) == (b, 0):
                        continue
                    same = number == batch["passages_BxP"][b, 0]
                    sibling = p == 0 and batch["queries_B"][other] == batch["queries_B"][b]
                    masked += same or sibling
                    if not (same or sibling):
                        total += np.exp(scale * vectors[b, 0] @ vectors[other, 1 + p])
            losses, sums = contrastive.info_nce(vectors, jnp.full(6, scale), batch)
            assert losses[b] == pytest.approx(-np.log(own / total), rel=1e-4)
        assert sums["masked"] == masked
        assert losses[5] == 0


def test_cosent_and_triplet_are_what_their_papers_write():
    vectors, batch = batch_of(6, 3)
    cosines = np.einsum("be,be->b", vectors[:, 0], vectors[:, 1])
    grades, total = batch["numbers_B"], 1.0
    for high in range(5):
        for low in range(5):
            if grades[high] > grades[low]:
                total += np.exp(20 * (cosines[low] - cosines[high]))
    losses, _ = contrastive.cosent(vectors, jnp.full(6, 20.0), batch)
    assert losses[0] == pytest.approx(np.log(total), rel=1e-5)
    losses, sums = contrastive.triplet(vectors, 0.3, batch)
    right = 0
    for b in range(5):
        others = [p for p in (1, 2) if batch["passages_BxP"][b, p]]
        far = [vectors[b, 0] @ vectors[b, 1 + p] for p in others]
        short = [max(0.0, 0.3 - cosines[b] + cosine) for cosine in far]
        assert losses[b] == pytest.approx(np.mean(short) if short else 0, abs=1e-6)
        right += all(cosine < cosines[b] for cosine in far)
    assert sums["accuracy"] == right


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    file = tiny_checkpoint / "tokenizer.model"
    return SentencePieceTokenizer(file.read_bytes(), file=file.name)


@given(st.data())
def test_each_text_is_encoded_as_it_is_alone(tokenizer, data):
    texts = st.text(alphabet="这家酒店的早餐非常好，", min_size=1, max_size=12)
    rows = data.draw(
        st.lists(st.tuples(texts, texts | st.just(""), st.lists(texts, max_size=4)), min_size=1)
    )
    query, passage = (Encoder(tokenizer, t, max_length=16) for t in ("问：{text}", "{text}"))
    encoder = SeparateEncoder(query, passage, sequences=4)
    queries, pairs, negatives = zip(*rows, strict=True)
    encoded = encoder(queries, pairs, negatives=negatives)
    parts = np.split(encoded.tokens, np.cumsum(encoded.lengths_B)[:-1])
    for row, (text, pair, others) in enumerate(rows):
        expected = [query([text]).tokens, passage([pair]).tokens if pair else ()]
        expected += [passage([other]).tokens for other in others[:2]]
        expected += [()] * (4 - len(expected))
        for part, tokens in zip(parts[4 * row : 4 * row + 4], expected, strict=True):
            np.testing.assert_array_equal(part, tokens)


def one_step(config, workdir, *, microbatches, layout):
    config.train.microbatches, config.layout.kind = microbatches, layout
    prepared = prepare(config.data)
    examples = load_split(prepared, "train", limit=0)
    experiment = build(config, workdir, prepared.labels, lambda line: None)
    experiment.pipeline.plan(examples)
    batch = next(experiment.pipeline.train(examples, first_example=0))
    step = make_train_step(
        Regularizers(config.regularize, experiment.passes(), seed=0),
        optax.with_extra_args_support(optax.scale(-1.0)),
        learning_rate=1.0,
        schedule=lambda examples: dict.fromkeys(experiment.initial, 1.0),
        batch_size=config.data.batch_size,
    )
    params = experiment.put(experiment.initial)
    state = TrainState(jnp.int32(0), jnp.int32(0), params, optax.EmptyState(), None, None)
    after, metrics = jax.jit(step)(state, experiment.frozen, put_batch(batch, experiment.mesh))
    gradients = jax.tree.map(lambda old, new: np.asarray(old - new), params, after.params)
    return {name: float(value) for name, value in metrics.items()}, gradients


@pytest.mark.parametrize(
    "changes",
    [
        {"learn_temperature": True, "dimensions": (8, 16)},
        {"loss": "triplet", "negatives": 2},
        {"loss": "cosent"},
    ],
)
def test_microbatches_and_layouts_give_the_gradient_of_the_large_batch(
    pair_config, tmp_path, changes
):
    if changes.get("loss") == "cosent":
        graded(pair_config)
    pair_config.embedding.update(changes)
    pair_config.data.batch_size = 16
    metrics, expected = one_step(pair_config, tmp_path, microbatches=1, layout="pack")
    largest = max(np.abs(value).max() for value in expected.values())
    for microbatches, layout in ((4, "pack"), (2, "pad")):
        options = {"microbatches": microbatches, "layout": layout}
        again, gradients = one_step(pair_config, tmp_path, **options)
        assert again == pytest.approx(metrics, rel=1e-4)
        for path, value in expected.items():
            np.testing.assert_allclose(gradients[path], value, atol=1e-5 * largest, err_msg=path)


def test_among_several_tasks_a_step_is_compared_as_a_whole_too(pair_config, make_config, tmp_path):
    config, losses = common.get_config(), {}
    config.update(task="multi_task", multi={"members": {"pairs": pair_config, "r": make_config()}})
    config.data.batch_size = 8
    config.model.checkpoint = pair_config.model.checkpoint
    config.layout.update(max_length=64, row_length=128, max_shapes=1)
    config.train.update(duration="6 steps", log_every="1 step", integrate=False)
    config.eval.update(every="6 steps", test=False)
    for count in (1, 2):
        config.train.microbatches = count
        train(config, tmp_path / str(count))
        rows = map(json.loads, (tmp_path / str(count) / "metrics.jsonl").read_text().splitlines())
        losses[count] = [row["loss"] for row in rows if "loss" in row]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    config.regularize.neftune = 5.0
    with pytest.raises(ValueError, match="several passes of a microbatch"):
        train(config, tmp_path / "refused")


def test_a_run_learns_to_find_passages_and_says_what_it_started_from(pair_config, tmp_path, capsys):
    pair_config.train.update(duration="12 epochs", microbatches=2)
    second = tmp_path / "second.jsonl"  # that is not trained on
    rows = [{"query": f"{i}？", "pos": f"价格是{i}", "neg": []} for i in range(9)]
    second.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    pair_config.integrate.shifted_files = str(second)
    results = train(pair_config, tmp_path / "run")
    rows = results["models"]
    assert list(rows)[:3] == ["BM25 on characters", "BM25 on words", "before training"]
    last = rows[list(rows)[-1]]
    # The shifted set stands beside the test split, of every row.
    assert {row["shifted"]["ndcg_10"]["count"] for row in rows.values()} == {9}
    assert "shifted set: nDCG@10" in (said := capsys.readouterr().out)
    assert re.search(r"On 9 shifted examples, the .* the model before training", said)
    assert last["loss"]["value"] < rows["before training"]["loss"]["value"]
    assert {"ndcg_10", "recall_1", "mrr_10", "mean_cosine", "effective_rank"} <= last.keys()
    texts = tmp_path / "texts.txt"
    texts.write_text("这家酒店的房间非常好\n糟糕\n")
    pair_config.predict.update(input=str(texts), output=str(tmp_path / "out.jsonl"))
    predict(pair_config, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [record["text"] for record in records] == ["这家酒店的房间非常好", "糟糕"]
    vectors_NxE = np.load(tmp_path / "out_vectors.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors_NxE, axis=1), 1, atol=1e-5)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("说实话，价格太差了\n糟糕\n这家酒店的早餐很满意\n")
    pair_config.embedding.update(corpus=str(corpus), nearest=2)
    capsys.readouterr()
    for said in ("", "are read from", "is of other texts: its"):
        predict(pair_config, tmp_path / "run")
        output = capsys.readouterr().out
        assert said in output and "no passage" not in output
        records = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
        assert all(len(record["nearest"]) == 2 for record in records)
        cosines = [[found["cosine"] for found in record["nearest"]] for record in records]
        assert all(first >= second for first, second in cosines)
        if said:
            corpus.write_text("说实话，价格太差了\n糟糕\n")


@pytest.mark.parametrize("by", ["model", "bm25"])
def test_mined_negatives_belong_to_no_query_and_the_task_reads_them(
    pair_config, tmp_path, by, capsys
):
    pair_config.mine.update(by=by, ranks=(2, 6), negatives=3, below=1e3)
    output = mine(pair_config, tmp_path)
    records = [json.loads(line) for line in output.open()]
    assert "To train on them: --config.data.files=" in capsys.readouterr().out
    # Cosines of random weights may be below 0, and nothing is below a thousand times that.
    assert {len(record["neg"]) for record in records} == ({3} if by == "bm25" else {0, 3})
    assert not any({*r["neg"]} & {*r["pos"], r["query"]} for r in records)
    assert all(r["neg_scores"] == sorted(r["neg_scores"], reverse=True) for r in records)
    pair_config.data.update(files=str(output), format="flag_embedding")
    pair_config.data.split.kind = "group"
    train_split = load_split(prepare(pair_config.data), "train", limit=0)
    assert {*map(len, train_split.negatives_N)} <= {0, 3}


def test_equal_vectors_find_nothing_and_are_known_to_have_learned_nothing(pair_config):
    backbone = SimpleNamespace(width=4, model_type="bert")
    task = Embedding(pair_config, (), tokenizer=None, backbone=backbone)
    examples = Examples(
        texts_N=object_array(["甲", "乙", "丙", "甲"]),
        labels_N=None,
        ids_N=np.arange(4),
        pairs_N=object_array(["a", "b", "c", "d"]),
        negatives_N=object_array([("b",), ("e",), (), ()]),
    )
    outputs = {"vectors_NxKxE": np.ones((4, 3, 4), np.float32), "scale_N": np.full(4, 20.0)}
    predictions = Predictions(np.arange(4), outputs)
    summary = summarise(task.score(predictions, examples))
    values = {metric.name: summary[metric.name]["value"] for metric in task.metrics}
    # Passages a, b, c, d, e are equal: the first in order come first, and 甲 has two of them.
    assert values["recall_1"] == pytest.approx(0.5 / 3)
    expected = np.mean(np.log([4, 5, 5, 4]))
    assert values["loss"] == pytest.approx(expected, rel=1e-6)
    guess = task.guess_loss(examples)
    assert "no better than that of a guess" in nothing_learned(values, guess, "")
    records = list(task.describe(predictions, examples))
    assert [record["wrong"] for record in records] == [False, True, True, False]
    assert {record["nearest"] for record in records} == {"a"}


def test_cosines_of_a_run_follow_the_grades(pair_config, tmp_path):
    config = graded(pair_config)
    config.train.duration = "2 epochs"
    results = train(config, tmp_path)
    for row in results["models"].values():
        assert {"spearman", "pearson", "loss"} <= row.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.pair_column": ""}, "have no passages"),
        ({"data.batch_size": 1}, "no others to compare with"),
        ({"embedding.loss": "cosent"}, "is for grades"),
        ({"embedding.loss": "listwise"}, "does not fit"),
        ({"embedding.dimensions": (64,)}, "vectors have 32 dimensions"),
        ({"model.pooling": "pooler"}, "an embedding is the 'mean'"),
        ({"embedding.loss": "triplet", "embedding.negatives": 0}, "compares with negatives"),
        ({"embedding.loss": "triplet", "data.negatives_column": ""}, "no negatives: set"),
        (
            {"embedding.passage_template": "passage {pair}"},
            "passage_template=.* must hold",
        ),
        ({"data.template": "{text}{pair}"}, "a vector of its own"),
        ({"train.microbatches": 2, "regularize.neftune": 5.0}, "several passes of a microbatch"),
    ],
)
def test_bad_input_is_named(pair_config, tmp_path, change, message):
    with pair_config.unlocked():
        pair_config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        train(pair_config, tmp_path)


def test_positives_of_flag_embedding_are_examples_and_their_query_is_one_group(
    pair_config, tmp_path, capsys
):
    path, problems = tmp_path / "flag.jsonl", {}
    rows = [
        {"query": "甲", "pos": ["乙乙", "丙丙"], "neg": ["丁丁", "乙乙", "丁丁"]},
        {"query": "戊", "pos": [], "neg": ["己己"]},
        {"query": "庚", "pos": ["辛辛"]},
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    pair_config.data.update(files=str(path), format="flag_embedding")
    records = list(sources.read(pair_config.data, problems))
    found = [(r.text, r.pair, r.negatives, r.group) for r in records]
    assert found == [
        ("甲", "乙乙", ("丁丁", "乙乙", "丁丁"), "甲"),
        ("甲", "丙丙", ("丁丁", "乙乙", "丁丁"), "甲"),
        ("庚", "辛辛", (), "庚"),
    ]
    assert problems == {"no_positive": [f"{path}:2"]}


def test_negatives_that_recoding_makes_the_positive_are_left_out_and_counted(pair_config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [(f"问题{i}", f"答案Ab{i}", [f"答案aB{i} ", "", "别的", "别的"]) for i in range(40)]
    rows = [dict(zip(("query", "pos", "neg"), row, strict=True)) for row in rows]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    pair_config.data.update(files=str(path), normalization=("lower",))
    prepared = prepare(pair_config.data)
    assert {*map(len, load_split(prepared, "train", limit=0).negatives_N)} == {1}
    said = "Left out: 120 negatives that are empty, or equal"
    assert said in RunData(pair_config, prepared).prose()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("别的", ("别的",)),
        ('["甲", "乙"]', ("甲", "乙")),
        (["甲", "乙"], ("甲", "乙")),
        ("[图片] 很好", ("[图片] 很好",)),
        ("", ()),
        (float("nan"), ()),
        (None, ()),
    ],
)
def test_negatives_are_read_as_they_are_written(cell, expected):
    assert columns.negatives(cell, "neg") == expected


@pytest.mark.parametrize("cell", ["['甲', '乙']", '["甲", "乙"', 7, {"a": 1}, [3]])
def test_negatives_that_cannot_be_read_are_named(cell):
    with pytest.raises(ValueError, match="negative"):
        columns.negatives(cell, "neg")


@pytest.mark.parametrize("task", ["classification", "reranking"])
def test_pooling_by_a_folder_is_for_embeddings_alone(tiny_config, tmp_path, task):
    tiny_config.task = task
    tiny_config.model.update(pooling="auto", head="linear", label_words=())
    with pytest.raises(ValueError, match="makes no vectors"):
        train(tiny_config, tmp_path)


def test_vectors_of_a_corpus_are_made_again_for_other_weights(pair_config, tmp_path, capsys):
    pair_config.train.update(duration="2 steps", integrate=False)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("价格太差了" * 400 + "\n糟糕\n")  # the first is longer than what is read
    pair_config.embedding.corpus = pair_config.predict.input = str(corpus)
    pair_config.predict.output = str(tmp_path / "out.jsonl")
    folder = tmp_path / "run"
    for rate in (1e-3, 2e-3):  # the same steps, names and files, and other weights
        pair_config.optimizer.learning_rate = rate
        train(pair_config, folder)
        capsys.readouterr()
        predict(pair_config, folder)
        said = capsys.readouterr().out
        assert "1 of 2 passage examples are longer" in said or rate == 2e-3  # said once
        for path in ("checkpoints", "results.json", "config.json"):
            remove(folder / path)
    assert "is of other weights: its vectors are made again" in said


def test_losses_are_at_the_scale_that_suits_the_cosines(pair_config):
    """Vectors near each other rank as those far apart do, and get nearly the same loss."""
    backbone = SimpleNamespace(width=9, model_type="bert")
    task = Embedding(pair_config, (), tokenizer=None, backbone=backbone)
    names = [f"{i:03}" for i in range(120)]
    examples = Examples(
        texts_N=object_array([f"问{name}" for name in names]),
        labels_N=None,
        ids_N=np.arange(120),
        pairs_N=object_array([f"答{name}" for name in names]),
    )
    rng = np.random.default_rng(0)
    queries, losses, scales = rng.normal(size=(120, 8)), [], []
    vectors_NxKxE = np.stack([queries, queries + rng.normal(size=(120, 8))], axis=1)
    vectors_NxKxE /= np.linalg.norm(vectors_NxKxE, axis=-1, keepdims=True)
    for shared in (0.0, 3.0):  # 3: cosines are between 0.8 and 1
        near = np.concatenate([vectors_NxKxE, np.full((120, 2, 1), shared)], axis=-1)
        outputs = {"vectors_NxKxE": near.astype(np.float32), "scale_N": np.full(120, 20.0)}
        predictions = Predictions(np.arange(120), outputs)

        def loss(scale, predictions=predictions):
            at = dataclasses.replace(predictions, fitted={"scale": scale})
            return summarise(task.score(at, examples))["loss"]["value"]

        scales.append(task.fit(predictions, examples)["scale"])
        losses.append(loss(scales[-1]))
        assert losses[-1] <= min(loss(scales[-1] * factor) for factor in (0.8, 1.25))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert scales[1] == pytest.approx(10 * scales[0], rel=0.02)
