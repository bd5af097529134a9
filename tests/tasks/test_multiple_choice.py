"""Multiple choice: one softmax per example whatever the layout, likelihoods, floors, whole runs."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.evaluate import Predictions
from evaluation.metrics import summarise
from input_pipeline.batches.template import Encoded
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples, object_array
from tasks.multiple_choice import MultipleChoice, _next_tokens
from training.experiment import build
from training.sharding import put_batch
from training.state import merge
from workflows.evaluate import evaluate
from workflows.predict import predict
from workflows.train import train

GOOD = ("非常好，值得推荐！", "很满意，下次还会来。", "不错，五星好评～")
BAD = ("太差了，再也不来了！", "很失望，不推荐。", "糟糕，浪费钱……")


@pytest.fixture(scope="module")
def choices_jsonl(reviews, tmp_path_factory):
    """Blanks with two to four choices, of which the good one is right."""
    path = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    rows = []
    for i, (text, _) in enumerate(reviews[::3]):
        answer = i % 2
        choices = [BAD[(i + k) % 3] for k in range(1 + i % 3)]
        choices.insert(answer, GOOD[i % 3])
        rows.append({"text": f"{i}{text[:6]}____，就这样。", "choices": choices, "label": answer})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def choice_config(tiny_config, choices_jsonl):
    tiny_config.task = "multiple_choice"
    tiny_config.data.update(
        files=str(choices_jsonl), choices_column="choices", template="{text}\n{choice}"
    )
    tiny_config.model.update(head="linear", pooling="last", label_words=())
    return tiny_config


def make_task(config, count=3):
    labels = [str(k) for k in range(count)]
    return MultipleChoice(config, labels, tokenizer=None, backbone=None)


def examples_of(rows):
    texts, choices, labels = zip(*rows, strict=True)
    return Examples(
        texts_N=object_array(texts),
        labels_N=np.array(labels, np.int32),
        ids_N=np.arange(len(rows), dtype=np.int64),
        choices_N=object_array(choices),
    )


def test_loss_is_the_softmax_over_the_choices_that_there_are(choice_config):
    task = make_task(choice_config)
    logits_Px1 = np.array([1, 2, 99, 0.5, -1, 3, 7, 7, 7], np.float32)[:, None]
    batch = {
        "choices_BxK": jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]]),
        "labels_B": jnp.array([1, 2, 0]),
        "weights_B": jnp.array([1.0, 1.0, 0.0]),
    }

    def loss(logits):
        return task.loss({"logits_BxC": logits}, batch)[0]

    expected = np.log1p(np.exp(-1)) + np.log(np.exp([0.5, -1, 3]).sum()) - 3
    assert loss(logits_Px1) == pytest.approx(expected, rel=1e-6)
    broken = logits_Px1.copy()
    broken[[2, 6, 7, 8]] = np.nan
    assert loss(broken) == pytest.approx(expected, rel=1e-6)
    gradient = np.asarray(jax.grad(loss)(broken))[:, 0]
    assert np.isfinite(gradient).all()
    assert not gradient[[2, 6, 7, 8]].any()
    _, weight, sums = task.loss({"logits_BxC": logits_Px1}, batch)
    assert (float(weight), float(sums["accuracy"])) == (2, 2)


def steps_of(config, workdir, kind):
    """Loss and gradients of the first step's batch; the shapes, and segments per example."""
    config = config.copy_and_resolve_references()
    config.layout.update(kind=kind, row_length=96)
    prepared = prepare(config.data)
    examples = load_split(prepared, "train", limit=96)
    experiment = build(config, workdir, prepared.labels, lambda line: None)
    rng = np.random.default_rng(0)
    params = {
        path: jnp.asarray(rng.normal(0, 0.3, value.shape), jnp.float32)
        if path.startswith("head/")
        else value
        for path, value in experiment.put(experiment.initial).items()
    }

    @jax.jit
    def step(params, batch):
        def loss(params):
            outputs = experiment.apply({**experiment.frozen, **params}, batch)
            total, weight, _ = experiment.task.loss(outputs, batch)
            return total / weight

        return jax.value_and_grad(loss)(params)

    found, shapes = [], set()
    for batch in itertools.islice(experiment.pipeline.train(examples, first_example=0), 1):
        part = {name: array[0] for name, array in batch.items()}
        there_BxK = np.array(
            [
                np.isin(1 + np.arange(4) + 4 * b, part["segments_RxL"])
                for b in range(len(part["weights_B"]))
            ]
        )
        np.testing.assert_array_equal(there_BxK, part["choices_BxK"] > 0)
        assert {int(row.sum()) for row in there_BxK} == {2, 3, 4}
        shapes.add(part["tokens_RxL"].shape)
        found.append(step(params, put_batch(part, experiment.mesh)))
    return jax.device_get(found), shapes


