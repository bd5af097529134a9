"""A run's own loss over a whole split, and its gradient, after training.

Called by trials.py for soups whose weights are learned, and by a benchmark.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
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


def loss_gradient(
    experiment: Experiment, examples: Examples
) -> Callable[[Params], tuple[float, dict[str, jax.Array]]]:
    """Returns a function of parameters to (mean loss, its gradient), compiled once.

    Dropout and augmentation are off. Sums over batches are divided once, by the total weight.

    Raises:
        ValueError: by the function, where no example has a label.
    """
    windows = experiment.windows(examples, training=True)

    def gradient(frozen: Params, params: Params, batch: Mapping[str, jax.Array]):
        def total(params: Params):
            outputs = experiment.apply({**frozen, **params}, batch)
            loss, weight, _ = experiment.task.loss(outputs, batch)
            return loss, weight

        return jax.value_and_grad(total, has_aux=True)(params)

    compiled = PerShape(gradient, "the gradient of the soup", experiment.say)

    def call(params: Params) -> tuple[float, dict[str, jax.Array]]:
        sums = None
        for batch in experiment.pipeline.evaluate(windows):
            found = compiled(experiment.frozen, params, put_batch(batch, experiment.mesh))
            sums = found if sums is None else _sum(sums, found)
        (loss, weight), slope = sums
        if not weight > 0:
            raise ValueError(
                "config.integrate.methods: 'learned_soup' needs validation examples with labels, "
                f"none of {len(examples)} has one"
            )
        return float(loss / weight), jax.tree.map(lambda leaf: leaf / weight, slope)

    return call


_sum = jax.jit(lambda first, second: jax.tree.map(jnp.add, first, second))
