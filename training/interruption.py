"""SIGTERM and Ctrl-C while training: the step is finished and saved, then the process ends."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the state is saved and the same command goes on from there."""


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turns SIGTERM and SIGINT into an event; a second one acts as usual."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        stopped.set()
        signal.signal(number, before[number])
        print("Stopping after this step; a second signal stops at once.", file=sys.stderr)

    for number in before:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