@pytest.mark.parametrize("head", ["linear", "label_words"])
def test_packed_equals_padded_and_choices_stay_in_one_step(choice_config, tmp_path, head):
    choice_config.model.head = head
    if head == "label_words":
        choice_config.data.template = "{text}"
    padded, pad_shapes = steps_of(choice_config, tmp_path, "pad")
    packed, pack_shapes = steps_of(choice_config, tmp_path, "pack")
    assert pad_shapes != pack_shapes
    for (loss, gradients), (other_loss, others) in zip(packed, padded, strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-5)
        for path, gradient in gradients.items():
            difference = np.linalg.norm(gradient - others[path])
            assert difference <= 2e-5 * np.linalg.norm(others[path]) + 1e-9, path


def test_label_words_score_a_choice_and_what_follows_it_as_the_language_model_does(
    choice_config, tmp_path
):
    choice_config.model.head = "label_words"
    choice_config.data.template = "{text}"
    prepared = prepare(choice_config.data)
    examples = load_split(prepared, "validation", limit=3)
    experiment = build(choice_config, tmp_path, prepared.labels, lambda line: None)
    params = experiment.put(experiment.initial)
    assert not any(path.startswith("head/") for path in params)
    found = experiment.predict(params, examples, {})
    rows = [
        (text, choice)
        for text, choices in zip(examples.texts_N, examples.choices_N, strict=True)
        for choice in choices
    ]
    texts, choices = zip(*rows, strict=True)
    encoded = experiment.pipeline.encoder(texts, choices=choices)
    filled = [text.replace("____", choice) for text, choice in rows]
    assert encoded.tokens[encoded.fields == 0].tolist() == [
        i for ids in experiment.tokenizer.encode_batch(filled) for i in ids
    ]
    there_RxL = np.arange(encoded.lengths_B.max()) < encoded.lengths_B[:, None]
    tokens_RxL = np.zeros(there_RxL.shape, np.int32)
    tokens_RxL[there_RxL] = encoded.tokens
    places_RxL = np.where(there_RxL, np.arange(there_RxL.shape[1]), 0)

    @jax.jit
    def log_probabilities(params):
        backbone = experiment.model.bind({"params": params}).backbone
        zeros_RxL = np.zeros_like(tokens_RxL)
        segments_RxL = there_RxL.astype(np.int32)
        hidden = backbone(tokens_RxL, places_RxL, segments_RxL, zeros_RxL, deterministic=True)
        return jax.nn.log_softmax(backbone.logits(hidden), axis=-1)

    logs_RxLxV = np.asarray(log_probabilities(merge({**experiment.frozen, **params})))
    next_RxL = np.take_along_axis(logs_RxLxV[:, :-1], tokens_RxL[:, 1:, None], axis=2)[..., 0]
    first = 0
    for choices, logits_K in zip(examples.choices_N, found["logits_NxC"], strict=True):
        rows = range(first, first + len(choices))
        first += len(choices)
        shared = np.argmax((tokens_RxL[rows] != tokens_RxL[rows[0]]).any(axis=0)) - 1
        scores = [next_RxL[r, shared : encoded.lengths_B[r] - 1] for r in rows]
        scores = np.array([part.sum() / np.sqrt(len(part)) for part in scores])
        np.testing.assert_allclose(
            logits_K[: len(choices)], scores - np.logaddexp.reduce(scores), atol=2e-4
        )
        assert (logits_K[len(choices) :] < -1e8).all()


