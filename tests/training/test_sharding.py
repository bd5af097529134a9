"""Parameters split over four devices train as on one, whatever the table and the family."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import common
from models.backbone import parameter_shapes, parts_of
from models.bert import BertConfig
from models.pretrained import write_pretrained
from models.t5 import T5Config
from training.sharding import Placement

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
STEPS = 5
# Two columns of devices: heads and feed-forward widths are split over them, and the vocabulary.
TENSOR_PARALLEL = (
    (".*/(query|gate|up)/kernel", (None, "model")),
    (".*/(output|down)/kernel", ("model", None)),
    (".*embedding", ("model", None)),
    (".*", "replicate"),
)
SPLIT = {
    "replicate": {},
    "fsdp": {"table": ((".*", "fsdp"),), "fsdp_mib": 0.002},
    "tensor": {"table": TENSOR_PARALLEL, "mesh": (-1, 2)},
}
RUN = """
import json, sys
from pathlib import Path
import jax
from ml_collections import ConfigDict
from training import train
from training.checkpoints import Checkpoints
from training.data import load_data
from training.experiment import build

def split(table):
    return tuple((p, tuple(where) if isinstance(where, list) else where) for p, where in table)

for name, options in json.loads(sys.stdin.read()).items():
    config, workdir = ConfigDict(options), Path(sys.argv[1], name)
    config.sharding.table = split(config.sharding.table)
    data = load_data(config)
    experiment = build(config, workdir, data.labels, lambda line: None, data.split("train"))
    run = train.Run(experiment, workdir, data, data.split("train"))
    whole = []
    run.train()
    saved = Checkpoints(workdir / "checkpoints", read_only=True)
    state = saved.restore(saved.latest(), run._like)
    for leaf in jax.tree.leaves((state, experiment.frozen)):
        if leaf.sharding.is_fully_replicated:
            whole.append(4 * leaf.size)
    (workdir / "whole.json").write_text(json.dumps(whole))
"""


@pytest.fixture(scope="module")
def checkpoints(reviews, tiny_checkpoint, tmp_path_factory):
    """A decoder, an encoder and a T5, of random weights."""
    root = tmp_path_factory.mktemp("families")
    characters = sorted({character for text, _ in reviews for character in text})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    pieces += [f"[unused{number}]" for number in range(400 - len(pieces))]
    sizes = {"num_heads": 2, "hidden": 64}
    encoder = {"model_type": "bert", "num_layers": 2, "num_distinct_layers": 2, "max_length": 64}
    configs = {
        "encoder": BertConfig(vocab_size=400, width=32, embedding_size=32, **encoder, **sizes),
        "t5": T5Config(
            vocab_size=1700, width=32, head_size=16, num_layers=1, num_decoder_layers=1, **sizes
        ),
    }
    for name, config in configs.items():
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf, rng=rng: rng.normal(len(leaf.shape) == 1, 0.2, leaf.shape).astype("f4"),
            parameter_shapes(config, parts_of(config)),
        )
        (root / name).mkdir()
        write_pretrained(root / name, config, params)
    shutil.copy(FIXTURES / "tokenizers" / "t5" / "spiece.model", root / "t5")
    (root / "encoder" / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return {name: root / name for name in configs} | {"decoder": tiny_checkpoint}


def run_all(configs, folder: Path) -> None:
    """Trains all in one process with four devices."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "NPROC": "2",
    }
    options = {name: json.loads(config.to_json()) for name, config in configs.items()}
    ended = subprocess.run(
        [sys.executable, "-c", RUN, str(folder)],
        input=json.dumps(options),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def losses(workdir: Path) -> list[float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("family", "adapt", "optimizer"),
    [
        ("decoder", "full", "adamw"),
        pytest.param("decoder", "lora", "adamw", marks=pytest.mark.long),
        pytest.param("encoder", "lora", "adamw", marks=pytest.mark.long),
        pytest.param("encoder", "full", "muon", marks=pytest.mark.long),
        pytest.param("t5", "full", "adafactor", marks=pytest.mark.long),
        pytest.param("t5", "lora", "schedule_free", marks=pytest.mark.long),
    ],
)
def test_split_parameters_train_as_whole_ones(
    make_config, checkpoints, tmp_path, family, adapt, optimizer
):
    configs = {}
    regularize = {"neftune": 5.0, "fgm": 0.05, "sam": 0.01, "child_tuning": 0.2}
    if adapt == "full":
        regularize |= {"mixout": 0.1, "l2_sp": 0.01, "noisy_tune": 0.1}
    for name, options in SPLIT.items():
        configs[name] = config = make_config()
        config.model.checkpoint = str(checkpoints[family])
        if family != "decoder":
            config.model.update(head="linear", pooling="mean")
        if adapt == "lora":
            config.adapt.update(kind="lora", frozen_dtype="int8")
        config.optimizer.name = optimizer
        config.train.update(duration=f"{STEPS} steps", log_every="1 step", ema=0.9)
        config.eval.every = config.train.checkpoint_every = "100%"
        config.regularize.update(regularize)
        config.sharding.update(options)
    run_all(configs, tmp_path)
    whole = losses(tmp_path / "replicate")
    assert len(whole) == STEPS and len(set(whole)) == STEPS
    for name in ("fsdp", "tensor"):
        np.testing.assert_allclose(losses(tmp_path / name), whole, rtol=1e-5)
    kept = json.loads((tmp_path / "fsdp" / "whole.json").read_text())
    assert max(kept, default=0) < 0.002 * 2**20
    assert max(json.loads((tmp_path / "replicate" / "whole.json").read_text())) > 0.002 * 2**20


def placement(**options):
    config = common.get_config()
    config.sharding.update(options)
    return Placement(config.sharding)


def test_a_mesh_that_does_not_fill_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"mesh=\(3, 1\) does not fill the 1 devices: choose one"):
        placement(mesh=(3, 1))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((("a/b", "fsdp"),), "no row matches c/kernel; add a last row"),
        (((".*", (None, "model", None)),), r"names 3 axes, but c/kernel has the shape \(4, 6\)"),
        ((("x.*", "fsdp"), (".*", "replicate")), "'x.*' matches no parameter"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        placement(table=table).check_rows({"c/kernel": np.zeros((4, 6))})
