"""Properties of confident learning, training dynamics, folds, neighbours, and marked reviews."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import label_issues
from evaluation.label_issues import (
    assign_folds,
    dynamics,
    expected_issues,
    find_label_issues,
    nearest,
    thresholds,
)

# What cleanlab 2.9.0 says of twelve examples of three classes: count.get_confident_thresholds,
# count.compute_confident_joint(calibrate=False), filter.find_label_issues(filter_by=
# "confident_learning"), rank.get_label_quality_scores(method="normalized_margin"); and the sum off
# the diagonal of count.compute_confident_joint(calibrate=True), where each is there four times, so
# that its rounding to whole examples changes nothing.
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],
        [0.7, 0.2, 0.1],
        [0.2, 0.7, 0.1],
        [0.1, 0.8, 0.1],
        [0.55, 0.4, 0.05],
        [0.1, 0.6, 0.3],
        [0.05, 0.15, 0.8],
        [0.85, 0.1, 0.05],
        [0.3, 0.3, 0.4],
        [0.1, 0.1, 0.8],
        [0.6, 0.1, 0.3],
        [0.02, 0.95, 0.03],
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0, 2])
CLEANLAB_THRESHOLDS = [0.6, 0.6, 0.416]
CLEANLAB_JOINT = [[3, 1, 0], [0, 2, 0], [1, 1, 2]]
CLEANLAB_ISSUES = [2, 7, 11]
CLEANLAB_MARGINS = [
    0.925, 0.75, 0.25, 0.85, 0.425, 0.65, 0.825, 0.1, 0.55, 0.85, 0.65, 0.04,
]  # fmt: skip
CLEANLAB_EXPECTED_OF_FOUR = 14


def test_the_same_is_found_as_by_cleanlab():
    found = find_label_issues(LABELS, PROBABILITIES)
    np.testing.assert_allclose(thresholds(LABELS, PROBABILITIES), CLEANLAB_THRESHOLDS)
    assert found.joint_CxC.tolist() == CLEANLAB_JOINT
    assert np.flatnonzero(found.flagged_N).tolist() == CLEANLAB_ISSUES
    assert found.suggested_N[CLEANLAB_ISSUES].tolist() == [1, 0, 1]
    np.testing.assert_allclose((found.margin_N + 1) / 2, CLEANLAB_MARGINS)
    four = find_label_issues(np.tile(LABELS, 4), np.tile(PROBABILITIES, (4, 1)))
    assert four.expected == pytest.approx(CLEANLAB_EXPECTED_OF_FOUR)
    assert found.order()[:3].tolist() == [11, 7, 2]


def test_a_class_that_is_predicted_weakly_has_a_lower_threshold():
    """By the most probable class alone, every example of the rare one would be an error."""
    probabilities = np.array([[0.95, 0.05]] * 8 + [[0.6, 0.4]] * 3 + [[0.97, 0.03]])
    labels = np.array([0] * 8 + [1] * 4)
    found = find_label_issues(labels, probabilities)
    assert np.flatnonzero(found.flagged_N).tolist() == [11]
    assert found.joint_CxC.tolist() == [[8, 0], [1, 3]]


def test_confident_counts_are_scaled_to_the_examples_of_each_label():
    joint = np.array([[8, 2], [0, 5]])
    assert expected_issues(joint, np.array([100, 5])) == pytest.approx(20)
    assert expected_issues(np.zeros((2, 2), int), np.array([3, 4])) == 0


def test_the_only_example_of_a_class_is_never_flagged_nor_is_an_empty_class_suggested():
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.99, 0.01, 0]])
    found = find_label_issues(np.array([0, 0, 1]), probabilities)
    assert not found.flagged_N.any()
    assert thresholds(np.array([0, 0, 1]), probabilities)[2] == np.inf


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 40))
def test_order_of_examples_does_not_matter_and_flags_disagree_with_the_label(seed, size, count):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(size), count)
    labels, order = rng.integers(0, size, count), rng.permutation(count)
    found = find_label_issues(labels, probabilities)
    moved = find_label_issues(labels[order], probabilities[order])
    np.testing.assert_array_equal(found.flagged_N[order], moved.flagged_N)
    assert found.expected == pytest.approx(moved.expected)
    assert (found.margin_N[found.flagged_N] < 0).all()
    assert (found.suggested_N[found.flagged_N] != labels[found.flagged_N]).all()
    assert found.joint_CxC.sum() <= count
    assert 0 <= found.expected <= count


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 2], [[0.5, 0.5]] * 2, "labels from 0 to 2, expected 0 to 1"),
        ([0, -1], [[0.5, 0.5]] * 2, "labels from -1"),
        ([0], [[0.5, 0.5]] * 2, r"\(1,\) labels and probabilities \(2, 2\)"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "example 1 are .*nan"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.2]], "example 1 are .*add up to 1"),
    ],
)
def test_what_are_no_probabilities_of_the_labels_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        find_label_issues(np.array(labels), np.array(probabilities))


def test_forgetting_counts_each_fall_from_right_to_wrong():
    right = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]], bool)
    found = dynamics(np.where(right, 0.8, 0.2), right)
    assert found["forgetting"].tolist() == [2, 0, 1, 0]
    assert found["correctness"].tolist() == [0.5, 0.75, 0.5, 0]
    np.testing.assert_allclose(found["confidence"], [0.5, 0.65, 0.5, 0.2])
    np.testing.assert_allclose(found["variability"], [0.3, np.std([0.2, 0.8, 0.8, 0.8]), 0.3, 0])


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(2, 6), st.integers(0, 99))
def test_folds_are_of_one_size_and_share_each_class(labels, count, seed):
    labels_N = np.array(labels)
    folds_N = assign_folds(labels_N, count, seed=seed)
    np.testing.assert_array_equal(folds_N, assign_folds(labels_N, count, seed=seed))
    for own in (slice(None), *(labels_N == c for c in set(labels))):
        sizes = np.bincount(folds_N[own], minlength=count)
        assert sizes.max() - sizes.min() <= 1


def test_neighbours_are_the_nearest_by_angle_whatever_their_length(monkeypatch):
    monkeypatch.setattr(label_issues, "_CHUNK", 2)
    keys = np.array([[1, 0], [0, 9], [5, 5], [-1, 0]], float)
    queries = np.array([[3, 0.1], [0.1, 0.5], [-2, 0.1]], float)
    assert nearest(queries, keys, 2).tolist() == [[0, 2], [1, 2], [3, 1]]
    assert nearest(queries, keys[:1], 5).tolist() == [[0], [0], [0]]
