"""Sequence classification on any backbone: pooling by segment, the classifier, heads from words.

Pooling and head see hidden states behind the last norm. Losses and metrics are in tasks/. Called
by training/ (parameters, step) and, through the classifier's apply, by evaluation/.
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.backbone import BackboneConfig, make_backbone

POOLINGS = ("first", "last", "mean")

# The final norm's weights are large (hidden states of Gemma 3 270M have RMS 4 to 11, with outliers
# beyond 100), so that a head of usual variance starts at a loss near 9. This one starts within 0.1
# of log C; so would zeros, but through them no gradient reaches the backbone in the first step.
HEAD_STDDEV = 1e-3


def pool(
    hidden_RxLxD: jax.Array,
    segments_RxL: jax.Array,
    *,
    num_examples: int,
    kind: Literal["first", "last", "mean"],
) -> jax.Array:
    """Reduces each example's positions to one vector, wherever the layout put them.

    A product with a selection matrix, not a scatter: cheaper at this size, and deterministic on
    accelerators, forward and backward.

    Args:
        hidden_RxLxD: finite everywhere, padding included.
        segments_RxL: 1 + example index in 0..B-1, 0 where padding.
        num_examples: B.
        kind: the example's first or last position, or the mean of all.

    Returns:
        float32 [B, D]; zeros for an example without positions.
    """
    segments_P = segments_RxL.reshape(-1)
    member_BxP = segments_P == jnp.arange(1, num_examples + 1)[:, None]
    if kind == "mean":
        count_Bx1 = jnp.sum(member_BxP, axis=1, keepdims=True)
        select_BxP = member_BxP / jnp.maximum(count_Bx1, 1)
    elif kind in POOLINGS:
        # The first position is where the running count is 1; the last is the first from behind.
        rank_BxP = jax.lax.cumsum(member_BxP.astype(jnp.int32), axis=1, reverse=kind == "last")
        select_BxP = member_BxP & (rank_BxP == 1)
    else:
        raise ValueError(f"config.model.pooling is {kind!r}: choose from {POOLINGS}")
    hidden_PxD = hidden_RxLxD.reshape(segments_P.shape[0], -1).astype(jnp.float32)
    return jnp.dot(select_BxP.astype(jnp.float32), hidden_PxD, precision=jax.lax.Precision.HIGHEST)


class Classifier(nn.Module):
    """Backbone, pooling, dropout and a linear head, to which features may add their logits.

    Parameters: 'backbone' (its tree), 'head' {'kernel': [D, C], 'bias': [C]} and, with features,
    'feature_head' {'kernel': [K, C]}. The last starts as zeros: the model starts as the encoder
    alone, whichever head it has. Both halves are linear, so that this is a head on pooled output
    and features side by side, in two parameters that can have a learning rate each.

    Attributes:
        config: of the backbone.
        num_classes: C.
        pooling: one of POOLINGS, or 'pooler': the first position through BERT's pooler.
        dropout: share of the pooled vector dropped while training; features are not dropped.
        hidden_dropout: of the backbone, while training.
        dtype: of the backbone's computation; the head computes in float32.
        remat: recompute each layer in the backward pass instead of storing its activations.
        head_bias: whether the head has a bias.
        num_features: K; 0 is a head without features.
    """

    config: BackboneConfig
    num_classes: int
    pooling: str = "mean"
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    head_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    num_features: int = 0

    @nn.compact
    def __call__(
        self,
        tokens_RxL: jax.Array,
        positions_RxL: jax.Array,
        segments_RxL: jax.Array,
        types_RxL: jax.Array | None = None,
        *,
        num_examples: int,
        deterministic: bool,
        features_BxK: jax.Array | None = None,
    ) -> jax.Array:
        """Returns logits, float32 [B, C].

        Args:
            tokens_RxL: int32.
            positions_RxL: int32, restarting in each example.
            segments_RxL: int32, 1 + example index, 0 where padding.
            types_RxL: int32, of first and second texts; None is all 0.
            num_examples: B, static.
            deterministic: False applies dropout, which then needs the rng 'dropout'.
            features_BxK: float32, scaled; just where `num_features` is not 0.

        Raises:
            ValueError: there are other features than `num_features`, or none.
        """
        backbone = make_backbone(
            self.config,
            dtype=self.dtype,
            remat=self.remat,
            dropout=self.hidden_dropout,
            name="backbone",
        )
        hidden_RxLxD = backbone(
            tokens_RxL, positions_RxL, segments_RxL, types_RxL, deterministic=deterministic
        )
        kind = "first" if self.pooling == "pooler" else self.pooling
        pooled_BxD = pool(hidden_RxLxD, segments_RxL, num_examples=num_examples, kind=kind)
        if self.pooling == "pooler":
            if "pooler" not in backbone.PARTS:
                raise ValueError(
                    f"config.model.pooling is 'pooler', which a {self.config.model_type} has none "
                    f"of: choose from {POOLINGS}"
                )
            pooled_BxD = backbone.pooled(pooled_BxD).astype(jnp.float32)
        pooled_BxD = nn.Dropout(self.dropout, deterministic=deterministic)(pooled_BxD)
        init = nn.initializers.normal(HEAD_STDDEV)
        head = nn.Dense(self.num_classes, use_bias=self.head_bias, kernel_init=init, name="head")
        logits_BxC = head(pooled_BxD)
        found = 0 if features_BxK is None else features_BxK.shape[-1]
        if found != self.num_features:
            raise ValueError(
                f"the batch has {found} features per example, the model takes {self.num_features}: "
                "pass what the run's fitted features make of the examples"
            )
        if features_BxK is None:
            return logits_BxC
        dense = nn.Dense(
            self.num_classes,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            name="feature_head",
        )
        return logits_BxC + dense(features_BxK.astype(jnp.float32))


def label_word_kernel(
    output_VxD: np.ndarray, token_ids_per_label: Sequence[Sequence[int]]
) -> np.ndarray:
    """Head kernel that starts from the language model's own output vectors of one word per label.

    With pooling 'last', zero bias and words of one piece, the classifier's logits are the language
    model's next-token logits of those words, so it ranks before any training.

    Args:
        output_VxD: the output vectors: the tied embedding, unscaled, or the output layer's.
        token_ids_per_label: pieces of each label's word; several are averaged.

    Returns:
        float32 [D, C].

    Raises:
        ValueError: a label without pieces, or two labels with the same.
    """
    words = [tuple(ids) for ids in token_ids_per_label]
    if not all(words) or len(set(words)) < len(words):
        raise ValueError(
            f"Label words must be distinct and not empty, found token ids {words}: change "
            "config.model.label_words"
        )
    return np.stack([output_VxD[list(ids)].mean(0) for ids in words], axis=1).astype(np.float32)
