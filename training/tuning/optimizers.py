"""AdamW whose learning rate, decay and freezing follow regex tables over parameter paths.

Parameters are flat dicts from path ('backbone/layer_0/mlp/up/kernel') to array. The learning rate
itself is applied in train_step.py, since it depends on the examples seen.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

Table = Sequence[tuple[str, float | None]]


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


def make_optimizer(
    config: ConfigDict, factors: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """Builds AdamW with bias correction; its updates are for a learning rate of 1.

    Args:
      config: config.optimizer.
      factors: factor on the learning rate of every trainable path.
    """
    decays = match_table(config.decay_table, factors, "optimizer.decay_table")

    def decay_and_scale(updates: dict[str, jax.Array], params: dict[str, jax.Array]) -> dict:
        return {
            path: -factors[path] * (update + config.weight_decay * decays[path] * params[path])
            for path, update in updates.items()
        }

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adam = scale_by_adam(config.b1, config.b2, config.eps)
    return optax.chain(clip, adam, optax.stateless(decay_and_scale))


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
