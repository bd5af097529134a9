"""Properties of the baselines."""

import dataclasses
import functools

import numpy as np
import pytest

from configs import common
from evaluation.baselines import classes, feature_columns, majority, tfidf_columns
from evaluation.metrics import estimate
from input_pipeline.examples import Examples
from tasks.classification import Classification

tfidf_logistic_regression = functools.partial(classes, columns=tfidf_columns)
features_logistic_regression = functools.partial(classes, columns=feature_columns)
LIKED, DISLIKED = "好棒赞喜欢满意推荐", "差糟烂讨厌失望退货"


def make_examples(count, *, seed, share=0.5):
    """Texts of common characters with one that tells the class; ids in no order."""
    rng = np.random.default_rng(seed)
    labels_N = (rng.random(count) < share).astype(np.int32)
    words = [list(DISLIKED), list(LIKED)]
    texts_N = [
        "".join(rng.choice(list("这家店的东西我买了"), 8)) + rng.choice(words[label])
        for label in labels_N
    ]
    return Examples(
        np.array(texts_N, object),
        labels_N,
        rng.permutation(10 * count)[:count],
        features_NxK=(rng.normal(size=(count, 5)) + labels_N[:, None]).astype(np.float32),
    )


def scores(test, log_probabilities_NxC):
    names = "abc"[: log_probabilities_NxC.shape[1]]
    task = Classification(common.get_config(), names, tokenizer=None, backbone=None)
    return task.scores(test.ids_N, test.labels_N, log_probabilities_NxC)


def test_majority_is_right_for_the_share_of_the_larger_class():
    train, test = make_examples(200, seed=0, share=0.7), make_examples(100, seed=1, share=0.7)
    log_probabilities_NxC = majority(train, test, num_classes=2)
    value = estimate(scores(test, log_probabilities_NxC), "accuracy")["value"]
    assert value == pytest.approx(test.labels_N.mean())
    expected = (np.bincount(train.labels_N) + 1) / 202
    np.testing.assert_allclose(np.exp(log_probabilities_NxC[0]), expected, rtol=1e-6)


@pytest.mark.parametrize("baseline", [tfidf_logistic_regression, features_logistic_regression])
def test_linear_models_learn_and_beat_the_majority(baseline):
    train, test = make_examples(300, seed=0), make_examples(200, seed=1)
    found, floor = (
        scores(test, model(train, test, num_classes=2)) for model in (baseline, majority)
    )
    for metric, sign in (("accuracy", 1), ("loss", -1)):
        gain = estimate(found, metric)["value"] - estimate(floor, metric)["value"]
        assert sign * gain > 0.2


def test_the_unit_of_all_features_and_their_origin_do_not_matter():
    train, test = make_examples(300, seed=0), make_examples(200, seed=1)
    moved = [
        dataclasses.replace(part, features_NxK=part.features_NxK * 64 + 1024)
        for part in (train, test)
    ]
    logits_NxC = features_logistic_regression(train, test, num_classes=2)
    other_NxC = features_logistic_regression(*moved, num_classes=2)
    np.testing.assert_allclose(other_NxC, logits_NxC, atol=1e-2)


BASELINES = [majority, tfidf_logistic_regression, features_logistic_regression]


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_prediction_depends_on_its_own_text_alone(baseline):
    train, test = make_examples(150, seed=0), make_examples(50, seed=1)
    found = baseline(train, test, num_classes=2)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_allclose(baseline(train, test.take(order), num_classes=2), found[order])


def test_a_class_never_seen_in_training_is_never_predicted_and_costs_a_finite_loss():
    train, test = make_examples(200, seed=0), make_examples(20, seed=1)
    test = dataclasses.replace(test, labels_N=np.full(20, 2, np.int32))
    for baseline in BASELINES[1:]:
        found = baseline(train, test, num_classes=3)
        assert not (found.argmax(axis=1) == 2).any()
        assert estimate(scores(test, found), "loss")["value"] == pytest.approx(
            np.log(201), rel=0.01
        )


@pytest.mark.parametrize("baseline", BASELINES)
def test_training_on_one_class_falls_back_to_the_majority(baseline):
    train, test = make_examples(50, seed=0, share=2.0), make_examples(20, seed=1)
    found = baseline(train, test, num_classes=2)
    np.testing.assert_array_equal(found, majority(train, test, num_classes=2))


def test_a_handful_of_texts_that_share_nothing_still_trains():
    texts_N = np.array(["甲乙", "丙丁", "戊己"], object)
    examples = Examples(texts_N, np.array([0, 1, 0], np.int32), np.arange(3))
    found = tfidf_logistic_regression(examples, examples, num_classes=2)
    assert np.isfinite(found).all()


def test_the_second_text_of_a_pair_is_read_apart_from_the_first():
    """What tells the class stands in the second text; the same characters in the first do not."""
    made = [make_examples(300, seed=0), make_examples(200, seed=1)]
    rng = np.random.default_rng(2)
    train, test = (
        dataclasses.replace(
            part,
            texts_N=rng.permutation(part.texts_N),
            pairs_N=part.texts_N,
        )
        for part in made
    )
    found = tfidf_logistic_regression(train, test, num_classes=2)
    assert estimate(scores(test, found), "accuracy")["value"] > 0.9
    alone = [dataclasses.replace(part, pairs_N=None) for part in (train, test)]
    found = tfidf_logistic_regression(*alone, num_classes=2)
    assert estimate(scores(test, found), "accuracy")["value"] < 0.65
