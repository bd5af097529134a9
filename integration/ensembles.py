"""Ensembles: what several models say of the same examples, averaged.

Functions on predictions; no model runs here. An ensemble costs as many forward passes as it has
members, and its probabilities are what a single model can be trained on (distillation, arXiv
1503.02531). Called by run.py.
"""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit, log_softmax, logit, logsumexp

from evaluation.evaluate import Predictions


def check(config: ConfigDict) -> None:
    """Raises ValueError where a task's predictions have no average."""
    if config.task != "classification":
        raise ValueError(
            "config.integrate.methods: 'ensemble' averages probabilities of classes (or numbers), "
            f"so it needs config.task='classification', found {config.task!r}: leave it out"
        )


def average(members: Sequence[Predictions], *, kind: str) -> Predictions:
    """Returns the mean of several models' predictions, as logits that give it.

    Probabilities are averaged: softmax of the logits, of kind 'multi' their sigmoid; of
    'regression' the numbers themselves.

    Args:
        members: of the same examples, with 'logits_NxC'.
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
    logits_KxNxC = np.stack([member["logits_NxC"] for member in members]).astype(np.float64)
    if kind == "regression":
        mean_NxC = logits_KxNxC.mean(axis=0)
    elif kind == "multi":
        mean_NxC = logit(np.clip(expit(logits_KxNxC).mean(axis=0), 1e-12, 1 - 1e-12))
    else:
        mean_NxC = logsumexp(log_softmax(logits_KxNxC, axis=-1), axis=0) - np.log(len(members))
    return Predictions(ids_N, {**members[0].outputs, "logits_NxC": mean_NxC})
