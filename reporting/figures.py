"""Figures of one run: learning curves, interpolation, calibration.

Drawn with matplotlib from what lies in the workdir. Called by report.py, which saves curves.png,
and html_report.py, which takes them as SVG.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics import Metric
from training.progress import read_metrics


def save_curves(
    workdir: str | Path, *, metric: Metric, integration: Mapping[str, Any] | None
) -> None:
    """Draws curves.png into the workdir; see `curves`."""
    curves(workdir, metric=metric, integration=integration).savefig(
        Path(workdir) / "curves.png", dpi=120
    )


def curves(workdir: str | Path, *, metric: Metric, integration: Mapping[str, Any] | None) -> Figure:
    """Draws what metrics.jsonl holds: training loss, validation metric; and the interpolation.

    Reads 'loss' and 'validation/<metric>'; what was not logged or measured has no panel.

    Args:
        workdir: of the run.
        metric: that chose the model.
        integration: as of workflows.integrate.integrate.Integration.results, or None.
    """
    lines = read_metrics(Path(workdir) / "metrics.jsonl")
    loss, validation = _series(lines, "loss"), _series(lines, f"validation/{metric.name}")
    panels = [loss[0].size > 0, validation[0].size > 0, "curve" in (integration or {})]
    columns = max(1, sum(panels))
    figure = Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
    axes = iter(np.ravel(figure.subplots(1, columns)))
    if panels[0]:
        _plot_loss(next(axes), *loss)
    if panels[1]:
        steps, values = validation
        axis = next(axes)
        axis.plot(steps, metric.scale * values, marker="o", markersize=4, color="tab:green")
        axis.set(title="validation", xlabel="step", ylabel=metric.title)
    if panels[2]:
        _plot_interpolation(next(axes), metric, integration)
    return _plain(figure)


def calibration(card: Mapping[str, Any]) -> Figure:
    """Draws accuracy by confidence before and after calibration, and accuracy by coverage.

    Args:
        card: of one model, as of tasks.task.Task.calibration.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    reliability, coverage = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
    for name, color in (("before", "tab:gray"), ("after", "tab:blue")):
        points = [(bin["confidence"], bin["accuracy"]) for bin in card[name]["bins"]]
        style = {"marker": "o", "markersize": 4, "color": color, "label": name}
        reliability.plot(*zip(*points, strict=True), **style)
        points = [(point["coverage"], point["accuracy"]) for point in card[name]["coverage"]]
        coverage.plot(*zip(*points, strict=True), color=color, label=name)
    reliability.set(title="reliability", xlabel="confidence", ylabel="accuracy")
    coverage.set(title="the surest alone", xlabel="share of the examples", ylabel="accuracy")
    reliability.legend()
    return _plain(figure)


def svg(figure: Figure) -> str:
    """Returns a figure as SVG to be put into HTML, its text as text; the same bytes each time."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "weitiao"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]


def _plain(figure: Figure) -> Figure:
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _series(lines: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one logged metric, without what was not finite."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _plot_loss(axis: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """The training loss as logged and, from 20 points on, a moving average over a tenth of them."""
    smooth = len(values) >= 20
    axis.plot(steps, values, color="tab:blue", alpha=0.3 if smooth else 1, linewidth=1)
    if smooth:
        decay = 1 - 10 / len(values)
        weights = decay ** np.arange(len(values))
        averages = np.convolve(values, weights)[: len(values)] / np.cumsum(weights)
        axis.plot(steps, averages, color="tab:blue")
    axis.set(title="training", xlabel="step", ylabel="loss")


def _plot_interpolation(axis: Axes, metric: Metric, integration: Mapping[str, Any]) -> None:
    """The metric along the line from pretrained to fine-tuned weights, the choice marked."""
    scale, alpha = metric.scale, integration["alpha"]
    curves = {"validation": integration["curve"]}
    if "shifted_curve" in integration:
        curves["shifted set"] = integration["shifted_curve"]
    for (name, curve), color in zip(curves.items(), ("tab:purple", "tab:olive"), strict=False):
        alphas, values, errors = (
            np.array([point[key] for point in curve], np.float64)
            for key in ("alpha", "value", "standard_error")
        )
        style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2, "label": name}
        axis.errorbar(alphas, scale * values, scale * errors, **style)
    if len(curves) > 1:
        axis.legend()
    axis.axvline(alpha, color="black", linestyle=":", linewidth=1)
    axis.set(title=f"interpolation: {alpha:g} chosen", ylabel=metric.title)
    axis.set_xlabel("0 is pretrained, 1 is fine-tuned")
