"""A run of fewer layers (config.model.keep_layers): trained, restored, exported, refused."""

import json

import jax
import numpy as np
import pytest

from input_pipeline.corpus.preparation import load_split, prepare
from models.heads import Model
from models.pretrained import open_checkpoint
from training.experiment import build
from workflows.evaluate import evaluate
from workflows.export import huggingface
from workflows.export.export import export, row_logits
from workflows.restoring import restore
from workflows.train import train


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """A config of one of two layers, and its finished workdir; it was stopped in between."""
    config, workdir = make_config(), tmp_path_factory.mktemp("layers") / "run"
    config.model.update(keep_layers=1, head="linear")
    config.optimizer.layer_decay = 0.5
    config.train.update(duration="12 steps", on_config_change="continue")
    train(config, workdir)
    config.train.duration = "24 steps"
    train(config, workdir)
    return config, workdir


def test_a_run_of_fewer_layers_trains_and_is_restored(finished, capsys):
    config, workdir = finished
    experiment = build(config, workdir, ["negative", "positive"], print)
    assert "1 of 2 layers are kept: 1 (the first is 0)." in capsys.readouterr().out
    paths = {*experiment.initial, *experiment.frozen}
    assert {path.split("/")[1] for path in paths if "layer_" in path} == {"layer_0"}
    stored = open_checkpoint(config.model.checkpoint).read()["layer_1"]["mlp"]["up"]["kernel"]
    path = "backbone/layer_0/mlp/up/kernel"
    np.testing.assert_array_equal(experiment.initial[path], stored)
    trained = restore(experiment, workdir, "latest").params
    assert (np.asarray(trained[path]) != stored).any()
    assert experiment.factors[path] == 0.5
    assert np.isfinite(evaluate(config, workdir)["loss"]["value"])


def test_the_exported_folder_has_the_logits_of_the_run(finished, tmp_path):
    config, workdir = finished
    config = config.copy_and_resolve_references()
    config.export.update(formats=("huggingface",), output=str(tmp_path / "export"))
    config.eval.checkpoint = "latest"
    folder = export(config, workdir) / "huggingface"
    assert json.loads((folder / "config.json").read_text("utf-8"))["num_hidden_layers"] == 1
    experiment = build(config, workdir, ["negative", "positive"], lambda _: None)
    params = {**experiment.frozen, **restore(experiment, workdir, "latest").params}
    again = Model(open_checkpoint(folder).config, experiment.model.task_head)
    tree = huggingface.read(huggingface.form_of(again), folder)
    texts = load_split(prepare(config.data), "validation", limit=1).texts_N
    encoded = experiment.pipeline.encoder(texts)
    sample = encoded.tokens[None], encoded.types[None], encoded.lengths_B
    found, expected = (
        jax.jit(lambda tree, model=model: row_logits(model, tree, *sample))(values)
        for model, values in ((again, tree), (experiment.model, params))
    )
    np.testing.assert_array_equal(found, expected)


def test_a_checkpoint_of_other_layers_is_refused_by_name(finished):
    config, workdir = finished
    config = config.copy_and_resolve_references()
    config.model.keep_layers = 2
    with pytest.raises(ValueError, match="model.keep_layers: 1 in the checkpoint, 2 now"):
        evaluate(config, workdir)


def test_other_runs_layers_are_not_taken_for_these(finished, tiny_config, tmp_path):
    """Layer 0 of the other run was layer 1 of the checkpoint."""
    _, workdir = finished
    tiny_config.model.head = "linear"
    tiny_config.resume_from = str(workdir)
    with pytest.raises(ValueError, match="trained with another pretrained"):
        train(tiny_config, tmp_path / "run")


def test_adapters_and_random_weights_have_the_layers_of_the_student(tiny_config, tmp_path):
    tiny_config.model.keep_layers = 1
    tiny_config.adapt.kind = "lora"
    experiment = build(tiny_config, tmp_path, ["negative", "positive"], lambda _: None)
    assert {path.split("/")[1] for path in experiment.initial if "lora_a" in path} == {"layer_0"}
    tiny_config.adapt.kind = "full"
    tiny_config.model.update(init="scratch", head="linear")
    experiment = build(tiny_config, tmp_path, ["negative", "positive"], lambda _: None)
    assert {path.split("/")[1] for path in experiment.initial if "layer_" in path} == {"layer_0"}


def test_more_layers_than_there_are_and_an_adapter_alone_are_refused(tiny_config, tmp_path):
    tiny_config.model.keep_layers = 3
    with pytest.raises(ValueError, match="keep_layers=3, but there are 2"):
        build(tiny_config, tmp_path, ["negative", "positive"], lambda _: None)
    tiny_config.adapt.kind = "lora"
    tiny_config.export.formats = ("peft",)
    with pytest.raises(ValueError, match="names 'peft', but config.model.keep_layers=3"):
        export(tiny_config, tmp_path)
