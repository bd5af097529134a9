"""Properties of the baselines."""

import numpy as np
import pytest

from evaluation.baselines import majority, tfidf_logistic_regression
from evaluation.metrics import estimate
from input_pipeline.preparation import Examples

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
    return Examples(np.array(texts_N, object), labels_N, rng.permutation(10 * count)[:count])


def test_majority_is_right_for_the_share_of_the_larger_class():
    train, test = make_examples(200, seed=0, share=0.7), make_examples(100, seed=1, share=0.7)
    predictions = majority(train, test, num_classes=2)
    assert (predictions.classes_N == 1).all()
    assert estimate(predictions, "accuracy")["value"] == pytest.approx(test.labels_N.mean())
    expected = (np.bincount(train.labels_N) + 1) / 202
    np.testing.assert_allclose(np.exp(predictions.log_probabilities_NxC[0]), expected, rtol=1e-6)


def test_tfidf_learns_from_characters_and_beats_the_majority():
    train, test = make_examples(300, seed=0), make_examples(200, seed=1)
    predictions = tfidf_logistic_regression(train, test, num_classes=2)
    for metric, sign in (("accuracy", 1), ("loss", -1)):
        gain = estimate(predictions, metric)["value"]
        gain -= estimate(majority(train, test, num_classes=2), metric)["value"]
        assert sign * gain > 0.2


@pytest.mark.parametrize("baseline", [majority, tfidf_logistic_regression])
def test_predictions_are_in_the_order_of_ids_with_their_own_labels(baseline):
    train, test = make_examples(150, seed=0), make_examples(50, seed=1)
    predictions = baseline(train, test, num_classes=2)
    shuffled = np.random.default_rng(0).permutation(50)
    other = baseline(
        train, Examples(*(part[shuffled] for part in vars(test).values())), num_classes=2
    )
    np.testing.assert_array_equal(predictions.ids_N, np.sort(test.ids_N))
    for part, other_part in zip(vars(predictions).values(), vars(other).values(), strict=True):
        np.testing.assert_array_equal(part, other_part)
    label_of = dict(zip(test.ids_N, test.labels_N, strict=True))
    assert [label_of[id_] for id_ in predictions.ids_N] == predictions.labels_N.tolist()


def test_a_class_never_seen_in_training_is_never_predicted_and_costs_a_finite_loss():
    train, test = make_examples(200, seed=0), make_examples(20, seed=1)
    test = Examples(test.texts_N, np.full(20, 2, np.int32), test.ids_N)
    predictions = tfidf_logistic_regression(train, test, num_classes=3)
    assert not (predictions.classes_N == 2).any()
    assert estimate(predictions, "loss")["value"] == pytest.approx(np.log(201), rel=0.01)


def test_training_on_one_class_falls_back_to_the_majority():
    train, test = make_examples(50, seed=0, share=2.0), make_examples(20, seed=1)
    predictions = tfidf_logistic_regression(train, test, num_classes=2)
    expected = majority(train, test, num_classes=2)
    np.testing.assert_array_equal(predictions.logits_NxC, expected.logits_NxC)


def test_a_handful_of_texts_that_share_nothing_still_trains():
    texts_N = np.array(["甲乙", "丙丁", "戊己"], object)
    examples = Examples(texts_N, np.array([0, 1, 0], np.int32), np.arange(3))
    predictions = tfidf_logistic_regression(examples, examples, num_classes=2)
    assert np.isfinite(predictions.logits_NxC).all()
