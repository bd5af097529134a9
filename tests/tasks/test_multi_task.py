"""Several tasks in one run: each as it would be alone, sharing the backbone, metrics apart."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from configs import common
from evaluation.metrics import Metric, estimate, mean, summarise
from input_pipeline.batches.mixture import member_of, own_ids
from tasks.multi_task import MEAN, MultiTask, _metrics
from training.compilation import PerShape
from training.data import load_data
from training.experiment import build, make_pipeline
from training.pending import Pending
from training.sharding import put_batch
from workflows.evaluate import evaluate
from workflows.predict import predict
from workflows.train import train

GOOD, BAD = "非常好，值得推荐！", "太差了，再也不来了！"


@pytest.fixture(scope="module")
def choices_jsonl(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("choices") / "choices.jsonl"
    rows = [
        {
            "text": f"{i}{text[:6]}____",
            "choices": (BAD, GOOD)[:: 1 - 2 * (i % 2)],
            "label": 1 - i % 2,
        }
        for i, (text, _) in enumerate(reviews[::6])
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def multi_config(make_config, choices_jsonl, tmp_path_factory):
    """Sentiment by label words, and blanks by a head."""
    tiny_config = make_config()
    reviews, blanks = (tiny_config.copy_and_resolve_references() for _ in range(2))
    reviews.data.max_train_examples = 96
    blanks.task = "multiple_choice"
    blanks.data.update(
        files=str(choices_jsonl), choices_column="choices", template="{text}\n{choice}"
    )
    blanks.model.update(head="linear", pooling="last", label_words=())
    config = common.get_config()
    config.task = "multi_task"
    config.multi.members = {"reviews": reviews, "blanks": blanks}
    config.data.batch_size = 8
    config.model.checkpoint = tiny_config.model.checkpoint
    config.layout.update(max_length=64, row_length=128, max_shapes=1)
    config.optimizer.learning_rate = 3e-3
    config.train.update(duration="30 steps", log_every="5 steps", checkpoint_every="15 steps")
    config.eval.every = "30 steps"
    config.train.keep_latest = 2
    config.integrate.update(methods=("interpolation", "soup"), points=3)
    return config


@pytest.fixture(scope="module")
def started(multi_config, tmp_path_factory):
    """The experiment of both tasks and those of each alone, with the head it has among them."""
    experiment, data = start(multi_config, tmp_path_factory.mktemp("both"))
    alone = {}
    for name, member in experiment.task.members.items():
        alone[name], _ = start(member.config, tmp_path_factory.mktemp(name))
        take_heads(alone[name], experiment, name)
    return experiment, data, alone


def start(config, workdir):
    data = load_data(config)
    experiment = build(config, workdir, data.labels, lambda line: None, data.split("train"))
    return experiment, data


def take_heads(alone, experiment, name):
    """Lets a member's own experiment start from the head it has among others."""
    for path in [path for path in alone.initial if path.startswith("head/")]:
        alone.initial[path] = experiment.initial[path.replace("head/", f"head/heads_{name}/")]


def gradients_of(experiment, batch):
    part = {name: array[0] for name, array in batch.items()}

    def loss(params):
        outputs = experiment.apply({**experiment.frozen, **params}, part_on_device)
        total, weight, sums = experiment.task.loss(outputs, part_on_device)
        return total / weight, sums

    part_on_device = put_batch(part, experiment.mesh)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.device_get(step(experiment.put(experiment.initial)))


