"""Ensembles: the predictions of several models for the same examples, averaged.

Functions on predictions; no model runs here. An ensemble costs as many forward passes as it has
members, and its probabilities are what a single model can be trained on (distillation, arXiv
1503.02531). Members are averaged as they are and calibrated together: a temperature is fitted to
the average as to any model.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, log_softmax, logit, logsumexp

from evaluation.evaluate import Predictions


def average(members: Sequence[Predictions], *, kind: str) -> Predictions:
    """Returns the mean of several models' predictions, as logits that give it.

    Args:
        members: of the same examples, with 'logits_NxC', and fitted alike.
        kind: tasks.task.Task.AVERAGE: of the 'softmax' or the 'sigmoid' of the logits, or of the
            logits as 'numbers'.

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
    logits_MxNxC = np.stack([member["logits_NxC"] for member in members]).astype(np.float64)
    if kind == "numbers":
        mean_NxC = logits_MxNxC.mean(axis=0)
    elif kind == "sigmoid":
        # The bounds keep the logits of a confident ensemble finite.
        mean_NxC = logit(np.clip(expit(logits_MxNxC).mean(axis=0), 1e-12, 1 - 1e-12))
    else:
        mean_NxC = logsumexp(log_softmax(logits_MxNxC, axis=-1), axis=0) - np.log(len(members))
    outputs = {**members[0].outputs, "logits_NxC": mean_NxC}
    return dataclasses.replace(members[0], outputs=outputs)
