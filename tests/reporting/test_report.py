"""Properties of the report: what it says is what was measured."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from evaluation.metrics import Metric, Scores, class_counts, macro_f1, mean, one_each
from input_pipeline.files import write_jsonl
from reporting import figures, report
from training.progress import Progress

FLOOR = "TF-IDF + logistic regression"
MAJORITY = "majority class"
METRICS = (
    Metric("accuracy", "accuracy, %", mean, scale=100, digits=1),
    Metric("macro_f1", "macro-F1, %", macro_f1, scale=100, digits=1),
    Metric("loss", "loss", mean, False),
)


def make_rows(right_of_100):
    """Scores of 100 examples of which the given number is right, by row name."""
    labels_N = np.arange(100, dtype=np.int32) % 2
    rows = {}
    for name, right in right_of_100.items():
        right_N = np.arange(100) < right
        statistics = {
            "accuracy": one_each(right_N),
            "macro_f1": class_counts(labels_N, np.where(right_N, labels_N, 1 - labels_N), 2),
            "loss": one_each(np.where(right_N, 0.1, 2.0)),
        }
        rows[name] = Scores(METRICS, np.arange(100), statistics)
    return rows


def write(workdir, rows, **changes):
    options = {
        "floor": FLOOR,
        "fingerprints": {"test": "abc"},
        "split": "test",
        "metric": METRICS[0],
        "integration": None,
        "leaked_ids": np.arange(0),
        "extra": {"train_examples": 7},
    }
    return report.write_results(workdir, rows, **(options | changes))


def test_results_json_holds_what_was_returned_and_every_number(tmp_path):
    rows = make_rows({MAJORITY: 50, FLOOR: 80, report.FINETUNED: 90})
    curve = [{"alpha": a, "value": 0.8 + a / 10, "standard_error": math.nan} for a in (0.0, 1.0)]
    results = write(tmp_path, rows, integration={"alpha": 1.0, "curve": curve})
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == results  # no NaN, which is not JSON
    assert list(results["models"]) == list(rows)
    assert results["models"][report.FINETUNED]["accuracy"]["value"] == 0.9
    assert results["minus_baseline"][report.FINETUNED]["value"] == pytest.approx(0.1)
    assert results["integration"]["curve"][0]["standard_error"] is None
    assert (results["fingerprints"], results["train_examples"]) == ({"test": "abc"}, 7)
    assert results["split"] == "test"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        (90, "the fine-tuned model beats TF-IDF + logistic regression by 10.0 ± 3.0 points"),
        (70, "the fine-tuned model falls behind TF-IDF + logistic regression by 10.0 ± 3.0 points"),
        (81, "by 1.0 ± 1.0 points of accuracy (95 % interval 0.0 to 3.0; p = "),
        (
            80,
            "the fine-tuned model is exactly as good as TF-IDF + logistic regression in accuracy.",
        ),
    ],
)
def test_conclusion_is_honest_whichever_sign(tmp_path, right, sentence):
    results = write(tmp_path, make_rows({FLOOR: 80, report.FINETUNED: right}))
    assert sentence in results["conclusion"]
    assert ("may be chance" in results["conclusion"]) == (right == 81)
    assert ("likely real" in results["conclusion"]) == (right in (70, 90))


def test_console_shows_all_rows_and_the_conclusion_unbroken(tmp_path, capsys):
    rows = make_rows({MAJORITY: 50, FLOOR: 80, report.INTEGRATED + " (alpha 0.5)": 90})
    results = write(tmp_path, rows)
    shown = capsys.readouterr().out
    assert results["conclusion"] in shown
    for name, cell in zip(rows, ("50.0 ± 5.0", "80.0 ± 4.0", "90.0 ± 3.0"), strict=True):
        assert any(name in line and cell in line for line in shown.splitlines())
    assert report.show_results(tmp_path) == results
    assert capsys.readouterr().out == shown


def test_leaked_examples_are_left_out_of_a_second_number(tmp_path, capsys):
    rows = make_rows({FLOOR: 80, report.FINETUNED: 90})
    results = write(tmp_path, rows, leaked_ids=np.arange(50))  # of which both rows know all
    clean = [results["models"][name]["leak_free"]["accuracy"] for name in rows]
    assert [(part["value"], part["count"]) for part in clean] == [(0.6, 50), (0.8, 50)]
    assert results["models"][report.FINETUNED]["accuracy"]["value"] == 0.9
    shown = capsys.readouterr().out
    assert "without leaks" in shown and "80.0 ± 5.7" in shown
    assert "leak_free" not in write(tmp_path, rows)["models"][report.FINETUNED]


def test_a_gain_over_the_encoder_alone_is_said_beside_that_over_the_baseline(tmp_path):
    rows = make_rows({FLOOR: 80, report.ENCODER: 89, report.FINETUNED: 90})
    conclusion = write(tmp_path, rows)["conclusion"].split("\n")
    assert "beats TF-IDF + logistic regression by 10.0 ± 3.0" in conclusion[0]
    assert "beats the encoder alone by 1.0 ± 1.0" in conclusion[1]
    assert "may be chance" in conclusion[1]


def test_the_integrated_model_is_compared_with_the_fine_tuned(tmp_path):
    last = f"{report.INTEGRATED} (alpha 0.5)"
    rows = make_rows({FLOOR: 80, report.ENCODER: 84, report.FINETUNED: 90, last: 91})
    results = write(tmp_path, rows)
    assert [each["second"] for each in results["comparisons"]] == [
        FLOOR,
        report.ENCODER,
        report.FINETUNED,
    ]
    *_, tuned = results["conclusion"].split("\n")
    assert f"the {last} model beats the fine-tuned model by 1.0 ± 1.0 points" in tuned
    assert "McNemar" in tuned and "for 3 comparisons" in tuned and "may be chance" in tuned
    assert results["comparisons"][0]["p_holm"] > results["comparisons"][0]["p_bootstrap"]
    assert results["minus_baseline"][report.FINETUNED]["value"] == pytest.approx(0.1)
    rows[report.BOTH] = rows.pop(report.FINETUNED)  # with features, a fine-tuned model is this
    rows[last] = rows.pop(last)
    assert "the encoder and features model by 1.0" in write(tmp_path, rows)["conclusion"]


def test_a_metric_without_a_value_concludes_nothing(tmp_path):
    rows = make_rows({FLOOR: 80, report.FINETUNED: 90})
    rows[FLOOR].statistics["accuracy"][:] = 0
    results = write(tmp_path, rows)
    sentence = (
        "the fine-tuned model and TF-IDF + logistic regression cannot be compared in accuracy"
    )
    assert sentence in results["conclusion"]
    assert "nan" not in results["conclusion"]
    assert results["comparisons"][0]["value"] is results["comparisons"][0]["p_holm"] is None


def test_runs_are_named_by_the_shortest_ends_that_tell_them_apart():
    def row(folder, count=1):
        return {"workdirs": [folder], "count": count}

    assert report.run_titles([row("/w/a/run"), row("/w/b/run", 3)]) == [
        "a/run",
        "b/run and 2 more runs",
    ]
    assert report.run_titles([row("/w/a/one"), row("/w/b/two", 2)]) == [
        "one",
        "two and 1 more run",
    ]
    assert report.short_names([Path("/a"), Path("/b/a")]) == {Path("/a"): "/a", Path("/b/a"): "b/a"}
    assert report.short_names([Path("x/a"), Path("x/a")]) == {Path("x/a"): "a"}
    assert report.short_names([]) == {}


def test_markdown_table_from_the_file_equals_that_from_the_run(tmp_path):
    rows = make_rows({FLOOR: 80, report.FINETUNED: 90})
    results = write(tmp_path, rows)
    table = report.markdown_table(results)
    assert table == report.markdown_table(
        json.loads((tmp_path / "results.json").read_text("utf-8"))
    )
    lines = table.splitlines()
    assert lines[0] == "| model | accuracy, % | macro-F1, % | loss | examples |"
    assert lines[3].startswith("| fine-tuned | 90.0 ± 3.0 | 90.0 ± 3.0 |")
    assert {line.count("|") for line in lines} == {6}


def test_results_need_the_same_examples_and_the_same_truth(tmp_path):
    rows = make_rows({FLOOR: 80, report.FINETUNED: 90})
    rows[report.FINETUNED] = rows[report.FINETUNED].without(np.arange(60, 100))
    with pytest.raises(ValueError, match="60 and 100 examples cannot be paired"):
        write(tmp_path, rows)
    rows = make_rows({FLOOR: 80, report.FINETUNED: 90})
    rows[FLOOR] = dataclasses.replace(rows[FLOOR], truth="of another task")
    with pytest.raises(ValueError, match="true answers must be the same"):
        write(tmp_path, rows)
    assert not (tmp_path / "results.json").exists()


def test_rows_may_have_metrics_that_others_lack(tmp_path):
    """A floor without a loss has an empty cell, and is compared in what both have."""
    rows = make_rows({FLOOR: 80, report.FINETUNED: 90})
    del rows[FLOOR].statistics["loss"]
    short = dataclasses.replace(rows[FLOOR], metrics=METRICS[:2])
    results = write(tmp_path, {**rows, FLOOR: short}, metric=METRICS[2])
    assert (
        "beats TF-IDF + logistic regression by 10.0 ± 3.0 points of accuracy"
        in (results["conclusion"])
    )
    assert "| 80.0 ± 4.0 | 80.0 ± 4.0 |  | 100 |" in report.markdown_table(results)


def test_less_is_better_where_the_metric_says_so(tmp_path):
    rows = make_rows({FLOOR: 80, report.FINETUNED: 90})
    assert "beats" in write(tmp_path, rows, metric=METRICS[2])["conclusion"]


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize(("steps", "integrated"), [(0, False), (3, False), (50, True)])
def test_curves_get_one_panel_for_each_thing_measured(tmp_path, steps, integrated):
    with Progress(tmp_path, 100) as progress:
        for step in range(1, steps + 1):
            progress.log(step, {"loss": 1 / step, "learning_rate": 1e-5})
        if steps:
            progress.log(steps, {"validation/accuracy": 0.8, "validation/loss": math.nan})
    curve = [{"alpha": a, "value": a, "standard_error": 0.1} for a in (0.0, 0.5, 1.0)]
    integration = {"alpha": 0.5, "curve": curve} if integrated else None
    figures.save_curves(tmp_path, metric=report.shown(METRICS[0]), integration=integration)
    _, width, _ = image.imread(tmp_path / "curves.png").shape
    assert width == 540 * max(1, 2 * bool(steps) + integrated)


def test_errors_are_the_wrong_ones_with_the_most_confident_first(tmp_path):
    records = [
        {
            "id": id_,
            "text": "字",
            "label": "好评",
            "prediction": prediction,
            "wrong": prediction != "好评",
            "confidence": share,
        }
        for id_, prediction, share in ((1, "差评", 0.6), (2, "好评", 0.1), (3, "差评", 0.9))
    ]
    records.append({"id": 4, "text": "没有答案", "prediction": "好评"})  # neither right nor wrong
    assert report.write_errors(tmp_path / "deep" / "errors.jsonl", records) == 2
    lines = (tmp_path / "deep" / "errors.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [3, 1]
    assert "差评" in lines[0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, [{"id": 1}])

    def failing():
        yield {"id": 2}
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_jsonl(path, failing())
    assert path.read_text() == '{"id": 1}\n'


def test_summary_and_curve_are_shown_with_labels_that_look_like_markup(capsys):
    [scores] = make_rows({"x": 90}).values()
    numbers = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 50}
    detail = {
        "per_class": {"[red]差": numbers, "[/]好": numbers},
        "confusion_matrix": [[45, 5], [5, 45]],
    }
    report.show_summary(dataclasses.replace(scores, detail=detail), "best [checkpoint]")
    point = {"alpha": 0.5, "value": 0.4, "standard_error": 0.02}
    point |= {"behind_best": 0.0, "behind_best_error": 0.0}
    report.show_curve([point], 0.5, METRICS[2])
    shown = capsys.readouterr().out
    for text in (
        "[red]差",
        "as [/]好",
        "best [checkpoint]",
        "90.0 ± 3.0",
        "0.400 ± 0.020",
        "chosen",
    ):
        assert text in shown
