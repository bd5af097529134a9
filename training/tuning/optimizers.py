"""Optimisers whose learning rate, decay and freezing follow regex tables over parameter paths.

Parameters are flat dicts from path ('backbone/layer_0/mlp/up/kernel') to array. The rates of a step
come from train_step.py, since they depend on the examples seen: see schedules.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from input_pipeline.batches.mixture import head_of

Table = Sequence[tuple[str, float | None]]
Params = Mapping[str, jax.Array]
Change = Callable[[Params, Params, Params], dict[str, jax.Array]]  # of directions, params, rates


def match_table(table: Table, paths: Iterable[str], key: str) -> dict[str, float | None]:
    """Gives each path the value of the first row whose regex matches it fully.

    Raises:
      ValueError: a regex is invalid or a path is matched by no row.
    """
    try:
        rows = [(re.compile(pattern), value) for pattern, value in table]
    except re.error as error:
        raise ValueError(f"config.{key}: {error.pattern!r} is not a regex: {error}") from None
    values, unmatched = {}, []
    for path in paths:
        for pattern, value in rows:
            if pattern.fullmatch(path):
                values[path] = value
                break
        else:
            unmatched.append(path)
    if unmatched:
        raise ValueError(
            f"config.{key}: no row matches {', '.join(unmatched[:5])} ({len(unmatched)} "
            "parameters); add a last row ('.*', 1.0)"
        )
    return values


def layer_decay_table(num_layers: int, decay: float, *, decoder_layers: int = 0) -> Table:
    """Returns the table of layer-wise learning-rate decay (ELECTRA, 2003.10555, section 3.1).

    The head and what follows the last layer keep 1; layer i has decay ** (num_layers - i) and the
    embeddings one factor more than layer 0. Of an encoder-decoder the decoder's layers stand on
    top of the encoder's, as in gradual unfreezing: its layer j has decay ** (decoder_layers - j),
    and all of the encoder's have decoder_layers factors more, its last norm too. A bias by distance
    that the layers of a stack share lives in the first of them. A prompt starts from nothing, as
    heads do, and keeps 1.

    Args:
      num_layers: with parameters of their own, without a decoder's.
      decay: factor per layer.
      decoder_layers: of the decoder of an encoder-decoder, 0 where none is trained.
    """
    table = [(r"backbone/embedder/prompt", 1.0)]
    stacks = {"backbone": (num_layers, decoder_layers), "backbone/decoder": (decoder_layers, 0)}
    for stack, (count, above) in stacks.items():
        table += [
            (rf"{stack}/layer_{i}/.*", decay ** (above + count - i)) for i in reversed(range(count))
        ]
        table.append((rf"{stack}/relative_bias/.*", decay ** (above + count)))
        table.append((rf"{stack}/final_norm/.*", decay**above))
    embedder = (r"backbone/embedder.*", decay ** (num_layers + decoder_layers + 1))
    return [*table, embedder, (".*", 1.0)]


def learning_rate_factors(
    config: ConfigDict, paths: Iterable[str], num_layers: int, *, decoder_layers: int = 0
) -> dict[str, float | None]:
    """Returns each path's factor on the learning rate; None where the parameter is frozen."""
    paths = list(paths)
    factors = match_table(config.lr_table, paths, "optimizer.lr_table")
    table = layer_decay_table(num_layers, config.layer_decay, decoder_layers=decoder_layers)
    decays = match_table(table, paths, "optimizer.layer_decay")
    return {
        path: None if factor is None else factor * decays[path] for path, factor in factors.items()
    }


def check(config: ConfigDict) -> None:
    """Raises ValueError for methods that exclude each other.

    Args:
      config: the whole config.
    """
    if config.optimizer.name == "schedule_free":
        for key, value, expected in (
            ("schedule.name", config.schedule.name, "constant"),
            ("train.ema", config.train.ema, 0.0),
            ("train.swa_from", config.train.swa_from, ""),
        ):
            if value != expected:
                raise ValueError(
                    f"config.optimizer.name='schedule_free' averages the weights instead of "
                    f"lowering the rate: set config.{key}={expected!r}, found {value!r}"
                )
    if config.schedule.table and config.adapt.unfreeze_every:
        raise ValueError(
            "config.schedule.table and config.adapt.unfreeze_every both say when a parameter "
            "starts to learn: use one of them"
        )