def test_each_member_is_as_it_would_be_alone(started):
    """Loss and gradients of a step are those of the member's own task, other heads get none."""
    experiment, data, alone_of = started
    heads = {path for path in experiment.initial if path.startswith("head/")}
    assert heads == {
        "head/heads_blanks/kernel",
        "head/heads_reviews/kernel",
        "head/heads_reviews/bias",
    }
    assert "head/heads_reviews/kernel" not in experiment.fresh  # it starts from label words
    batches = experiment.pipeline.train(data.split("train"), first_example=0)
    seen = {}
    for batch in itertools.islice(batches, 12):
        seen.setdefault(member_of(batch), batch)
    assert seen.keys() == {"reviews", "blanks"}
    for name, batch in seen.items():
        (loss, sums), gradients = gradients_of(experiment, batch)
        member = experiment.task.members[name]
        alone, part = alone_of[name], data.split("train").parts[name]
        mine = next(make_pipeline(member.config, member).train(part, first_example=0))
        assert batch.keys() - mine.keys() == {f"member_{name}"}
        for key in mine.keys() - {"ids_B"}:
            np.testing.assert_array_equal(batch[key], mine[key])
        (alone_loss, _), others = gradients_of(alone, mine)
        assert loss == pytest.approx(alone_loss, rel=1e-5)
        assert f"{name}/loss" in sums
        for path, gradient in gradients.items():
            own = path.replace(f"head/heads_{name}/", "head/")
            if own in others:
                error = np.linalg.norm(gradient - others[own])
                assert error <= 1e-4 * np.linalg.norm(others[own]) + 1e-8, path
            else:
                assert not gradient.any(), path


@pytest.mark.parametrize(
    "name", ["muon", *(pytest.param(n, marks=pytest.mark.long) for n in ("adamw", "schedule_free"))]
)
def test_a_step_leaves_the_heads_of_the_other_tasks_with_their_memory(
    started, multi_config, tmp_path, monkeypatch, name
):
    """To the bit, in a real training; what is shared, and the batch's own head, do move."""
    config, states = multi_config.copy_and_resolve_references(), []
    config.train.update(duration="8 steps", checkpoint_every="8 steps", ema=0.9, integrate=False)
    config.eval.update(every="8 steps", test=False)
    config.optimizer.update(name=name, weight_decay=0.5)
    if name == "schedule_free":
        config.schedule.name, config.train.ema = "constant", 0.0

    class Noted(PerShape):
        def __call__(self, state, frozen, batch):
            before = jax.device_get(state)
            state, metrics = super().__call__(state, frozen, batch)
            states.append((member_of(batch), before, jax.device_get(state)))
            return state, metrics

    monkeypatch.setattr("training.train.PerShape", Noted)
    train(config, tmp_path)
    assert {member for member, *_ in states} == {"reviews", "blanks"}
    for member, *sides in states:
        before, after = (
            {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(state)}
            for state in sides
        )
        moved = {key for key in before if not np.array_equal(before[key], after[key])}
        (other,) = {"reviews", "blanks"} - {member}
        assert not [key for key in moved if f"heads_{other}" in key and ".average" not in key]
        assert any(f"heads_{member}/kernel" in key and "params" in key for key in moved)
        assert any(f"heads_{member}" in key and "optimizer" in key for key in moved)
        assert any("backbone" in key for key in moved)


def test_a_run_resumed_with_another_batch_size_repeats_and_skips_no_example(
    started, multi_config, tmp_path, monkeypatch
):
    experiment, data, _ = started
    config, ids = multi_config.copy_and_resolve_references(), []
    config.train.update(on_config_change="continue", integrate=False)
    config.adapt.kind = "head"  # little to compile

    def stop(step, rank):
        raise KeyboardInterrupt

    def note(self, step, metrics, batch):
        ids.append(batch)
        add(self, step, metrics, batch)

    add = Pending.add
    monkeypatch.setattr(Pending, "add", note)
    for batch_size, steps in ((8, 5), (16, 9)):  # the second goes on to step 9
        config.data.batch_size, config.eval.every = batch_size, f"{steps} steps"
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path, on_evaluation=stop)
    assert [batch["ids_B"].size for batch in ids] == [8] * 5 + [16] * 4
    for name, part in data.split("train").parts.items():
        member = list(experiment.task.members).index(name)
        seen = [own_ids(member, b["ids_B"].ravel()) for b in ids if member_of(b) == name]
        batches = experiment.pipeline.pipelines[name].train(part, first_example=0)
        alone = np.concatenate([next(batches)["ids_B"].ravel() for _ in range(15)])
        seen = np.concatenate(seen)
        assert len(seen) > 24
        np.testing.assert_array_equal(seen, alone[: len(seen)])


