"""Sweeps: lists of overrides, combined by product, zipped and sample.

A recipe may define, beside `get_config`,

    def sweep():  # what --mode=sweep runs
        return product({"optimizer.learning_rate": (2e-5, 5e-5), "seed": range(3)})

    def space():  # what --config.search.trials=N searches
        return {"optimizer.learning_rate": log_uniform(1e-5, 1e-3), "adapt.rank": choice(4, 8, 16)}

A sweep is a list of {key: value}, one per run, with the keys of --config.KEY. `+` concatenates
lists, `product` multiplies them, and sample(space(), 16) draws one.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Overrides = dict[str, Any]
Sweep = list[Overrides]


@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers between two ends, rounded to three significant digits."""

    low: float
    high: float
    log: bool

    def at(self, share: float) -> float:
        """Returns the number below which `share` of the distribution lies."""
        if self.log:
            return self.rounded(self.low * (self.high / self.low) ** share)
        return self.rounded(self.low + (self.high - self.low) * share)

    def suggest(self, trial: Any, key: str) -> float:
        """Asks an optuna.Trial for a value."""
        return self.rounded(trial.suggest_float(key, self.low, self.high, log=self.log))

    def rounded(self, value: float) -> float:
        """Rounds, which keeps names and commands short; a fourth digit changes no result."""
        return min(max(float(f"{value:.3g}"), self.low), self.high)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values, equally likely."""

    values: tuple

    def at(self, share: float) -> Any:
        """Returns the value below which `share` of the distribution lies."""
        return self.values[int(share * len(self.values))]

    def suggest(self, trial: Any, key: str) -> Any:
        """Asks an optuna.Trial for a value; by number, since values may be tuples."""
        return self.values[trial.suggest_categorical(key, range(len(self.values)))]


Space = Mapping[str, Interval | Choice]


def uniform(low: float, high: float) -> Interval:
    """Returns a uniform distribution. For whole numbers use choice(*range(low, high))."""
    return _interval("uniform", low, high, log=False)


def log_uniform(low: float, high: float) -> Interval:
    """Returns a log-uniform distribution, as suits learning rates."""
    return _interval("log_uniform", low, high, log=True)


def choice(*values: Any) -> Choice:
    """Returns a distribution over the values, equally likely."""
    if not values:
        raise ValueError("choice(): found no value, expected at least one")
    return Choice(values)


def product(*parts: Mapping[str, Iterable] | Sequence[Overrides]) -> Sweep:
    """Returns all combinations; the first part varies slowest.

    Args:
      *parts: {key: values}, each key of which is a factor, or sweeps.

    Raises:
      ValueError: a part is empty, or a key is in two parts.
    """
    return [_merge(row) for row in itertools.product(*_columns("product", parts))]


def zipped(*parts: Mapping[str, Iterable] | Sequence[Overrides]) -> Sweep:
    """Combines the first values of all parts, the second ones, and so on.

    Raises:
      ValueError: see `product`; or parts of different lengths.
    """
    columns = list(_columns("zipped", parts))
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{len(column)} of {'/'.join(column[0])}" for column in columns)
        raise ValueError(f"zipped: found {lengths}: give as many of each, or use product")
    return [_merge(row) for row in zip(*columns, strict=True)]


def sample(space: Space, count: int, *, seed: int = 0) -> Sweep:
    """Draws `count` different points; a greater count only appends more.

    Raises:
      ValueError: a value of `space` is no distribution, or the space has fewer points.
    """
    check_space(space)
    rng, points = np.random.default_rng(seed), []
    for _ in range(100 * count):  # a small space repeats many points
        point = {key: distribution.at(rng.random()) for key, distribution in space.items()}
        if len(points) < count and point not in points:
            points.append(point)
    if len(points) < count:
        raise ValueError(
            f"sample: found {len(points)} different points of {list(space)}, expected {count}: "
            "lower the count, or widen the space"
        )
    return points


def check_space(space: Any) -> None:
    """Raises ValueError, naming the key, unless `space` is {key: distribution}."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"a space is {{key: distribution}} with at least one key, found {space!r}")
    for key, value in space.items():
        if not isinstance(value, Interval | Choice):
            raise ValueError(
                f"{key}: found {value!r}, expected uniform(..), log_uniform(..) or choice(..); "
                "fixed values belong into get_config"
            )


def _interval(name: str, low: float, high: float, *, log: bool) -> Interval:
    least = 0 if log else -math.inf
    if not least < low < high < math.inf:
        expected = "0 < low < high" if log else "low < high"
        raise ValueError(f"{name}({low!r}, {high!r}): expected finite numbers with {expected}")
    return Interval(float(low), float(high), log)


def _columns(name: str, parts: Sequence[Any]) -> Iterator[Sweep]:
    """Yields the factors: the values of each key, and whole sweeps."""
    for part in parts:
        keyed = part.items() if isinstance(part, Mapping) else [("a sweep", part)]
        for key, values in keyed:
            if isinstance(values, str | Interval | Choice) or not isinstance(values, Iterable):
                raise ValueError(
                    f"{name}: {key}: found {values!r}, expected values such as (1, 2); sample() "
                    "draws from a space"
                )
            values = list(values)
            if not values:
                raise ValueError(f"{name}: {key}: found no values, expected at least one")
            yield [{key: value} for value in values] if isinstance(part, Mapping) else values


def _merge(row: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for overrides in row:
        if twice := sorted(merged.keys() & overrides.keys()):
            raise ValueError(f"a sweep sets {twice[0]} twice in one run: remove it from one part")
        merged |= overrides
    return merged
