"""Vectors of folders that sentence-transformers wrote equal its own (a golden file)."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import common
from training.experiment import build
from workflows.restoring import Restored
from workflows.vectors import Vectors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "sentence_transformers"
GOLDEN = json.loads((FIXTURES / "golden.json").read_text("utf-8"))


@pytest.mark.parametrize("layout", ["pack", "pad"])
@pytest.mark.parametrize("name", ["bge", "e5", "qwen3"])
def test_vectors_equal_those_of_sentence_transformers(name, layout, tmp_path):
    """First, mean and last token; prompts of either side; padding on the right and on the left."""
    config, said = common.get_config(), []
    config.task, config.data.template = "embedding", "{text}"
    config.model.update(checkpoint=str(FIXTURES / name), pooling="auto")
    config.layout.update(kind=layout, max_length=192, row_length=192)
    experiment = build(config, tmp_path, [], said.append)
    start = experiment.put(experiment.initial)
    vectors = Vectors(experiment, Restored(start, {"fitted": experiment.task.unfitted}, "", 0))
    for side, key in (("query", "queries"), ("passage", "passages")):
        found = vectors(GOLDEN[key], side)
        np.testing.assert_allclose(found, GOLDEN[name][key], atol=2e-6)
    assert any("pooling, " in line and "before a query" in line for line in said)
