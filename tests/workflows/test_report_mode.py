"""Runs of real results files side by side: groups of seeds, what differs, and refusals by name."""

import json
import shutil

import numpy as np
import pytest

from configs import common
from evaluation.baselines import TFIDF
from evaluation.metrics import Scores, estimate, one_each
from evaluation.surprisal import PERPLEXITY
from reporting.report import FINETUNED, write_results
from reporting.stored_scores import read_scores, write_scores
from tasks.classification import ACCURACY
from workflows import report as comparison


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a finished run's files, whose model is right with a probability."""

    def make(
        name,
        share,
        *,
        examples="abc",
        split="test",
        labels=("a", "b"),
        metric=ACCURACY,
        known=True,
        **changes,
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = common.get_config()
        config.update_from_flattened_dict(changes)
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
        rng = np.random.default_rng(config.seed)
        hard_N = np.random.default_rng(99).random(400)  # the same for all runs
        right_N = hard_N + rng.normal(0, 0.1, 400) < share
        rows = {
            row: Scores(
                (metric,), np.arange(400), {metric.name: one_each(values) * known}, truth="t"
            )
            for row, values in ((TFIDF, hard_N < 0.5), (FINETUNED, right_N))
        }
        write_scores(folder / f"scores_{split}.npz", rows)
        write_results(
            folder,
            rows,
            floor=TFIDF,
            fingerprints={split: examples},
            split=split,
            metric=metric,
            integration=None,
            leaked_ids=np.array([], int),
            extra={"labels": list(labels), "test_openings": [{"time": "now"}]},
        )
        return folder

    return make


def test_seeds_are_one_group_and_the_better_setting_is_told_from_chance(make_run, tmp_path, capsys):
    for seed in range(3):
        make_run(f"low_{seed}", 0.6, seed=seed, **{"optimizer.learning_rate": 1e-5})
        make_run(f"high_{seed}", 0.8, seed=seed, **{"optimizer.learning_rate": 1e-4})
    make_run("same", 0.6, seed=5, **{"optimizer.learning_rate": 1e-5, "model.dropout": 0.3})
    runs = comparison.find_runs([str(tmp_path / "low_*"), str(tmp_path / "*")], tmp_path)
    found = comparison.compare(runs, tmp_path)
    low, high, _ = found["runs"]
    assert [row["count"] for row in found["runs"]] == [3, 3, 1]
    assert [row["repeats"] for row in found["runs"]][1:] == [["0/0", "1/0", "2/0"], ["5/0"]]
    assert low["differs"] == {"optimizer.learning_rate": 1e-5, "model.dropout": 0.0}
    assert low["mean"] == pytest.approx(np.mean(low["values"]))
    assert low["test_openings"] == 3
    assert high["mean"] - low["mean"] > 0.1
    better, chance = found["comparisons"]
    assert better["second"] == chance["second"] == "low_0 and 2 more runs"
    assert better["value"] == pytest.approx(high["mean"] - low["mean"])
    assert better["p_holm"] < 0.01 and "likely real" in better["sentence"]
    assert chance["p_holm"] > 0.05 and "may be chance" in chance["sentence"]
    assert chance["p_seeds"] is None and better["p_seeds"] < 0.05
    assert "over the seeds by Welch's test" in better["sentence"]
    assert "Welch" not in chance["sentence"]
    # The pairs of runs with the same seed are shares of 0 and 1, their mean is none.
    assert better["p_mcnemar"] is None
    assert list(better["p_mcnemar_by_repeat"]) == ["0/0", "1/0", "2/0"]
    assert max(better["p_mcnemar_by_repeat"].values()) < 0.01
    assert chance["p_mcnemar_by_repeat"] == {}  # of other seeds
    assert json.loads((tmp_path / "comparison.json").read_text("utf-8"))["runs"][0] == low
    printed = capsys.readouterr().out
    assert better["sentence"] in printed and "optimizer.learning_rate=0.0001" in printed


def test_the_difference_of_groups_is_that_of_their_means_for_every_metric(make_run, tmp_path):
    folders = [
        make_run(f"{share}_{seed}", share, metric=PERPLEXITY, seed=seed, **{"model.dropout": share})
        for share in (0.4, 0.9)
        for seed in range(2)
    ]
    found = comparison.compare(folders, tmp_path)
    low, high = found["runs"]
    own = [estimate(read_scores(f / "scores_test.npz")["fine-tuned"], "auto") for f in folders]
    assert [*low["values"], *high["values"]] == [each["value"] for each in own]
    (difference,) = found["comparisons"]
    assert difference["value"] == pytest.approx(high["mean"] - low["mean"], rel=1e-12)


def test_single_runs_have_one_mcnemar(make_run, tmp_path):
    folders = make_run("a", 0.6), make_run("b", 0.8, **{"model.dropout": 0.1})
    (found,) = comparison.compare(folders, tmp_path)["comparisons"]
    assert found["p_mcnemar_by_repeat"] == {"0/0": found["p_mcnemar"]}
    assert "by McNemar's test" in found["sentence"]


def test_one_run_is_never_two_seeds(make_run, tmp_path, monkeypatch):
    folder = make_run("a", 0.6)
    monkeypatch.chdir(tmp_path)
    assert comparison.find_runs(["a", str(folder), "./*"], tmp_path) == [folder]
    shutil.copytree(folder, tmp_path / "copy")
    other = make_run("other", 0.6, seed=1)
    with pytest.raises(ValueError, match=r"/a and .*/copy have .*, seed and fold \(0/0\): "):
        comparison.compare([folder, other, tmp_path / "copy"], tmp_path)


def test_runs_of_one_name_are_told_apart(make_run, tmp_path):
    folders = make_run("x/run", 0.6), make_run("y/run", 0.8, **{"model.dropout": 0.1})
    (found,) = comparison.compare(folders, tmp_path)["comparisons"]
    assert (found["first"], found["second"]) == ("y/run", "x/run")


def test_a_metric_without_a_value_is_no_crash(make_run, tmp_path, capsys):
    folders = make_run("a", 0.6, known=False), make_run("b", 0.8, **{"model.dropout": 0.1})
    found = comparison.compare(folders, tmp_path)
    assert "b and a cannot be compared in accuracy" in found["conclusion"]
    assert "nan" not in capsys.readouterr().out


def test_folders_are_found_whatever_their_names(make_run, tmp_path, monkeypatch):
    run = make_run("[a] 1/run", 0.6)
    folder = run.parent
    assert comparison.find_runs((), folder) == comparison.find_runs((), run) == [run]
    assert comparison.find_runs([str(run)], tmp_path) == [run]
    monkeypatch.setenv("HOME", str(tmp_path))
    other = make_run("plain", 0.6)
    assert comparison.find_runs(["~/pl*"], tmp_path) == [other]
    assert comparison.compare([other], tmp_path, "~/plain")["runs"][0]["count"] == 1


def test_the_baseline_can_be_named(make_run, tmp_path):
    first, second = make_run("a", 0.6), make_run("b", 0.8, **{"model.dropout": 0.1})
    found = comparison.compare([first, second], tmp_path, str(second))
    assert [each["second"] for each in found["comparisons"]] == ["b"]
    assert found["comparisons"][0]["value"] < 0
    with pytest.raises(ValueError, match=r"config\.report\.baseline: c is none of the runs"):
        comparison.compare([first, second], tmp_path, "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "tagging"}, "their task differ: 'classification' and 'tagging'"),
        ({"labels": ("a", "c")}, "their labels differ"),
        ({"examples": f"{'0' * 64} b"}, r"their splits .* 'abc' and '0{12} b'"),
        ({"examples": "xyz"}, r"their splits \(by fingerprint\) differ: 'abc' and 'xyz'"),
    ],
)
def test_runs_about_different_questions_are_refused_by_name(make_run, tmp_path, changes, message):
    folders = make_run("one", 0.6), make_run("two", 0.6, **changes)
    with pytest.raises(ValueError, match=rf".*one and .*two cannot be compared, {message}"):
        comparison.compare(folders, tmp_path)


