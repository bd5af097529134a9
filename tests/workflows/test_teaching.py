"""A teacher's run writes its probabilities, and a student of fewer layers learns from them."""

import numpy as np
import pytest

from input_pipeline.corpus.preparation import load_split, prepare
from tasks import teaching
from training.experiment import build
from workflows.inspect.inspect import inspect
from workflows.restoring import restore
from workflows.review import review
from workflows.train import train

LABELS = ["negative", "positive"]


@pytest.fixture(scope="module")
def taught(make_config, tmp_path_factory):
    """The folder of a teacher and two students, and their configs by name."""
    folder, configs = tmp_path_factory.mktemp("teaching"), {}
    for name in ("teacher", "alone", "student"):
        config = make_config()
        config.data.max_validation_examples = 48
        if name == "teacher":
            config.train.update(duration="2 epochs", keep_latest=2)
            config.integrate.methods = ("ensemble",)
            config.integrate.targets = str(folder / "targets.jsonl")
        else:
            config.model.keep_layers = 1
            config.train.integrate = False
        if name == "student":
            config.teach.update(targets=str(folder / "targets.jsonl"), share=0.9)
        train(config, folder / name)
        configs[name] = config
    return folder, configs


def logits_of(folder, config, name):
    examples = load_split(prepare(config.data), "validation", limit=48)
    experiment = build(config, folder / name, LABELS, lambda _: None)
    params = restore(experiment, folder / name, "latest").params
    predictions = experiment.predict(params, examples, {})
    return predictions["logits_NxC"][np.argsort(predictions.ids_N)]


def test_a_taught_student_is_nearer_to_its_teacher_than_one_of_labels_alone(taught):
    folder, configs = taught
    teacher_NxC = np.exp(logits_of(folder, configs["teacher"], "teacher"))
    teacher_NxC /= teacher_NxC.sum(axis=1, keepdims=True)
    student, alone = (
        float(np.mean(teaching.distance(teacher_NxC, logits_of(folder, configs[name], name), 1.0)))
        for name in ("student", "alone")
    )
    assert student < 0.8 * alone


def test_a_single_model_writes_its_probabilities_too(tiny_config, tmp_path, capsys):
    tiny_config.train.duration = tiny_config.eval.every = "12 steps"
    tiny_config.integrate.update(
        methods=("interpolation", "ensemble"), targets=str(tmp_path / "targets.jsonl")
    )
    results = train(tiny_config, tmp_path / "run")
    assert "Left out: config.integrate.methods: ensemble: a single model" in capsys.readouterr().out
    assert len((tmp_path / "targets.jsonl").read_text("utf-8").splitlines()) == 96
    assert results["integration"]["targets"]["members"] == ["best checkpoint, step 12"]


def test_inspect_shows_the_teacher_and_review_refuses_one(taught, tmp_path, capsys):
    _, configs = taught
    inspect(configs["student"], tmp_path / "inspect")
    said = capsys.readouterr().out
    assert "probabilities of 96 of 96 training examples" in said
    assert "1 of 2 layers are kept: 1 (the first is 0)." in said
    with pytest.raises(ValueError, match="config.teach.targets: a teacher has seen the labels"):
        review(configs["student"], tmp_path / "review")


def test_a_file_that_has_changed_is_not_gone_on_with(taught, capsys):
    """Comes last, since it changes the file."""
    folder, configs = taught
    path = folder / "targets.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), "utf-8")
    with pytest.raises(ValueError, match="was trained with another teacher"):
        train(configs["student"], folder / "student")
    assert "of 95 of 96 training examples" in capsys.readouterr().out
