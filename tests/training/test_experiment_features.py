"""config.features: from the config to the table and to other modes."""

import json
import shutil

import numpy as np
import pytest

from evaluation import baselines
from input_pipeline.corpus.preparation import load_split, prepare
from reporting import report
from training.checkpoints import Checkpoints
from training.experiment import build
from workflows.evaluate import evaluate
from workflows.predict import predict
from workflows.train import train


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """A config with features, its finished workdir, and what training returned."""
    folder = tmp_path_factory.mktemp("features")
    config = make_config()
    config.features.update(use="both", extractors=("lengths", "character_tfidf"), svd=8)
    config.optimizer.lr_table = (("head/feature_kernel", 10.0), (".*", 1.0))
    config.train.duration = "2 epochs"
    return config, folder / "run", train(config, folder / "run")


@pytest.fixture
def run(finished, tmp_path):
    config, workdir, results = finished
    shutil.copytree(workdir, tmp_path / "run")
    return config.copy_and_resolve_references(), tmp_path / "run", results


def test_the_table_holds_encoder_features_and_both_on_the_same_examples(run):
    _, workdir, results = run
    rows = list(results["models"])
    assert rows[:5] == [
        baselines.MAJORITY,
        baselines.TFIDF,
        baselines.FEATURES,
        report.ENCODER,
        report.BOTH,
    ]
    counts = {row["accuracy"]["count"] for row in results["models"].values()}
    assert len(counts) == 1 and all(
        row["accuracy"]["standard_error"] is not None for row in results["models"].values()
    )
    assert f"the {report.ENCODER}" in results["conclusion"]
    # The run without features has left its test split shut.
    assert not (workdir / "encoder_alone" / "test_openings.jsonl").exists()
    alone = json.loads((workdir / "encoder_alone" / "config.json").read_text())
    assert alone["features"]["use"] == "none"


def test_features_are_fitted_on_the_training_examples_alone(run):
    """A fit on the 96 training examples alone gives the features that the run has stored."""
    config, workdir, _ = run
    prepared = prepare(config.data)
    training = load_split(prepared, "train", limit=config.data.max_train_examples)
    again = build(config, workdir.parent / "other", prepared.labels, lambda _: None, training)
    restored = build(config, workdir, prepared.labels, lambda _: None)
    assert again.features.fingerprint == restored.features.fingerprint
    assert again.fingerprints["features"] == again.features.fingerprint


def test_features_change_what_the_model_says_and_the_head_has_learned(run):
    config, workdir, _ = run
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    prepared = prepare(config.data)
    experiment = build(config, workdir, prepared.labels, lambda _: None)
    params = checkpoints.restore_params(checkpoints.resolve("latest"), experiment.like())
    checkpoints.close()
    assert np.abs(params["head/feature_kernel"]).max() > 0
    assert "head/feature_kernel" in experiment.fresh
    validation = load_split(prepared, "validation", limit=8)
    with_features = experiment.predict(params, validation, {})["logits_NxC"]
    none = {**params, "head/feature_kernel": 0 * params["head/feature_kernel"]}
    assert (
        np.abs(with_features - experiment.predict(none, validation, {})["logits_NxC"]).max() > 1e-3
    )


def test_other_modes_restore_the_features(run, tmp_path):
    config, workdir, _ = run
    config.eval.checkpoint = "latest"
    result = evaluate(config, workdir)
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    name = "validation/accuracy"
    values = {line["step"]: line[name] for line in logged if name in line}
    assert result["accuracy"]["value"] == values[max(values)]
    (tmp_path / "new.txt").write_text("房间很好\n太差了\n", "utf-8")
    config.predict.input = str(tmp_path / "new.txt")
    assert len(predict(config, workdir).read_text().splitlines()) == 2


def test_features_of_another_run_and_missing_ones_are_refused(run):
    config, workdir, _ = run
    path = workdir / "features.safetensors"
    path.rename(path.with_suffix(".away"))
    with pytest.raises(FileNotFoundError, match="is missing: the features"):
        evaluate(config, workdir)
    config.features.svd = 4
    prepared = prepare(config.data)
    training = load_split(prepared, "train", limit=config.data.max_train_examples)
    build(config, workdir.parent / "other", prepared.labels, lambda _: None, training)
    shutil.copy(workdir.parent / "other" / "features.safetensors", path)
    with pytest.raises(ValueError, match="trained with another features file"):
        evaluate(config, workdir)
