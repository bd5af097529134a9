"""Log probabilities of tokens, without ever holding the logits of all positions.

A vocabulary of 262,144 pieces makes 1 GB of float32 logits out of 1,024 positions, and training
holds several such arrays. Here logits are made, used and dropped in chunks of positions. Positions
with a target come first, and chunks without any are skipped.

These heads have no parameters: the output projection is the backbone's, and trained with it or not.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import Batch, divergence
from models.t5 import shift_right

Project = Callable[[Any, jax.Array], jax.Array]
_OUTPUT = ("embedder", "mlm_head", "lm_head")  # parameters that a backbone's `logits` reads


class LanguageHead(nn.Module):
    """Log probability of the target token at each position, and the likeliest token.

    Attributes:
        chunk: number of positions whose logits are held at once.
        smoothing: share of the target spread over the vocabulary, while training.
    """

    chunk: int
    smoothing: float = 0.0

    @nn.compact
    def __call__(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch, *, deterministic: bool
    ) -> dict[str, jax.Array]:
        """Returns {'log_probability_RxL' float32, 'best_RxL' int32}; zeros without a target.

        While training also 'hidden_RxLxD', for `divergences`.

        Args:
            backbone: bound, with `logits`.
            hidden_RxLxD: after the last norm.
            batch: 'targets_RxL' is read: int32, 1 + the target's id; 0 is no target.
            deterministic: without `smoothing`.
        """
        if self.is_initializing():
            backbone.logits(hidden_RxLxD)  # bound, so that it makes its parameters
        module = backbone.clone(parent=None, name=None)
        params = {k: v for k, v in backbone.variables["params"].items() if k in _OUTPUT}

        def project(params: Any, hidden_SxD: jax.Array) -> jax.Array:
            return module.apply({"params": params}, hidden_SxD, method="logits")

        scores_RxL, best_RxL = log_probabilities(
            project,
            params,
            hidden_RxLxD,
            targets_RxL=batch["targets_RxL"],
            chunk=self.chunk,
            smoothing=0.0 if deterministic else self.smoothing,
        )
        outputs = {"log_probability_RxL": scores_RxL, "best_RxL": best_RxL}
        return outputs if deterministic else {**outputs, "hidden_RxLxD": hidden_RxLxD}


class Seq2SeqHead(LanguageHead):
    """LanguageHead of an encoder-decoder whose source and target share a segment, source first."""

    @nn.compact
    def __call__(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch, *, deterministic: bool
    ) -> dict[str, jax.Array]:
        """Returns what LanguageHead does.

        Args:
            backbone: bound, with `decode` and `logits`.
            hidden_RxLxD: of the encoder, to which targets are padding.
            batch: tokens, positions, segments; 'is_target_RxL', int32, 1 where a token belongs to a
                target; 'targets_RxL' as for LanguageHead: at a target's token 1 + its own id.
            deterministic: False applies dropout in the decoder.
        """
        segments_RxL, is_target_RxL = batch["segments_RxL"], batch["is_target_RxL"] > 0
        target_segments_RxL = jnp.where(is_target_RxL, segments_RxL, 0)
        start_id = backbone.config.start_id
        decoded_RxLxD = backbone.decode(
            shift_right(batch["tokens_RxL"], target_segments_RxL, start_id=start_id),
            batch["positions_RxL"],  # only their order and distances matter
            target_segments_RxL,
            hidden_RxLxD,
            jnp.where(is_target_RxL, 0, segments_RxL),
            deterministic=deterministic,
        )
        return super().__call__(backbone, decoded_RxLxD, batch, deterministic=deterministic)


def log_probabilities(
    project: Project,
    params: Any,
    hidden_RxLxD: jax.Array,
    *,
    targets_RxL: jax.Array,
    chunk: int,
    smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Scores tokens in chunks of positions; the gradient's memory is bounded as well.

    A chunk holds the same number of positions of each row, so that rows may be on different
    devices. Within a row the positions with a target come first, and chunks without any are
    skipped: five of six for masked language models.

    Args:
        project: (params, hidden [S, D]) -> float32 logits [S, V].
        params: of `project`; a tree of floats.
        hidden_RxLxD: hidden states.
        targets_RxL: int32, 1 + the token; 0 is no target.
        chunk: number of positions whose logits are held at once, but at least one of each row.
        smoothing: share of each score that is the mean over the vocabulary (1512.00567).

    Returns:
        Log probability [R, L], float32, and the likeliest token [R, L], int32; zeros without a
        target.
    """
    chunks, whole = _chunks(targets_RxL, chunk)
    hidden_KxSxD, targets_KxS = chunks(hidden_RxLxD), chunks(targets_RxL)
    # Traced here, since in the backward pass Linen's method interceptors are no longer active.
    project, _ = jax.closure_convert(project, params, jnp.zeros_like(hidden_KxSxD[0]))
    score = functools.partial(_scores, smoothing, project)
    scores_KxS, best_KxS = _chunked(score, params, hidden_KxSxD, targets_KxS)
    return whole(scores_KxS), whole(best_KxS)


