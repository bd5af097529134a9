"""Classification into classes that have an order, such as stars.

Here: the head of one score and its thresholds, and metrics that know how far off a prediction is.
All else is in classification.py.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from evaluation import classification_metrics, probes
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, mean, one_each
from input_pipeline.batches.template import Encoder
from input_pipeline.examples import Examples
from models.heads import OrdinalHead, threshold_parameters, threshold_steps
from tasks.classification import ACCURACY, LOSS, Classification
from tasks.task import Fit


def quadratic_weighted_kappa(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of statistics (squared difference, true class, predicted class, the sum of their
    squares, 1): agreement beyond chance, 1 if perfect; 0 where all are of one class."""
    observed, true, predicted, squares, count = np.moveaxis(np.asarray(sums, float), -1, 0)
    by_chance = squares - 2 * true * predicted / np.maximum(count, 1)
    apart = by_chance > 0
    return np.where(apart, 1 - observed / np.where(apart, by_chance, 1), 0.0)


class Ordinal(Classification):
    """A text is of one of `labels`, which ascend (proportional odds); predicted is the median."""

    metrics = (
        ACCURACY,
        Metric("absolute_error", "mean absolute error, classes", mean, higher_is_better=False),
        Metric("kappa", "quadratic weighted kappa", quadratic_weighted_kappa),
        *classification_metrics.METRICS,
        LOSS,
    )
    EXPORT = ""
    REVIEW = False
    OPTIONS = ("class_weights", "focal_gamma")
    SMOOTHING = False
    WORDS = False

    def prose(self) -> str:
        """Describes what is learned, for the start-up log."""
        return (
            f"{self.config.model.pooling} pooling and one score for the order "
            f"{' < '.join(self.labels)} (set config.data.labels if it is another)"
        )

    def check(self, examples: Examples, split: str) -> None:
        """Raises on examples without a class; counts those of the training split."""
        super().check(examples, split)
        if split == "train":
            labels_N = examples.labels_N[examples.labels_N >= 0]
            self._counts_C = np.bincount(labels_N, minlength=self.size) + 1

    def head(self, *, num_features: int) -> nn.Module:
        """Returns a head with one score and thresholds."""
        options = {"num_features": num_features, "num_levels": self.size, "bias": False}
        return self.linear_head(1, OrdinalHead, **options)

    def start_head(
        self, heads: dict[str, np.ndarray], params: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Starts from the frequencies of the training split: rates of fine-tuning are too low for
        thresholds to go far."""
        if hasattr(self, "_counts_C"):
            thresholds = threshold_parameters(self._counts_C / self._counts_C.sum())
            heads = heads | {"head/thresholds": thresholds}
        return super().start_head(heads, params)

    def probe(self, windows: Examples, vectors: Predictions, encoder: Encoder) -> Fit:
        """Fits proportional odds, thresholds and all."""
        inputs_NxD, known_N = vectors["inputs_NxD"], windows.labels_N >= 0
        probe = probes.ordered(inputs_NxD[known_N], windows.labels_N[known_N], count=self.size)
        # Not by way of shares: of vectors far from 0, these would be 0 and 1.
        heads = {"head/kernel": probe.kernel_DxC[:, :1]}
        return heads | {"head/thresholds": threshold_steps(-probe.bias_C)}, probe.prose()

    def classes(self, log_probabilities_NxC: np.ndarray) -> np.ndarray:
        """Returns the median class of each example, which is off by least on average.

        Unlike the likeliest class, it may change with a temperature: that of calibrated
        probabilities is the better one.
        """
        below_NxC = np.cumsum(np.exp(log_probabilities_NxC), axis=1)[:, :-1]
        return (below_NxC < 0.5).sum(axis=1)

    def statistics(
        self, labels_N: np.ndarray, classes_N: np.ndarray, log_probabilities_NxC: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the statistics of each metric."""
        distances_N, squares_N = np.abs(labels_N - classes_N), labels_N**2 + classes_N**2
        parts = (distances_N**2, labels_N, classes_N, squares_N, np.ones(len(labels_N)))
        statistics = super().statistics(labels_N, classes_N, log_probabilities_NxC)
        kappa = np.stack(parts, axis=1).astype(np.float64)
        return statistics | {"absolute_error": one_each(distances_N), "kappa": kappa}
