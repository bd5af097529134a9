"""--mode=sweep with config.search.range_test: a learning rate proposed from one short training.

The rate grows exponentially from 1/100 to 100 times config.optimizer.learning_rate while the loss
is watched (Smith, 1506.01186). Nothing is evaluated or saved but the losses and their plot, and no
split but the training split is opened.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.files import write_json
from reporting import figures
from training.compilation import resolve_dtype
from training.data import load_data
from training.experiment import build
from training.train import Run
from training.tuning.schedules import RANGE

_DIVERGED = 4.0  # times its least: a loss that ends the test
_MEAN = 5  # steps whose mean loss is compared


def rate_range(config: ConfigDict, workdir: Path) -> float | None:
    """Runs the test, and returns the rate that it proposes; None where no rate lowers the loss.

    Writes rate_range.json and rate_range.png, and what a run derives from its data (a tokeniser, a
    probe) to the folder rate_range.
    """
    config, folder = config.copy_and_resolve_references(), workdir / "rate_range"
    config.train.update(duration=config.search.range_test, ema=0.0)
    config.schedule.update(name="range", warmup="0%", table=())
    config.adapt.unfreeze_every = ""
    resolve_dtype(config, folder, print)
    data = load_data(config)
    training = data.split("train")
    experiment = build(config, folder, data.labels, print, training)
    experiment.check(training, "train", training=True)
    run = Run(experiment, folder, data, training)
    losses = list(until_diverged(run.losses()))
    middles = (np.arange(len(losses)) + 0.5) / run.steps
    rates = config.optimizer.learning_rate * RANGE ** (2 * middles - 1)
    smoothed, steepest, tenth = propose(rates, losses)
    record = {"rate": rates.tolist(), "loss": losses, "smoothed": smoothed.tolist()}
    write_json(workdir / "rate_range.json", record | {"proposed": steepest, "tenth": tenth})
    figures.save_rate_range(workdir, record, steepest)
    where = f"{len(losses)} steps; the plot is {workdir / 'rate_range.png'}"
    if steepest is None:
        print(f"Range test: no rate up to {rates[-1]:.2g} lowers the training loss ({where}).")
    else:
        print(
            f"Range test: --config.optimizer.learning_rate={steepest:.2g} is proposed, where the "
            f"smoothed training loss falls fastest; a tenth of the rate of the least loss is "
            f"{tenth:.2g} ({where})."
        )
    return steepest


def until_diverged(losses: Iterator[float]) -> Iterator[float]:
    """Yields losses up to the first that is not finite, or whose recent mean is far too high."""
    recent, least = [], np.inf
    for loss in losses:
        if not np.isfinite(loss):
            return
        yield loss
        recent = [*recent[1 - _MEAN :], loss]
        mean = float(np.mean(recent))
        if len(recent) == _MEAN:
            least = min(least, mean)
        if mean > _DIVERGED * least:
            return


def propose(
    rates: np.ndarray, losses: Sequence[float]
) -> tuple[np.ndarray, float | None, float | None]:
    """Returns the smoothed losses, the rate of their steepest fall, and a tenth of their least's.

    Args:
        rates: of the steps, growing.
        losses: the training loss of each.
    """
    # Centred: a mean of the past alone would lag, and propose rates that are too high.
    window = np.ones(max(1, len(losses) // 10) | 1)
    if len(losses) < 2 * len(window):
        raise ValueError(
            f"config.search.range_test: only {len(losses)} steps before the loss diverged or the "
            "test ended: lower config.optimizer.learning_rate, or test for longer"
        )
    weights = np.convolve(np.ones(len(losses)), window, "same")
    smoothed = np.convolve(losses, window, "same") / weights
    least = int(smoothed.argmin())
    slopes = np.gradient(smoothed, np.log(rates))[: least + 1]
    if not least or slopes.min() >= 0:
        return smoothed, None, None
    return smoothed, float(rates[slopes.argmin()]), float(rates[least] / 10)
