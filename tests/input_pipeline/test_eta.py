"""Progress lines."""

import contextlib
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from input_pipeline import eta

ROOT = Path(__file__).parents[2]


def work(what, total, done, began=0.0, *, first=0):
    made = eta.Work(what, total, first)
    made.done, made.began = done, began
    return made


@pytest.mark.parametrize(
    ("works", "line"),
    [
        ([("Reading", 8, 2)], "Reading: 2 of 8, 25%, about 3 min 0 s left"),
        ([("Reading", 0, 1234)], "Reading: 1,234, 1 min 0 s so far"),
        ([("Reading", 8, 9)], "Reading: 9 of 9, 100%, about 0 s left"),
        ([("Reading", 8, 0)], "Reading: 0 of 8, 1 min 0 s so far"),
        ([("Compiling the step", 0, 0)], "Compiling the step, 1 min 0 s so far"),
        (
            [("Steps", 125, 1), ("Compiling", 0, 0, 40.0)],
            "Steps: 1 of 125; Compiling, 20 s so far",
        ),
        (
            [("Integration", 10, 2), ("examples", 64, 32)],
            "Integration: 2 of 10; examples: 32 of 64, 25%, about 3 min 0 s left",
        ),
        (
            [("Testing", 0, 0), ("examples", 64, 16)],
            "Testing; examples: 16 of 64, 25%, about 3 min 0 s left",
        ),
    ],
)
def test_a_line_says_how_far_nested_work_is_and_what_is_left(works, line):
    assert eta.describe([work(*each) for each in works], 60.0) == line


def test_what_a_resumed_run_did_before_does_not_count_for_its_speed():
    found = eta.describe([work("Steps", 100, 75, first=50)], 60.0)
    assert found == "Steps: 75 of 100, 75%, about 1 min 0 s left"


def test_lines_of_long_work_become_rarer():
    assert [eta.interval(seconds) for seconds in (0, 60, 200, 7200)] == [10, 10, 20, 30]


def test_all_items_pass_and_fast_work_is_silent(capsys):
    assert list(eta.track(range(5), 2, "Reading")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == ""


def test_slow_work_speaks_even_where_nothing_is_counted_and_then_stops(monkeypatch, capsys):
    monkeypatch.setattr(eta, "_EVERY", 0.05)
    with eta.working("Compiling"):
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 7 and set(lines) == {"Compiling, 0 s so far"}
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_work_that_fails_or_is_left_is_no_longer_reported(monkeypatch, capsys):
    monkeypatch.setattr(eta, "_EVERY", 0.05)
    with pytest.raises(ValueError, match="wrong"), eta.working("First"):
        raise ValueError("wrong")
    for _ in eta.track(range(5), 5, "Second"):
        break
    with eta.working("Third"):
        time.sleep(0.15)
    assert set(capsys.readouterr().out.splitlines()) == {"Third, 0 s so far"}


def test_a_line_that_was_just_printed_puts_the_next_off(monkeypatch, capsys):
    monkeypatch.setattr(eta, "_EVERY", 0.2)
    with eta.working("Training"):
        for _ in range(10):
            eta.said()
            time.sleep(0.03)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_the_line_is_rewritten_and_gone_at_the_end():
    program = (
        "import time\nfrom input_pipeline import eta\neta._EVERY = 0.02\n"
        "with eta.working('Reading', 4) as work:\n"
        "    time.sleep(0.4)\n    print('above')\n    work.done = 2\n    time.sleep(0.2)\n"
        "print('after')\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=theirs) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # so ends what a terminal has to read
            while part := os.read(ours, 4096):
                text += part
        assert process.wait(timeout=60) == 0
    os.close(ours)
    before, _, after = text.decode().partition("above\r\n")
    assert "Reading: 0 of 4" in before and "Reading: 2 of 4, 50%" in after
    rewritten, _, rest = after.rpartition("Reading: 2 of 4")
    assert "\n" not in rewritten  # nothing stays
    assert "\x1b[2K" in rest and rest.endswith("after\r\n")


def test_time_is_charged_to_the_innermost_phase_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(eta.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(eta, "_clock", clock := eta._Clock())
    clock.seconds["imports"] = 9.0
    with eta.phase("steps"):
        now[0] += 50
        with contextlib.suppress(KeyError), eta.phase("compilation"):
            now[0] += 24
            raise KeyError
        now[0] += 3
    now[0] += 1
    expected = "Time: 1 min 27 s: steps 53 s, compilation 24 s, imports 9 s, other 1 s."
    assert eta.time_spent() == expected
    assert eta.time_spent() == "Time: 0 s: other 0 s."
