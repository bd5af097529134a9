"""Properties of linear probes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from evaluation import probes

RNG = np.random.default_rng(0)
# Vectors as pretrained models give them: a large common component, and small deviations.
COMMON_D = 5 * RNG.normal(size=8)
INPUTS_NxD = COMMON_D + RNG.normal(size=(200, 8)) * [1, 0.5, 0.1, 2, 1, 1, 1, 1]
SCORES_N = (INPUTS_NxD - COMMON_D) @ [1, 2, 5, 0, 0, 0, 0, 0] + RNG.normal(size=200)
CLASSES_N = np.digitize(SCORES_N, [-1, 1])
SETS_NxC = np.stack([SCORES_N > 0, SCORES_N > 1, np.zeros(200, bool)], axis=1)

FITS = {
    "classes": lambda x: probes.classes(x, CLASSES_N, weights_C=np.ones(3)),
    "several": lambda x: probes.several(x, SETS_NxC),
    "numbers": lambda x: probes.numbers(x, SCORES_N),
    "ordered": lambda x: probes.ordered(x, CLASSES_N, count=3),
}


def logits(probe, inputs_NxD):
    return inputs_NxD @ probe.kernel_DxC.astype(float) + probe.bias_C


@pytest.mark.parametrize("kind", FITS)
@settings(max_examples=5)
@given(st.floats(-50, 50), st.integers(0, 2**16))
def test_neither_place_nor_scale_of_the_inputs_changes_what_is_predicted(kind, shift, seed):
    scales_D = np.exp(np.random.default_rng(seed).normal(size=8))
    moved_NxD = INPUTS_NxD * scales_D + shift
    expected_NxC = logits(FITS[kind](INPUTS_NxD), INPUTS_NxD)
    np.testing.assert_allclose(
        logits(FITS[kind](moved_NxD), moved_NxD), expected_NxC, atol=0.02, rtol=0.01
    )


@pytest.mark.parametrize("kind", FITS)
def test_it_learns_and_a_constant_input_takes_no_part(kind):
    probe = FITS[kind](INPUTS_NxD)
    assert probe.loss < 0.8 * probe.floor
    constant_NxD = np.hstack([INPUTS_NxD, np.full((200, 1), 7.0)])
    wider = FITS[kind](constant_NxD)
    assert not wider.kernel_DxC[8].any()
    np.testing.assert_allclose(wider.kernel_DxC[:8], probe.kernel_DxC, atol=1e-4)


def test_two_classes_and_numbers_are_scikit_learns_on_standardised_inputs():
    x = (INPUTS_NxD - INPUTS_NxD.mean(0)) / INPUTS_NxD.std(0)
    probe = probes.classes(INPUTS_NxD, (SCORES_N > 0).astype(int), weights_C=np.ones(2))
    peer = LogisticRegression(C=probe.inverse_penalty).fit(x, SCORES_N > 0)
    difference_N = np.diff(logits(probe, INPUTS_NxD), axis=1)[:, 0]
    np.testing.assert_allclose(difference_N, peer.decision_function(x), atol=0.03, rtol=0.02)
    probe = probes.numbers(INPUTS_NxD, SCORES_N)
    peer = Ridge(alpha=1 / probe.inverse_penalty).fit(x, SCORES_N)
    np.testing.assert_allclose(logits(probe, INPUTS_NxD)[:, 0], peer.predict(x), atol=1e-3)


def test_a_class_or_label_without_an_example_is_improbable():
    probe = probes.classes(INPUTS_NxD, CLASSES_N, weights_C=np.ones(5))
    logits_NxC = logits(probe, INPUTS_NxD)
    assert (logits_NxC[:, 3:].max(1) < logits_NxC[:, :3].max(1)).all()
    assert (logits(FITS["several"](INPUTS_NxD), INPUTS_NxD)[:, 2] < -4).all()


def test_ordered_logits_descend_also_around_an_empty_class():
    classes_N = np.where(CLASSES_N == 2, 3, CLASSES_N)  # none is 2
    logits_NxC = logits(probes.ordered(INPUTS_NxD, classes_N, count=4), INPUTS_NxD)
    assert (np.diff(logits_NxC, axis=1) < 0).all()


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: FITS["classes"](np.ones((200, 8))), "200 vectors are all the same"),
        (
            lambda: probes.classes(INPUTS_NxD, np.zeros(200, int), weights_C=[1, 1]),
            "all 200 examples are of one class",
        ),
        (
            lambda: probes.classes(INPUTS_NxD[:2], np.array([0, 1]), weights_C=[1, 1, 1]),
            "2 examples are fewer than the 3 classes",
        ),
        (lambda: probes.ordered(INPUTS_NxD, np.ones(200, int), count=3), "are of one class"),
        (lambda: probes.several(INPUTS_NxD, np.ones((200, 2), bool)), "by all examples or by none"),
        (lambda: probes.numbers(INPUTS_NxD, np.full(200, 3.5)), "all 200 numbers are 3.5"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(fit, message):
    with pytest.raises(ValueError, match=message):
        fit()


def test_a_few_examples_do():
    for count in (2, 3, 6):
        probe = probes.classes(INPUTS_NxD[:count], np.arange(count) % 2, weights_C=[1, 1])
        assert np.isfinite(probe.kernel_DxC).all() and np.isfinite(probe.bias_C).all()
        assert ("too few examples" in probe.prose()) == (count < 5) and "nan" not in probe.prose()
