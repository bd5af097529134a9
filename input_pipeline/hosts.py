"""The processes of a run, on one host or many: how they start, who writes, how they end.

All processes run the same program in the same order, as JAX's collectives require. Process 0
writes every file (files.py) and prints; the others wait for each file and then read it. A process
that fails ends all of them, with one message. What they tell each other goes through the
coordination service of jax.distributed, not through devices. One process by itself needs none of
this, and pays nothing for it.
"""

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

SHARED = ("train", "sweep", "evaluate", "test", "predict", "integrate")  # modes of many processes
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "sentencepiece", "tokenizers")
_DAY = 24 * 3600 * 1000  # milliseconds: preparing a large corpus may take hours
_MINUTE = 60_000
_SOON, _FIND = 10.0, 240.0  # seconds until the wait for the others is reported, and given up
_PATIENCE = 5.0  # seconds in which process 0 may report the same error as another process
_LOOK = 1.0  # seconds between two looks for the failure of another process
_END = "weitiao/end"
_LOST = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")  # in JAX's errors
_GONE = (
    "Error: another process is gone, or the network to it ({}). Start the same command again on "
    "all hosts to go on from the last checkpoint."
)

_client: Any = None  # of jax's coordination service; None where there is one process
_index, _count, _alone, _calls = 0, 1, 0, 0
_ended = threading.Event()
_speaking = threading.Lock()  # of who prints the one message; never released


def start(coordinator: str, processes: int, index: int, *, heartbeat: int) -> None:
    """Joins the other processes, if flags or environment say that there are others.

    Call it before any device is touched.

    Args:
        coordinator: 'host:port' of process 0; '' reads $JAX_COORDINATOR_ADDRESS.
        processes: how many; 0 reads $JAX_NUM_PROCESSES.
        index: of this one; -1 reads $JAX_PROCESS_ID. Without any of the three, Slurm, Open MPI and
            TPU hosts are asked.
        heartbeat: seconds of silence after which a process counts as dead.

    Raises:
        ValueError: some of the three are missing, or do not fit each other.
    """
    global _client, _index, _count
    given = {
        "--coordinator": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
        "--num_processes": str(processes or os.environ.get("JAX_NUM_PROCESSES", "")),
        "--process_id": str(index if index >= 0 else os.environ.get("JAX_PROCESS_ID", "")),
    }
    options: dict[str, Any] = {}
    if any(given.values()):
        if missing := [name for name, value in given.items() if not value]:
            raise ValueError(
                f"{' and '.join(missing)} missing: several processes need --coordinator=HOST:PORT, "
                "--num_processes=N and, each its own, --process_id=0..N-1"
            )
        try:
            processes, index = int(given["--num_processes"]), int(given["--process_id"])
        except ValueError:
            raise ValueError(f"--num_processes and --process_id: no numbers in {given}") from None
        if not 0 <= index < processes or ":" not in given["--coordinator"]:
            raise ValueError(
                f"--coordinator={given['--coordinator']} --num_processes={processes} --process_id="
                f"{index}: expected HOST:PORT, and an id from 0 to {processes - 1}"
            )
        options = {"num_processes": processes, "process_id": index}
        options["coordinator_address"] = given["--coordinator"]
    elif not _has_cluster():
        return
    if options.get("num_processes") == 1:
        return
    import jax
    from jax._src.distributed import global_state  # JAX has no public client of its service

    cpu = jax.config.jax_platforms == "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", "")
    if options and cpu:
        options["cluster_detection_method"] = "deactivate"
    asked = ", ".join(f"{name}={value}" for name, value in given.items() if value)
    try:
        with _finding(asked or "the environment of the cluster says where"):
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat, **options)
    except ValueError as error:
        if options or _has_tasks():
            raise
        print(f"Note: one process, since nothing on this TPU host names others ({error}).")
    except RuntimeError as error:
        raise ValueError(f"the processes did not find each other ({asked}): {error}") from None
    if global_state.num_processes > 1:
        _client, _index = global_state.client, global_state.process_id
        _count = global_state.num_processes
        watcher = threading.Thread(target=_watch, daemon=True)
        watcher.start()
        atexit.register(lambda: (_ended.set(), watcher.join()))
        if _index:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, to the very end


