"""Progress of long work: what is under way, how far it is, and the time that is left.

`track` counts items, `working` is for work that counts for itself or has nothing to count. They
nest: within the third of eleven points, an evaluation is a part of that point. A thread of its own
prints, so that the work neither waits for it nor looks at a clock. On a terminal one line is
rewritten in place; elsewhere, and above the bar of a training, lines follow one another. Between
two lines ten seconds pass, whatever the work, so that short work mostly prints none.

`phase` measures where the time of a run goes.
"""

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_EVERY = 10.0  # seconds between two lines, of short work
_SELDOM = 30.0  # of work that takes many minutes
_TICK = 1.0  # seconds between two looks of the thread


class Work:
    """One piece of work under way.

    Attributes:
        what: the work, as in 'Reading'.
        total: how many items there will be, if only by estimate; 0 where it is not known.
        done: items so far; the work itself counts them.
    """

    def __init__(self, what: str, total: int, done: int):
        self.what, self.total, self.done = what, total, done
        self.began, self.first = time.monotonic(), done

    def prose(self) -> str:
        """Returns how far it is."""
        if self.total:
            return f"{self.what}: {self.done:,} of {max(self.total, self.done):,}"
        return f"{self.what}: {self.done:,}" if self.done else self.what


class _Reporter:
    """Prints what is under way, the outermost work first, from a thread that ends with it."""

    def __init__(self) -> None:
        self.printed = time.monotonic()  # when the last line was, by this or by another
        self._works: list[Work] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, work: Work) -> None:
        self._works.append(work)
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), daemon=True)
            self._thread.start()

    def end(self, work: Work) -> None:
        self._works.remove(work)
        if not self._works:
            self._stop.set()
            if self._thread is not threading.current_thread():  # which may collect a generator
                self._thread.join()  # so that its line is gone before another is printed
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        from rich.live import Live
        from rich.text import Text

        live = None
        # The work meets a closed output itself: no second message from here.
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
            while not stop.wait(min(_TICK, _EVERY / 4)):
                works, now = list(self._works), time.monotonic()
                if not works or now - self.printed < interval(now - works[0].began):
                    continue
                # A line can be rewritten on a terminal, unless a training's bar stands there.
                if (
                    live is None
                    and sys.stdout.isatty()
                    and not hasattr(sys.stdout, "rich_proxied_file")
                ):
                    live = stack.enter_context(Live(auto_refresh=False, transient=True))
                line = describe(works, now)
                if live:
                    live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
                    continue
                self.printed = now
                # One write: another thread's line must not come between the text and its end.
                sys.stdout.write(line + "\n")
                sys.stdout.flush()


_reporter = _Reporter()


@contextlib.contextmanager
def working(what: str, total: int = 0, *, done: int = 0) -> Iterator[Work]:
    """Reports what happens in the block, which may raise `done` of the yielded work meanwhile.

    Args:
        what: the work, as in 'Reading'.
        total: how many items there will be, if only by estimate; 0 where it is not known.
        done: how many of them are done already, as in a resumed training.
    """
    work = Work(what, total, done)
    _reporter.begin(work)
    try:
        yield work
    finally:
        _reporter.end(work)


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields `items` and reports how many are done; see `working`."""
    with working(what, total) as work:
        for item in items:
            yield item
            work.done += 1


class _Clock:
    """Charges wall seconds to the innermost phase."""

    def __init__(self) -> None:
        # What is imported before runs in one thread: CPU seconds are wall seconds.
        self.seconds = Counter({"imports": time.process_time()})
        self.phases, self.since = ["imports"], time.monotonic()

    def charge(self) -> None:
        now = time.monotonic()
        self.seconds[self.phases[-1]] += now - self.since
        self.since = now


_clock = _Clock()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Charges the time of the block to `name`, but for the phases within it."""
    _clock.charge()
    _clock.phases = [*_clock.phases, name] if _clock.phases[1:] else ["other", name]
    try:
        yield
    finally:
        _clock.charge()
        _clock.phases.pop()


def time_spent() -> str:
    """Returns a sentence on where the time went since the last call, the longest phase first."""
    _clock.charge()
    seconds, _clock.seconds = _clock.seconds, Counter()
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.most_common())
    return f"Time: {_duration(sum(seconds.values()))}: {parts}."


def said() -> None:
    """Notes that a line was printed, so that the next report may wait."""
    _reporter.printed = time.monotonic()


def interval(seconds: float) -> float:
    """Returns how long to wait for the next line of work that has taken so many seconds."""
    return min(_SELDOM, max(_EVERY, seconds / 10))


def describe(works: list[Work], now: float) -> str:
    """Returns the line about nested works, the outermost first, at the time `now`."""
    share, of = 0.0, None
    for work in reversed(works):  # the share of the inner ones is a part of an item of the outer
        if work.total:
            share, of = min(1.0, (work.done + share) / work.total), work
        elif of is not None:
            break  # what is around has no known size: the estimate is of the rest
    line = "; ".join(work.prose() for work in works)
    gained = share - of.first / of.total if of else 0.0
    last = works[-1]
    if not (last.total or last.done):  # one thing, such as a compilation: its time is no item's
        return f"{line}, {_duration(now - last.began)} so far"
    if gained <= 0:
        return f"{line}, {_duration(now - works[0].began)} so far"
    left = (now - of.began) * (1 - share) / gained
    return f"{line}, {share:.0%}, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
