"""What a training costs, reported before it starts: parameters, memory by kind and per device, and
FLOPs per example.

Here too: the peaks of devices, which give the utilisation of a training. FLOPs are those of the
lowered program, as XLA counts them before it optimises: nothing is compiled.
tests/training/test_cost.py checks them against a closed formula. The memory that a compiled program
takes for its activations is reported by training/compilation.py.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.eta import working
from training.state import TrainState

_MIB = 2**20

# Dense peaks in TFLOP/s from the vendors' data sheets by a regex of JAX's or PyTorch's name: of
# bfloat16, and of float32 as JAX multiplies it by default (TF32 on GPUs, bfloat16 on TPUs). The
# first match wins.
PEAKS = (
    (r"H100 PCIe", 756, 378),
    (r"H[12]00 NVL", 835, 417),
    (r"\bH[12]00\b", 989, 494),
    (r"\bA100\b", 312, 156),
    (r"\bL4\b", 121, 60),
    (r"TPU v4$", 275, 275),
    (r"TPU v5( lite|e)$", 197, 197),
    (r"TPU v5p?$", 459, 459),
    (r"TPU v6( lite|e)$", 918, 918),
)


def count(tree: Any) -> int:
    """Values in the leaves of a tree; of a quantised weight its scales too."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def memory(tree: Any) -> dict[str, int]:
    """Bytes in the leaves of a tree (arrays or their shapes) by the name of their dtype."""
    sizes: Counter[str] = Counter()
    for leaf in jax.tree.leaves(tree):
        sizes[jnp.dtype(leaf.dtype).name] += leaf.size * leaf.dtype.itemsize
    return dict(sizes)


def bytes_per_device(tree: Any) -> int:
    """Bytes that a device holds of the leaves of a tree (arrays, or shapes with shardings)."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def flops_per_example(lowered: jax.stages.Lowered, batch: Mapping[str, Any]) -> float:
    """Returns the operations of a program per example of its batch, a multiply-add being two.

    The padding of the batch's shape counts; fused kernels do not, and what `remat` computes again
    counts again: see Experiment.counted.
    """
    analysis = lowered.cost_analysis() or {}
    # XLA counts the body of a loop once: of several microbatches, whose axis is the first, one.
    return float(analysis.get("flops", 0.0)) / batch["weights_B"].shape[-1]


def peak_flops(device: str, *, bfloat16: bool) -> float | None:
    """Returns the peak of a kind of device in FLOP/s; None if it is not known."""
    if "MIG" in device:  # a part of a GPU
        return None
    peaks = ((tf32, bf16)[bfloat16] for name, bf16, tf32 in PEAKS if re.search(name, device))
    return next((1e12 * teraflops for teraflops in peaks), None)


def full_speed(
    flops: float, batch: Mapping[str, Any], devices: Sequence[Any], *, bfloat16: bool
) -> float | None:
    """Returns the tokens per second of a training at the devices' peak; None if it is not known.

    Speed in real tokens divided by this is model FLOPs utilisation (2204.02311, appendix B), of
    which padding is no part.

    Args:
        flops: see `flops_per_example`.
        batch: of the training; or its shapes.
        devices: all of them.
        bfloat16: whether it computes in that.
    """
    peak = peak_flops(devices[0].device_kind, bfloat16=bfloat16)
    return peak and peak * len(devices) * _positions_per_example(batch) / flops


def describe(
    state: TrainState, frozen: Mapping[str, Any], batch: Mapping[str, Any], *, flops: float
) -> list[str]:
    """Returns lines about parameters, memory and FLOPs per example of a training.

    Args:
        state: as it starts; or its shapes.
        frozen: the parameters that are not trained, flat.
        batch: of the training, its arrays starting with the axis of microbatches; or its shapes.
        flops: of a step, see `flops_per_example`.
    """
    return [
        describe_parameters(state.params, frozen),
        describe_memory(state, frozen),
        f"Computation: {_giga(flops)} GFLOP per example in a training step, at "
        f"{_positions_per_example(batch):.0f} positions per example, padding included.",
    ]


def describe_parameters(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    """Says how many parameters there are, are trained, and are the embedding's."""
    both = {**frozen, **trained}
    embedding = count([leaf for path, leaf in both.items() if path.endswith("/embedding")])
    return (
        f"Parameters: {count(both) / 1e6:,.1f}M, of which {count(trained) / 1e6:,.1f}M "
        f"({count(trained) / max(count(both), 1):.1%}) are trained; "
        f"{embedding / 1e6:,.1f}M are embeddings."
    )


