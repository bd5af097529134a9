"""Sweeps: names, commands, and runs that fail, stop and go on."""

import json
import math
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from configs import common
from configs.overrides import load_config
from evaluation.metrics import Scores, one_each
from input_pipeline.files import write_json, write_text
from reporting import report
from reporting.stored_scores import write_scores
from tasks.classification import ACCURACY
from training.interruption import Interrupted
from workflows import search, sweep
from workflows.planning import command, plan, run_name
from workflows.runs import outcome
from workflows.train import train

RECIPE = "configs/reviews.py"
SWEEP = """
from configs.sweeping import log_uniform, product

def sweep():
    rates = product({"optimizer.learning_rate": (3e-3, 1e-3)})
    return rates + [{"data.files": "absent.csv"}]

def space():
    return {"optimizer.learning_rate": log_uniform(1e-5, 1e-1)}
"""


def planned(*entries, workdir="runs/some sweep", **common_values):
    config = load_config(RECIPE)
    config.update_from_flattened_dict(common_values)
    return plan(config, Path(workdir), list(entries), recipe=RECIPE)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"seed": 1, "optimizer.learning_rate": 1e-4}, "learning_rate=0.0001,seed=1"),
        ({"data.split.seed": 3, "seed": 0}, "split.seed=3,seed=0"),
        ({"adapt.kind": "lora", "optimizer.learning_rate": 1}, "adapt.kind=lora,learning_rate=1.0"),
        ({}, "unchanged"),
    ],
)
def test_a_run_is_named_after_its_values(overrides, name):
    (run,) = planned(overrides)
    assert (run.name, run.workdir) == (name, Path("runs/some sweep") / name)


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=9, unique=True))
def test_names_are_unique_and_fit_for_a_file_system(texts):
    config, names = common.get_config(), set()
    for text in texts:
        config.data.template = text
        names.add(run_name(config, ["data.template", "seed"]))
    assert len(names) == len(texts)
    for name in names:
        assert not set(name) & set('/\\:*?"<>|\0\n ') and len(name.encode()) < 255


@settings(max_examples=15)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "optimizer.learning_rate": st.floats(1e-30, 1e30),
            "data.list_separator": st.text(st.characters(exclude_categories=["Cs", "Cc"])),
            "model.head_bias": st.booleans(),
            "seed": st.integers(0, 2**32 - 1),
            "model.label_words": st.tuples(*2 * [st.text(min_size=1)]),
            "optimizer.lr_table": st.just(((".*'a b'", None), (".*", 0.5))),
        },
    )
)
def test_a_command_says_the_config_of_its_run(overrides):
    (run,) = planned(overrides)
    words = shlex.split(command(run, RECIPE))
    assert words[:2] == ["python", "main.py"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[1:])  # where config_flags looks for overrides
        values(words[1:])
    assert values.config.to_json() == run.config.to_json()
    assert Path(values.workdir) == run.workdir


@pytest.mark.parametrize("key", ["seed", "data.split.fold"])
def test_a_sweep_leaves_the_test_split_shut_unless_it_is_of_repeats(key):
    assert [run.config.eval.test for run in planned({key: 0}, {key: 1})] == [True, True]
    (run,) = planned({"seed": 0, "optimizer.learning_rate": 1e-3})
    assert not run.config.eval.test


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "is empty"),
        ([{"optimizer.learning_rat": 1.0}], "nearest is --config.optimizer.learning_rate"),
        ([{"optimizer": 1}], "a group of keys"),
        ([{"optimizer.learning_rate": "1"}], "learning_rate to '1', expected float like 0.0001"),
        ([{"seed": 1}, {"seed": 0}, {}], "runs 2 and 3 of the sweep.*the same"),
        ([{"data.batch_size": 0}], r"run \{'data.batch_size': 0\}: .*at least 1 and"),
        ([{"seeds": 3}], "cannot set seeds"),
    ],
)
def test_mistakes_are_named_before_anything_runs(entries, message):
    with pytest.raises(ValueError, match=message):
        planned(*entries)


