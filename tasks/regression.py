"""Numbers of whole texts, or pairs of them: ratings, similarities.

Here: a squared error on the scale of the training numbers, and correlations.
"""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from evaluation import baselines, probes
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, mean, one_each
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.examples import Examples
from tasks import limits
from tasks.classification import LOSS
from tasks.limits import Given, Limit
from tasks.task import Arrays, Chunk, Fit, Loss, Targets, digest, groups_of, rows_of, text_record
from tasks.whole_text import WholeText


def correlation(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of statistics (x, y, x * x, y * y, x * y, 1): Pearson's correlation, 0 where x
    or y is constant."""
    x, y, xx, yy, xy, count = np.moveaxis(np.asarray(sums, float), -1, 0)
    count = np.maximum(count, 1)
    spread = (xx - x * x / count) * (yy - y * y / count)
    varies = spread > 1e-18 * np.maximum(xx * yy, 1e-18)
    return np.where(varies, (xy - x * y / count) / np.sqrt(np.where(varies, spread, 1)), 0.0)


def root_mean(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of statistics (square, 1)."""
    return np.sqrt(mean(sums, whole))


class Regression(WholeText):
    """A text has a number.

    The head's output is in deviations from the mean of the training numbers, so that it starts at
    the mean and rates need not follow the unit. Predictions.fitted is that scale, {'mean',
    'deviation'}: it comes from the training split, and no evaluation changes it.
    """

    metrics = (
        Metric("pearson", "Pearson correlation", correlation),
        Metric("spearman", "Spearman correlation", correlation, additive=False),  # of ranks
        Metric("rmse", "root mean squared error", root_mean, higher_is_better=False),
        LOSS,
    )
    AVERAGE = "numbers"
    UNIT = True
    FLOOR = baselines.TFIDF_RIDGE
    FLOORS = (baselines.MEAN, FLOOR)

    def prose(self) -> str:
        """Describes what is learned, for the start-up log."""
        return f"{self.config.model.pooling} pooling and a linear head for a number"

    def check(self, examples: Examples, split: str) -> None:
        """Raises on examples without numbers; takes the scale from those of the training split."""
        if examples.numbers_N is None or not np.isfinite(examples.numbers_N).any():
            raise ValueError(
                f"the {split} data have no numbers, which config.classification.kind='regression' "
                "needs: set config.data.label_kind='number' and config.data.label_column"
            )
        if split == "train":
            self.unfitted = scale = _scale(examples)
            if not scale["deviation"]:
                raise ValueError(
                    f"all training numbers are {scale['mean']}: there is nothing to learn"
                )

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what is cut or without a number."""
        yield from super().limits(given)
        if (numbers_N := given.examples.numbers_N) is not None:
            yield limits.masked(int((~np.isfinite(numbers_N)).sum()), len(numbers_N), "number")

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns numbers_B in deviations from the mean, weights that mask those not known."""
        numbers_B = np.full(len(chunk.indices_B), np.nan if chunk.training else 0.0)
        if chunk.examples.numbers_N is not None:
            numbers_B = chunk.examples.numbers_N[chunk.indices_B].astype(np.float64)
        weights_B = np.isfinite(numbers_B).astype(np.float32)
        if self.unfitted:  # no loss is computed where a checkpoint predicts
            numbers_B = (numbers_B - self.unfitted["mean"]) / self.unfitted["deviation"]
        numbers_B = np.where(weights_B > 0, numbers_B, 0).astype(np.float32)
        numbers = {"numbers_B": numbers_B, "weights_B": weights_B}
        return Targets(self.mask_positions(encoded), numbers)

    def head(self, *, num_features: int) -> nn.Module:
        """Returns a head with one column."""
        return self.linear_head(1, num_features=num_features)

    def probe(self, windows: Examples, vectors: Predictions, encoder: Encoder) -> Fit:
        """Fits ridge regression, in deviations from the mean."""
        known_N, scale = np.isfinite(windows.numbers_N), self.unfitted
        numbers_N = (windows.numbers_N[known_N] - scale["mean"]) / scale["deviation"]
        inputs_NxD = vectors["inputs_NxD"]
        probe = probes.numbers(inputs_NxD[known_N], numbers_N.astype(np.float64))
        return probe.params, probe.prose()

    def guess_loss(self, examples: Examples) -> float:
        """Returns the squared error of the mean of the examples, in deviations."""
        numbers_N = examples.numbers_N[np.isfinite(examples.numbers_N)]
        return float(numbers_N.var() / self.unfitted["deviation"] ** 2)

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the squared error, in deviations; that of predicting the mean is 1 on average."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        outputs_B = jnp.where(weights_B > 0, outputs["logits_BxC"][:, 0].astype(jnp.float32), 0.0)
        losses_B = jnp.square(outputs_B - batch["numbers_B"])
        return jnp.sum(weights_B * losses_B), jnp.sum(weights_B), {}

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Sums the squared differences."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        apart_B = (outputs["logits_BxC"] - others["logits_BxC"])[:, 0].astype(jnp.float32)
        return jnp.sum(weights_B * jnp.square(jnp.where(weights_B > 0, apart_B, 0.0)))

    def _numbers(self, predictions: Predictions) -> np.ndarray:
        """Returns the predictions in the unit of the data."""
        outputs_N = predictions["logits_NxC"][:, 0].astype(np.float64)
        return outputs_N * predictions.fitted["deviation"] + predictions.fitted["mean"]

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns correlations, the root mean squared error in the data's unit, and the loss."""
        true_N = examples.numbers_N[rows_of(examples, predictions.ids_N)]
        deviation, numbers_N = predictions.fitted["deviation"], self._numbers(predictions)
        groups_N = groups_of(examples, predictions.ids_N)
        return self._scores(predictions.ids_N, true_N, numbers_N, deviation, groups_N)

    def _scores(
        self,
        ids_N: np.ndarray,
        true_N: np.ndarray,
        numbers_N: np.ndarray,
        deviation: float,
        groups_N: np.ndarray | None,
    ) -> Scores:
        true_N, errors_N = true_N.astype(np.float64), (numbers_N - true_N) ** 2
        statistics = {
            "pearson": products(true_N, numbers_N),
            "spearman": products(rankdata(true_N), rankdata(numbers_N)),
            "rmse": one_each(errors_N),
            "loss": one_each(errors_N / deviation**2),
        }
        return Scores(self.metrics, ids_N, statistics, {}, digest(true_N), groups_N)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores the mean, TF-IDF and, if there are any, features alone."""

        def score(train: Examples, examples: Examples, columns: Any) -> Scores:
            numbers_N = baselines.numbers(train, examples, columns=columns)
            deviation = _scale(train)["deviation"]
            sides = examples.ids_N, examples.numbers_N, numbers_N
            return self._scores(*sides, deviation, examples.groups_N)

        parts = (part.take(np.isfinite(part.numbers_N)) for part in (train, examples))
        return self.linear_baselines(*parts, score)

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields 'id', 'name', 'text', 'pair', 'label' (each if known) and 'prediction'.

        'wrong' is what is off by more than a deviation of the training numbers, and 'confidence' by
        how many.
        """
        rows_N, examples = rows_of(examples, predictions.ids_N), examples.as_given()
        for row, number in zip(rows_N, self._numbers(predictions), strict=True):
            record = text_record(examples, int(row))
            true = np.nan if examples.numbers_N is None else float(examples.numbers_N[row])
            if np.isfinite(true):
                off = abs(number - true) / predictions.fitted["deviation"]
                record |= {"label": true, "wrong": bool(off > 1), "confidence": round(off, 6)}
            yield record | {"prediction": round(float(number), 6)}


def _scale(examples: Examples) -> dict[str, float]:
    """Returns mean and standard deviation of the known numbers."""
    numbers_N = examples.numbers_N[np.isfinite(examples.numbers_N)].astype(np.float64)
    return {"mean": float(numbers_N.mean()), "deviation": float(numbers_N.std())}


def products(x_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Returns the statistics of `correlation`, about the means, where they are most exact."""
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    return np.stack([x_N, y_N, x_N**2, y_N**2, x_N * y_N, np.ones(len(x_N))], axis=1)
