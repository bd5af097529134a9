"""Properties of temperatures and biases, and of what is said about calibration."""

import itertools
import json

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from evaluation.calibration import (
    GREATEST,
    LEAST,
    by_chance,
    calibrate,
    calibration_error,
    card,
    fit,
    reliability,
    selective_accuracy,
)


def make_case(seed, count, *, size=3, temperature=1.0, bias=()):
    """Logits whose calibrated form is log_softmax(logits / temperature + bias), and labels."""
    rng = np.random.default_rng(seed)
    true_NxC = 2 * rng.normal(size=(count, size))
    draws_NxC = true_NxC + rng.gumbel(size=(count, size))
    bias_C = np.array(bias) if len(bias) else np.zeros(size)
    return (true_NxC - bias_C) * temperature, draws_NxC.argmax(axis=1)


def loss(logits_NxC, labels_N, temperature=1.0):
    logs_NxC = log_softmax(logits_NxC / temperature, axis=1)
    return -logs_NxC[np.arange(len(labels_N)), labels_N].mean()


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 4.0]), st.sampled_from([2, 5]))
def test_the_fitted_temperature_is_the_best_of_a_grid(seed, temperature, size):
    logits_NxC, labels_N = make_case(seed, 1000, size=size, temperature=temperature)
    found = fit(logits_NxC, labels_N, kind="temperature")
    grid = min(loss(logits_NxC, labels_N, t) for t in np.geomspace(LEAST, GREATEST, 400))
    assert loss(logits_NxC, labels_N, found["temperature"]) < grid + 1e-3  # the prior's share
    assert found["temperature"] == pytest.approx(temperature, rel=0.2)
    assert found["bias"] == [0] * size


def test_temperature_and_biases_are_found_again():
    bias = (1.0, -0.4, -0.6)
    logits_NxC, labels_N = make_case(0, 20_000, temperature=2.5, bias=bias)
    found = fit(logits_NxC, labels_N, kind="bias")
    assert found["temperature"] == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(found["bias"], bias, atol=0.08)
    assert sum(found["bias"]) == pytest.approx(0, abs=1e-5)
    assert loss(calibrate(logits_NxC, found), labels_N) < loss(logits_NxC, labels_N, 2.5) - 0.01


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(0, 4), st.integers(-3, 3))
def test_a_temperature_changes_no_prediction_and_what_is_fitted_is_bounded_json(
    seed, count, size, power
):
    """Few, separable or contrary examples, classes that are absent, labels that are masked."""
    rng, size = np.random.default_rng(seed), size + 2
    logits_NxC = rng.normal(size=(count, size)).astype(np.float32) * np.float32(10.0**power)
    labels_N = rng.integers(-1, size, count)
    for kind in ("temperature", "bias"):
        fitted = fit(logits_NxC, labels_N, kind=kind)
        assert fitted == json.loads(json.dumps(fitted))
        assert (fitted == {}) == (labels_N < 0).all()
        logs_NxC = calibrate(logits_NxC, fitted)
        np.testing.assert_allclose(np.exp(logs_NxC).sum(axis=1), 1)
        if not fitted:
            continue
        assert LEAST <= fitted["temperature"] <= GREATEST * (1 + 1e-9)
        assert np.abs(fitted["bias"]).max() < 10
        if kind == "temperature":
            np.testing.assert_array_equal(logs_NxC.argmax(axis=1), logits_NxC.argmax(axis=1))


def test_masked_labels_and_other_orders_of_classes_change_nothing():
    logits_NxC, labels_N = make_case(0, 300, temperature=3.0)
    expected = fit(logits_NxC, labels_N, kind="bias")
    more_NxC = np.concatenate([logits_NxC, 100 * logits_NxC[:50]])
    masked = fit(more_NxC, np.concatenate([labels_N, np.full(50, -1)]), kind="bias")
    turned = fit(logits_NxC[:, ::-1], 2 - labels_N, kind="bias")
    for found, bias in ((masked, masked["bias"]), (turned, turned["bias"][::-1])):
        assert found["temperature"] == pytest.approx(expected["temperature"], rel=1e-4)
        np.testing.assert_allclose(bias, expected["bias"], atol=1e-4)


def test_a_handful_of_examples_told_right_does_not_make_the_model_certain():
    logits_NxC = np.tile([[2.0, 0.0], [0.0, 2.0]], (5, 1))
    found = fit(logits_NxC, np.array([0, 1] * 5), kind="temperature")
    assert 0.3 < found["temperature"] < 1
    contrary = fit(np.tile(logits_NxC, (20, 1)), np.array([1, 0] * 100), kind="temperature")
    assert contrary["temperature"] == pytest.approx(GREATEST)


def test_a_class_that_validation_lacks_becomes_rarer_but_not_impossible():
    logits_NxC, labels_N = make_case(0, 500)
    keep_N = labels_N != 1
    found = fit(logits_NxC[keep_N], labels_N[keep_N], kind="bias")
    assert -10 < found["bias"][1] < -2
    assert np.exp(calibrate(logits_NxC, found))[:, 1].max() > 1e-3


def test_none_is_fitted_where_none_is_wanted_and_probabilities_stay():
    logits_NxC, labels_N = make_case(0, 10)
    assert fit(logits_NxC, labels_N, kind="none") == {}
    np.testing.assert_array_equal(calibrate(logits_NxC, {}), log_softmax(logits_NxC, axis=1))


