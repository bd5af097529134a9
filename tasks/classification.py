"""Classification of whole texts into one of C labels: the loss and the reading of a prediction.

The head lives in models/heads.py, metrics in evaluation/metrics.py. The train step calls `loss`;
--mode=predict and the list of wrongly classified examples are written from `describe`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class Classification:
    """A text carries exactly one of `labels`; class c is `labels[c]`.

    Raises:
        ValueError: if there are fewer than two labels, or one stands twice.
    """

    labels: tuple[str, ...]

    def __post_init__(self):
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                f"Classification needs at least two labels, each once; found {self.labels!r}. "
                "Check data.labels and data.label_column."
            )

    def loss(
        self, logits_BxC: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Sums the cross-entropy over the examples of a batch. Pure; runs under jit.

        Nothing is divided here: the caller adds sums and weights over microbatches and devices and
        divides once. A batch whose every label is masked has weight 0; the caller must refuse it.

        Args:
            logits_BxC: unnormalised log probabilities. Those of weight-0 examples are ignored, even
                when they are not finite.
            batch: with `labels_B` int32 and `weights_B` float32.

        Returns:
            (sum of weighted cross-entropies in nats, sum of weights, {'correct': weighted number of
            right predictions}), all scalars in float32.
        """
        weights_B = batch["weights_B"].astype(jnp.float32)
        # Replaced before the logarithm, not after: 0 * NaN would reach the gradient.
        logits_BxC = jnp.where(weights_B[:, None] > 0, logits_BxC.astype(jnp.float32), 0.0)
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxC, batch["labels_B"])
        correct_B = jnp.argmax(logits_BxC, axis=-1) == batch["labels_B"]
        correct = jnp.sum(weights_B * correct_B)
        return jnp.sum(weights_B * losses_B), jnp.sum(weights_B), {"correct": correct}

    def describe(self, predictions: Any, examples: Any) -> Iterator[dict[str, Any]]:
        """Yields one JSON-ready dict per prediction, in the order of the ids.

        Args:
            predictions: `ids_N` and `logits_NxC`, such as evaluation.evaluate.Predictions.
            examples: `ids_N`, `texts_N` and `labels_N`, such as the Examples of a split; `labels_N`
                is None where nothing is labelled. May hold more examples than were predicted.

        Yields:
            {'id', 'text', 'pair' (of pairs), 'label' (absent if unlabelled), 'prediction',
            'probabilities'}.

        Raises:
            ValueError: if a predicted id is not among the examples, or the logits do not have one
                column per label.
        """
        logits_NxC = np.asarray(predictions.logits_NxC, np.float64)
        if logits_NxC.shape[-1] != len(self.labels):
            raise ValueError(
                f"Predictions over {logits_NxC.shape[-1]} classes do not fit the "
                f"{len(self.labels)} labels {self.labels!r}."
            )
        row_of = {int(id_): row for row, id_ in enumerate(examples.ids_N)}
        missing = [int(id_) for id_ in predictions.ids_N if int(id_) not in row_of]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(predictions.ids_N)} predicted ids are not among the "
                f"{len(row_of)} examples, the first is {missing[0]}. Pass the predicted split."
            )
        odds_NxC = np.exp(logits_NxC - logits_NxC.max(axis=-1, keepdims=True))
        probabilities_NxC = odds_NxC / odds_NxC.sum(axis=-1, keepdims=True)
        for id_, probabilities_C in zip(predictions.ids_N, probabilities_NxC, strict=True):
            row = row_of[int(id_)]
            record: dict[str, Any] = {"id": int(id_), "text": examples.texts_N[row]}
            if examples.pairs_N is not None:
                record["pair"] = examples.pairs_N[row]
            if examples.labels_N is not None:
                record["label"] = self.labels[examples.labels_N[row]]
            record["prediction"] = self.labels[probabilities_C.argmax()]
            record["probabilities"] = {
                label: round(float(probability), 6)
                for label, probability in zip(self.labels, probabilities_C, strict=True)
            }
            yield record
