"""Language modelling end to end on tiny models of the three families: layouts, scores, refusals."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate
from input_pipeline.batches.targets import Chunk
from input_pipeline.examples import Examples, Ragged, object_array
from models.backbone import parameter_shapes, parts_of
from models.bert import BertConfig
from models.pretrained import load_pretrained, write_pretrained
from models.t5 import T5Config
from training.data import load_data
from training.experiment import build
from training.sharding import put_batch
from workflows.export.huggingface import write_language_model
from workflows.predict import predict
from workflows.test import test as open_test
from workflows.train import train

FIXTURES = Path(__file__).parents[1] / "fixtures"
KINDS = {
    "masked_language_modelling": "bert",
    "causal_language_modelling": "tiny",
    "span_corruption": "t5",
}


@pytest.fixture(scope="session")
def checkpoints(reviews, tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Folders of random models that know the characters of the reviews, whole with their parts."""
    root = tmp_path_factory.mktemp("language_models")
    characters = sorted({character for text, _ in reviews for character in text})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    bert = BertConfig(
        model_type="bert",
        vocab_size=len(pieces),
        width=16,
        num_layers=1,
        num_distinct_layers=1,
        num_heads=2,
        hidden=16,
        max_length=64,
        embedding_size=16,
    )
    t5 = T5Config(
        vocab_size=1700,
        width=16,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        head_size=8,
        hidden=16,
    )
    for name, config in (("bert", bert), ("t5", t5)):
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf, rng=rng: rng.normal(len(leaf.shape) == 1, 0.3, leaf.shape).astype("f4"),
            parameter_shapes(config, parts_of(config)),
        )
        (root / name).mkdir()
        write_pretrained(root / name, config, params)
    (root / "bert" / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    shutil.copy(FIXTURES / "tokenizers" / "t5" / "spiece.model", root / "t5")
    return {"tiny": tiny_checkpoint, "bert": root / "bert", "t5": root / "t5"}


@pytest.fixture
def make_config(checkpoints, reviews, tmp_path):
    """A function of a kind: its config on the reviews, two of which make a document."""
    texts = [text for text, _ in reviews]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(a + b for a, b in zip(texts[::2], texts[1::2], strict=True)))

    def make(kind: str):
        config = common.get_config()
        config.task = kind
        config.data.update(source="files", files=str(file), prepared_dir=str(tmp_path / "data"))
        config.data.update(label_column="", batch_size=4, max_train_examples=64)
        config.data.update(max_validation_examples=8, max_test_examples=8, words="jieba")
        config.layout.update(max_length=28, row_length=64)
        config.language.chunk = 40
        config.model.checkpoint = str(checkpoints[KINDS[kind]])
        return config

    return make


def task_of(config):
    """The task alone, with the checkpoint's tokeniser."""
    experiment = build(config, Path("unused"), (), lambda line: None)
    return experiment.task, experiment


def examples_of(texts: list[str], words: list[list[str]] | None = None) -> Examples:
    stops = words and Ragged.of([np.cumsum([len(word) for word in line]) for line in words])
    return Examples(object_array(texts), None, np.arange(len(texts)), words=stops)