@given(st.lists(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=2, max_size=2)))
@settings(max_examples=60)
def test_what_is_asked_tells_choices_apart_as_whole_sequences_do(pairs):
    """Whatever a token costs after what stands before it, shared beginnings cancel."""
    sequences = [tuple([9, *tokens]) for pair in pairs for tokens in pair]
    lengths_B = np.array([len(s) for s in sequences], np.int64)
    tokens = np.array([t for s in sequences for t in s], np.int32)
    zeros = np.zeros(len(tokens), np.int32)
    targets = _next_tokens(
        Encoded(tokens, zeros, lengths_B, np.zeros(len(lengths_B), bool), zeros.astype(np.int8)), 2
    )

    def cost(before, token):
        return hash((before, token)) % 1000

    whole, asked, start = [], [], 0
    for sequence in sequences:
        costs = [cost(sequence[: i + 1], t) for i, t in enumerate(sequence[1:])]
        mine = targets[start : start + len(sequence)]
        assert mine[-1] == 0
        assert all(target in (0, 1 + t) for target, t in zip(mine, sequence[1:], strict=False))
        whole.append(sum(costs))
        asked.append(sum(c for c, target in zip(costs, mine, strict=False) if target))
        start += len(sequence)
    for i in range(0, len(sequences), 2):
        assert whole[i] - whole[i + 1] == asked[i] - asked[i + 1]


def test_run_learns_evaluates_and_predicts(choice_config, tmp_path, choices_jsonl):
    choice_config.train.update(duration="2 epochs", checkpoint_every="50%", keep_latest=2)
    choice_config.integrate.update(methods=("interpolation", "soup", "ensemble"), points=3)
    choice_config.layout.max_shapes = 1
    choice_config.eval.every = "50%"
    results = train(choice_config, tmp_path / "run")
    kinds = [candidate["kind"] for candidate in results["integration"]["candidates"]]
    assert kinds == ["interpolation", "single", "single", "soup", "ensemble"]
    card = results["calibration"]["fine-tuned"]
    assert card["temperature"] != 1
    assert card["bias"] == [0, 0, 0, 0]
    loss = results["models"]["fine-tuned"]["loss"]["value"]
    model = results["models"]["fine-tuned"]["accuracy"]["value"]
    assert model > results["models"][MultipleChoice.FLOOR]["accuracy"]["value"] or model == 1
    assert model > 0.8
    assert loss < 1
    found = evaluate(choice_config, tmp_path / "run")
    logged = [
        json.loads(line)["validation/accuracy"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if "validation/accuracy" in line
    ]
    assert found["accuracy"]["value"] == pytest.approx(max(logged))
    rows = [json.loads(line) for line in choices_jsonl.read_text().splitlines()[:5]]
    for row in rows:
        del row["label"]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice_config.predict.input = str(tmp_path / "new.jsonl")
    lines = predict(choice_config, tmp_path / "run").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [p["choices"] for p in predictions] == [row["choices"] for row in rows]
    for prediction in predictions:
        assert len(prediction["probabilities"]) == len(prediction["choices"])
        assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-4)
        best = int(np.argmax(prediction["probabilities"]))
        assert prediction["prediction"] == prediction["choices"][best]
        assert "label" not in prediction
        assert "wrong" not in prediction


def made_predictions(task, *, sure=4.0):
    """Examples with two or three choices, and a model that is so many times too sure."""
    rng, count = np.random.default_rng(0), 400
    logits_NxK = rng.normal(size=(count, 3)) * 1.5
    logits_NxK[np.arange(count) % 2 == 0, 2] = -1e9
    answers_N = (logits_NxK + rng.gumbel(size=(count, 3))).argmax(axis=1)
    rows = [("文", ("一", "二", "三")[: 2 + i % 2], answer) for i, answer in enumerate(answers_N)]
    logits_BxC = (sure * logits_NxK).astype(np.float32).reshape(-1, 1)
    choices_BxK = (logits_NxK > -1e8).astype(np.int32)
    found = task.outputs({"logits_BxC": logits_BxC}, {"choices_BxK": choices_BxK})
    outputs = {"logits_NxC": np.asarray(found["logits_BxC"])}
    return Predictions(np.arange(count), outputs), examples_of(rows)


