"""The linear-chain CRF against sums and maxima over all labellings, and on hostile numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import crf

CLASSES = 3
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 4, 5, 5, 0]], np.int32)
ASKED = np.array([[0, 1, 0, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, 1, 0]], bool)


def drawn(seed, *, scale=2.0, shape=SEGMENTS.shape):
    """Logits, tags and scores of chains."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(*shape, CLASSES)).astype(np.float32)
    sizes = (CLASSES, CLASSES), (CLASSES,), (CLASSES,)
    scores = crf.Scores(*(scale * rng.normal(size=s).astype(np.float32) for s in sizes))
    return logits, rng.integers(0, CLASSES, shape).astype(np.int32), scores


def labellings(logits, scores, row, segment):
    """Every labelling of one chain with its score, and where the chain lies."""
    places = np.flatnonzero((SEGMENTS[row] == segment) & ASKED[row])
    found = {}
    for tags in itertools.product(range(CLASSES), repeat=len(places)):
        total = scores.starts[tags[0]] + scores.ends[tags[-1]]
        total += sum(logits[row, place, tag] for place, tag in zip(places, tags, strict=True))
        found[tags] = float(
            total + sum(scores.transitions[a, b] for a, b in itertools.pairwise(tags))
        )
    return places, found


CHAINS = [(0, 1), (0, 2), (1, 3), (1, 5)]  # segment 4 has no tagged position


@pytest.mark.parametrize("seed", range(3))
def test_everything_equals_brute_force_over_all_labellings(seed):
    logits, tags, scores = drawn(seed)
    found = crf.chains(ASKED, SEGMENTS)
    likelihoods = np.asarray(jax.jit(crf.log_likelihoods)(logits, tags, found, scores))
    best = np.asarray(jax.jit(crf.decode)(logits, found, scores))
    marginals = np.asarray(jax.jit(crf.marginals)(logits, found, scores))
    for row, segment in CHAINS:
        places, all_scores = labellings(logits, scores, row, segment)
        total = np.log(np.sum(np.exp(list(all_scores.values()))))
        expected = all_scores[tuple(tags[row, places])] - total
        own = likelihoods[row][SEGMENTS[row] == segment].sum()
        assert own == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert tuple(best[row, places]) == max(all_scores, key=all_scores.get)
        for i, place in enumerate(places):
            for tag in range(CLASSES):
                paths = [score for way, score in all_scores.items() if way[i] == tag]
                expected = np.sum(np.exp(np.array(paths) - total))
                assert marginals[row, place, tag] == pytest.approx(expected, abs=1e-5)
    assert not likelihoods[~ASKED].any() and not best[~ASKED].any() and not marginals[~ASKED].any()


def test_what_is_not_asked_changes_nothing():
    """Neither other segments of the row nor positions without a tag reach a chain."""
    logits, tags, scores = drawn(0)
    others, other_tags, _ = drawn(1)
    keep = ASKED & (SEGMENTS == 3)
    changed = np.where(keep[..., None], logits, others)
    found = crf.chains(ASKED, SEGMENTS)
    one, two = (
        np.asarray(crf.log_likelihoods(x, np.where(keep, tags, y), found, scores))[keep].sum()
        for x, y in ((logits, tags), (changed, other_tags))
    )
    assert one == pytest.approx(two, rel=1e-6)
    assert (crf.decode(logits, found, scores) == crf.decode(changed, found, scores))[keep].all()


def test_without_chain_scores_it_is_the_softmax_of_each_position():
    logits, tags, _ = drawn(0)
    zeros = crf.Scores(*(jnp.zeros(s) for s in ((CLASSES, CLASSES), CLASSES, CLASSES)))
    found = crf.chains(ASKED, SEGMENTS)
    expected = np.take_along_axis(jax.nn.log_softmax(logits), tags[..., None], -1)[..., 0]
    total = crf.log_likelihoods(logits, tags, found, zeros).sum()
    assert total == pytest.approx(float(expected[ASKED].sum()), rel=1e-6)
    assert (np.asarray(crf.decode(logits, found, zeros)) == logits.argmax(-1))[ASKED].all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_long_chains_are_precise_and_gradients_finite(scale):
    """512 tags of logits up to thousands: as in float64, where the sum of all is taken apart."""
    shape = (1, 512)
    logits, tags, scores = drawn(0, scale=scale, shape=shape)
    whole = crf.chains(np.ones(shape, bool), np.ones(shape, np.int32))

    def loss(logits, scores):
        return crf.log_likelihoods(logits, tags, whole, scores).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(logits, scores)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    alpha = scores.starts.astype(np.float64) + logits[0, 0]
    for row in logits[0, 1:].astype(np.float64):
        alpha = np.logaddexp.reduce(alpha[:, None] + scores.transitions, axis=0) + row
    own = tags[0]
    expected = (
        scores.starts[own[0]] + scores.ends[own[-1]] - np.logaddexp.reduce(alpha + scores.ends)
    )
    expected += logits[0, np.arange(512), own].astype(np.float64).sum()
    expected += scores.transitions[own[:-1], own[1:]].astype(np.float64).sum()
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_forbidden_transitions_are_never_decoded():
    logits, _, scores = drawn(0, scale=30.0)
    forbidden = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], bool)
    transitions = np.where(forbidden, crf.FORBIDDEN, scores.transitions)
    found = crf.chains(ASKED, SEGMENTS)
    best = np.asarray(crf.decode(logits, found, scores._replace(transitions=transitions)))
    for row, segment in CHAINS:
        own = best[row, (SEGMENTS[row] == segment) & ASKED[row]]
        assert not forbidden[own[:-1], own[1:]].any()


@pytest.mark.parametrize("seed", range(2))
def test_smoothing_takes_its_share_from_the_mean_over_all_labellings(seed):
    logits, tags, scores = drawn(seed)
    found = crf.chains(ASKED, SEGMENTS)
    smooth = np.asarray(crf.log_likelihoods(logits, tags, found, scores, smoothing=0.3))
    for row, segment in CHAINS:
        places, all_scores = labellings(logits, scores, row, segment)
        every = np.array(list(all_scores.values()))
        expected = 0.7 * all_scores[tuple(tags[row, places])] + 0.3 * every.mean()
        expected -= np.log(np.sum(np.exp(every)))
        own = smooth[row][SEGMENTS[row] == segment].sum()
        assert own == pytest.approx(expected, rel=1e-5, abs=1e-5)
