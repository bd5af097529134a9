"""What the benchmarks share: arguments, turns, processes, tables and the state of the machine.

Variants take turns, so that a noisy machine is noisy for all of them. Ratios are medians of the
rounds' ratios. Not here: what is measured (the other files).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

OURS, PYTORCH = "ours", "PyTorch float32"
_PAUSE = 0.5  # seconds in which the threads of the variant before come to rest
_QUIET = 0.5  # load average above which another program is at work


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """Parses the command line: an option for each default, of its type."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, metavar=default)
    return parser.parse_args()


def show_machine() -> None:
    """Prints what the figures depend on, and whether another program is at work."""
    load = os.getloadavg()[0]
    packages = [f"{p} {version(p)}" for p in ("jax", "torch", "transformers") if find_spec(p)]
    print(f"{os.cpu_count()} cores, load average {load:.1f}, {', '.join(packages)}")
    if load > _QUIET:
        print("Other programs are at work, and slow PyTorch more than ours: measure without them.")


def has_pytorch() -> bool:
    """Returns whether PyTorch can be measured; prints what to install if not."""
    missing = [name for name in ("torch", "transformers") if not find_spec(name)]
    if missing:
        print(f"No PyTorch rows without {' and '.join(missing)}: pip install -e '.[bench]'")
    return not missing


def seconds_of(call: Callable[[], Any], count: int = 1, *, clock=time.perf_counter) -> float:
    """Returns the time of one of `count` calls."""
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def take_turns(measures: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Calls every measure once a round, in reverse order in every second round."""
    results = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures)[:: -1 if number % 2 else 1]:
            results[name].append(measures[name]())
    return results


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a Markdown table."""
    for row in (columns, ["---", *["---:"] * (len(columns) - 1)], *rows):
        print(f"| {' | '.join(map(str, row))} |", flush=True)


class Side:
    """What a worker's process holds; subclasses have a method `begin`."""

    def seconds(self, count: int, method: str, *args: Any) -> float:
        """Returns the time of one of `count` calls of a method, which waits for its result."""
        return seconds_of(partial(getattr(self, method), *args), count)


def _work(connection: Connection, make: Callable[..., Side], args: Sequence[Any]) -> None:
    """Runs in a worker's process: sends what its side begins with, then the result of each call."""
    side = make(*args)
    connection.send(side.begin())
    while request := connection.recv():
        method, *args = request
        connection.send(getattr(side, method)(*args))


class Worker:
    """A side in a process of its own, which sleeps while the others work.

    Attributes:
        first: what the side's `begin` returned.
        seconds: from the start of the process to that.
    """

    def __init__(self, name: str, make: Callable[..., Side], *args: Any):
        """Starts the process, which calls `make(*args)` to get its side."""
        context = get_context("spawn")  # nothing of the parent's memory
        self.name, (self._connection, other) = name, context.Pipe()
        self.process = context.Process(target=_work, args=(other, make, args), daemon=True)
        start = time.perf_counter()
        self.process.start()
        other.close()  # so that recv() ends when the process does
        self.first = self._receive()
        self.seconds = time.perf_counter() - start

    def call(self, method: str, *args: Any) -> Any:
        """Returns what a method of the side returns."""
        time.sleep(_PAUSE)
        self._connection.send((method, *args))
        return self._receive()

    def stop(self) -> None:
        """Ends the process."""
        self._connection.send(None)
        self.process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self.process.join()
            sys.exit(
                f"Error: {self.name} ended with exit code {self.process.exitcode}; see its message "
                "above (-9 is usually a lack of memory)"
            )


def compare(workers: Sequence[Worker], calls: Mapping[str, tuple], *, rounds: int) -> None:
    """Prints a table of how long methods of OURS and PYTORCH take, and ends the workers.

    Args:
        workers: both sides; OURS alone without PyTorch.
        calls: title -> how often a method is called in a round, its name and its arguments.
        rounds: in which each side measures once.
    """
    rows = []
    for title, call in calls.items():
        measures = {worker.name: partial(worker.call, "seconds", *call) for worker in workers}
        for measure in measures.values():  # the first call may compile
            measure()
        seconds = take_turns(measures, rounds)
        cells = [f"{1e3 * statistics.median(values):,.0f}" for values in seconds.values()]
        if PYTORCH in seconds:
            ratios = [b / a for a, b in zip(seconds[OURS], seconds[PYTORCH], strict=True)]
            low, middle, high = np.percentile(ratios, (25, 50, 75))
            cells += f"{middle:.2f}", f"{low:.2f} to {high:.2f}"
        rows.append((title, *cells))
    for worker in workers:
        worker.stop()
    columns = ("", "ours, ms", "PyTorch, ms", "x PyTorch", "quartiles")
    show_table(columns[: len(rows[0])], rows)
