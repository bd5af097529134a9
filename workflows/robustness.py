"""The robustness card: what a model predicts for the same examples with their texts changed.

Here: metrics, calibration error and changed predictions for each of
input_pipeline/batches/perturbation.py, paired with the predictions for the texts as they are. The
table and the sentence are reporting/robustness_card.py's.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from evaluation.calibration import calibration_error, reliability
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, estimate, mean, one_each, paired_difference
from input_pipeline.batches.perturbation import PERTURBATIONS, differ, perturb
from input_pipeline.eta import track
from input_pipeline.examples import Examples
from reporting import report, robustness_card
from tasks import require
from training.experiment import Experiment

UNCHANGED = "unchanged"
_FLIPPED = Metric("flipped", "predictions changed, %", mean, False, scale=100, digits=1)


def check(config: ConfigDict) -> None:
    """Raises ValueError where the answers of config.task do not stay true when a text changes."""
    if config.eval.robustness:
        require(config, "ROBUSTNESS", "config.eval.robustness=True")


def robustness(
    experiment: Experiment,
    params: Mapping[str, jax.Array],
    *,
    examples: Examples,
    predictions: Predictions,
    names: Iterable[str] = PERTURBATIONS,
) -> list[dict[str, Any]]:
    """Returns a model's scores on changed texts; JSON-ready, the unchanged ones first.

    Only examples whose text has changed are predicted anew, once for each perturbation.

    Args:
        experiment: of the run.
        params: the trained ones of the model.
        examples: the texts as they are.
        predictions: of the model for these.
        names: of PERTURBATIONS.

    Returns:
        For each 'perturbation' its 'title'; 'changed', the share of the examples whose text or pair
        is another after the normalisation; 'metrics', from metrics.estimate; 'difference' of the
        main one to that on unchanged texts, from metrics.paired_difference; 'ece', the calibration
        error, and 'flipped', an estimate of the share of examples with another prediction. These
        two are None where a prediction has no probability, or is a number.
    """
    config, task, metric = experiment.config, experiment.task, experiment.config.eval.metric

    def predict(changed: Examples) -> Predictions:
        return experiment.predict(params, changed, predictions.fitted, complete=True)

    scores, records = task.score(predictions, examples), list(task.describe(predictions, examples))
    rows = []
    names = (UNCHANGED, *names)
    for name in track(names, len(names), "Robustness"):
        texts, answers = examples, predictions
        if name != UNCHANGED:
            how = {"seed": config.seed, "normalization": config.data.normalization}
            texts = perturb(examples, name, **how)
            answers = _predict_again(predict, texts, differ(examples, texts), predictions)
        changed_scores = task.score(answers, texts)
        changed_records = list(task.describe(answers, texts))
        rows.append(
            {
                "perturbation": name,
                "title": PERTURBATIONS.get(name, name),
                "changed": float(differ(examples, texts).mean()),
                "metrics": {m.name: estimate(changed_scores, m.name) for m in scores.metrics},
                "difference": paired_difference(changed_scores, scores, metric=metric),
                "ece": _calibration_error(changed_records),
                "flipped": _flipped(changed_scores, records, changed_records),
            }
        )
    return rows


def show_card(name: str, rows: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    """Prints the card of the model `name`; `rows` from `robustness`, of this main metric."""
    shown = report.shown(metric)
    drawn = report.table(*robustness_card.cells(name, rows, shown))
    report.show(drawn, robustness_card.conclusion(rows, shown))


def _predict_again(
    predict: Callable[[Examples], Predictions],
    examples: Examples,
    changed_N: np.ndarray,
    predictions: Predictions,
) -> Predictions:
    """Returns predictions of `examples`: new ones where the text changed, the given ones elsewhere.

    So what has not changed cannot seem to by the rounding of other batches, and costs nothing.
    """
    # Of a masked example there is no prediction.
    chosen_N = changed_N & np.isin(examples.ids_N, predictions.ids_N)
    if not chosen_N.any():
        return predictions
    again = predict(examples.take(chosen_N))
    rows = np.searchsorted(predictions.ids_N, again.ids_N)
    outputs = {name: values.copy() for name, values in predictions.outputs.items()}
    for name, values in outputs.items():
        values[rows] = again[name]
    return dataclasses.replace(predictions, outputs=outputs)


def _calibration_error(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns how far confidence and accuracy are apart where each prediction is one label."""
    if not all(isinstance(record["prediction"], str) for record in records):
        return None
    confidence_N = np.array([record["confidence"] for record in records])
    return calibration_error(reliability(confidence_N, ~np.array([r["wrong"] for r in records])))


def _flipped(
    scores: Scores,
    records: Sequence[Mapping[str, Any]],
    changed_records: Sequence[Mapping[str, Any]],
) -> dict[str, float] | None:
    """Returns the share of predictions that changed; None of numbers, which always do."""
    before, after = ([row["prediction"] for row in side] for side in (records, changed_records))
    if any(isinstance(prediction, float) for prediction in before):
        return None
    flipped_N = np.array([old != new for old, new in zip(before, after, strict=True)])
    statistics, groups_N = {"flipped": one_each(flipped_N)}, scores.groups_N
    return estimate(Scores((_FLIPPED,), scores.ids_N, statistics, groups_N=groups_N), "flipped")
