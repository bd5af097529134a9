"""One optimiser step as a pure function: microbatches, gradient, optimiser, new state."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from input_pipeline.batches.mixture import is_read
from training.state import Params, TrainState, random_stream
from training.tuning.optimizers import gradient_point

Batch = Mapping[str, jax.Array]
Apply = Callable[..., Any]
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


def make_train_step(
    apply: Apply,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: float,
    schedule: Callable[[jax.Array], Mapping[str, jax.Array]],
    batch_size: int,
    seed: int,
    ema: float = 0.0,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `train_step(state, frozen, batch) -> (state, metrics)`; jit it with `state` donated.

    Args:
      apply: `apply(flat_params, batch, rng) -> outputs`, with dropout where rng is given.
      loss: `loss(outputs, batch) -> (sum, weight, sums)` over the batch's examples.
      optimizer: see optimizers.make_optimizer.
      learning_rate: the peak.
      schedule: factors on it by path, as a function of the examples seen; see schedules.py.
      batch_size: examples a step, over all microbatches.
      seed: of the dropout stream.
      ema: decay of TrainState.average, at most (1 + step) / (10 + step), so that a
        short run forgets its initial weights; used where the state has an average.

    The batch's arrays start with the microbatch axis M. Sums are divided by the total weight once,
    so that M microbatches equal one large batch. A total weight of 0, of a batch whose every label
    is masked, leaves all but the counters of the state as they are: neither weight decay nor
    momentum acts; metrics['weight'] says so. A batch of one of several tasks leaves the heads of
    the others, with their moments and averages, as they are.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(
        state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        step_rng = random_stream(seed, "dropout", state.step)
        # Gradients are those at `state.params`, beside the parameters if they are schedule-free.
        start = state.params
        state = state._replace(params=gradient_point(start, state.optimizer))

        def microbatch_loss(params: Params, part: Batch, index: jax.Array) -> Any:
            rng = jax.random.fold_in(step_rng, index)
            total, weight, sums = loss(apply({**frozen, **params}, part, rng), part)
            return total, {"weight": weight, **sums}

        gradient = jax.value_and_grad(microbatch_loss, has_aux=True)

        def accumulate(carry: Any, indexed: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            new = gradient(state.params, indexed[1], indexed[0])
            return jax.tree.map(jnp.add, carry, new), None

        count = batch["weights_B"].shape[0]
        first = jax.tree.map(lambda array: array[0], dict(batch))
        if count == 1:
            (total, sums), gradients = gradient(state.params, first, jnp.int32(0))
        else:
            shapes = jax.eval_shape(gradient, state.params, first, jnp.int32(0))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            parts = (jnp.arange(count, dtype=jnp.int32), dict(batch))
            ((total, sums), gradients), _ = jax.lax.scan(accumulate, zeros, parts)

        weight = sums.pop("weight")
        # Without a label all gradients are 0. What else would move goes by scalars that are then
        # 0: a choice between old and new arrays would cost a pass over them, and other rounding.
        is_taught = weight != 0  # a weight that is not a number counts: its loss ends the run
        weight = jnp.where(is_taught, weight, 1.0)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        # The rate of a step is the schedule at the middle of its examples: neither the first nor
        # the last step is wasted on a rate of zero, whatever the batch size.
        peak = learning_rate if state.rate is None else learning_rate * state.rate
        rates = {p: peak * f for p, f in schedule(state.examples + batch_size / 2).items()}
        changes, optimizer_state = optimizer.update(
            {path: g for path, g in gradients.items() if is_read(path, batch)},
            state.optimizer,
            start,
            rates={path: rate * is_taught for path, rate in rates.items()},
            is_taught=is_taught,
        )
        params = start | {path: start[path] + change for path, change in changes.items()}
        average = state.average
        if average is not None:
            decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
            share = (1 - decay) * is_taught
            average = average | {p: average[p] + share * (params[p] - average[p]) for p in changes}
        metrics = {
            "weight": weight * is_taught,
            "loss": total / weight,
            **{name: value / weight for name, value in sums.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.stack([*rates.values()]).max(),
        }
        seen = state.examples + batch_size
        counters = state.step + 1, seen
        return TrainState(*counters, params, optimizer_state, average, state.rate), metrics

    return train_step
