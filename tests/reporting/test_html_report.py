"""The page of a finished run: whole without a network, escaped, no wider than a phone."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib import image

from configs import common
from evaluation import calibration, classification_metrics
from evaluation.baselines import TFIDF
from evaluation.metrics import class_counts, estimate, paired_difference
from input_pipeline.corpus.preparation import prepare
from input_pipeline.files import write_json, write_jsonl
from reporting import report
from reporting.html_report import data_counts, write_html
from reporting.model_card import write_model_card
from reporting.stored_scores import write_scores
from tasks.classification import ACCURACY, Classification
from training.data import RunData, SeveralData
from training.workdir import write_config
from workflows import report as comparison

pytestmark = pytest.mark.usefixtures("figures")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
POINT = {"value": 0.8, "standard_error": 0.02, "count": 400}
POINT |= {"behind_best": 0.0, "behind_best_error": 0.0}


MANIFEST = {  # the numbers of a prepared data set, as html_report.data_counts gives them
    "read": 35_124,
    "dropped": {"too_short": 2, "contradictory": 225, "duplicate": 17_534},
    "splits": {
        "train": {"examples": 13_890, "leaked": 0},
        "validation": {"examples": 1736, "leaked": 11},
        "test": {"examples": 1737, "leaked": 5},
    },
    "audit": {
        "validation": {"examples": 1736, "leaked": 11, "exact": 5, "copies_in": {"train": 11}}
        | {"other_labels": 3, "shared_text": 0},
        "test": {"examples": 1737, "leaked": 5, "exact": 1, "other_labels": 2, "shared_text": 7}
        | {"copies_in": {"train": 4, "validation": 1}},
    },
}


def make_run(folder, count=400, *, split="test", **extra):
    """Writes a finished run's files the way protocol.py writes them, on so many examples."""
    config = common.get_config()
    config.optimizer.learning_rate = 3e-4
    write_config(folder, config)
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 2, count)
    task = Classification(config, ("差评<b>", "好评"), tokenizer=None, backbone=None)
    logs = {}
    for row, push in ((TFIDF, 0.5), (report.FINETUNED, 2.0)):
        logits_NxC = rng.normal(0, 1, (count, 2)) + push * np.eye(2)[labels_N]
        logs[row] = calibration.calibrate(logits_NxC, {})
    rows = {row: task.scores(np.arange(count), labels_N, found) for row, found in logs.items()}
    for scores in rows.values():
        classes_N = labels_N.copy()
        classes_N[::7] = 1 - classes_N[::7]
        counts_Nx3C = class_counts(labels_N, classes_N, 2)
        scores.detail["per_class"] = classification_metrics.per_class(counts_Nx3C, task.labels)
    card = calibration.card(labels_N, logs[report.FINETUNED].argmax(1), logs[report.FINETUNED])
    tuned = rows[report.FINETUNED]
    changed = {
        "perturbation": "homophones",
        "title": "10 % homophones",
        "changed": 1.0,
        "metrics": {"accuracy": estimate(rows[TFIDF], "accuracy")},
        "difference": paired_difference(rows[TFIDF], tuned, metric="accuracy"),
        "ece": 0.1,
        "flipped": {"value": 0.2, "standard_error": 0.02, "count": count},
    }
    point = POINT if count > 1 else POINT | {"standard_error": np.nan, "behind_best_error": np.nan}
    curve = [{"alpha": alpha, **point} for alpha in (0.0, 0.5, 1.0)]
    candidate = {"name": "interpolation, alpha 0.5", "kind": "interpolation", "evaluations": 3}
    candidate |= {**point, "seconds": 1.5, "inference_cost": 1}
    errors = [
        {"id": 7, "text": "<script>alert(1)</script>房间很小" + "，早餐一般" * 60, "label": "好评"}
        | {"wrong": True, "prediction": "差评<b>", "confidence": 0.99}
    ]
    write_jsonl(folder / f"errors_{split}.jsonl", errors)
    write_jsonl(
        folder / "metrics.jsonl",
        [{"step": i, "loss": 1 / i, "validation/accuracy": 0.5 + i / 80} for i in range(1, 31)],
    )
    write_scores(folder / f"scores_{split}.npz", rows)
    report.write_results(
        folder,
        rows,
        floor=TFIDF,
        fingerprints={"test": "abc", "validation": "def"},
        split=split,
        metric=ACCURACY,
        integration={
            "alpha": 0.5,
            "curve": curve,
            "chosen": candidate["name"],
            "candidates": [candidate],
        },
        leaked_ids=np.arange(5),
        extra={
            "labels": list(task.labels),
            "checkpoint": "best",
            "train_examples": 1280,
            "test_openings": [
                {"time": "2026-11-28T21:39:16+00:00", "fingerprint": "185eda562d85d399" * 4}
                | {"model": f"best checkpoint, step 40: {TFIDF}, {report.FINETUNED}"}
            ]
            * 2,
            "collapses": [],
            "calibration": {report.FINETUNED: {"before": card, "after": card, "temperature": 1.2}},
            "robustness": {report.FINETUNED: [changed]},
            "data": "Prepared reviews: read 35,124 examples.",
            "manifest": {"": MANIFEST},
            "environment": "Python 3, jax 0",
        }
        | extra,
    )
    return folder