def test_run_learns_both_and_tells_their_metrics_apart(multi_config, tmp_path):
    results = train(multi_config, tmp_path / "run")
    kinds = [candidate["kind"] for candidate in results["integration"]["candidates"]]
    assert kinds == ["interpolation", "single", "single", "soup"]
    model = results["models"]["fine-tuned"]
    assert model["reviews/accuracy"]["value"] > 0.8
    assert model["blanks/accuracy"]["value"] > 0.8
    assert model[MEAN]["value"] == pytest.approx(
        (model["reviews/accuracy"]["value"] + model["blanks/accuracy"]["value"]) / 2
    )
    assert MultiTask.FLOOR in results["models"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert any("reviews/loss" in line for line in logged)
    assert any("blanks/loss" in line for line in logged)

    found = evaluate(multi_config, tmp_path / "run")
    best = max(line["validation/mean"] for line in logged if "validation/mean" in line)
    assert found[MEAN]["value"] == pytest.approx(best, rel=1e-5)

    rows = [{"text": f"房间____{i}", "choices": [GOOD, BAD]} for i in range(3)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    multi_config.predict.input = str(tmp_path / "new.jsonl")
    lines = predict(multi_config, tmp_path / "run").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [p["member"] for p in predictions] == ["blanks"] * 3 + ["reviews"] * 3
    assert [p["id"] for p in predictions] == [0, 1, 2] * 2


def test_scores_are_those_of_each_member_alone(started):
    experiment, data, alone_of = started
    validation = data.split("validation")
    predictions = experiment.predict(experiment.put(experiment.initial), validation, {})
    scores = experiment.task.score(predictions, validation)
    np.testing.assert_array_equal(scores.ids_N, validation.ids_N)
    summary = summarise(scores)
    for name, alone in alone_of.items():
        part = validation.parts[name]
        own = alone.task.score(alone.predict(alone.put(alone.initial), part, {}), part)
        for metric in own.metrics:
            expected = estimate(own, metric.name)
            here = summary[f"{name}/{metric.name}"]
            assert here["value"] == pytest.approx(expected["value"], rel=1e-5, abs=1e-6)
            assert here["standard_error"] == pytest.approx(
                expected["standard_error"], rel=1e-4, abs=1e-6
            )
            assert here["count"] == expected["count"] == len(part)
    assert summary[MEAN]["count"] == len(validation)
    floors = experiment.task.baselines(data.split("train"), validation)
    assert list(floors) == [MultiTask.FLOOR]
    assert floors[MultiTask.FLOOR].truth == scores.truth
    # Groups of one member; each example of the other is its own.
    parts, name = dict(validation.parts), list(validation.parts)[1]
    size = len(parts[name])
    parts[name] = dataclasses.replace(parts[name], groups_N=np.arange(size) // 2)
    grouped = summarise(
        experiment.task.score(predictions, dataclasses.replace(validation, parts=parts))
    )
    assert grouped[MEAN]["groups"] == len(validation) - size // 2
    for key, row in grouped.items():
        if key in summary and "count" in row and key != MEAN:
            assert ("groups" in row) == key.startswith(f"{name}/")
            assert row["value"] == pytest.approx(summary[key]["value"])


def test_a_metric_of_which_less_is_better_raises_the_mean_when_it_falls():
    loss = Metric("loss", "loss", mean, higher_is_better=False)
    accuracy = Metric("accuracy", "accuracy", mean)
    combined, first, second = _metrics({"a": (accuracy,), "b": (loss,)}, [2, 2])
    assert (first.name, second.name) == ("a/accuracy", "b/loss")
    assert combined.higher_is_better
    sums = np.array([[3.0, 4, 6, 2], [3, 4, 2, 2]])
    np.testing.assert_allclose(combined.value(sums, sums[0]), [(0.75 + 0.25) / 2, (0.75 + 0.5) / 2])


def test_members_and_labels_must_agree(multi_config):
    with pytest.raises(ValueError, match="there are labels for"):
        MultiTask(multi_config, {"reviews": ["a", "b"]}, tokenizer=None, backbone=None)
