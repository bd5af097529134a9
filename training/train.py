"""Training one run: restore, step, log, evaluate, save, stop. What runs before and after is
workflows/train.py's.

Start order: the workdir's own latest checkpoint, config.resume_from, pretrained weights, scratch.
"""

import contextlib
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.metrics import estimate, find
from input_pipeline import hosts
from input_pipeline.eta import phase, track, working
from input_pipeline.examples import Examples
from input_pipeline.files import remove
from models import adapters
from tasks.task import digest
from training import collapse, cost
from training.checkpoints import Checkpoints
from training.compilation import PerShape
from training.data import RunData
from training.experiment import Experiment
from training.interruption import Interrupted, stop_signals, stops_after
from training.origin import check_origin, first_weights, start_from_run
from training.pending import Pending
from training.progress import Progress
from training.sharding import put_batch
from training.state import TrainState
from training.train_step import make_train_step
from training.tuning import optimizers, regularizers
from training.tuning.schedules import Durations, check_plateau, path_schedules
from training.workdir import write_config

OnEvaluation = Callable[[int, list[float]], None]  # of the step and its rank: better is greater
# In the meta of a training that has just begun; 'skipped' counts steps whose every label is masked.
_NOTHING_SEEN = {"best": None, "evaluations_without_gain": 0, "collapse": {}, "skipped": 0}


