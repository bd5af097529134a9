"""Efficient GlobalPointer (2208.03054): a score for every span of a text, nested ones as well.

The score of class c for the span from position i to j is q_i . k_j / sqrt(N), which all classes
share, with rotary positions in q and k, plus a score of c for i as a start and one for j as a stop.
The loss and the search go through the classes one by one, in memory of R * L * L, as one attention
head needs: an array of R * C * L * L for 44 classes on 8 rows of 384 would take 208 MB, several
times.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.heads import HEAD_STDDEV
from models.layers import Batch, Rope, binary_divergence, rope_tables, rotate

_NEVER = -1e9  # the score of invalid spans: finite, and below any real score


class SpanHead(nn.Module):
    """Parameters: 'kernel' [D, 2N] and 'bias', which make q and k; 'class_kernel' [2N, 2C] and
    'class_bias', which score starts and stops from q and k before they are rotated.

    Attributes:
        num_labels: C.
        size: N, even.
        dropout: share of the hidden states dropped while training.
    """

    num_labels: int
    size: int = 64
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch, *, deterministic: bool
    ) -> dict[str, jax.Array]:
        """Returns {'queries_RxLxN', 'keys_RxLxN', 'starts_RxLxC', 'stops_RxLxC'}, float32."""
        rows, length, width = hidden_RxLxD.shape
        zeros, both, pair = nn.initializers.zeros, 2 * self.size, 2 * self.num_labels
        kernel_Dx2N = self.param("kernel", nn.initializers.normal(HEAD_STDDEV), (width, both))
        hidden_PxD = hidden_RxLxD.reshape(-1, width).astype(jnp.float32)
        hidden_PxD = nn.Dropout(self.dropout, deterministic=deterministic)(hidden_PxD)
        projected_Px2N = hidden_PxD @ kernel_Dx2N + self.param("bias", zeros, (both,))
        class_kernel = self.param("class_kernel", nn.initializers.lecun_normal(), (both, pair))
        classes_Px2C = projected_Px2N @ class_kernel + self.param("class_bias", zeros, (pair,))
        tables = rope_tables(batch["positions_RxL"], self.size, Rope(base=1e4))
        heads_RxLx2xN = rotate(projected_Px2N.reshape(rows, length, 2, self.size), tables)
        classes_RxLx2xC = classes_Px2C.reshape(rows, length, 2, self.num_labels)
        return {
            "queries_RxLxN": heads_RxLx2xN[:, :, 0] * self.size**-0.5,
            "keys_RxLxN": heads_RxLx2xN[:, :, 1],
            "starts_RxLxC": classes_RxLx2xC[:, :, 0],
            "stops_RxLxC": classes_RxLx2xC[:, :, 1],
        }


class _Spans(NamedTuple):
    """The scores of all spans, in parts, and where examples lie.

    Attributes:
        shared_RxLxL: the term shared by the classes; _NEVER for invalid spans.
        starts_CxRxL, stops_CxRxL: the terms of each class.
        member_BxP: bool, the positions of each example.
        rows_B, firsts_B: its row, and its first position in it.
    """

    shared_RxLxL: jax.Array
    starts_CxRxL: jax.Array
    stops_CxRxL: jax.Array
    member_BxP: jax.Array
    rows_B: jax.Array
    firsts_B: jax.Array


def _spans(
    outputs: Batch, asked_RxL: jax.Array, segments_RxL: jax.Array, num_examples: int
) -> _Spans:
    parts = {
        # Replaced before anything is computed: 0 * NaN would reach the gradient.
        name.partition("_")[0]: jnp.where(asked_RxL[..., None], values, 0.0)
        for name, values in outputs.items()
    }
    length = asked_RxL.shape[1]
    shared_RxLxL = jnp.einsum("rin,rjn->rij", parts["queries"], parts["keys"])
    mask_RxLxL = asked_RxL[:, :, None] & asked_RxL[:, None, :]
    mask_RxLxL &= segments_RxL[:, :, None] == segments_RxL[:, None, :]
    mask_RxLxL &= jnp.tri(length, dtype=bool).T
    member_BxP = segments_RxL.reshape(-1) == jnp.arange(1, num_examples + 1)[:, None]
    firsts_B = jnp.argmax(member_BxP, axis=1)
    return _Spans(
        jnp.where(mask_RxLxL, shared_RxLxL, _NEVER),
        jnp.moveaxis(parts["starts"], -1, 0),
        jnp.moveaxis(parts["stops"], -1, 0),
        member_BxP,
        firsts_B // length,
        firsts_B % length,
    )


def span_losses(
    outputs: Batch, spans_BxKx3: jax.Array, asked_RxL: jax.Array, segments_RxL: jax.Array
) -> jax.Array:
    """Returns the multi-label loss of the paper, the mean over classes: log(1 + sum of exp(score))
    over the spans of other classes, plus log(1 + sum of exp(-score)) over those of the class.

    Args:
        outputs: of SpanHead.
        spans_BxKx3: int32, first and last token of each span, counted in the example, and 1 + its
            class; 0 is none.
        asked_RxL: bool, the positions at which spans may start and stop.
        segments_RxL: 1 + example, 0 where padding.

    Returns:
        float32 [B].
    """
    scores = _spans(outputs, asked_RxL, segments_RxL, len(spans_BxKx3))
    begins_BxK, ends_BxK, labels_BxK = jnp.moveaxis(spans_BxKx3, -1, 0)
    begins_BxK, ends_BxK = (scores.firsts_B[:, None] + part for part in (begins_BxK, ends_BxK))
    places = scores.rows_B[:, None], begins_BxK, ends_BxK

    @jax.checkpoint  # otherwise the backward pass would keep R * C * L * L
    def loss_of(at: tuple) -> jax.Array:
        starts_RxL, stops_RxL, label = at
        scores_RxLxL = scores.shared_RxLxL + starts_RxL[:, :, None] + stops_RxL[:, None, :]
        positive_BxK = labels_BxK == label
        positives_BxK = jnp.where(positive_BxK, -scores_RxLxL[places], _NEVER)
        # The minimum takes the positive spans out of the negative ones, whatever the order.
        negatives_RxLxL = scores_RxLxL.at[places].min(jnp.where(positive_BxK, _NEVER, jnp.inf))
        negatives_P = jax.nn.logsumexp(negatives_RxLxL, axis=2).reshape(-1)
        negatives_B = jax.nn.logsumexp(jnp.where(scores.member_BxP, negatives_P, _NEVER), axis=1)
        positives_B = jax.nn.logsumexp(positives_BxK, axis=1)
        return jax.nn.softplus(negatives_B) + jax.nn.softplus(positives_B)

    labels_C = 1 + jnp.arange(len(scores.starts_CxRxL))
    classes = (scores.starts_CxRxL, scores.stops_CxRxL, labels_C)
    return jnp.mean(jax.lax.map(loss_of, classes), axis=0)


def span_divergences(
    outputs: Batch, others: Batch, asked_RxL: jax.Array, segments_RxL: jax.Array, num_examples: int
) -> jax.Array:
    """Returns how far two predictions of spans are apart: models.layers.binary_divergence, summed
    over the spans of an example, the mean over classes; float32 [B]. See `span_losses`."""
    sides = [_spans(side, asked_RxL, segments_RxL, num_examples) for side in (outputs, others)]
    is_span_RxLxL = sides[0].shared_RxLxL > _NEVER / 2

    @jax.checkpoint
    def apart(terms: list) -> jax.Array:
        logits = (
            jnp.where(is_span_RxLxL, side.shared_RxLxL + starts[:, :, None] + stops[:, None], 0.0)
            for side, (starts, stops) in zip(sides, terms, strict=True)
        )
        spans_P = binary_divergence(*logits).sum(axis=2).reshape(-1)
        return jnp.where(sides[0].member_BxP, spans_P, 0.0).sum(axis=1)

    classes = [(side.starts_CxRxL, side.stops_CxRxL) for side in sides]
    return jnp.mean(jax.lax.map(apart, classes), axis=0)


def best_spans(
    outputs: Batch, asked_RxL: jax.Array, segments_RxL: jax.Array, *, num_examples: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """Finds the spans with the highest scores of each example, exactly.

    The K best are among the K pairs of start and class with the highest best stop, so that only
    those are searched: memory is R * L * L + B * K * L + B * L * C.

    Args:
        outputs: of SpanHead.
        asked_RxL: bool, the positions at which spans may start and stop.
        segments_RxL: 1 + example, 0 where padding.
        num_examples: B.
        count: K.

    Returns:
        spans_BxKx3 int32 (first token, last token, both counted in the example, class), and
        scores_BxK float32, best first; above 0 is predicted, far below 0 if an example has fewer.
    """
    parts = _spans(outputs, asked_RxL, segments_RxL, num_examples)
    shared, starts, stops, length = *parts[:3], asked_RxL.shape[1]

    def highest(stops_RxL: jax.Array) -> jax.Array:
        return jnp.max(shared + stops_RxL[:, None, :], axis=2)

    highest_CxRxL = starts + jax.lax.map(highest, stops)
    member_BxL = parts.member_BxP.reshape(num_examples, -1, length).any(axis=1)
    highest_BxCxL = highest_CxRxL[:, parts.rows_B].swapaxes(0, 1)
    highest_BxCxL = jnp.where(member_BxL[:, None], highest_BxCxL, _NEVER)
    pairs = min(count, highest_BxCxL[0].size)
    _, chosen_BxK = jax.lax.top_k(highest_BxCxL.reshape(num_examples, -1), pairs)
    classes_BxK, begins_BxK = chosen_BxK // length, chosen_BxK % length
    rows_Bx1 = parts.rows_B[:, None]
    scores_BxKxL = shared[rows_Bx1, begins_BxK] + stops[classes_BxK, rows_Bx1]
    scores_BxKxL += starts[classes_BxK, rows_Bx1, begins_BxK][..., None]
    scores_BxKxL = jnp.where(member_BxL[:, None], scores_BxKxL, _NEVER)
    flat_BxM = scores_BxKxL.reshape(num_examples, -1)
    scores_BxK, best_BxK = jax.lax.top_k(flat_BxM, min(count, flat_BxM.shape[1]))
    pairs_BxK = best_BxK // length
    begins_BxK = jnp.take_along_axis(begins_BxK, pairs_BxK, axis=1)
    classes_BxK = jnp.take_along_axis(classes_BxK, pairs_BxK, axis=1)
    firsts_Bx1 = parts.firsts_B[:, None]
    spans = begins_BxK - firsts_Bx1, best_BxK % length - firsts_Bx1, classes_BxK
    return jnp.stack(spans, axis=-1).astype(jnp.int32), scores_BxK
