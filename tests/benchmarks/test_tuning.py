"""The bench of regularisers: its differences, and small sets from the first run to the table."""

import json
import math
import shutil

import numpy as np
import pytest

from benchmarks import tuning
from configs import tuning_bench
from configs.checks import check_values
from evaluation.metrics import Metric, Scores, mean, one_each
from tasks import KINDS

ACCURACY = Metric("accuracy", "accuracy, %", mean, scale=100, digits=1)


def method(rights):
    """Runs of which each example is right or wrong."""
    scores = [
        Scores((ACCURACY,), np.arange(len(right)), {"accuracy": one_each(np.array(right))})
        for right in rights
    ]
    values = np.array([100 * np.mean(right) for right in rights])
    return tuning.Method(scores, values, np.ones(len(rights)), 0)


def test_a_difference_joins_the_scatter_over_repeats_and_over_examples():
    rng = np.random.default_rng(0)
    first, second = (rng.random((5, 200)) < share for share in (0.8, 0.7))
    found = tuning.difference(method(first), method(second))
    apart_R = 100 * (first.mean(axis=1) - second.mean(axis=1))
    apart_N = 100 * (first.mean(axis=0) - second.mean(axis=0))
    expected = np.var(apart_R, ddof=1) / 5 + np.var(apart_N, ddof=1) / 200
    assert found.value == pytest.approx(apart_R.mean())
    assert found.error == pytest.approx(math.sqrt(expected))
    assert 4 < found.freedom < 203
    assert found.reach > 1.96 * found.error


def test_equal_runs_differ_by_nothing():
    same = method(np.eye(6, dtype=bool)[:3])
    found = tuning.difference(same, same)
    assert (found.value, found.p) == (0, 1)


def test_the_mean_over_sets_counts_each_alike():
    parts = [tuning.Difference(1.0, 0.3, 4.0), tuning.Difference(3.0, 0.4, 4.0)]
    found = tuning.over_sets(parts)
    assert found.value == 2 and found.error == pytest.approx(0.25)
    assert found.freedom == pytest.approx(0.25**4 / ((0.15**4 + 0.2**4) / 4))


@pytest.mark.parametrize("name", tuning_bench.SETS)
def test_every_run_of_every_set_is_valid_and_no_two_are_the_same(name):
    config = tuning_bench.get_config(name)
    check_values(config, tasks=KINDS)
    assert not config.eval.test
    runs = list(tuning.entries(name, config, 2))
    assert len({json.dumps(overrides, sort_keys=True) for _, overrides in runs}) == len(runs)
    for _, overrides in runs:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(overrides)
        check_values(changed, tasks=KINDS)
    longest = {method: o.get("train.duration") for method, o in runs}
    assert longest["plain, 3 x as long"] != longest["plain"]


@pytest.mark.long
def test_sets_are_trained_once_and_compared(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        tuning_bench,
        "METHODS",
        {name: tuning_bench.METHODS[name] for name in ("plain", "NEFTune", "FGM")},
    )
    config = make_config()
    config.train.update(duration="1 epoch", integrate=False)
    config.eval.update(every="100%", test=False)
    recipe = "configs/tuning_bench.py:reviews_128"
    tuning.run(config, tmp_path, recipe=recipe, repeats=2)
    shutil.copytree(tmp_path / "reviews_128", tmp_path / "reviews_1280")
    capsys.readouterr()
    tuning.run(config, tmp_path, recipe=recipe, repeats=2)
    assert capsys.readouterr().out.count("Finished before") == 8  # three methods, plain twice
    tuning.show(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| plain, 2 x as long | 1 |") for line in lines) == 2
    assert sum(line.startswith("| NEFTune | ") for line in lines) == 3
    assert sum(line.startswith("| FGM | 2 | ") for line in lines) == 3  # passes, and sets
    assert any(line.endswith("of reviews_128, reviews_1280") for line in lines)
    assert any("would be significant in 80 of 100" in line for line in lines)


def test_methods_may_be_chosen_and_must_exist():
    config = tuning_bench.get_config("eprstmt")
    runs = {method for method, _ in tuning.entries("eprstmt", config, 1, ["FreeLB", "mixout"])}
    assert runs == {"plain", "FreeLB", "mixout", "plain, 3 x as long"}
    with pytest.raises(ValueError, match="'Freelb' is none of plain, dropout"):
        list(tuning.entries("eprstmt", config, 1, ["Freelb"]))


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name a set by --config first"):
        tuning.show(tmp_path)
