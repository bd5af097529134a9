"""Classification of whole texts, or pairs of them, into one of C labels.

Here: targets, loss, statistics and descriptions where exactly one label is right. Several labels,
ordered labels and trees of labels build on this in multi_label.py, ordinal.py and hierarchical.py;
heads from words are in label_words.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from sklearn.metrics import confusion_matrix

from evaluation import baselines, classification_metrics, probes
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, class_counts, macro_f1, mean, one_each
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.examples import Examples
from models import layers
from tasks import label_words, limits, teaching
from tasks.calibrated import Calibrated
from tasks.limits import Given, Limit
from tasks.task import (
    Arrays,
    Chunk,
    Fit,
    Loss,
    Targets,
    check_labels,
    digest,
    groups_of,
    rows_of,
    text_record,
)
from tasks.whole_text import WholeText

ACCURACY = Metric("accuracy", "accuracy, %", mean, scale=100, digits=1)
MACRO_F1 = Metric("macro_f1", "macro-F1, %", macro_f1, scale=100, digits=1)
LOSS = Metric("loss", "loss", mean, higher_is_better=False)


class Classification(WholeText, Calibrated):
    """A text carries exactly one of `labels`; class c is `labels[c]`.

    Attributes:
        size: C.
    """

    metrics = (ACCURACY, MACRO_F1, *classification_metrics.METRICS, LOSS)
    FLOOR = baselines.TFIDF
    EXPORT = "classifier"
    REVIEW = True
    OPTIONS = ("class_weights", "focal_gamma")
    SMOOTHING = True
    TEACHABLE = True
    WORDS = True

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Checks the labels, and the options that are about each of them.

        Raises:
            ValueError: fewer than two labels, or one twice; words, weights or a template that don't
                fit.
        """
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError(
                "config.task='classification' needs at least two labels, each once; found "
                f"{tuple(labels)!r}: set config.data.label_column and labels, or another task"
            )
        super().__init__(config, labels, **parts)
        self.size = len(self.labels)
        self._weights_C = np.ones(self.size, np.float32)
        self._taught: set[int] = set()
        weights = tuple(config.classification.class_weights)
        self._balanced = weights == ("balanced",)
        if weights and not self._balanced:
            if len(weights) != self.size:
                raise ValueError(
                    f"config.classification.class_weights: found {len(weights)} for {self.size} "
                    f"labels {self.labels}: give one each, or ('balanced',)"
                )
            self._weights_C = np.array(weights, np.float32)
        self._word_ids: list[list[int]] = []
        if config.model.head == "label_words":
            self._word_ids = label_words.piece_ids(
                config, self.labels, tokenizer=self.tokenizer, backbone=self.backbone
            )
            self.parts += ("mlm_head" if self.positions else "lm_head",)

    def prose(self) -> str:
        """Describes what is learned, for the start-up log."""
        model = self.config.model
        named = ", ".join(self.labels[:20]) + f" and {self.size - 20} more" * (self.size > 20)
        return f"{model.pooling} pooling and a {model.head} head over {named}"

    def check(self, examples: Examples, split: str) -> None:
        """Raises on examples without a class; counts those of the training split."""
        if examples.labels_N is None:
            raise ValueError(
                f"the {split} examples have no class label: set config.data.label_column, or "
                "config.classification.kind to 'multi' (several labels) or 'regression' (numbers)"
            )
        if not teaching.has_teacher(examples).any():
            check_labels(examples.labels_N, split)
        if split == "train" and self._balanced:
            counts_C = np.bincount(examples.labels_N[examples.labels_N >= 0], minlength=self.size)
            weights_C = counts_C.sum() / (self.size * np.maximum(counts_C, 1))
            self._weights_C = weights_C.astype(np.float32)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what is cut, without a label, or of a label that was not learned."""
        yield from super().limits(given)
        labels, masked = self.known_labels(given.examples)
        yield limits.masked(masked, len(given.examples))
        if given.training:
            self._taught = set(labels.tolist())
            yield from limits.unused(self._taught, self.labels)
            if not self.positions:  # masks are one per piece
                yield Limit(
                    sum(len(pieces) > 1 for pieces in self._word_ids),
                    len(self._word_ids),
                    "label words take several tokens, and the head starts from the mean of these",
                    "choose words in config.model.label_words that are one token each",
                )
        elif self._taught:
            yield from limits.untaught(labels, self._taught, self.labels, "labels")

    def known_labels(self, examples: Examples) -> tuple[np.ndarray, int]:
        """Returns the labels that the examples carry, and how many teach nothing."""
        if examples.labels_N is None:
            return np.zeros(0, int), 0
        known_N = examples.labels_N >= 0
        masked = int((~known_N & ~teaching.has_teacher(examples)).sum())
        return examples.labels_N[known_N], masked

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns labels, weights that mask them, where the template's masks are, a teacher's
        probabilities."""
        labels_B = np.full(len(chunk.indices_B), -1 if chunk.training else 0, np.int32)
        if chunk.examples.labels_N is not None:
            labels_B = chunk.examples.labels_N[chunk.indices_B]
        known_B = labels_B >= 0
        labels = {"labels_B": np.maximum(labels_B, 0), "weights_B": known_B.astype(np.float32)}
        return Targets(self.mask_positions(encoded), labels | teaching.targets(chunk, known_B))

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the classifier's head, which reads each mask apart if it starts from words."""
        masks = len(self._word_ids[0]) if self._word_ids and self.positions else 0
        return self.linear_head(self.size, num_features=num_features, masks=masks)

    def start_head(
        self, heads: dict[str, np.ndarray], params: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Starts from the language model's output vectors of the label words, if there are any."""
        if not self._word_ids:
            return super().start_head(heads, params)
        fresh = {path for path in heads if path.endswith("feature_kernel")}
        return heads | label_words.start(heads, params, self._word_ids), fresh

    def probe(self, windows: Examples, vectors: Predictions, encoder: Encoder) -> Fit:
        """Fits softmax regression, with the class weights of the loss."""
        inputs_NxD, known_N = vectors["inputs_NxD"], windows.labels_N >= 0
        probe = probes.classes(
            inputs_NxD[known_N], windows.labels_N[known_N], weights_C=self._weights_C
        )
        return probe.params, probe.prose()

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the loss; 'correct' is the weighted number of right predictions, for a teacher those
        of its likeliest label."""
        labels_B, logits_BxC = batch["labels_B"], masked_logits(outputs, batch["weights_B"])
        # Divided by the weights of the classes, the loss of balanced ones stays of the usual size.
        weights_B, teacher_B = self._learned(batch)
        best_B = jnp.argmax(logits_BxC, axis=-1)
        correct = jnp.sum(weights_B * (best_B == labels_B))
        total = jnp.sum(weights_B * self.losses(logits_BxC, labels_B))
        if "teacher_BxC" in batch:
            teacher_BxC, temperature = batch["teacher_BxC"], self.config.teach.temperature
            apart_B = teaching.distance(teacher_BxC, logits_BxC, temperature)
            total += jnp.sum(teacher_B * apart_B)
            correct += jnp.sum(teacher_B * (best_B == jnp.argmax(teacher_BxC, axis=-1)))
        return total, jnp.sum(weights_B + teacher_B), {"correct": correct}

    def _learned(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Returns how much the label of each example weighs in the loss, and how much its teacher;
        class weights are of labels."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        label_B, teacher_B = teaching.shares(batch, self.config.teach.share)
        weights_C = jnp.asarray(self._weights_C)
        return weights_B * weights_C[batch["labels_B"]] * label_B, weights_B * teacher_B

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Compares the probabilities of the labels."""
        sides = (masked_logits(side, batch["weights_B"]) for side in (outputs, others))
        return jnp.sum(sum(self._learned(batch)) * layers.divergence(*sides))

    def guess_loss(self, examples: Examples) -> float | None:
        """Returns the loss of predicting the frequencies of the labels; None with options that
        make probabilities differ from frequencies on purpose."""
        options = [self.config.classification[name] for name in self.OPTIONS]
        if any(options) or self.config.regularize.label_smoothing:
            return None
        counts_C = np.bincount(examples.labels_N[examples.labels_N >= 0], minlength=self.size)
        logs_C, classes_C = np.log(np.maximum(counts_C, 1e-30)), np.arange(self.size)
        logs_CxC = np.tile(logs_C - np.log(counts_C.sum()), (self.size, 1))
        statistics = self.statistics(classes_C, classes_C, logs_CxC)
        return float(np.average(statistics["loss"][:, 0], weights=counts_C))

    def losses(self, logits_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
        """Returns the cross-entropy of each example, smoothed or focused if so configured."""
        options, true_BxC = self.config.classification, jax.nn.one_hot(labels_B, self.size)
        smooth_BxC = optax.smooth_labels(true_BxC, self.config.regularize.label_smoothing)
        losses_B = optax.softmax_cross_entropy(logits_BxC, smooth_BxC)
        if options.focal_gamma:  # (1 - p) ** gamma of the true class (1708.02002)
            right_B = jnp.sum(jax.nn.softmax(logits_BxC) * true_BxC, -1)
            # Kept off 0, where the power's derivative may be infinite.
            losses_B *= jnp.maximum(1 - right_B, 1e-6) ** options.focal_gamma
        return losses_B

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Compares predictions with the labels; the loss is without class weights."""
        labels_N = examples.labels_N[rows_of(examples, predictions.ids_N)]
        logs_NxC = self.log_probabilities(predictions)
        groups_N = groups_of(examples, predictions.ids_N)
        return self.scores(predictions.ids_N, labels_N, logs_NxC, groups_N=groups_N)

    def scores(
        self,
        ids_N: np.ndarray,
        labels_N: np.ndarray,
        log_probabilities_NxC: np.ndarray,
        *,
        groups_N: np.ndarray | None = None,
    ) -> Scores:
        """Compares log probabilities with the labels; adds a confusion matrix (true by predicted)
        and the scores of each class."""
        classes_N = self.classes(log_probabilities_NxC)
        statistics = self.statistics(labels_N, classes_N, log_probabilities_NxC)
        matrix = confusion_matrix(labels_N, classes_N, labels=np.arange(self.size))
        counts_Nx3C = class_counts(labels_N, classes_N, self.size)
        per_class = classification_metrics.per_class(counts_Nx3C, self.labels, groups_N)
        detail = {"confusion_matrix": matrix.tolist(), "per_class": per_class}
        statistics = {metric.name: statistics[metric.name] for metric in self.metrics}
        return Scores(self.metrics, ids_N, statistics, detail, digest(labels_N), groups_N)

    def statistics(
        self, labels_N: np.ndarray, classes_N: np.ndarray, log_probabilities_NxC: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the statistics of each metric; of some more, which are ignored."""
        return {
            "accuracy": one_each(labels_N == classes_N),
            **classification_metrics.statistics(labels_N, classes_N, log_probabilities_NxC),
            "loss": one_each(-log_probabilities_NxC[np.arange(len(labels_N)), labels_N]),
        }

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores the majority class, TF-IDF and, if there are any, features alone; as they are,
        not calibrated."""

        def score(train: Examples, examples: Examples, columns: Any) -> Scores:
            predict, how = baselines.majority, {}
            if columns is not None:
                predict, how = baselines.classes, {"columns": columns}
            logs_NxC = predict(train, examples, num_classes=self.size, **how)
            sides = examples.ids_N, examples.labels_N, logs_NxC
            return self.scores(*sides, groups_N=examples.groups_N)

        parts = (part.take(part.labels_N >= 0) for part in (train, examples))
        return self.linear_baselines(*parts, score)

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields 'id', 'name', 'text', 'pair', 'label' and 'wrong' (each if known), 'prediction',
        'confidence' and 'probabilities', calibrated."""
        logs_NxC = self.log_probabilities(predictions)
        rows_N, examples = rows_of(examples, predictions.ids_N), examples.as_given()
        for row, best, probabilities_C in zip(
            rows_N, self.classes(logs_NxC), np.exp(logs_NxC), strict=True
        ):
            record = text_record(examples, int(row))
            if examples.labels_N is not None and (true := examples.labels_N[row]) >= 0:
                record |= {"label": self.labels[true], "wrong": bool(best != true)}
            record |= {"prediction": self.labels[best]}
            yield record | self.confidence(probabilities_C[best], probabilities_C)

    def confidence(self, confidence: float, probabilities_C: np.ndarray) -> dict[str, Any]:
        """Returns the entries 'confidence' and 'probabilities' of a description."""
        rounded = [round(float(probability), 6) for probability in probabilities_C]
        named = dict(zip(self.labels, rounded, strict=True))
        return {"confidence": round(float(confidence), 6), "probabilities": named}

    def logits(self, predictions: Predictions) -> np.ndarray:
        """Returns the logits, one column for each label.

        Raises:
            ValueError: there are more, or fewer.
        """
        logits_NxC = super().logits(predictions)
        if logits_NxC.shape[-1] != self.size:
            raise ValueError(
                f"Predictions over {logits_NxC.shape[-1]} classes do not fit the {self.size} "
                f"labels {self.labels!r}."
            )
        return logits_NxC


def masked_logits(outputs: Arrays, weights_B: jax.Array) -> jax.Array:
    """Returns the logits as float32, 0 for examples of weight 0.

    They are replaced before the logarithm, not after: 0 * NaN would reach the gradient.
    """
    return jnp.where(weights_B[:, None] > 0, outputs["logits_BxC"].astype(jnp.float32), 0.0)
