"""config.adapt: from the config to the checkpoint, the line to the pretrained weights, and back."""

import json

import jax
import numpy as np
import pytest

from input_pipeline.corpus.preparation import load_split, prepare
from training.checkpoints import Checkpoints
from training.experiment import build
from workflows import restoring
from workflows.evaluate import evaluate
from workflows.train import train

KINDS = {"lora": "int8", "prompt": "bfloat16"}


@pytest.fixture(scope="module", params=KINDS)
def finished(request, make_config, tmp_path_factory):
    """A config with an adapter, its finished workdir, and what training returned."""
    folder = tmp_path_factory.mktemp(request.param)
    config = make_config()
    config.adapt.update(
        kind=request.param, rank=4, prompt_length=3, frozen_dtype=KINDS[request.param]
    )
    config.train.duration = "24 steps"
    return config, folder / "run", train(config, folder / "run")


def test_checkpoints_hold_only_what_is_trained(finished):
    config, workdir, _ = finished
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    experiment = build(config, workdir, ["negative", "positive"], lambda _: None)
    restored = checkpoints.restore_params(checkpoints.latest(), experiment.like())
    checkpoints.close()
    leaves = {path.rsplit("/", 1)[-1] for path in restored if path.startswith("backbone/")}
    assert leaves == {"lora": {"lora_a", "lora_b"}, "prompt": {"prompt"}}[config.adapt.kind]
    assert {"head/kernel", "head/bias"} <= restored.keys()
    moved = [path for path in restored if (experiment.initial[path] != restored[path]).any()]
    assert len(moved) == len(restored)


def test_other_modes_restore_the_adapter(finished):
    """The best checkpoint gives the validation metrics that training logged for it."""
    config, workdir, _ = finished
    logged = [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if "validation/loss" in line
    ]
    found = evaluate(config, workdir)
    assert found["loss"]["value"] == pytest.approx(
        min(line["validation/loss"] for line in logged), rel=1e-4
    )


def test_the_line_starts_at_the_pretrained_model(finished):
    config, workdir, _ = finished
    prepared = prepare(config.data)
    examples = load_split(prepared, "validation", limit=8)
    experiment = build(config, workdir, prepared.labels, lambda _: None)
    trained = restoring.restore(experiment, workdir, "latest").params
    end = experiment.pretrained_end(trained)
    assert end.keys() == trained.keys()
    at_start = experiment.predict(experiment.put(experiment.initial), examples, {})["logits_NxC"]
    at_end = experiment.predict(trained, examples, {})["logits_NxC"]
    found = experiment.predict(end, examples, {})["logits_NxC"]
    assert np.abs(at_end - at_start).max() > 1e-2
    if config.adapt.kind == "prompt":  # which changes no weights: it stays as trained
        assert (end["backbone/embedder/prompt"] == trained["backbone/embedder/prompt"]).all()
    else:
        np.testing.assert_allclose(found, at_start, atol=1e-5)


def test_layers_are_unfrozen_from_the_top(tiny_config, tmp_path):
    """Before the first period is over, only the head and the norm behind the layers have moved."""
    tiny_config.adapt.unfreeze_every = "8 steps"
    tiny_config.train.duration = "7 steps"
    tiny_config.train.integrate = False
    train(tiny_config, tmp_path / "run")
    experiment = build(tiny_config, tmp_path / "run", ["negative", "positive"], lambda _: None)
    trained = jax.device_get(restoring.restore(experiment, tmp_path / "run", "latest").params)
    moved = {p for p, value in trained.items() if (value != experiment.initial[p]).any()}
    assert "head/kernel" in moved
    assert not any(path.startswith("backbone/layer_") for path in moved)
    assert "backbone/embedder/embedding" not in moved
