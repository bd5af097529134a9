"""The page of a finished run: whole without a network, escaped, no wider than a phone."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from configs import common
from evaluation import calibration, comparison, report
from evaluation.baselines import TFIDF
from evaluation.html_report import write_html
from evaluation.metrics import estimate, paired_difference
from evaluation.model_card import write_model_card
from evaluation.stored_scores import write_scores
from tasks.classification import ACCURACY, Classification
from training.workdir import write_config

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
POINT = {"value": 0.8, "standard_error": 0.02, "count": 400}
POINT |= {"behind_best": 0.0, "behind_best_error": 0.0}


@pytest.fixture
def workdir(tmp_path):
    """A finished run's files, written the way protocol.py writes them."""
    folder = tmp_path / "评论_run"
    config = common.get_config()
    config.optimizer.learning_rate = 3e-4
    write_config(folder, config)
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 2, 400)
    task = Classification(config, ("差评<b>", "好评"), tokenizer=None, backbone=None)
    logs = {}
    for row, push in ((TFIDF, 0.5), (report.FINETUNED, 2.0)):
        logits_NxC = rng.normal(0, 1, (400, 2)) + push * np.eye(2)[labels_N]
        logs[row] = calibration.calibrate(logits_NxC, {})
    rows = {row: task.scores(np.arange(400), labels_N, found) for row, found in logs.items()}
    card = calibration.card(labels_N, logs[report.FINETUNED].argmax(1), logs[report.FINETUNED])
    tuned = rows[report.FINETUNED]
    changed = {
        "perturbation": "homophones",
        "title": "10 % homophones",
        "changed": 1.0,
        "metrics": {"accuracy": estimate(rows[TFIDF], "accuracy")},
        "difference": paired_difference(rows[TFIDF], tuned, metric="accuracy"),
        "ece": 0.1,
        "flipped": {"value": 0.2, "standard_error": 0.02, "count": 400},
    }
    curve = [{"alpha": alpha, **POINT} for alpha in (0.0, 0.5, 1.0)]
    candidate = {"name": "interpolation, alpha 0.5", "kind": "interpolation", "evaluations": 3}
    candidate |= {**POINT, "seconds": 1.5, "inference_cost": 1}
    errors = [
        {"id": 7, "text": "<script>alert(1)</script>房间很小" + "，早餐一般" * 60, "label": "好评"}
        | {"wrong": True, "prediction": "差评<b>", "confidence": 0.99}
    ]
    report.write_jsonl(folder / "errors_test.jsonl", errors)
    report.write_jsonl(
        folder / "metrics.jsonl",
        [{"step": i, "loss": 1 / i, "validation/accuracy": 0.5 + i / 80} for i in range(1, 31)],
    )
    write_scores(folder / "scores_test.npz", rows)
    report.write_results(
        folder,
        rows,
        floor=TFIDF,
        fingerprints={"test": "abc"},
        split="test",
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
            "test_openings": [{"time": "noon", "model": "m", "fingerprint": "abc"}] * 2,
            "calibration": {report.FINETUNED: {"before": card, "after": card, "temperature": 1.2}},
            "robustness": {report.FINETUNED: [changed]},
            "data": "Prepared reviews: read 35,124 examples.",
            "environment": "Python 3, jax 0",
        },
    )
    return folder


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
        "without leaks: accuracy, %",
        "reliability",
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
    report.write_json(path, results)
    (workdir / "errors_test.jsonl").unlink()
    page = write_html(workdir).read_text("utf-8")
    assert "<h2>Results</h2>" in page
    for title in ("Integration", "Calibration", "Robustness", "Worst mistakes", "side by side"):
        assert f"<h2>{title}</h2>" not in page
    with pytest.raises(FileNotFoundError, match=r"neither results\.json nor comparison\.json"):
        write_html(workdir / "checkpoints")


def test_runs_side_by_side_have_a_page(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "other")
    comparison.compare([workdir, tmp_path / "other"], tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h2>Runs side by side</h2>" in page and "<h2>Results</h2>" not in page


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_within_the_width(workdir, tmp_path, width):
    page = write_html(workdir)
    told = "document.title = [document.documentElement.scrollWidth, innerWidth]"
    text = page.read_text("utf-8").replace("</body>", f"<script>{told}</script></body>")
    page.write_text(text, "utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --dump-dom"
    options += f" --disable-background-networking --window-size={width},900"
    command = [BROWSER, *options.split(), f"--user-data-dir={tmp_path / 'browser'}", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    needed, there = map(int, re.search(r"<title>(\d+),(\d+)</title>", found.stdout).groups())
    assert needed <= there <= max(width, 500)  # Chromium has no narrower windows
    assert "房间很小" in found.stdout
