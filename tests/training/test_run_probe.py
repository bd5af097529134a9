"""config.model.head_start='probe': from the config to the table and to other modes."""

import dataclasses
import json

import numpy as np
import pytest

from evaluation.evaluate import Predictions
from reporting import report
from training import run_probe
from training.data import load_data
from training.experiment import build
from workflows import review
from workflows.integrate import integrate
from workflows.restoring import restore
from workflows.train import train


@pytest.fixture
def config(tiny_config):
    tiny_config.data.template = "{text}"
    tiny_config.model.update(head="linear", head_start="probe", pooling="mean", label_words=())
    return tiny_config


def use_kind(config, kind, reviews, folder):
    """Has the reviews labelled for a kind of task."""
    values = {
        "single": lambda text, label: label,
        "multi": lambda text, label: [label, "hotel" if "酒店" in text else "other"],
        "regression": lambda text, label: 2.5 if label == "positive" else -1,
        "ordinal": lambda text, label: (label == "positive") + ("酒店" in text),
        "hierarchical": lambda text, label: f"{label}/{'hotel' if '酒店' in text else 'other'}",
    }
    config.data.update(files=str(folder / "data.jsonl"), prepared_dir=str(folder / "prepared"))
    if kind in values:
        config.classification.kind = kind
        config.data.label_kind = "number" if kind == "regression" else "class"
        rows = [{"text": text, "label": values[kind](text, label)} for text, label in reviews]
    else:
        config.task, config.tagging.head, config.data.label_column = "tagging", kind, ""
        config.data.spans_column = "spans"
        rows = [
            {"text": text, "spans": [[text.find("，") + 1, text.find("，") + 3, "thing"]]}
            for text, _ in reviews
        ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "data.jsonl").write_text("".join(lines), "utf-8")


def made(config, workdir):
    """Returns the experiment of a config, and its data."""
    data = load_data(config)
    said = []
    return build(config, workdir, data.labels, said.append, data.split("train")), data, said


KINDS = ("single", "multi", "regression", "ordinal", "hierarchical", "softmax", "crf")


@pytest.mark.parametrize("kind", KINDS)
def test_before_any_step_it_is_better_than_a_random_head(kind, config, reviews, tmp_path):
    use_kind(config, kind, reviews, tmp_path)
    experiment, data, said = made(config, tmp_path / "probe")
    config.model.head_start = "random"
    random, _, _ = made(config, tmp_path / "random")
    assert any(line.startswith("Probe: the head is fitted on 96 training ex") for line in said)
    assert not experiment.fresh & {"head/kernel", "head/bias", "head/thresholds"}
    assert random.fresh >= {"head/kernel"}
    losses = []
    for each in (experiment, random):
        batch = next(
            each.pipeline.train(each.windows(data.split("train"), training=True), first_example=0)
        )
        batch = {name: value[0] for name, value in batch.items()}
        outputs = each.apply({**each.frozen, **each.initial}, batch)
        total, weight, _ = each.task.loss(outputs, batch)
        losses.append(float(total / weight))
    assert losses[0] < losses[1]


