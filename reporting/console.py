"""What the process prints, and how: set up once by main.py, before anything has something to say.

Not here: progress (input_pipeline/eta.py, training/progress.py).
"""

import logging
import os
import sys
import threading
import traceback
import warnings
from typing import Any

from absl import logging as absl_logging

from input_pipeline import hosts

_ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"
# What threads that save log as errors, the next save raises.
_RAISED = ("future.py", "async_checkpointer.py", "checkpoint_manager.py")
_warned: set[str] = set()


def set_up_output() -> None:
    """Makes sure that whatever a run has to say can be printed, once and at once."""
    for stream in (sys.stdout, sys.stderr):
        # A log file shows a line when it is written; what it cannot encode is escaped.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_handler().addFilter(_matters)
    warnings.showwarning = _show_warning
    sys.unraisablehook = _report_unraisable


def restart_in_utf8() -> None:
    """Starts the program again where the locale knows ASCII file names alone.

    Python could then neither open a Chinese name that a recipe gives, nor hand on one that the
    command line gives. What the terminal can show stays as it is.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        shown = os.environ.get("PYTHONIOENCODING") or sys.stdout.encoding
        changes = {"PYTHONUTF8": "1", "PYTHONIOENCODING": shown}
        os.execve(sys.executable, sys.orig_argv, os.environ | changes)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning without our code, once a process.

    Python's own memory of what it has shown is lost whenever a filter changes.
    """
    if str(message) not in _warned and hosts.writes():
        _warned.add(str(message))
        sys.stderr.write(f"Warning: {message}\n")


def _matters(record: logging.LogRecord) -> bool:
    """Whether a log record is for the user: of Orbax only errors that it does not raise as well.

    The tasks of a failed save fail with it; asyncio logs them whenever their memory is freed.
    """
    if record.name == "asyncio" and record.exc_info:
        frames = traceback.extract_tb(record.exc_info[2])
        return not any(_ORBAX in frame.filename for frame in frames)
    of_orbax = _ORBAX in record.pathname
    raised = record.filename in _RAISED and record.exc_info
    return not of_orbax or (record.levelno >= logging.ERROR and not raised)


def _report_unraisable(unraisable: Any) -> None:
    """Reports what could not be raised, but for the echo of a failed save.

    That is raised in the main thread. The threads of TensorStore then still want to tell an event
    loop about it that has been closed.
    """
    error, thread = unraisable.exc_value, threading.current_thread()
    echo = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if not (echo and unraisable.object is None and thread is not threading.main_thread()):
        sys.__unraisablehook__(unraisable)