def divergences(
    projections: tuple[Callable[[jax.Array], jax.Array], ...],
    hidden_RxLxD: jax.Array,
    others_RxLxD: jax.Array,
    *,
    targets_RxL: jax.Array,
    chunk: int,
) -> jax.Array:
    """Returns how far two predictions of each token are apart, see models.layers.divergence.

    Chunk by chunk as `log_probabilities`; logits are made again in the backward pass.

    Args:
        projections: hidden [S, D] -> float32 logits [S, V], of either pass.
        hidden_RxLxD, others_RxLxD: hidden states of two passes.
        targets_RxL, chunk: see `log_probabilities`.

    Returns:
        float32 [R, L]; zeros without a target.
    """
    chunks, whole = _chunks(targets_RxL, chunk)

    @jax.checkpoint
    def apart(hidden_SxD: jax.Array, others_SxD: jax.Array, targets_S: jax.Array) -> jax.Array:
        sides = (jnp.where(targets_S[:, None] > 0, x, 0) for x in (hidden_SxD, others_SxD))
        logits = (project(side) for project, side in zip(projections, sides, strict=True))
        return jnp.where(targets_S > 0, divergence(*logits), 0.0)

    parts = tuple(map(chunks, (hidden_RxLxD, others_RxLxD, targets_RxL)))
    return whole(jax.lax.map(lambda part: apart(*part), parts))


