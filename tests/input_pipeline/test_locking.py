"""Locks on folders: one process at a time, however the one before has ended."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from input_pipeline import locking
from input_pipeline.locking import InUse, in_use

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from input_pipeline.locking import in_use
with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / 'run', and ends with its input."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), "两个 词"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_holds_it(holder, tmp_path):
    with pytest.raises(InUse) as error, in_use(tmp_path / "run"):
        pass
    message, host = str(error.value), os.uname().nodename
    assert f"{tmp_path / 'run'} is in use by process {holder.pid} on {host} since 20" in message
    assert "'两个 词'`: wait for its end, or choose another --workdir" in message
    with in_use(tmp_path / "run" / "trial"), in_use(tmp_path):  # of other folders nobody asks
        pass
    holder.communicate("\n")
    with in_use(tmp_path / "run"), in_use(tmp_path / "new" / "run"):
        pass
    assert not list(tmp_path.glob("new*"))  # made for the lock, and empty


def test_a_killed_holder_leaves_a_file_that_blocks_nobody(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    file = tmp_path / "run" / ".lock"
    assert f"process {holder.pid} on" in file.read_text("utf-8")
    with in_use(tmp_path / "run") as locked:
        assert locked
        assert f"process {os.getpid()} on" in file.read_text("utf-8")
    assert list((tmp_path / "run").iterdir()) == []


def test_waiting_lasts_until_the_holder_has_gone(holder, tmp_path, capsys):
    timer = threading.Timer(0.3, holder.communicate, ["\n"])
    timer.start()
    with in_use(tmp_path / "run", wait="which trains there") as locked:
        assert locked
    timer.join()
    assert holder.returncode == 0
    output = capsys.readouterr().out
    assert output.startswith(f"Waiting for process {holder.pid} on ")
    assert output.endswith("`, which trains there.\n")


def test_one_process_may_hold_it_twice_and_keeps_it_to_the_end(tmp_path):
    with in_use(tmp_path / "run"):
        with in_use(tmp_path / "run" / ".." / "run"):
            (tmp_path / "run" / "result").write_text("")
        with (tmp_path / "run" / ".lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_without_locks_the_work_goes_on_with_one_warning(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", refuse)
    monkeypatch.setattr(locking, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("a", "b"):
            with in_use(tmp_path / name) as locked:
                assert not locked
    assert len(caught) == 1
    assert "cannot be locked (No locks available): nothing stops" in str(caught[0].message)