def test_a_tested_run_and_others_are_compared_by_the_validation_split(make_run, tmp_path, capsys):
    tested = make_run("one", 0.6)
    other = make_run("two", 0.6, split="validation", **{"model.dropout": 0.1})
    with pytest.raises(ValueError, match=r"one holds results.json but no scores_validation\.npz"):
        comparison.compare([tested, other], tmp_path)
    shutil.copy(make_run("three", 0.6, split="validation") / "scores_validation.npz", tested)
    results = json.loads((tested / "results.json").read_text("utf-8"))
    results["fingerprints"]["validation"] = "abc"
    (tested / "results.json").write_text(json.dumps(results), "utf-8")
    assert comparison.compare([tested, other], tmp_path)["split"] == "validation"
    assert "compared by the validation split" in capsys.readouterr().out


def test_patterns_that_stand_for_nothing_and_old_runs_are_refused(make_run, tmp_path):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="matches 1 folders, none of them with results.json"):
        comparison.find_runs([str(tmp_path / "unf*")], tmp_path)
    with pytest.raises(ValueError, match="matches 0 folders"):
        comparison.find_runs([str(tmp_path / "nowhere*")], tmp_path)
    folder = make_run("old", 0.6)
    assert comparison.find_runs((), folder) == comparison.find_runs((), tmp_path) == [folder]
    (folder / "scores_test.npz").unlink()
    with pytest.raises(ValueError, match="no scores_test.npz: it was not evaluated"):
        comparison.compare([folder], tmp_path)
