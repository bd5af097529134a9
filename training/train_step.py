"""One optimiser step as a pure function: microbatches, gradient, clipping, AdamW, new state."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from training.state import Params, TrainState, random_stream

Batch = Mapping[str, jax.Array]
Apply = Callable[..., Any]
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


def make_train_step(
    apply: Apply,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: float,
    schedule: Callable[[jax.Array], jax.Array],
    batch_size: int,
    seed: int,
    gates: Callable[[jax.Array], Mapping[str, jax.Array]] | None = None,
    ema: float = 0.0,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `train_step(state, frozen, batch) -> (state, metrics)`; jit it with `state` donated.

    Args:
      apply: `apply(flat_params, batch, rng) -> outputs`, with dropout where rng is given.
      loss: `loss(outputs, batch) -> (sum, weight, sums)` over the batch's examples.
      optimizer: its updates are for a learning rate of 1; its update may take `is_taught`.
      learning_rate: the peak.
      schedule: factor on it, as a function of the examples seen.
      batch_size: examples a step, over all microbatches.
      seed: of the dropout stream.
      gates: factor 0 or 1 on each path's update, as a function of the examples seen.
      ema: decay of TrainState.average, at most (1 + step) / (10 + step), so that a
        short run forgets its initial weights; used where the state has an average.

    The batch's arrays start with the microbatch axis M. Sums are divided by the total weight once,
    so that M microbatches equal one large batch. A total weight of 0, of a batch whose every label
    is masked, leaves all but the counters of the state as they are: neither weight decay nor
    momentum acts; metrics['weight'] says so.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(
        state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        step_rng = random_stream(seed, "dropout", state.step)

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
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.params, is_taught=is_taught
        )
        # The rate of a step is the schedule at the middle of its examples: neither the first nor
        # the last step is wasted on a rate of zero, whatever the batch size.
        rate = learning_rate * schedule(state.examples + batch_size / 2)
        if gates:
            updates = {path: updates[path] * gate for path, gate in gates(state.examples).items()}
        applied = rate * is_taught
        params = jax.tree.map(lambda p, u: p + applied * u, state.params, updates)
        average = state.average
        if average is not None:
            decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
            share = (1 - decay) * is_taught
            average = jax.tree.map(lambda a, p: a + share * (p - a), average, params)
        metrics = {
            "weight": weight * is_taught,
            "loss": total / weight,
            **{name: value / weight for name, value in sums.items()},
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": rate,
        }
        seen = state.examples + batch_size
        state = TrainState(state.step + 1, seen, params, optimizer_state, average)
        return state, metrics

    return train_step
