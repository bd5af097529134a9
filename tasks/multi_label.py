"""Classification where a text carries any number of the labels: none, one or several.

Here: sigmoid losses, thresholds fitted on the validation split, F1 over labels. All else is in
classification.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import entropy

from evaluation import baselines, probes
from evaluation.classification_metrics import AUROC, per_class, placements
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, f1, mean, one_each
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.examples import Examples
from models import layers
from tasks import teaching
from tasks.classification import LOSS, MACRO_F1, Classification, masked_logits
from tasks.task import Arrays, Chunk, Fit, Loss, Targets, digest, groups_of, rows_of, text_record


class MultiLabel(Classification):
    """A text carries those of `labels` whose probability reaches their threshold.

    Predictions.fitted is {'thresholds': a probability for each label}; {} if
    config.classification.threshold is a number.
    """

    metrics = (
        Metric("micro_f1", "micro-F1, %", f1, scale=100, digits=1),
        MACRO_F1,
        Metric("exact", "all labels right, %", mean, scale=100, digits=1),
        AUROC,
        LOSS,
    )
    AVERAGE = "sigmoid"
    EXPORT = ""
    REVIEW = False

    def check(self, examples: Examples, split: str) -> None:
        """Raises on examples without labels; counts those of the training split."""
        if examples.label_sets is None and examples.labels_N is None:
            raise ValueError(
                f"the {split} data have no labels, which config.classification.kind='multi' needs: "
                "set config.data.label_column, and label_separator if a cell holds several"
            )
        if split == "train" and self._balanced:
            true_C = self._true(examples).sum(axis=0)
            self._weights_C = ((len(examples) - true_C) / np.maximum(true_C, 1)).astype(np.float32)

    def known_labels(self, examples: Examples) -> tuple[np.ndarray, int]:
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
        """Returns labels_BxC, 0 or 1, where the template's masks are, a teacher's probabilities."""
        labels_BxC = self._true(chunk.examples, chunk.indices_B).astype(np.float32)
        taught = teaching.targets(chunk, np.ones(len(labels_BxC), bool))
        return Targets(self.mask_positions(encoded), {"labels_BxC": labels_BxC} | taught)

    def probe(self, windows: Examples, vectors: Predictions, encoder: Encoder) -> Fit:
        """Fits a logistic regression for each label."""
        probe = probes.several(vectors["inputs_NxD"], self._true(windows))
        return probe.params, probe.prose()

    def guess_loss(self, examples: Examples) -> float | None:
        """Returns the mean entropy of the labels; None as in Classification."""
        options = [self.config.classification[name] for name in self.OPTIONS]
        if any(options) or self.config.regularize.label_smoothing:
            return None
        shares_C = self._true(examples).mean(axis=0)
        return float(entropy([shares_C, 1 - shares_C]).mean())

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums over the examples the mean over the labels of the binary cross-entropy.

        Class weights multiply a label's loss where it is true; 'balanced' is how many examples
        don't have it for each that does. 'correct' counts the share of labels predicted correctly.
        """
        options, weights_B = self.config.classification, batch["weights_B"].astype(jnp.float32)
        labels_BxC, logits_BxC = batch["labels_BxC"], masked_logits(outputs, weights_B)
        labels_BxC = labels_BxC.astype(jnp.float32)
        smoothing = self.config.regularize.label_smoothing
        smooth_BxC = labels_BxC * (1 - smoothing) + smoothing / 2
        losses_BxC = optax.sigmoid_binary_cross_entropy(logits_BxC, smooth_BxC)
        if options.focal_gamma:  # by the probability of what is true, as in 1708.02002
            wrong_BxC = jax.nn.sigmoid(logits_BxC * (1 - 2 * labels_BxC))
            losses_BxC *= jnp.maximum(wrong_BxC, 1e-6) ** options.focal_gamma
        losses_BxC *= jnp.where(labels_BxC > 0, jnp.asarray(self._weights_C), 1.0)
        right_B = jnp.mean((logits_BxC > 0) == (labels_BxC > 0), axis=-1)
        label_B, teacher_B = teaching.shares(batch, self.config.teach.share)
        losses_B = label_B * losses_BxC.mean(axis=-1)
        if "teacher_BxC" in batch:
            side = batch["teacher_BxC"], logits_BxC, self.config.teach.temperature
            losses_B += teacher_B * teaching.binary_distance(*side)
        total, correct = jnp.sum(weights_B * losses_B), jnp.sum(weights_B * right_B)
        return total, jnp.sum(weights_B), {"correct": correct}

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Compares the probability of each label; the mean over the labels counts."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        sides = (masked_logits(side, weights_B) for side in (outputs, others))
        return jnp.sum(weights_B * layers.binary_divergence(*sides).mean(axis=-1))

    def fit(self, predictions: Predictions, validation: Examples) -> Mapping[str, Any]:
        """Returns the thresholds that make each label's F1 greatest."""
        if self.config.classification.threshold != "fitted":
            return {}
        true_NxC = self._true(validation, rows_of(validation, predictions.ids_N))
        return {"thresholds": best_thresholds(true_NxC, self._probabilities(predictions)).tolist()}

    def calibration(self, predictions: Predictions, examples: Examples) -> None:
        """None: thresholds are fitted here, not probabilities, and the probability of one label's
        decision is no confidence in the whole answer."""

    def _probabilities(self, predictions: Predictions) -> np.ndarray:
        return 0.5 * (1 + np.tanh(0.5 * self.logits(predictions).astype(np.float64)))  # sigmoid

    def _thresholds(self, fitted: Mapping[str, Any]) -> np.ndarray:
        """Returns the given threshold of each label, the fitted ones, or a half before any fit."""
        given = self.config.classification.threshold
        if given != "fitted":
            return np.full(self.size, float(given))
        return np.array(fitted.get("thresholds", [0.5] * self.size))

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Compares predictions with the labels; AUROC is the mean over the labels."""
        true_NxC = self._true(examples, rows_of(examples, predictions.ids_N))
        probabilities_NxC = self._probabilities(predictions)
        thresholds_C = self._thresholds(predictions.fitted)
        groups_N = groups_of(examples, predictions.ids_N)
        return self._scores(predictions.ids_N, true_NxC, probabilities_NxC, thresholds_C, groups_N)

    def _scores(
        self,
        ids_N: np.ndarray,
        true_NxC: np.ndarray,
        probabilities_NxC: np.ndarray,
        thresholds_C: np.ndarray,
        groups_N: np.ndarray | None,
    ) -> Scores:
        given_NxC = probabilities_NxC >= thresholds_C
        counts_NxCx3 = np.stack([true_NxC & given_NxC, given_NxC, true_NxC], axis=-1) * 1.0
        right_NxC = np.where(true_NxC, probabilities_NxC, 1 - probabilities_NxC)
        losses_N = -np.log(np.maximum(right_NxC, 1e-30)).mean(axis=1)
        statistics = {
            "micro_f1": counts_NxCx3.sum(axis=1),
            "macro_f1": np.moveaxis(counts_NxCx3, -1, 1).reshape(len(ids_N), -1),
            "exact": one_each((true_NxC == given_NxC).all(axis=1)),
            "auroc": placements(true_NxC, probabilities_NxC),
            "loss": one_each(losses_N),
        }
        known = per_class(statistics["macro_f1"], self.labels, groups_N)
        for label, threshold in zip(self.labels, thresholds_C.tolist(), strict=True):
            known[label]["threshold"] = threshold
        detail, truth = {"per_class": known}, digest(true_NxC)
        return Scores(self.metrics, ids_N, statistics, detail, truth, groups_N)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores each label's frequency, TF-IDF and, if there are any, features alone.

        Their thresholds are chosen as the model's are, but on a fifth of the training examples, by
        a model of the others; then all are learned from.
        """
        is_held_N = np.arange(len(train)) % 5 == 4
        rest, held = train.take(~is_held_N), train.take(is_held_N)
        fitted = self.config.classification.threshold == "fitted"

        def score(train: Examples, examples: Examples, columns: Any) -> Scores:
            thresholds_C = self._thresholds({})
            if fitted and columns and len(held):
                held_NxC = baselines.several(rest, held, self._true(rest), columns=columns)
                thresholds_C = best_thresholds(self._true(held), held_NxC)
            found_NxC = baselines.several(train, examples, self._true(train), columns=columns)
            sides = examples.ids_N, self._true(examples), found_NxC
            return self._scores(*sides, thresholds_C, examples.groups_N)

        return self.linear_baselines(train, examples, score)

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields what Classification does, with lists in 'label' and 'prediction'; 'confidence' is
        the mean probability of what was decided about each label."""
        probabilities_NxC = self._probabilities(predictions)
        given_NxC = probabilities_NxC >= self._thresholds(predictions.fitted)
        known = examples.label_sets is not None or examples.labels_N is not None
        true_NxC, rows_N = self._true(examples), rows_of(examples, predictions.ids_N)
        examples = examples.as_given()
        for row, given_C, probabilities_C in zip(rows_N, given_NxC, probabilities_NxC, strict=True):
            record, true_C = text_record(examples, int(row)), true_NxC[row]
            if known:
                record |= {"label": self._names(true_C), "wrong": bool((true_C != given_C).any())}
            record |= {"prediction": self._names(given_C)}
            decided_C = np.where(given_C, probabilities_C, 1 - probabilities_C)
            yield record | self.confidence(decided_C.mean(), probabilities_C)

    def _names(self, is_there_C: np.ndarray) -> list[str]:
        return [self.labels[c] for c in np.flatnonzero(is_there_C)]


def best_thresholds(true_NxC: np.ndarray, probabilities_NxC: np.ndarray) -> np.ndarray:
    """Returns for each class the threshold of the greatest F1, [C]; a half where it never occurs.

    It lies halfway between two probabilities that were seen, so that new ones may fall to either
    side of it.

    Args:
        true_NxC: bool.
        probabilities_NxC: of the same examples.
    """
    order_NxC = np.argsort(-probabilities_NxC, axis=0, kind="stable")
    sorted_NxC = np.take_along_axis(probabilities_NxC, order_NxC, axis=0)
    right_NxC = np.cumsum(np.take_along_axis(true_NxC, order_NxC, axis=0), axis=0)
    given_N = np.arange(1, len(true_NxC) + 1)
    f1_NxC = 2 * right_NxC / (given_N[:, None] + true_NxC.sum(axis=0))
    following_NxC = np.concatenate([sorted_NxC[1:], np.zeros((1, sorted_NxC.shape[1]))])
    f1_NxC[:-1][sorted_NxC[:-1] == following_NxC[:-1]] = -1  # no threshold parts equal ones
    best_C = f1_NxC.argmax(axis=0)[None]
    middle_NxC = (sorted_NxC + following_NxC) / 2
    return np.where(true_NxC.any(axis=0), np.take_along_axis(middle_NxC, best_C, axis=0)[0], 0.5)
