"""Properties of classification into ordered classes: head, median, kappa."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate
from input_pipeline.examples import Examples, object_array
from models.heads import OrdinalHead, threshold_parameters
from tasks import task_class

LABELS = ("一星", "二星", "三星", "四星")


def make_task():
    config = common.get_config()
    config.classification.kind = "ordinal"
    return task_class(config)(config, LABELS, tokenizer=None, backbone=None)


def log_probabilities(scores_B, shares_C):
    """Of a head whose one score is the hidden state."""
    head = OrdinalHead(1, bias=False, pooling="last", num_levels=len(shares_C))
    params = {"kernel": jnp.ones((1, 1)), "thresholds": threshold_parameters(shares_C)}
    count = len(scores_B)
    batch = {"segments_RxL": np.arange(1, count + 1)[:, None], "weights_B": np.ones(count)}
    hidden_RxLxD = jnp.asarray(scores_B, jnp.float32)[:, None, None]
    return head.apply({"params": params}, None, hidden_RxLxD, batch, deterministic=True)[
        "logits_BxC"
    ]


def test_a_score_of_nothing_gives_the_classes_the_shares_it_started_with():
    shares_C = np.array([0.1, 0.2, 0.05, 0.65])
    np.testing.assert_allclose(np.exp(log_probabilities([0], shares_C))[0], shares_C, rtol=1e-5)


def test_probabilities_are_differences_of_sigmoids_and_add_up_to_one():
    shares_C, scores_B = np.array([0.1, 0.2, 0.3, 0.4]), np.linspace(-5, 5, 7)
    below = np.cumsum(shares_C)[:-1]
    above_BxC = 1 / (1 + np.exp(np.log(below / (1 - below)) - scores_B[:, None]))
    expected_BxC = -np.diff(np.pad(above_BxC, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0))))
    found_BxC = np.exp(log_probabilities(scores_B, shares_C))
    np.testing.assert_allclose(found_BxC, expected_BxC, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found_BxC.sum(axis=1), 1, rtol=1e-5)


def test_far_scores_have_finite_logarithms_and_gradients():
    shares_C = np.full(4, 0.25)
    assert np.isfinite(log_probabilities([-200, 200], shares_C)).all()
    gradient = jax.grad(lambda scores: log_probabilities(scores, shares_C)[:, 1].sum())
    assert np.isfinite(gradient(jnp.array([-200.0, 0.0, 200.0]))).all()


def test_a_higher_score_never_makes_a_lower_class_likelier():
    cumulative = np.cumsum(np.exp(log_probabilities(np.linspace(-6, 6, 50), np.full(5, 0.2))), 1)
    assert (np.diff(cumulative, axis=0) <= 1e-6).all()


def make_case(count, *, seed=0):
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, 4, count).astype(np.int32)
    logits_NxC = rng.normal(size=(count, 4)) + 2 * np.eye(4)[labels_N]
    examples = Examples(object_array(["文"] * count), labels_N, np.arange(count))
    return examples, Predictions(np.arange(count), {"logits_NxC": logits_NxC}), labels_N


def test_kappa_and_absolute_error_equal_scikit_learns():
    examples, predictions, labels_N = make_case(200)
    task = make_task()
    scores = task.score(predictions, examples)
    classes_N = [LABELS.index(r["prediction"]) for r in task.describe(predictions, examples)]
    expected = sklearn.metrics.cohen_kappa_score(labels_N, classes_N, weights="quadratic")
    assert estimate(scores, "kappa")["value"] == pytest.approx(expected)
    expected = sklearn.metrics.mean_absolute_error(labels_N, classes_N)
    assert estimate(scores, "absolute_error")["value"] == pytest.approx(expected)


def test_the_median_is_off_by_less_than_the_likeliest_class():
    examples = Examples(object_array(["文"]), np.array([1], np.int32), np.arange(1))
    probabilities = np.array([[0.4, 0.15, 0.1, 0.35]])
    predictions = Predictions(np.arange(1), {"logits_NxC": np.log(probabilities)})
    (record,) = make_task().describe(predictions, examples)
    assert (record["prediction"], record["confidence"], record["wrong"]) == ("二星", 0.15, False)


def test_agreement_by_chance_alone_is_zero_even_of_one_class():
    examples = Examples(object_array(["文"] * 3), np.zeros(3, np.int32), np.arange(3))
    logits_NxC = np.tile([5.0, 0, 0, 0], (3, 1))
    scores = make_task().score(Predictions(np.arange(3), {"logits_NxC": logits_NxC}), examples)
    assert estimate(scores, "kappa")["value"] == 0


def test_thresholds_start_at_the_frequencies_of_the_training_split():
    task = make_task()
    examples, _, labels_N = make_case(100)
    task.check(examples, "train")
    heads, fresh = task.start_head({"head/kernel": np.zeros(1), "head/thresholds": None}, {})
    shares_C = (np.bincount(labels_N) + 1) / 104
    np.testing.assert_allclose(heads["head/thresholds"], threshold_parameters(shares_C))
    assert fresh == {"head/kernel", "head/thresholds"}
