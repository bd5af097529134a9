"""Classification where a text carries any number of the labels: none, one or several.

Here: sigmoid losses, thresholds fitted on the validation split, F1 over labels. The rest is that of
classification.py, which chooses this for config.classification.kind='multi'.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from evaluation import baselines
from evaluation.classification_metrics import AUROC, per_class, placements
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, f1, mean, one_each
from input_pipeline.batches.template import Encoded
from input_pipeline.examples import Examples
from tasks.classification import LOSS, MACRO_F1, Classification
from tasks.task import Chunk, Loss, Targets, digest, rows_of, text_record


class MultiLabel(Classification):
    """A text carries those of `labels` whose probability reaches their threshold.

    Attributes:
        fitted: {'thresholds': one probability for each label}, chosen on the validation split;
            nothing where config.classification.threshold is a number.
    """

    METRICS = (
        Metric("micro_f1", "micro-F1, %", f1, scale=100, digits=1),
        MACRO_F1,
        Metric("exact", "all labels right, %", mean, scale=100, digits=1),
        AUROC,
        LOSS,
    )

    def __init__(self, config: ConfigDict, labels: Any, **parts: Any):
        """Takes what Classification.__init__ does."""
        super().__init__(config, labels, **parts)
        given = config.classification.threshold
        self._threshold = None if given == "fitted" else float(given)

    def check(self, examples: Examples, split: str) -> None:
        """Refuses examples without labels; counts those of the training split."""
        if examples.label_sets is None and examples.labels_N is None:
            raise ValueError(
                f"the {split} data have no labels, which config.classification.kind='multi' needs: "
                "set config.data.label_column, and config.data.label_separator where one cell "
                "holds several"
            )
        if split == "train" and self._balanced:
            true_C = self._true(examples).sum(axis=0)
            self._weights_C = ((len(examples) - true_C) / np.maximum(true_C, 1)).astype(np.float32)

    def _known_labels(self, examples: Examples) -> tuple[np.ndarray, int]:
        """Returns the labels that the examples carry; none is masked."""
        return np.nonzero(self._true(examples))[1], 0

    def _true(self, examples: Examples, rows: np.ndarray | None = None) -> np.ndarray:
        """Returns bool [N, C]: which labels the examples carry, or those of `rows`."""
        rows = np.arange(len(examples)) if rows is None else rows
        true_NxC = np.zeros((len(rows), self.size), bool)
        if examples.label_sets is not None:
            sets = examples.label_sets.take(rows)
            true_NxC[np.repeat(np.arange(len(rows)), np.diff(sets.splits_N1)), sets.values] = True
        elif examples.labels_N is not None:
            true_NxC[np.arange(len(rows)), examples.labels_N[rows]] = examples.labels_N[rows] >= 0
        return true_NxC

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns labels_BxC, 0 or 1, and where the template's masks are."""
        labels_BxC = self._true(chunk.examples, chunk.indices_B).astype(np.float32)
        return Targets(self.masks(encoded), {"labels_BxC": labels_BxC})

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> Loss:
        """Sums over the examples the mean over the labels of the binary cross-entropy.

        Class weights multiply a label's loss where it is true; 'balanced' is how many examples
        don't have it for each that does. 'correct' counts the share of labels told right.
        """
        options = self.config.classification
        weights_B = batch["weights_B"].astype(jnp.float32)
        labels_BxC = batch["labels_BxC"].astype(jnp.float32)
        logits_BxC = jnp.where(
            weights_B[:, None] > 0, outputs["logits_BxC"].astype(jnp.float32), 0.0
        )
        smoothing = options.label_smoothing
        losses_BxC = optax.sigmoid_binary_cross_entropy(
            logits_BxC, labels_BxC * (1 - smoothing) + smoothing / 2
        )
        if options.focal_gamma:  # by the probability of what is true, as in 1708.02002
            wrong_BxC = jax.nn.sigmoid(logits_BxC * (1 - 2 * labels_BxC))
            losses_BxC *= jnp.maximum(wrong_BxC, 1e-6) ** options.focal_gamma
        losses_BxC *= jnp.where(labels_BxC > 0, jnp.asarray(self._weights_C), 1.0)
        right_B = jnp.mean((logits_BxC > 0) == (labels_BxC > 0), axis=-1)
        total = jnp.sum(weights_B * losses_BxC.mean(axis=-1))
        return total, jnp.sum(weights_B), {"correct": jnp.sum(weights_B * right_B)}

    def fit(self, predictions: Predictions, validation: Examples) -> dict[str, Any]:
        """Returns the thresholds that make each label's F1 greatest."""
        if self._threshold is not None:
            return {}
        true_NxC = self._true(validation, rows_of(validation, predictions.ids_N))
        thresholds_C = best_thresholds(true_NxC, _sigmoid(self.logits(predictions)))
        return {"thresholds": thresholds_C.tolist()}

    def calibration(self, predictions: Predictions, examples: Examples) -> None:
        """None: what is fitted here is thresholds, and the probability of a decision about a label
        is no confidence in the whole answer."""

    def _thresholds(self) -> np.ndarray:
        """Returns those to use: the number given, those fitted, or a half where nothing is yet."""
        if self._threshold is not None or not self.fitted:
            return np.full(self.size, 0.5 if self._threshold is None else self._threshold)
        return np.array(self.fitted["thresholds"])

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns what predictions are worth, by METRICS; AUROC is the mean over the labels."""
        true_NxC = self._true(examples, rows_of(examples, predictions.ids_N))
        found = _sigmoid(self.logits(predictions)), self._thresholds()
        return self._scores(predictions.ids_N, true_NxC, *found)

    def _scores(
        self,
        ids_N: np.ndarray,
        true_NxC: np.ndarray,
        probabilities_NxC: np.ndarray,
        thresholds_C: np.ndarray,
    ) -> Scores:
        found_NxC = probabilities_NxC >= thresholds_C
        counts_NxCx3 = np.stack([true_NxC & found_NxC, found_NxC, true_NxC], axis=-1) * 1.0
        right_NxC = np.where(true_NxC, probabilities_NxC, 1 - probabilities_NxC)
        losses_N = -np.log(np.maximum(right_NxC, 1e-30)).mean(axis=1)
        statistics = {
            "micro_f1": counts_NxCx3.sum(axis=1),
            "macro_f1": np.moveaxis(counts_NxCx3, -1, 1).reshape(len(ids_N), -1),
            "exact": one_each((true_NxC == found_NxC).all(axis=1)),
            "auroc": placements(true_NxC, probabilities_NxC),
            "loss": one_each(losses_N),
        }
        known = per_class(statistics["macro_f1"], self.labels)
        for label, threshold in zip(self.labels, thresholds_C.tolist(), strict=True):
            known[label]["threshold"] = threshold
        detail = {"per_class": known}
        return Scores(self.metrics, ids_N, statistics, detail, digest(true_NxC))

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Returns each label's frequency, TF-IDF and, if there are any, features alone.

        Their thresholds are chosen as the model's are, but on a fifth of the training examples, by
        a model of the others; then all are learned from.
        """
        examples = examples.take(np.argsort(examples.ids_N))
        models = {baselines.MAJORITY: None, baselines.TFIDF: baselines.tfidf_columns}
        if train.features_NxK is not None:
            models[baselines.FEATURES] = baselines.feature_columns
        is_held_N = np.arange(len(train)) % 5 == 4
        parts = train.take(~is_held_N), train.take(is_held_N)
        scores = {}
        for name, columns in models.items():
            thresholds_C = np.full(self.size, self._threshold or 0.5)
            if self._threshold is None and columns and len(parts[1]):
                held_NxC = baselines.several(*parts, self._true(parts[0]), columns=columns)
                thresholds_C = best_thresholds(self._true(parts[1]), held_NxC)
            found_NxC = baselines.several(train, examples, self._true(train), columns=columns)
            truth_NxC = self._true(examples)
            scores[name] = self._scores(examples.ids_N, truth_NxC, found_NxC, thresholds_C)
        return scores

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields what Classification does, with lists in 'label' and 'prediction'; 'confidence' is
        the mean probability of what was decided about each label."""
        probabilities_NxC = _sigmoid(self.logits(predictions))
        found_NxC = probabilities_NxC >= self._thresholds()
        known = examples.label_sets is not None or examples.labels_N is not None
        true_NxC, examples = self._true(examples) if known else None, examples.as_given()
        for row, found_C, probabilities_C in zip(
            rows_of(examples, predictions.ids_N),
            found_NxC,
            probabilities_NxC,
            strict=True,
        ):
            record = text_record(examples, int(row))
            if true_NxC is not None:
                record["label"] = self._names(true_NxC[row])
                record["wrong"] = bool((true_NxC[row] != found_C).any())
            record["prediction"] = self._names(found_C)
            decided_C = np.where(found_C, probabilities_C, 1 - probabilities_C)
            record["confidence"] = round(float(decided_C.mean()), 6)
            record["probabilities"] = {
                label: round(float(probability), 6)
                for label, probability in zip(self.labels, probabilities_C, strict=True)
            }
            yield record

    def _names(self, is_there_C: np.ndarray) -> list[str]:
        return [self.labels[c] for c in np.flatnonzero(is_there_C)]


def best_thresholds(true_NxC: np.ndarray, probabilities_NxC: np.ndarray) -> np.ndarray:
    """Returns for each class the threshold of the greatest F1, [C]; a half where it never occurs.

    It lies halfway between two probabilities that were seen, so that what is new may fall to either
    side of it.

    Args:
        true_NxC: bool.
        probabilities_NxC: of the same examples.
    """
    order_NxC = np.argsort(-probabilities_NxC, axis=0, kind="stable")
    sorted_NxC = np.take_along_axis(probabilities_NxC, order_NxC, axis=0)
    right_NxC = np.cumsum(np.take_along_axis(true_NxC, order_NxC, axis=0), axis=0)
    found_N = np.arange(1, len(true_NxC) + 1)
    f1_NxC = 2 * right_NxC / (found_N[:, None] + true_NxC.sum(axis=0))
    following_NxC = np.concatenate([sorted_NxC[1:], np.zeros((1, sorted_NxC.shape[1]))])
    f1_NxC[:-1][sorted_NxC[:-1] == following_NxC[:-1]] = -1  # no threshold parts what is equal
    best_C = f1_NxC.argmax(axis=0)[None]
    middle_NxC = (sorted_NxC + following_NxC) / 2
    return np.where(true_NxC.any(axis=0), np.take_along_axis(middle_NxC, best_C, axis=0)[0], 0.5)


def _sigmoid(logits_NxC: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits_NxC.astype(np.float64)))
