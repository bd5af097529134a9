"""Durations in any unit, and learning-rate schedules over them.

Everything is measured in training examples, so that a run that continues with another batch size
keeps its schedule.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from configs.ranges import read_duration
from training.tuning.optimizers import match_table

RANGE = 100.0  # the schedule 'range' goes from 1 / RANGE to RANGE
Schedule = Callable[[jax.Array], jax.Array]


def parse_duration(
    text: str, *, batch_size: int, epoch_examples: int, total_examples: int = 0
) -> int:
    """Converts a duration to a number of training examples.

    Args:
      text: a number and a unit: steps, epochs, examples or %.
      batch_size: examples per step.
      epoch_examples: examples in the training split.
      total_examples: length of the training, what a percentage refers to.

    Returns:
      The duration in examples, rounded to the nearest.
    """
    number, unit = read_duration(text)
    scale = {"step": batch_size, "epoch": epoch_examples, "example": 1, "%": total_examples / 100}
    return round(number * scale[unit])


class Durations:
    """Every duration of a config, in steps, for one training split."""

    def __init__(self, config: ConfigDict, epoch_examples: int):
        units = {"batch_size": config.data.batch_size, "epoch_examples": epoch_examples}
        total = parse_duration(config.train.duration, **units)
        units["total_examples"] = self.total_examples = total

        def steps(text: str) -> int:
            return max(1, math.ceil(parse_duration(text, **units) / config.data.batch_size))

        self.steps = -(-total // config.data.batch_size)
        self.log_every = steps(config.train.log_every)
        self.checkpoint_every = steps(config.train.checkpoint_every)
        self.evaluate_every = steps(config.eval.every)
        self.warmup = parse_duration(config.schedule.warmup, **units)
        self.cooldown = parse_duration(config.schedule.cooldown, **units)
        self.starts = tuple(parse_duration(start, **units) for *_, start in config.schedule.table)
        period = config.adapt.unfreeze_every
        self.unfreeze_every = period and parse_duration(period, **units)
        average = config.train.swa_from
        self.swa_from = parse_duration(average, **units) if average else None
        if average and self.swa_from >= total:
            raise ValueError(
                f"config.train.swa_from={average!r} is after {self.swa_from} examples, but the "
                f"training has {total}: shorten it"
            )

    def describe(self, config: ConfigDict, paths: Iterable[str]) -> Iterator[str]:
        """Yields which row of config.schedule.table took how many of the trained paths."""
        left = list(paths)
        for (pattern, name, _), start in zip(config.table, self.starts, strict=True):
            kept = [path for path in left if not re.fullmatch(pattern, path)]
            yield (
                f"schedule.table: {pattern!r} took {len(left) - len(kept)} parameters, frozen for "
                f"the first {start:,} examples, then {name or config.name} after a warm-up"
            )
            left = kept


def check_plateau(config: ConfigDict, durations: Durations) -> None:
    """Raises ValueError if the schedule 'plateau' could not halve the rate before the end."""
    evaluations = (durations.steps - 1) // durations.evaluate_every
    if config.schedule.name == "plateau" and evaluations <= config.schedule.patience:
        raise ValueError(
            f"config.schedule.name='plateau' halves the rate after schedule.patience="
            f"{config.schedule.patience} evaluations that are no better than an earlier one, but "
            f"only {evaluations} precede the end of the training: lower config.eval.every, found "
            f"{config.eval.every!r}, or train for longer"
        )


def path_schedules(
    config: ConfigDict,
    paths: Iterable[str],
    *,
    durations: Durations,
    gates: Callable[[jax.Array], Mapping[str, jax.Array]] | None = None,
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns a function from examples seen to the factor on the learning rate of each path.

    A parameter that a row of config.schedule.table matches has a factor of 0 until the row's start,
    and a schedule of its own, with its warm-up, over the rest of the training.

    Args:
      config: config.schedule.
      paths: of the trained parameters.
      durations: of the run.
      gates: factor 0 or 1 on each, of gradual unfreezing.

    Raises:
      ValueError: see `make_schedule`.
    """
    total = durations.total_examples
    parts = {"warmup": durations.warmup, "cooldown": durations.cooldown}
    schedules = [make_schedule(config, total=total, **parts)]
    for (pattern, name, text), start in zip(config.table, durations.starts, strict=True):
        try:
            row = make_schedule(config, name=name or config.name, total=total - start, **parts)
        except ValueError as error:
            raise ValueError(
                f"config.schedule.table: {pattern!r} starts after {text}, and only "
                f"{total - start} examples follow: {error}"
            ) from None
        schedules.append(_delayed(row, start))
    rows = [(pattern, number) for number, (pattern, *_) in enumerate(config.table, start=1)]
    row_of = match_table([*rows, (".*", 0)], paths, "schedule.table")

    def factors(examples: jax.Array) -> dict[str, jax.Array]:
        values = [schedule(examples) for schedule in schedules]
        by_path = {path: values[row] for path, row in row_of.items()}
        if gates:
            by_path = {path: by_path[path] * gate for path, gate in gates(examples).items()}
        return by_path

    return factors


