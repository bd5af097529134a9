"""Heads from words: at the start the classifier says what the language model says."""

import json

import jax
import numpy as np
import pytest

from input_pipeline.corpus.preparation import load_split, prepare
from models.backbone import make_backbone, parameter_shapes
from models.bert import BertConfig
from models.pretrained import write_pretrained
from training.experiment import build
from training.sharding import put_batch
from training.state import merge
from workflows.evaluate import evaluate
from workflows.train import train


@pytest.fixture(scope="module")
def masked_checkpoint(reviews, tmp_path_factory):
    """A random BERT with factorised embeddings that knows the characters of the reviews."""
    folder = tmp_path_factory.mktemp("masked")
    characters = sorted({character for text, _ in reviews for character in text + "好差"})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = BertConfig(
        model_type="electra",
        vocab_size=len(pieces),
        width=16,
        num_layers=1,
        num_distinct_layers=1,
        num_heads=2,
        hidden=16,
        max_length=64,
        embedding_size=8,
        embedder_projection=True,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(float(len(leaf.shape) == 1), 0.3, leaf.shape).astype("f4"),
        parameter_shapes(config, ["mlm_head"]),
    )
    write_pretrained(folder, config, params)
    return folder


@pytest.fixture
def masked_config(make_config, masked_checkpoint, tmp_path):
    """The config of 48 steps that asks a masked language model for a word of two pieces."""
    config = make_config()
    config.data.template = "总的来说，我很{mask}{mask}。{text}"
    config.model.update(checkpoint=str(masked_checkpoint), pooling="mask")
    config.model.label_words = ("失望", "满意")
    return config


def batch_of(experiment, config):
    """The first training batch; its examples' ids, in a step's order."""
    examples = load_split(prepare(config.data), "train", limit=16)
    experiment.pipeline.plan(examples)
    batch = next(experiment.pipeline.train(examples, first_example=0))
    return {name: array[0] for name, array in batch.items()}


def test_zero_shot_logits_are_the_masked_language_models_own(masked_config, tmp_path):
    experiment = build(masked_config, tmp_path, ["negative", "positive"], lambda _: None)
    batch = batch_of(experiment, masked_config)
    params = experiment.put(experiment.initial)
    found = experiment.apply(params, put_batch(batch, experiment.mesh))["logits_BxC"]
    backbone = make_backbone(experiment.model.config)
    own = {"params": merge(experiment.initial)["backbone"]}
    names = ("tokens_RxL", "positions_RxL", "segments_RxL", "types_RxL")
    hidden = jax.jit(backbone.apply)(own, *(batch[name] for name in names))
    logits_RxLxV = jax.jit(lambda x: backbone.apply(own, x, method="logits"))(hidden)
    words = [experiment.tokenizer.piece_ids(word) for word in ("失望", "满意")]
    assert [len(ids) for ids in words] == [2, 2]
    for example in range(len(batch["weights_B"])):
        there = (batch["segments_RxL"] == example + 1) & (batch["mask_RxL"] > 0)
        assert (batch["tokens_RxL"][there] == experiment.tokenizer.mask_id).all()
        logits_2xV = np.asarray(logits_RxLxV)[there]
        expected = [logits_2xV[0, first] + logits_2xV[1, second] for first, second in words]
        np.testing.assert_allclose(found[example], expected, rtol=1e-4, atol=1e-4)


def test_pad_equals_pack(masked_config, tmp_path):
    found = []
    for layout in ("pad", "pack"):
        masked_config.layout.kind = layout
        experiment = build(masked_config, tmp_path, ["negative", "positive"], lambda _: None)
        batch = put_batch(batch_of(experiment, masked_config), experiment.mesh)

        @jax.jit
        def step(params, batch, experiment=experiment):
            def loss(params):
                return experiment.task.loss(experiment.apply(params, batch), batch)[0]

            return jax.value_and_grad(loss)(params)

        found.append((batch["tokens_RxL"].shape, *step(experiment.put(experiment.initial), batch)))
    (shape, loss, gradients), (other_shape, other_loss, others) = found
    assert shape != other_shape
    assert loss == pytest.approx(float(other_loss), rel=1e-5)
    for path, gradient in gradients.items():
        difference = np.linalg.norm(gradient - others[path])
        assert difference <= 1e-4 * np.linalg.norm(others[path]) + 1e-6, path


def test_zero_shot_is_told_as_step_0_and_training_goes_on_from_there(masked_config, tmp_path):
    masked_config.eval.at_start = True
    masked_config.train.duration = "24 steps"
    train(masked_config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open(encoding="utf-8")]
    losses = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    assert losses[24] < losses[0]
    found = evaluate(masked_config, tmp_path / "run")
    assert found["loss"]["value"] == pytest.approx(losses[24], rel=1e-4)


def test_without_words_the_masks_are_averaged(masked_config, tmp_path):
    masked_config.model.update(head="linear", label_words=())
    experiment = build(masked_config, tmp_path, ["negative", "positive"], lambda _: None)
    batch = batch_of(experiment, masked_config)
    params = experiment.put(experiment.initial)
    found = experiment.apply(params, put_batch(batch, experiment.mesh))["logits_BxC"]
    backbone = make_backbone(experiment.model.config)
    own = {"params": merge(experiment.initial)["backbone"]}
    names = ("tokens_RxL", "positions_RxL", "segments_RxL", "types_RxL")
    hidden = np.asarray(jax.jit(backbone.apply)(own, *(batch[name] for name in names)))
    for example in range(len(batch["weights_B"])):
        there = (batch["segments_RxL"] == example + 1) & (batch["mask_RxL"] > 0)
        expected = hidden[there].mean(0) @ experiment.initial["head/kernel"]
        np.testing.assert_allclose(found[example], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_words": ("失望", "好")}, r"holds 2 \{mask\}.* take \[2, 1\] pieces"),
        ({"label_words": ("失望", "失望")}, "with pieces of its own"),
        ({"label_words": ("失望", "龘龘")}, "a word that it knows"),
        ({"label_words": ("失望",)}, "found 1 words"),
        ({"pooling": "first"}, "is a electra with pooling='first'"),
    ],
)
def test_words_that_do_not_fit_are_refused(masked_config, tmp_path, changes, message):
    masked_config.model.update(changes)
    with pytest.raises(ValueError, match=message):
        build(masked_config, tmp_path, ["negative", "positive"], lambda _: None)
