"""A run's folder: the command that repeats the run, and what 'overwrite' deletes."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs import common
from configs.overrides import companion, load_config
from training.workdir import check_workdir, write_config
from workflows.planning import plan

RECIPE = "configs/reviews.py:runlocal"


def read_command(path):
    """What main.py makes of a command: config, workdir and other flags."""
    words = shlex.split(path.read_text("utf-8"))
    assert words[:2] == ["python", "main.py"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[1:])  # where config_flags looks for overrides
        values(words[1:])
    return values.config, Path(values.workdir)


@pytest.mark.parametrize("given", [[f"--config={RECIPE}"], ["-config", RECIPE]])
def test_a_run_of_a_sweep_is_repeated_by_its_own_command(given, tmp_path, monkeypatch):
    flags_of_all = ["--mode=sweep", f"--workdir={tmp_path}", "--config.data.batch_size=4"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py", *given, *flags_of_all])
    config = load_config(RECIPE)
    config.data.batch_size = 4
    config.seeds = 2
    entries = [
        {"optimizer.learning_rate": rate, "seed": seed} for rate in (1e-4, 1) for seed in (0, 1)
    ]
    for run in plan(config, tmp_path, entries, recipe=RECIPE):
        write_config(run.workdir, run.config)
        found, folder = read_command(run.workdir / "command.txt")
        assert folder == run.workdir and folder != tmp_path
        assert found.to_json() == run.config.to_json()


def test_what_a_run_is_compared_with_is_repeated_by_its_own_command(tmp_path, monkeypatch):
    argv = ["main.py", f"--config={RECIPE}", f"--workdir={tmp_path}", "--config.seed=3"]
    monkeypatch.setattr(sys, "argv", argv)
    config = load_config(RECIPE)
    config.seed = 3
    other = companion(config)
    for folder, own in ((tmp_path, config), (tmp_path / "encoder_alone", other)):
        write_config(folder, own)
        found, there = read_command(folder / "command.txt")
        assert (found.to_json(), there) == (own.to_json(), folder)
    assert (tmp_path / "command.txt").read_text("utf-8") == shlex.join(["python", *argv]) + "\n"


@pytest.mark.parametrize("argv", [["script.py", "a b"], ["tool.py", "--config=its_own.yaml"]])
def test_of_another_program_the_call_is_kept(argv, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    write_config(tmp_path, load_config(RECIPE))
    assert (tmp_path / "command.txt").read_text("utf-8") == shlex.join(["python", *argv]) + "\n"


def test_overwrite_leaves_nothing_of_the_old_run_but_evidence_and_a_persons_work(tmp_path):
    config = load_config(RECIPE)
    write_config(tmp_path, config)
    kept = {"test_openings.jsonl", "review.csv", "notes.txt", "config.json", "command.txt"}
    files = {"results.json", "comparison.json", "report.html", "MODEL_CARD.md", "curves.png"}
    files |= {"evaluation_train.json", "evaluation_validation.json", "predictions.jsonl"}
    files |= {"errors_train.jsonl", "errors_test.jsonl", "scores_test.npz", "metrics.jsonl"}
    files |= {"silent_loss.json", "tokenizer.model", "results.json.partial"}
    folders = {"checkpoints", "checkpoints_collapsed_1", "integrated", "all_examples"}
    folders |= {"encoder_alone", "export", "tensorboard"}
    for name in files | kept - {"config.json", "command.txt"}:
        (tmp_path / name).write_text("{}", "utf-8")
    for name in folders:
        (tmp_path / name / "5").mkdir(parents=True)
    config.train.on_config_change = "overwrite"
    check_workdir(tmp_path, config)  # the same but for the choice itself
    assert {path.name for path in tmp_path.iterdir()} == kept | files | folders
    config.optimizer.learning_rate = 1.0
    check_workdir(tmp_path, config)
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["seed"] == config.seed


def test_a_path_that_would_lose_its_checkpoints_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"runs \[1\]: Orbax reads \[ \] in a path as a pattern"):
        check_workdir(tmp_path / "runs [1]", common.get_config())
