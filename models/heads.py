"""A backbone with the head of a task: pooling by segment, the classifier's head, heads from words.

Heads read hidden states after the last norm. Those of other tasks are in token_heads.py,
span_heads.py and language_heads.py; losses and metrics are in tasks/.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.attention import Fused
from models.backbone import BackboneConfig, make_backbone
from models.layers import Batch
from models.t5 import T5Config

POOLINGS = ("first", "last", "mean")

# The final norm's weights are large (hidden states of Gemma 3 270M have RMS 4 to 11, with outliers
# beyond 100), so that a head of usual variance starts at a loss near 9. This one starts within 0.1
# of log C; so would zeros, but they pass no gradient to the backbone in the first step.
HEAD_STDDEV = 1e-3


def pool(
    hidden_RxLxD: jax.Array, segments_RxL: jax.Array, *, num_examples: int, kind: str
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
    else:
        # The first position is where the running count is 1; the last is the first from the right.
        rank_BxP = jax.lax.cumsum(member_BxP.astype(jnp.int32), axis=1, reverse=kind == "last")
        select_BxP = member_BxP & (rank_BxP == 1)
    hidden_PxD = hidden_RxLxD.reshape(segments_P.shape[0], -1).astype(jnp.float32)
    return jnp.dot(select_BxP.astype(jnp.float32), hidden_PxD, precision=jax.lax.Precision.HIGHEST)


class Model(nn.Module):
    """A backbone and the head of a task: parameters 'backbone' and 'head'.

    Attributes:
        config: of the backbone.
        task_head: an unbound module, see tasks.task.Task.head.
        hidden_dropout: of the backbone, while training.
        dtype: of the backbone's computation.
        remat: what the backward pass computes again, see layers.Backbone.
        fused: the kernel of attention; None is the plain form.
        attention_dropout: of the backbone, while training.
    """

    config: BackboneConfig
    task_head: nn.Module
    hidden_dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    fused: Fused | None = None
    attention_dropout: float = 0.0

    def setup(self):
        """Binds both."""
        self.backbone = make_backbone(
            self.config,
            dtype=self.dtype,
            remat=self.remat,
            dropout=self.hidden_dropout,
            attention_dropout=self.attention_dropout,
            fused=self.fused,
        )
        self.head = self.task_head.clone(name="head", parent=self)

    def __call__(self, batch: Batch, *, deterministic: bool) -> dict[str, jax.Array]:
        """Returns the head's outputs for a batch of input_pipeline/batches/pipeline.py.

        The batch may hold what training/tuning/regularizers.py adds: 'noise_RxLxE' of the tokens'
        vectors and 'mix_B', see ClassifierHead.
        """
        hidden_RxLxD = self._hidden(batch, deterministic=deterministic)
        return self.head(self.backbone, hidden_RxLxD, batch, deterministic=deterministic)

    def samples(self, batch: Batch, *, count: int) -> list[dict[str, jax.Array]]:
        """Returns the outputs of `count` dropout masks before the head, and one in the backbone."""
        hidden_RxLxD = self._hidden(batch, deterministic=False)
        return [
            self.head(self.backbone, hidden_RxLxD, batch, deterministic=False) for _ in range(count)
        ]

    def embed(self, batch: Batch) -> jax.Array:
        """Returns the tokens' vectors, float32 [R, L, E]."""
        tokens_RxL = batch["tokens_RxL"]
        return self.backbone.embed(tokens_RxL).reshape(*tokens_RxL.shape, -1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns the backbone's logits over the vocabulary, float32 [..., V]."""
        return self.backbone.logits(hidden)

    def head_inputs(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the vectors that the head is linear in: {'inputs_BxD'} or {'inputs_RxLxD'}."""
        hidden_RxLxD = self._hidden(batch, deterministic=True)
        return self.head.inputs(self.backbone, hidden_RxLxD, batch)

    def _hidden(self, batch: Batch, *, deterministic: bool) -> jax.Array:
        segments_RxL = batch["segments_RxL"]
        if isinstance(self.config, T5Config) and "is_target_RxL" in batch:
            # Source and target share a segment: the target is padding to the encoder.
            segments_RxL = jnp.where(batch["is_target_RxL"] > 0, 0, segments_RxL)
        return self.backbone(
            batch["tokens_RxL"],
            batch["positions_RxL"],
            segments_RxL,
            batch["types_RxL"],
            deterministic=deterministic,
            noise_RxLxE=batch.get("noise_RxLxE"),
        )


def partners(count: int) -> np.ndarray:
    """Returns whom each of B examples is mixed with: its neighbour; an odd last one is alone."""
    return np.minimum(np.arange(count) ^ 1, count - 1)


def mixed(values: jax.Array, batch: Batch) -> jax.Array:
    """Returns values [B, ...], of which each gives way to its partner's where 'mix_B' is below 1.

    Hidden mixup (1905.08941): mix * own + (1 - mix) * partner's.
    """
    if "mix_B" not in batch:
        return values
    mix_B = batch["mix_B"].reshape(-1, *[1] * (values.ndim - 1))
    return mix_B * values + (1 - mix_B) * values[partners(len(values))]


class ClassifierHead(nn.Module):
    """Pooling, dropout and a linear layer, to which features may add their logits.

    Parameters: 'kernel' [D, C], 'bias' [C] and, with features, 'feature_kernel' [K, C]. The last
    starts as zeros: the model starts as the encoder alone. Since both are linear, this is one head
    on the concatenation of pooled output and features, in two parameters with separate learning
    rates.

    Attributes:
        num_classes: C.
        pooling: one of POOLINGS; 'pooler', the first position through BERT's pooler; or 'mask', the
            mean of the positions that mask_RxL marks.
        dropout: share of the pooled vector dropped while training; features are not dropped.
        bias: whether the head has a bias.
        num_features: K; 0 is a head without features.
        sequences: token sequences per example, each of which has logits.
        masks: K, of label words with pooling 'mask': 'kernel' then is [K, D, C], and reads the
            vectors of each mask that the masked language model's output vectors score.
    """

    num_classes: int
    pooling: str = "mean"
    dropout: float = 0.0
    bias: bool = True
    num_features: int = 0
    sequences: int = 1
    masks: int = 0

    @nn.compact
    def __call__(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch, *, deterministic: bool
    ) -> dict[str, jax.Array]:
        """Returns {'logits_BxC'}, float32; B * K rows for K sequences per example.

        Raises:
            ValueError: the batch has another number of features than `num_features`.
        """
        states, product = self.pool(backbone, hidden_RxLxD, batch), "bd,dc->bc"
        if self.masks:
            states = backbone.before_logits(states.reshape(-1, self.masks, states.shape[-1]))
            states, product = states.astype(jnp.float32), "bkd,kdc->bc"
        states = mixed(nn.Dropout(self.dropout, deterministic=deterministic)(states), batch)
        init = nn.initializers.normal(HEAD_STDDEV)
        kernel = self.param("kernel", init, (*states.shape[1:], self.num_classes))
        logits_BxC = jnp.einsum(product, states, kernel)
        if self.bias:
            logits_BxC += self.param("bias", nn.initializers.zeros, (self.num_classes,))
        features_BxK = batch.get("features_BxK")
        count = 0 if features_BxK is None else features_BxK.shape[-1]
        if count != self.num_features:
            raise ValueError(
                f"the batch has {count} features per example, the model takes {self.num_features}: "
                "pass the outputs of the run's fitted features"
            )
        if features_BxK is not None:
            shape = (self.num_features, self.num_classes)
            kernel_KxC = self.param("feature_kernel", nn.initializers.zeros, shape)
            logits_BxC += mixed(features_BxK.astype(jnp.float32), batch) @ kernel_KxC
        return {"logits_BxC": logits_BxC}

    def inputs(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """Returns {'inputs_BxD'}; see Model.head_inputs."""
        return {"inputs_BxD": self.pool(backbone, hidden_RxLxD, batch)}

    def pool(self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch) -> jax.Array:
        """Returns float32 [B, D], or [B * K, D] of K masks or sequences."""
        kind = "first" if self.pooling == "pooler" else self.pooling
        count = batch["weights_B"].shape[-1] * self.sequences
        segments_RxL = batch["segments_RxL"]
        if self.pooling == "mask":
            mask_RxL, kind = batch["mask_RxL"], "mean"
            segments_RxL = jnp.where(mask_RxL > 0, segments_RxL, 0)
            if self.masks:  # each separately, as if it were an example
                numbers_RxL = (segments_RxL - 1) * self.masks + mask_RxL
                segments_RxL, count = jnp.where(mask_RxL > 0, numbers_RxL, 0), count * self.masks
        pooled_BxD = pool(hidden_RxLxD, segments_RxL, num_examples=count, kind=kind)
        if self.pooling != "pooler":
            return pooled_BxD
        if "pooler" not in backbone.PARTS:
            raise ValueError(
                f"config.model.pooling is 'pooler', but a {backbone.config.model_type} has no "
                f"pooler: choose from {POOLINGS}"
            )
        return backbone.pooled(pooled_BxD).astype(jnp.float32)


class OrdinalHead(ClassifierHead):
    """One score per example, divided into ordered classes by thresholds (proportional odds).

    P(class > c) = sigmoid(score - threshold c). The parametrisation keeps the thresholds ascending,
    so that the probabilities are rank-consistent as in CORAL (1901.07884) and those of the classes
    add up to 1.

    Parameters: those of a ClassifierHead of one column, without bias, and 'thresholds' [C - 1], see
    `threshold_parameters`.

    Attributes:
        num_levels: C; `num_classes` is 1 and `bias` False.
    """

    num_levels: int = 2

    @nn.compact
    def __call__(self, *args: Any, **options: Any) -> dict[str, jax.Array]:
        """Returns {'logits_BxC'}: log probabilities of the classes."""
        score_Bx1 = super().__call__(*args, **options)["logits_BxC"]
        steps = threshold_parameters(np.full(self.num_levels, 1 / self.num_levels))
        steps = self.param("thresholds", lambda _: jnp.asarray(steps))
        thresholds = jnp.cumsum(jnp.concatenate([steps[:1], jnp.exp(steps[1:])]))
        above = score_Bx1 - thresholds
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)); the outer ones are 1, 0
        upper = jnp.pad(jax.nn.log_sigmoid(above), ((0, 0), (1, 0)))
        lower = jnp.pad(jax.nn.log_sigmoid(-above), ((0, 0), (0, 1)))
        between = jnp.pad(jnp.log(-jnp.expm1(-jnp.exp(steps[1:]))), (1, 1))
        return {"logits_BxC": upper + lower + between}


def threshold_parameters(shares_C: np.ndarray) -> np.ndarray:
    """Returns 'thresholds' of an OrdinalHead that gives the classes these shares at score 0.

    Args:
        shares_C: each above 0; they add up to 1.
    """
    below = np.cumsum(shares_C)[:-1]
    return threshold_steps(np.log(below) - np.log1p(-below))


def threshold_steps(thresholds: np.ndarray) -> np.ndarray:
    """Returns 'thresholds' of an OrdinalHead from thresholds that ascend strictly."""
    steps = np.concatenate([thresholds[:1], np.log(np.diff(thresholds))])
    return steps.astype(np.float32)


def label_word_kernel(
    output_VxD: np.ndarray, token_ids_per_label: Sequence[Sequence[int]]
) -> np.ndarray:
    """Head kernel that starts from the language model's own output vectors of one word per label.

    With pooling 'last', zero bias and words of one piece, the classifier's logits are the language
    model's next-token logits of those words, so it ranks before any training.

    Args:
        output_VxD: the output vectors: the tied embedding, unscaled, or the output layer's.
        token_ids_per_label: pieces of each label's word; the vectors of several are averaged.

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
