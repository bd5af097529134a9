"""Compiles a function once per batch shape and reports it: compilations are counted and bounded.

Here also: the folder that keeps compiled programs between runs.
"""

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from input_pipeline.eta import phase, working

_CACHE = Path("~/.cache/weitiao")


def use_cache() -> None:
    """Has compiled programs kept in the user's cache folder, unless JAX was given another."""
    if jax.config.jax_compilation_cache_dir is None:
        # JAX's key does not tell CPUs apart, and machines that share a home may differ.
        cpu = platform.machine() + platform.processor()
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
            cpu = next(line for line in lines if line.startswith(("flags", "Features")))
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
    ):
        self._jitted = jax.jit(function, donate_argnums=donate)
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