@pytest.fixture
def workdir(tmp_path):
    """A finished run's files."""
    return make_run(tmp_path / "评论_run")


def test_everything_in_the_workdir_is_told_and_escaped(workdir):
    page = write_html(workdir).read_text("utf-8")
    for text in (
        "评论_run",
        "beats TF-IDF + logistic regression",
        "差评&lt;b&gt;",
        "&lt;script&gt;alert(1)&lt;/script&gt;房间很小",
        "interpolation, alpha 0.5",
        "10 % homophones",
        "was opened 2 times",
        "Prepared reviews: read 35,124 examples.",
        "optimizer.learning_rate = 0.0003",
        "without leaks: accuracy, %",
        "reliability",
        "p is how often they show at least as much",
    ):
        assert text in page, text
    value = json.loads((workdir / "results.json").read_text("utf-8"))["models"]["fine-tuned"]
    assert f'<div class="number">{100 * value["accuracy"]["value"]:.1f} <small>' in page
    assert page.count("<svg") == 2
    assert "<script" not in page and "{{" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("#") for link in links)
    assert "url(http" not in page and "@import" not in page


def test_the_model_card_holds_the_numbers_of_the_results(workdir):
    results = json.loads((workdir / "results.json").read_text("utf-8"))
    text = write_model_card(workdir).read_text("utf-8")
    front, _, body = text.removeprefix("---\n").partition("---\n")
    assert "language: zh" in front and 'metrics: ["accuracy", "macro_f1", "loss"]' in front
    assert results["conclusion"] in body and report.markdown_table(results) in body
    assert "opened 2 times" in body and "10 % homophones" in body
    assert "--config.eval.checkpoint=best" in body and "差评<b>, 好评" in body


def test_what_is_absent_has_no_section(workdir):
    path = workdir / "results.json"
    results = json.loads(path.read_text("utf-8"))
    results |= {"calibration": {}, "robustness": {}, "integration": None}
    write_json(path, results)
    (workdir / "errors_test.jsonl").unlink()
    page = write_html(workdir).read_text("utf-8")
    assert "<h2>Results</h2>" in page
    for title in ("Integration", "Calibration", "Robustness", "Worst mistakes", "side by side"):
        assert f"<h2>{title}</h2>" not in page
    with pytest.raises(FileNotFoundError, match=r"neither results\.json nor comparison\.json"):
        write_html(workdir / "checkpoints")


def test_a_run_of_one_example_has_a_page_and_a_card_without_errors(tmp_path):
    folder = make_run(tmp_path / "run", 1)
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert results["calibration"][report.FINETUNED]["after"]["brier_error"] is None
    page, card = (write(folder).read_text("utf-8") for write in (write_html, write_model_card))
    assert '<div class="number">100.0</div>' in page and "100.0" in card
    for text in (page, card):
        assert "nan" not in re.sub("<svg.*?</svg>", "", text, flags=re.DOTALL).lower()
        assert not re.search("None(?! of)", re.sub("<pre>.*?</pre>", "", text, flags=re.DOTALL))


def test_a_metric_that_is_not_defined_says_so(workdir):
    path = workdir / "results.json"
    results = json.loads(path.read_text("utf-8"))
    for summary in results["models"].values():
        summary["accuracy"] |= {"value": None, "standard_error": None}
    write_json(path, results)
    assert '<div class="number">not defined</div>' in write_html(workdir).read_text("utf-8")
    write_model_card(workdir)


