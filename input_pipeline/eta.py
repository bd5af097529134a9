"""Progress of long offline work, as plain lines with the time that is left.

Called by preparation.py, near_duplicates.py and storage.py; training has training/progress.py.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_EVERY = 5.0  # seconds between two lines; what is done sooner prints none


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields `items`, printing every few seconds how many are done and the time that is left.

    Args:
        items: whatever is worked through.
        total: how many there will be, if only by estimate; 0 where it is not known.
        what: the work, as in 'Reading'.
    """
    began = first = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done == 1:
            first = now  # the first item may wait for what is made once
        if done > 1 and now - last >= _EVERY:
            last = now
            line = f"{what}: {done:,} in {_duration(now - began)}"
            if total:
                left = (now - first) / (done - 1) * max(0, total - done)
                share = f"{done:,} of {max(total, done):,}, {min(1, done / total):.0%}"
                line = f"{what}: {share}, about {_duration(left)} left"
            print(line, flush=True)
        yield item


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
