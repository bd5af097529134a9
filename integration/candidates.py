"""What could be the model that a run ends with: judged on validation, compared, chosen.

Here: the result of judging parameters, the candidates with their costs, the rule that chooses and
the table. Not here: what makes candidates, nor trees. Called by trials.py and run.py.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, estimate
from input_pipeline.examples import Examples
from integration.interpolation import compare, deciding, is_tie
from reporting import report
from training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Judged:
    """What parameters are worth on the validation split.

    Attributes:
        fitted: what the task fitted there with them, such as thresholds.
        rank: greater is better: by what decides, then as Experiment.rank.
        predictions: None if they were not asked for.
    """

    scores: Scores
    fitted: Mapping[str, Any]
    rank: list[float]
    predictions: Predictions | None


class Judge:
    """Judges parameters on the validation split; all share the compiled forward pass.

    Attributes:
        count: evaluations of the split so far.
    """

    def __init__(self, experiment: Experiment, validation: Examples, fitted: Mapping[str, Any]):
        self._experiment, self._validation = experiment, validation
        self._fitted = fitted  # with the run's own checkpoint: what holds before an evaluation
        self.count = 0

    def __call__(self, params: dict[str, jax.Array], *, keep: bool = False) -> Judged:
        """Evaluates; `keep` keeps the predictions."""
        self.count += 1
        predictions = self._experiment.predict(params, self._validation, self._fitted)
        return self.of(predictions, keep=keep)

    def of(self, predictions: Predictions, *, keep: bool = False) -> Judged:
        """Judges predictions of the validation split."""
        task = self._experiment.task
        fitted = task.fit(predictions, self._validation)  # as Experiment.score does
        scores = task.score(dataclasses.replace(predictions, fitted=fitted), self._validation)
        values = {m.name: estimate(scores, m.name)["value"] for m in task.metrics}
        rank = self._experiment.rank(values)
        if deciding(scores, self._experiment.metric.name) == "loss":
            rank = [-values["loss"], *rank]
        return Judged(scores, fitted, rank, predictions if keep else None)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model to choose.

    Attributes:
        name: in tables and files; unique.
        kind: 'interpolation', 'single', 'soup', 'merging' or 'ensemble'.
        judged: on the validation split.
        make: returns the parameters; None where they are those of several models.
        seconds: that it took to make and judge.
        evaluations: of the validation split that it took.
        members: names of the single models that it is made of.
        inference_cost: forward passes for each example.
    """

    name: str
    kind: str
    judged: Judged
    make: Callable[[], dict[str, jax.Array]] | None
    seconds: float
    evaluations: int
    members: tuple[str, ...]
    inference_cost: int = 1


class Stopwatch:
    """What a candidate has cost: to be read once it is judged."""

    def __init__(self, judge: Judge):
        self._judge, self._count, self._start = judge, judge.count, time.perf_counter()

    def cost(self) -> dict[str, Any]:
        """Returns the fields 'seconds' and 'evaluations' of a Candidate."""
        seconds = round(time.perf_counter() - self._start, 3)
        return {"seconds": seconds, "evaluations": self._judge.count - self._count}


def choose(candidates: Sequence[Candidate], *, metric: str) -> tuple[Candidate, list[dict]]:
    """Chooses the best of those that cost least to run among the ones within an error of the best.

    They are compared as the points of a line are: by the validation loss where the task has one
    (interpolation.py). An ensemble, several times as dear, must be better by more than the error
    of the paired difference. Of equals the first is chosen.

    Args:
        candidates: at least one.
        metric: name of what is shown, and decides where the task has no loss.

    Returns:
        The candidate, and all as rows of results.json, in the order given.
    """
    scores = {candidate.name: candidate.judged.scores for candidate in candidates}
    compared = compare(scores, metric=metric)
    rows = [
        {
            "name": candidate.name,
            "kind": candidate.kind,
            **compared[candidate.name],
            "evaluations": candidate.evaluations,
            "seconds": candidate.seconds,
            "members": list(candidate.members),
            "inference_cost": candidate.inference_cost,
        }
        for candidate in candidates
    ]
    ties = [candidate for candidate in candidates if is_tie(compared[candidate.name])]
    cheapest = min(candidate.inference_cost for candidate in ties)
    same = [candidate for candidate in ties if candidate.inference_cost == cheapest]
    return min(same, key=lambda candidate: compared[candidate.name]["behind_best"]), rows


def show(rows: Sequence[dict[str, Any]], chosen: str, metric: Metric) -> None:
    """Prints the rows of `choose`."""
    shown = report.shown(metric)
    columns = (metric.title, *report.CHOICE_COLUMNS)
    columns += ("evaluations", "seconds", "inference cost", "")
    cells = [
        (
            row["name"],
            *report.choice_cells(row, shown),
            f"{row['evaluations']}",
            f"{row['seconds']:.1f}",
            f"{row['inference_cost']}",
            "chosen" if row["name"] == chosen else "",
        )
        for row in rows
    ]
    report.show(report.table(("candidate", *columns), cells))