def cells(page, title):
    """The rows of the table under a heading, without their markup."""
    table = page.partition(f">{title}<")[2].partition("</table>")[0]
    rows = re.findall("<tr[^>]*>(.*?)</tr>", table)
    return [re.sub("<[^>]*>", " ", row.replace("</td><td>", "|")).strip() for row in rows]


def test_no_table_is_empty_and_those_of_the_data_hold_manifest_and_audit(workdir):
    page = write_html(workdir).read_text("utf-8")
    tables = re.findall("<table>.*?</table>", page, flags=re.DOTALL)
    assert tables and all("<td>" in table and "<th>" in table for table in tables)
    assert "<h2>Data manifest and audit</h2>" in page
    assert cells(page, "Splits")[1:] == [
        "train|13,890|not searched",
        "validation|1,736|11",
        "test|1,737|5",
    ]
    assert "duplicate|17,534" in cells(page, "What was read, dropped and kept")
    assert cells(page, "What was read, dropped and kept")[-1] == "kept|17,363"
    assert cells(page, "What the audit found")[1:] == [
        "validation|11 in train|5|3|0",
        "test|4 in train, 1 in validation|1|2|7",
    ]


def test_the_data_of_several_tasks_are_told_apart_and_their_texts_left_out(tiny_config, tmp_path):
    """The numbers are those of the real manifest."""
    data = RunData(tiny_config, prepare(tiny_config.data))
    manifest = data.prepared.manifest
    (found,) = data_counts(data).values()
    assert found["read"] == manifest["read"]
    assert sum(found["dropped"].values()) == sum(manifest["dropped"].values())
    assert {name: part["examples"] for name, part in found["splits"].items()} == {
        name: part["examples"] for name, part in manifest["splits"].items()
    }
    assert found["audit"]["test"]["leaked"] == manifest["audit"]["test"]["leaked"]
    assert "worst" not in str(found) and "where" not in str(found)
    both = data_counts(SeveralData({"reviews": data, "news": data}))
    assert both == {"reviews": found, "news": found}
    page = write_html(make_run(tmp_path / "run", manifest=both)).read_text("utf-8")
    rows = cells(page, "Splits")
    assert [row.split("|")[0] for row in rows[1:]] == ["reviews"] * 3 + ["news"] * 3


def test_a_training_that_was_started_again_says_so(tmp_path):
    found = "the training has collapsed at step 120 of 200: all 60 predictions are of one class"
    notes = [
        {"found": f"{found}. The likely cause is a high rate", "learning_rate": rate}
        for rate in (2e-4, 1e-4)
    ]
    folder = make_run(tmp_path / "run", collapses=notes)
    for write in (write_html, write_model_card):
        text = write(folder).read_text("utf-8")
        sentence = f"T{found[1:]}. It was started again at a learning rate of"
        assert f"{sentence} 0.0001, half of 0.0002." in text
        assert f"{sentence} 5e-05, half of 0.0001." in text
        assert "likely cause" not in text


def test_the_split_of_the_choice_is_called_too_good(workdir, tmp_path):
    folder = make_run(tmp_path / "run", split="validation", test_openings=[])
    for write in (write_html, write_model_card):
        assert "this very split" not in write(workdir).read_text("utf-8")
        assert (
            "The checkpoint, the integration and the temperature were chosen on this very split, "
            "validation, so that its numbers are too good; --mode=test opens the test split."
        ) in write(folder).read_text("utf-8")
    path = folder / "results.json"
    results = json.loads(path.read_text("utf-8"))
    results |= {"calibration": {}, "integration": None, "fingerprints": {"validation": "def"}}
    write_json(path, results)
    page = write_html(folder).read_text("utf-8")
    assert "The checkpoint was chosen on this very split" in page
    assert "config.data.split.test or config.data.test_files makes a test split." in page


def test_classes_and_calibration_are_told_with_their_errors(workdir):
    results = json.loads((workdir / "results.json").read_text("utf-8"))
    page = write_html(workdir).read_text("utf-8")
    (first, *_) = results["models"][report.FINETUNED]["per_class"].values()
    for share in ("precision", "recall", "f1"):
        value, error = 100 * first[share], 100 * first[f"{share}_error"]
        assert f"<td>{value:.1f} <small>± {error:.1f}</small></td>" in page
    card = results["calibration"][report.FINETUNED]["after"]
    chance = f"<td>{card['ece_by_chance']:.3f}</td><td>{card['ece_p']:.3f}</td>"
    assert f"<td>{card['ece']:.3f}</td>{chance}" in page
    assert f"(p = {card['ece_p']:.2g} that " in write_model_card(workdir).read_text("utf-8")


