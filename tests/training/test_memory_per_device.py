"""What --mode=inspect says of each device is what arrays take, without any weights at hand."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.sharding import use_virtual_devices

ROOT = Path(__file__).parents[2]
SPLIT = (
    (".*/(query|key|value|gate|up)/(kernel|lora_b)", (None, "model")),
    (".*/(output|down)/(kernel|lora_a)", ("model", None)),
    ("backbone/embedder/embedding", ("model", None)),
    (".*", "replicate"),
)
FSDP = ((".*", "fsdp"),)
TABLES = {
    "replicate": {"mesh": (4, 1), "table": ((".*", "replicate"),)},
    "fsdp": {"mesh": (4, 1), "table": FSDP, "fsdp_mib": 0.0},
    "tensor": {"mesh": (2, 2), "table": SPLIT},
}
ADAPTS = {
    "full": {},
    "lora": {"kind": "lora", "rank": 4, "frozen_dtype": "int8"},
}
SCRIPT = """
import json, sys
from pathlib import Path
import jax
from configs.overrides import load_config
from training import cost
from training.data import load_data
from training.experiment import build
from training.sharding import use_virtual_devices
from training.train import Run

use_virtual_devices(4, "inspect")
folder, sizes = Path(sys.argv[1]), {}
for recipe in map(Path, sys.argv[2:]):
    config = load_config(str(recipe))
    data = load_data(config)
    train = data.split("train")

    def run(read):
        experiment = build(config, folder, data.labels, lambda line: None, train, read=read)
        run = Run(experiment, folder, data, train)
        run._make_step()
        return experiment, run

    described, look = run(False)
    expected = {
        "params": cost.bytes_per_device(look._like.params),
        "frozen": cost.bytes_per_device(described.frozen),
        "optimizer": cost.bytes_per_device(look._like.optimizer),
    }
    experiment, real = run(True)
    params = experiment.put(experiment.initial)
    places = jax.tree.map(lambda leaf: leaf.sharding, real._like.optimizer)
    moments = jax.jit(real._optimizer.init, out_shardings=places)(params)
    trees = {"params": params, "frozen": experiment.frozen, "optimizer": moments}
    occupied = {}
    for name, tree in trees.items():
        held = dict.fromkeys(jax.devices(), 0)
        for leaf in jax.tree.leaves(tree):
            for shard in leaf.addressable_shards:
                held[shard.device] += shard.data.nbytes
        occupied[name] = sorted(held.values())
    total = sum(sum(cost.memory(tree).values()) for tree in trees.values())
    state = real._like._replace(params=params, optimizer=moments)
    sizes[recipe.stem] = {
        "expected": expected, "occupied": occupied, "total": total,
        "line": cost.describe_memory(state, experiment.frozen),
    }
(folder / "sizes.json").write_text(json.dumps(sizes))
"""


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def sizes(make_config, write_config, tmp_path_factory):
    """Bytes on 4 devices, described and occupied, by table and adapter."""
    folder = tmp_path_factory.mktemp("memory")
    recipes = []
    for (table, sharding), (kind, adapt) in itertools.product(TABLES.items(), ADAPTS.items()):
        config = make_config()
        config.sharding.update(sharding)
        config.adapt.update(adapt)
        recipes.append(write_config(config, folder / f"{table}_{kind}.py"))
    finished = run("-c", SCRIPT, folder, *recipes)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((folder / "sizes.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("kind", ADAPTS)
@pytest.mark.parametrize("table", TABLES)
def test_described_bytes_are_those_that_arrays_occupy(sizes, table, kind):
    case = sizes[f"{table}_{kind}"]
    for name, size in case["expected"].items():
        assert case["occupied"][name] == [size] * 4, name
    held, splits = sum(case["expected"].values()), "each device holds" in case["line"]
    if table == "replicate":
        assert held == case["total"] and not splits
    else:
        assert held < 0.8 * case["total"] and splits
    if kind == "lora":
        assert case["expected"]["frozen"] > case["expected"]["params"]


@pytest.mark.long
def test_a_config_alone_says_what_fits_on_virtual_devices(
    make_config, write_config, tiny_checkpoint, tmp_path
):
    shutil.copytree(
        tiny_checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    config = make_config()
    config.model.checkpoint = str(tmp_path / "bare")
    config.sharding.update(table=FSDP, fsdp_mib=0.0)
    recipe = write_config(config, tmp_path / "recipe.py")
    flags = [f"--config={recipe}", f"--workdir={tmp_path / 'run'}", "--mode=inspect"]
    finished = run("main.py", *flags, "--config.sharding.devices=8")
    assert finished.returncode == 0, finished.stderr[-3000:]
    shown = finished.stdout
    assert "model.safetensors is missing" in shown and "mesh 8 x 1 (data x model)" in shown
    numbers = re.findall(r"^  (\w[\w ]*?) +([\d.,]+) MiB(?: of ([\d.,]+))?", shown, re.MULTILINE)
    held = {name: (float(part), float(whole or 0)) for name, part, whole in numbers}
    assert held["optimiser moments"][1] == pytest.approx(2 * held["gradients"][1], abs=0.1)
    assert held["gradients"][0] < held["gradients"][1] / 4
    parts = ("trained parameters", "frozen parameters", "optimiser moments", "temporaries")
    assert held["together"][0] == pytest.approx(sum(held[name][0] for name in parts), abs=0.3)
    assert "each device computes 1 of 8 rows at a time, 1 examples a step" in shown


def test_virtual_devices_are_for_looking():
    with pytest.raises(ValueError, match=r"config\.sharding\.devices=256 .*--mode=train"):
        use_virtual_devices(256, "train")
