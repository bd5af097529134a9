"""Whole runs on the tiny model that end otherwise than the usual one."""

import csv
import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from configs.overrides import load_config
from models import backbone
from reporting import report
from reporting.stored_scores import read_scores
from tasks.classification import Classification
from training import collapse, cost, data
from training.data import load_data
from training.pending import Pending
from training.progress import read_metrics
from workflows import marks, sweep
from workflows.test import test as open_test
from workflows.train import train


@pytest.fixture
def short_config(tiny_config):
    """The head alone, two steps of it: what is compiled is small."""
    tiny_config.train.update(duration="2 steps", checkpoint_every="1 step", log_every="1 step")
    tiny_config.eval.every = "2 steps"
    tiny_config.adapt.kind = "head"
    tiny_config.integrate.points = 2
    return tiny_config


def test_without_a_test_split_and_with_one_validation_example_a_run_ends(short_config, tmp_path):
    short_config.data.split.update(validation=1, test=0)
    results = train(short_config, tmp_path / "run")
    assert results["split"] == "validation"
    assert results["models"][report.FINETUNED]["accuracy"]["count"] == 1
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "test_openings.jsonl").exists()
    with pytest.raises(ValueError, match=r"and no 'test': set config\.data\.split\.test"):
        open_test(short_config, tmp_path / "run")