def targets_of(task, encoder, examples, *, seed: int = 0, epoch: int = 0, training: bool = True):
    indices = np.arange(len(examples))
    texts = list(examples.texts_N)
    encoded = encoder(texts, offsets=task.offsets)
    epochs = np.full(len(examples), epoch)
    return encoded, task.targets(
        encoded, Chunk(examples, indices, epochs, texts, None, seed, training)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_padded_equals_packed(make_config, kind, tmp_path):
    """Losses and gradients of one step, masks included, whatever rows the documents share."""
    found = {}
    for layout in ("pad", "pack"):
        config = make_config(kind)
        config.layout.kind = layout
        _, experiment = task_of(config)
        examples = experiment.windows(load_data(config).split("train"), training=True)
        experiment.pipeline.plan(examples)
        batch = next(experiment.pipeline.train(examples, first_example=0))
        batch = put_batch({name: array[0] for name, array in batch.items()}, experiment.mesh)

        @jax.jit
        def step(params, batch, experiment=experiment):
            def loss(params):
                total, weight, _ = experiment.task.loss(experiment.apply(params, batch), batch)
                return total / weight, weight

            return jax.value_and_grad(loss, has_aux=True)(params)

        found[layout] = jax.device_get(step(experiment.put(experiment.initial), batch))
        found[layout + " shape"] = batch["tokens_RxL"].shape
    assert found["pad shape"] != found["pack shape"]
    ((loss, weight), gradients), ((other, other_weight), others) = found["pad"], found["pack"]
    assert weight == other_weight > 4
    assert loss == pytest.approx(other, rel=1e-5)
    for path, gradient in gradients.items():
        difference = np.linalg.norm(gradient - others[path])
        assert difference <= 1e-4 * max(np.linalg.norm(others[path]), 1e-3), path


def test_every_token_of_a_long_document_is_predicted_and_documents_are_apart(make_config):
    """Against whole logits, window by window and one at a time."""
    task, experiment = task_of(make_config("causal_language_modelling"))
    texts = ["房间非常好，值得推荐！" * 20, "早餐太差了。", "书的内容很满意，下次还会来。" * 9]
    examples = examples_of(texts)
    examples.ids_N[:] = [7, 3, 5]
    params = experiment.put(experiment.initial)
    found = experiment.predict(params, examples, {})
    assert found.ids_N.tolist() == [3, 5, 7]
    windows = experiment.windows(examples, training=False)
    assert len(windows) > 5
    ids = [
        [task.tokenizer.bos_id, *task.tokenizer.piece_ids(text)]
        for text in windows.texts_N.tolist()
    ]
    tokens = np.array([line + [0] * (32 - len(line)) for line in ids])
    batch = (tokens, *np.indices(tokens.shape)[1:], np.ones_like(tokens))

    @jax.jit
    def whole(params):
        def logits(model):
            return jax.nn.log_softmax(model.backbone.logits(model.backbone(*batch)))

        return experiment.model.apply({"params": params}, method=logits)

    logs = np.asarray(whole(traverse_util.unflatten_dict(params, sep="/")))
    for document, id_ in enumerate(found.ids_N):
        expected = [
            logs[window, place, token]
            for window in np.flatnonzero(windows.owners_N == id_)
            for place, token in enumerate(ids[window][1:])
        ]
        np.testing.assert_allclose(found["log_probability_N"][document], expected, atol=1e-4)


def test_bits_are_of_whole_texts_with_what_nothing_precedes(make_config):
    config = make_config("causal_language_modelling")
    task, experiment = task_of(config)
    examples = examples_of(["房间abc", "好"])
    half = np.log(0.5).astype(np.float32)
    outputs = {
        "targets_N": object_array([np.array([3, 4]), np.array([5])]),
        "log_probability_N": object_array([np.array([half, half]), np.array([half])]),
        "best_N": object_array([np.array([2, 9]), np.array([4])]),
    }
    windows = examples_of(["房间a", "bc", "好"])
    object.__setattr__(windows, "owners_N", np.array([0, 0, 1]))
    parts = {
        "targets_N": object_array([np.array([0, 3]), np.array([4, 0]), np.array([5])]),
        "log_probability_N": object_array([np.array([0, half]), np.array([half, 0]), [half]]),
        "best_N": object_array([np.array([0, 2]), np.array([9, 0]), np.array([4])]),
    }
    parts["log_probability_N"][2] = np.array([half])
    encoder = experiment.pipeline.encoder
    found = task.decode(Predictions(np.arange(3), parts), windows, examples, encoder)
    for name, values in outputs.items():
        for value, expected in zip(found[name], values, strict=True):
            np.testing.assert_array_equal(value, expected)
    scores = task.score(found, examples)
    assert estimate(scores, "bits_per_character")["value"] == pytest.approx(3 / 6)
    assert estimate(scores, "bits_per_byte")["value"] == pytest.approx(3 / 12)
    assert estimate(scores, "perplexity")["value"] == pytest.approx(2)
    assert estimate(scores, "accuracy")["value"] == pytest.approx(2 / 3)
    encoder.around[0] = []  # as of a tokeniser without a start mark
    found = task.decode(Predictions(np.arange(3), parts), windows, examples, encoder)
    more = 3 * np.log2(task.backbone.vocab_size)
    value = estimate(task.score(found, examples), "bits_per_character")["value"]
    assert value == pytest.approx((3 + more) / 6)


def test_words_are_masked_whole_and_marks_never(make_config):
    task, experiment = task_of(make_config("masked_language_modelling"))
    words = [["非常", "满意", "，", "下次", "还", "会", "来", "。"], ["手机", "屏幕", "好"]] * 20
    examples = examples_of(["".join(line) for line in words], words)
    encoded, targets = targets_of(task, experiment.pipeline.encoder, examples)
    asked = targets.positions["targets_RxL"] > 0
    masked = targets.positions["tokens_RxL"]
    assert (masked == task.tokenizer.mask_id).sum() > 20
    assert not asked[encoded.fields < 0].any()
    np.testing.assert_array_equal(task.counted(encoded, targets), asked)
    for start, count, line in zip(encoded.starts_B, encoded.lengths_B, words, strict=True):
        here = asked[start + 1 : start + count - 1].tolist()
        for word in line:
            of_word, here = here[: len(word)], here[len(word) :]
            assert len(set(of_word)) == 1


@pytest.mark.parametrize("kind", ["masked_language_modelling", "span_corruption"])
def test_masks_change_with_the_epoch_and_are_one_for_all_seeds_in_evaluation(make_config, kind):
    task, experiment = task_of(make_config(kind))
    examples = examples_of(["这家酒店的房间非常好，值得推荐！"] * 3)
    make = functools.partial(targets_of, task, experiment.pipeline.encoder, examples)
    tokens = [
        make(**options)[1].positions["tokens_RxL"].tolist()
        for options in (
            {},
            {},
            {"epoch": 1},
            {"seed": 1},
            {"training": False, "seed": 1},
            {"training": False, "seed": 2},
        )
    ]
    assert tokens[0] == tokens[1] == tokens[4] == tokens[5]
    assert tokens[0] != tokens[2] and tokens[0] != tokens[3]


def test_a_corrupted_text_of_any_length_fits_the_row(make_config):
    task, experiment = task_of(make_config("span_corruption"))
    encoder = experiment.pipeline.encoder
    for length in range(1, 40):
        _, targets = targets_of(task, encoder, examples_of(["好" * length]))
        assert targets.examples["lengths_B"][0] <= task.config.layout.max_length


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("masked_language_modelling", {"model.checkpoint": "tiny"}, "'causal_language_modelling'"),
        ("causal_language_modelling", {"model.checkpoint": "bert"}, "'masked_language_modelling'"),
        ("causal_language_modelling", {"model.checkpoint": "t5"}, "'span_corruption'"),
        ("causal_language_modelling", {"model.bidirectional": True}, "bidirectional"),
        ("causal_language_modelling", {"data.template": "{text}{pair}"}, "'generation'"),
        ("span_corruption", {"layout.max_length": 4096}, "sentinels"),
    ],
)
def test_what_does_not_fit_is_refused(make_config, checkpoints, kind, changes, message):
    config = make_config(kind)
    for key, value in changes.items():
        value = str(checkpoints[value]) if key == "model.checkpoint" else value
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        task_of(config)


