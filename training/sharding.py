"""The device mesh and where arrays live: rows of a batch are split, the rest is replicated."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def make_mesh() -> jax.sharding.Mesh:
    """Returns a mesh with the one axis 'data' over all devices."""
    # Auto: under the default Explicit axes the embedding look-up raises ShardingTypeError.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of parameters and optimiser state."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Moves a host batch to the devices: '..._RxL' split by rows, the rest replicated."""

    def put(name: str, array: np.ndarray) -> jax.Array:
        spec = PartitionSpec()
        if name.endswith("_RxL"):
            spec = PartitionSpec(*[None] * (array.ndim - 2), "data", None)
        sharding = NamedSharding(mesh, spec)
        return jax.device_put(array, sharding)

    return {name: put(name, array) for name, array in batch.items() if name != "ids_B"}
