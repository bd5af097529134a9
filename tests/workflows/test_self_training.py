"""Properties of self-training: which labels are taken, and what becomes of the examples."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from evaluation.evaluate import Predictions
from input_pipeline.examples import Examples, Ragged, object_array
from tasks.classification import Classification
from training.data import load_data
from workflows import self_training

LABELS = ("差", "好")


def make_examples(count, *, first_id=0, labels_N=None):
    texts_N = object_array([f"文{first_id + i}" for i in range(count)])
    words = Ragged.of([[1, len(text)] for text in texts_N])
    return Examples(texts_N, labels_N, first_id + np.arange(count), words=words)


TRAIN = make_examples(10, first_id=100, labels_N=np.zeros(10, np.int32))


def take(probabilities, examples=None, **options):
    """Labels for texts from the probability of the class 好."""
    good_N = np.array(probabilities)
    logs_NxC = np.log(np.maximum(np.stack([1 - good_N, good_N], axis=1), 1e-9))
    examples = examples or make_examples(len(good_N))
    predictions = Predictions(np.sort(examples.ids_N), {"log_probabilities_NxC": logs_NxC})
    options = {"threshold": 0.9, "balance": False} | options
    return self_training.pseudo_labelled(
        predictions, examples, train=TRAIN, labels=LABELS, **options
    )


def test_labels_below_the_threshold_are_left_out_and_the_others_counted():
    taken, summary = take([0.95, 0.5, 0.02, 0.89, 0.97])
    assert taken.texts_N.tolist() == ["文0", "文2", "文4"]
    assert taken.labels_N.tolist() == [1, 0, 1]
    assert summary["per_class"] == {"差": 1, "好": 2}
    assert (summary["texts"], summary["taken"]) == (5, 3)
    assert summary["expected_accuracy"] == pytest.approx((0.95 + 0.98 + 0.97) / 3)
    assert "accuracy" not in summary
    assert "of 5 texts, 3 labels" in self_training.prose(summary)


def test_true_labels_are_compared_and_never_used():
    examples = make_examples(4, labels_N=np.array([1, 1, 0, -1], np.int32))
    taken, summary = take([0.95, 0.01, 0.02, 0.99], examples)
    assert summary["accuracy"] == pytest.approx(2 / 3)
    unknown, _ = take([0.95, 0.01, 0.02, 0.99], make_examples(4))
    np.testing.assert_array_equal(taken.labels_N, unknown.labels_N)


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.5, 1))
def test_balance_takes_as_many_of_each_class_and_the_surest(good, threshold):
    good_N = np.array(good)
    classes_N, sure_N = (good_N > 0.5).astype(int), np.maximum(good_N, 1 - good_N)
    options = {"num_classes": 2, "threshold": threshold}
    rows = self_training.select(classes_N, sure_N, balance=True, **options)
    everything = self_training.select(classes_N, sure_N, balance=False, **options)
    assert set(rows) <= set(everything)
    assert (np.diff(rows) > 0).all()
    counts = [np.sum(classes_N[rows] == c) for c in (0, 1)]
    assert counts == [min(np.sum(classes_N[everything] == c) for c in (0, 1))] * 2
    for c in (0, 1):
        left = [sure_N[i] for i in set(everything) - set(rows) if classes_N[i] == c]
        assert max(left, default=0) <= min(sure_N[rows][classes_N[rows] == c], default=1)


def test_labels_follow_their_texts_whatever_the_order_of_the_ids():
    examples = make_examples(4, first_id=7).take(np.array([2, 0, 3, 1]))
    taken, _ = take([0.99, 0.01, 0.98, 0.02], examples)
    assert dict(zip(taken.texts_N, taken.labels_N.tolist(), strict=True)) == {
        "文7": 1,
        "文8": 0,
        "文9": 1,
        "文10": 0,
    }


def test_joined_with_the_training_split_every_id_is_once():
    taken, _ = take([0.99, 0.01])
    joined = self_training.concatenate(TRAIN, taken)
    assert len(joined) == len(set(joined.ids_N.tolist())) == 12
    assert joined.texts_N.tolist() == [*TRAIN.texts_N, "文0", "文1"]
    assert joined.labels_N.tolist() == [0] * 10 + [1, 0]
    assert [joined.words.row(i).tolist() for i in (0, 9, 11)] == [[1, 4], [1, 4], [1, 2]]
    assert joined.pairs_N is None
    with pytest.raises(ValueError, match="10 ids are in both"):
        self_training.concatenate(TRAIN, TRAIN)


def test_what_only_one_side_has_is_left_out():
    named = dataclasses.replace(TRAIN, names_N=TRAIN.texts_N, values_NxK=np.ones((10, 2)))
    taken, _ = take([0.99, 0.01])
    joined = self_training.concatenate(named, taken)
    assert joined.names_N is None
    assert joined.values_NxK is None


def test_nothing_sure_enough_is_told_with_the_counts():
    with pytest.raises(ValueError, match=r"threshold=0\.9: of 2 texts.*'好': 0.*lower"):
        take([0.6, 0.4])
    with pytest.raises(ValueError, match=r"'差': 0, '好': 2}, of which .*balance accepts none"):
        take([0.99, 0.97], balance=True)


def test_the_rest_begins_where_the_training_examples_end(tiny_config):
    tiny_config.self_training.update(files="rest", max_examples=40)
    data = load_data(tiny_config)
    rest = self_training.unlabelled(tiny_config, data)
    assert len(rest) == 40
    assert not np.intersect1d(rest.ids_N, data.split("train").ids_N).size
    tiny_config.data.max_train_examples = 0
    with pytest.raises(ValueError, match=r"max_train_examples=0, which are none of 288"):
        self_training.unlabelled(tiny_config, data)


def test_the_first_model_sees_texts_alone_and_the_second_all_of_both(tiny_config):
    tiny_config.self_training.update(files="rest", max_examples=40, balance=False)
    data = load_data(tiny_config)
    train = data.split("train")

    def predict(texts):
        assert texts.labels_N is None
        good_N = np.array(["满意" in text for text in texts.texts_N])
        logs_NxC = log_softmax(9.0 * np.stack([~good_N, good_N], 1), axis=1)
        return Predictions(texts.ids_N, {"log_probabilities_NxC": logs_NxC})

    joined, summary = self_training.extend(tiny_config, data, train, predict=predict)
    assert len(joined) == 96 + 40 == 96 + summary["taken"]
    np.testing.assert_array_equal(joined.labels_N[:96], train.labels_N)
    assert 0 < summary["accuracy"] < 1


def test_a_model_that_is_too_sure_labels_what_it_is_sure_of_once_calibrated(tiny_config):
    """Three times too sure, it would be 90 % sure of far more labels than of which 90 % are right;
    calibrated, what it expects of the labels that are taken is what they are worth."""
    tiny_config.self_training.update(files="rest", balance=False, threshold=0.9)
    tiny_config.model.update(head="linear", pooling="last", label_words=())
    data = load_data(tiny_config)
    labels_N = self_training.unlabelled(tiny_config, data).labels_N
    noise_NxC = np.random.default_rng(0).gumbel(size=(len(labels_N), 2))
    logits_NxC = 3 * (2.5 * np.eye(2)[labels_N] + noise_NxC)
    task = Classification(tiny_config, data.labels, tokenizer=None, backbone=None)
    found = {}
    for name, fitted in {"raw": {}, "calibrated": {"temperature": 3.0, "bias": [0, 0]}}.items():

        def predict(texts, fitted=fitted):
            predictions = Predictions(texts.ids_N, {"logits_NxC": logits_NxC}, fitted)
            logs_NxC = task.log_probabilities(predictions)
            return Predictions(texts.ids_N, {"log_probabilities_NxC": logs_NxC})

        _, found[name] = self_training.extend(
            tiny_config, data, data.split("train"), predict=predict
        )
    assert found["calibrated"]["taken"] < found["raw"]["taken"]
    assert abs(found["calibrated"]["expected_accuracy"] - found["calibrated"]["accuracy"]) < 0.04
    assert found["raw"]["expected_accuracy"] - found["raw"]["accuracy"] > 0.04


def test_texts_come_from_a_file_as_well(tiny_config, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("第一句\n第二句\n", encoding="utf-8")
    tiny_config.self_training.files = str(path)
    found = self_training.unlabelled(tiny_config, load_data(tiny_config))
    assert (found.texts_N.tolist(), found.labels_N) == (["第一句", "第二句"], None)


def test_the_teacher_is_the_same_run_without_the_texts_and_its_test_split_shut(
    tiny_config, tmp_path
):
    assert self_training.teacher(tiny_config, tmp_path) is None
    tiny_config.self_training.files = "rest"
    config, folder = self_training.teacher(tiny_config, tmp_path)
    assert (config.self_training.files, config.eval.test) == ("", False)
    assert folder.parent == tmp_path
    assert tiny_config.self_training.files == "rest"
    tiny_config.classification.kind = "ordinal"
    with pytest.raises(
        ValueError, match=r"config\.self_training\.files: found .*'classification/ordinal'"
    ):
        self_training.teacher(tiny_config, tmp_path)