def describe_memory(state: TrainState, frozen: Mapping[str, Any]) -> str:
    """Says how many MiB parameters, gradients and optimiser state take."""
    trained, copies = memory(state.params), {}
    for name, tree in (("average", state.average), ("pretrained weights", state.pretrained)):
        copies |= {name: _mebibytes(memory(tree))} if tree else {}
    more = "".join(f", {name} {size}" for name, size in copies.items())
    return (
        f"Memory: parameters {_mebibytes(trained)} trained and {_mebibytes(memory(frozen))} "
        f"frozen, gradients {_mebibytes(trained)}, optimiser state "
        f"{_mebibytes(memory(state.optimizer))}{more}; activations are the most of the temporaries "
        f"that each compilation reports.{_split(state, frozen)}"
    )


def describe_devices(
    state: TrainState,
    frozen: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    train_step: jax.stages.Lowered,
    batch_size: int,
) -> Iterator[str]:
    """Yields lines about what each device holds and computes; the last need the step compiled.

    Args:
        state, frozen, batch, train_step: See describe; with their shardings, none is read.
        batch_size: examples a step.
    """
    kinds = _kinds(state, frozen)
    rows = {name: (bytes_per_device(tree), sum(memory(tree).values())) for name, tree in kinds}
    tokens = batch["tokens_RxL"]
    parts, row_count, length = tokens.shape
    on_device = tokens.sharding.shard_shape(tokens.shape)[1]
    yield (
        f"A step: {batch_size} examples in {parts} x {row_count} rows of {length} positions at "
        f"most, {parts * row_count * length:,} in all; each device computes {on_device} of "
        f"{row_count} rows at a time, {batch_size * on_device / row_count:.3g} examples a step."
    )
    yield "Memory of each device, and what it is a part of:"
    for name, (held, total) in rows.items():
        yield f"  {name:<20}{held / _MIB:>12,.1f} MiB of {total / _MIB:,.1f}"
    start = time.perf_counter()
    with working("Compiling the train step"):  # of a large model on many devices, minutes
        temporary = train_step.compile().memory_analysis().temp_size_in_bytes
    seconds = time.perf_counter() - start
    yield (
        f"  {'temporaries':<20}{temporary / _MIB:>12,.1f} MiB, gradients and activations among them"
        f", as the compiler for {jax.default_backend()} counts them (compiled in {seconds:.0f} s)"
    )
    together = temporary + sum(held for held, _ in rows.values()) - rows["gradients"][0]
    yield f"  {'together':<20}{together / _MIB:>12,.1f} MiB, gradients counted once"


def _kinds(state: TrainState, frozen: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Lists what fills the memory of devices, beside activations."""
    return [
        ("trained parameters", state.params),
        ("frozen parameters", frozen),
        ("gradients", state.params),
        ("optimiser moments", state.optimizer),
        *([("average", state.average)] if state.average else ()),
        *([("pretrained weights", state.pretrained)] if state.pretrained else ()),
    ]


def _split(state: TrainState, frozen: Mapping[str, Any]) -> str:
    """Says what each device holds, where that is not everything."""
    kinds = _kinds(state, frozen)
    held = {name: bytes_per_device(tree) for name, tree in kinds}
    if sum(held.values()) == sum(sum(memory(tree).values()) for _, tree in kinds):
        return ""
    parts = ", ".join(f"{name} {size / _MIB:,.0f} MiB" for name, size in held.items())
    return f" Of that each device holds: {parts}."


def _positions_per_example(batch: Mapping[str, Any]) -> float:
    return batch["tokens_RxL"].size / batch["weights_B"].size


def _giga(operations: float) -> str:
    return f"{operations / 1e9:,.3g}" if operations < 1e12 else f"{operations / 1e9:,.0f}"


def _mebibytes(sizes: Mapping[str, int]) -> str:
    """Total, and where it isn't float32 alone (with counters of some bytes) of what."""
    total = sum(sizes.values())
    kinds = [name for name, size in sizes.items() if size > 0.001 * total]
    named = f" ({', '.join(sorted(kinds))})" if kinds and kinds != ["float32"] else ""
    return f"{total / _MIB:,.0f} MiB{named}"
