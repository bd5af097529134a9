"""SIGTERM and Ctrl-C while training: the step is finished and saved, then the process ends."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from jax.experimental import multihost_utils

from input_pipeline import hosts

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the state is saved and the same command goes on from there."""


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turns SIGTERM and SIGINT into an event; a second one acts as usual.

    Of several processes, JAX's preemption service waits for SIGTERM: see `stops_after`.
    """
    stopped, several = threading.Event(), hosts.count() > 1
    numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: object) -> None:
        stopped.set()
        signal.signal(number, before[number])
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        print("Stopping after this step; a second signal stops at once.", file=sys.stderr)

    for number in before:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stops_after(step: int, stopped: threading.Event) -> bool:
    """Returns whether training ends after `step`: the same for all processes.

    A signal to one of them ends all after the same step, one that none of them has begun.
    """
    if hosts.count() == 1:
        return stopped.is_set()
    return multihost_utils.reached_preemption_sync_point(step)
