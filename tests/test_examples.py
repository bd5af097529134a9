"""The scripts of examples/ for many hosts, run with stand-ins for gcloud, srun and scontrol."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Writes its arguments down; a call that trains exits with the next of the codes in the file.
PROGRAM = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS/calls"
case "$*" in
  *describe*) [ -e "$CALLS/slice" ] ;;
  *create*) touch "$CALLS/slice" ;;
  *main.py*) code=$(head -n 1 "$CALLS/codes"); sed -i 1d "$CALLS/codes"; exit "$code" ;;
esac
"""
ARGUMENTS = ["--config=configs/reviews.py", "--workdir=/disk/a run", "--config.seed=3"]


@pytest.fixture
def start(tmp_path):
    """A function that runs a script while training ends with these codes; returns it and calls."""
    for name in ("gcloud", "srun", "scontrol"):
        (tmp_path / name).write_text(PROGRAM)
        (tmp_path / name).chmod(0o755)
    names = {"NAME": "slice", "ZONE": "zone-a", "SLURM_JOB_ID": "17", "CALLS": str(tmp_path)}
    path = f"{tmp_path}:{os.environ['PATH']}"

    def start(script, *codes, **variables):
        (tmp_path / "calls").write_text("")
        (tmp_path / "codes").write_text("\n".join(map(str, codes)))
        finished = subprocess.run(
            ["bash", f"examples/{script}", *ARGUMENTS],
            cwd=ROOT,
            env=os.environ | names | {"PATH": path} | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return finished, (tmp_path / "calls").read_text().splitlines()

    return start


def test_a_slice_is_made_once_and_training_starts_again_while_it_is_interrupted(start):
    finished, calls = start("tpu_vm.sh", 75, 75, 0)
    assert finished.returncode == 0, finished.stderr
    verbs = [call.split()[4] for call in calls if not call.startswith("  ")]
    assert verbs == ["describe", "create", "scp", "ssh", "ssh", "ssh", "ssh"]
    trained = [call for call in calls if "main.py" in call]
    assert len(trained) == 3 and len(set(trained)) == 1
    assert "--worker=all" in trained[0] and r"--workdir=/disk/a\ run" in trained[0]
    finished, calls = start("tpu_vm.sh", 1)
    assert finished.returncode == 1
    assert not any(" create " in call for call in calls)
    assert sum("main.py" in call for call in calls) == 1
    finished, calls = start("tpu_vm.sh", *[75] * 5, TRIES="2")
    assert finished.returncode == 75 and sum("main.py" in call for call in calls) == 2


def test_the_tree_that_hosts_get_is_the_one_that_git_knows(start, tmp_path):
    keep = PROGRAM.replace("case", '[[ $* != *" scp "* ]] || cp "$5" "$CALLS/tree"\ncase', 1)
    start("tpu_vm.sh", 0)
    (tmp_path / "gcloud").write_text(keep)
    start("tpu_vm.sh", 0)
    shutil.unpack_archive(tmp_path / "tree", tmp_path / "there", "gztar")
    assert (tmp_path / "there/main.py").read_text() == (ROOT / "main.py").read_text()
    assert not (tmp_path / "there/.git").exists()


def test_a_job_that_is_interrupted_goes_back_to_the_queue(start):
    for code, requeued in ((75, ["scontrol requeue 17"]), (0, []), (3, [])):
        finished, calls = start("slurm.sh", code)
        assert finished.returncode == code, finished.stderr
        assert [call for call in calls if call.startswith("scontrol")] == requeued
        (trained,) = [call for call in calls if call.startswith("srun")]
        assert trained.endswith(f"python main.py {' '.join(ARGUMENTS)}")


def test_a_slice_needs_a_name(start):
    finished, calls = start("tpu_vm.sh", 0, NAME="")
    assert finished.returncode == 1 and "name of the slice" in finished.stderr and not calls
