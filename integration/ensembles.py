"""Ensembles: the predictions of several models for the same examples, averaged.

Functions on predictions; no model runs here. An ensemble costs as many forward passes as it has
members, and its probabilities are what a single model can be trained on (distillation, arXiv
1503.02531). Members are averaged as they are and calibrated together: a temperature is fitted to
the average as to any model.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit, log_softmax, logit, logsumexp

from evaluation.evaluate import Predictions

_TASKS = ("classification", "multiple_choice")


def check(config: ConfigDict) -> None:
    """Raises ValueError where a task's predictions have no average."""
    if config.task not in _TASKS:
        raise ValueError(
            "config.integrate.methods: 'ensemble' averages probabilities or numbers: expected "
            f"config.task to be one of {_TASKS}, found {config.task!r}: leave it out"
        )


def average(members: Sequence[Predictions], *, kind: str) -> Predictions:
    """Returns the mean of several models' predictions, as logits that give it.

    Probabilities are averaged: softmax of the logits, of kind 'multi' their sigmoid; of
    'regression' the numbers themselves. Choices share a softmax whatever the kind.

    Args:
        members: of the same examples, with 'logits_NxC', or 'logits_NxK' of choices.
        kind: config.classification.kind.

    Raises:
        ValueError: the members are about other examples.
    """
    ids_N = members[0].ids_N
    for member in members[1:]:
        if not np.array_equal(ids_N, member.ids_N):
            shared = len(np.intersect1d(ids_N, member.ids_N))
            raise ValueError(
                f"predictions for {len(ids_N)} and {len(member.ids_N)} examples, {shared} of them "
                "in both, have no average: let all members predict the same examples"
            )
    name = "logits_NxK" if "logits_NxK" in members[0].outputs else "logits_NxC"
    logits_MxNxC = np.stack([member[name] for member in members]).astype(np.float64)
    if name == "logits_NxC" and kind == "regression":
        mean_NxC = logits_MxNxC.mean(axis=0)
    elif name == "logits_NxC" and kind == "multi":
        # The bounds keep the logits of a sure ensemble finite.
        mean_NxC = logit(np.clip(expit(logits_MxNxC).mean(axis=0), 1e-12, 1 - 1e-12))
    else:
        mean_NxC = logsumexp(log_softmax(logits_MxNxC, axis=-1), axis=0) - np.log(len(members))
    return Predictions(ids_N, {**members[0].outputs, name: mean_NxC})
