"""Two sides of a comparison taking turns: processes, rounds, ratios of medians, the table.

Each side has a process of its own, which sleeps while the other one works. Called by the benchmarks
that compare one thing with PyTorch (models.py, generation.py).
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

OURS, PYTORCH = "ours", "PyTorch float32"
_PAUSE = 0.3  # seconds in which the other side's threads come to rest
_QUIET = 0.5  # load average above which another program is at work


class Side(Protocol):
    """One of the two inside its process; made from a task.

    Attributes:
        calls: what is measured, by kind; each waits for its result.
    """

    calls: Mapping[str, Callable[[], Any]]

    def begin(self) -> Any:
        """Returns what both sides must agree on."""


def work(connection: Connection, make: Callable[[Any], Side], task: Any) -> None:
    """Runs in a side's process: sends what it begins with, then seconds for each (kind, count)."""
    side = make(task)
    connection.send(side.begin())
    for call in side.calls.values():  # the first may compile
        call()
    while request := connection.recv():
        kind, count = request
        start = time.perf_counter()
        for _ in range(count):
            side.calls[kind]()
        connection.send((time.perf_counter() - start) / count)


class Worker:
    """A side in its process."""

    def __init__(self, name: str, make: Callable[[Any], Side], task: Any):
        """Starts it; `first` is what the side begins with."""
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, make, task), daemon=True)
        self._process.start()
        other.close()
        self.name, self.first = name, self._receive()

    def seconds(self, kind: str, count: int) -> float:
        """Returns the time of one of `count` calls, while the other side sleeps."""
        time.sleep(_PAUSE)
        self._connection.send((kind, count))
        return self._receive()

    def stop(self) -> None:
        """Ends the process."""
        self._connection.send(None)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            sys.exit(
                f"Error: {self.name} ended with exit code {self._process.exitcode}; its message "
                "stands above"
            )


def take_turns(
    workers: Sequence[Worker], counts: Mapping[str, int], *, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Returns seconds by kind and side, one for each round, and ends the workers.

    Args:
        workers: both sides.
        counts: calls of each kind in a round.
        rounds: in which each side measures once, the other one first every second time.
    """
    seconds = {kind: {worker.name: [] for worker in workers} for kind in counts}
    for number in range(rounds):
        for kind, count in counts.items():
            for worker in workers if number % 2 else workers[::-1]:
                seconds[kind][worker.name].append(worker.seconds(kind, count))
    for worker in workers:
        worker.stop()
    return seconds


def ratio_of(seconds: dict[str, list[float]]) -> tuple[float, float, float]:
    """Returns the lower quartile, median and upper quartile of how many times faster we are."""
    ratios = [b / a for a, b in zip(seconds[OURS], seconds[PYTORCH], strict=True)]
    if len(ratios) < 2:
        return (ratios[0],) * 3
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def show(title: str, results: dict[str, dict[str, list[float]]]) -> None:
    """Prints the table of a model."""
    table = Table(title=title)
    for column in ("", "ours, ms", "PyTorch, ms", "x PyTorch", "quartiles"):
        table.add_column(column, justify="right" if column else "left")
    for kind, seconds in results.items():
        low, middle, high = ratio_of(seconds)
        times = (f"{1e3 * statistics.median(seconds[side]):,.0f}" for side in (OURS, PYTORCH))
        table.add_row(kind, *times, f"{middle:.2f}", f"{low:.2f} to {high:.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def show_machine() -> None:
    """Prints what the figures depend on, and whether another program is at work."""
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores and as many threads on either side, load average {load:.1f}; jax "
        f"{version('jax')}, torch {version('torch')}, transformers {version('transformers')}"
    )
    if load > _QUIET:
        print("Other programs are at work: measure again without them.")
