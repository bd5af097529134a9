"""Metrics on two hosts with two devices each are those of one, on a split that fills no batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
COUNT = 21  # examples; a batch holds more, and no number of devices divides it
HOST = """
import json, sys
from pathlib import Path
import jax
import numpy as np

recipe, folder, count, hosts, host, port = sys.argv[1:]
if int(hosts) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(hosts), int(host))
from configs.overrides import load_config
from evaluation.metrics import estimate
from training.data import load_data
from training.experiment import build

assert (jax.process_count(), jax.device_count()) == (int(hosts), 2 * int(hosts))
config = load_config(recipe)
data = load_data(config)
experiment = build(config, Path(folder), data.labels, lambda line: None)
params = experiment.put(experiment.initial)
validation = data.split("validation").first(int(count))
scores, fitted = experiment.score(params, validation)
predictions = experiment.predict(params, validation, {})
found = {m.name: estimate(scores, m.name) for m in experiment.task.metrics}
output = Path(folder) / f"{host}_of_{hosts}"
output.with_suffix(".json").write_text(json.dumps({"scores": found, "fitted": fitted}))
np.savez(output.with_suffix(".npz"), ids=predictions.ids_N, logits=predictions["logits_NxC"])
"""


@pytest.fixture(scope="module")
def answers(make_config, write_config, tmp_path_factory):
    """What one host finds, and each of two, by (host, hosts)."""
    folder = tmp_path_factory.mktemp("hosts")
    recipe = write_config(make_config(), folder / "recipe.py")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }

    def start(host, hosts):
        options = [recipe, folder, COUNT, hosts, host, port]
        return subprocess.Popen(
            [sys.executable, "-c", HOST, *map(str, options)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    found = {}
    for hosts in (1, 2):  # the first prepares the data
        processes = [start(host, hosts) for host in range(hosts)]
        for host, process in enumerate(processes):
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-3000:]
            path = folder / f"{host}_of_{hosts}"
            with np.load(path.with_suffix(".npz")) as arrays:
                facts = json.loads(path.with_suffix(".json").read_text())
                found[host, hosts] = facts | dict(arrays)
    return found


def test_every_host_sees_each_example_once(answers):
    for found in answers.values():
        assert len(np.unique(found["ids"])) == len(found["ids"]) == COUNT
        assert {score["count"] for score in found["scores"].values()} == {COUNT}


def test_two_hosts_find_the_metrics_of_one(answers):
    first, second = answers[0, 2], answers[1, 2]
    assert first["scores"] == second["scores"] and first["fitted"] == second["fitted"]
    np.testing.assert_array_equal(first["logits"], second["logits"])
    alone = answers[0, 1]
    np.testing.assert_array_equal(first["ids"], alone["ids"])
    np.testing.assert_allclose(first["logits"], alone["logits"], atol=1e-5)
    for name, score in alone["scores"].items():
        assert first["scores"][name] == pytest.approx(score, abs=1e-5), name