class Run:
    """One training run in its workdir."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        data: RunData,
        train_split: Examples,
        on_evaluation: OnEvaluation | None = None,
    ):
        config = experiment.config
        self._experiment, self._config, self._workdir = experiment, config, workdir
        self._data, self._on_evaluation = data, on_evaluation
        self._count, self._said_stuck = len(train_split), False
        self._train_split = experiment.windows(train_split, training=True)
        self._durations = Durations(config, len(self._train_split))
        check_plateau(config, self._durations)
        self._metrics = experiment.task.metrics
        find(self._metrics, config.eval.metric)  # raises where there is none
        fingerprints = {**experiment.fingerprints, **data.fingerprints}
        hosts.check_same(
            {f"the fingerprint of {name!r}": value for name, value in fingerprints.items()},
            "give all hosts the same files (the checkpoint, and the data or their prepared copy)",
        )
        added = filter(adapters.is_added, experiment.initial)
        rootless = experiment.rootless.union(added)
        self._pretrained = [path for path in experiment.initial if path not in rootless]
        regularizers.check(
            config,
            pretrained=self._pretrained,
            mixes=experiment.task.MIXUP,
            joint=experiment.task.JOINT,
            head_dropout=getattr(experiment.model.task_head, "dropout", 0.0),
        )
        self._optimizer = optimizers.make_optimizer(config.optimizer, experiment.factors)
        teacher = getattr(train_split, "teacher_NxC", None)  # several tasks have none
        self._meta = {
            "config": json.loads(config.to_json()),
            "labels": data.labels,
            "fingerprints": {
                **experiment.fingerprints,
                **data.fingerprints,
                "examples": digest(train_split.ids_N),
                **({} if teacher is None else {"teacher": digest(teacher)}),
            },
            "metric": config.eval.metric,
            "fitted": experiment.task.unfitted,
            **_NOTHING_SEEN,
        }

    def train(self) -> None:
        """Trains to the end of config.train.duration, or to early stopping."""
        choice = self._config.train.collapse
        while True:
            checkpoints = Checkpoints(
                self._workdir / "checkpoints",
                rank=self._experiment.rank,
                keep_latest=self._config.train.keep_latest,
                keep_best=self._config.train.keep_best,
            )
            try:
                with contextlib.closing(checkpoints) as self._checkpoints:  # leaves no thread
                    return self._train()
            except collapse.Collapsed as error:
                collapse.restart(choice, self._workdir, error, learning_rate=self._rate)
                self._meta |= _NOTHING_SEEN

    def _step_of(self, experiment: Experiment) -> Callable:
        """Returns the train step as a function."""
        config, durations = self._config, self._durations
        schedule = path_schedules(
            config.schedule,
            experiment.factors,
            durations=durations,
            gates=experiment.gates(durations.unfreeze_every),
        )
        passes, options = experiment.passes(), config.regularize
        return make_train_step(
            regularizers.Regularizers(
                options, passes, seed=config.seed, teacher=experiment.teacher
            ),
            self._optimizer,
            learning_rate=self._rate,
            schedule=schedule,
            batch_size=config.data.batch_size,
            ema=config.train.ema,
            swa_from=durations.swa_from,
            sam=options.sam,
        )

    def _make_step(self) -> None:
        """Makes the train step; each earlier collapse has halved its learning rate."""
        experiment, config = self._experiment, self._config
        self._rate = config.optimizer.learning_rate * collapse.rate_factor(self._workdir)
        placement, like = experiment.placement, experiment.like()
        scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=placement.whole)
        moments = placement.like_state(jax.eval_shape(self._optimizer.init, like), like)
        average = like if config.train.ema or config.train.swa_from else None
        kept = config.regularize.mixout or config.regularize.l2_sp
        pretrained = {path: like[path] for path in self._pretrained} if kept else None
        plateau = config.schedule.name == "plateau"
        rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=placement.whole) if plateau else None
        self._like = TrainState(scalar, scalar, like, moments, average, pretrained, rate)
        places = jax.tree.map(lambda leaf: leaf.sharding, self._like), placement.whole
        self._train_step = PerShape(
            self._step_of(experiment), "the train step", print, donate=(0,), out_shardings=places
        )

    def describe_devices(self) -> Iterator[str]:
        """Yields lines on what each device would hold and compute, from shapes alone."""
        self._make_step()
        experiment, config = self._experiment, self._config
        with working("Choosing the shapes of batches"):
            plan = experiment.pipeline.plan(self._train_split)
        first = next(experiment.pipeline.train(self._train_split, first_example=0))
        largest = max(plan.shapes, key=math.prod)
        rows = {
            name: np.zeros((*array.shape[:-2], *largest), array.dtype)
            for name, array in first.items()
            if name.endswith("_RxL")
        }
        batch = put_batch(first | rows, experiment.mesh)
        frozen = experiment.placement.like(experiment.held)
        described, size = (self._like, frozen, batch), config.data.batch_size
        yield experiment.placement.prose()
        yield cost.describe_parameters(self._like.params, frozen)
        yield plan.prose()
        yield f"The first step has {int((first['segments_RxL'] > 0).sum()):,} tokens."
        lowered = self._train_step.lower(*described)
        yield from cost.describe_devices(*described, train_step=lowered, batch_size=size)

    def _train(self) -> None:
        self._make_step()
        state = self._start()
        write_config(self._workdir, self._config)
        first_step, seen = int(state.step), int(state.examples)
        left = self._durations.total_examples - seen
        total = first_step + max(0, -(-left // self._config.data.batch_size))
        self._guard = collapse.CollapseGuard(
            self._config.train.collapse, total_steps=total, seen=self._meta["collapse"]
        )
        self._meta["collapse"] = self._guard.seen  # the same dict: checkpoints hold it as it is
        self._describe(state, total)
        if left > 0 and not self._stopped_early():
            remove(self._workdir / "results.json")  # of a shorter training
            with working("Choosing the shapes of batches"):
                plan = self._experiment.pipeline.plan(self._train_split)
            print(plan.prose())
            batches = self._experiment.pipeline.train(
                self._train_split, first_example=seen, position=self._position
            )
            first = next(batches)
            frozen, batch = self._experiment.held, put_batch(first, self._experiment.mesh)
            flops = self._flops(state, frozen, batch)
            print(*cost.describe(state, frozen, batch, flops=flops), sep="\n")
            self._full_speed = cost.full_speed(
                flops, batch, jax.devices(), bfloat16=self._config.model.dtype == "bfloat16"
            )
            batches = itertools.chain([first], batches)
            with (
                Progress(self._workdir, total, resume_step=first_step or None) as progress,
                stop_signals() as stopped,
            ):
                self._progress = progress
                if self._config.eval.at_start and not first_step:
                    self.evaluate(0, state)
                self._loop(state, batches, first_step, total, stopped)
            print(f"{self._train_step.count} compilations of the train step.")
            if skipped := self._meta["skipped"]:
                print(f"Note: {skipped:,} of {total:,} steps were skipped: all labels are masked.")

    def _flops(self, *args: Any) -> float:
        """Returns the operations of the train step per example, without compiling it."""
        counted, step = self._experiment.counted, self._train_step
        if counted is not self._experiment:
            step = jax.jit(self._step_of(counted))
        return cost.flops_per_example(step.lower(*args), args[-1])

    def _start(self) -> TrainState:
        """Returns the state to start from, by the start order."""
        experiment, config = self._experiment, self._config
        latest, self._position = self._checkpoints.latest(), None
        if latest is not None:
            saved = self._checkpoints.meta(latest)
            check_origin(saved, self._meta, f"checkpoint {latest} of {self._workdir}", config)
            self._meta["skipped"] = saved.get("skipped", 0)  # older checkpoints lack it
            self._position = experiment.pipeline.seen(
                self._train_split,
                latest,
                since=saved.get("position"),
                batch_size=saved["config"]["data"]["batch_size"],
            )
            if saved["metric"] == config.eval.metric:
                for key in ("best", "evaluations_without_gain", "collapse"):
                    self._meta[key] = saved[key]
            print(f"Start: from checkpoint {latest} of this workdir.")
            return self._with_pretrained(self._checkpoints.restore(latest, self._like))
        if config.resume_from:
            params = start_from_run(config, self._meta, experiment.like())
        else:
            params = experiment.put(experiment.initial)
            print(f"Start: from {config.model.init} weights of {config.model.checkpoint}.")
        return self._fresh(params)

    def _fresh(self, params: dict[str, jax.Array]) -> TrainState:
        """Returns the state before the first step."""
        params = first_weights(self._experiment, params, self._pretrained)
        places = jax.tree.map(lambda leaf: leaf.sharding, self._like.optimizer)
        optimizer = jax.jit(self._optimizer.init, out_shardings=places)(params)
        zero = self._experiment.placement.put("", jnp.int32(0))
        average = self._like.average and jax.tree.map(jnp.copy, params)  # params are donated
        one = self._experiment.placement.put("", jnp.float32(1))
        rate = one if self._config.schedule.name == "plateau" else None
        state = TrainState(zero, zero + 0, params, optimizer, average, rate=rate)
        return self._with_pretrained(state)

    def try_rates(self) -> Iterator[tuple[float, float]]:
        """Yields learning rate and loss of each step of a training that saves nothing."""
        self._make_step()
        experiment = self._experiment
        state = self._fresh(experiment.put(experiment.initial))
        held = experiment.held
        batches = experiment.pipeline.train(self._train_split, first_example=0)
        batches = itertools.islice(batches, self._durations.steps)
        for batch in track(batches, self._durations.steps, "Range test, steps"):
            batch = put_batch(batch, experiment.mesh)
            state, metrics = self._train_step(state, held, batch)
            yield float(metrics["learning_rate"]), float(metrics["loss"])

    def _with_pretrained(self, state: TrainState) -> TrainState:
        """Returns the state with the weights that regularisers pull to, if any does."""
        paths, initial = self._like.pretrained or (), self._experiment.initial
        pretrained = self._experiment.put({path: initial[path] for path in paths})
        return state._replace(pretrained=pretrained if paths else None)

    def _describe(self, state: TrainState, total: int) -> None:
        """Prints the decisions that were derived from the config."""
        config, experiment, durations = self._config, self._experiment, self._durations
        examples = len(self._train_split)
        owners = self._train_split.owners_N
        windows = "" if owners is None else f" in {examples:,} windows"
        print(experiment.placement.prose())
        print(
            f"Training: {self._count:,} of {self._data.available:,} examples{windows}, {total:,} "
            "steps of "
            f"{config.data.batch_size} in {config.train.microbatches} microbatches, "
            f"{durations.total_examples / examples:.3g} epochs; {config.optimizer.name}, "
            f"{config.schedule.name} schedule up to {self._rate:g} after {durations.warmup:,} "
            "examples; "
            f"evaluation on {len(self._data.split('validation')):,} examples every "
            f"{durations.evaluate_every} steps, checkpoint every {durations.checkpoint_every}."
        )
        frozen = experiment.frozen if config.adapt.kind == "full" else {}
        shown = {**experiment.initial, **frozen}
        layers = experiment.num_layers, experiment.decoder_layers
        print(*optimizers.describe(config.optimizer, shown, *layers), sep="\n")
        for line in durations.describe(config.schedule, experiment.factors):
            print(line)

    def _loop(
        self,
        state: TrainState,
        batches: Iterator[dict[str, np.ndarray]],
        first_step: int,
        total: int,
        stopped: threading.Event,
    ) -> None:
        """Runs steps first_step + 1 .. total. Order: step, log, evaluate, save, stop."""
        durations, frozen = self._durations, self._experiment.held
        pending = Pending(
            self._progress,
            self._guard,
            first_step + 1,
            skipped=self._meta["skipped"],
            full_speed=self._full_speed,
        )
        for step in range(first_step + 1, total + 1):
            batch = next(batches)
            device_batch = put_batch(batch, self._experiment.mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = self._train_step(state, frozen, device_batch)
            pending.add(step, metrics, batch)
            last, stop = step == total, stops_after(step, stopped)
            evaluate = last or step % durations.evaluate_every == 0
            save = last or stop or step % durations.checkpoint_every == 0
            if evaluate or save or step % durations.log_every == 0:
                pending.flush()
                self._meta["skipped"] = pending.skipped
                self._check_labels(step, last=last)
            values = self.evaluate(step, state) if evaluate else None
            finished = last or self._stopped_early()
            if values and state.rate is not None and not finished:
                state = self._reduced(state)
            # Of several best ones each is written; what is not among them is deleted.
            gain = not self._meta["evaluations_without_gain"] or self._config.train.keep_best > 1
            if save or finished or (values and gain):
                ranks = self._experiment.rank(values) if values else ()
                self._meta["position"] = self._experiment.pipeline.seen(
                    self._train_split, step, since=self._position
                )
                with working("Writing a checkpoint"):
                    self._checkpoints.save(step, state, self._meta, values, ranks=ranks)
            if stop:
                raise Interrupted(
                    f"Interrupted after step {step} of {total}, which is saved. Start the same "
                    "command again to go on."
                )
            if finished:
                return
            if evaluate and self._on_evaluation:
                self._on_evaluation(step, self._experiment.rank(values))
            pending.restart_clock(evaluate or save)

    def _check_labels(self, step: int, *, last: bool) -> None:
        """Raises ValueError if an epoch, or the whole training, had no label."""
        epoch = step * self._config.data.batch_size >= len(self._train_split)
        if self._meta["skipped"] == step and (epoch or last):
            raise ValueError(
                f"every label of the first {step:,} steps is masked, so nothing was learned: check "
                "the labels of the training split"
            )

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Evaluates on the validation split, counts gains, and returns the metrics' values."""
        with phase("evaluation"), working("Validation"):
            scores, fitted = self._experiment.score(state.params, self._data.split("validation"))
        values = {m.name: estimate(scores, m.name)["value"] for m in self._metrics}
        self._meta["fitted"] = fitted
        shown = {m.name for m in self._metrics if m.shown} | {self._config.eval.metric}
        logged = {f"validation/{name}": values[name] for name in values if name in shown}
        self._progress.log(step, logged)
        if not step:  # before training: logged, but no candidate for the best checkpoint
            return values
        confusion = scores.detail.get("confusion_matrix")
        self._guard.check(step, confusion_CxC=confusion, loss=values.get("loss"))
        self._check_learned(step, values)
        rank, best = self._experiment.rank(values), self._meta["best"]
        gain = best is None or rank > best
        waited = 0 if gain else self._meta["evaluations_without_gain"] + 1
        self._meta["best"] = rank if gain else best
        self._meta["evaluations_without_gain"] = waited
        if self._stopped_early():
            print(f"Early stopping: {waited} evaluations without a better validation result.")
        return values

    def _check_learned(self, step: int, values: dict[str, float]) -> None:
        """Says so once if nothing was learned in half of the training."""
        task, total = self._experiment.task, self._guard.total
        if step < total / 2 or self._said_stuck:
            return
        guess = task.guess_loss(self._data.split("validation"))
        if reason := collapse.nothing_learned(values, guess, self._metrics[0].name):
            self._said_stuck = True
            probed = self._config.model.head_start == "probe"
            change = "Lower or raise" if probed else "Raise"  # too high a rate undoes a probe
            can_probe = task.PROBE and not probed
            probe = " or start with config.model.head_start='probe';" if can_probe else ""
            self._progress.message(
                f"Note: at step {step} of {total} the model has learned nothing: {reason}. "
                f"{change} config.optimizer.learning_rate, or the head's in lr_table;{probe} or "
                "train for longer."
            )

    def _reduced(self, state: TrainState) -> TrainState:
        """Halves the rate after each config.schedule.patience evaluations without a gain."""
        waited, patience = self._meta["evaluations_without_gain"], self._config.schedule.patience
        if not waited or waited % patience:
            return state
        state = state._replace(rate=state.rate / 2)
        self._progress.message(
            f"The learning rate is halved to {self._rate * float(state.rate):.3g} after {waited} "
            "evaluations without a better validation result."
        )
        return state

    def _stopped_early(self) -> bool:
        patience = self._config.train.early_stopping
        return bool(patience) and self._meta["evaluations_without_gain"] >= patience
