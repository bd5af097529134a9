"""--mode=sweep with config.search.range_test: a learning rate proposed from one short training.

The rate grows exponentially from 1/100 to 100 times config.optimizer.learning_rate while the loss
is watched (Smith, 1506.01186). Nothing is evaluated or saved but the losses and their plot, and no
split but the training split is opened.
"""

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.files import write_json
from reporting import figures
from training.compilation import resolve_dtype
from training.data import load_data
from training.experiment import build
from training.train import Run
from workflows import teacher

_DIVERGED = 4.0  # times its least: a loss that ends the test
_MEAN = 5  # steps whose mean loss is compared
_ERRORS = 4.0  # by how many errors the loss must fall; the least of many is low by chance
_FEWEST = 20  # steps that a proposal needs


def rate_range(config: ConfigDict, workdir: Path) -> float | None:
    """Runs the test, and returns the rate that it proposes; None where it has none.

    Writes rate_range.json and rate_range.png, and what a run derives from its data (a tokeniser, a
    probe) to the folder rate_range.
    """
    config, folder = config.copy_and_resolve_references(), workdir / "rate_range"
    config.train.update(duration=config.search.range_test, ema=0.0, swa_from="")
    config.schedule.update(name="range", warmup="0%", table=())
    config.adapt.unfreeze_every = ""
    resolve_dtype(config, folder, print)
    data = load_data(config)
    training = teacher.with_targets(config, data.split("train"), data.labels)
    experiment = build(config, folder, data.labels, print, training)
    teacher.load(experiment, data.labels)
    experiment.check(training, "train", training=True)
    pairs = list(until_diverged(Run(experiment, folder, data, training).try_rates()))
    rates, losses = np.array(pairs).reshape(-1, 2).T
    smoothed, steepest, tenth = propose(rates, losses)
    record = {"rate": rates.tolist(), "loss": losses.tolist(), "smoothed": smoothed.tolist()}
    write_json(workdir / "rate_range.json", record | {"proposed": steepest, "tenth": tenth})
    figures.save_rate_range(workdir, record, steepest)
    where = f"{len(losses)} steps; the plot is {workdir / 'rate_range.png'}"
    if steepest is None:
        print(
            f"Range test: no rate up to {rates[-1]:.2g} lowers the training loss by more than the "
            f"noise of its batches ({where}). Test for longer, with larger batches, or from a head "
            "that is not fitted (config.model.head_start='random')."
        )
    else:
        print(
            f"Range test: --config.optimizer.learning_rate={steepest:.2g} is proposed, where the "
            f"smoothed training loss falls fastest; a tenth of the rate of the least loss is "
            f"{tenth:.2g} ({where})."
        )
    return steepest


def until_diverged(pairs: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yields (rate, loss) until a loss is not finite, or its recent mean is far above its least."""
    recent, least = collections.deque(maxlen=_MEAN), np.inf
    for rate, loss in pairs:
        if not np.isfinite(loss):
            return
        yield rate, loss
        recent.append(loss)
        mean = float(np.mean(recent))
        if mean > _DIVERGED * least:
            return
        if len(recent) == _MEAN:
            least = min(least, mean)


def propose(rates: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float | None, float | None]:
    """Returns the smoothed losses, the rate of their steepest fall, and a tenth of their least's.

    Both rates are None where the loss falls by no more than the noise of its batches.

    Args:
        rates: of the steps, growing.
        losses: the training loss of each.
    """
    # Centred: a mean of the past alone would lag, and propose rates that are too high. Twice a
    # tenth of the steps: of simulated curves, shorter windows find slopes of the noise, and longer
    # ones mix the fall with the rise where the loss diverges.
    window, smoothed = np.ones((len(losses) // 10) | 1), losses
    if len(losses) < _FEWEST:
        raise ValueError(
            f"config.search.range_test: {len(losses)} steps are too few to choose a rate by, "
            f"expected {_FEWEST}: test for longer, or lower config.optimizer.learning_rate if the "
            "loss diverged"
        )
    weights = np.convolve(np.ones(len(losses)), window, "same")
    for _ in range(2):
        smoothed = np.convolve(smoothed, window, "same") / weights
    least = int(smoothed.argmin())
    slopes = np.gradient(smoothed, np.log(rates))[: least + 1]
    # Two passes of a window of n have 2 / (3 n) of the variance of a single loss.
    error = np.std((losses - smoothed)[: least + 1]) * np.sqrt(2 * 2 / (3 * len(window)))
    if smoothed[0] - smoothed[least] <= _ERRORS * error:
        return smoothed, None, None
    return smoothed, float(rates[slopes.argmin()]), float(rates[least] / 10)