def test_calibrated_probabilities_have_the_error_of_chance_and_sharpened_ones_more():
    errors, by_chance = [], []
    for seed in range(40):
        logits_NxC, labels_N = make_case(seed, 1500)
        found = card(labels_N, logits_NxC.argmax(axis=1), log_softmax(logits_NxC, axis=1))
        errors.append(found["ece"])
        by_chance.append(found["ece_by_chance"])
        sharp_NxC = log_softmax(4 * logits_NxC, axis=1)
        sharp = card(labels_N, logits_NxC.argmax(axis=1), sharp_NxC)
        assert sharp["ece"] > 3 * found["ece"]
    assert np.mean(errors) == pytest.approx(np.mean(by_chance), rel=0.1)
    assert np.mean(errors) < 0.04


def test_temperature_brings_the_error_of_new_examples_down_to_chance():
    logits_NxC, labels_N = make_case(1, 4000, temperature=3.0)
    fitted = fit(logits_NxC[:1000], labels_N[:1000], kind="temperature")
    new_NxC, new_N = logits_NxC[1000:], labels_N[1000:]
    classes_N = new_NxC.argmax(axis=1)
    before, after = (card(new_N, classes_N, calibrate(new_NxC, f)) for f in ({}, fitted))
    assert before["ece"] > 0.1
    assert after["ece"] < 2 * after["ece_by_chance"] < 0.06
    assert after["brier"] < before["brier"] - 2 * before["brier_error"]


def test_p_is_uniform_where_all_is_calibrated_and_small_where_it_is_not():
    for count in (20, 150, 1000):
        found = {1.0: [], 3.0: []}
        for seed in range(100):
            logits_NxC, labels_N = make_case(seed, count)
            for sharpness, p_values in found.items():
                logs_NxC = log_softmax(sharpness * logits_NxC, axis=1)
                p_values.append(card(labels_N, logits_NxC.argmax(axis=1), logs_NxC)["ece_p"])
        assert np.mean(np.array(found[1.0]) <= 0.1) <= 0.16  # a tenth wanted
        assert 0.35 <= np.mean(np.array(found[1.0]) <= 0.5) <= 0.65
        assert count < 1000 or max(found[3.0]) < 0.01


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60))
def test_what_chance_would_show_is_json_and_the_same_each_time(rows):
    levels_N, right_N = map(np.array, zip(*rows, strict=True))
    error = calibration_error(reliability(levels_N / 12, right_N))
    mean, p = found = by_chance(levels_N / 12, error)
    assert found == tuple(json.loads(json.dumps(found))) == by_chance(levels_N / 12, error)
    assert 0 <= mean <= 1 and 0 < p <= 1
    assert by_chance(levels_N / 12, 0.0)[1] == 1


levels = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=80)


@settings(max_examples=100)
@given(levels, st.integers(1, 20))
def test_bins_hold_every_example_once_equals_together_and_add_up_to_the_accuracy(rows, bins):
    levels_N, right_N = map(np.array, zip(*rows, strict=True))
    found = reliability(levels_N / 12, right_N, bins=bins)
    counts = [each["count"] for each in found]
    assert sum(counts) == len(rows)
    assert len(found) <= bins
    for name, values_N in (("accuracy", right_N), ("confidence", levels_N / 12)):
        means = [each[name] for each in found]
        assert np.average(means, weights=counts) == pytest.approx(values_N.mean())
    edges = [edge for each in found for edge in (each["low"], each["high"])]
    assert edges == sorted(edges)
    assert all(a["high"] < b["low"] for a, b in itertools.pairwise(found))
    assert calibration_error(found) >= abs(levels_N.mean() / 12 - right_N.mean()) - 1e-9


def test_bins_of_different_confidences_are_of_equal_size():
    confidence_N = np.random.default_rng(0).permutation(150) / 150
    counts = [each["count"] for each in reliability(confidence_N, confidence_N > 0.5)]
    assert counts == [10] * 15


@settings(max_examples=100)
@given(levels)
def test_coverage_ends_with_all_and_each_threshold_takes_what_it_says(rows):
    levels_N, right_N = map(np.array, zip(*rows, strict=True))
    confidence_N = levels_N / 12
    found = selective_accuracy(confidence_N, right_N)
    coverages = [point["coverage"] for point in found]
    assert coverages == sorted(set(coverages))
    assert coverages[-1] == 1
    assert found[-1]["accuracy"] == pytest.approx(right_N.mean())
    for point in found:
        taken_N = confidence_N >= point["confidence"]
        assert taken_N.mean() == pytest.approx(point["coverage"])
        assert right_N[taken_N].mean() == pytest.approx(point["accuracy"])


def test_brier_score_of_two_classes_equals_scikit_learns_and_the_card_is_json():
    logits_NxC, labels_N = make_case(0, 200, size=2)
    logs_NxC = log_softmax(logits_NxC, axis=1)
    found = card(labels_N, logits_NxC.argmax(axis=1), logs_NxC)
    expected = sklearn.metrics.brier_score_loss(labels_N, np.exp(logs_NxC[:, 1]))
    assert found["brier"] == pytest.approx(expected)
    assert found == json.loads(json.dumps(found))
