"""Properties of interpolation between two parameter trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_all_points_share_one_compilation_and_no_two_mixtures_live_at_once():
    pretrained, finetuned = jax.device_put([{"kernel": np.full((7, 11), a)} for a in (0.0, 1.0)])
    live, before = [], interpolation._mix_compiled._cache_size()

    def evaluate_fn(params):
        live.append(sum(array.shape == (7, 11) for array in jax.live_arrays()))
        return {"value": float(params["kernel"][0, 0]), "standard_error": 0.0}

    interpolate(evaluate_fn, pretrained, finetuned, points=11, higher_is_better=True)
    assert interpolation._mix_compiled._cache_size() - before == 1
    assert live == [3] * 11  # the two ends and one mixture


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_the_point_nearest_the_optimum_is_chosen_and_its_parameters_returned(
    target, higher_is_better
):
    pretrained, finetuned = make_trees()
    optimum = mix(pretrained, finetuned, target)["head"]["bias"]

    def evaluate_fn(params):
        distance = float(jnp.abs(params["head"]["bias"] - optimum).sum())
        value = -distance if higher_is_better else distance
        return {"value": value, "standard_error": 1e-6, "count": 9}

    alpha, curve, params = interpolate(
        evaluate_fn, pretrained, finetuned, points=11, higher_is_better=higher_is_better
    )
    assert alpha == target
    assert [point["alpha"] for point in curve] == [i / 10 for i in range(11)]
    assert set(curve[0]) == {"alpha", "value", "standard_error", "count"}
    assert leaves_equal(params, jax.jit(mix)(pretrained, finetuned, target))


def make_curve(values, error):
    alphas = np.linspace(0, 1, len(values)).tolist()
    return [
        {"alpha": alpha, "value": value, "standard_error": error}
        for alpha, value in zip(alphas, values, strict=True)
    ]


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ([0.5, 0.79, 0.8, 0.8, 0.81], 0.0, 1.0),  # no error, no tie
        ([0.5, 0.79, 0.8, 0.8, 0.81], 0.015, 0.5),  # 0.8 lies within, 0.79 does not
        ([0.5, 0.79, 0.8, 0.8, 0.81], 0.025, 0.25),
        ([0.5, 0.79, 0.8, 0.8, 0.81], 1.0, 0.0),
        ([0.8, 0.7, 0.8, 0.8, 0.7], 0.0, 0.0),  # equal values
        ([0.5, 0.79, 0.8, 0.8, 0.81], float("nan"), 1.0),  # unknown error
    ],
)
def test_ties_within_one_standard_error_go_to_the_pretrained_side(values, error, expected):
    assert choose(make_curve(values, error), higher_is_better=True) == expected
    negated = make_curve([-value for value in values], error)
    assert choose(negated, higher_is_better=False) == expected


def test_bad_arguments_are_refused_before_any_evaluation():
    pretrained, finetuned = make_trees()
    options = {"points": 11, "higher_is_better": True}
    with pytest.raises(ValueError, match="at least 2, both ends; found 1"):
        interpolate(pytest.fail, pretrained, finetuned, **options | {"points": 1})
    with pytest.raises(ValueError, match="head/bias"):
        interpolate(pytest.fail, pretrained, {"backbone": finetuned["backbone"]}, **options)
