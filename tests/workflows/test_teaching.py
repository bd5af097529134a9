"""A teacher's run writes its probabilities, and a student of fewer layers learns from them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.corpus.preparation import load_split, prepare
from tasks import teaching
from training.data import load_data
from training.experiment import build
from training.tuning.regularizers import Place, Regularizers
from workflows.inspect.inspect import inspect
from workflows.restoring import restore
from workflows.review import review
from workflows.teacher import load
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
    with pytest.raises(ValueError, match="config.teach: a teacher has seen the labels"):
        review(configs["student"], tmp_path / "review")


def tagged(config, folder):
    """Two tags: the mark of the end, and all others."""
    path = folder / "tagged.jsonl"
    rows = [
        {"text": t, "spans": [[i, i + 1, "S"] for i in range(len(t)) if t[i] in "。！"]}
        for t in TEXTS
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config.task, config.model.label_words = "tagging", ()
    config.data.update(files=str(path), text_column="text", spans_column="spans", label_column="")
    config.data.template = "{text}"


def paired(config, folder):
    """Texts and their beginnings."""
    path = folder / "paired.jsonl"
    rows = [{"query": text[:6], "pos": text} for text in TEXTS]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config.task, config.model.label_words = "embedding", ()
    config.model.update(head="linear", pooling="mean")
    config.data.update(files=str(path), text_column="query", pair_column="pos", label_column="")
    config.data.template = "{text}"


def causal(config, _):
    """The next token of each text."""
    config.task, config.model.label_words = "causal_language_modelling", ()
    config.data.update(label_column="", template="{text}")


def several(config, folder):
    """Two tasks, whose heads have dropout."""
    names, opinions = (config.copy_and_resolve_references() for _ in range(2))
    tagged(names, folder)
    names.tagging.dropout = opinions.model.dropout = 0.3
    config.task, config.multi.members = "multi_task", {"names": names, "opinions": opinions}


TEXTS = [f"{name}的{what}真{how}。我{feel}！" for name in "甲乙丙丁戊己庚辛壬癸" for what in
         ("菜", "酒店", "书") for how in ("好", "差") for feel in ("喜欢", "后悔")]  # fmt: skip


@pytest.mark.parametrize("change", [lambda *_: None, tagged, paired, causal, several])
def test_the_model_of_a_run_teaches_any_task(make_config, tmp_path, capsys, change):
    """A student of the teacher's weights is not apart from it, and one of a layer comes nearer."""
    configs = [make_config() for _ in range(2)]
    for config in configs:
        change(config, tmp_path)
        config.train.update(duration="24 steps", integrate=False)
        config.eval.update(every="24 steps", test=False)
    teacher, student = configs
    train(teacher, tmp_path / "teacher")
    student.teach.update(run=str(tmp_path / "teacher"), share=0.8)
    student.model.keep_layers, student.train.microbatches = 1, 2
    student.train.log_every = "4 steps"
    capsys.readouterr()
    train(student, tmp_path / "student")
    said = capsys.readouterr().out
    assert "Teacher: the best checkpoint, step 24 of" in said and "2 layers" in said
    lines = (tmp_path / "student" / "metrics.jsonl").read_text("utf-8").splitlines()
    apart = [row["from_teacher"] for row in map(json.loads, lines) if "from_teacher" in row]
    assert np.mean(apart[-2:]) < 0.9 * apart[0]

    again = configs[0].copy_and_resolve_references()
    again.teach.update(run=str(tmp_path / "teacher"), share=1.0)
    for side in (again, *again.multi.members.values()):
        side.model.dropout = side.tagging.dropout = 0.0
    data = load_data(again)
    experiment = build(again, tmp_path / "again", data.labels, lambda _: None)
    same = restore(experiment, tmp_path / "teacher", "best").params
    load(experiment, data.labels)
    batch = next(experiment.pipeline.train(data.split("train"), first_example=0))
    part = {name: array[0] for name, array in batch.items()}
    hooks = Regularizers(again.regularize, experiment.passes(), seed=0, teacher=experiment.teacher)
    place = Place(jnp.int32(0), jnp.int32(0))
    (total, _), slopes = hooks.gradient(same, experiment.held, part, place)
    assert float(total) == pytest.approx(0, abs=1e-4)
    assert max(float(jnp.abs(slope).max()) for slope in slopes.values()) < 1e-3


def test_members_of_a_teacher_that_read_otherwise_are_named(make_config, tmp_path):
    config = make_config()
    several(config, tmp_path)
    config.train.update(duration="4 steps", integrate=False)
    config.eval.update(every="4 steps", test=False)
    train(config, tmp_path / "teacher")
    config.teach.run = str(tmp_path / "teacher")
    config.multi.members.opinions.data.template = "{text}吗"
    with pytest.raises(
        ValueError, match=r"teach this one: multi.members.opinions.data.template is"
    ):
        train(config, tmp_path / "student")


def test_a_run_that_cannot_teach_is_refused(taught, tmp_path):
    folder, configs = taught
    config = configs["alone"].copy_and_resolve_references()
    config.teach.run = str(folder / "teacher")
    for key, value, message in (
        ("data.template", "{text}吗？<mask>", "data.template is"),
        ("teach.run", str(folder / "none"), "holds no run"),
        ("teach.targets", "targets.jsonl", "two teachers"),
        ("tokenizer.marks", "none", "tokenizer.marks is 'auto' there and 'none' here"),
        ("data.labels", ("positive", "negative"), r"labels are \['negative', 'positive'\] there"),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({key: value})
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(other, tmp_path / "run")


def test_a_file_that_has_changed_is_not_gone_on_with(taught, capsys):
    """Comes last, since it changes the file."""
    folder, configs = taught
    path = folder / "targets.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), "utf-8")
    with pytest.raises(ValueError, match="was trained with another teacher"):
        train(configs["student"], folder / "student")
    assert "of 95 of 96 training examples" in capsys.readouterr().out
