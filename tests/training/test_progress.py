"""Properties of what a run shows and records."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from input_pipeline import hosts
from training.progress import Progress, read_metrics


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def run(workdir, steps, *, resume_step=None, console=None):
    with Progress(workdir, 20, resume_step=resume_step, console=console) as progress:
        for step in steps:
            progress.update(step)
            loss = np.float32(1) / np.float32(step)
            clock = {"tokens_per_second": 1000.0 * step, "mfu": 0.0411 * step}
            progress.log(step, {"loss": loss, **clock})
            if step % 5 == 0:
                progress.log(step, {"validation/accuracy": step / 20})


def test_every_logged_number_comes_back_exactly(tmp_path):
    run(tmp_path, range(1, 8))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses == [float(np.float32(1) / np.float32(step)) for step in range(1, 8)]
    assert lines[5] == {"step": 5, "validation/accuracy": 0.25}


@pytest.mark.parametrize("killed_after", [10, 13])
def test_a_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path, killed_after):
    run(tmp_path / "whole", range(1, 21))
    run(tmp_path / "resumed", range(1, killed_after + 1))
    run(tmp_path / "resumed", range(11, 21), resume_step=10)
    whole, resumed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "resumed"))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("end", ["", '{"step": 6', '{"step": 6, "loss": 0.1}'])
def test_a_line_cut_by_a_kill_is_dropped_on_resume(tmp_path, end):
    run(tmp_path, range(1, 5))
    path = tmp_path / "metrics.jsonl"
    expected = path.read_bytes()
    with path.open("a") as file:
        file.write(end)
    run(tmp_path, (), resume_step=4)
    assert path.read_bytes() == expected


def test_every_line_is_on_disk_before_the_next_step(tmp_path):
    with Progress(tmp_path, 3) as progress:
        for step in (1, 2, 3):
            progress.log(step, {"loss": 1.0})
            assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step


def test_a_fresh_start_begins_a_new_file(tmp_path):
    run(tmp_path, range(1, 5))
    run(tmp_path, range(1, 3))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize("broken", ["not json", '{"loss": 1.0}', "[3]"])
def test_a_broken_line_is_an_error_that_names_file_and_line(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 holds"):
        Progress(tmp_path, 10, resume_step=1)
    assert len(path.read_text().splitlines()) == 3


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    with Progress(tmp_path, 3) as progress:
        progress.log(1, {"loss": float("nan"), "gradient_norm": float("inf")})
    text = (tmp_path / "metrics.jsonl").read_text()
    expected = {"step": 1, "loss": None, "gradient_norm": None}
    assert json.loads(text, parse_constant=pytest.fail) == expected


def test_tensorboard_reads_all_scalars_and_forgets_steps_after_a_resume(tmp_path):
    run(tmp_path, range(1, 14))
    with Progress(tmp_path, 20, resume_step=10) as progress:
        progress.log(11, {"loss": 7.0})
    clock = ("tokens_per_second", "mfu")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", *clock, "validation/accuracy"}
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({step: 1 / step for step in range(1, 11)} | {11: 7.0})


def test_elsewhere_than_on_a_terminal_each_log_is_one_line_with_the_time_left(tmp_path, capsys):
    with Progress(tmp_path, 2000) as progress:
        progress.message("Model: [bold] " + "长" * 200)
        progress.log(10, {"loss": 0.5, "learning_rate": 5e-5, "tokens_per_second": 1234.5})
        progress.log(20, {"loss": 0.25}, show=False)
        progress.log(30, {"loss": 0.125, "mfu": 0.406})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Model: [bold] " + "长" * 200
    assert lines[1] == "step 10/2000  loss 0.5  learning_rate 5e-05  tokens_per_second 1,234"
    assert lines[2].startswith("step 30/2000  loss 0.125  mfu 41%  ETA 0:0")
    assert len(lines) == 3


def test_a_terminal_shows_step_loss_speed_and_validation(tmp_path):
    console = terminal()
    run(tmp_path, range(1, 11), console=console)
    shown = console.file.getvalue()
    for text in (
        "10/20",
        "loss 0.1000",
        "10,000 tokens/s",
        "mfu 41%",
        "ETA",
        "validation/accuracy 0.5",
    ):
        assert text in shown
    assert "step 10/20  loss" not in shown  # the loss is in the bar alone


def test_logging_steps_behind_those_begun_moves_nothing_back(tmp_path):
    console = terminal()
    with Progress(tmp_path, 20, console=console) as progress:
        for step in range(1, 11):
            progress.update(step)
        for step in range(1, 6):
            progress.log(step, {"loss": 1.0})
    assert "10/20" in console.file.getvalue().splitlines()[-2]


def test_other_processes_show_and_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hosts, "_index", 1)
    with Progress(tmp_path / "other", 3) as progress:
        progress.update(1, loss=0.5)
        progress.log(1, {"loss": 0.5})
        progress.message("text")
    assert not (tmp_path / "other").exists()
    assert capsys.readouterr().out == ""