def make_optimizer(
    config: ConfigDict, factors: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimiser that config.optimizer.name names: clip, scale, decay, change.

    Its `update(gradients, state, params, rates=..., is_taught=...)` returns the changes of the
    parameters that have a gradient. `rates` are the learning rates by path; where the bool scalar
    `is_taught` is false, rates and gradients are 0 and nothing but counters of steps moves.

    Args:
      config: config.optimizer.
      factors: factor on the learning rate of every trainable path.
    """
    decays = match_table(config.decay_table, factors, "optimizer.decay_table")

    def change(updates: Params, params: Params, rates: Params) -> dict[str, jax.Array]:
        return {
            path: rates[path]
            * (-factors[path] * (update + config.weight_decay * decays[path] * params[path]))
            for path, update in updates.items()
        }

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    last = schedule_free(config.b1, change) if config.name == "schedule_free" else _moving(change)
    return optax.chain(clip, _scale(config, factors), last)


def _scale(config: ConfigDict, paths: Iterable[str]) -> optax.GradientTransformationExtraArgs:
    """Returns what turns gradients into directions, whose state is the optimiser's memory.

    AdamW (1711.05101). Adafactor (1804.04235): second moments as row and column means, updates
    clipped to a root mean square of 1 and relative to the parameter's, no first moment. Lion
    (2302.06675): the sign of a moving average, with the published decay of 0.99. SGD with
    heavy-ball momentum b1. Schedule-free AdamW (2405.15682): see `schedule_free`. Muon
    (https://kellerjordan.github.io/posts/muon/): momentum of 0.95, orthogonalised, on the matrices
    of layers, scaled to the size of AdamW's updates (2502.16982, equation 4), so that both parts
    share a rate; AdamW on the rest.
    """
    scales = {
        "adamw": scale_by_adam(config.b1, config.b2, config.eps),
        "adafactor": _if_taught(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(1e-3),
        ),
        "lion": _if_taught(optax.scale_by_lion(config.b1, 0.99)),
        "sgd": _if_taught(optax.trace(config.b1)),
        "schedule_free": _if_taught(
            optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False, bias_correction=True)
        ),
    }
    if config.name != "muon":
        groups = {path: head_of(path) or "shared" for path in paths}
        return _by_group(groups, lambda _: scales[config.name])
    muon = _if_taught(
        optax.contrib.scale_by_muon(
            beta=0.95,
            weight_dimension_numbers=lambda updates: dict.fromkeys(
                updates, optax.contrib.MuonDimensionNumbers()
            ),
        ),
        optax.stateless_with_tree_map(lambda u, _: 0.2 * max(u.shape) ** 0.5 * u),
    )
    groups = {path: "matrices" if is_matrix(path) else head_of(path) or "shared" for path in paths}
    return _by_group(groups, lambda name: muon if name == "matrices" else scales["adamw"])


def is_matrix(path: str) -> bool:
    """Returns whether Muon takes a parameter: a linear map of a layer."""
    return re.fullmatch(r"backbone/(.*/)?layer_\d+/.*kernel", path) is not None


def _by_group(
    groups: Mapping[str, str], scale_of: Callable[[str], optax.GradientTransformationExtraArgs]
) -> optax.GradientTransformationExtraArgs:
    """Gives each group of paths a transformation with a state, and counters, of its own.

    A group without a gradient keeps its state: the heads of the other tasks, see mixture.is_read.
    """
    scales = {name: scale_of(name) for name in sorted(set(groups.values()))}
    if len(scales) == 1:
        return next(iter(scales.values()))

    def part(tree: Params, name: str) -> dict[str, jax.Array]:
        return {path: value for path, value in tree.items() if groups[path] == name}

    def init(params: Params) -> dict[str, optax.OptState]:
        return {name: scale.init(part(params, name)) for name, scale in scales.items()}

    def update(gradients: Params, state: dict, params: Params, **extra: Any) -> tuple[dict, dict]:
        updates, state = {}, dict(state)
        for name in sorted({groups[path] for path in gradients}):
            sides = part(gradients, name), state[name], part(params, name)
            changed, state[name] = scales[name].update(*sides, **extra)
            updates |= changed
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def _if_taught(
    *parts: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Chains transformations, whose state stays as it is where `is_taught` is false."""
    scale = optax.chain(*parts)

    def update(
        gradients: Params,
        state: optax.OptState,
        params: Params,
        *,
        is_taught: jax.Array | bool = True,
        **_: Any,
    ) -> tuple[Params, optax.OptState]:
        new = scale.update(gradients, state, params)
        return jax.tree.map(lambda a, b: jnp.where(is_taught, a, b), new, (gradients, state))

    return optax.GradientTransformationExtraArgs(scale.init, update)


def _moving(change: Change) -> optax.GradientTransformationExtraArgs:
    """Returns the last part of an optimiser: directions to changes of the parameters."""

    def update(
        updates: Params, state: optax.OptState, params: Params, *, rates: Params, **_: Any
    ) -> tuple[Params, optax.OptState]:
        return change(updates, params, rates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class ScheduleFreeState(NamedTuple):
    """What schedule-free learning keeps beside x, the parameters."""

    b1: jax.Array  # float32 scalar
    weights: dict[str, jax.Array]  # of each parameter the sum of its squared rates, float32 scalar
    z: dict[str, jax.Array]  # where the steps go


def schedule_free(b1: float, change: Change) -> optax.GradientTransformationExtraArgs:
    """Returns the last part of an optimiser without a schedule (2405.15682, algorithm 1).

    Steps move z, from gradients at y = (1 - b1) z + b1 x (see `gradient_point`). The parameters
    x are the average of all z, weighted by the squared rates: what is evaluated, saved and joined
    is x itself. Rates are summed for each parameter, so that one that learns later, or only in
    some steps, forgets its start as fast as the others.
    """

    def init(params: Params) -> ScheduleFreeState:
        zeros = {path: jnp.zeros((), jnp.float32) for path in params}
        z = jax.tree.map(jnp.copy, params)  # both are donated
        return ScheduleFreeState(jnp.float32(b1), zeros, z)

    def update(
        updates: Params, state: ScheduleFreeState, params: Params, *, rates: Params, **_: Any
    ) -> tuple[Params, ScheduleFreeState]:
        weights, z, changes = dict(state.weights), dict(state.z), {}
        for path, step in change(updates, gradient_point(params, (state,)), rates).items():
            z[path] += step
            weights[path] += rates[path] ** 2
            # No rate so far: x stays. The least number above 0 spares a division by 0.
            share = rates[path] ** 2 / jnp.maximum(weights[path], jnp.finfo(jnp.float32).tiny)
            changes[path] = share * (z[path] - params[path])
        return changes, ScheduleFreeState(state.b1, weights, z)

    return optax.GradientTransformationExtraArgs(init, update)


def gradient_point(params: Params, state: optax.OptState) -> Params:
    """Returns where the gradient is computed: at the parameters, or y of `schedule_free`."""
    last = state[-1] if state else None
    if not isinstance(last, ScheduleFreeState):
        return params
    return {path: x + (1 - last.b1) * (last.z[path] - x) for path, x in params.items()}


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Returns optax.scale_by_adam, whose update takes `is_taught` too.

    That is a bool scalar: where it is false, gradients are 0, the state stays as it is and no
    update is NaN.
    """

    def update(
        gradients: dict[str, jax.Array],
        state: optax.ScaleByAdamState,
        params: dict[str, jax.Array] | None = None,
        *,
        is_taught: jax.Array | bool = True,
        **_: Any,
    ) -> tuple[dict[str, jax.Array], optax.ScaleByAdamState]:
        del params

        def moment(decay: float, order: int, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
            kept = jnp.where(is_taught, decay, 1.0)
            return jax.tree.map(lambda g, m: (1 - decay) * g**order + kept * m, gradients, old)

        mu, nu = moment(b1, 1, state.mu), moment(b2, 2, state.nu)
        count = state.count + jnp.int32(is_taught)
        past = jnp.maximum(count, 1)  # before the first step that teaches, no division by 0
        means = optax.tree.bias_correction(mu, b1, past)
        squares = optax.tree.bias_correction(nu, b2, past)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), means, squares)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam().init, update)


def describe(
    config: ConfigDict,
    params: Mapping[str, jax.Array],
    num_layers: int,
    decoder_layers: int = 0,
) -> list[str]:
    """Says in prose which row of each table took which parameters."""
    lines = []
    if config.name == "muon":
        factors = match_table(config.lr_table, params, "optimizer.lr_table")
        taken = [path for path in params if is_matrix(path) and factors[path] is not None]
        size = sum(jax.tree.leaves(params[path])[0].size for path in taken)
        lines.append(f"Muon takes {len(taken)} matrices, {size / 1e6:.1f}M values; AdamW the rest.")
    for key in ("lr_table", "decay_table"):
        left = dict(params)
        for pattern, value in config[key]:
            taken = [path for path in left if re.fullmatch(pattern, path)]
            size = sum(jax.tree.leaves(left.pop(path))[0].size for path in taken)
            effect = "frozen" if value is None else f"x{value:g}"
            lines.append(
                f"optimizer.{key}: {pattern!r} ({effect}) took {len(taken)} parameters, "
                f"{size / 1e6:.1f}M values"
            )
    if config.layer_decay != 1.0:
        lowest = config.layer_decay ** (num_layers + decoder_layers + 1)
        lines.append(
            f"Layer-wise decay {config.layer_decay:g}: the embeddings learn at x{lowest:.2g}"
        )
    return lines