def test_errors_are_by_the_groups_of_the_data_in_tables_sentences_and_files(
    short_config, reviews, tmp_path, capsys
):
    with (tmp_path / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(text, label, i // 4) for i, (text, label) in enumerate(reviews)]
        csv.writer(file).writerows([("text", "label", "author"), *rows])
    short_config.data.update(files=str(tmp_path / "reviews.csv"), group_column="author")
    short_config.data.split.update(kind="group", validation=20, test=40)
    results = train(short_config, tmp_path / "run")
    for row in results["models"].values():
        assert (row["accuracy"]["count"], row["accuracy"]["groups"]) == (40, 10)
    for comparison in results["comparisons"]:
        assert comparison["groups"] == 10
        assert comparison["sentence"].startswith("On 40 test examples (errors by 10 groups), ")
    for scores in read_scores(tmp_path / "run" / "scores_test.npz").values():
        assert len(np.unique(scores.groups_N)) == 10
    printed = capsys.readouterr().out
    assert "(errors by 10 groups)" in printed and "40 in 10 groups" in printed


def test_without_a_validation_split_nothing_is_trained(short_config, tmp_path):
    short_config.data.split.update(validation=0, test=8)
    with pytest.raises(ValueError, match=r"no validation examples.*raise config\.data\.split\.val"):
        train(short_config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_leaving_out_marked_examples_is_compared_with_all_of_them(short_config, tmp_path):
    train_split = load_data(short_config).split("train")
    with (tmp_path / "review.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=("id", "digest", "exclude"))
        writer.writeheader()
        for row, id_ in enumerate(train_split.ids_N.tolist()):
            digest = marks.text_digest(train_split, row)
            writer.writerow({"id": id_, "digest": digest, "exclude": int(row < 5)})
    short_config.review.exclude = str(tmp_path / "review.csv")
    short_config.integrate.update(methods=("interpolation", "soup"))
    short_config.train.keep_latest = 2
    results = train(short_config, tmp_path / "run")
    assert results["train_examples"] == len(train_split) - 5
    assert report.ALL_EXAMPLES in results["models"]
    assert f"the {report.ALL_EXAMPLES}" in results["conclusion"]
    other = json.loads((tmp_path / "run" / "all_examples" / "results.json").read_text("utf-8"))
    assert other["train_examples"] == len(train_split) and other["split"] == "validation"
    kinds = [row["kind"] for row in other["integration"]["candidates"]]
    assert kinds == ["interpolation", "single"]  # alone, whatever the run itself is joined with
    assert len(results["test_openings"]) == 1


def test_a_collapsed_run_starts_again_at_half_the_rate(short_config, tmp_path, monkeypatch):
    short_config.train.collapse = "restart"
    check_loss = collapse.CollapseGuard.check_loss

    def once(self, step, loss):
        check_loss(self, step, loss)
        if step == 2 and not collapse.history(tmp_path / "run"):
            raise collapse.Collapsed("the losses run away")

    monkeypatch.setattr(collapse.CollapseGuard, "check_loss", once)
    results = train(short_config, tmp_path / "run")
    rate = short_config.optimizer.learning_rate
    assert results["collapses"] == [{"found": "the losses run away", "learning_rate": rate}]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    again = [line["learning_rate"] for line in map(json.loads, lines) if "learning_rate" in line]
    before = (tmp_path / "run" / "checkpoints_collapsed_1" / "metrics.jsonl").read_text("utf-8")
    first = [json.loads(line)["learning_rate"] for line in before.splitlines()]
    assert again[0] == pytest.approx(first[0] / 2) and len(again) == 2


@pytest.fixture
def mask(monkeypatch):
    """A function that masks the labels of training examples, as sets without labels have it."""
    load_split = data.load_split

    def masked(share):
        def load(prepared, split, *, limit=0):
            examples = load_split(prepared, split, limit=limit)
            is_masked_N = (examples.ids_N * 7 % 20 < 20 * share) & (split == "train")
            labels_N = np.where(is_masked_N, -1, examples.labels_N)
            return dataclasses.replace(examples, labels_N=labels_N)

        monkeypatch.setattr(data, "load_split", load)

    return masked


def test_batches_without_a_label_are_skipped_and_counted_over_restarts(
    short_config, tmp_path, mask, capsys
):
    mask(share=0.7)
    short_config.data.batch_size = 2
    short_config.train.update(duration="24 steps", integrate=False)
    short_config.eval.every = "12 steps"

    def stop(step, rank):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(short_config, tmp_path, on_evaluation=stop)
    before = capsys.readouterr().out
    train(short_config, tmp_path)
    output = capsys.readouterr().out
    found = (tmp_path / "metrics.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in found.splitlines()]
    skipped = [line["step"] for line in lines if "skipped" in line]
    assert sorted(skipped + [line["step"] for line in lines if "loss" in line]) == [*range(1, 25)]
    assert skipped[0] <= 12 < skipped[-1]
    assert before.count("Note: every label") == 1
    assert f"Note: every label of the batch of step {skipped[0]} is masked (examples [" in before
    assert f"Note: {len(skipped)} of 24 steps were skipped: all labels" in output
    assert "Note: every label" not in output
    assert not re.search(r"\b(nan|inf)\b", before + output, re.IGNORECASE) and "null" not in found


def test_a_training_split_without_any_label_is_refused(short_config, tmp_path, mask, monkeypatch):
    mask(share=1)
    with pytest.raises(ValueError, match=r"none of the 96 train examples has a label"):
        train(short_config, tmp_path / "run")
    # Where that cannot be seen beforehand, the steps show it.
    monkeypatch.setattr(Classification, "check", lambda self, examples, split: None)
    short_config.train.duration = "20 steps"
    with pytest.raises(ValueError, match=r"every label of the first 12 steps is masked"):
        train(short_config, tmp_path / "run")


def test_seeds_by_one_flag_with_a_robustness_card(short_config, write_config, tmp_path):
    short_config.seeds = 2
    short_config.eval.robustness = True
    short_config.data.max_test_examples = 16
    recipe = write_config(short_config, tmp_path / "recipe.py")
    config = load_config(str(recipe))
    records = sweep.repeat(config, tmp_path / "runs", recipe=str(recipe))
    assert [record["split"] for record in records] == ["test"] * 2
    found = json.loads((tmp_path / "runs" / "comparison.json").read_text("utf-8"))
    assert [Path(name).name for name in found["runs"][0]["workdirs"]] == ["seed_0", "seed_1"]
    assert found["runs"][0]["count"] == 2 and found["runs"][0]["interval"]
    results = json.loads((tmp_path / "runs" / "seed_0" / "results.json").read_text("utf-8"))
    for card in results["robustness"].values():
        assert len(card) == 12 and {row["flipped"]["count"] for row in card} == {16}


@pytest.mark.parametrize(
    ("broken", "said"), [((4, 6), "not finite at step 4, before"), ((6,), r"at steps \[6\]: lower")]
)
def test_a_loss_that_is_not_finite_from_the_first_step_is_not_put_on_the_learning_rate(
    broken, said
):
    guard = SimpleNamespace(check_loss=lambda *_: None)
    progress = SimpleNamespace(update=lambda *_: None, log=lambda *_, **__: None)
    pending = Pending(progress, guard, first_step=4)
    for step in range(4, 8):
        loss = math.nan if step in broken else 1.0
        metrics = {"loss": loss, "gradient_norm": 1.0, "weight": 8.0}
        pending.add(step, metrics, {"segments_RxL": np.ones((1, 1)), "ids_B": np.arange(8)})
    with pytest.raises(ValueError, match=said) as error:
        pending.flush()
    assert ("learning_rate" in str(error.value)) == (broken == (6,))


@pytest.mark.parametrize("kind", ["class", "spans"])
def test_a_run_that_learns_nothing_says_so_once_at_its_half(kind, short_config, tmp_path, capsys):
    config = short_config
    config.model.update(head="linear", pooling="mean", label_words=())
    config.optimizer.learning_rate, config.train.duration = 1e-9, "8 steps"
    config.eval.every = "2 steps"
    config.eval.test, config.train.integrate = False, False
    if kind == "spans":
        rows = [{"text": f"第{i}家酒店很好", "spans": [[1, 9, "thing"]]} for i in range(1000, 1200)]
        path = tmp_path / "spans.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        config.task = "tagging"
        config.data.update(files=str(path), label_column="", spans_column="spans")
        config.data.template = "{text}"
    train(config, tmp_path / "run")
    output = capsys.readouterr().out
    said = "is no better than that of a guess" if kind == "class" else "the validation f1 is 0"
    assert output.count("the model has learned nothing") == 1 == output.count(said)
    assert "at step 4 of 8 the model has learned nothing" in output
    assert "start with config.model.head_start='probe'" in output
    config.model.head_start = "probe"  # which then is no advice
    train(config, tmp_path / "probed")
    output = capsys.readouterr().out
    assert "start with config.model.head_start" not in output
    if kind == "class":
        assert output.count("Lower or raise config.optimizer") == output.count("learned nothing")


@pytest.mark.parametrize("remat", ["none", "layers"])
def test_utilisation_of_a_known_device_is_that_of_the_stated_cost(
    short_config, tmp_path, monkeypatch, capsys, remat
):
    """Speed in real tokens times stated operations per position by the peak, also with remat."""
    monkeypatch.setattr(cost, "PEAKS", ((r"cpu", 99, 1e-3),))  # a GFLOP/s in float32
    short_config.model.remat, short_config.train.integrate = remat, False
    short_config.adapt.kind = "full"
    train(short_config, tmp_path / "run")
    output = capsys.readouterr().out
    stated = re.search(r"Computation: ([\d,.]+) GFLOP per example .* at (\d+) pos", output)
    operations = float(stated[1].replace(",", "")) * 1e9 / int(stated[2])
    lines = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "mfu" in line]
    assert len(lines) == 2
    for line in lines:
        speed, mfu = line["tokens_per_second"], line["mfu"]
        assert mfu == pytest.approx(speed * operations / 1e9, rel=0.03)  # stated in 3 digits
        assert 0 <= line["padding"] < 1
        assert f"  mfu {mfu:.0%}  " in output
    monkeypatch.setattr(cost, "PEAKS", ())
    train(short_config, tmp_path / "unknown")
    assert "mfu" not in capsys.readouterr().out
    assert not any("mfu" in line for line in read_metrics(tmp_path / "unknown/metrics.jsonl"))


def test_a_run_with_a_fused_kernel_trains_alike_and_states_the_same_cost(
    short_config, tmp_path, monkeypatch, capsys
):
    """With splash attention in Pallas' interpreter; the operations in it are counted."""
    name = "make_splash_mha_single_device"
    interpreted = functools.partial(getattr(splash_attention, name), interpret=True)
    monkeypatch.setattr(splash_attention, name, interpreted)
    monkeypatch.setattr(backbone, "_KERNELS", {"cpu": "splash"})
    short_config.adapt.kind, short_config.train.integrate = "full", False
    losses, costs = [], []
    for wanted in ("fused", "plain"):
        short_config.model.attention = wanted
        train(short_config, tmp_path / wanted)
        lines = read_metrics(tmp_path / wanted / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if "loss" in line])
        output = capsys.readouterr().out
        assert ("Attention: fused, by the splash kernel." in output) == (wanted == "fused")
        costs.append(re.search(r"Computation: .*", output)[0])
    assert costs[0] == costs[1]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0] != losses[1]


def test_padding_is_no_part_of_utilisation():
    logged, guard = [], SimpleNamespace(check_loss=lambda *_: None)
    progress = SimpleNamespace(
        update=lambda *_: None, log=lambda step, values, **_: logged.append(values)
    )
    pending = Pending(progress, guard, first_step=1, full_speed=1e9)
    for step, real in ((1, 8), (2, 4)):
        segments = np.arange(8).reshape(1, 2, 4) < real
        metrics = {"loss": 1.0, "gradient_norm": 1.0, "weight": 8.0}
        pending.add(step, metrics, {"segments_RxL": segments, "ids_B": np.arange(8)})
    pending.flush()
    assert "mfu" not in logged[0]
    assert logged[1]["padding"] == 0.25
    assert logged[1]["mfu"] == logged[1]["tokens_per_second"] / 1e9