@contextlib.contextmanager
def _finding(asked: str) -> Iterator[None]:
    """Reports a long wait for the other processes, and ends it: JAX's end is a core dump."""

    def give_up() -> None:
        print(
            f"Error: the processes did not find each other within {_FIND:.0f} s ({asked}): start "
            "all of them, each --process_id from 0 on once, with the address of process 0's host "
            "and a port that is free there and open to the others",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    said = {"args": [f"Waiting for the other processes ({asked})."], "kwargs": {"file": sys.stderr}}
    timers = threading.Timer(_SOON, print, **said), threading.Timer(_FIND, give_up)
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _has_cluster() -> bool:
    """Whether a job with several processes, or a TPU host, is all around."""
    tpu = any(any(Path("/dev").glob(device)) for device in ("accel[0-9]*", "vfio/[0-9]*"))
    return _has_tasks() or (tpu and importlib.util.find_spec("libtpu") is not None)


def _has_tasks() -> bool:
    """Whether Slurm or Open MPI has started this process beside others."""
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return any(int(os.environ.get(name) or 1) > 1 for name in tasks)


def count() -> int:
    """Returns the number of processes."""
    return _count


def writes() -> bool:
    """Returns whether this process writes files: process 0 does, and each within `first`."""
    return _index == 0 or _alone > 0


def wait(what: str) -> None:
    """Waits until all processes have come here.

    Raises:
        RuntimeError: another has come elsewhere, for which it would wait for ever.
    """
    if len(set(places := gather(what))) > 1:
        raise RuntimeError(
            "the processes have gone different ways, an error of this program: they wait for "
            + ", ".join(f"{place!r} in process {i}" for i, place in enumerate(places))
        )


@contextlib.contextmanager
def first(what: str) -> Iterator[None]:
    """Has process 0 run the block before the others, which then find what it has made.

    Each may write in it, since hosts may have disks of their own; none may wait for another.
    """
    global _alone
    if _index:
        wait(what)
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1
    if not _index:
        wait(what)


def gather(value: str) -> list[str]:
    """Returns the values of all processes, in the order of the processes."""
    global _calls
    if _client is None or _alone:
        return [value]
    _calls += 1
    _client.key_value_set(f"weitiao/{_calls}/{_index}", value)
    keys = [f"weitiao/{_calls}/{index}" for index in range(_count)]
    return [_client.blocking_key_value_get(key, _DAY) for key in keys]


def all_fail(error: Exception) -> bool:
    """Returns whether all processes have this error, so that they can go on together."""
    if _is_lost(error):
        return False
    try:
        if _client is not None:
            _client.wait_at_barrier(f"weitiao/{_calls}/{type(error).__name__}", _MINUTE)
    except RuntimeError:  # JAX's: another waits elsewhere
        return False
    return True


def _is_lost(error: BaseException) -> bool:
    return _client is not None and any(word in str(error) for word in _LOST)


def whole(array: Any) -> np.ndarray:
    """Returns all of an array, whose parts may be on the devices of several processes."""
    if _client is not None and not (
        isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated
    ):
        from jax.experimental import multihost_utils

        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def check_start(mode: str, config: str, workdir: Path) -> None:
    """Checks that the processes do the same thing with the same versions, in a folder all see.

    Raises:
        ValueError: they do not, or the mode is for one process; in all processes.
    """
    if _client is None:
        return
    if mode not in SHARED:
        raise ValueError(
            f"--mode={mode} runs in one process, found {_count}: start it on one host (several "
            f"share {', '.join(SHARED)})"
        )
    versions = {name: version(name) for name in _PACKAGES}
    check_same({"the installed version of " + n: v for n, v in versions.items()}, "install alike")
    facts = {"--mode": mode, "--workdir": str(workdir.absolute()), "--config": config}
    check_same(facts, "start the same command on all hosts")
    mark = workdir / f".seen-{gather(uuid.uuid4().hex)[0]}"
    if _index == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        mark.touch()
    wait("mark")
    seen = gather(str(mark.exists()))
    if _index == 0:
        mark.unlink()
    if blind := [str(index) for index, sees in enumerate(seen) if sees != "True"]:
        raise ValueError(
            f"--workdir={workdir}: process {', '.join(blind)} does not see the folder that process "
            "0 writes to: choose one on a disk that all hosts share"
        )


def check_same(facts: Mapping[str, Any], remedy: str) -> None:
    """Raises ValueError, in all processes, if a fact is not the same in all of them."""
    if _client is None:
        return
    digests = {k: hashlib.sha256(repr(v).encode()).hexdigest()[:16] for k, v in facts.items()}
    others = [json.loads(part) for part in gather(json.dumps(digests))]
    for name, digest in others[0].items():
        if odd := [str(i) for i, other in enumerate(others) if other.get(name) != digest]:
            raise ValueError(
                f"{name} of process {', '.join(odd)} differs from process 0's: {remedy}"
            )


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends all processes if the block ends in one of them by an error.

    The message of process 0 is printed; of another only if process 0 has none of its own.
    """
    try:
        yield
        wait("end")
    except SystemExit as error:
        # A signal reaches all at the same step: each ends by itself.
        if _client is not None and not isinstance(error.code, int):
            _fail(str(error.code))
        raise
    except BaseException as error:
        if _client is not None:
            lost = _is_lost(error)
            time.sleep(2 * _LOOK * lost)  # it may have left a message, which _watch prints
            _fail(_GONE.format(str(error).splitlines()[0]) if lost else traceback.format_exc())
        raise


def _fail(message: str) -> None:
    """Prints the message, or has process 0 print it, and ends all processes."""
    if _index:
        time.sleep(_PATIENCE)
    elif _speaking.acquire(blocking=False):
        print(message, file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):  # another process was faster, or all are gone
        _client.key_value_set(_END, f"{_index} {message}")
    _leave()


def _watch() -> None:
    """Ends this process when another has failed, whatever this one is waiting for."""
    # No blocking call: a thread that the end of Python meets in it would be an error.
    while not _ended.wait(_LOOK):
        with contextlib.suppress(Exception):  # nobody has failed
            index, message = _client.key_value_try_get(_END).split(" ", 1)
            if _index == 0 and index != "0" and _speaking.acquire(blocking=False):
                print(f"Process {index}: {message}", file=sys.stderr, flush=True)
            if str(_index) != index:
                _leave()


def _leave() -> None:
    if _index == 0:
        time.sleep(3 * _LOOK)  # it serves the others, and goes last
    os._exit(1)
