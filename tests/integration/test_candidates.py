"""Which candidate is chosen, how ensembles average, and what options are refused."""

import re

import numpy as np
import pytest
from scipy.special import expit, softmax

from configs import common
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, mean, one_each
from integration import methods
from integration.candidates import Candidate, Judged, choose
from integration.ensembles import average
from reporting.report import show_candidates

ACCURACY = Metric("accuracy", "accuracy, %", mean, scale=100, digits=1)
LOSS = Metric("loss", "loss", mean, False)


def candidate(name, kind, right, *, count=20, cost=1):
    """Right on the first `right` of so many examples."""
    values_N = np.arange(count) < right
    statistics = {"accuracy": one_each(values_N), "loss": one_each(~values_N)}
    scores = Scores((ACCURACY, LOSS), np.arange(count), statistics)
    judged = Judged(scores, {}, [right], None)
    return Candidate(name, kind, judged, dict, (name,), cost, 1.0, 2)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_best_is_chosen_and_a_tie_goes_to_what_costs_less(metric):
    rows = [
        candidate("line", "interpolation", 10),
        candidate("one", "single", 14),
        candidate("two", "single", 15),
        candidate("all", "ensemble", 16, cost=3),
    ]
    # One example behind is one error behind: 15 ties with 16, and so does no other.
    chosen, told = choose(rows, metric=metric)
    assert chosen.name == "two"
    assert [row["name"] for row in told] == ["line", "one", "two", "all"]
    assert [round(20 * row["behind_best"]) for row in told] == [6, 2, 1, 0]
    assert [row["inference_cost"] for row in told] == [1, 1, 1, 3]
    assert choose([*rows, candidate("more", "soup", 20)], metric=metric)[0].name == "more"
    assert choose([*rows, candidate("soup", "soup", 16)], metric=metric)[0].name == "soup"
    rows[-1] = candidate("all", "ensemble", 18, cost=3)
    assert choose(rows, metric=metric)[0].name == "all"


def test_of_equals_the_first_is_chosen():
    rows = [candidate("a", "soup", 14), candidate("b", "soup", 15), candidate("c", "soup", 15)]
    assert choose(rows, metric="accuracy")[0].name == "b"


def test_the_table_shows_value_error_and_costs(capsys):
    _, rows = choose(
        [candidate("one", "single", 10), candidate("all", "ensemble", 20, cost=3)],
        metric="accuracy",
    )
    show_candidates(rows, "all", ACCURACY)
    _, one, all_ = (
        line for line in capsys.readouterr().out.splitlines() if "─" not in line and line.strip()
    )
    assert re.search(r"one +50\.0 ± 11\.5 +0\.5000 +0\.5000 ± 0\.1147 +2 +1\.0 +1", one)
    assert re.search(r"all +100\.0 ± 0\.0 +0\.0000 +0\.0000 ± 0\.0000 +2 +1\.0 +3 +chosen", all_)


def members(*logits, ids=(3, 5)):
    return [Predictions(np.array(ids), {"logits_NxC": np.array(rows)}) for rows in logits]


def test_an_ensemble_is_the_mean_of_probabilities_not_of_logits():
    logits = np.random.default_rng(0).normal(0, 5, (3, 2, 4))
    found = average(members(*logits), kind="softmax")["logits_NxC"]
    np.testing.assert_allclose(softmax(found, -1), softmax(logits, -1).mean(0), rtol=1e-9)
    found = average(members(*logits), kind="sigmoid")["logits_NxC"]
    np.testing.assert_allclose(expit(found), expit(logits).mean(0), rtol=1e-6)
    found = average(members(*logits), kind="numbers")["logits_NxC"]
    np.testing.assert_allclose(found, logits.mean(0))
    order = average(members(*logits[::-1]), kind="softmax")["logits_NxC"]
    np.testing.assert_allclose(order, average(members(*logits), kind="softmax")["logits_NxC"])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "numbers"])
def test_far_logits_stay_finite_and_an_ensemble_of_equals_is_the_model(kind):
    far = np.array([[800.0, -800.0], [0.0, 1.0]])
    assert np.isfinite(average(members(far, -far), kind=kind)["logits_NxC"]).all()
    near = np.array([[1.0, -2.0], [0.5, 3.0]])
    found = average(members(near, near), kind=kind)["logits_NxC"]
    np.testing.assert_allclose(found - found[:, :1], near - near[:, :1], atol=1e-9)


def test_predictions_of_other_examples_have_no_average():
    parts = [*members(np.ones((2, 2))), *members(np.ones((2, 2)), ids=(3, 6))]
    with pytest.raises(ValueError, match="2 and 2 examples, 1 of them in both"):
        average(parts, kind="softmax")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"integrate.methods": ("soup",), "adapt.kind": "lora"},
            "product of averaged factors is not the average of the products",
        ),
        ({"model.init": "scratch"}, "'interpolation' needs the pretrained weights"),
        (
            {
                "integrate.methods": ("soup",),
                "integrate.runs": ("a",),
                "model.init": "scratch",
            },
            "'soup' needs the pretrained weights",
        ),
        ({"integrate.methods": ("ensemble",), "task": "tagging"}, "found the task 'tagging'"),
        ({"integrate.targets": "x.jsonl"}, "add 'ensemble' to config.integrate.methods"),
    ],
)
def test_options_that_cannot_be_are_refused_by_key(options, message):
    config = common.get_config()
    methods.check(config)
    config.update_from_flattened_dict(options)
    with pytest.raises(ValueError, match=r"config\.integrate\.\w+") as error:
        methods.check(config)
    assert message in str(error.value)


def test_what_needs_no_shared_start_is_allowed_without_one():
    config = common.get_config()
    config.integrate.methods = ("soup", "ensemble")
    config.model.init = "scratch"
    methods.check(config)
    config.update_from_flattened_dict(
        {"adapt.kind": "lora", "model.init": "pretrained", "integrate.runs": ("a",)}
    )
    config.integrate.methods = ("interpolation", "ensemble")
    methods.check(config)