@pytest.fixture(scope="module")
def recipe(make_config, write_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    config = make_config()
    config.data.prepared_dir = str(folder / "prepared")
    config.train.update(duration="2 steps", integrate=False, checkpoint_every="1 step")
    config.eval.update(every="1 step", calibration="none")
    config.adapt.kind = "head"  # compiles in half the time
    path = write_config(config, folder / "recipe.py")
    path.write_text(path.read_text() + SWEEP)
    return str(path)


def test_a_stopped_sweep_goes_on_past_finished_and_failed_runs(recipe, tmp_path, monkeypatch):
    config, calls = load_config(recipe), []
    config.model.dtype = "auto"  # of a finished run, what it was

    def stopped_in_the_second(config, workdir, on_evaluation=None):
        def stop(step, rank):
            raise Interrupted(f"after step {step}")

        calls.append(workdir.name)
        return train(config, workdir, on_evaluation=stop if len(calls) == 2 else None)

    monkeypatch.setattr("workflows.runs.train", stopped_in_the_second)
    with pytest.raises(Interrupted, match="after step 1"):
        sweep.sweep(config, tmp_path, recipe=recipe)
    first = [path for path in (tmp_path / "learning_rate=0.003").rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first}
    left = len(jax.live_arrays())
    with pytest.raises(ValueError, match=r"(?s)1 of 3 runs .*files=absent.csv: .*absent.csv"):
        sweep.sweep(config, tmp_path, recipe=recipe)
    assert calls == ["learning_rate=0.003", *["learning_rate=0.001"] * 2, "files=absent.csv"]
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first}
    assert len(jax.live_arrays()) <= left
    steps = [json.loads(line) for line in (tmp_path / calls[1] / "metrics.jsonl").open()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2]
    records = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [record["status"] for record in records] == ["finished", "finished", "failed"]
    assert [record["split"] for record in records[:2]] == ["validation"] * 2
    assert not list(tmp_path.rglob("test_openings.jsonl"))
    assert len(list(Path(config.data.prepared_dir).glob("*/*"))) == 1  # shared by all


def write_finished(run, share, *, fingerprint="abc"):
    """Writes what comparisons read of a run whose model is right with a probability."""
    write_text(run.workdir / "config.json", run.config.to_json())
    right_N = np.random.default_rng(run.config.seed).random(400) < share
    scores = Scores((ACCURACY,), np.arange(400), {"accuracy": one_each(right_N)})
    write_scores(run.workdir / "scores_validation.npz", {report.FINETUNED: scores})
    results = {"labels": ["a", "b"], "split": "validation", "metric": "accuracy"}
    results |= {"fingerprints": {"validation": fingerprint}, "test_openings": []}
    write_json(run.workdir / "results.json", results)
    return run.facts | {"status": "finished"} | outcome(run)


def test_all_are_compared_with_the_first_run_and_the_best_is_announced(tmp_path, capsys):
    runs = planned(*({"optimizer.learning_rate": r} for r in (1e-3, 1e-4, 1e-5)), workdir=tmp_path)
    records = [write_finished(*each) for each in zip(runs, (0.6, 0.8, 0.5), strict=True)]
    assert sweep.conclude(runs, records, workdir=tmp_path, recipe=RECIPE) == records
    found = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    assert [each["second"] for each in found["comparisons"]] == [runs[0].name] * 2
    assert f"The best on the validation split is {runs[1].name}. To" in capsys.readouterr().out


def test_runs_of_different_splits_are_shown_and_nothing_else_is_lost(tmp_path, capsys):
    entries = [{"data.split.fold": fold, "data.split.folds": 3} for fold in range(3)]
    runs = planned(*entries, workdir=tmp_path)
    records = [
        write_finished(run, share, fingerprint=f"of fold {fold}")
        for fold, (run, share) in enumerate(zip(runs[:2], (0.6, 0.8), strict=True))
    ]
    records.append(runs[2].facts | {"status": "failed", "message": "no memory"})
    with pytest.raises(ValueError, match=r"(?s)1 of 3 runs .*: no memory"):
        sweep.conclude(runs, records, workdir=tmp_path, recipe=RECIPE)
    said = capsys.readouterr().out
    assert "The runs are not compared example by example: " in said
    assert "their splits (by fingerprint) differ: 'of fold 0' and 'of fold 1'" in said
    assert all(str(run.workdir) in said for run in runs[:2])
    mean = 50 * sum(record["value"] for record in records[:2])
    assert re.search(rf"folds=3 +accuracy, % +{mean:.1f}", said)


