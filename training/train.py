"""The training loop: restore, step, log, evaluate, save, stop; then hand over to the protocol.

Start order: the workdir's own latest checkpoint, config.resume_from, pretrained weights, scratch.
"""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation import protocol
from evaluation.metrics import NAMES, higher_is_better, summarise
from input_pipeline.preparation import Examples, Prepared, load_split, prepare, prose
from training import optimizers
from training.checkpoints import Checkpoints
from training.compilation import PerShape
from training.experiment import Experiment, build
from training.progress import Progress
from training.schedules import make_schedule, parse_duration, to_steps
from training.sharding import put_batch, replicated
from training.state import TrainState
from training.train_step import make_train_step
from training.workdir import open_workdir

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the state is saved and the same command goes on from there."""


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs a config from its data to the report in `workdir`.

    Returns:
      What results.json holds.

    Raises:
      Interrupted: a signal came; everything is saved.
      ValueError: bad input, or a loss that is not finite.
      OSError: a file could not be read or written.
    """
    open_workdir(workdir, config)
    prepared = prepare(config.data)
    splits = {
        name: load_split(prepared, name, limit=config.data[f"max_{name}_examples"])
        for name in ("train", "validation")
    }
    say = print if jax.process_index() == 0 else lambda line: None
    say(prose(prepared.manifest))
    experiment = build(config, workdir, prepared.labels, say, splits["train"].texts_N)
    run = Run(experiment, workdir, prepared, splits)
    run.train()
    return protocol.finish(experiment, workdir, prepared, splits)


class Durations:
    """Every duration of a config, in steps, for one training split."""

    def __init__(self, config: ConfigDict, epoch_examples: int):
        units = {"batch_size": config.data.batch_size, "epoch_examples": epoch_examples}
        total = parse_duration(config.train.duration, "train.duration", **units)
        units["total_examples"] = self.total_examples = total

        def steps(text: str, key: str) -> int:
            return to_steps(parse_duration(text, key, **units), config.data.batch_size)

        self.log_every = steps(config.train.log_every, "train.log_every")
        self.checkpoint_every = steps(config.train.checkpoint_every, "train.checkpoint_every")
        self.evaluate_every = steps(config.eval.every, "eval.every")
        self.warmup = parse_duration(config.schedule.warmup, "schedule.warmup", **units)
        self.cooldown = parse_duration(config.schedule.cooldown, "schedule.cooldown", **units)


