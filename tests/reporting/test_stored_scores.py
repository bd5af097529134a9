"""Scores come back from a file as they were, whatever the task; no file can call anything else."""

import json

import numpy as np
import pytest

from evaluation import generated_text, surprisal
from evaluation.metrics import Scores, estimate, mean
from reporting.stored_scores import _name, read_scores, write_scores
from tasks import all_classes, multi_task
from tasks.classification import ACCURACY, LOSS

CLASSES = [kind for name, kind in all_classes().items() if name != "multi_task"]
ALL = {metric.name: metric for kind in CLASSES for metric in kind.metrics}
ALL |= {
    metric.name: metric
    for metric in (*surprisal.BITS, surprisal.PERPLEXITY, *generated_text.METRICS)
}


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_metric_is_found_again(tmp_path, name):
    metric = ALL[name]
    statistics = {name: np.random.default_rng(0).random((7, 12))}
    scores = Scores((metric,), np.arange(7) * 3, statistics, truth={"a": ["x", 1]})
    write_scores(tmp_path / "scores.npz", {"一行": scores})
    found = read_scores(tmp_path / "scores.npz")["一行"]
    assert found.metrics[0]._replace(value=None) == metric._replace(value=None)
    assert found.truth == scores.truth
    np.testing.assert_array_equal(found.ids_N, scores.ids_N)
    assert _name(found.metrics[0].value) == _name(metric.value)
    if metric.value is mean:
        assert estimate(found, name) == estimate(scores, name)


def test_the_mean_of_several_tasks_and_rows_without_a_metric(tmp_path):
    metrics = multi_task._metrics({"a": (ACCURACY,), "b": (LOSS,)}, [2, 2])
    statistics = {metric.name: np.ones((5, 4)) for metric in metrics}
    rows = {
        "one": Scores(metrics, np.arange(5), statistics),
        "two": Scores(metrics, np.arange(5), {metrics[0].name: statistics[metrics[0].name]}),
    }
    write_scores(tmp_path / "scores.npz", rows)
    found = read_scores(tmp_path / "scores.npz")
    assert estimate(found["one"], "mean") == estimate(rows["one"], "mean")
    assert [metric.name for metric in found["two"].metrics] == ["mean"]


def test_groups_come_back_and_older_files_have_none(tmp_path):
    statistics, groups_N = {"accuracy": np.eye(4, 2)}, np.array([3, 0, 3, 1])
    scores = Scores((ACCURACY,), np.arange(4), statistics, groups_N=groups_N)
    write_scores(tmp_path / "scores.npz", {"row": scores, "older": Scores(*vars(scores).values())})
    with np.load(tmp_path / "scores.npz") as file:
        arrays = dict(file)
    del arrays["1/groups"]
    np.savez(tmp_path / "scores.npz", **arrays)
    row, older = read_scores(tmp_path / "scores.npz").values()
    assert row.groups_N.tolist() == [3, 0, 3, 1] and older.groups_N is None


def test_a_file_names_no_function_of_others(tmp_path):
    scores = Scores((ACCURACY,), np.arange(3), {"accuracy": np.ones((3, 2))})
    write_scores(tmp_path / "scores.npz", {"row": scores})
    with np.load(tmp_path / "scores.npz") as file:
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))
    for function in ("os:system", "evaluation.metrics:gone"):
        header["row"]["metrics"][0]["value"] = {"function": function}
        np.savez(tmp_path / "other.npz", **arrays | {"header": np.array(json.dumps(header))})
        with pytest.raises(ValueError, match="write them again with --mode=test"):
            read_scores(tmp_path / "other.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "scores.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="does not hold scores"):
        read_scores(tmp_path / "torn.npz")