def test_given_folds_are_one_setting_with_mean_and_deviation_on_the_test_split(
    make_config, write_config, reviews, tmp_path, capsys
):
    config = make_config()
    parts = {"train_0": reviews[:60], "train_1": reviews[60:120], "dev": reviews[120:150]}
    for name, rows in (parts | {"test": reviews[150:]}).items():
        lines = (json.dumps({"text": t, "label": y}, ensure_ascii=False) for t, y in rows)
        write_text(tmp_path / f"{name}.jsonl", "\n".join(lines) + "\n")
    config.data.update(files=str(tmp_path / "train_{fold}.jsonl"), split={"kind": "given"})
    config.data.update(
        validation_files=str(tmp_path / "dev.jsonl"), test_files=str(tmp_path / "test.jsonl")
    )
    config.train.update(duration="2 steps", integrate=False, checkpoint_every="100%")
    config.eval.every, config.adapt.kind = "100%", "head"
    path = write_config(config, tmp_path / "recipe.py")
    path.write_text(path.read_text() + "def sweep():\n")
    path.write_text(path.read_text() + "    return [{'data.split.fold': k} for k in (0, 1)]\n")
    records = sweep.sweep(config, tmp_path / "runs", recipe=str(path))
    assert [record["split"] for record in records] == ["test", "test"]
    (row,) = json.loads((tmp_path / "runs/comparison.json").read_text("utf-8"))["runs"]
    assert row["repeats"] == ["0/0", "0/1"] and row["differs"] == {}
    assert row["values"] == [record["value"] for record in records]
    assert row["deviation"] == pytest.approx(np.std(row["values"], ddof=1))
    assert "fold=0 and 1 more run" in capsys.readouterr().out


def test_commands_are_printed_and_nothing_runs(recipe, tmp_path, capsys):
    config = load_config(recipe)
    config.search.print_commands = True
    config.seeds = 2
    sweep.sweep(config, tmp_path, recipe=recipe)
    sweep.repeat(config, tmp_path, recipe=recipe)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("python main.py")]) == 2 * 3 + 2
    assert "seed_1" in lines[-1] and "--config.seed=1" in lines[-1]
    assert not list(tmp_path.iterdir())


def test_a_stopped_search_tries_what_an_unstopped_one_tries(recipe, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    config, ran = load_config(recipe), []
    config.search.trials = 12

    def train_a_parabola(run, on_evaluation):
        rate = run.config.optimizer.learning_rate
        for step in range(1, 5):
            on_evaluation(step, [-((math.log10(rate) + 3) ** 2) - 1 / step])
        ran.append(run.name)
        if len(ran) == stop_after:
            raise Interrupted
        return run.facts | {"status": "finished", "rank": -((math.log10(rate) + 3) ** 2)}

    monkeypatch.setattr("workflows.runs.run_one", train_a_parabola)
    stop_after = 0
    planned, whole = search.search(config, tmp_path / "whole", recipe=recipe)
    assert len(planned) == 12 and not planned[0].config.eval.test
    pruned = [record for record in whole if record["status"] == "pruned"]
    assert pruned and all(len(record["evaluations"]) < 5 for record in pruned)
    ran.clear()
    stop_after = 4
    with pytest.raises(Interrupted):
        search.search(config, tmp_path / "stopped", recipe=recipe)
    stop_after = 0
    assert search.search(config, tmp_path / "stopped", recipe=recipe)[1] == whole
    best = max((record for record in whole if "rank" in record), key=lambda r: r["rank"])
    assert 3e-4 < best["overrides"]["optimizer.learning_rate"] < 3e-3


def test_a_recipe_without_a_sweep_is_named(tmp_path):
    config = load_config("configs/poems.py")
    with pytest.raises(ValueError, match=r"configs/poems.py has no function sweep\(\)"):
        sweep.sweep(config, tmp_path, recipe="configs/poems.py")
