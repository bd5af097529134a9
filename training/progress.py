"""What a person sees of a run: live bar or plain lines, metrics.jsonl, TensorBoard.

The training loop calls it with plain numbers and decides when; nothing here touches a device.
metrics.jsonl is read by reporting/report.py. TensorBoard's files are written by tensorboardX, which
never imports TensorFlow; tensorboard itself is needed only to view them.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from input_pipeline import eta, hosts
from input_pipeline.files import write_jsonl

_ON_THE_BAR = ("loss", "tokens_per_second", "mfu")


class Progress:
    """Shows and records a run; a context manager. Process 0 alone does both.

    On a terminal a live bar shows step, loss, tokens/s and the time left; elsewhere, and for what
    holds no loss (validation), every `log` is printed as one line. Each is also one JSON object
    {"step": s, name: value, ...} in the workdir's metrics.jsonl, flushed at once, so that a killed
    process loses nothing.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        *,
        resume_step: int | None = None,
        console: Console | None = None,
    ):
        """Opens the files.

        Args:
            workdir: made if need be.
            total_steps: steps of the whole training, those before a resume included.
            resume_step: step of the restored checkpoint: what an interrupted run logged after it is
                dropped, so that the file ends up as if never interrupted. None starts a new file.
            console: where to show; standard output by default.

        Raises:
            ValueError: if the metrics.jsonl to resume holds a line that is not JSON.
        """
        self._enabled, self._total_steps = hosts.writes(), total_steps
        path = Path(workdir) / "metrics.jsonl"
        kept = [] if resume_step is None else read_metrics(path, last_step=resume_step)
        write_jsonl(path, kept)
        if not self._enabled:
            return
        workdir = path.parent
        self._file = path.open("a", encoding="utf-8")
        self._events = _open_events(workdir / "tensorboard", resume_step)
        self._console = console or Console()
        self._step = self._first_step = resume_step or 0
        self._shown: dict[str, str] = {}
        self._open, self._work = contextlib.ExitStack(), None
        self._started: tuple[int, float] | None = None  # step and time from which speed is measured
        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=600,  # steps come in bursts, as fast as they are dispatched
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=self._step, shown="")

    def __enter__(self) -> "Progress":
        if self._enabled and self._console.is_terminal:
            self._open.enter_context(self._bar)
        elif self._enabled:  # between two logged steps, too, something is to be read
            work = eta.working("Training, steps", self._total_steps, done=self._step)
            self._work = self._open.enter_context(work)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._enabled:
            self._open.close()
            self._file.close()
            self._events.close()

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        mfu: float | None = None,
    ) -> None:
        """Moves the live bar to `step` finished steps; a number that is not given stays shown."""
        if not self._enabled:
            return
        if self._started is None and step > self._first_step:
            self._started = step, time.monotonic()  # not earlier: the first step compiles
        self._step = step = max(step, self._step)  # steps are logged after later ones were begun
        if loss is not None:
            self._shown["loss"] = f"loss {loss:.4f}"
        if tokens_per_second is not None:
            self._shown["speed"] = f"{tokens_per_second:,.0f} tokens/s"
        if mfu is not None:
            self._shown["mfu"] = f"mfu {mfu:.0%}"
        if self._work:
            self._work.done = step - (loss is None)  # what is only dispatched still runs
        self._bar.update(self._task, completed=step, shown="  ".join(self._shown.values()))

    def log(self, step: int, metrics: Mapping[str, float], *, show: bool = True) -> None:
        """Records named numbers of one step; loss, speed and 'mfu' also go to the bar.

        What depends on the clock (tokens per second, mfu and its padding) belongs under keys of its
        own: everything else of a resumed run equals an uninterrupted one. Not-finite numbers are
        written as null. With `show` false no line is printed, which suits all but the last of
        several steps.
        """
        if not self._enabled:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        _write_event(self._events, step=step, summary=summary_pb2.Summary(value=scalars))
        if show:  # the flush syncs the disk: once for several steps
            self._events.flush()
        self.update(step, **{name: values.get(name) for name in _ON_THE_BAR})
        if show and ("loss" not in values or not self._console.is_terminal):
            plain = {name: _plain(value) for name, value in values.items()}
            plain |= {"mfu": f"{values['mfu']:.0%}"} if "mfu" in values else {}
            shown = "  ".join(f"{name} {value}" for name, value in plain.items())
            self.message(f"step {step}/{self._total_steps}  {shown}{self._eta()}")

    def message(self, text: str) -> None:
        """Prints `text` above the bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            eta.said()

    def _eta(self) -> str:
        """The time left at the speed so far, as '  ETA h:mm:ss'; '' before that is known."""
        if self._started is None or self._step == self._started[0]:
            return ""
        first_step, first_time = self._started
        seconds_per_step = (time.monotonic() - first_time) / (self._step - first_step)
        left = round(seconds_per_step * (self._total_steps - self._step))
        return f"  ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


def read_metrics(path: str | Path, *, last_step: int | None = None) -> list[dict[str, float]]:
    """Reads metrics.jsonl up to `last_step`; [] if there is no such file.

    A last line without its end, as a killed process may leave it, is left out.

    Raises:
        ValueError: if a whole line is not JSON with a step, naming file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
            step = line["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number} holds {text[:80]!r}, expected a JSON object with 'step'. Remove "
                "the line, or start in a new workdir."
            ) from error
        if last_step is None or step <= last_step:
            lines.append(line)
    return lines


def _plain(value: float) -> str:
    """A number in few characters: 1234.5 -> 1,234; 0.00005 -> 5e-05."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _open_events(directory: Path, resume_step: int | None) -> EventsWriter:
    """Starts a TensorBoard event file; on resume, TensorBoard hides what was logged after it."""
    directory.mkdir(parents=True, exist_ok=True)
    # tensorboardX names files by the second: two starts within one would share a file.
    events = EventsWriter(str(directory / "events"), f".{time.time_ns()}.{os.getpid()}")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    _write_event(events, step=0 if resume_step is None else resume_step + 1, session_log=start)
    events.flush()
    return events


def _write_event(events: EventsWriter, **fields: object) -> None:
    """Appends one TensorBoard event."""
    events.write_event(event_pb2.Event(wall_time=time.time(), **fields))
