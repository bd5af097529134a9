"""What a model makes of the same examples with their texts changed: the robustness card.

Here: metrics, calibration error and changed predictions for each of
input_pipeline/batches/perturbation.py, paired with what the model says of the texts as they are;
the card as a table, and in a sentence. Called by workflows/finish.py for every integrated model if
config.eval.robustness.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.stats import norm

from evaluation.calibration import calibration_error, reliability
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, estimate, mean, one_each, paired_difference
from input_pipeline.batches.perturbation import PERTURBATIONS, differ, perturb
from input_pipeline.eta import track
from input_pipeline.examples import Examples
from reporting import report
from tasks import require
from tasks.task import Task
from training.experiment import Experiment

UNCHANGED = "unchanged"
_FLIPPED = Metric("flipped", "predictions changed, %", mean, False, scale=100, digits=1)
_CHANCE = 0.05  # that the sentence names a cost where there is none


def check(config: ConfigDict) -> None:
    """Checks that config.eval.robustness can be had, which is best known before training.

    Raises:
        ValueError: answers of config.task do not stay true when a text changes.
    """
    if config.eval.robustness:
        require(config, "ROBUSTNESS", "config.eval.robustness=True")


def robustness(
    experiment: Experiment,
    params: Mapping[str, jax.Array],
    *,
    examples: Examples,
    predictions: Predictions,
) -> list[dict[str, Any]]:
    """Returns the card of one model.

    Args:
        experiment: of the run.
        params: the trained ones of the model.
        examples: the texts as they are.
        predictions: what the model says of these.
    """
    config = experiment.config
    check(config)
    return card(
        lambda changed: experiment.predict(params, changed, predictions.fitted, complete=True),
        experiment.task,
        examples,
        predictions=predictions,
        metric=config.eval.metric,
        seed=config.seed,
        normalization=config.data.normalization,
    )


def card(
    predict: Callable[[Examples], Predictions],
    task: Task,
    examples: Examples,
    *,
    predictions: Predictions,
    metric: str,
    seed: int,
    normalization: Sequence[str] = (),
    names: Iterable[str] = PERTURBATIONS,
) -> list[dict[str, Any]]:
    """Returns what a model is worth on changed texts; JSON-ready, the unchanged ones first.

    Only examples whose text has changed are predicted anew, once for each perturbation.

    Args:
        predict: examples to predictions.
        task: scores and describes them.
        examples: the texts as they are.
        predictions: for `examples`.
        metric: the main one; 'auto' is the task's first.
        seed: of the perturbations.
        normalization: config.data.normalization, which changed texts go through.
        names: of PERTURBATIONS.

    Returns:
        For each 'perturbation' its 'title'; 'changed', the share of the examples whose text or pair
        is another behind the normalisation; 'metrics', each as of metrics.estimate; 'difference' of
        the main one to that on unchanged texts, as of metrics.paired_difference; 'ece', the
        calibration error, and 'flipped', an estimate of the share of examples with another
        prediction. These two are None where a prediction has no probability, or is a number.
    """
    scores, records = task.score(predictions, examples), list(task.describe(predictions, examples))
    rows = []
    names = (UNCHANGED, *names)
    for name in track(names, len(names), "Robustness"):
        changed, found = examples, predictions
        if name != UNCHANGED:
            changed = perturb(examples, name, seed=seed, normalization=normalization)
            found = _predict_again(predict, changed, differ(examples, changed), predictions)
        changed_scores = task.score(found, changed)
        changed_records = list(task.describe(found, changed))
        rows.append(
            {
                "perturbation": name,
                "title": PERTURBATIONS.get(name, name),
                "changed": float(differ(examples, changed).mean()),
                "metrics": {m.name: estimate(changed_scores, m.name) for m in scores.metrics},
                "difference": paired_difference(changed_scores, scores, metric=metric),
                "ece": _calibration_error(changed_records),
                "flipped": _flipped(found.ids_N, records, changed_records),
            }
        )
    return rows


def conclusion(rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """Says which perturbation costs most, and whether chance could have made it so.

    Of several differences the greatest is compared with what the greatest of as many without any
    effect would be (Bonferroni).

    Args:
        rows: as `card` returned.
        metric: the one that 'difference' is about.
    """
    sign = -1 if metric.higher_is_better else 1
    tried = [row for row in rows if row["perturbation"] != UNCHANGED and row["changed"]]
    title = metric.title.removesuffix(", %")
    if not tried:
        return "No perturbation changes a text."
    values = [row["difference"]["value"] for row in tried]
    if None in values or not np.isfinite(values).all():  # in a file what is no number is null
        return f"{title[0].upper() + title[1:]} has no value on these texts: nothing can be told."
    worst = max(tried, key=lambda row: sign * row["difference"]["value"])
    cost = sign * worst["difference"]["value"]
    if cost <= 0:
        return f"None of {len(tried)} perturbations makes {title} worse."
    error = worst["difference"]["standard_error"]
    moved = report.cell({"value": cost, "standard_error": error}, report.shown(metric))
    text = (
        f"Of {len(tried)} perturbations this costs most: {worst['title']}. "
        f"{title[0].upper() + title[1:]} {'falls' if metric.higher_is_better else 'rises'} by "
        f"{moved}{' points' if metric.scale == 100 else ''}"
    )
    if worst["flipped"]:
        text += f"; {report.cell(worst['flipped'], report.shown(_FLIPPED))} % of predictions change"
    # Of one example there is no error: NaN, and null in files.
    chance = error is None or not cost > norm.isf(_CHANCE / len(tried)) * error
    return text + "." + chance * f" As the worst of {len(tried)}, it may be chance."


def cells(
    name: str, rows: Sequence[Mapping[str, Any]], metric: Metric
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the card of the model `name` as columns and cells; arguments as of `show_card`."""
    columns = (name, "texts changed, %", metric.title, "difference", "ECE", _FLIPPED.title)
    shown = report.shown(metric)
    found = [
        (
            row["title"],
            f"{100 * row['changed']:.1f}",
            report.cell(row["metrics"][metric.name], shown),
            report.cell(row["difference"], shown),
            "" if row["ece"] is None else f"{row['ece']:.3f}",
            report.cell(row["flipped"], report.shown(_FLIPPED)) if row["flipped"] else "",
        )
        for row in rows
    ]
    return columns, found


