"""Metrics of dispatched steps, fetched late: logging must not make the device wait."""

import time
from collections.abc import Mapping

import jax
import numpy as np

from training import collapse
from training.progress import Progress


class Pending:
    """Metrics of steps that may still run on the device; fetched only when they are logged.

    Attributes:
      skipped: number of steps so far whose every label was masked.

    `full_speed` is the number of tokens per second at the devices' peak, if it is known.
    """

    def __init__(
        self,
        progress: Progress,
        guard: collapse.CollapseGuard,
        first_step: int,
        *,
        skipped: int = 0,
        full_speed: float | None = None,
    ):
        self._progress, self._guard, self._first_step = progress, guard, first_step
        self.skipped, self._full_speed = skipped, full_speed
        self._steps: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []
        self._tokens = self._positions = 0
        self._start = time.perf_counter()

    def add(
        self, step: int, metrics: dict[str, jax.Array], batch: Mapping[str, np.ndarray]
    ) -> None:
        """Keeps the metrics of a dispatched step without waiting for them."""
        self._steps.append((step, metrics, batch["ids_B"]))
        lengths = batch.get("lengths_B", batch["segments_RxL"] > 0)  # of the rows of all processes
        self._tokens += int(lengths.sum())
        self._positions += batch["segments_RxL"].size
        self._progress.update(step)

    def restart_clock(self, restart: bool) -> None:
        """Excludes evaluation and saving from the measured speed."""
        if restart:
            self._start = time.perf_counter()

    def flush(self) -> None:
        """Waits for the steps, checks and logs them.

        Raises:
          Collapsed: a loss or gradient is not finite, naming the steps; or the loss diverges.
          ValueError: the first step is not finite, which no learning rate can mend.
        """
        fetched = [(step, jax.device_get(metrics), ids) for step, metrics, ids in self._steps]
        speed = self._tokens / max(time.perf_counter() - self._start, 1e-9)
        trained = {step: metrics for step, metrics, _ in fetched if metrics.pop("weight") != 0}
        broken = [
            step
            for step, metrics in trained.items()
            if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all()
        ]
        for step, _, ids in fetched:
            if step not in trained:
                self._skip(step, ids)
                continue
            values = {name: float(value) for name, value in trained[step].items()}
            last = {"tokens_per_second": speed} if step == max(trained) else {}
            if last and self._full_speed:
                last["mfu"] = speed / self._full_speed
                last["padding"] = 1 - self._tokens / self._positions
            self._progress.log(step, {**values, **last}, show=bool(last))
        if self._first_step in broken:
            raise ValueError(
                f"the loss or the gradient is not finite at step {self._first_step}, before any "
                "weight changed, so the learning rate is not the cause: check the numbers that are "
                "read (labels, features, class weights), or set config.model.dtype='float32'"
            )
        if broken:
            raise collapse.Collapsed(
                f"the loss or the gradient is not finite at steps {broken}: lower "
                "config.optimizer.learning_rate, lengthen config.schedule.warmup, or compute in "
                "float32. Checkpoints hold only steps before these."
            )
        for step, metrics in trained.items():
            self._guard.check_loss(step, float(metrics["loss"]))
        self._steps, self._tokens, self._positions = [], 0, 0
        self._start = time.perf_counter()

    def _skip(self, step: int, ids: np.ndarray) -> None:
        """Counts a step that changed no weight, and reports the first."""
        self._progress.log(step, {"skipped": 1.0}, show=False)
        self.skipped += 1
        if self.skipped == 1:
            self._progress.message(
                f"Note: every label of the batch of step {step} is masked (examples "
                f"{ids.ravel()[:8].tolist()}). Steps like it are skipped and counted."
            )
