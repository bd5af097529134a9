"""Properties of the report: what it says is what was measured."""

import json
import math

import numpy as np
import pytest
from matplotlib import image

from evaluation import report
from evaluation.evaluate import Predictions
from training.progress import Progress

LABELS = ("差评", "好评")


def make_rows(right_of_100):
    """Predictions for 100 examples of which the given number is right, by row name."""
    labels_N = np.arange(100, dtype=np.int32) % 2
    rows = {}
    for name, right in right_of_100.items():
        classes_N = np.where(np.arange(100) < right, labels_N, 1 - labels_N)
        rows[name] = Predictions(
            np.arange(100), labels_N, 2 * np.eye(2, dtype=np.float32)[classes_N]
        )
    return rows


def write(workdir, rows, **changes):
    options = {
        "labels": LABELS,
        "fingerprints": {"test": "abc"},
        "split": "test",
        "metric": "accuracy",
        "integration": None,
        "leaked_ids": np.arange(0),
        "extra": {"train_examples": 7},
    }
    return report.write_results(workdir, rows, **(options | changes))


def test_results_json_holds_what_was_returned_and_every_number(tmp_path):
    rows = make_rows({report.MAJORITY: 50, report.TFIDF: 80, report.FINETUNED: 90})
    curve = [{"alpha": a, "value": 0.8 + a / 10, "standard_error": math.nan} for a in (0.0, 1.0)]
    results = write(tmp_path, rows, integration={"alpha": 1.0, "curve": curve})
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == results  # no NaN, which is not JSON
    assert list(results["models"]) == list(rows)
    assert results["models"][report.FINETUNED]["accuracy"]["value"] == 0.9
    assert results["accuracy_minus_baseline"][report.FINETUNED]["value"] == pytest.approx(0.1)
    assert results["integration"]["curve"][0]["standard_error"] is None
    assert (results["fingerprints"], results["train_examples"]) == ({"test": "abc"}, 7)
    assert results["split"] == "test"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        (90, "the fine-tuned model beats TF-IDF + logistic regression by 10.0 ± 3.0 points"),
        (70, "the fine-tuned model falls behind TF-IDF + logistic regression by 10.0 ± 3.0 points"),
        (81, "by 1.0 ± 1.0 points of accuracy (1.0 standard errors). A difference this small"),
        (80, "the fine-tuned model is exactly as accurate as TF-IDF + logistic regression."),
    ],
)
def test_conclusion_is_honest_whichever_sign(tmp_path, right, sentence):
    results = write(tmp_path, make_rows({report.TFIDF: 80, report.FINETUNED: right}))
    assert sentence in results["conclusion"]
    assert ("may be chance" in results["conclusion"]) == (right == 81)


def test_console_shows_all_rows_and_the_conclusion_unbroken(tmp_path, capsys):
    rows = make_rows(
        {report.MAJORITY: 50, report.TFIDF: 80, report.INTEGRATED + " (alpha 0.5)": 90}
    )
    results = write(tmp_path, rows)
    shown = capsys.readouterr().out
    assert results["conclusion"] in shown
    for name, cell in zip(rows, ("50.0 ± 5.0", "80.0 ± 4.0", "90.0 ± 3.0"), strict=True):
        assert any(name in line and cell in line for line in shown.splitlines())
    assert report.show_results(tmp_path) == results
    assert capsys.readouterr().out == shown


def test_leaked_examples_are_left_out_of_a_second_number(tmp_path, capsys):
    rows = make_rows({report.TFIDF: 80, report.FINETUNED: 90})
    results = write(tmp_path, rows, leaked_ids=np.arange(50))  # of which both rows know all
    clean = [results["models"][name]["leak_free"]["accuracy"] for name in rows]
    assert [(part["value"], part["count"]) for part in clean] == [(0.6, 50), (0.8, 50)]
    assert results["models"][report.FINETUNED]["accuracy"]["value"] == 0.9
    shown = capsys.readouterr().out
    assert "without leaks" in shown and "80.0 ± 5.7" in shown
    assert "leak_free" not in write(tmp_path, rows)["models"][report.FINETUNED]


