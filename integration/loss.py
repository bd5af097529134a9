"""The gradient of a run's own loss over a whole split, for what learns from it after training.

Called by trials.py for soups whose weights are learned.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from input_pipeline.examples import Examples
from training.compilation import PerShape
from training.experiment import Experiment
from training.sharding import put_batch

Params = Mapping[str, jax.Array]


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
