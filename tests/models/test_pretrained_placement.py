"""Weights that go straight onto the devices of a mesh, in a process of its own with four."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from models.pretrained import open_checkpoint, place_on
from models.backbone import flatten

mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
for name in ("bert", "gemma3", "t5_v1_1"):
    checkpoint = open_checkpoint(Path(sys.argv[1]) / name)
    expected = flatten(checkpoint.read(checkpoint.parts))

    def sharding_of(path):
        shape = expected[path].shape
        axes = [None, "model", ("data", "model")]
        spec = [axes[i % 3] if size % 4 == 0 else None for i, size in enumerate(shape)]
        return NamedSharding(mesh, P(*spec))

    def dtype_of(path):
        return jnp.float32 if path.endswith(("scale", "bias")) else jnp.bfloat16

    place = place_on(sharding_of, dtype_of=dtype_of)
    found = flatten(checkpoint.read(checkpoint.parts, place=place))
    assert found.keys() == expected.keys()
    num_split = 0
    for path, leaf in found.items():
        assert leaf.dtype == dtype_of(path) and leaf.sharding == sharding_of(path), path
        assert len(leaf.addressable_shards) == 4
        for shard in leaf.addressable_shards:
            part = expected[path][shard.index].astype(leaf.dtype)
            np.testing.assert_array_equal(np.asarray(shard.data), part, err_msg=path)
            num_split += part.size < leaf.size
    assert num_split > 4
print("done")
"""


def test_each_device_holds_its_slice_of_what_is_stored():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    families = ROOT / "tests" / "fixtures" / "families"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(families)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "done", result.stderr
