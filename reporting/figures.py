"""Figures of one run: learning curves, interpolation, calibration, range tests.

Drawn from the files of the workdir. matplotlib is imported only when a figure is drawn. A `metric`
is shown as report.shown returns it.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.files import replacing
from training.progress import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_curves(
    workdir: str | Path, *, metric: Mapping[str, Any], integration: Mapping[str, Any] | None
) -> None:
    """Draws curves.png into the workdir; see `curves`."""
    figure = curves(workdir, metric=metric, integration=integration)
    with replacing(Path(workdir) / "curves.png") as partial:
        figure.savefig(partial, format="png", dpi=120)


def curves(
    workdir: str | Path, *, metric: Mapping[str, Any], integration: Mapping[str, Any] | None
) -> "Figure":
    """Draws what metrics.jsonl holds: training loss, validation metric; and the interpolation.

    Reads 'loss' and 'validation/<metric>'; what was not logged or measured has no panel.

    Args:
        workdir: of the run.
        metric: that chose the model.
        integration: 'integration' of results.json, or None.
    """
    lines = read_metrics(Path(workdir) / "metrics.jsonl")
    loss, validation = _series(lines, "loss"), _series(lines, f"validation/{metric['name']}")
    panels = [loss[0].size > 0, validation[0].size > 0, "curve" in (integration or {})]
    columns = max(1, sum(panels))
    figure, axes = _panels(columns, width=4.5 * columns)
    axes = iter(axes)
    if panels[0]:
        _plot_loss(next(axes), *loss)
    if panels[1]:
        steps, values = validation
        axis = next(axes)
        axis.plot(steps, metric["scale"] * values, marker="o", markersize=4, color="tab:green")
        axis.set(title="validation", xlabel="step", ylabel=metric["title"])
    if panels[2]:
        _plot_interpolation(next(axes), metric, integration)
    return figure


def calibration(card: Mapping[str, Any]) -> "Figure":
    """Draws accuracy by confidence before and after calibration, and accuracy by coverage.

    Args:
        card: of one model, from tasks.task.Task.calibration.
    """
    figure, (reliability, coverage) = _panels(2, width=9)
    reliability.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
    for name, color in (("before", "tab:gray"), ("after", "tab:blue")):
        points = [(bin["confidence"], bin["accuracy"]) for bin in card[name]["bins"]]
        style = {"marker": "o", "markersize": 4, "color": color, "label": name}
        reliability.plot(*zip(*points, strict=True), **style)
        points = [(point["coverage"], point["accuracy"]) for point in card[name]["coverage"]]
        coverage.plot(*zip(*points, strict=True), color=color, label=name)
    reliability.set(title="reliability", xlabel="confidence", ylabel="accuracy")
    coverage.set(
        title="the most confident alone", xlabel="share of the examples", ylabel="accuracy"
    )
    reliability.legend()
    return figure


def save_rate_range(workdir: str | Path, record: Mapping[str, Any], proposed: float | None) -> None:
    """Draws rate_range.png into the workdir: the training loss against the learning rate.

    Args:
        workdir: of the range test.
        record: 'rate', 'loss' and 'smoothed' of each step.
        proposed: a rate to mark; None marks none.
    """
    figure, (axis,) = _panels(1, width=5)
    axis.plot(record["rate"], record["loss"], color="tab:blue", alpha=0.3, linewidth=1)
    axis.plot(record["rate"], record["smoothed"], color="tab:blue")
    if proposed is not None:
        axis.axvline(proposed, color="black", linestyle=":", linewidth=1)
    axis.set(title="range test", xlabel="learning rate", ylabel="training loss", xscale="log")
    # A loss that diverges would hide the others.
    axis.set_ylim(top=min(max(record["loss"]), 2 * record["loss"][0]))
    with replacing(Path(workdir) / "rate_range.png") as partial:
        figure.savefig(partial, format="png", dpi=120)


def svg(figure: "Figure") -> str:
    """Returns a figure as SVG for HTML, its text as text; the same bytes each time."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "weitiao"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]


def _panels(columns: int, *, width: float) -> tuple["Figure", np.ndarray]:
    """Returns a figure of so many inches and its axes, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.4), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _series(lines: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values of one logged metric, without what was not finite."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _plot_loss(axis: "Axes", steps: np.ndarray, values: np.ndarray) -> None:
    """Draws the training loss and, from 20 points on, a moving average over a tenth of them."""
    smooth = len(values) >= 20
    axis.plot(steps, values, color="tab:blue", alpha=0.3 if smooth else 1, linewidth=1)
    if smooth:
        weights = (1 - 10 / len(values)) ** np.arange(len(values))
        averages = np.convolve(values, weights)[: len(values)] / np.cumsum(weights)
        axis.plot(steps, averages, color="tab:blue")
    axis.set(title="training", xlabel="step", ylabel="loss")


def _plot_interpolation(
    axis: "Axes", metric: Mapping[str, Any], integration: Mapping[str, Any]
) -> None:
    """Draws the metric from pretrained to fine-tuned weights, and the choice."""
    alpha, scale = integration["alpha"], metric["scale"]
    lines = {"validation": ("curve", "tab:purple"), "shifted set": ("shifted_curve", "tab:olive")}
    for label, (name, color) in lines.items():
        if name in integration:
            alphas, values, errors = (
                np.array([point[key] for point in integration[name]], np.float64)
                for key in ("alpha", "value", "standard_error")
            )
            style = {"color": color, "marker": "o", "markersize": 4, "capsize": 2, "label": label}
            axis.errorbar(alphas, scale * values, scale * errors, **style)
    if "shifted_curve" in integration:
        axis.legend()
    axis.axvline(alpha, color="black", linestyle=":", linewidth=1)
    axis.set(title=f"interpolation: {alpha:g} chosen", ylabel=metric["title"])
    axis.set_xlabel("0 is pretrained, 1 is fine-tuned")
