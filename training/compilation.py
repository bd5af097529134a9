"""Compiles a function once per batch shape and reports it: compilations are counted and bounded.

Here also: what a process sets up for its programs: the folder that keeps them between runs, the
memory they get, and the dtype they compute in.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.eta import phase, working

_CACHE = Path("~/.cache/weitiao")
_ACCELERATORS = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")  # of GPUs and TPUs
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt, from glibc's malloc.h


def use_cache() -> None:
    """Has compiled programs kept in the user's cache folder, unless JAX was given another."""
    if jax.config.jax_compilation_cache_dir is None:
        # JAX's key does not tell CPUs apart, and machines that share a home may differ.
        cpu = cpu_features() or platform.machine() + platform.processor()
        name = f"compiled-{hashlib.sha256(cpu.encode()).hexdigest()[:8]}"
        try:
            folder = _CACHE.expanduser() / name
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder} is not writable")
        except (OSError, RuntimeError) as error:  # RuntimeError where there is no home
            print(
                f"Note: compiled programs are not kept between runs: {error}. Set "
                "$JAX_COMPILATION_CACHE_DIR to a folder."
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))


def cpu_features() -> str:
    """Returns the line with the names of the CPU's instruction sets; '' where there is none."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return ""


def keep_memory() -> None:
    """Has the process keep the memory that it frees, for its next step; needs glibc.

    XLA frees a program's temporaries after each call. On CPUs a fifth of a training step's time
    went into getting them from Linux again, page by page. Call it before there are threads: those
    with a heap of their own would go on as before. Hosts of accelerators keep their many heaps.
    """
    if any(any(Path("/dev").glob(device)) for device in _ACCELERATORS):
        return
    with contextlib.suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(option, value)


def resolve_dtype(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> None:
    """Replaces 'auto' in config.model.dtype by what `workdir` has, or by what is fast here."""
    if config.model.dtype != "auto":
        return
    path, backend = workdir / "config.json", jax.default_backend()
    stored = json.loads(path.read_text("utf-8"))["model"]["dtype"] if path.exists() else "auto"
    if stored != "auto":
        config.model.dtype, why = stored, f"as the run in {workdir} does"
    elif backend != "cpu":
        config.model.dtype, why = "bfloat16", f"since it runs on {backend}"
    elif sets := {"avx512_bf16", "amx_bf16"} & set(cpu_features().split()):
        config.model.dtype, why = "bfloat16", f"since this CPU has {' and '.join(sorted(sets))}"
    else:
        config.model.dtype, why = "float32", "since this CPU has no bfloat16 instructions"
    say(f"config.model.dtype='auto': this run computes in {config.model.dtype}, {why}.")


class PerShape:
    """A jitted function of (..., batch), compiled ahead of time for each shape of the batch.

    Attributes:
      count: compilations so far.
    """

    def __init__(
        self,
        function: Callable,
        name: str,
        say: Callable[[str], None],
        *,
        donate: tuple[int, ...] = (),
        out_shardings: Any = None,
    ):
        self._jitted = jax.jit(function, donate_argnums=donate, out_shardings=out_shardings)
        self._name, self._say = name, say
        self._compiled: dict[tuple, Any] = {}

    @property
    def count(self) -> int:
        """Compilations so far."""
        return len(self._compiled)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Returns the program of the batch's shape. jax keeps it: the first call compiles it."""
        return self._jitted.lower(*args)

    def __call__(self, *args: Any) -> Any:
        """Runs the program of the batch's shape; the batch is the last argument."""
        batch: Mapping[str, jax.Array] = args[-1]
        shapes = tuple((name, array.shape) for name, array in sorted(batch.items()))
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(args, batch["tokens_RxL"].shape)
        return self._compiled[shapes](*args)

    def _compile(self, args: tuple, shape: tuple[int, ...]) -> Any:
        start = time.perf_counter()
        with phase("compilation"), working(f"Compiling {self._name}"):
            compiled = self.lower(*args).compile()
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
        temporary = (
            f", temporaries {memory.temp_size_in_bytes / 2**20:,.0f} MiB (activations among them)"
            if memory
            else ""
        )
        flops = float(cost["flops"]) if "flops" in cost else 0.0
        flops *= shape[0] if len(shape) == 3 else 1  # XLA counts the loop over microbatches once
        self._say(
            f"Compiled {self._name} for {' x '.join(map(str, shape))} positions in "
            f"{time.perf_counter() - start:.1f} s (compilation {self.count + 1}): "
            f"{flops / 1e9:,.0f} GFLOP{temporary}"
        )
        return compiled
