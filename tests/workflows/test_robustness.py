"""Properties of the robustness card: it measures what changed, and only that."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate
from input_pipeline.batches.perturbation import FIRST, PERTURBATIONS, differ, perturb
from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.examples import Examples, object_array
from reporting.report import shown
from reporting.robustness_card import conclusion
from tasks import task_class
from tasks.classification import ACCURACY, LOSS
from training.experiment import build
from workflows.robustness import UNCHANGED, check, robustness, show_card


def make_task(labels=("bad", "good"), **options):
    config = common.get_config()
    config.classification.update(**options)
    return task_class(config)(config, labels, tokenizer=None, backbone=None)


def reads(examples):
    """A model that says 'good' of a text with 好, and is nine in ten sure."""
    good_N = np.array(["好" in text for text in examples.texts_N])
    logits_NxC = np.log(np.where(good_N[:, None], [[0.1, 0.9]], [[0.9, 0.1]]))
    return Predictions(examples.ids_N, {"logits_NxC": logits_NxC})


def make_examples(count=40):
    """Of four texts one says what it is in the first characters, one at the end, two have none."""
    texts = ["好" + "话" * 40, "话" * 40 + "好", "差" * 6, "Ａ级差"] * (count // 4)
    labels_N = np.array([1, 1, 0, 0] * (count // 4), np.int32)
    return Examples(object_array(texts), labels_N, np.arange(count))


def make_card(examples, names, predict=reads, task=None, predictions=None, metric="auto"):
    config = common.get_config()
    config.eval.metric = metric
    experiment = SimpleNamespace(
        config=config,
        task=task or make_task(),
        predict=lambda params, changed, fitted, complete: predict(changed),
    )
    predictions = predictions or reads(examples)
    return robustness(experiment, {}, examples=examples, predictions=predictions, names=names)


def test_a_card_counts_what_changed_what_it_cost_and_which_predictions_are_others():
    seen = []

    def predict(examples):
        seen.append(examples.texts_N.tolist())
        return reads(examples)

    examples = make_examples()
    unchanged, width, first = make_card(examples, ["width", "first_characters"], predict)
    assert unchanged["perturbation"] == UNCHANGED and unchanged["changed"] == 0
    assert unchanged["difference"]["value"] == unchanged["flipped"]["value"] == 0
    assert unchanged["metrics"]["accuracy"]["value"] == 1
    assert unchanged["ece"] == pytest.approx(0.1)
    assert seen == [["A级差"] * 10, [text[:FIRST] for text in examples.texts_N if len(text) > 32]]
    assert width["changed"] == 0.25 and width["flipped"]["value"] == 0
    assert first["changed"] == 0.5 and first["flipped"]["value"] == 0.25
    assert first["metrics"]["accuracy"]["value"] == 0.75
    assert first["difference"]["value"] == -0.25 and first["ece"] == pytest.approx(0.15)
    error = np.std([1] * 10 + [0] * 30, ddof=1) / np.sqrt(40)
    for key in ("difference", "flipped"):
        assert first[key]["standard_error"] == pytest.approx(error)


def test_examples_without_a_label_are_left_out_as_they_were():
    examples = make_examples()
    masked = Examples(examples.texts_N, examples.labels_N.copy(), examples.ids_N)
    masked.labels_N[1] = -1
    predictions = reads(examples.take(masked.labels_N >= 0))

    def predict(some):  # a real one refuses a batch of these alone
        assert (some.labels_N >= 0).all()
        return reads(some)

    options = {"predictions": predictions, "metric": "accuracy"}
    rows = make_card(masked, ["first_characters"], predict, **options)
    assert [row["flipped"]["count"] for row in rows] == [39, 39]


def test_numbers_have_no_flips_and_neither_they_nor_several_labels_one_confidence():
    task = make_task((), kind="regression")
    examples = make_examples()
    numbers = Examples(examples.texts_N, None, examples.ids_N, numbers_N=np.arange(40.0))

    def predict(some):
        lengths_N = np.array([len(text) for text in some.texts_N], np.float64)
        scale = {"mean": 0.0, "deviation": 1.0}
        return Predictions(some.ids_N, {"logits_NxC": lengths_N[:, None]}, scale)

    options = {"predictions": predict(numbers), "metric": "rmse"}
    rows = make_card(numbers, ["repeated"], predict, task, **options)
    assert all(row["flipped"] is row["ece"] is None for row in rows)
    assert rows[1]["difference"]["value"] > 0
    rmse = task.metrics[2]
    assert "squared error rises by" in conclusion(rows, shown(rmse))
    assert "predictions" not in conclusion(rows, shown(rmse))


def make_row(title, value, error, *, changed=1.0):
    difference = {"value": value, "standard_error": error, "count": 400}
    flipped = {"value": 0.094, "standard_error": 0.013, "count": 400}
    return {
        "perturbation": title,
        "title": title,
        "changed": changed,
        "difference": difference,
        "flipped": flipped,
    }


def test_the_conclusion_names_the_worst_and_says_when_it_may_be_chance():
    rows = [
        make_row(UNCHANGED, 0, 0, changed=0.0),
        make_row("typos", -0.062, 0.011),
        make_row("cut", -0.01, 1),
    ]
    text = conclusion(rows, shown(ACCURACY))
    assert text == (
        "Of 2 perturbations this costs most: typos. Accuracy falls by 6.2 ± 1.1 points; 9.4 ± 1.3 "
        "% of predictions change."
    )
    assert "cut. Loss rises by" in conclusion([make_row("cut", 0.3, 0.1)], shown(LOSS))
    # Two standard errors are much for one difference and little for the worst of eleven.
    assert "chance" not in conclusion([make_row("a", -0.02, 0.01)], shown(ACCURACY))
    many = [make_row(str(i), -0.02, 0.01) for i in range(11)]
    assert conclusion(many, shown(ACCURACY)).endswith("As the worst of 11, it may be chance.")
    for unknown in (None, float("nan")):
        text = conclusion([make_row("a", -0.5, unknown)], shown(ACCURACY))
        assert "falls by 50.0 points" in text and "chance" in text
    better = conclusion([make_row("a", 0.1, 0.01)], shown(ACCURACY))
    assert better == "None of 1 perturbations makes accuracy worse."
    same = conclusion([make_row("a", 0, 0, changed=0.0)], shown(ACCURACY))
    assert same == "No perturbation changes a text."


def test_kinds_of_task_whose_answers_would_move_are_refused(tiny_config):
    tiny_config.eval.robustness = True
    check(tiny_config)
    tiny_config.task = "tagging"
    with pytest.raises(
        ValueError, match=r"config.eval.robustness=True: found the task 'tagging', .*leave it"
    ):
        check(tiny_config)
    tiny_config.eval.robustness = False
    check(tiny_config)


def test_the_card_of_a_model_with_features_has_every_perturbation(tiny_config, tmp_path, capsys):
    tiny_config.eval.robustness = True
    tiny_config.features.update(use="both", extractors=("lengths", "punctuation"))
    tiny_config.data.words = "jieba"
    prepared = prepare(tiny_config.data)
    training = load_split(prepared, "train", limit=32)
    experiment = build(tiny_config, tmp_path, prepared.labels, lambda _: None, training)
    validation = load_split(prepared, "validation", limit=12)
    params = experiment.put(experiment.initial)
    params["head/feature_kernel"] += np.array([[-1.0, 1.0]])  # so that features decide
    with_features = experiment.with_features(validation)
    predictions = experiment.predict(params, with_features, {})
    rows = robustness(experiment, params, examples=with_features, predictions=predictions)
    assert [row["perturbation"] for row in rows] == [UNCHANGED, *PERTURBATIONS]
    json.dumps(rows)
    own = estimate(experiment.task.score(predictions, validation), "accuracy")
    assert rows[0]["metrics"]["accuracy"] == own
    for row in rows[1:]:  # each is what the model says of those texts, features and all
        changed = perturb(validation, row["perturbation"], seed=tiny_config.seed)
        assert row["changed"] == differ(validation, changed).mean()
        if row["perturbation"] in ("repeated", "first_half"):
            alone = experiment.task.score(experiment.predict(params, changed, {}), changed)
            losses_N = alone.statistics["loss"][:, 0]
            assert row["metrics"]["loss"]["value"] == pytest.approx(losses_N.mean(), abs=1e-4)
    show_card("fine-tuned", rows, experiment.task.metrics[0])
    printed = capsys.readouterr().out
    assert all(title in printed for title in PERTURBATIONS.values())
