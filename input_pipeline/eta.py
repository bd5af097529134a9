"""Progress of long offline work, as plain lines with the time that is left.

Called by preparation.py and near_duplicates.py; training has training/progress.py.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_EVERY = 5.0  # seconds between two lines; what is done sooner prints none


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields `items`, printing every few seconds how many of about `total` are done.

    Args:
        items: whatever is worked through.
        total: how many there will be, if only by estimate.
        what: the work, as in 'Reading'.
    """
    began = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= _EVERY:
            last = now
            left = (now - began) / done * max(0, total - done)
            share = f"{done:,} of {max(total, done):,}, {min(1, done / max(1, total)):.0%}"
            print(f"{what}: {share}, about {_duration(left)} left", flush=True)
        yield item


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
