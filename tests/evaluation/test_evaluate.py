"""Properties of running a model over a split."""

import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.evaluate import predict
from input_pipeline import eta

KERNEL_FxC = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@jax.jit
def linear(params, batch):
    return {"logits_BxC": batch["features_BxF"] @ params}


def make_batches(ids, *, batch_size, order=None):
    """Batches of a linear problem in which feature and label depend on the id alone."""
    ids = np.asarray(ids, np.int64)
    features_NxF = np.sin(np.outer(ids + 1, np.arange(1, 5))).astype(np.float32)
    order = np.arange(len(ids)) if order is None else order
    for start in range(0, len(ids), batch_size):
        rows = order[start : start + batch_size]
        padding = batch_size - len(rows)
        yield {
            "features_BxF": np.pad(features_NxF[rows], ((0, padding), (0, 0))),
            "segments_RxL": np.zeros((1, 1), np.int32),
            "weights_B": np.pad(np.ones(len(rows), np.float32), (0, padding)),
            "ids_B": np.pad(ids[rows], (0, padding), constant_values=-1),
        }


@settings(max_examples=20)
@given(st.sets(st.integers(0, 10**12), min_size=1, max_size=20), st.integers(1, 7), st.randoms())
def test_predictions_do_not_depend_on_batch_size_or_order(ids, batch_size, random):
    ids = list(ids)
    order = list(range(len(ids)))
    random.shuffle(order)
    batches = make_batches(ids, batch_size=batch_size, order=np.array(order))
    found = predict(linear, KERNEL_FxC, batches)
    expected = predict(linear, KERNEL_FxC, make_batches(sorted(ids), batch_size=len(ids)))
    np.testing.assert_array_equal(found.ids_N, sorted(ids))
    np.testing.assert_allclose(found["logits_NxC"], expected["logits_NxC"], atol=1e-6)
    assert (found.ids_N.dtype, found["logits_NxC"].dtype) == (np.int64, np.float32)


def test_one_batch_is_dispatched_ahead_of_every_fetch():
    events = []

    class Logits:
        """Stands for a device array: converting it to numpy is the wait."""

        def __init__(self, batch, number):
            self.batch, self.number = batch, number

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return self.batch["features_BxF"].astype(dtype)

    def apply_fn(params, batch):
        number = sum(event.startswith("dispatch") for event in events)
        events.append(f"dispatch {number}")
        return {"logits_BxC": Logits(batch, number)}

    predict(apply_fn, None, make_batches(range(6), batch_size=2))
    assert events == ["dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "fetch 2"]


def test_outputs_of_positions_come_back_by_example_whatever_row_they_lay_in():
    """Each position says its example's id and its place in it."""
    lengths = {7: 3, 3: 1, 5: 4, 4: 2}

    def batch(ids, rows):
        segments, place = np.zeros((2, 2, 6), np.int32)
        for number, (id_, (row, offset)) in enumerate(zip(ids, rows, strict=True), start=1):
            there = np.s_[row, offset : offset + lengths[id_]]
            segments[there], place[there] = number, np.arange(lengths[id_])
        by_segment = np.array([0, *ids], np.int32)[segments]
        return {
            "segments_RxL": segments,
            "said_RxLx2": np.stack([by_segment, place], axis=-1),
            "ids_B": np.array([*ids, -1], np.int64),
            "weights_B": np.array([1.0] * len(ids) + [0.0], np.float32),
        }

    def apply_fn(params, batch):
        return {"said_RxLx2": batch["said_RxLx2"]}

    batches = [batch([7, 5], [(1, 2), (0, 1)]), batch([4, 3], [(0, 0), (0, 2)])]
    found = predict(apply_fn, None, batches)
    assert found.ids_N.tolist() == [3, 4, 5, 7]
    for id_, said in zip(found.ids_N, found["said_Nx2"], strict=True):
        assert said.tolist() == [[id_, place] for place in range(lengths[id_])]


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match=r"nothing to evaluate: no example .* in 0 batches"):
        predict(linear, KERNEL_FxC, [])
    masked = next(make_batches([1, 2], batch_size=2)) | {"weights_B": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match=r"nothing to evaluate: no example .* in 1 batches"):
        predict(linear, KERNEL_FxC, [masked])


def test_an_example_that_comes_twice_is_an_error():
    with pytest.raises(ValueError, match="1 examples came more than once, the first has id 4"):
        predict(linear, KERNEL_FxC, make_batches([3, 4, 5, 4], batch_size=2))


def test_logits_that_are_not_finite_name_the_example_and_the_remedy():
    def broken(params, batch):
        logits = linear(params, batch)["logits_BxC"]
        return {"logits_BxC": np.where(batch["ids_B"][:, None] == 4, np.nan, logits)}

    with pytest.raises(ValueError, match=r"1 of 5 examples, the first has id 4.*learning_rate"):
        predict(broken, KERNEL_FxC, make_batches(range(5), batch_size=2))


def test_padding_with_broken_logits_is_no_error():
    def broken(params, batch):
        logits = linear(params, batch)["logits_BxC"]
        return {"logits_BxC": np.where(batch["ids_B"][:, None] == -1, np.nan, logits)}

    assert len(predict(broken, KERNEL_FxC, make_batches(range(5), batch_size=2)).ids_N) == 5


def test_a_long_evaluation_shows_progress(monkeypatch, capsys):
    monkeypatch.setattr(eta, "_EVERY", 0.02)

    def slow(params, batch):
        time.sleep(0.05)
        return linear(params, batch)

    predict(slow, KERNEL_FxC, make_batches(range(8), batch_size=2), total=8)
    assert "examples: 4 of 8, 50%, about" in capsys.readouterr().out
