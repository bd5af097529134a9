"""Ensembles of models that choose: among which tasks they are, and how choices are averaged."""

import numpy as np
import pytest
from scipy.special import softmax

from configs import common
from evaluation.evaluate import Predictions
from integration import methods
from integration.ensembles import average
from tasks.multiple_choice import MultipleChoice


def test_choices_are_averaged_as_probabilities_and_absent_ones_stay_absent():
    logits_MxNxK = np.random.default_rng(0).normal(0, 5, (3, 2, 4))
    logits_MxNxK[:, 0, 2:] = -1e9
    members = [Predictions(np.array([3, 5]), {"logits_NxC": logits}) for logits in logits_MxNxK]
    found = average(members, kind=MultipleChoice.AVERAGE)
    assert list(found.outputs) == ["logits_NxC"]
    probabilities_NxK = softmax(found["logits_NxC"], axis=-1)
    np.testing.assert_allclose(probabilities_NxK, softmax(logits_MxNxK, axis=-1).mean(axis=0))
    assert not probabilities_NxK[0, 2:].any()


def test_models_that_choose_may_be_an_ensemble_and_others_are_refused_by_name():
    config = common.get_config()
    config.integrate.methods = ("ensemble",)
    for task in ("classification", "multiple_choice"):
        config.task = task
        methods.check(config)
    config.task = "generation"
    with pytest.raises(
        ValueError, match=r"'ensemble': found the task 'generation', .*multiple_choice"
    ):
        methods.check(config)