def show_card(name: str, rows: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    """Prints the card of the model `name`; `rows` as `card` returned, of this main metric."""
    report.show(report.table(*cells(name, rows, metric)), conclusion(rows, metric))


def _predict_again(
    predict: Callable[[Examples], Predictions],
    examples: Examples,
    changed_N: np.ndarray,
    predictions: Predictions,
) -> Predictions:
    """Returns predictions of `examples`: new ones of those that changed, and the others' as given.

    So what has not changed cannot seem to by the rounding of other batches, and costs nothing.
    """
    # Of a masked example there is no prediction.
    chosen_N = changed_N & np.isin(examples.ids_N, predictions.ids_N)
    if not chosen_N.any():
        return predictions
    found = predict(examples.take(chosen_N))
    rows = np.searchsorted(predictions.ids_N, found.ids_N)
    outputs = {name: values.copy() for name, values in predictions.outputs.items()}
    for name, values in outputs.items():
        values[rows] = found[name]
    return dataclasses.replace(predictions, outputs=outputs)


def _calibration_error(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns how far confidence and accuracy are apart where each prediction is one label."""
    if not all(isinstance(record["prediction"], str) for record in records):
        return None
    confidence_N = np.array([record["confidence"] for record in records])
    return calibration_error(reliability(confidence_N, ~np.array([r["wrong"] for r in records])))


def _flipped(
    ids_N: np.ndarray,
    records: Sequence[Mapping[str, Any]],
    changed_records: Sequence[Mapping[str, Any]],
) -> dict[str, float] | None:
    """Returns the share of predictions that are another; None of numbers, which always are."""
    pairs = [
        (record["prediction"], changed["prediction"])
        for record, changed in zip(records, changed_records, strict=True)
    ]
    if any(isinstance(before, float) for before, _ in pairs):
        return None
    flipped_N = np.array([before != after for before, after in pairs])
    return estimate(Scores((_FLIPPED,), ids_N, {"flipped": one_each(flipped_N)}), "flipped")