def test_a_checkpoint_without_its_output_layer_is_refused(make_config, checkpoints, tmp_path):
    pretrained = load_pretrained(checkpoints["bert"])
    folder = tmp_path / "headless"
    folder.mkdir()
    write_pretrained(folder, pretrained.config, pretrained.params)
    shutil.copy(checkpoints["bert"] / "vocab.txt", folder)
    config = make_config("masked_language_modelling")
    config.model.checkpoint = str(folder)
    with pytest.raises(ValueError, match="mlm_head"):
        task_of(config)


def test_augmentation_that_moves_words_is_refused(make_config):
    task, experiment = task_of(make_config("masked_language_modelling"))
    examples = examples_of(["房间好"], [["房间", "好"]])
    encoded = experiment.pipeline.encoder(["间房好"], offsets=True)
    zero = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"config\.augmentation"):
        task.targets(encoded, Chunk(examples, zero, zero, ["间房好"], None, 0, training=True))


@pytest.mark.parametrize("kind", ["masked_language_modelling", "span_corruption"])
def test_the_floor_is_asked_for_the_same_tokens(make_config, kind):
    task, experiment = task_of(make_config(kind))
    data = load_data(task.config)
    validation = data.split("validation")
    predictions = experiment.predict(experiment.put(experiment.initial), validation, {})
    scores = task.score(predictions, validation)
    floor = task.baselines(data.split("train"), validation)[task.FLOOR]
    assert floor.truth == scores.truth
    np.testing.assert_array_equal(floor.ids_N, scores.ids_N)
    records = list(task.describe(predictions, validation))
    assert [record["id"] for record in records] == scores.ids_N.tolist()
    assert estimate(floor, "perplexity")["value"] < estimate(scores, "perplexity")["value"]


def test_continued_pretraining_end_to_end(make_config, tmp_path):
    """Trains, beats its start, and other modes read what it left."""
    config = make_config("causal_language_modelling")
    config.optimizer.learning_rate = 3e-3
    config.train.update(duration="24 steps", checkpoint_every="50%", keep_latest=2)
    config.integrate.update(methods=("interpolation", "soup"), points=3)
    config.eval.update(every="100%", at_start=True)
    results = train(config, tmp_path / "run")
    kinds = [candidate["kind"] for candidate in results["integration"]["candidates"]]
    assert kinds == ["interpolation", "single", "single", "soup"]
    row = results["models"]["fine-tuned"]
    assert row["bits_per_character"]["value"] < 3
    assert results["models"]["character 5-grams"]["bits_per_character"]["value"] > 0
    again = open_test(config, tmp_path / "run")["models"]["fine-tuned"]
    assert again["perplexity"] == row["perplexity"]
    config.predict.input = str(tmp_path / "input.txt")
    (tmp_path / "input.txt").write_text("房间非常好。" * 9 + "\n早餐\n", encoding="utf-8")
    lines = predict(config, tmp_path / "run").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["text"] for record in records] == ["房间非常好。" * 9, "早餐"]
    for record in records:
        bits = record["bits_per_character"] * len(record["text"])
        assert bits * np.log(2) == pytest.approx(record["nats"], rel=1e-3)
        assert record["worst"][0]["nats"] >= record["worst"][-1]["nats"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_is_written_as_a_checkpoint_of_another_run(make_config, kind, tmp_path):
    config = make_config(kind)
    task, experiment = task_of(config)
    params = {path: np.asarray(value) + 0.01 for path, value in experiment.initial.items()}
    folder = tmp_path / "written"
    said = write_language_model(experiment, params, folder)
    assert said["difference"] == 0
    config.model.checkpoint = str(folder)
    other, following = task_of(config)
    assert following.initial.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(following.initial[path], value)
    assert other.tokenizer.piece_ids("房间好") == task.tokenizer.piece_ids("房间好")
