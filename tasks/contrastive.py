"""Losses of embedding models: vectors of texts that belong together, or have grades.

Here: functions of normalised vectors under jit. Not here: the task (embedding.py).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Arrays = Mapping[str, jax.Array]
ABSENT = -1e9  # logit of what is no candidate: exp() of it is 0


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors of norm 1; zeros stay, with a finite gradient."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def info_nce(
    vectors_BxKxE: jax.Array, scale_B: jax.Array, batch: Arrays
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns -log of the softmax of each query's passage among all passages of the step.

    InfoNCE (1807.03748). Left out are copies of the query's passage and passages of the same query:
    they would be false negatives.

    Args:
        vectors_BxKxE: normalised; of a query, its passage, and those that are not.
        scale_B: 1 / temperature.
        batch: with queries_B, passages_BxP (P is K - 1) and weights_B.

    Returns:
        losses [B], and the sums 'accuracy', of queries whose passage is the nearest, and 'masked',
        how many passages were left out.
    """
    weights_B, passages_BxP = batch["weights_B"].astype(jnp.float32), batch["passages_BxP"]
    count, places = passages_BxP.shape
    passages_CxE = vectors_BxKxE[:, 1:].reshape(count * places, -1)
    cosines_BxC = jnp.dot(vectors_BxKxE[:, 0], passages_CxE.T, precision=jax.lax.Precision.HIGHEST)
    numbers_C, rows_C = passages_BxP.reshape(-1), jnp.arange(count * places) // places
    own_BxC = jnp.arange(count)[:, None] * places == jnp.arange(count * places)
    there_C = (numbers_C > 0) & (weights_B[rows_C] > 0)
    same_BxC = passages_BxP[:, :1] == numbers_C
    belongs_C = jnp.arange(count * places) % places == 0
    same_BxC |= belongs_C & (batch["queries_B"][:, None] == batch["queries_B"][rows_C])
    masked_BxC = same_BxC & there_C & ~own_BxC
    logits_BxC = jnp.where(there_C & ~masked_BxC, scale_B[:, None] * cosines_BxC, ABSENT)
    own_B = jnp.sum(jnp.where(own_BxC, logits_BxC, 0.0), axis=1)
    losses_B = jnp.where(weights_B > 0, jax.nn.logsumexp(logits_BxC, axis=1) - own_B, 0.0)
    right_B = own_B >= logits_BxC.max(axis=1)
    sums = {
        "accuracy": jnp.sum(weights_B * right_B),
        "masked": jnp.sum(weights_B[:, None] * masked_BxC),
    }
    return losses_B, sums


def distance(
    vectors_BxKxE: jax.Array, scale_B: jax.Array, batch: Arrays, temperature: float
) -> jax.Array:
    """Returns how far each query's distribution over its own passages is from a teacher's, [B].

    temperature ** 2 * KL(teacher, student), see tasks.teaching.distance; of the teacher, the
    softmax of its scores.

    Args:
        vectors_BxKxE: normalised.
        scale_B: 1 / temperature of the cosines.
        batch: with scores_BxP, ABSENT where there are none.
        temperature: that both are divided by.
    """
    scores_BxP, highest = batch["scores_BxP"], jax.lax.Precision.HIGHEST
    queries_BxE, passages_BxPxE = vectors_BxKxE[:, 0], vectors_BxKxE[:, 1:]
    cosines_BxP = jnp.einsum("be,bpe->bp", queries_BxE, passages_BxPxE, precision=highest)
    known_BxP = scores_BxP > ABSENT / 2
    logits_BxP = jnp.where(known_BxP, scale_B[:, None] * cosines_BxP, ABSENT)
    sides = (jax.nn.log_softmax(x / temperature) for x in (scores_BxP, logits_BxP))
    known_logs_BxP, logs_BxP = sides
    products_BxP = jnp.exp(known_logs_BxP) * (known_logs_BxP - logs_BxP)
    return temperature**2 * jnp.sum(jnp.where(known_BxP, products_BxP, 0.0), axis=-1)


def triplet(
    vectors_BxKxE: jax.Array, margin: float, batch: Arrays
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns by how much each query's own negatives come closer than its passage less a margin,
    the mean over them [B], and the sum 'accuracy' of queries whose passage is nearer than all.

    Args: see `info_nce`; margin is between cosines.
    """
    weights_B, there_BxP = batch["weights_B"].astype(jnp.float32), batch["passages_BxP"][:, 1:] > 0
    cosines_BxP = jnp.einsum("be,bpe->bp", vectors_BxKxE[:, 0], vectors_BxKxE[:, 1:])
    short_BxP = jnp.maximum(margin - cosines_BxP[:, :1] + cosines_BxP[:, 1:], 0.0)
    count_B = jnp.maximum(there_BxP.sum(axis=1), 1)
    losses_B = jnp.where(there_BxP, short_BxP, 0.0).sum(axis=1) / count_B
    right_B = ~(there_BxP & (cosines_BxP[:, 1:] >= cosines_BxP[:, :1])).any(axis=1)
    return losses_B, {"accuracy": jnp.sum(weights_B * right_B)}


def cosent(
    vectors_BxKxE: jax.Array, scale_B: jax.Array, batch: Arrays
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns CoSENT's loss, the same for each example of the step [B], and no sums.

    It is log(1 + the sum of exp(scale * (cosine of i - cosine of j)) over all i with a lower grade
    than j) (Su 2022, https://kexue.fm/archives/8847).

    Args: see `info_nce`; the batch has numbers_B, the grades.
    """
    weights_B, numbers_B = batch["weights_B"].astype(jnp.float32), batch["numbers_B"]
    cosines_B = jnp.sum(vectors_BxKxE[:, 0] * vectors_BxKxE[:, 1], axis=-1)
    lower_BxB = (numbers_B[:, None] < numbers_B) & (weights_B[:, None] * weights_B > 0)
    apart_BxB = scale_B[:, None] * (cosines_B[:, None] - cosines_B)
    logits = jnp.where(lower_BxB, apart_BxB, ABSENT).reshape(-1)
    loss = jax.nn.logsumexp(jnp.concatenate([jnp.zeros(1), logits]))
    return jnp.full(weights_B.shape, loss), {}
