"""The device mesh, and where arrays live on it: rows of a batch are split, parameters by a table.

The mesh has the axes 'data' and 'model'. XLA inserts the communication (GSPMD, 2105.04663); nothing
in the models knows about it.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import tree_map_with_path
from ml_collections import ConfigDict

_MIB = 2**20
Row = str | tuple[str | None, ...]


def use_virtual_devices(count: int, mode: str) -> None:
    """Has the process use so many virtual CPU devices; 0 leaves the real ones.

    Call it before any device is touched.

    Raises:
      ValueError: the mode computes.
    """
    if count and mode != "inspect":
        raise ValueError(
            f"config.sharding.devices={count} is a mesh to look at, for --mode=inspect; --mode="
            f"{mode} takes the devices at hand: leave it 0"
        )
    if count:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)


def make_mesh(shape: tuple[int, int]) -> jax.sharding.Mesh:
    """Returns a mesh over all devices of all processes; -1 in `shape` is what is left.

    Raises:
      ValueError: it does not fill the devices.
    """
    devices, (data, model) = jax.device_count(), shape
    known = math.prod(size for size in shape if size > 0)
    sizes = [devices // known if size < 0 else size for size in (data, model)]
    if math.prod(sizes) != devices:
        fits = [(devices // n, n) for n in range(1, devices + 1) if devices % n == 0]
        raise ValueError(
            f"config.sharding.mesh={tuple(shape)} does not fill the {devices} devices: choose one "
            f"of {', '.join(map(str, fits))}, or (-1, 1)"
        )
    # Auto: under the default Explicit axes the embedding look-up raises ShardingTypeError.
    return jax.make_mesh(sizes, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


class Placement:
    """Where parameters and what belongs to them live.

    Rows of config.sharding.table are (regex, where), the first full match wins. 'replicate' puts a
    parameter on every device. 'fsdp' splits the largest axis that the 'data' axis of the mesh
    divides, of tensors of at least config.sharding.fsdp_mib (ZeRO-3, 1910.02054). A tuple names a
    mesh axis or None for each axis of the parameter (tensor parallelism, 1909.08053).

    Attributes:
      mesh: of all devices.
      whole: the sharding of what every device has in full.
    """

    def __init__(self, options: ConfigDict):
        self.mesh = make_mesh(tuple(options.mesh))
        self.whole = NamedSharding(self.mesh, PartitionSpec())
        self._least = options.fsdp_mib * _MIB
        self._rows = [(re.compile(pattern), where) for pattern, where in options.table]
        self._uses: Counter[str] = Counter()
        self._indivisible: dict[str, int] = {}  # path -> bytes

    def of(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of a parameter.

        Raises:
          ValueError: no row matches its path, or a row's axes do not fit its shape.
        """
        for pattern, where in self._rows:
            if pattern.fullmatch(path):
                self._uses[pattern.pattern] += 1
                return NamedSharding(self.mesh, self._spec(path, shape, where))
        raise ValueError(
            f"config.sharding.table: no row matches {path}; add a last row ('.*', 'replicate')"
        )

    def like(self, params: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """Describes parameters where they are to live."""

        def describe(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
            placed = self.of(path, leaf.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

        return {
            path: jax.tree.map(functools.partial(describe, path), value)
            for path, value in params.items()
        }

    def like_state(self, state: Any, params: Mapping[str, Any]) -> Any:
        """Describes an optimiser's state: what has a parameter's path and shape follows it."""

        def describe(keys: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
            path = next((k.key for k in keys if getattr(k, "key", None) in params), None)
            follows = path is not None and leaf.shape == params[path].shape
            placed = self.of(path, leaf.shape) if follows else self.whole
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

        return tree_map_with_path(describe, state)

    def put(self, path: str, value: Any) -> Any:
        """Copies a parameter on the host, in one or several arrays, to where it lives.

        What is on the devices already stays. A copy, since donation of a buffer that aliases host
        memory would overwrite that.
        """

        def place(array: np.ndarray | jax.Array) -> jax.Array:
            sharding = self.of(path, array.shape) if array.shape else self.whole
            if isinstance(array, jax.Array) and array.shape:
                return jax.device_put(array, sharding)
            array = np.asarray(array)
            return jax.make_array_from_callback(
                array.shape, sharding, lambda index: np.array(array[index], order="C")
            )

        return jax.tree.map(place, value)

    def check_rows(self, params: Mapping[str, Any]) -> None:
        """Raises ValueError for rows that none of all parameters takes, or that do not fit one."""
        for path, value in params.items():
            jax.tree.map(lambda leaf, path=path: self.of(path, leaf.shape), value)
        unused = [p.pattern for p, _ in self._rows[:-1] if not self._uses[p.pattern]]
        if unused:
            raise ValueError(
                f"config.sharding.table: {', '.join(map(repr, unused))} matches no parameter that "
                "a row before has not taken: remove or correct it"
            )

    def prose(self) -> str:
        """Describes the mesh, and who writes."""
        devices, processes = self.mesh.devices.ravel(), jax.process_count()
        data, model = (self.mesh.shape[axis] for axis in ("data", "model"))
        many = f" of {processes} processes, of which process 0 writes" if processes > 1 else ""
        text = (
            f"Devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}){many}; "
            f"mesh {data} x {model} (data x model): each step's rows are split over data."
        )
        if self._indivisible:
            total = sum(self._indivisible.values()) / _MIB
            text += (
                f"\n{len(self._indivisible)} parameters of {total:,.0f} MiB are on every device: "
                f"no axis of theirs is a multiple of {data} ({', '.join([*self._indivisible][:3])})"
            )
        return text

    def _spec(self, path: str, shape: tuple[int, ...], where: Row) -> PartitionSpec:
        if where == "replicate":
            return PartitionSpec()
        if where == "fsdp":
            parts, size = self.mesh.shape["data"], 4 * math.prod(shape)
            if size < self._least or parts == 1:
                return PartitionSpec()
            axes = [axis for axis in range(len(shape)) if shape[axis] % parts == 0]
            if not axes:
                self._indivisible[path] = size
                return PartitionSpec()
            chosen = max(axes, key=lambda axis: shape[axis])
            return PartitionSpec(*[None] * chosen, "data")
        if len(where) != len(shape):
            raise ValueError(
                f"config.sharding.table: {where} names {len(where)} axes, but {path} has the shape "
                f"{shape}"
            )
        parts = [1 if axis is None else self.mesh.shape[axis] for axis in where]
        # Of one column or row, as the scales of 8-bit weights have, there is nothing to split.
        kept = [axis if size > 1 else None for size, axis in zip(shape, where, strict=True)]
        for size, number in zip(shape, parts, strict=True):
            if size > 1 and size % number:
                raise ValueError(
                    f"config.sharding.table: {where} splits {path} of shape {shape} in {number} "
                    f"along {size}, which {number} does not divide"
                )
        return PartitionSpec(*kept)


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Moves a host batch to the devices: '..._RxL' split by rows, the rest on every device.

    Of several processes each moves the rows of its devices. Where it has tokenised the examples in
    these alone (shards_B), what belongs to examples is put together on the devices.
    """
    shards = batch.get("shards_B")

    def put(name: str, array: np.ndarray) -> jax.Array:
        spec = PartitionSpec()
        if name.endswith("_RxL"):
            spec = PartitionSpec(*[None] * (array.ndim - 2), "data", None)
        sharding = NamedSharding(mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def put_part(array: np.ndarray) -> jax.Array:
        """Puts the examples in each part of the rows, zeros elsewhere, on that part's devices."""
        part_of = shards.reshape(*shards.shape, *[1] * (array.ndim - shards.ndim))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            return np.where(part_of == index[0].start, array, 0).astype(array.dtype)[None]

        shape = (mesh.shape["data"], *array.shape)
        return jax.make_array_from_callback(shape, NamedSharding(mesh, PartitionSpec("data")), part)

    whole = {n: a for n, a in batch.items() if n not in ("ids_B", "shards_B", "lengths_B")}
    if shards is None:
        return {name: put(name, array) for name, array in whole.items()}
    parts = {
        name: array
        for name, array in whole.items()
        if not name.endswith("_RxL") and array.shape[: shards.ndim] == shards.shape
    }
    rest = {name: put(name, array) for name, array in whole.items() if name not in parts}
    return rest | _join(mesh)({name: put_part(array) for name, array in parts.items()})


@functools.cache
def _join(mesh: jax.sharding.Mesh) -> Callable[[Mapping], dict[str, jax.Array]]:
    """Returns the sum over parts, on every device; each example is in one part."""
    return jax.jit(
        lambda parts: {name: part.sum(0, dtype=part.dtype) for name, part in parts.items()},
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def own_shards(mesh: jax.sharding.Mesh) -> list[int] | None:
    """Returns the parts of the rows that this process feeds; None where it is all of them."""
    own = [i for i, row in enumerate(mesh.devices) if any(d in mesh.local_devices for d in row)]
    return None if len(own) == mesh.shape["data"] else own
