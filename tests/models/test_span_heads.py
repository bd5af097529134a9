"""GlobalPointer's loss and search against all spans written out."""

import jax
import numpy as np
import pytest

from models.span_heads import SpanHead, best_spans, span_divergences, span_losses

SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 4, 5, 5, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 0, 0, 1, 0]], np.int32)
ASKED = (SEGMENTS > 0) & (POSITIONS != 1)
EXAMPLES, LABELS, WIDTH = 6, 3, 5  # the sixth is padding


def outputs_of(hidden, positions, seed=0):
    """A head with normal-sized weights on hidden states."""
    head, batch = SpanHead(LABELS, size=8), {"positions_RxL": positions}
    params = head.init(jax.random.key(0), None, hidden, batch, deterministic=True)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    return head.apply(params, None, hidden, batch, deterministic=True)


@pytest.fixture(scope="module")
def case():
    """Outputs, true spans in tokens, and every span of each example with its score, best first."""
    rng = np.random.default_rng(1)
    outputs = outputs_of(rng.normal(size=(2, 9, WIDTH)).astype(np.float32), POSITIONS)
    scores = np.einsum("rin,rjn->rij", outputs["queries_RxLxN"], outputs["keys_RxLxN"])[..., None]
    scores = scores + np.asarray(outputs["starts_RxLxC"])[:, :, None]
    scores = scores + np.asarray(outputs["stops_RxLxC"])[:, None]
    spans, everything = np.zeros((EXAMPLES, 4, 3), np.int32), []
    for example in range(EXAMPLES):
        row, places = (found for found in np.nonzero((example + 1 == SEGMENTS) & ASKED))
        first = np.flatnonzero(SEGMENTS[row[0]] == example + 1)[0] if len(row) else 0
        found = [
            (float(scores[row[0], i, j, label]), int(i - first), int(j - first), label)
            for i in places
            for j in places[places >= i]
            for label in range(LABELS)
        ]
        true = rng.permutation(len(found))[:3] if len(found) > 3 else []
        for slot, chosen in enumerate(true):
            _, i, j, label = found[chosen]
            spans[example, slot] = i, j, label + 1
        everything.append(sorted(found, reverse=True))
    return outputs, spans, everything


def test_the_loss_equals_that_of_the_paper_written_out(case):
    outputs, spans, everything = case
    losses = jax.jit(span_losses)(outputs, spans, ASKED, SEGMENTS)
    for example, found in enumerate(everything):
        true = {tuple(span) for span in spans[example].tolist() if span[2]}
        expected = 0.0
        for label in range(LABELS):
            own = [(s, (i, j, c + 1) in true) for s, i, j, c in found if c == label]
            expected += np.log1p(sum(np.exp(score) for score, is_true in own if not is_true))
            expected += np.log1p(sum(np.exp(-score) for score, is_true in own if is_true))
        assert losses[example] == pytest.approx(expected / LABELS, rel=1e-5, abs=1e-6)


def test_the_best_spans_are_found_exactly_nested_ones_too(case):
    outputs, _, everything = case
    spans, scores = jax.jit(
        lambda outputs: best_spans(outputs, ASKED, SEGMENTS, num_examples=EXAMPLES, count=7)
    )(outputs)
    for example, expected in enumerate(everything):
        there = np.asarray(scores[example]) > -1e8
        assert there.sum() == min(7, len(expected))
        found = np.asarray(spans[example])[there].tolist()
        assert found == [list(span) for _, *span in expected[: len(found)]]
        np.testing.assert_allclose(
            np.asarray(scores[example])[there], [s for s, *_ in expected[: len(found)]], rtol=1e-4
        )
    assert np.isfinite(scores).all()


def test_scores_do_not_know_where_in_a_row_a_text_stands():
    """Rotary positions are relative: shifted by a constant, the loss stays."""
    hidden = np.random.default_rng(2).normal(size=(2, 9, WIDTH)).astype(np.float32)
    spans = np.zeros((EXAMPLES, 1, 3), np.int32)
    one, two = (
        span_losses(outputs_of(hidden, POSITIONS + shift), spans, ASKED, SEGMENTS)
        for shift in (0, 50)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)


def test_broken_numbers_where_nothing_is_asked_reach_no_gradient(case):
    outputs, spans, _ = case
    broken = {name: np.where(ASKED[..., None], values, np.nan) for name, values in outputs.items()}
    gradients = jax.grad(lambda o: span_losses(o, spans, ASKED, SEGMENTS).sum())(broken)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_divergence_is_that_of_each_span_written_out(case):
    outputs, _, everything = case
    others = {name: values + 0.3 * np.cos(values) for name, values in outputs.items()}
    apart = span_divergences(outputs, others, ASKED, SEGMENTS, EXAMPLES)
    swapped = span_divergences(others, outputs, ASKED, SEGMENTS, EXAMPLES)
    np.testing.assert_allclose(apart, swapped, rtol=1e-5)
    scores = np.einsum("rin,rjn->rij", others["queries_RxLxN"], others["keys_RxLxN"])[..., None]
    scores = scores + others["starts_RxLxC"][:, :, None] + others["stops_RxLxC"][:, None]
    for example, spans in enumerate(everything):
        expected = 0.0
        if spans:
            (row,) = set(np.nonzero(example + 1 == SEGMENTS)[0].tolist())
            first = np.flatnonzero(SEGMENTS[row] == example + 1)[0]
        for score, i, j, label in spans:
            p, q = (
                1 / (1 + np.exp(-np.float64(logit)))
                for logit in (score, scores[row, i + first, j + first, label])
            )
            expected += p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
            expected += q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
        assert apart[example] == pytest.approx(expected / LABELS, rel=1e-3, abs=1e-4)
