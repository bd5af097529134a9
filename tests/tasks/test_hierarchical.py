"""Properties of labels that are paths in a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate, summarise
from input_pipeline.examples import Examples, object_array
from tasks import task_class

LABELS = ("娱乐/电影", "娱乐/音乐", "体育", "财经/股票/港股", "财经/股票/美股", "财经/基金")


def make_task(labels=LABELS):
    config = common.get_config()
    config.classification.kind = "hierarchical"
    return task_class(config)(config, labels, tokenizer=None, backbone=None)


def by_hand(probabilities, label):
    """Minus the logarithms of the probabilities of the nodes from the root to a label."""
    nodes, total = {}, 0.0
    for path, probability in zip(LABELS, probabilities, strict=True):
        for stop in range(1, 4):
            node = tuple(path.split("/")[:stop])
            nodes.setdefault(node, {})[path] = probability
    for stop in range(1, len(LABELS[label].split("/")) + 1):
        total -= np.log(sum(nodes[tuple(LABELS[label].split("/")[:stop])].values()))
    return total


@pytest.mark.parametrize("label", range(6))
def test_loss_adds_the_nodes_of_the_path_once_each_in_training_and_in_the_scores(label):
    logits_C = np.random.default_rng(label).normal(size=6).astype(np.float32)
    expected = by_hand(np.exp(logits_C) / np.exp(logits_C).sum(), label)
    task = make_task()
    batch = {"labels_B": np.array([label]), "weights_B": np.ones(1, np.float32)}
    assert task.loss({"logits_BxC": logits_C[None]}, batch)[0] == pytest.approx(expected, rel=1e-5)
    examples = Examples(object_array(["文"]), np.array([label], np.int32), np.arange(1))
    scores = task.score(Predictions(np.arange(1), {"logits_NxC": logits_C[None]}), examples)
    assert estimate(scores, "loss")["value"] == pytest.approx(expected, rel=1e-5)


def test_a_node_that_is_a_label_itself_is_told_from_those_below_it():
    task = make_task(("娱乐", "娱乐/电影", "体育"))
    batch = {"labels_B": np.array([0]), "weights_B": np.ones(1, np.float32)}
    logits_BxC = jnp.log(jnp.array([[0.2, 0.5, 0.3]]))
    found, _, _ = task.loss({"logits_BxC": logits_BxC}, batch)
    assert found == pytest.approx(-np.log(0.7) - np.log(0.2), rel=1e-5)


def test_far_logits_have_a_finite_loss_and_gradient():
    batch = {"labels_B": np.array([3]), "weights_B": np.ones(1, np.float32)}
    function = jax.value_and_grad(lambda x: make_task().loss({"logits_BxC": x}, batch)[0])
    loss, gradient_BxC = function(jnp.array([[300.0, 0, 0, -300, -300, -200]]))
    assert loss == pytest.approx(500 + (600 - np.log(2)) + 600)
    assert np.isfinite(gradient_BxC).all()


def test_a_level_is_right_where_the_predicted_label_lies_under_the_true_node():
    task = make_task()
    labels_N, classes_N = np.array([0, 1, 3, 4], np.int32), [0, 0, 4, 2]
    examples = Examples(object_array(["文"] * 4), labels_N, np.arange(4))
    predictions = Predictions(np.arange(4), {"logits_NxC": np.eye(6)[classes_N] * 9})
    found = summarise(task.score(predictions, examples))
    names = [metric.name for metric in task.metrics if metric.shown]
    assert names == ["accuracy", "accuracy_1", "accuracy_2", "macro_f1", "loss"]
    values = [found[name]["value"] for name in names[:3]]
    assert values == [0.25, 0.75, 0.5]
    assert next(task.describe(predictions, examples))["path"] == ["娱乐", "电影"]


def test_the_floor_is_scored_on_all_levels():
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 6, 120).astype(np.int32)
    examples = Examples(
        object_array(["甲乙丙丁戊己"[label] for label in labels_N]), labels_N, np.arange(120)
    )
    task = make_task()
    scores = task.baselines(examples.first(100), examples)[task.FLOOR]
    assert estimate(scores, "accuracy_2")["value"] == 1
