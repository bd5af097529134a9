"""Runs of main.py in processes of their own: killed, stopped, resumed, moved to other devices."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from models.backbone import flatten
from training.checkpoints import Checkpoints

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
TIMEOUT = 240


def start(config: Path, workdir: Path, *flags: str, devices: int = 1) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, output[-3000:]
    return output


def wait_for_lines(workdir: Path, count: int, process: subprocess.Popen) -> None:
    path, deadline = workdir / "metrics.jsonl", time.time() + TIMEOUT
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.time() < deadline
        time.sleep(0.005)


def logged(workdir: Path) -> dict[tuple[int, str], float]:
    """Everything in metrics.jsonl but speeds, which depend on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name not in ("tokens_per_second", "mfu", "padding")
    }


def final_params(workdir: Path) -> dict[str, np.ndarray]:
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    step = checkpoints.latest()
    saved = checkpoints._manager.restore(step)
    parts = {"params": saved.params, "average": saved["average"]}
    return {path: np.asarray(value) for path, value in flatten(parts).items()}


@pytest.fixture(scope="module")
def config(make_config, write_config, tmp_path_factory):
    """A config file of 100 steps with a checkpoint every 7: long enough to be hit in the middle."""
    folder = tmp_path_factory.mktemp("resume")
    config = make_config()
    config.train.update(
        duration="100 steps",
        checkpoint_every="7 steps",
        integrate=False,
        microbatches=2,
        ema=0.9,
    )
    config.model.update(dropout=0.1, attention_dropout=0.1, dropout_samples=2)
    config.regularize.update(neftune=5.0, mixout=0.1, noisy_tune=0.1, child_tuning=0.1)
    config.augmentation.update(deletion_rate=0.1, punctuation_rate=0.1, sampling_rate=0.2)
    config.features.update(use="both", compare=False, extractors=("character_tfidf",), svd=8)
    config.tokenizer.keep_others = 0
    config.eval.every = "50 steps"
    config.data.max_test_examples = 16
    return write_config(config, folder / "config.py")


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(config, workdir))
    return workdir


def test_killed_and_resumed_equals_uninterrupted(config, uninterrupted, tmp_path):
    process = start(config, tmp_path)
    wait_for_lines(tmp_path, random.randint(5, 80), process)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    killed_at = max(step for step, _ in logged(tmp_path))
    assert killed_at < 100, "the kill came too late to prove anything"

    output = finish(start(config, tmp_path))
    # The save of step 7 is sure to be on disk when that of step 14 begins, after its line.
    assert "from checkpoint" in output or killed_at <= 14
    expected = logged(uninterrupted)
    assert {step for step, name in expected if name == "loss"} == set(range(1, 101))
    assert logged(tmp_path) == expected
    params = final_params(tmp_path)
    for path, value in final_params(uninterrupted).items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)


def test_sigterm_saves_and_the_run_goes_on_with_fewer_devices(config, uninterrupted, tmp_path):
    process = start(config, tmp_path, devices=4)
    wait_for_lines(tmp_path, 10, process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 75)
    assert "Interrupted after step" in output
    assert "Traceback" not in output
    stopped_at = max(step for step, _ in logged(tmp_path))
    output = finish(start(config, tmp_path, devices=2))
    assert f"Start: from checkpoint {stopped_at} of this workdir" in output
    assert "Devices: 2 x" in output
    expected, found = logged(uninterrupted), logged(tmp_path)
    assert found.keys() == expected.keys()
    # Sums in another order: equal up to rounding, which training then amplifies.
    for step in range(1, min(stopped_at + 10, 100)):
        assert found[step, "loss"] == pytest.approx(expected[step, "loss"], rel=1e-2, abs=1e-3)
