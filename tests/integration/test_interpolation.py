"""Properties of interpolation between two parameter trees."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.metrics import Metric, Scores, mean, one_each
from input_pipeline import eta
from integration import interpolation
from integration.interpolation import choose, interpolate, mix


def make_trees(dtype=np.float32):
    rng = np.random.default_rng(0)

    def tree():
        return {
            "backbone": {"layer_0": {"kernel": rng.normal(size=(3, 4)).astype(dtype)}},
            "head": {"bias": rng.normal(size=2).astype(dtype)},
        }

    return tree(), tree()


def leaves_equal(tree, other):
    return jax.tree.all(jax.tree.map(np.array_equal, tree, other))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("function", [mix, jax.jit(mix)], ids=["plain", "jit"])
def test_the_ends_are_bit_equal_and_keep_their_dtype(function, dtype):
    pretrained, finetuned = make_trees(dtype)
    assert leaves_equal(function(pretrained, finetuned, 0.0), pretrained)
    assert leaves_equal(function(pretrained, finetuned, 1.0), finetuned)
    assert jax.tree.leaves(function(pretrained, finetuned, 0.5))[0].dtype == dtype


def test_a_mixture_is_the_weighted_mean_and_can_be_differentiated():
    pretrained, finetuned = make_trees()
    mixed = mix(pretrained, finetuned, 0.25)
    expected = jax.tree.map(lambda p, f: 0.75 * p + 0.25 * f, pretrained, finetuned)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mixed, expected)
    slope = jax.grad(lambda alpha: mix(pretrained, finetuned, alpha)["head"]["bias"].sum())(0.3)
    difference = (finetuned["head"]["bias"] - pretrained["head"]["bias"]).sum()
    assert slope == pytest.approx(float(difference), rel=1e-5)


def test_trees_that_differ_are_refused_naming_paths_and_shapes():
    pretrained, finetuned = make_trees()
    del pretrained["head"]
    finetuned["backbone"]["layer_0"]["kernel"] = np.zeros((3, 5), np.float32)
    for function in (mix, jax.jit(mix)):
        with pytest.raises(ValueError) as error:
            function(pretrained, finetuned, 0.5)
        assert "backbone/layer_0/kernel: (3, 4) against (3, 5)" in str(error.value)
        assert "head/bias: absent against (2,)" in str(error.value)


METRICS = (Metric("accuracy", "accuracy", mean), Metric("loss", "loss", mean, False))


def scores_of(values_N, name):
    return Scores(METRICS, np.arange(len(values_N)), {name: one_each(np.asarray(values_N))})


def losses_of(logit):
    """Nine examples; the higher the logit, the lower the loss."""
    return scores_of(np.log1p(np.exp(-logit - np.arange(9.0) / 9)), "loss")


def test_all_points_share_one_compilation_and_no_two_mixtures_live_at_once():
    pretrained, finetuned = jax.device_put([{"kernel": np.full((7, 11), a)} for a in (0.0, 1.0)])
    live, before = [], interpolation.mixed._cache_size()

    def score_fn(params):
        live.append(sum(array.shape == (7, 11) for array in jax.live_arrays()))
        return losses_of(float(params["kernel"][0, 0]))

    interpolate(score_fn, pretrained, finetuned, points=11, metric="loss")
    assert interpolation.mixed._cache_size() - before == 1
    assert live == [3] * 11  # the two ends and one mixture


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_the_point_nearest_the_optimum_is_chosen_and_its_parameters_returned(target):
    pretrained, finetuned = make_trees()
    optimum = mix(pretrained, finetuned, target)["head"]["bias"]

    def score_fn(params):
        return losses_of(-float(jnp.abs(params["head"]["bias"] - optimum).sum()))

    alpha, curve, params = interpolate(score_fn, pretrained, finetuned, points=11, metric="loss")
    assert alpha == target
    assert [point["alpha"] for point in curve] == [i / 10 for i in range(11)]
    assert min(curve, key=lambda point: point["value"])["alpha"] == target
    assert leaves_equal(params, jax.jit(mix)(pretrained, finetuned, target))


def right_on(*right, count=20):
    """Scores of `count` examples, right on some of them."""
    return scores_of(np.isin(np.arange(count), right), "accuracy")


def test_a_point_carries_value_error_and_distance_from_the_best():
    # One example less: the difference 0.05 has the error 0.05.
    rows = {0.0: right_on(0, 1), 0.5: right_on(*range(14)), 1.0: right_on(*range(15))}
    _, curve = choose(rows, metric="accuracy")
    assert [point["value"] for point in curve] == pytest.approx([0.1, 0.7, 0.75])
    assert curve[1]["behind_best"] == pytest.approx(0.05)
    assert curve[1]["behind_best_error"] == pytest.approx(0.05)
    assert (curve[2]["behind_best"], curve[2]["behind_best_error"]) == (0, 0)


def both(right_N, losses_N):
    """Scores with an accuracy and a loss."""
    statistics = {"accuracy": one_each(np.asarray(right_N)), "loss": one_each(np.array(losses_N))}
    return Scores(METRICS, np.arange(len(right_N)), statistics)


def test_the_loss_decides_where_accuracies_are_equal():
    """The untrained model ties in accuracy; the trained one is surer of what is true."""
    rng = np.random.default_rng(0)
    right_N, noise_N = np.arange(200) < 169, rng.normal(0, 0.1, 200)
    rows = {
        alpha: both(right_N, 0.386 + 0.037 * (1 - alpha) + (1 - alpha) * noise_N)
        for alpha in np.linspace(0, 1, 11)
    }
    alpha, curve = choose(rows, metric="accuracy")
    assert alpha == 1.0
    assert {point["value"] for point in curve} == {169 / 200}
    assert curve[-1]["loss"] == pytest.approx(0.386)


def test_the_error_is_that_of_the_paired_difference():
    # 4 of 20 behind on the same examples is no tie, though each accuracy has an error of 0.1.
    rows = {0.0: right_on(*range(11)), 1.0: right_on(*range(15))}
    alpha, curve = choose(rows, metric="accuracy")
    assert alpha == 1.0
    assert curve[0]["standard_error"] > 0.1 > curve[0]["behind_best_error"]


def test_equal_values_go_to_the_trained_side_and_one_example_has_no_error():
    rows = {alpha: right_on(0, count=1) for alpha in (0.0, 0.5, 1.0)}
    assert choose(rows, metric="accuracy")[0] == 1.0
    rows[1.0] = right_on(count=1)
    assert choose(rows, metric="accuracy")[0] in (0.0, 0.5)


def test_other_trees_are_refused_before_any_evaluation():
    pretrained, finetuned = make_trees()
    options = {"points": 11, "metric": "accuracy"}
    with pytest.raises(ValueError, match="head/bias"):
        interpolate(pytest.fail, pretrained, {"backbone": finetuned["backbone"]}, **options)


def test_a_metric_without_a_value_chooses_nothing():
    metric = Metric("auroc", "AUROC", lambda sums, totals: sums[..., 0] * np.nan, True)
    rows = {"a": Scores((metric,), np.arange(3), {"auroc": np.ones((3, 2))})}
    with pytest.raises(ValueError, match=r"config\.eval\.metric: auroc of the 3 examples has no"):
        interpolation.compare(rows, metric="auroc")


def test_long_integration_shows_the_point_and_the_examples(monkeypatch, capsys):
    monkeypatch.setattr(eta, "_EVERY", 0.02)
    pretrained, finetuned = make_trees()
    ids = np.arange(4)

    def score(params):
        with eta.working("examples", 4) as work:
            for _ in ids:
                time.sleep(0.02)
                work.done += 1
        values = {"accuracy": one_each(np.full(4, np.sum(params["head"]["bias"])))}
        return Scores((Metric("accuracy", "accuracy", mean),), ids, values)

    interpolate(score, pretrained, finetuned, points=3, metric="accuracy")
    text = capsys.readouterr().out
    assert re.search(r"^Integration: 1 of 3; examples: [1-4] of 4, \d+%, about", text, re.M)
