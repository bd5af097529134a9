"""Classification where labels are paths in a tree, such as 娱乐/电影.

Here: the loss over the levels of the tree and a metric for each. All else is in classification.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.special import logsumexp

from evaluation.classification_metrics import METRICS
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, mean, one_each
from input_pipeline.examples import Examples
from tasks.classification import ACCURACY, LOSS, MACRO_F1, Classification


class Hierarchical(Classification):
    """A text carries one of `labels`, leaves of a tree; a node is as likely as its leaves together.

    Attributes:
        nodes_LxC: at each level, the number of the node that each label lies under.
    """

    BOUND = (*Classification.BOUND, "classification.separator")
    EXPORT = ""
    REVIEW = False
    OPTIONS = ("class_weights",)
    SMOOTHING = False

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Builds the tree, and metrics with the accuracy of each level above the label.

        Raises:
            ValueError: also for labels of one level only.
        """
        super().__init__(config, labels, **parts)
        separator = config.classification.separator
        self._paths = [label.split(separator) for label in self.labels]
        if (depth := max(map(len, self._paths))) < 2:
            raise ValueError(
                f"config.classification.separator={separator!r} is in none of the labels "
                f"{self.labels[:5]}, which then make no tree: set it, or kind='single'"
            )
        levels = [[tuple(path[: stop + 1]) for path in self._paths] for stop in range(depth)]
        numbers = [{node: i for i, node in enumerate(dict.fromkeys(level))} for level in levels]
        self.nodes_LxC = np.array(
            [[known[node] for node in level] for known, level in zip(numbers, levels, strict=True)]
        )
        # Where a level parts nothing from a label's node, its loss would be counted twice.
        sizes_LxC = (self.nodes_LxC[:, :, None] == self.nodes_LxC[:, None]).sum(axis=-1)
        splits_LxC = np.diff(sizes_LxC, axis=0) < 0
        self._counted_LxC = np.concatenate([np.ones((1, self.size)), splits_LxC]).astype(np.float32)
        above = [
            Metric(f"accuracy_{level}", f"accuracy of level {level}, %", mean, scale=100, digits=1)
            for level in range(1, depth)
        ]
        self.metrics = (ACCURACY, *above, MACRO_F1, *METRICS, LOSS)

    def losses(self, logits_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
        """Returns the sum over the levels of minus log of the true node's probability."""
        nodes_LxC, counted_LxC = jnp.asarray(self.nodes_LxC), jnp.asarray(self._counted_LxC)
        is_under_BxLxC = nodes_LxC == nodes_LxC[:, labels_B].T[:, :, None]
        node_BxL = jax.nn.logsumexp(logits_BxC[:, None], axis=-1, where=is_under_BxLxC)
        losses_BxL = jax.nn.logsumexp(logits_BxC, axis=-1, keepdims=True) - node_BxL
        return jnp.sum(losses_BxL * counted_LxC[:, labels_B].T, axis=-1)

    def statistics(
        self, labels_N: np.ndarray, classes_N: np.ndarray, log_probabilities_NxC: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the statistics of each metric; the predicted label decides every level."""
        statistics = super().statistics(labels_N, classes_N, log_probabilities_NxC)
        losses_N = np.zeros(len(labels_N))
        for level, (nodes_C, counted_C) in enumerate(
            zip(self.nodes_LxC, self._counted_LxC, strict=True), start=1
        ):
            is_under_NxC = nodes_C == nodes_C[labels_N][:, None]
            losses_N -= counted_C[labels_N] * logsumexp(
                log_probabilities_NxC, axis=1, b=is_under_NxC
            )
            statistics[f"accuracy_{level}"] = one_each(nodes_C[labels_N] == nodes_C[classes_N])
        return statistics | {"loss": one_each(losses_N)}

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields what Classification does, and 'path', the predicted nodes from the root down."""
        for record in super().describe(predictions, examples):
            yield record | {"path": self._paths[self.labels.index(record["prediction"])]}
