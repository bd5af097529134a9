"""Runs of main.py on several processes and devices: what one process finds, and how they end."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
STEPS = 6
# main.py, with a note of what each step reads.
RECORDED = """
import json, os, runpy, sys
import numpy as np
from training import train

put = train.put_batch

def noted(batch, mesh):
    if os.path.exists(os.environ["NOTES"] + ".fails"):
        raise ValueError("a fault of one")
    placed = put(batch, mesh)
    tokens = placed["tokens_RxL"]
    rows = {str(shard.index[-2]): np.asarray(shard.data).tolist()
            for shard in tokens.addressable_shards}
    line = {"ids": batch["ids_B"].tolist(), "rows": rows, "shape": tokens.shape}
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(line) + "\\n")
    return placed

train.put_batch = noted
sys.argv[0] = "main.py"
runpy.run_path(os.environ["PYTHONPATH"] + "/main.py", run_name="__main__")
"""


@dataclasses.dataclass
class Started:
    """Processes of one command.

    Attributes:
        outputs: of each, standard output and errors, when all have ended.
        codes: how each has ended.
    """

    processes: list[subprocess.Popen]
    notes: list[Path]
    outputs: list[str] = dataclasses.field(default_factory=list)

    def end(self, seconds: float = 240) -> "Started":
        """Waits for all."""
        try:
            self.outputs = [p.communicate(timeout=seconds)[0] for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return self

    @property
    def codes(self) -> list[int]:
        return [process.returncode for process in self.processes]

    def steps(self, index: int) -> list[dict]:
        """What the steps of a process have read."""
        return [json.loads(line) for line in self.notes[index].read_text().splitlines()]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts main.py on so many processes with so many devices each."""
    folder, number = tmp_path_factory.mktemp("notes"), iter(range(100))

    def start(
        processes: int,
        devices: int,
        *options,
        each=lambda index: (),
        folders=(),
        together: bool = True,
    ) -> Started:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "NPROC": "2",
        }
        run, started = next(number), Started([], [])
        for index in range(processes):
            several = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
            several += [f"--process_id={index}", "--heartbeat=10"]
            started.notes.append(folder / f"{run}_{index}")
            started.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-c", RECORDED),
                        *(several if processes > 1 else ()),
                        *map(str, [*options, *each(index)]),
                    ],
                    cwd=folders[index] if folders else ROOT,
                    env=environment | {"NOTES": str(started.notes[-1])},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return started.end() if together else started

    return start


@pytest.fixture(scope="module")
def recipe(make_config, write_config, tmp_path_factory):
    """A function that writes a config of a few steps, changed by `change`, as a recipe."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(name: str = "plain", change=lambda config: None) -> Path:
        config = make_config()
        config.train.update(duration=f"{STEPS} steps", log_every="1 step", checkpoint_every="50%")
        config.train.microbatches = 2  # of as many examples as rows
        config.eval.every = "50%"
        config.integrate.points = 2
        change(config)
        return write_config(config, folder / f"{name}.py")

    return write


def losses(workdir: Path) -> list[float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def assert_alike(workdir: Path, other: Path) -> None:
    """The first losses differ by 1e-6 at most, the others by 1e-5."""
    first, second = losses(workdir), losses(other)
    assert len(first) == len(second) == STEPS
    assert first[0] == pytest.approx(second[0], rel=1e-6)
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.fixture(scope="module")
def alone(start, recipe, tmp_path_factory):
    """One process with four devices: its command, its workdir, and what it read."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended = start(1, 4, f"--config={recipe()}", f"--workdir={workdir}")
    assert ended.codes == [0], ended.outputs[0][-3000:]
    return workdir, ended


@pytest.fixture(scope="module")
def two(start, recipe, tmp_path_factory):
    """Two processes with two devices each, which start with nothing prepared."""
    folder = tmp_path_factory.mktemp("two")

    def elsewhere(config):
        config.data.prepared_dir = str(folder / "prepared")

    path = recipe("two", elsewhere)
    ended = start(2, 2, f"--config={path}", f"--workdir={folder / 'run'}")
    assert ended.codes == [0, 0], "\n".join(output[-3000:] for output in ended.outputs)
    return folder, ended


def assert_same_steps(ended: Started, other: Started) -> None:
    """All processes see the same examples, and their devices hold the rows of the one batch."""
    for index in range(len(ended.processes)):
        mine, whole = ended.steps(index), other.steps(0)
        assert [step["ids"] for step in mine] == [step["ids"] for step in whole]
        for step, reference in zip(mine, whole, strict=True):
            assert step["shape"] == reference["shape"] and step["rows"]
            assert all(rows == reference["rows"][key] for key, rows in step["rows"].items())
    keys = [set(step["rows"]) for step in (s.steps(0)[0] for s in (ended, other))]
    assert keys[0] < keys[1]


