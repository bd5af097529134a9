"""Kinds of values of a config: the rows of the table in checks.py.

Each row has `expected`, the range in words, and `fits`, which checks a value.
"""

import dataclasses
import math
import numbers
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(step|epoch|example|%)s?\s*")
_MOST = 2**31 - 1  # counts are int32 in arrays
_LARGEST = float(np.finfo(np.float32).max)


class Row(Protocol):
    """One row of the table."""

    @property
    def expected(self) -> str:
        """What is expected, in words."""

    def fits(self, value: Any) -> bool:
        """Returns whether a value is in the range."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`.

    It must be in the range in float32 as well, the dtype of computation: 1e-50 is not above 0, and
    0.9999999999 is not below 1.

    Attributes:
      low: the least.
      high: the greatest.
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    @property
    def expected(self) -> str:
        """The range in words."""
        words = "a finite number"
        if self.low > -math.inf:
            words += f" above {self.low:g}" if self.above else f" of at least {self.low:g}"
        if self.high < math.inf:
            words += f" and below {self.high:g}" if self.below else f" and at most {self.high:g}"
        return words

    def fits(self, value: Any) -> bool:
        """Returns whether it is a number in the range, not a bool."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        finite = abs(value) <= _LARGEST
        return finite and self._inside(float(value)) and self._inside(float(np.float32(value)))

    def _inside(self, value: float) -> bool:
        least = value > self.low if self.above else value >= self.low
        return least and (value < self.high if self.below else value <= self.high)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A multiple of `step` from `low` to `high`, or one of `also`; no bool, and no 2.0."""

    low: int = 0
    high: int = _MOST
    step: int = 1
    also: tuple[int, ...] = ()

    @property
    def expected(self) -> str:
        """The range in words."""
        kind = "a whole number" if self.step == 1 else f"a multiple of {self.step}"
        most = "below 2**31" if self.high == _MOST else f"at most {self.high}"
        return " or ".join([f"{kind} of at least {self.low} and {most}", *map(str, self.also)])

    def fits(self, value: Any) -> bool:
        """Returns whether it is one of them."""
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return False
        inside = self.low <= value <= self.high and value % self.step == 0
        return inside or value in self.also


@dataclasses.dataclass(frozen=True)
class Names:
    """A tuple or list of non-empty strings; of `choices`, if given, each once; at least `least`."""

    choices: tuple[str, ...] = ()
    least: int = 0

    @property
    def expected(self) -> str:
        """The names in words."""
        if not self.choices:
            return "a tuple of strings"
        return f"{'one or more' if self.least else 'a tuple'} of {self.choices}, each once"

    def fits(self, value: Any) -> bool:
        """Returns whether it is a tuple of them."""
        if (
            not are(Form("", lambda name: isinstance(name, str) and name))(value)
            or len(value) < self.least
        ):
            return False
        once = set(value) <= set(self.choices) and len(set(value)) == len(value)
        return once or not self.choices


@dataclasses.dataclass(frozen=True)
class Duration:
    """A number and a unit; `zero`, `share` and `empty` allow 0, a percentage or ''."""

    zero: bool = False
    share: bool = True
    empty: bool = False

    @property
    def expected(self) -> str:
        """The forms in words."""
        units = "'500 steps', '3 epochs', '1280 examples'" + " or '10%'" * self.share
        more = "" if self.zero else " of more than 0"
        return f"a duration{more} such as {units}" + ", or ''" * self.empty

    def fits(self, value: Any) -> bool:
        """Returns whether it is a duration."""
        if value == "":
            return self.empty
        number, unit = read_duration(value) or (-1, "")
        return (number > 0 or (number == 0 and self.zero)) and (unit != "%" or self.share)


@dataclasses.dataclass(frozen=True)
class Form:
    """Any value for which `fits` returns True."""

    expected: str
    fits: Callable[[Any], bool]


def choice(*words: str) -> Form:
    """Returns the row of one of several words."""
    return Form(f"one of {words}", lambda value: isinstance(value, str) and value in words)


def are(row: Row) -> Callable[[Any], bool]:
    """Returns a check that a value is a tuple or list of values that fit a row."""
    return lambda values: isinstance(values, tuple | list) and all(map(row.fits, values))


def read_duration(value: Any) -> tuple[float, str] | None:
    """Returns a duration's number and unit (step, epoch, example or %), or None."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return (float(match[1]), match[2]) if match else None


def is_regex(value: Any) -> bool:
    """Returns whether a value is a regular expression."""
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str)


def is_size(value: Any) -> bool:
    """Returns whether a value is the size of a split: a share below 1, or a count."""
    share, count = Number(0, 1, below=True), Number(1, _MOST)
    return share.fits(value) or (count.fits(value) and float(value).is_integer())


def is_ranks(value: Any) -> bool:
    """Returns whether a value is a first and a last rank."""
    return are(Whole(1))(value) and len(value) == 2 and value[0] <= value[1]


def is_mesh(value: Any) -> bool:
    """Returns whether a value is two sizes, of which one may be -1."""
    sizes = are(Whole(1, also=(-1,)))(value)
    return sizes and len(value) == 2 and tuple(value) != (-1, -1)


def is_placement(rows: Any) -> bool:
    """Returns whether a value is rows (regex, where a parameter lives)."""
    axes = (None, "data", "model")

    def is_row(row: Any) -> bool:
        if not isinstance(row, tuple | list) or len(row) != 2 or not is_regex(row[0]):
            return False
        where = row[1]
        if isinstance(where, str):
            return where in ("replicate", "fsdp")
        named = [axis for axis in where or () if axis is not None]
        return are(Form("", lambda axis: axis in axes))(where) and len(named) == len(set(named))

    return bool(rows) and are(Form("", is_row))(rows)


def is_table(rows: Any, *, freezes: bool) -> bool:
    """Returns whether a value is rows (regex, factor); with `freezes` a factor may be None."""

    def is_row(row: Any) -> bool:
        if not isinstance(row, tuple | list) or len(row) != 2 or not is_regex(row[0]):
            return False
        return Number(0).fits(row[1]) or (freezes and row[1] is None)

    return bool(rows) and are(Form("", is_row))(rows)


def is_schedule_table(rows: Any, names: tuple[str, ...]) -> bool:
    """Returns whether a value is rows (regex, name of a schedule, start); none is one too."""

    def is_row(row: Any) -> bool:
        if not isinstance(row, tuple | list) or len(row) != 3 or not is_regex(row[0]):
            return False
        return choice(*names).fits(row[1]) and Duration(zero=True).fits(row[2])

    return are(Form("", is_row))(rows)
