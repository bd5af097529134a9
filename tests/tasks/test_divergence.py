"""How far two predictions are apart, task by task: of equal ones 0, either way round, weighted."""

import jax
import numpy as np
import pytest

from configs import common
from tasks import task_class
from tasks.embedding import Embedding
from tasks.multiple_choice import MultipleChoice
from tasks.reading_comprehension import ReadingComprehension
from tasks.tagging import Tagging

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3, 0]], np.int32)  # the third example has no weight
WEIGHTS = np.array([1, 2, 0], np.float32)
RNG = np.random.default_rng(0)


def whole_texts(kind, width, **targets):
    config = common.get_config()
    config.classification.kind = kind
    labels = () if kind == "regression" else ("a", "b", "c")
    task = task_class(config)(config, labels, tokenizer=None, backbone=None)
    return task, {"logits_BxC": (3, width)}, targets


def bare(kind, **attributes):
    """A task without a tokeniser, which its divergence does not read."""
    task = object.__new__(kind)
    task.__dict__.update(attributes)
    return task


def tagging(flat):
    task = bare(Tagging, _flat=flat, _slots=1, positions=("tags_RxL",))
    scores = {"logits_RxLxC": (1, 8, 5)} if flat else dict.fromkeys(("queries_RxLxN",), (1, 8, 4))
    if not flat:
        scores |= {"keys_RxLxN": (1, 8, 4), "starts_RxLxC": (1, 8, 2), "stops_RxLxC": (1, 8, 2)}
    return task, scores, {"tags_RxL": (SEGMENTS > 0).astype(np.int32)}


CASES = {
    "single": lambda: whole_texts("single", 3, labels_B=np.zeros(3, np.int32)),
    "multi": lambda: whole_texts("multi", 3, labels_BxC=np.zeros((3, 3), np.int32)),
    "regression": lambda: whole_texts("regression", 1, numbers_B=np.zeros(3, np.float32)),
    "tags": lambda: tagging(True),
    "spans": lambda: tagging(False),
    "reading": lambda: (
        bare(ReadingComprehension),
        {"logits_RxLxC": (1, 8, 2)},
        {"asked_RxL": (SEGMENTS > 0).astype(np.int32)},
    ),
    "vectors": lambda: (bare(Embedding), {"vectors_BxKxE": (3, 2, 4)}, {}),
    "choices": lambda: (
        bare(MultipleChoice),
        {"logits_BxC": (6, 1)},
        {"choices_BxK": np.ones((3, 2), np.int32)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_divergences_are_symmetric_weighted_and_blind_to_what_has_no_weight(name):
    task, shapes, targets = CASES[name]()
    batch = {"segments_RxL": SEGMENTS, "weights_B": WEIGHTS, **targets}
    one, other = ({k: RNG.normal(size=v).astype("f4") for k, v in shapes.items()} for _ in "ab")

    def apart(first, second, **changes):
        return float(task.divergence(first, second, {**batch, **changes}, None))

    assert apart(one, one) == pytest.approx(0, abs=1e-6)
    assert apart(one, other) == pytest.approx(apart(other, one), rel=1e-5)
    parts = [apart(one, other, weights_B=np.eye(3, dtype="f4")[i]) for i in range(2)]
    assert min(parts) > 0
    assert apart(one, other) == pytest.approx(parts[0] + 2 * parts[1], rel=1e-4)

    def spoilt(side):
        """NaN at the example without weight, and at padding."""
        hidden = {(1, 8): SEGMENTS == 3, (3,): WEIGHTS == 0, (6,): np.repeat(WEIGHTS == 0, 2)}
        spoil = {k: hidden[v.shape[:2] if k.count("L") else v.shape[:1]] for k, v in side.items()}
        spoil = {k: v.reshape(*v.shape, *[1] * (side[k].ndim - v.ndim)) for k, v in spoil.items()}
        return {k: np.where(spoil[k], np.nan, v) for k, v in side.items()}

    slope = jax.grad(lambda side: task.divergence(side, spoilt(other), batch, None))(spoilt(one))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert apart(spoilt(one), spoilt(other)) == pytest.approx(apart(one, other), rel=1e-5)
