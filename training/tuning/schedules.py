"""Durations in any unit, and learning-rate schedules over them.

Everything is measured in training examples, so that a run that continues with another batch size
keeps its schedule.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from configs.ranges import read_duration


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

        self.log_every = steps(config.train.log_every)
        self.checkpoint_every = steps(config.train.checkpoint_every)
        self.evaluate_every = steps(config.eval.every)
        self.warmup = parse_duration(config.schedule.warmup, **units)
        self.cooldown = parse_duration(config.schedule.cooldown, **units)
        period = config.adapt.unfreeze_every
        self.unfreeze_every = period and parse_duration(period, **units)
        average = config.train.swa_from
        self.swa_from = parse_duration(average, **units) if average else None
        if average and self.swa_from >= total:
            raise ValueError(
                f"config.train.swa_from={average!r} is after {self.swa_from} examples, but the "
                f"training has {total}: shorten it"
            )


def make_schedule(
    config: ConfigDict, *, warmup: int, cooldown: int, total: int
) -> Callable[[jnp.ndarray], jnp.ndarray]:
    """Builds a function from examples seen to the factor on the learning rate.

    Args:
      config: config.schedule.
      warmup: examples of linear warm-up from 0 to 1.
      cooldown: examples of linear decay at the end; only 'wsd' (2404.06395) has one.
      total: examples of the whole training.

    Returns:
      A jittable function of a scalar, with values in [0, 1].

    Raises:
      ValueError: the parts do not fit into the whole.
    """
    if warmup >= total:
        raise ValueError(
            f"config.schedule.warmup covers {warmup} examples but the training has {total}: "
            "shorten the warm-up or lengthen config.train.duration"
        )
    rest, end = total - warmup, config.end_factor
    stable = rest - cooldown
    if config.name == "wsd" and stable < 0:
        raise ValueError(
            f"config.schedule: warmup ({warmup}) and cooldown ({cooldown}) exceed the {total} "
            "examples of the training"
        )
    after_warmup = {
        "constant": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, end, rest),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, rest, alpha=end),
        "polynomial": lambda: optax.polynomial_schedule(1.0, end, config.power, rest),
        # sqrt(warmup / examples) of 1706.03762, which is 1 where the warm-up ends.
        "inverse_sqrt": lambda: lambda n: jnp.sqrt(max(warmup, 1) / (n + max(warmup, 1))),
        "wsd": lambda: optax.join_schedules(
            [optax.constant_schedule(1.0), optax.linear_schedule(1.0, end, max(cooldown, 1))],
            [stable],
        ),
    }
    main = after_warmup[config.name]()
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), main], [warmup])
