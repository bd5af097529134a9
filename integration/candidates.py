"""What could be the model that a run ends with, and the rule that chooses among them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from evaluation.evaluate import Predictions
from evaluation.metrics import Scores
from integration.interpolation import compare, is_tie


@dataclasses.dataclass(frozen=True)
class Judged:
    """The result of parameters on the validation split.

    Attributes:
        fitted: what the task fitted there with them, such as thresholds.
        rank: greater is better: by what decides, then by Experiment.rank.
        predictions: None if they were not kept.
    """

    scores: Scores
    fitted: Mapping[str, Any]
    rank: list[float]
    predictions: Predictions | None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model to choose.

    Attributes:
        name: in tables and files; unique.
        kind: 'interpolation', 'single', 'soup' or 'ensemble'.
        judged: on the validation split.
        make: returns the parameters; None where they are those of several models.
        members: names of the single models that it is made of.
        inference_cost: forward passes for each example.
        seconds: that it took to make and judge.
        evaluations: of the validation split that it took.
    """

    name: str
    kind: str
    judged: Judged
    make: Callable[[], dict[str, jax.Array]] | None
    members: tuple[str, ...]
    inference_cost: int = 1
    seconds: float = 0.0
    evaluations: int = 0


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
    compared = compare({c.name: c.judged.scores for c in candidates}, metric=metric)
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
    # min returns the first of equals.
    best = min(ties, key=lambda c: (c.inference_cost, compared[c.name]["behind_best"]))
    return best, rows