def test_runs_side_by_side_have_a_page(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "other")
    path = tmp_path / "other/config.json"  # another setting, else the two would be one group
    path.write_text(path.read_text("utf-8").replace('rate": 0.0003', 'rate": 0.0001'), "utf-8")
    found = comparison.compare([workdir, tmp_path / "other"], tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h2>Runs side by side</h2>" in page and "<h2>Results</h2>" not in page
    assert "optimizer.learning_rate=0.0003" in page and "optimizer.learning_rate=0.0001" in page
    (sentence,) = [row["sentence"] for row in found["comparisons"]]
    assert f"<p>{Markup.escape(sentence)}</p>" in page


# A browser's window is never as narrow as a phone, a frame is; it is made as high as its page.
FRAME = """<!doctype html><body style="margin: 0">
<iframe src="%s" width="%d" height="900" scrolling="no" style="border: 0"></iframe><script>
onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  document.title = [page.documentElement.scrollWidth, frame.contentWindow.innerWidth,
    page.querySelectorAll("h2").length];
  frame.height = page.documentElement.scrollHeight;
};
</script></body>"""


@pytest.mark.long
@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_within_the_width(workdir, tmp_path, width):
    page, frame, drawn = write_html(workdir), tmp_path / "frame.html", tmp_path / f"{width}.png"
    frame.write_text(FRAME % (page.as_uri(), width), "utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
    options += " --hide-scrollbars --disable-background-networking --allow-file-access-from-files"
    options += f" --window-size={max(width, 500)},5000 --dump-dom"
    command = [BROWSER, *options.split(), f"--screenshot={drawn}", frame.as_uri()]
    command.append(f"--user-data-dir={tmp_path / 'browser'}")
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\d+),(\d+),(\d+)</title>", found.stdout)
    assert title, found.stderr
    needed, there, sections = map(int, title.groups())
    assert needed == there == width and sections > 8
    colours = image.imread(drawn)[:, :width, :3]  # raises if it is no PNG
    assert colours.shape[1] == width and len(np.unique(colours.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("size", [100, 1000])
def test_results_of_many_classes_stay_small_and_say_what_is_confused(tmp_path, size):
    config, count = common.get_config(), 300
    labels = tuple(f"类别{c}的名称" for c in range(size))
    task = Classification(config, labels, tokenizer=None, backbone=None)
    labels_N = np.arange(count) % (size // 10)
    classes_N = np.where(labels_N == 7, 3, np.where(labels_N == 5, size - 1, labels_N))
    logs_NxC = calibration.calibrate(5.0 * np.eye(size)[classes_N], {})
    scores = task.scores(np.arange(count), labels_N, logs_NxC)
    rows = dict.fromkeys(("majority class", TFIDF, "encoder alone", report.FINETUNED), scores)
    make_run(tmp_path, 30)
    facts = json.loads((tmp_path / "results.json").read_text("utf-8"))
    drawn = ("fingerprints", "split", "integration")
    more = {k: v for k, v in facts.items() if k not in ("models", "comparisons", "metrics", *drawn)}
    report.write_results(
        tmp_path,
        rows,
        floor=TFIDF,
        metric=ACCURACY,
        leaked_ids=np.zeros(0),
        extra=more,
        **{name: facts[name] for name in drawn},
    )
    assert (tmp_path / "results.json").stat().st_size < 2_000_000
    summary = json.loads((tmp_path / "results.json").read_text("utf-8"))["models"]["fine-tuned"]
    page = write_html(tmp_path).read_text("utf-8")
    assert labels[-1] in page and page.count("<tr>") > size
    if size == 100:
        assert np.sum(summary["confusion_matrix"]) == count and "confusions" not in summary
        return
    assert "confusion_matrix" not in summary and "most frequent confusions" in page
    assert summary["confusions"] == [
        [labels[true], labels[found], 3] for true, found in ((5, size - 1), (7, 3))
    ]
    exact = scores.detail["per_class"][labels[3]]
    assert summary["per_class"][labels[3]] == pytest.approx(exact, abs=5e-5)