@pytest.mark.parametrize("kind", ["temperature", "bias"])
def test_probabilities_are_calibrated_in_scores_and_descriptions_alike(choice_config, kind):
    task = make_task(choice_config)
    predictions, examples = made_predictions(task)
    before = summarise(task.score(predictions, examples))
    choice_config.eval.calibration = kind
    fitted = json.loads(json.dumps(task.fit(predictions, examples)))
    predictions = dataclasses.replace(predictions, fitted=fitted)
    assert fitted["temperature"] == pytest.approx(4, rel=0.2)
    assert fitted["bias"] == [0, 0, 0]  # of choices that differ, none is preferred
    after = summarise(task.score(predictions, examples))
    assert after["accuracy"] == before["accuracy"]
    assert after["loss"]["value"] < before["loss"]["value"] - 0.1
    records = list(task.describe(predictions, examples))
    assert {len(record["probabilities"]) for record in records} == {2, 3}
    for record in records:
        assert sum(record["probabilities"]) == pytest.approx(1, abs=1e-5)
    described = [
        -np.log(record["probabilities"][record["choices"].index(record["label"])])
        for record in records
    ]
    assert np.mean(described) == pytest.approx(after["loss"]["value"], rel=1e-3)
    card = task.calibration(predictions, examples)
    assert card == json.loads(json.dumps(card))
    assert card["after"]["ece"] < card["before"]["ece"] / 2
    assert card["temperature"] == fitted["temperature"]


def test_without_calibration_nothing_is_fitted(choice_config):
    choice_config.eval.calibration = "none"
    task = make_task(choice_config)
    predictions, examples = made_predictions(task)
    assert task.fit(predictions, examples) == {}
    card = task.calibration(predictions, examples)
    assert (card["before"], card["temperature"]) == (card["after"], 1)


def test_floors_find_what_overlap_and_frequency_give_away(choice_config):
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "甲乙丙丁戊" for b in "子丑寅卯"]

    def rows(count, hint):
        for i in range(count):
            first, other = rng.choice(words, 2, replace=False)
            if hint == "frequency":
                first = words[i % 2]
                other = words[2 + rng.integers(len(words) - 2)]
            text = f"这里说到{first}了" if hint == "overlap" else "这里没说"
            label = int(rng.integers(2))
            yield text, (first, other)[:: 1 - 2 * label], label

    task = make_task(choice_config)
    for hint, name in (("overlap", "longest overlap"), ("frequency", "most frequent in training")):
        train_split, test = (examples_of(list(rows(n, hint))) for n in (120, 80))
        scores = task.baselines(train_split, test)
        found = {name: summarise(score) for name, score in scores.items()}
        assert found["chance"]["accuracy"]["value"] == pytest.approx(0.5)
        assert found["chance"]["loss"]["value"] == pytest.approx(np.log(2))
        assert found[name]["accuracy"]["value"] == 1
        assert found[MultipleChoice.FLOOR]["accuracy"]["value"] == 1
        assert found[MultipleChoice.FLOOR]["loss"]["value"] < 0.2


def test_an_answer_does_not_vote_for_itself_in_the_floor(choice_config):
    """Answers that are all different: their one occurrence in training must tell nothing."""
    words = [chr(0x4E00 + i) for i in range(400)]
    train_split, test = (
        examples_of([("文", (words[2 * i], words[2 * i + 1]), i % 2) for i in span])
        for span in (range(100), range(100, 200))
    )
    found = summarise(make_task(choice_config).baselines(train_split, test)[MultipleChoice.FLOOR])
    assert found["loss"]["value"] == pytest.approx(np.log(2), abs=0.02)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("文", ("一", "二", "三", "四"), 0)], r"example 0 has 4 choices.*config\.data\.labels"),
        ([("文", ("一", "二"), 2)], "the answer 2"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choice_config, rows, message):
    with pytest.raises(ValueError, match=message):
        make_task(choice_config).check(examples_of(rows), "validation")


def test_what_cannot_be_scored_is_refused(choice_config, tmp_path):
    with pytest.raises(ValueError, match="two or more choices"):
        make_task(choice_config, count=1)
    choice_config.model.head = "label_words"
    with pytest.raises(ValueError, match="causal language model"):
        build_with(choice_config, tmp_path, bidirectional=True)
    experiment = build_with(choice_config, tmp_path, template="{text}")
    with pytest.raises(ValueError, match="has no blank"):
        experiment.pipeline.encoder(["没有空"], choices=["好"])


def build_with(config, workdir, *, bidirectional=False, template="{text}{choice}"):
    config.model.bidirectional = bidirectional
    config.data.template = template
    return build(config, workdir, ["0", "1"], lambda line: None)
