"""Reading comprehension: answers go to tokens and back, windows compete, layouts agree."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.answers import Answer
from evaluation.evaluate import Predictions
from input_pipeline.batches.targets import Chunk
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples, Ragged, object_array
from tasks.reading_comprehension import ReadingComprehension
from training.experiment import build
from training.sharding import put_batch
from workflows.predict import predict
from workflows.train import train

PLACES = ("北京", "上海", "广州", "成都", "西安", "南京", "苏州", "杭州")
PEOPLE = ("小王", "小李", "小张", "小陈")
QUESTION = "这家酒店在哪里？"


def contexts():
    """Contexts of different lengths whose answer is the one place named in them."""
    for i in range(64):
        place, person = PLACES[i % 8], PEOPLE[i // 8 % 4]
        filler = "早餐非常好，值得推荐！" * (i % 5)
        yield f"{filler}{person}说这家酒店在{place}，{filler}价格比想象中好得多。", place


@pytest.fixture
def reading_config(tiny_config, tmp_path):
    rows = [
        {
            "context": text,
            "question": QUESTION,
            "id": f"Q{i}",
            "answers": [{"text": place, "answer_start": text.index(place)}],
        }
        for i, (text, place) in enumerate(contexts())
    ]
    path = tmp_path / "reading.json"
    paragraphs = [{"context": row["context"], "qas": [row]} for row in rows]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), "utf-8")
    config = tiny_config
    config.task = "reading_comprehension"
    config.data.update(
        files=str(path),
        format="squad",
        template="{pair}{text}",
        overlap=16,
        max_train_examples=40,
        max_validation_examples=0,
        batch_size=8,
    )
    config.data.cleaning.label_conflicts = "keep"
    config.data.split.update(kind="group", validation=8, test=8)
    config.data.audit.kind = "off"
    config.layout.update(max_length=48, row_length=96)
    config.model.update(head="linear", pooling="mean", bidirectional=True)
    return config


@pytest.fixture
def experiment(reading_config, tmp_path):
    return build_of(reading_config, tmp_path)


def build_of(config, tmp_path):
    return build(config, tmp_path / "run", prepare(config.data).labels, lambda line: None)


def examples_of(texts, spans, *, pairs=None) -> Examples:
    return Examples(
        object_array(texts),
        None,
        5 + np.arange(len(texts), dtype=np.int64),
        pairs_N=object_array(pairs or [QUESTION] * len(texts)),
        spans=Ragged.of(spans, width=3),
        span_labels=("answer",),
    )


def targets_of(experiment, examples):
    windows = experiment.windows(examples, training=True)
    encoder = experiment.pipeline.encoder
    encoded = encoder(windows.texts_N, windows.pairs_N, offsets=True)
    indices = np.arange(len(windows))
    chunk = Chunk(windows, indices, 0 * indices, windows.texts_N, windows.spans, 0, True)
    return windows, encoded, experiment.task.targets(encoded, chunk).positions


def truth_as_predictions(windows, encoded, positions) -> Predictions:
    """What a model would say that is sure of the truth."""
    outputs = {}
    for name, column in (("start_N", "starts_RxL"), ("end_N", "ends_RxL")):
        logs = np.where(positions[column] > 0, -0.01, -20.0)
        logs = np.where(positions["asked_RxL"] > 0, logs, -1e9)
        outputs[name] = object_array(np.split(logs, encoded.starts_B[1:]))
    return Predictions(windows.ids_N, outputs)


def test_answers_survive_windows_tokens_and_the_way_back(experiment):
    found = [(text, place) for text, place in contexts()]
    found.append(("酒店 在 龘龘😀 附近。" + "早餐不错，五星好评～" * 9, "龘龘😀"))  # of byte pieces
    found.append(("早餐不错，五星好评～" * 9 + "\n\n在 Suzhou ", "Suzhou"))
    texts, places = zip(*found, strict=True)
    spans = [[(t.index(p), t.index(p) + len(p), 0)] for t, p in found]
    examples = examples_of(texts, spans)
    windows, encoded, positions = targets_of(experiment, examples)
    assert len(windows) > len(examples)
    asked = np.add.reduceat(positions["asked_RxL"], encoded.starts_B)
    for column in ("starts_RxL", "ends_RxL"):
        assert (np.add.reduceat(positions[column], encoded.starts_B) == 1).all()
        assert not (positions[column] & ~positions["asked_RxL"]).any()
    # Windows without the answer name their first position; asked are that and the context.
    nulls = positions["starts_RxL"][encoded.starts_B] == 1
    assert nulls.tolist() == [not len(windows.spans.row(i)) for i in range(len(windows))]
    assert (asked > 1).all()
    predictions = truth_as_predictions(windows, encoded, positions)
    encoder = experiment.pipeline.encoder
    decoded = experiment.task.decode(predictions, windows, examples, encoder)
    records = list(experiment.task.describe(decoded, examples))
    assert [record["id"] for record in records] == examples.ids_N.tolist()
    right = [place in record["prediction"] for record, place in zip(records, places, strict=True)]
    assert all(right)  # tokens may take in a neighbour, but cut nothing off
    exact = [r["prediction"] == place for r, place in zip(records, places, strict=True)]
    assert np.mean(exact) > 0.5
    for record in records:
        start = record["start"]
        assert record["text"][start:].startswith(record["prediction"])
        assert record["confidence"] > 0.9 and record["wrong"] == (not record_is_right(record))


def record_is_right(record):
    return record["prediction"] in record["answers"]


def test_no_answer_must_beat_the_best_by_the_threshold(experiment):
    examples = examples_of(["在北京，不在上海。"] * 2, [[(1, 3, 0)], []])
    best = (Answer(1, 3, -2.0), Answer(6, 8, -3.0))
    predictions = Predictions(
        examples.ids_N,
        {"answers_N": object_array([best, best]), "null_N": np.array([-2.5, -0.5])},
    )
    task = experiment.task
    texts = lambda: [r["prediction"] for r in task.describe(predictions, examples)]  # noqa: E731
    assert texts() == ["北京", "北京"]
    with pytest.raises(ValueError, match="1 of 2 train .*config.reading.no_answer"):
        task.check(examples, "train")
    task.config.reading.no_answer = True
    task.check(examples, "train")
    assert texts() == ["北京", ""]
    scores = task.score(predictions, examples)
    assert scores.statistics["exact_match"][:, 0].tolist() == [1, 1]
    task.config.reading.threshold = 2.0
    assert texts() == ["北京", "北京"]
    assert task.score(predictions, examples).statistics["f1"][:, 0].tolist() == [1, 0]


def test_loss_is_the_cross_entropy_among_a_windows_positions(experiment):
    rng = np.random.default_rng(1)
    segments = np.array([[1, 1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 0, 0, 0]])
    asked = np.array([[1, 1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 0, 0, 0]])
    starts = np.array([[0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]])
    ends = np.array([[0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]])
    logits = rng.normal(size=(2, 7, 2)).astype(np.float32)
    logits[1] = np.nan  # of an example without weight
    batch = {
        "segments_RxL": segments,
        "asked_RxL": asked,
        "starts_RxL": starts,
        "ends_RxL": ends,
        "weights_B": np.array([1.0, 2.0, 0.0, 0.0], np.float32),
    }
    batch = {name: jnp.asarray(value) for name, value in batch.items()}

    def loss(logits_RxLxC):
        total, weight, sums = experiment.task.loss({"logits_RxLxC": logits_RxLxC}, batch)
        return total, (weight, sums)

    (total, (weight, _)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    wanted = 0.0
    for number, factor in ((1, 1.0), (2, 2.0)):
        here = (segments == number) & (asked > 0)
        for column, true in enumerate((starts, ends)):
            scores = logits[here][:, column]
            wanted -= factor / 2 * (scores[true[here] > 0][0] - np.log(np.exp(scores).sum()))
    assert total == pytest.approx(wanted, rel=1e-5) and weight == 3.0
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all() and not gradient[1].any() and not gradient[0, 4].any()
    assert abs(gradient[0, :3].sum()) < 1e-6  # a softmax of its own
    logs = experiment.task.outputs({"logits_RxLxC": jnp.nan_to_num(logits)}, batch)
    probabilities = np.exp(np.asarray(logs["start_RxL"]))
    for number in (1, 2, 3):
        assert probabilities[segments == number].sum() == pytest.approx(1.0, rel=1e-5)
    assert not probabilities[asked == 0].any()


def test_pad_equals_pack_in_loss_and_gradients(reading_config, tmp_path):
    results = {}
    for kind in ("pad", "pack"):
        config = reading_config.copy_and_resolve_references()
        config.layout.update(kind=kind, max_length=64, row_length=192)
        experiment = build_of(config, tmp_path)
        examples = load_split(prepare(config.data), "train", limit=40)
        windows = experiment.windows(examples, training=True)
        experiment.pipeline.plan(windows)
        batch = next(experiment.pipeline.train(windows, first_example=0))
        part = put_batch({name: array[0] for name, array in batch.items()}, experiment.mesh)

        def loss(params, experiment=experiment, part=part):
            outputs = experiment.apply({**experiment.frozen, **params}, part)
            total, weight, _ = experiment.task.loss(outputs, part)
            return total / weight

        # Of normal size, since the head as drawn gives the same everywhere.
        params = experiment.put(experiment.initial)
        params = {k: v * 100 if k == "head/kernel" else v for k, v in params.items()}
        results[kind] = jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
        results[kind] += (part["tokens_RxL"].shape,)
    (one, gradients, shape), (other, others, other_shape) = results.values()
    assert shape != other_shape and one == pytest.approx(other, rel=1e-5)
    for path, gradient in gradients.items():  # that of the head's bias is zero but for rounding
        difference = np.linalg.norm(gradient - others[path])
        assert difference <= 1e-4 * np.linalg.norm(others[path]) + 1e-7, path


def test_it_learns_evaluates_and_predicts(reading_config, tmp_path):
    config = reading_config
    config.train.update(duration="12 epochs", keep_latest=2)
    config.integrate.update(methods=("interpolation", "soup"), points=3)
    config.layout.max_shapes = 1
    config.train.checkpoint_every = config.eval.every = "50%"
    config.train.log_every = "50 steps"
    config.optimizer.learning_rate = 1e-2
    results = train(config, tmp_path / "run")
    kinds = [candidate["kind"] for candidate in results["integration"]["candidates"]]
    assert kinds == ["interpolation", "single", "single", "soup"]
    rows = {row: values["f1"]["value"] for row, values in results["models"].items()}
    floor = max(rows[name] for name in ("first clause", ReadingComprehension.FLOOR))
    assert max(value for name, value in rows.items() if "tuned" in name) > floor
    config.predict.input = str(tmp_path / "questions.jsonl")
    text = "\u3000 " + "早餐非常好，值得推荐！" * 6 + "小王说这家酒店在成都，价格便宜。\n"
    row = {"context": text, "question": QUESTION, "id": "new"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    config.data.update(format="", text_column="context", pair_column="question", id_column="id")
    (line,) = predict(config, tmp_path / "run").read_text("utf-8").splitlines()
    record = json.loads(line)
    assert record["name"] == "new" and "answers" not in record
    assert record["prediction"] == record["n_best"][0]["text"]
    assert record["text"] == text and "成都" in record["prediction"]
    assert text[record["start"] :].startswith(record["prediction"])
    assert all(text[r["start"] :].startswith(r["text"]) for r in record["n_best"])
    assert len(record["n_best"]) <= 20