def test_two_processes_train_as_one(alone, two):
    folder, _ = two
    assert_alike(folder / "run", alone[0])
    one, several = (
        json.loads((workdir / "results.json").read_text())["models"]
        for workdir in (alone[0], folder / "run")
    )
    assert list(one) == list(several)
    for name, model in one.items():
        for metric in ("accuracy", "loss"):
            assert several[name][metric] == pytest.approx(model[metric], abs=1e-5), (name, metric)


def test_two_processes_read_the_rows_of_one_batch(alone, two):
    mine, whole = two[1], alone[1]
    assert [s["ids"] for s in mine.steps(0)] == [s["ids"] for s in mine.steps(1)]
    assert_same_steps(mine, whole)


def test_process_0_alone_writes_and_speaks(two):
    folder, ended = two
    assert len((folder / "run" / "test_openings.jsonl").read_text().splitlines()) == 1
    assert len(list(folder.glob("prepared/weitiao/*/*/manifest.json"))) == 1
    assert "of 2 processes, of which process 0 writes; mesh 4 x 1" in ended.outputs[0]
    said = [line for line in ended.outputs[1].splitlines() if "[Gloo]" not in line]
    assert said == []
    assert not list((folder / "run").glob(".*"))


@pytest.mark.long
def test_four_processes_train_as_one(alone, start, recipe, tmp_path):
    ended = start(4, 1, f"--config={recipe()}", f"--workdir={tmp_path / 'run'}")
    assert ended.codes == [0] * 4, ended.outputs[0][-3000:]
    assert_alike(tmp_path / "run", alone[0])
    assert_same_steps(ended, alone[1])


def wait_for(path: Path, text: str) -> None:
    for _ in range(1200):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} never held {text}")


def a_long_run(config):
    config.train.update(duration="4000 steps", checkpoint_every="2 steps")
    config.eval.every = "4000 steps"


