"""Probabilities of one answer among several, calibrated by what the validation split shows."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from evaluation import calibration
from evaluation.evaluate import Predictions
from input_pipeline.examples import Examples
from tasks.task import Task, groups_of, rows_of


class Calibrated(Task):
    """A task whose examples have one true index in `labels_N`, and a logit for each index.

    Predictions.fitted is {'temperature', 'bias'}, see evaluation.calibration.fit; {} if
    config.eval.calibration is 'none'.
    """

    AVERAGE = "softmax"
    ROBUSTNESS = True
    BIASES: ClassVar[bool] = True  # whether an index means the same in all examples

    def logits(self, predictions: Predictions) -> np.ndarray:
        """Returns the logits [N, C]."""
        return predictions["logits_NxC"]

    def classes(self, log_probabilities_NxC: np.ndarray) -> np.ndarray:
        """Returns the predicted index of each example."""
        return log_probabilities_NxC.argmax(axis=-1)

    def fit(self, predictions: Predictions, validation: Examples) -> Mapping[str, Any]:
        """Returns the temperature and, if so configured, the biases that calibrate the model.

        Models are chosen by scores on the same examples. One number fitted to all N of them makes
        their loss about 1 / N nats less than that of new examples (Akaike 1974), for every model
        alike and far within its error; C - 1 biases beside it make that C / N.
        """
        labels_N = validation.labels_N[rows_of(validation, predictions.ids_N)]
        kind = self.config.eval.calibration
        kind = "temperature" if kind == "bias" and not self.BIASES else kind
        return calibration.fit(self.logits(predictions), labels_N, kind=kind)

    def log_probabilities(self, predictions: Predictions) -> np.ndarray:
        """Returns normalised log probabilities, calibrated by Predictions.fitted; float64."""
        return calibration.calibrate(self.logits(predictions), predictions.fitted)

    def calibration(self, predictions: Predictions, examples: Examples) -> dict[str, Any] | None:
        """Returns the cards (evaluation.calibration.card) of the model's probabilities and of the
        calibrated ones, 'before' and 'after', and the 'temperature' and 'bias' between them."""
        labels_N = examples.labels_N[rows_of(examples, predictions.ids_N)]
        groups_N = groups_of(examples, predictions.ids_N)
        logits_NxC, cards = self.logits(predictions), {}
        for name, fitted in {"before": {}, "after": predictions.fitted}.items():
            logs_NxC = calibration.calibrate(logits_NxC, fitted)
            cards[name] = calibration.card(labels_N, self.classes(logs_NxC), logs_NxC, groups_N)
        unchanged = {"temperature": 1.0, "bias": [0.0] * logits_NxC.shape[1]}
        return cards | unchanged | dict(predictions.fitted)
