"""Generation end to end on tiny models: what counts, what is written, what is left out."""

import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import counted, estimate
from input_pipeline.batches.chat import pack_messages
from input_pipeline.batches.targets import Chunk
from input_pipeline.examples import Examples, object_array
from models import adapters
from models.backbone import parameter_shapes, parts_of
from models.generation import Decoding
from models.heads import Model
from models.pretrained import write_pretrained
from models.t5 import T5Config
from tasks.generation import Generation
from tasks.limits import Given
from tasks.writing import Writer
from training.data import load_data
from training.experiment import build
from training.sharding import put_batch
from workflows.predict import predict
from workflows.test import test as open_test
from workflows.train import train

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}：{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
SHORT = {"房间": "好", "早餐": "差", "电池": "不好", "价格": "很好"}


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Folders of a decoder and a T5, of random weights."""
    folder = tmp_path_factory.mktemp("t5")
    sizes = {"width": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=1700, head_size=8, hidden=16, **sizes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(len(leaf.shape) == 1, 0.3, leaf.shape).astype("f4"),
        parameter_shapes(config, parts_of(config)),
    )
    write_pretrained(folder, config, params)
    shutil.copy(FIXTURES / "tokenizers" / "t5" / "spiece.model", folder)
    return {"tiny": tiny_checkpoint, "t5": folder}


@pytest.fixture(scope="module")
def make_generation(checkpoints, tmp_path_factory):
    """A function of a checkpoint's name: a config on prompts that each have a short answer."""
    file = tmp_path_factory.mktemp("data") / "answers.jsonl"
    rows = [
        {"text": f"第{number}次，{thing}怎么样", "pair": answer}
        for number in range(24)
        for thing, answer in SHORT.items()
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")

    def make(name: str, **generation):
        config = common.get_config()
        config.task = "generation"
        config.data.update(source="files", files=str(file), pair_column="pair", label_column="")
        config.data.update(prepared_dir=str(file.parent / "prepared"), batch_size=8)
        config.data.template = "问：{text}\n答：{pair}。"
        config.data.audit.kind = "off"
        config.layout.update(max_length=48, row_length=64)
        config.model.checkpoint = str(checkpoints[name])
        config.optimizer.learning_rate = 1e-2
        config.train.update(duration="30 steps", log_every="10 steps", keep_latest=2)
        config.integrate.update(methods=("interpolation", "soup"), points=3)
        config.train.checkpoint_every = config.eval.every = "15 steps"
        config.generation.update(max_tokens=8, examples=4, **generation)
        return config

    return make


@pytest.fixture(scope="module")
def finished(make_generation, tmp_path_factory):
    """A config, its finished workdir, and what training returned."""
    workdir = tmp_path_factory.mktemp("finished")
    config = make_generation("tiny")
    return config, workdir, train(config, workdir)


def made(config, tmp_path, **examples):
    """A task with its encoder, and examples."""
    experiment = build(config, tmp_path, [], lambda line: None)
    columns = {name: object_array(values) for name, values in examples.items()}
    count = len(examples["texts_N"])
    return experiment, Examples(labels_N=None, ids_N=np.arange(count) * 10, **columns)


def test_it_learns_to_answer_and_beats_its_floors(finished):
    _, workdir, results = finished
    models = results["models"]
    kinds = [candidate["kind"] for candidate in results["integration"]["candidates"]]
    assert kinds == ["interpolation", "single", "single", "soup"]
    bits = {row: m["bits_per_character"]["value"] for row, m in models.items() if len(m) > 3}
    assert bits["fine-tuned"] < models["character 5-grams"]["bits_per_character"]["value"]
    assert models["fine-tuned"]["chrf"]["value"] > 0.3
    assert models["nearest training prompt"]["chrf"]["value"] > 0
    assert "beats character 5-grams" in results["conclusion"]
    for line in (workdir / "errors_test.jsonl").read_text("utf-8").splitlines():
        assert json.loads(line)["bits_per_character"] > 0


def test_written_texts_without_sacrebleu_fail_before_training(
    make_generation, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[generation\]', or set it to 0"):
        train(make_generation("tiny"), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_the_test_mode_finds_what_training_reported(finished):
    config, workdir, results = finished
    found = open_test(config, workdir)["models"]["fine-tuned"]
    reported = results["models"]["fine-tuned"]
    for name in ("bits_per_character", "perplexity", "accuracy", "chrf", "bleu", "rouge_l"):
        assert found[name]["value"] == pytest.approx(reported[name]["value"], rel=1e-4)


def test_predict_mode_answers_every_prompt(finished, tmp_path):
    config, workdir, _ = finished
    config = config.copy_and_resolve_references()
    config.predict.input = str(tmp_path / "prompts.jsonl")
    config.predict.output = str(tmp_path / "out.jsonl")
    prompts = [f"第{i}次，早餐怎么样" for i in range(6)] + ["长" * 100]
    rows = [json.dumps({"text": prompt}, ensure_ascii=False) for prompt in prompts]
    Path(config.predict.input).write_text("\n".join(rows), "utf-8")
    predict(config, workdir)
    found = [json.loads(line) for line in Path(config.predict.output).read_text().splitlines()]
    assert [row["prompt"] for row in found] == prompts
    assert all(isinstance(row["prediction"], str) and "wrong" not in row for row in found[:-1])
    assert found[-1]["prediction"] is None  # too long, which is not cut unasked
    assert found[0]["prediction"] in SHORT.values()


def test_layouts_give_the_same_loss_and_gradients(make_generation, tmp_path):
    found = {}
    for kind in ("pad", "pack"):
        config = make_generation("tiny")
        config.layout.kind = kind
        examples = load_data(config).split("train")
        experiment = build(config, tmp_path, [], lambda line: None, training=examples)
        windows = experiment.windows(examples, training=True)
        batch = next(experiment.pipeline.train(windows, first_example=0))
        part = {key: array[0] for key, array in batch.items()}

        def loss(params, batch, experiment=experiment):
            outputs = experiment.apply({**experiment.frozen, **params}, batch)
            total, weight, _ = experiment.task.loss(outputs, batch)
            return total / weight

        step = jax.jit(jax.value_and_grad(loss))
        shape = part["tokens_RxL"].shape
        batch = put_batch(part, experiment.mesh)
        found[kind] = shape, *jax.device_get(step(experiment.put(experiment.initial), batch))
    (shape, loss, gradients), (other_shape, other_loss, others) = found.values()
    assert shape != other_shape
    assert loss == pytest.approx(other_loss, rel=1e-5)
    for path, gradient in gradients.items():
        difference = np.linalg.norm(gradient - others[path])
        assert difference <= 2e-5 * np.linalg.norm(others[path]) + 1e-8, path


@pytest.mark.parametrize("name", ["tiny", "t5"])
def test_what_is_asked_for_is_the_answer_alone(make_generation, tmp_path, name):
    texts = [pack_messages([("user", "早餐怎么样"), ("assistant", a)]) for a in ("好", "很好")]
    experiment, examples = made(make_generation(name), tmp_path, texts_N=texts)
    task, encoder = experiment.task, experiment.pipeline.encoder
    encoded = encoder(texts)
    chunk = Chunk(examples, np.arange(2), np.zeros(2), texts, None, 0, training=True)
    targets = task.targets(encoded, chunk)
    asked = targets.positions["targets_RxL"]
    expected = encoded.tokens[encoded.fields == 1]
    np.testing.assert_array_equal(asked[asked > 0] - 1, expected)
    assert task.tokenizer.decode(expected).replace(" ", "") == "好。很好。"
    where = np.flatnonzero(asked)
    if name == "tiny":
        np.testing.assert_array_equal(encoded.tokens[where + 1], expected)
    else:
        np.testing.assert_array_equal(targets.positions["is_target_RxL"], encoded.fields == 1)
    assert task.counted(encoded, targets).sum() == len(expected)


@pytest.mark.parametrize(("name", "kind"), [("tiny", "lora"), ("t5", "full")])
def test_what_is_written_is_what_the_loss_calls_likeliest(make_generation, tmp_path, name, kind):
    config = make_generation(name)
    config.adapt.kind = kind
    experiment, _ = made(config, tmp_path, texts_N=["房间"])
    rng = np.random.default_rng(0)
    params = {**experiment.frozen, **experiment.put(experiment.initial)}
    params = {
        path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
        if adapters.is_added(path)
        else leaf
        for path, leaf in params.items()
    }
    task, encoder = experiment.task, experiment.pipeline.encoder
    prompts = encoder.prompts([[("user", "房间好"), ("assistant", "")]])
    adapted = functools.partial(adapters.adapted, config.adapt)
    decoding = Decoding(max_tokens=6, end_ids=(-1,))
    writer = Writer(experiment.model, adapted, decoding, rows=2, seed=0)
    [written] = writer(params, prompts, [3])
    tokens = np.array([*prompts[0], *written])
    is_answer = np.arange(len(tokens)) >= len(prompts[0])
    asked = np.where(is_answer, tokens + 1, 0)
    batch = {
        "tokens_RxL": tokens,
        "positions_RxL": np.arange(len(tokens)),
        "segments_RxL": np.ones_like(tokens),
        "types_RxL": np.zeros_like(tokens),
    }
    if name == "t5":
        batch |= {"is_target_RxL": is_answer.astype(int), "targets_RxL": asked}
    else:
        batch["targets_RxL"] = np.append(asked[1:], 0)
    batch = {key: jnp.asarray(value, jnp.int32)[None] for key, value in batch.items()}
    batch["weights_B"] = jnp.ones(1)
    outputs = experiment.apply(params, batch)
    best = np.asarray(outputs["best_RxL"])[np.asarray(batch["targets_RxL"]) > 0]
    assert best.tolist() == written
    assert isinstance(experiment.model, Model) and task.parts


def test_draws_do_not_depend_on_what_else_is_written(make_generation, tmp_path):
    experiment, _ = made(make_generation("tiny"), tmp_path, texts_N=["房间"])
    encoder = experiment.pipeline.encoder
    words = ["房间", "早餐怎么样", "价格" * 12]
    prompts = encoder.prompts([[("user", word), ("assistant", "")] for word in words])
    params = {**experiment.frozen, **experiment.put(experiment.initial)}
    adapted = functools.partial(adapters.adapted, experiment.config.adapt)
    decoding = Decoding(max_tokens=6, end_ids=encoder.stop_ids, temperature=1.5)
    writer = Writer(experiment.model, adapted, decoding, rows=2, seed=1)
    ids = [5, 2**40, 9]
    together = writer(params, prompts, ids)
    assert together == [writer(params, [prompts[k]], [ids[k]])[0] for k in range(3)]
    assert together[0] != writer(params, prompts[:1], [6])[0]


def told(experiment, examples, **options):
    """What the start says of examples: their limits as (count, total, what)."""
    windows = experiment.windows(examples, training=options["training"])
    given = Given(examples, windows, experiment.pipeline, **{"complete": False, **options})
    limits = experiment.task.limits(given)
    return [(limit.count, limit.total, limit.what) for limit in limits if limit.count]


def test_long_and_empty_examples_are_counted(make_generation, tmp_path):
    texts, pairs = ["房间", "长" * 60, "早餐", "价格"], ["好", "差", " ", "长" * 60]
    config = make_generation("tiny")
    experiment, examples = made(config, tmp_path, texts_N=texts, pairs_N=pairs)
    task, encoder = experiment.task, experiment.pipeline.encoder
    windows = task.windows(examples, encoder, training=True)
    assert windows.ids_N.tolist() == [0]
    long = f"examples are longer than config.layout.max_length={config.layout.max_length} tokens"
    assert told(experiment, examples, training=True) == [
        (1, 4, "examples have an empty answer and are dropped"),
        (2, 4, f"{long} and dropped"),
    ]
    assert task.windows(examples, encoder, training=False).ids_N.tolist() == [0, 20]

    config.generation.on_long = "cut"
    windows = task.windows(examples, encoder, training=True)
    assert windows.ids_N.tolist() == [0, 10]
    assert (encoder(windows.texts_N).lengths_B <= config.layout.max_length).all()
    assert json.loads(windows.texts_N[1])[1] == ["assistant", "差"]

    config.generation.on_long = "stop"
    with pytest.raises(ValueError, match=r"2 of 4 examples are longer .* first is \(id 10\)"):
        task.windows(examples, encoder, training=True)
    empty = examples.take(np.flatnonzero(examples.ids_N == 20))
    with pytest.raises(ValueError, match="all 1 train examples have an empty answer"):
        task.check(empty, "train")


def test_what_was_left_out_is_no_part_of_the_scores(make_generation, tmp_path):
    pairs = ["好", "差", ""]
    config = make_generation("tiny")
    experiment, examples = made(config, tmp_path, texts_N=["一", "二", "三"], pairs_N=pairs)
    task = experiment.task
    outputs = {
        "targets_N": object_array([np.array([5, 6]), np.array([], int), np.array([], int)]),
        "log_probability_N": object_array([np.log([0.5, 0.25]), np.zeros(0), np.zeros(0)]),
        "best_N": object_array([np.array([4, 0]), np.zeros(0, int), np.zeros(0, int)]),
        "texts_N": object_array(["好", None, "写了"]),
    }
    predictions = Predictions(examples.ids_N, outputs)
    scores = task.score(predictions, examples)
    assert estimate(scores, "bits_per_character")["value"] == pytest.approx(3)
    assert estimate(scores, "perplexity")["value"] == pytest.approx(8**0.5)
    assert estimate(scores, "accuracy")["value"] == 0.5
    assert estimate(scores, "rouge_l")["value"] == 1
    assert {estimate(scores, metric.name)["count"] for metric in scores.metrics} == {1}
    assert scores.detail == {"without_answer": 1, "too_long": 1}
    rows = list(task.describe(predictions, examples))
    assert [row["prediction"] for row in rows] == ["好", None, "写了"]
    assert [row.get("wrong") for row in rows] == [False, True, None]
    assert rows[0]["bits_per_character"] == 3


def test_written_texts_are_counted_apart_and_floors_are_about_the_same(make_generation, tmp_path):
    config = make_generation("tiny")
    texts, pairs = ["房间", "早餐", "电池", "价格", "长" * 60], ["好", " ", "不好", "很好", "差"]
    experiment, examples = made(config, tmp_path, texts_N=texts, pairs_N=pairs)
    config.generation.examples = 2
    params, task = experiment.put(experiment.initial), experiment.task
    scores = task.score(experiment.predict(params, examples, {}, complete=True), examples)
    assert scores.detail == {"without_answer": 1, "too_long": 1}
    expected = {"bits_per_character": 3, "perplexity": 3, "accuracy": 3}
    expected |= {"chrf": 2, "bleu": 2, "rouge_l": 2}
    assert {m.name: estimate(scores, m.name)["count"] for m in scores.metrics} == expected
    for floor in task.baselines(examples, examples).values():
        for metric in floor.metrics:
            if metric.name in expected:
                assert estimate(floor, metric.name)["count"] == expected[metric.name]
                np.testing.assert_array_equal(
                    counted(floor.statistics[metric.name]), counted(scores.statistics[metric.name])
                )


@pytest.mark.parametrize("train_on", ["last", "all"])
def test_a_dialogue_without_its_last_answer_is_a_prompt_and_no_part_of_the_metrics(
    make_generation, tmp_path, train_on
):
    """The answer before it is not what is asked for, whatever is trained on."""
    history = pack_messages([("user", "早"), ("assistant", "早上好")])
    columns = {"texts_N": ["一", "二", "三"], "pairs_N": ["好", "", " "]}
    config = make_generation("tiny", chat_template=CHAT, train_on=train_on)
    experiment, examples = made(config, tmp_path, **columns, histories_N=[history] * 3)
    params, task = experiment.put(experiment.initial), experiment.task
    task.check(examples, "test")
    predictions = experiment.predict(params, examples, {}, complete=True)
    assert told(experiment, examples, training=False) == [
        (2, 3, "examples have an empty answer and are prompts only, in no metric")
    ]
    alone = examples.take(np.array([0]))
    expected = task.score(experiment.predict(params, alone, {}, complete=True), alone)
    scores = task.score(predictions, examples)
    assert scores.detail == {"without_answer": 2, "too_long": 0}
    for metric in scores.metrics:
        found, own = estimate(scores, metric.name), estimate(expected, metric.name)
        assert found["value"] == pytest.approx(own["value"], rel=1e-4)
        assert found["count"] == own["count"] == 1
    records = list(task.describe(predictions, examples))
    assert ["wrong" in record for record in records] == [True, False, False]
    assert all(isinstance(record["prediction"], str) for record in records)


def test_dialogues_need_a_chat_template(make_generation, tmp_path):
    history = [pack_messages([("user", "早"), ("assistant", "早")]), ""]
    columns = {"texts_N": ["一", "二"], "pairs_N": ["好", "差"], "histories_N": history}
    experiment, examples = made(make_generation("tiny"), tmp_path, **columns)
    with pytest.raises(ValueError, match="several messages, for which data.template has no places"):
        experiment.task.check(examples, "train")
    counts = []
    for train_on in ("last", "all"):
        config = make_generation("tiny", chat_template=CHAT, train_on=train_on)
        experiment, _ = made(config, tmp_path, **columns)
        experiment.task.check(examples, "train")
        windows = experiment.windows(examples, training=True)
        encoded = experiment.pipeline.encoder(windows.texts_N)
        counted = encoded.tokens[experiment.task.counted(encoded, None)]
        counts.append(experiment.tokenizer.decode(counted))
        chunk = Chunk(windows, np.arange(2), np.zeros(2), windows.texts_N, None, 0, training=False)
        asked = experiment.task.targets(encoded, chunk).positions["targets_RxL"]
        assert experiment.tokenizer.decode(asked[asked > 0] - 1) == "好差"  # what is evaluated
    assert counts == ["好差", "早好差"]
    none_N = object_array([np.zeros(0)] * 2)
    names = ("targets_N", "log_probability_N", "best_N")
    predictions = Predictions(examples.ids_N, dict.fromkeys(names, none_N))
    [record, _] = experiment.task.describe(predictions, examples)
    assert record["history"] == [("user", "早"), ("assistant", "早")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation.deletion_rate": 0.1}, "deletion_rate would change answers"),
        ({"model.bidirectional": True}, "needs a decoder or T5"),
        ({"generation.beams": 2, "generation.temperature": 1.0}, "beams=2 searches"),
        ({"generation.chat_template": "checkpoint"}, "comes without one"),
        ({"data.template": "{text}"}, "must hold {text}, the prompt, and behind it"),
    ],
)
def test_unfit_options_are_refused(make_generation, tmp_path, changes, message):
    config = make_generation("tiny")
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        build(config, tmp_path, [], lambda line: None)


def test_answers_are_needed(make_generation, tmp_path):
    experiment, examples = made(make_generation("tiny"), tmp_path, texts_N=["一"])
    assert isinstance(experiment.task, Generation)
    with pytest.raises(ValueError, match="the train examples have no answers"):
        experiment.task.check(examples, "train")