class Run:
    """One training run in its workdir."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        prepared: Prepared,
        splits: Mapping[str, Examples],
    ):
        config = experiment.config
        self._experiment, self._config, self._workdir = experiment, config, workdir
        self._splits = splits
        self._higher_is_better = higher_is_better(config.eval.metric)
        self._durations = Durations(config, len(splits["train"].ids_N))
        self._optimizer = optimizers.make_optimizer(config.optimizer, experiment.factors)
        schedule = make_schedule(
            config.schedule,
            warmup=self._durations.warmup,
            cooldown=self._durations.cooldown,
            total=self._durations.total_examples,
        )
        self._train_step = PerShape(
            make_train_step(
                experiment.apply,
                experiment.task.loss,
                self._optimizer,
                learning_rate=config.optimizer.learning_rate,
                schedule=schedule,
                batch_size=config.data.batch_size,
                seed=config.seed,
            ),
            "the train step",
            self._say,
            donate=(0,),
        )
        self._checkpoints = Checkpoints(
            workdir / "checkpoints",
            metric=config.eval.metric,
            higher_is_better=self._higher_is_better,
            keep_latest=config.train.keep_latest,
        )
        self._meta = {
            "config": json.loads(config.to_json()),
            "labels": list(prepared.labels),
            "fingerprints": {
                **experiment.fingerprints,
                **{name: part["fingerprint"] for name, part in prepared.manifest["splits"].items()},
            },
            "best_value": None,
            "evaluations_without_gain": 0,
        }
        self._progress: Progress | None = None

    def _say(self, line: str) -> None:
        if self._progress:
            self._progress.message(line)
        else:
            self._experiment.say(line)

    def train(self) -> None:
        """Trains to the end of config.train.duration, or to early stopping."""
        state = self._start()
        first_step, seen = int(state.step), int(state.examples)
        left = self._durations.total_examples - seen
        total = first_step + max(0, -(-left // self._config.data.batch_size))
        self._describe(state, first_step, total)
        if left <= 0 or self._stopped_early():
            self._checkpoints.close()
            return
        plan = self._experiment.pipeline.plan(self._splits["train"])
        self._say(plan.prose())
        batches = self._experiment.pipeline.train(self._splits["train"], first_example=seen)
        resumed = first_step if first_step else None
        with (
            Progress(
                self._workdir, total, resume_step=resumed, enabled=jax.process_index() == 0
            ) as progress,
            stop_signals() as stopped,
        ):
            self._progress = progress
            self._experiment.say = progress.message
            try:
                self._loop(state, batches, first_step, total, stopped)
            finally:
                self._progress = None
                self._experiment.say = print
        self._checkpoints.close()
        self._say(f"{self._train_step.count} compilations of the train step.")

    def _start(self) -> TrainState:
        """Returns the state to go on from, by the start order."""
        experiment, config = self._experiment, self._config
        scalar = jax.device_put(jnp.int32(0), replicated(experiment.mesh))
        latest = self._checkpoints.latest()
        if latest is not None:
            saved = self._checkpoints.meta(latest)
            self._check_fingerprints(saved["fingerprints"], latest)
            self._meta["best_value"] = saved["best_value"]
            self._meta["evaluations_without_gain"] = saved["evaluations_without_gain"]
            params = experiment.like()
            like = TrainState(
                jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(experiment.mesh)),
                jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(experiment.mesh)),
                params,
                jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(
                        leaf.shape, leaf.dtype, sharding=replicated(experiment.mesh)
                    ),
                    jax.eval_shape(self._optimizer.init, params),
                ),
            )
            self._say(f"Start: from checkpoint {latest} of this workdir.")
            return self._checkpoints.restore(latest, like)
        if config.resume_from:
            other = Checkpoints(
                Path(config.resume_from) / "checkpoints",
                metric=config.eval.metric,
                higher_is_better=self._higher_is_better,
                read_only=True,
            )
            step = other.resolve("best" if other.best() is not None else "latest")
            params = other.restore_params(step, experiment.like())
            self._say(f"Start: from the weights of checkpoint {step} of {config.resume_from}.")
        else:
            params = experiment.put(experiment.initial)
            self._say(f"Start: from {config.model.init} weights of {config.model.checkpoint}.")
        state = jax.jit(self._optimizer.init, out_shardings=replicated(experiment.mesh))(params)
        return TrainState(scalar, scalar + 0, params, state)

    def _check_fingerprints(self, saved: Mapping[str, str], step: int) -> None:
        current = self._meta["fingerprints"]
        changed = [name for name in current if saved.get(name) != current[name]]
        if changed and self._config.train.on_config_change == "refuse":
            raise ValueError(
                f"checkpoint {step} of {self._workdir} was trained with another "
                f"{' and another '.join(changed)} (the fingerprints differ): restore the files it "
                "was trained on, or choose another --workdir"
            )

    def _describe(self, state: TrainState, first_step: int, total: int) -> None:
        """Says in prose what was derived from the config."""
        config, experiment = self._config, self._experiment
        examples = len(self._splits["train"].ids_N)
        devices = jax.devices()
        self._say(
            f"Devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}) in "
            f"{jax.process_count()} processes; each step's rows are split over them."
        )
        epochs = self._durations.total_examples / examples
        self._say(
            f"Training: {examples:,} examples, {total:,} steps of {config.data.batch_size} in "
            f"{config.train.microbatches} microbatches, {epochs:.3g} epochs; "
            f"{config.schedule.name} schedule up to {config.optimizer.learning_rate:g} after "
            f"{self._durations.warmup:,} examples; evaluation every "
            f"{self._durations.evaluate_every} steps, checkpoint every "
            f"{self._durations.checkpoint_every}."
        )
        shown = {**experiment.initial, **experiment.frozen}
        for line in optimizers.describe(config.optimizer, shown, experiment.num_layers):
            self._say(line)
        trained, frozen, optimizer = (
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20
            for tree in (state.params, experiment.frozen, state.optimizer)
        )
        self._say(
            f"Memory: parameters {trained:,.0f} MiB trained and {frozen:,.0f} MiB frozen, "
            f"gradients {trained:,.0f} MiB, optimiser state {optimizer:,.0f} MiB; activations "
            "are in the temporaries of the compiled step."
        )

    def _loop(
        self,
        state: TrainState,
        batches: Iterator[dict[str, np.ndarray]],
        first_step: int,
        total: int,
        stopped: threading.Event,
    ) -> None:
        """Runs steps first_step + 1 .. total. Order: step, log, evaluate, save, stop."""
        durations, frozen = self._durations, self._experiment.frozen
        pending = Pending(self._progress)
        for step in range(first_step + 1, total + 1):
            batch = next(batches)
            check_batch(batch, step)
            device_batch = put_batch(batch, self._experiment.mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = self._train_step(state, frozen, device_batch)
            pending.add(step, metrics, batch)
            last = step == total
            stop = self._should_stop(step, stopped)
            evaluate = last or step % durations.evaluate_every == 0
            save = last or stop or step % durations.checkpoint_every == 0
            if evaluate or save or step % durations.log_every == 0:
                pending.flush()
            value = self._evaluate(step, state) if evaluate else None
            finished = last or self._stopped_early()
            if save or finished or (value is not None and self._meta["best_value"] == value):
                score = {self._config.eval.metric: value} if value is not None else None
                self._checkpoints.save(step, state, self._meta, score)
            if finished:
                return
            if stop:
                self._checkpoints.close()
                raise Interrupted(
                    f"Interrupted after step {step} of {total}, which is saved. Start the same "
                    "command again to go on."
                )
            pending.restart_clock(evaluate or save)

    def _should_stop(self, step: int, stopped: threading.Event) -> bool:
        if jax.process_count() > 1:  # all processes must agree on the step
            return self._checkpoints.reached_preemption(step)
        return stopped.is_set()

    def _evaluate(self, step: int, state: TrainState) -> float:
        """Evaluates on the validation split, counts gains, and returns the metric's value."""
        predictions = self._experiment.predict(state.params, self._splits["validation"])
        summary = summarise(predictions, self._experiment.task.labels)
        metrics = {name: summary[name]["value"] for name in NAMES}
        self._progress.log(step, {f"validation/{name}": value for name, value in metrics.items()})
        value, best = metrics[self._config.eval.metric], self._meta["best_value"]
        gain = best is None or (value > best if self._higher_is_better else value < best)
        if gain:
            self._meta["best_value"] = value
        waited = 0 if gain else self._meta["evaluations_without_gain"] + 1
        self._meta["evaluations_without_gain"] = waited
        if self._stopped_early():
            self._say(f"Early stopping: {waited} evaluations without a better validation result.")
        return value

    def _stopped_early(self) -> bool:
        patience = self._config.train.early_stopping
        return bool(patience) and self._meta["evaluations_without_gain"] >= patience


