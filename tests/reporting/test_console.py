"""What the process prints: nothing ends a run, nothing that matters is muted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = r"""
import logging, sys, threading, types, warnings
from absl import app
from absl import logging as absl_logging
from reporting.console import set_up_output

class Broken:
    def __del__(self):
        raise RuntimeError("a fault of ours")

class Ours:
    def __del__(self):
        raise RuntimeError("Event loop is closed, by us")

echo = types.SimpleNamespace(
    exc_type=RuntimeError, exc_value=RuntimeError("Event loop is closed"),
    exc_traceback=None, err_msg=None, object=None,
)

def lost_task(path):
    try:
        exec(compile("raise ValueError('no room')", path, "exec"))
    except ValueError as error:
        logging.getLogger("asyncio").error(f"a task of {path} is lost", exc_info=error)

def log(path, level, message, raised=None):
    record = logging.LogRecord("absl", level, path, 1, message, (), raised)
    absl_logging.get_absl_handler().handle(record)

def main(_):
    set_up_output()
    print("好😀")
    for text in ("甲", "乙", "甲"):
        warnings.warn(text + "😀")
        with warnings.catch_warnings():  # makes Python forget what it has shown
            warnings.simplefilter("ignore", RuntimeWarning)
    absl_logging.info("a fact about nothing")
    absl_logging.warning("a warning by absl")
    logging.getLogger("jax._src.xla_bridge").warning("falling back to cpu")
    log("/x/orbax/checkpoint/checkpoint_manager.py", logging.WARNING, "metrics are missing")
    log("/x/orbax/checkpoint/_src/futures/future.py", logging.ERROR, "raised as well",
        (ValueError, ValueError("full"), None))
    log("/x/orbax/checkpoint/_src/deleter.py", logging.ERROR, "could not delete")
    lost_task("/x/orbax/checkpoint/_src/serialization.py")
    lost_task("/x/ours.py")
    Broken(), Ours()
    thread = threading.Thread(target=lambda: sys.unraisablehook(echo))
    thread.start(), thread.join()
    sys.exit("Error: 坏😀")

app.run(main)
"""


@pytest.mark.parametrize(
    ("encoding", "good", "bad"),
    [("gbk", "好", "坏"), ("latin-1", r"\u597d", r"\u574f"), ("ascii", r"\u597d", r"\u574f")],
)
def test_what_is_said_arrives_whatever_the_terminal_can_encode(encoding, good, bad, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    locale = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=os.environ | locale | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding=encoding,
        timeout=60,
    )
    assert ended.stdout == good + r"\U0001f600" + "\n"
    assert ended.returncode == 1
    assert ended.stderr.endswith("Error: " + bad + r"\U0001f600" + "\n")
    assert ended.stderr.count("Warning: ") == 2  # each once
    for shown in (
        "a warning by absl",
        "falling back to cpu",
        "could not delete",
        "fault of ours",
        "by us",
        "a task of /x/ours.py is lost",
    ):
        assert shown in ended.stderr
    for muted in (
        "about nothing",
        "are missing",
        "raised as well",
        "is closed\n",
        "serialization.py",
    ):
        assert muted not in ended.stderr
