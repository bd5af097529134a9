"""One optimiser step as a pure function: microbatches, gradient, optimiser, new state."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from input_pipeline.batches.mixture import is_read
from training.state import Params, TrainState
from training.tuning.optimizers import gradient_point
from training.tuning.regularizers import Batch, Place, Regularizers

Result = tuple[tuple[jax.Array, dict[str, jax.Array]], Params]  # loss, sums; gradients

_ASCENT_SHARE = 4  # of the batch: the ascent of SAM reads a fourth of it, as in 2110.08529


def make_train_step(
    regularizers: Regularizers,
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: float,
    schedule: Callable[[jax.Array], Mapping[str, jax.Array]],
    batch_size: int,
    ema: float = 0.0,
    swa_from: int | None = None,
    sam: float = 0.0,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `train_step(state, frozen, batch) -> (state, metrics)`; jit it with `state` donated.

    Args:
      regularizers: the gradient of a microbatch, and what changes it.
      optimizer: see optimizers.make_optimizer.
      learning_rate: the peak.
      schedule: factors on it by path, as a function of the examples seen; see schedules.py.
      batch_size: examples a step, over all microbatches.
      ema: decay of TrainState.average, at most (1 + step) / (10 + step), so that a
        short run forgets its initial weights; used where the state has an average.
      swa_from: examples after which that average weighs all steps alike instead (SWA, 1803.05407);
        until then it is the weights.
      sam: radius of the ascent (SAM, 2010.01412): gradients are those at weights of a higher loss.

    The batch's arrays start with the microbatch axis M. Sums are divided by the total weight once,
    so that M microbatches equal one large batch. A total weight of 0, of a batch whose every label
    is masked, leaves all but the counters of the state as they are: neither weight decay nor
    momentum acts; metrics['weight'] says so. A batch of one of several tasks leaves the heads of
    the others, with their moments, as they are.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(
        state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        pretrained, step = state.pretrained, state.step

        def gradient(params: Params, batch: Batch) -> Result:
            """Returns the sums over the microbatches."""
            weights, pull = jax.vjp(lambda p: regularizers.weights(p, pretrained, step), params)
            result, gradients = _accumulated(regularizers, weights, frozen, batch, step)
            return result, pull(gradients)[0]

        params = point = gradient_point(state.params, state.optimizer)
        if sam:
            _, slope = gradient(params, _first_part(batch))
            reach = sam / jnp.maximum(optax.tree.norm(slope), 1e-12)
            params = jax.tree.map(lambda p, g: p + reach * g, params, slope)
        (total, sums), gradients = gradient(params, batch)

        weight = sums.pop("weight")
        # Without a label all gradients are 0. What else would move goes by scalars that are then
        # 0: a choice between old and new arrays would cost a pass over them, and other rounding.
        is_taught = weight != 0  # a weight that is not a number counts: its loss ends the run
        weight = jnp.where(is_taught, weight, 1.0)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        gradients = regularizers.after(gradients, point, pretrained, step, is_taught)
        # The rate of a step is the schedule at the middle of its examples: neither the first nor
        # the last step is wasted on a rate of zero, whatever the batch size.
        peak = learning_rate if state.rate is None else learning_rate * state.rate
        rates = {p: peak * f for p, f in schedule(state.examples + batch_size / 2).items()}
        changes, optimizer_state = optimizer.update(
            {path: g for path, g in gradients.items() if is_read(path, batch)},
            state.optimizer,
            state.params,
            rates={path: rate * is_taught for path, rate in rates.items()},
            is_taught=is_taught,
        )
        params = {
            path: p + changes[path] if path in changes else p for path, p in state.params.items()
        }
        average = state.average
        if average is not None:
            share = is_taught * _average_share(state, ema, swa_from, batch_size)
            average = jax.tree.map(lambda a, p: a + share * (p - a), average, params)
        metrics = {
            "weight": weight * is_taught,
            "loss": total / weight,
            **{name: value / weight for name, value in sums.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.stack([*rates.values()]).max(),
        }
        seen = state.examples + batch_size
        counters = step + 1, seen
        kept = pretrained, state.rate
        return TrainState(*counters, params, optimizer_state, average, *kept), metrics

    return train_step


def _average_share(
    state: TrainState, ema: float, swa_from: int | None, batch_size: int
) -> jax.Array:
    """Returns how much of a running average the weights of a step are; see make_train_step."""
    if swa_from is None:
        return 1 - jnp.minimum(ema, (1 + state.step) / (10 + state.step))
    # 1 / n of the n-th step from there on, before it 1: the weights themselves
    return 1 / (1 + jnp.maximum(state.examples - swa_from, 0) // batch_size)


def _accumulated(
    regularizers: Regularizers, params: Params, frozen: Params, batch: Batch, step: jax.Array
) -> Result:
    """Returns sums over the microbatches of their losses and gradients."""

    def gradient(index: jax.Array, part: Batch) -> Result:
        return regularizers.gradient(params, frozen, part, Place(step, index))

    def accumulate(carry: Any, indexed: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(*indexed)), None

    count, batch = batch["weights_B"].shape[0], regularizers.joined(params, frozen, batch, step)
    first = jax.tree.map(lambda array: array[0], dict(batch))
    if count == 1:
        return gradient(jnp.int32(0), first)
    shapes = jax.eval_shape(gradient, jnp.int32(0), first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    parts = (jnp.arange(count, dtype=jnp.int32), dict(batch))
    return jax.lax.scan(accumulate, zeros, parts)[0]


def _first_part(batch: Batch) -> Batch:
    """Returns the microbatches with the first examples; the others have no weight."""
    count, size = batch["weights_B"].shape
    examples = -(-count * size // _ASCENT_SHARE)
    part = {name: array[: -(-examples // size)] for name, array in batch.items()}
    numbers = jnp.arange(part["weights_B"].size).reshape(-1, size)
    return {**part, "weights_B": jnp.where(numbers < examples, part["weights_B"], 0.0)}