class Pending:
    """Metrics of steps that may still run on the device; fetched only when they are logged."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._steps: list[tuple[int, dict[str, jax.Array]]] = []
        self._tokens = 0
        self._start = time.perf_counter()

    def add(
        self, step: int, metrics: dict[str, jax.Array], batch: Mapping[str, np.ndarray]
    ) -> None:
        """Notes a dispatched step without waiting for it."""
        self._steps.append((step, metrics))
        self._tokens += int((batch["segments_RxL"] > 0).sum())
        self._progress.update(step)

    def restart_clock(self, restart: bool) -> None:
        """Leaves evaluation and saving out of the speed."""
        if restart:
            self._start = time.perf_counter()

    def flush(self) -> None:
        """Waits for the steps, checks and logs them.

        Raises:
          ValueError: a loss or gradient is not finite; names the steps.
        """
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self._steps]
        speed = self._tokens / max(time.perf_counter() - self._start, 1e-9)
        broken = [
            step
            for step, metrics in fetched
            if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["gradient_norm"])
        ]
        for step, metrics in fetched:
            values = {name: float(value) for name, value in metrics.items()}
            last = {"tokens_per_second": speed} if step == fetched[-1][0] else {}
            self._progress.log(step, {**values, **last}, show=bool(last))
        if broken:
            raise ValueError(
                f"the loss or the gradient is not finite at steps {broken}: lower "
                "config.optimizer.learning_rate, lengthen config.schedule.warmup, or compute in "
                "float32; the last checkpoint is from before"
            )
        self._steps, self._tokens, self._start = [], 0, time.perf_counter()


def check_batch(batch: Mapping[str, np.ndarray], step: int) -> None:
    """Raises when no example of a batch has a label to learn from.

    Raises:
      ValueError: names the step and the examples.
    """
    if not batch["weights_B"].any():
        ids = batch["ids_B"].ravel()[:8].tolist()
        raise ValueError(
            f"step {step}: every label of the batch is masked (examples {ids}), so there is "
            "nothing to learn from: check the labels, or raise config.data.batch_size"
        )


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turns SIGTERM and SIGINT into an event; a second one acts as usual."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        stopped.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
