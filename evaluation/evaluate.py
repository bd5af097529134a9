"""Runs a model over a whole split: what evaluate, predict and model selection all go through.

Knows nothing of devices, tasks or metrics: the caller's `apply_fn` places and computes a batch,
evaluation/metrics.py turns the predictions into numbers.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a classifier said about N examples, each once, in the order of their ids."""

    ids_N: np.ndarray  # int64, ascending
    labels_N: np.ndarray  # int32, the truth; zeros where unknown
    logits_NxC: np.ndarray  # float32, unnormalised log probabilities

    @property
    def classes_N(self) -> np.ndarray:
        """The predicted classes, int64; the first of several equally likely ones."""
        return self.logits_NxC.argmax(axis=-1)

    def without(self, ids: np.ndarray) -> "Predictions":
        """Returns the predictions for all examples but those with the given ids."""
        keep_N = ~np.isin(self.ids_N, ids)
        return Predictions(self.ids_N[keep_N], self.labels_N[keep_N], self.logits_NxC[keep_N])

    @property
    def log_probabilities_NxC(self) -> np.ndarray:
        """Normalised log probabilities, float64."""
        logits_NxC = self.logits_NxC.astype(np.float64)
        logits_NxC -= logits_NxC.max(axis=-1, keepdims=True)
        return logits_NxC - np.log(np.exp(logits_NxC).sum(axis=-1, keepdims=True))


def predict(
    apply_fn: Callable[[Any, Batch], jax.Array], params: Any, batches: Iterable[Batch]
) -> Predictions:
    """Applies the model to every batch. Exact on uneven data: weight-0 examples are left out.

    Batch i + 1 is dispatched before the logits of batch i are fetched, so that the device computes
    while the host waits and reads the next batch.

    Args:
        apply_fn: (params, batch) -> logits_BxC that this process can read in full; usually jitted.
        params: passed on to `apply_fn`.
        batches: evaluation batches; `ids_B`, `labels_B` and `weights_B` are read here.

    Raises:
        ValueError: if no example has a weight, an id comes twice, or a logit is not finite.
    """
    fetched, pending = [], None
    for batch in batches:
        logits_BxC = apply_fn(params, batch)
        if pending is not None:
            fetched.append(_fetch(*pending))
        pending = (logits_BxC, batch)
    if pending is not None:
        fetched.append(_fetch(*pending))
    if not sum(len(ids) for ids, _, _ in fetched):
        raise ValueError(
            f"There is nothing to evaluate: no example with a weight in {len(fetched)} batches. "
            "Check that the split is not empty and that its labels are not all masked."
        )
    ids_N, labels_N, logits_NxC = (np.concatenate(part) for part in zip(*fetched, strict=True))
    order = np.argsort(ids_N, kind="stable")
    ids_N, labels_N, logits_NxC = ids_N[order], labels_N[order], logits_NxC[order]
    repeated = ids_N[1:][ids_N[1:] == ids_N[:-1]]
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} examples came more than once, the first has id {repeated[0]}; every "
            "example must be evaluated exactly once."
        )
    broken = ids_N[~np.isfinite(logits_NxC).all(axis=-1)]
    if len(broken):
        raise ValueError(
            f"The model gives logits that are not finite for {len(broken)} of {len(ids_N)} "
            f"examples, the first has id {broken[0]}. Its parameters have diverged (lower "
            "optimizer.learning_rate) or model.dtype is too narrow (use 'float32')."
        )
    return Predictions(ids_N, labels_N, logits_NxC)


def _fetch(logits_BxC: jax.Array, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waits for the logits of one batch; returns ids, labels and logits of its real examples."""
    real_B = np.asarray(batch["weights_B"]) > 0
    return (
        np.asarray(batch["ids_B"], np.int64)[real_B],
        np.asarray(batch["labels_B"], np.int32)[real_B],
        np.asarray(logits_BxC, np.float32)[real_B],
    )
