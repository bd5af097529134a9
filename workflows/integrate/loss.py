"""A run's own loss over a whole split, after training. Called by benchmarks/alpha_rules.py."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from input_pipeline.examples import Examples
from training.compilation import PerShape
from training.experiment import Experiment
from training.sharding import put_batch

Params = Mapping[str, jax.Array]


def validation_loss(experiment: Experiment, examples: Examples) -> Callable[[Params], float]:
    """Returns a function of parameters to the mean of the run's own loss, compiled once.

    Dropout and augmentation are off. Sums over batches are divided once, by the total weight.
    """
    windows = experiment.windows(examples, training=True)

    def total(frozen: Params, params: Params, batch: Mapping[str, jax.Array]):
        loss, weight, _ = experiment.task.loss(experiment.apply({**frozen, **params}, batch), batch)
        return loss, weight

    compiled = PerShape(total, "the validation loss", experiment.say)

    def call(params: Params) -> float:
        batches = experiment.pipeline.evaluate(windows)
        parts = [
            compiled(experiment.frozen, params, put_batch(batch, experiment.mesh))
            for batch in batches
        ]
        losses, weights = np.array(jax.device_get(parts), np.float64).sum(axis=0)
        return float(losses / weights)

    return call