def test_the_table_has_its_row_and_alpha_0_its_head(config, tmp_path, capsys):
    config.train.duration = "8 steps"
    results = train(config, tmp_path / "run")
    assert report.PROBE in results["models"] and report.BEFORE not in results["models"]
    curve = results["integration"]["curve"]
    assert curve[0]["alpha"] == 0
    experiment, data, _ = made(config, tmp_path / "run")  # resumed: the stored head
    start = experiment.put(experiment.initial)
    scores, _ = experiment.score(start, data.split("validation"))
    loss = scores.statistics["loss"]
    assert curve[0]["loss"] == pytest.approx(loss[:, 0].mean(), abs=1e-6)
    # Another mode reads the head that the run started from.
    capsys.readouterr()
    config.integrate.methods = ("interpolation",)
    again = integrate.integrate(config, tmp_path / "run")
    assert again["curve"] == curve
    (tmp_path / "run" / "probe.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="the head that this run started from"):
        restore(made(config, tmp_path / "run")[0], tmp_path / "run")


@pytest.mark.parametrize("kind", ["single", "ordinal", "regression"])
def test_masked_examples_take_no_part(kind, config, reviews, tmp_path):
    use_kind(config, kind, reviews, tmp_path)
    data = load_data(config)
    train, heads = data.split("train"), []
    is_known = np.arange(len(train)) % 3 > 0
    name, none = ("numbers_N", np.nan) if kind == "regression" else ("labels_N", -1)
    masked = {
        name: np.where(is_known, getattr(train, name), none).astype(getattr(train, name).dtype)
    }
    for examples in (dataclasses.replace(train, **masked), train.take(is_known)):
        said = []
        experiment = build(config, tmp_path / "run", data.labels, said.append, examples)
        assert any(f"fitted on {is_known.sum()} training examples" in line for line in said)
        heads.append(experiment.initial["head/kernel"])
    np.testing.assert_allclose(*heads, rtol=1e-3, atol=1e-4)


def test_augmentation_and_order_do_not_touch_it(config, tmp_path):
    expected = made(config, tmp_path / "a")[0].initial["head/kernel"]
    config.seed, config.augmentation.deletion_rate = 7, 0.3
    np.testing.assert_array_equal(made(config, tmp_path / "b")[0].initial["head/kernel"], expected)


def test_members_of_several_tasks_have_the_heads_that_they_have_alone(config, reviews, tmp_path):
    members, alone = {}, {}
    for kind in ("single", "softmax", "language"):
        members[kind] = own = config.copy_and_resolve_references()
        (folder := tmp_path / kind).mkdir()
        if kind == "language":
            own.task, own.data.label_column, own.model.head_start = (
                "causal_language_modelling",
                "",
                "random",
            )
        else:
            use_kind(own, kind, reviews, folder)
        alone[kind] = made(own, folder / "run")[0]
    config.task, config.multi.members = "multi_task", members
    experiment, _, said = made(config, tmp_path / "run")
    line = next(line for line in said if line.startswith("Probe: the head is fitted on"))
    assert "language: random; single: C=" in line and "; softmax: " in line
    for kind in ("single", "softmax"):
        for path in ("kernel", "bias"):
            found = experiment.initial[f"head/heads_{kind}/{path}"]
            expected = alone[kind].initial[f"head/{path}"]
            np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert not any(path.startswith("head/") for path in experiment.fresh)
    members["single"].data.max_train_examples = 1
    with pytest.raises(ValueError, match="cannot fit the head: single: 1 examples are fewer"):
        made(config, tmp_path / "few")
    members["single"].model.head_bias = False
    with pytest.raises(ValueError, match=r"needs config.multi.members.single.model.head='linear'"):
        run_probe.check(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "multiple_choice"}, "found the task 'multiple_choice', expected one of class"),
        ({"model.init": "scratch"}, "needs pretrained weights"),
        ({"model.head": "label_words", "model.label_words": ("差", "好")}, "head='linear'"),
        ({"model.head_bias": False}, "head_bias=True, found 'linear' and False"),
        ({"data.max_train_examples": 1}, "1 examples are fewer than the 2 classes"),
    ],
)
def test_what_has_no_probe_is_refused(change, message, config, tmp_path):
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    if "task" not in change and "data.max_train_examples" not in change:
        with pytest.raises(ValueError, match=message):
            review.review(config, tmp_path / "review")


def test_a_head_that_is_not_linear_is_refused(config, reviews, tmp_path):
    use_kind(config, "global_pointer", reviews, tmp_path)
    with pytest.raises(ValueError, match="'global_pointer' is none: set it to 'random'"):
        made(config, tmp_path / "run")


def test_thresholds_stay_finite_far_from_zero(config, reviews, tmp_path):
    use_kind(config, "ordinal", reviews, tmp_path)
    experiment, data, _ = made(config, tmp_path / "run")
    examples = data.split("train")
    inputs_NxD = np.random.default_rng(0).normal(size=(len(examples), 8))
    inputs_NxD += examples.labels_N[:, None]
    for shift in (-1e3, 0, 1e3):
        vectors = Predictions(examples.ids_N, {"inputs_NxD": inputs_NxD + shift})
        heads, _ = experiment.task.probe(examples, vectors, None)
        assert all(np.isfinite(value).all() for value in heads.values())


@pytest.mark.parametrize("kind", ["single", "multi", "ordinal", "hierarchical"])
def test_a_guess_has_the_loss_of_the_label_frequencies(kind, config, reviews, tmp_path):
    use_kind(config, kind, reviews, tmp_path)
    experiment, data, _ = made(config, tmp_path / "run")
    examples, task = data.split("train"), experiment.task
    floor = task.baselines(examples, examples)[task.FLOORS[0]]
    loss = floor.statistics["loss"][:, 0].mean()
    assert task.guess_loss(examples) == pytest.approx(loss, abs=0.01)
    # Weighted losses give other probabilities than the frequencies, which says nothing.
    config.classification.class_weights = ("balanced",)
    assert made(config, tmp_path / "run")[0].task.guess_loss(examples) is None


def test_another_mode_of_a_run_without_says_how_to_go_on(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"another --workdir .*head_start='random'"):
        build(config, tmp_path, ["negative", "positive"], print)


def test_the_head_of_a_run_with_other_labels_is_refused(config, tmp_path):
    made(config, tmp_path)
    with pytest.raises(ValueError, match=r"from head/bias of shape \(2,\), which does not fit"):
        build(config, tmp_path, ["a", "b", "c"], print)