def _delayed(schedule: Schedule, start: int) -> Schedule:
    """Returns the schedule from `start` on, after zeros."""
    return lambda n: jnp.where(n < start, 0.0, schedule(jnp.maximum(n - start, 0)))


def make_schedule(
    config: ConfigDict, *, warmup: int, cooldown: int, total: int, name: str = ""
) -> Schedule:
    """Builds a function from examples seen to the factor on the learning rate.

    'cosine_restarts' has config.cycles cosines of equal length (1608.03983). 'one_cycle' rises from
    1/25 through the warm-up by half a cosine and falls by another (1708.07120, without its cycle of
    the momentum). 'plateau' is constant: training/train.py halves its rate (TrainState.rate).
    'range' grows exponentially, for the range test alone.

    Args:
      config: config.schedule.
      warmup: examples of linear warm-up from 0 to 1.
      cooldown: examples of linear decay at the end; only 'wsd' (2404.06395) has one.
      total: examples of the whole training.
      name: takes the place of config.name.

    Returns:
      A jittable function of a scalar, with values in [0, 1]; of 'range' up to RANGE.

    Raises:
      ValueError: the parts do not fit into the whole.
    """
    if warmup >= total:
        raise ValueError(
            f"config.schedule.warmup covers {warmup} examples but the training has {total}: "
            "shorten the warm-up or lengthen config.train.duration"
        )
    name = name or config.name
    rest, end = total - warmup, config.end_factor
    stable, cycle = rest - cooldown, rest / config.cycles
    if name == "one_cycle" and not warmup:
        raise ValueError("config.schedule.name='one_cycle' rises through the warm-up: set warmup")
    if name == "wsd" and stable < 0:
        raise ValueError(
            f"config.schedule: warmup ({warmup}) and cooldown ({cooldown}) exceed the {total} "
            "examples of the training"
        )
    after_warmup = {
        "constant": lambda: optax.constant_schedule(1.0),
        "plateau": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, end, rest),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, rest, alpha=end),
        "polynomial": lambda: optax.polynomial_schedule(1.0, end, config.power, rest),
        # sqrt(warmup / examples) of 1706.03762, which is 1 where the warm-up ends.
        "inverse_sqrt": lambda: lambda n: jnp.sqrt(max(warmup, 1) / (n + max(warmup, 1))),
        "wsd": lambda: optax.join_schedules(
            [optax.constant_schedule(1.0), optax.linear_schedule(1.0, end, max(cooldown, 1))],
            [stable],
        ),
        "cosine_restarts": lambda: (
            lambda n: cosine(jnp.where(n < rest, n % cycle, cycle))  # no restart at the very end
        ),
        "one_cycle": lambda: optax.cosine_decay_schedule(1.0, rest, alpha=end),
        "range": lambda: lambda n: RANGE ** (2 * n / total - 1),
    }
    cosine = optax.cosine_decay_schedule(1.0, cycle, alpha=end)
    main = after_warmup[name]()
    if not warmup:
        return main
    rise = optax.linear_schedule(0.0, 1.0, warmup)
    if name == "one_cycle":
        fall = optax.cosine_decay_schedule(1.0, warmup, alpha=0.04)
        rise = lambda n: 1.04 - fall(n)  # noqa: E731
    return optax.join_schedules([rise, main], [warmup])