def test_a_signal_to_one_stops_all_after_the_same_step(start, recipe, tmp_path):
    workdir = tmp_path / "run"
    options = f"--config={recipe('long', a_long_run)}", f"--workdir={workdir}"
    started = start(2, 2, *options, together=False)
    wait_for(workdir / "metrics.jsonl", '"step": 3')
    started.processes[1].send_signal(signal.SIGTERM)
    started.end()
    assert started.codes == [75, 75], "\n".join(output[-2000:] for output in started.outputs)
    steps = [len(started.steps(index)) - 1 for index in (0, 1)]  # the first is placed twice
    assert steps[0] == steps[1]
    assert f"Interrupted after step {steps[0]} of 4000, which is saved" in started.outputs[0]
    assert (workdir / "checkpoints" / str(steps[0])).is_dir()

    # Another number of processes goes on, twice alike.
    def to_the_end(config):
        a_long_run(config)
        config.train.duration = f"{steps[0] + 3} steps"
        config.train.on_config_change = "continue"

    shutil.copytree(workdir, tmp_path / "again")
    path = recipe("end", to_the_end)
    resumed = [
        start(1, 4, f"--config={path}", f"--workdir={folder}")
        for folder in (workdir, tmp_path / "again")
    ]
    assert [run.codes for run in resumed] == [[0], [0]], resumed[0].outputs[0][-3000:]
    assert losses(workdir) == losses(tmp_path / "again")
    assert len(losses(workdir)) == steps[0] + 3
    seen = [step["ids"] for run in (started, resumed[0]) for step in run.steps(0)[1:]]
    epoch = [i for ids in seen[: 96 // 8] for part in ids for i in part]
    assert len(epoch) == len(set(epoch))


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_all_end_when_one_is_killed(start, recipe, tmp_path, killed):
    workdir = tmp_path / "run"
    options = f"--config={recipe('long', a_long_run)}", f"--workdir={workdir}"
    started = start(2, 2, *options, together=False)
    wait_for(workdir / "metrics.jsonl", '"step": 5')
    started.processes[killed].kill()
    started.end(60)
    assert started.codes[killed] == -signal.SIGKILL and 0 not in started.codes
    if killed:
        said = started.outputs[0]  # by us, or by JAX if it is faster
        assert "another process is gone" in said or "another task died" in said
    resumed = start(1, 4, *options, "--config.train.on_config_change=continue", together=False)
    wait_for(resumed.notes[0], "ids")
    resumed.processes[0].send_signal(signal.SIGTERM)
    assert "Start: from checkpoint" in resumed.end().outputs[0]


@pytest.mark.long
def test_the_fault_of_one_is_the_only_message(start, recipe, tmp_path):
    """Process 0 computes with the one that ends, which is no fault of its own."""
    options = f"--config={recipe('long', a_long_run)}", f"--workdir={tmp_path / 'run'}"
    started = start(2, 2, *options, together=False)
    wait_for(tmp_path / "run" / "metrics.jsonl", '"step": 3')
    started.notes[1].with_suffix(".fails").touch()
    assert started.end(60).codes == [1, 1]
    assert started.outputs[0].count("Error") == 1
    assert "Process 1: Error: a fault of one" in started.outputs[0]
    assert "Error" not in started.outputs[1]


def fitted_and_shifted(reviews_csv):
    def change(config):
        config.model.update(head="linear", pooling="mean", head_start="probe", label_words=())
        config.data.template = "{text}"
        config.features.update(use="both", svd=4, compare=False)
        config.tokenizer.keep_others = 8
        config.integrate.update(methods=("interpolation", "soup"), shifted_files=str(reviews_csv))
        config.train.keep_latest = 2

    return change


@pytest.mark.long
def test_what_is_fitted_and_prepared_beside_the_run_is_written_once(
    start, recipe, tmp_path, reviews_csv
):
    """The probe, features, a vocabulary, a shifted set, and a soup of checkpoints."""
    path, workdir = recipe("fitted", fitted_and_shifted(reviews_csv)), tmp_path / "run"
    ended = start(2, 2, f"--config={path}", f"--workdir={workdir}")
    assert ended.codes == [0, 0], "\n".join(output[-3000:] for output in ended.outputs)
    integration = json.loads((workdir / "results.json").read_text())["integration"]
    assert {row["kind"] for row in integration["candidates"]} >= {"interpolation", "soup"}
    assert integration["shifted_curve"]
    for name in ("probe.safetensors", "features.safetensors", "tokenizer.model"):
        assert (workdir / name).is_file()
    assert not list(workdir.glob("*.partial"))


def other_seed(index):
    return [f"--config.seed={index}"]


def table(*rows):
    def change(config):
        config.sharding.table = rows

    return change


@pytest.mark.parametrize(
    ("change", "options", "each", "message"),
    [
        (None, [], other_seed, "--config of process 1 differs from process 0's"),
        (None, ["--mode=export"], None, "--mode=export runs in one process, found 2"),
        (None, ["--config.seeds=0"], None, "config.seeds: found 0, expected"),
        pytest.param(
            table((".*/no_such", "fsdp"), (".*", "replicate")),
            [],
            None,
            "config.sharding.table: '.*/no_such' matches no parameter",
            marks=pytest.mark.long,
        ),
    ],
    ids=["seeds", "mode", "value", "row"],
)
def test_what_does_not_fit_is_one_message_of_process_0(
    start, recipe, tmp_path, change, options, each, message, request
):
    path = recipe(request.node.callspec.id, change or (lambda config: None))
    each = each or (lambda index: ())
    ended = start(2, 1, f"--config={path}", f"--workdir={tmp_path}", *options, each=each)
    assert ended.codes == [1, 1]
    assert f"Error: {message}" in ended.outputs[0] and "Traceback" not in ended.outputs[0]
    assert "Error" not in ended.outputs[1]


@pytest.mark.long
def test_hosts_that_do_not_share_their_disks_are_named(start, recipe, tmp_path, reviews_csv):
    """Each process works in a folder of its own, with another file under the same name."""

    def relative(config):
        config.data.files, config.data.prepared_dir = "reviews.csv", "prepared"

    texts, folders = reviews_csv.read_text(), [tmp_path / str(index) for index in range(2)]
    for folder, text in zip(folders, (texts, texts.replace("房间", "屋子")), strict=True):
        folder.mkdir()
        (folder / "reviews.csv").write_text(text)
    path = recipe("disks", relative)
    for workdir, message in (
        (
            tmp_path / "run",
            "the fingerprint of 'train' of process 1 differs from process 0's",
        ),
        ("/proc/self/cwd/run", "process 1 does not see the folder that process 0 writes to"),
    ):
        ended = start(2, 1, f"--config={path}", f"--workdir={workdir}", folders=folders)
        assert ended.codes == [1, 1]
        assert message in ended.outputs[0] and "Traceback" not in ended.outputs[0]
        assert "Error" not in ended.outputs[1]


@pytest.mark.long
def test_a_probe_that_all_fit_is_written_once(start, recipe, tmp_path):
    def probe(config):
        config.model.update(head="linear", label_words=(), head_start="probe", pooling="mean")

    path = recipe("probe", probe)
    ended = start(2, 1, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert ended.codes == [0, 0], ended.outputs[0][-3000:]
    assert (tmp_path / "run/probe.safetensors").is_file()
