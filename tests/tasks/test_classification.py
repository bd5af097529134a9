"""Properties of the classification task: its loss and the reading of predictions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.evaluate import Predictions
from input_pipeline.preparation import Examples
from tasks.classification import Classification

TASK = Classification(("差", "中", "好"))
LOSS = jax.jit(TASK.loss)


def make_batch(labels, weights):
    return {"labels_B": np.array(labels, np.int32), "weights_B": np.array(weights, np.float32)}


def random_logits(rng, count, num_classes=3):
    return rng.normal(size=(count, num_classes)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=6, max_size=6))
def test_parts_of_a_batch_add_up_to_the_whole(pairs):
    logits_BxC = random_logits(np.random.default_rng(0), 6)
    batch = make_batch(*zip(*pairs, strict=True))
    halves = [
        LOSS(logits_BxC[part], {key: value[part] for key, value in batch.items()})
        for part in (slice(2), slice(2, None))
    ]
    summed = jax.tree.map(lambda a, b: a + b, *halves)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        summed,
        LOSS(logits_BxC, batch),
    )


def test_loss_is_the_summed_negative_log_probability_of_the_true_labels():
    logits_BxC = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    loss, weight, counts = TASK.loss(logits_BxC, make_batch([0, 1], [1, 1]))
    assert loss == pytest.approx(-np.log(0.5) - np.log(0.2), rel=1e-6)
    assert (weight, counts["correct"]) == (2, 1)


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_examples_without_weight_change_neither_loss_nor_gradient(garbage):
    logits_BxC = random_logits(np.random.default_rng(0), 4)
    batch = make_batch([0, 1, 2, 0], [1, 1, 0, 0])
    spoilt_BxC = logits_BxC.copy()
    spoilt_BxC[2:] = garbage
    loss_and_gradient = jax.value_and_grad(lambda logits: TASK.loss(logits, batch)[0])
    loss, gradient_BxC = loss_and_gradient(logits_BxC)
    spoilt_loss, spoilt_gradient_BxC = loss_and_gradient(spoilt_BxC)
    assert loss == spoilt_loss
    np.testing.assert_array_equal(gradient_BxC, spoilt_gradient_BxC)
    assert not np.any(spoilt_gradient_BxC[2:])


def test_an_all_masked_batch_has_weight_zero_and_a_finite_loss():
    loss, weight, counts = TASK.loss(np.full((2, 3), np.nan), make_batch([0, 0], [0, 0]))
    assert (loss, weight, counts["correct"]) == (0, 0, 0)


def test_loss_under_jit_and_in_bfloat16_is_float32():
    logits_BxC = jnp.asarray(random_logits(np.random.default_rng(0), 4), jnp.bfloat16)
    batch = make_batch([0, 1, 2, 0], [1, 1, 1, 0])
    compiled, plain = LOSS(logits_BxC, batch), TASK.loss(logits_BxC, batch)
    for value, expected in zip(jax.tree.leaves(compiled), jax.tree.leaves(plain), strict=True):
        assert value.dtype == jnp.float32
        assert value == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("labels", [(), ("好",), ("好", "好")])
def test_too_few_or_repeated_labels_are_refused(labels):
    with pytest.raises(ValueError, match="at least two labels"):
        Classification(labels)


def make_predictions():
    logits_NxC = np.log(np.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]], np.float32))
    return Predictions(np.array([3, 8]), np.array([1, 2], np.int32), logits_NxC)


def make_examples(labels_N):
    texts_N = np.array(["未用", "很差\u2028!", "好“吃”"], object)
    return Examples(texts_N, labels_N, np.array([5, 8, 3]))


def test_describe_finds_the_text_of_each_id_and_survives_json():
    examples = make_examples(np.array([0, 2, 1], np.int32))
    records = [json.loads(json.dumps(r)) for r in TASK.describe(make_predictions(), examples)]
    assert records == [
        {
            "id": 3,
            "text": "好“吃”",
            "label": "中",
            "prediction": "中",
            "probabilities": {"差": 0.2, "中": 0.7, "好": 0.1},
        },
        {
            "id": 8,
            "text": "很差\u2028!",
            "label": "好",
            "prediction": "差",
            "probabilities": {"差": 0.6, "中": 0.3, "好": 0.1},
        },
    ]


def test_describe_gives_no_label_where_nothing_is_labelled():
    records = list(TASK.describe(make_predictions(), make_examples(None)))
    assert [set(record) for record in records] == [
        {"id", "text", "prediction", "probabilities"}
    ] * 2


def test_describe_refuses_predictions_of_other_examples_or_classes():
    predictions = make_predictions()
    other = Examples(np.array(["甲"], object), np.array([0], np.int32), np.array([3]))
    with pytest.raises(ValueError, match="1 of 2 predicted ids are not among the 1 examples"):
        list(TASK.describe(predictions, other))
    with pytest.raises(ValueError, match="3 classes do not fit the 2 labels"):
        list(Classification(("差", "好")).describe(predictions, make_examples(None)))
