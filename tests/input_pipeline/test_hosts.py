"""Two processes that do little: how they start, share files, and part."""

import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Process 1 is slow to look at what process 0 is about to change.
SCRIPT = """
import sys, time
from pathlib import Path
from input_pipeline import files, hosts

hosts._MINUTE, folder, path = 1000, Path(sys.argv[1]), Path(sys.argv[1], "a")
hosts.start("", 0, -1, heartbeat=10)
slow = 0.5 * (not hosts.writes())
with hosts.ending_together():
    time.sleep(slow)
    if not path.exists():
        files.write_text(path, "text")
    time.sleep(slow)
    if path.exists():
        files.append_line(path, "more")
        files.remove(path)
    assert hosts.all_fail(ValueError("alike"))
    assert hosts.writes() or not hosts.all_fail(OSError("of process 1 alone"))
    assert not hosts.all_fail(RuntimeError("UNAVAILABLE: another is gone"))
    print("Alike so far", file=sys.stderr)
    hosts.wait("left" if hosts.writes() else "right")
"""


def test_processes_of_slurm_see_the_same_files_and_part_with_a_message(tmp_path):
    """Without an accelerator, and without flags."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {"SLURM_JOB_ID": str(random.randrange(4096)), "SLURM_STEP_NODELIST": "localhost"}
    environment |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env=environment | {"SLURM_PROCID": index, "SLURM_LOCALID": index},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in ("0", "1")
    ]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all("Alike so far" in output for output in outputs), outputs
    assert [process.returncode for process in started] == [1, 1]
    assert "they wait for 'left' in process 0, 'right' in process 1" in outputs[0]
    assert "different ways" not in outputs[1]


def test_a_process_that_finds_no_others_says_so_and_ends():
    script = "from input_pipeline import hosts; hosts._SOON, hosts._FIND = 0, 2; "
    script += "hosts.start('localhost:1', 2, 1, heartbeat=10)"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    asked = "--coordinator=localhost:1, --num_processes=2, --process_id=1"
    assert f"Waiting for the other processes ({asked})." in ended.stderr
    assert f"Error: the processes did not find each other within 2 s ({asked})" in ended.stderr
    assert "stack trace" not in ended.stderr