def test_a_gain_over_the_encoder_alone_is_said_beside_that_over_the_baseline(tmp_path):
    rows = make_rows({report.TFIDF: 80, report.ENCODER: 89, report.FINETUNED: 90})
    conclusion = write(tmp_path, rows)["conclusion"].split("\n")
    assert "beats TF-IDF + logistic regression by 10.0 ± 3.0" in conclusion[0]
    assert "beats the encoder alone by 1.0 ± 1.0" in conclusion[1]
    assert "may be chance" in conclusion[1]


def test_markdown_table_from_the_file_equals_that_from_the_run(tmp_path):
    rows = make_rows({report.TFIDF: 80, report.FINETUNED: 90})
    results = write(tmp_path, rows)
    table = report.markdown_table(results)
    assert table == report.markdown_table(
        json.loads((tmp_path / "results.json").read_text("utf-8"))
    )
    lines = table.splitlines()
    assert lines[0] == "| model | accuracy, % | macro-F1, % | loss | examples |"
    assert lines[3].startswith("| fine-tuned | 90.0 ± 3.0 | 90.0 ± 3.0 |")
    assert {line.count("|") for line in lines} == {6}


def test_results_need_the_baseline_and_the_same_examples(tmp_path):
    with pytest.raises(ValueError, match="need a row 'TF-IDF"):
        write(tmp_path, make_rows({report.FINETUNED: 90}))
    rows = make_rows({report.TFIDF: 80, report.FINETUNED: 90})
    rows[report.FINETUNED] = Predictions(
        *(part[:60] for part in vars(rows[report.FINETUNED]).values())
    )
    with pytest.raises(ValueError, match="60 and 100 examples cannot be paired"):
        write(tmp_path, rows)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(("steps", "integrated"), [(0, False), (3, False), (50, True)])
def test_curves_get_one_panel_for_each_thing_measured(tmp_path, steps, integrated):
    with Progress(tmp_path, 100) as progress:
        for step in range(1, steps + 1):
            progress.log(step, {"loss": 1 / step, "learning_rate": 1e-5})
        if steps:
            progress.log(steps, {"validation/accuracy": 0.8, "validation/loss": math.nan})
    curve = [{"alpha": a, "value": a, "standard_error": 0.1} for a in (0.0, 0.5, 1.0)]
    integration = {"alpha": 0.5, "curve": curve} if integrated else None
    report.plot_curves(tmp_path, metric="accuracy", integration=integration)
    _, width, _ = image.imread(tmp_path / "curves.png").shape
    assert width == 540 * max(1, 2 * bool(steps) + integrated)


def test_errors_are_the_wrong_ones_with_the_most_confident_first(tmp_path):
    records = [
        {
            "id": id_,
            "text": "字",
            "label": "好评",
            "prediction": prediction,
            "probabilities": {"差评": share, "好评": 1 - share},
        }
        for id_, prediction, share in ((1, "差评", 0.6), (2, "好评", 0.1), (3, "差评", 0.9))
    ]
    assert report.write_errors(tmp_path / "deep" / "errors.jsonl", records) == 2
    lines = (tmp_path / "deep" / "errors.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [3, 1]
    assert "差评" in lines[0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    report.write_jsonl(path, [{"id": 1}])

    def failing():
        yield {"id": 2}
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        report.write_jsonl(path, failing())
    assert path.read_text() == '{"id": 1}\n'


def test_summary_and_curve_are_shown_with_labels_that_look_like_markup(capsys):
    summary = report.summarise(next(iter(make_rows({"x": 90}).values())), ("[red]差", "[/]好"))
    report.show_summary(summary, "best [checkpoint]")
    report.show_curve([{"alpha": 0.5, "value": 0.4, "standard_error": 0.02}], 0.5, "loss")
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
