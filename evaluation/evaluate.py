"""Runs a model over a whole split; evaluation, prediction and model selection alike.

Not here: devices (the caller's `apply_fn` places and computes a batch), the statistics of the
predictions (tasks/) and the metrics (metrics.py).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from input_pipeline.eta import working

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's outputs for N examples, each once, in the order of their ids.

    Attributes:
        ids_N: int64, ascending.
        outputs: '<name>_N...' -> [N, ...]; an object array where examples have outputs of different
            sizes, such as one value for each of their tokens.
        fitted: what tasks.task.Task.fit chose on the validation split for this model.
    """

    ids_N: np.ndarray
    outputs: Mapping[str, np.ndarray]
    fitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]

    def __len__(self) -> int:
        return len(self.ids_N)


def predict(
    apply_fn: Callable[[Any, Batch], Mapping[str, jax.Array]],
    params: Any,
    batches: Iterable[Batch],
    *,
    total: int = 0,
) -> Predictions:
    """Applies the model to every batch. Exact on uneven data: weight-0 examples are left out.

    Batch i + 1 is dispatched before the outputs of batch i are fetched, so that the device computes
    while the host waits and reads the next batch.

    Args:
        apply_fn: (params, batch) -> the outputs of tasks.task.Task.outputs, which this process can
            read in full; usually jitted.
        params: passed on to `apply_fn`.
        batches: evaluation batches; `ids_B`, `weights_B` and `segments_RxL` are read here.
        total: how many examples there are, for the progress; 0 where it is not known.

    Raises:
        ValueError: if no example has a weight, an id comes twice, or an output is not finite.
    """
    fetched, pending = [], None
    with working("examples", total) as work:
        for batch in batches:
            outputs = apply_fn(params, batch)
            if pending is not None:
                fetched.append(_fetch(*pending))
                work.done += len(fetched[-1][0])
            pending = (outputs, batch)
        if pending is not None:
            fetched.append(_fetch(*pending))
    if not sum(len(ids) for ids, _ in fetched):
        raise ValueError(
            f"There is nothing to evaluate: no example with a weight in {len(fetched)} batches. "
            "Check that the split is not empty and that its labels are not all masked."
        )
    ids_N = np.sort(np.concatenate([ids for ids, _ in fetched]))
    repeated = ids_N[1:][ids_N[1:] == ids_N[:-1]]
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} examples came more than once, the first has id {repeated[0]}; every "
            "example must be evaluated exactly once."
        )
    outputs = {}
    for name in {name: None for _, part in fetched for name in part}:
        # Of several tasks, an output is about the examples of one, in the order of their ids.
        ids, parts = zip(*((ids, part[name]) for ids, part in fetched if name in part), strict=True)
        ids_M, values_M = np.concatenate(ids), np.concatenate(parts)
        order = np.argsort(ids_M, kind="stable")
        outputs[name] = values_M[order]
        broken = ids_M[order][[not np.isfinite(value).all() for value in outputs[name]]]
        if len(broken):
            raise ValueError(
                f"The model gives outputs that are not finite for {len(broken)} of {len(ids_N)} "
                f"examples, the first has id {broken[0]}. Its parameters have diverged (lower "
                "optimizer.learning_rate) or model.dtype is too narrow (use 'float32')."
            )
    return Predictions(ids_N, outputs)


def _fetch(
    outputs: Mapping[str, jax.Array], batch: Batch
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Waits for the outputs of one batch; returns ids and outputs of its real examples."""
    real_B = np.asarray(batch["weights_B"]) > 0
    fetched: dict[str, np.ndarray] = {}
    for name, array in outputs.items():
        values = np.asarray(array)
        if values.dtype not in (np.int32, np.bool_):
            values = values.astype(np.float32)
        if "_RxL" in name:
            values = _by_segment(values, np.asarray(batch["segments_RxL"]), len(real_B))
        fetched[name.replace("_RxL", "_N").replace("_B", "_N", 1)] = values[real_B]
    return np.asarray(batch["ids_B"], np.int64)[real_B], fetched


def _by_segment(values: np.ndarray, segments_RxL: np.ndarray, count: int) -> np.ndarray:
    """Cuts values of positions [R, L, ...] into one array for each example; object array [B]."""
    segments_P = segments_RxL.reshape(-1)
    order = np.argsort(segments_P, kind="stable")  # a segment lies in one row, in its order
    bounds = np.searchsorted(segments_P[order], np.arange(1, count + 2))
    ordered = values.reshape(len(segments_P), *values.shape[2:])[order]
    parts_B = np.empty(count, object)
    for example, (start, stop) in enumerate(itertools.pairwise(bounds)):
        parts_B[example] = ordered[start:stop]
    return parts_B