def _chunks(targets_RxL: jax.Array, chunk: int) -> tuple[Callable, Callable]:
    """Returns what cuts [R, L, ...] into [number, S, ...], targets first, and what undoes it."""
    rows, length = targets_RxL.shape
    step = min(length, max(1, chunk // rows))
    padding = -length % step
    order_RxL = jnp.argsort(targets_RxL == 0, axis=1, stable=True)
    back_RxL = jnp.argsort(order_RxL, axis=1)

    def chunks(x_RxL: jax.Array) -> jax.Array:
        rest = [1] * (x_RxL.ndim - 2)
        x_RxL = jnp.take_along_axis(x_RxL, order_RxL.reshape(rows, length, *rest), axis=1)
        x_RxL = jnp.pad(x_RxL, ((0, 0), (0, padding), *[(0, 0) for _ in rest]))
        x_RxKxS = x_RxL.reshape(rows, -1, step, *x_RxL.shape[2:])
        return x_RxKxS.swapaxes(0, 1).reshape(-1, rows * step, *x_RxL.shape[2:])

    def whole(x_KxS: jax.Array) -> jax.Array:
        x_RxL = x_KxS.reshape(-1, rows, step).swapaxes(0, 1).reshape(rows, -1)[:, :length]
        return jnp.take_along_axis(x_RxL, back_RxL, axis=1)

    return chunks, whole


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    score: Callable, params: Any, hidden_KxSxD: jax.Array, targets_KxS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Scores chunk by chunk: log probabilities and likeliest tokens, [K, S]."""
    return jax.lax.map(
        lambda part: _if_asked(functools.partial(score, params), *part),
        (hidden_KxSxD, targets_KxS),
    )


def _chunked_forward(
    score: Callable, params: Any, hidden_KxSxD: Any, targets_KxS: Any
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    """Also computes the gradient of each position's score by its hidden state from the same logits.

    With a frozen projection that is all, and its logits are never made a second time.
    """
    trained = any(leaf.perturbed for leaf in jax.tree.leaves(params, is_leaf=_is_primal))
    params = jax.tree.map(lambda leaf: leaf.value, params, is_leaf=_is_primal)
    hidden_KxSxD, targets_KxS = hidden_KxSxD.value, targets_KxS.value

    def with_slopes(hidden_SxD: jax.Array, targets_S: jax.Array) -> tuple[jax.Array, ...]:
        scores_S, pull, best_S = jax.vjp(
            lambda hidden: score(params, hidden, targets_S), hidden_SxD, has_aux=True
        )
        return scores_S, best_S, *pull(jnp.ones_like(scores_S))

    scores_KxS, best_KxS, slopes_KxSxD = jax.lax.map(
        lambda part: _if_asked(with_slopes, *part), (hidden_KxSxD, targets_KxS)
    )
    kept = (params, hidden_KxSxD, targets_KxS) if trained else (params, None, None)
    return (scores_KxS, best_KxS), (*kept, slopes_KxSxD)


def _chunked_backward(score: Callable, kept: tuple, gradients: tuple) -> tuple:
    """Multiplies the slopes; for the gradient of `params` logits are made again, by chunk."""
    params, hidden_KxSxD, targets_KxS, slopes_KxSxD = kept
    gradient_KxS = gradients[0]
    if isinstance(gradient_KxS, jax.custom_derivatives.SymbolicZero):
        gradient_KxS = jnp.zeros(gradient_KxS.shape, gradient_KxS.dtype)
    to_hidden_KxSxD = (slopes_KxSxD * gradient_KxS[..., None]).astype(slopes_KxSxD.dtype)
    to_params = jax.tree.map(jnp.zeros_like, params)
    if hidden_KxSxD is None:
        return to_params, to_hidden_KxSxD, None

    def add(total: Any, part: tuple) -> tuple[Any, None]:
        hidden_SxD, targets_S, gradient_S = part

        def more(total: Any) -> Any:
            def scores(params: Any) -> jax.Array:
                return score(params, hidden_SxD, targets_S)[0]

            (change,) = jax.vjp(scores, params)[1](gradient_S)
            return jax.tree.map(jnp.add, total, change)

        return jax.lax.cond(jnp.any(targets_S > 0), more, lambda total: total, total), None

    parts = (hidden_KxSxD, targets_KxS, gradient_KxS)
    return jax.lax.scan(add, to_params, parts)[0], to_hidden_KxSxD, None


_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _if_asked(score: Callable, hidden_SxD: jax.Array, targets_S: jax.Array) -> Any:
    """Calls `score`, or returns zeros for a chunk without a target."""
    shapes = jax.eval_shape(score, hidden_SxD, targets_S)

    def nothing(*_: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(jnp.any(targets_S > 0), score, nothing, hidden_SxD, targets_S)


def _scores(
    smoothing: float, project: Project, params: Any, hidden_SxD: jax.Array, targets_S: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns log probabilities of the targets, zero without one, and the likeliest tokens."""
    # Replaced here, not multiplied below: 0 * NaN of padding would reach the gradient.
    logits_SxV = project(params, jnp.where(targets_S[:, None] > 0, hidden_SxD, 0))
    chosen_Sx1 = jnp.take_along_axis(logits_SxV, jnp.maximum(targets_S - 1, 0)[:, None], axis=1)
    chosen_S = chosen_Sx1[:, 0]
    if smoothing:
        chosen_S = (1 - smoothing) * chosen_S + smoothing * jnp.mean(logits_SxV, axis=1)
    scores_S = chosen_S - jax.nn.logsumexp(logits_SxV, axis=1)
    best_S = jnp.argmax(logits_SxV, axis=1).astype(jnp.int32)
    return jnp.where(targets_S > 0, scores_S, 0.0), jnp.where(targets_S > 0, best_S, 0)
