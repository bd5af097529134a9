"""How far two computations of the same thing are apart: the rows of the parity certificate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from workflows.verify.reference import Logits

_CHUNK = 128  # positions whose logits over the whole vocabulary are held at once
_TOP = 5


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the certificate.

    Attributes:
        name: what is compared with what.
        quantity: 'logits', 'hidden states' or 'pooled output'.
        maximum: largest absolute difference.
        mean: mean absolute difference.
        judged: whether `maximum` must stay within the tolerance.
        positions: compared.
        kl: Kullback-Leibler divergence of this model's distributions from the expected ones, mean
            over positions, in nats; where just some logits are known, over these and the rest
            together, which is a lower bound. None without logits.
        top1: share of positions with the same first choice.
        top5: share of the expected first five that are among the first five here.
    """

    name: str
    quantity: str
    maximum: float
    mean: float
    judged: bool
    positions: int
    kl: float | None = None
    top1: float | None = None
    top5: float | None = None


def compare(name: str, quantity: str, actual: Any, expected: Any, *, judged: bool = True) -> Row:
    """Compares arrays of any shape [P, ...].

    Raises:
        ValueError: the shapes differ.
    """
    actual, expected = (np.asarray(array, np.float32) for array in (actual, expected))
    _check_shapes(name, quantity, actual, expected)
    difference = np.abs(actual - expected)
    maximum, mean = float(difference.max()), float(difference.mean())
    return Row(name, quantity, maximum, mean, judged, len(actual))


def compare_logits(
    name: str,
    actual: Callable[[slice], Logits],
    expected: Callable[[slice], Logits],
    *,
    count: int,
    judged: bool = True,
) -> Row:
    """Compares logits of `count` positions, a few positions at a time.

    Args:
        name: for the row.
        actual: positions -> this model's logits, of the whole vocabulary.
        expected: positions -> those to compare with, of the whole vocabulary or of some ids.
        count: positions.
        judged: see Row.

    Raises:
        ValueError: the vocabularies differ.
    """
    totals = []
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        actual_PxV, reference = actual(part).values_PxC, expected(part)
        axes = None if reference.ids_PxC is None else 1  # of some ids, only the positions can agree
        _check_shapes(name, "logits", actual_PxV, reference.values_PxC, axes=axes)
        totals.append([float(value) for value in _logit_statistics(actual_PxV, *reference)])
    maxima, means, kls, firsts, fives = np.array(totals).T
    weights = [min(_CHUNK, count - start) / count for start in range(0, count, _CHUNK)]
    known = np.isfinite(kls).all()
    return Row(
        name=name,
        quantity="logits",
        maximum=float(maxima.max()),
        mean=float(means @ weights),
        judged=judged,
        positions=count,
        kl=float(kls @ weights) if known else None,
        top1=float(firsts.sum() / count),
        top5=float(fives.sum() / count),
    )


def _check_shapes(
    name: str, quantity: str, actual: Any, expected: Any, *, axes: int | None = None
) -> None:
    if actual.shape[:axes] != expected.shape[:axes]:
        raise ValueError(
            f"{name}: {quantity} have shape {actual.shape} here and {expected.shape} in the "
            "reference: it is of another checkpoint"
        )


@jax.jit
def _logit_statistics(
    actual_PxV: jax.Array,
    values_PxC: jax.Array,
    ids_PxC: jax.Array | None,
    log_normalizer_P: jax.Array | None,
) -> tuple[jax.Array, ...]:
    """Returns maximum and mean difference, KL, and positions that agree in the first 1 and 5."""
    actual_PxC = actual_PxV
    if ids_PxC is not None:
        actual_PxC = jnp.take_along_axis(actual_PxV, ids_PxC, axis=1)
    elif log_normalizer_P is None:
        log_normalizer_P = jax.nn.logsumexp(values_PxC, axis=1)
    difference_PxC = jnp.abs(actual_PxC - values_PxC)
    kl = jnp.nan
    if log_normalizer_P is not None:
        expected_PxC = values_PxC - log_normalizer_P[:, None]
        log_actual_PxC = actual_PxC - jax.nn.logsumexp(actual_PxV, axis=1, keepdims=True)
        terms_PxC = jnp.exp(expected_PxC) * (expected_PxC - log_actual_PxC)
        kl_P = terms_PxC.sum(axis=1)
        if ids_PxC is not None:  # the other ids count as one
            rest_P, rest_actual_P = (
                jnp.maximum(1 - jnp.exp(logs_PxC).sum(axis=1), 1e-6)
                for logs_PxC in (expected_PxC, log_actual_PxC)
            )
            kl_P += rest_P * jnp.log(rest_P / rest_actual_P)
        kl = jnp.maximum(kl_P, 0).mean()
    top = min(_TOP, values_PxC.shape[1])
    chosen_Px5 = jax.lax.top_k(values_PxC, top)[1]
    if ids_PxC is not None:
        chosen_Px5 = jnp.take_along_axis(ids_PxC, chosen_Px5, axis=1)
    actual_Px5 = jax.lax.top_k(actual_PxV, top)[1]
    # Counts, not shares: a share of all must be 1, and no more than that.
    agree = (chosen_Px5[:, :, None] == actual_Px5[:, None, :]).any(axis=2).sum() / top
    same = (chosen_Px5[:, 0] == actual_Px5[:, 0]).sum()
    return difference_PxC.max(), difference_PxC.mean(), kl, same, agree
