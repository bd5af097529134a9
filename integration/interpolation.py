"""Interpolation between the pretrained and the fine-tuned weights (WiSE-FT, arXiv 2109.01903).

The straight line between the two often holds models that generalise better than either end. Here:
functions on parameter trees, and the rule that chooses among their scores. No model and no data.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.metrics import Scores, estimate, paired_difference
from input_pipeline.eta import track

Params = Any


def mix(pretrained: Params, finetuned: Params, alpha: jax.Array | float) -> Params:
    """Returns (1 - alpha) * pretrained + alpha * finetuned, leaf by leaf. Pure; runs under jit.

    Computed in float32, returned in each leaf's own dtype; alpha 0 and 1 give the ends exactly.

    Raises:
        ValueError: if the trees differ in paths or shapes, naming those that do.
    """
    check_alike(pretrained, finetuned)
    alpha = jnp.asarray(alpha, jnp.float32)

    def mix_leaf(start, end):
        return ((1 - alpha) * start + alpha * end).astype(start.dtype)

    return jax.tree.map(mix_leaf, pretrained, finetuned)


mixed = jax.jit(mix)  # alpha is an argument, so that all points share one program


def interpolate(
    score_fn: Callable[[Params], Scores],
    pretrained: Params,
    finetuned: Params,
    *,
    points: int,
    metric: str,
) -> tuple[float, list[dict[str, float]], Params]:
    """Evaluates `points` evenly spaced mixtures from alpha 0 to 1 and chooses one; see `choose`.

    Args:
        score_fn: params -> scores on the validation examples; called in the order of alpha.
        pretrained: tree at alpha 0. Best put on the device beforehand, it is read at every point.
        finetuned: tree at alpha 1, with the same paths and shapes.
        points: how many, at least 2.
        metric: name of what decides.

    Returns:
        (alpha, curve, params): the chosen alpha; the curve of `choose`; the chosen mixture.

    Raises:
        ValueError: the trees differ.
    """
    check_alike(pretrained, finetuned)
    scores = {
        alpha: score_fn(mixed(pretrained, finetuned, alpha))
        for alpha in track(np.linspace(0, 1, points).round(6).tolist(), points, "Integration")
    }
    alpha, curve = choose(scores, metric=metric)
    # Made again, so that one mixture is held at a time.
    return alpha, curve, mixed(pretrained, finetuned, alpha)


def choose(scores: Mapping[float, Scores], *, metric: str) -> tuple[float, list[dict[str, Any]]]:
    """Chooses the alpha with the lowest validation loss.

    Of the rules that were compared (docs/integration.md) it is the simplest that is as good as the
    best. To go to the pretrained side wherever accuracies are within an error, by the rule of one
    standard error (Breiman et al. 1984), was the worst.

    Args:
        scores: alpha -> scores, all of the same examples.
        metric: name of what decides where the task has no loss; see `deciding`.

    Returns:
        The chosen alpha, of equals the greatest, and of each the fields of `compare` with 'alpha'.
    """
    compared = compare(dict(sorted(scores.items(), reverse=True)), metric=metric)
    best = max(scores, key=lambda alpha: (-compared[alpha]["behind_best"], alpha))
    return best, [{"alpha": alpha, **compared[alpha]} for alpha in sorted(scores)]


def deciding(scores: Scores, metric: str) -> str:
    """Returns the name of what models are compared by: the loss, or `metric` of tasks without.

    The loss of a classifier, calibrated, is a proper score with far less noise than accuracy.
    """
    return "loss" if "loss" in scores.statistics else scores.metric(metric).name


def compare(scores: Mapping[Hashable, Scores], *, metric: str) -> dict[Any, dict[str, float]]:
    """Returns for each the `estimate` of its metric, and how far it is behind the best.

    'behind_best' and 'behind_best_error' (of the paired difference; NaN of one example) are about
    what `deciding` names; where that is the loss, 'loss' is its value, else None.

    Args:
        scores: by any name, all of the same examples; of equal values the first is the best.
        metric: name of what is shown, and decides where the task has no loss.

    Raises:
        ValueError: what decides has no value for one of them.
    """
    first = next(iter(scores.values()))
    shown, metric = metric, deciding(first, metric)
    sign = 1 if first.metric(metric).higher_is_better else -1
    values = {name: estimate(row, metric)["value"] for name, row in scores.items()}
    if undefined := [name for name, value in values.items() if not np.isfinite(value)]:
        raise ValueError(
            f"config.eval.metric: {metric} of the {len(first.ids_N)} examples has no value for "
            f"{undefined[0]} ({len(undefined)} of {len(values)} models), so nothing can be chosen "
            "by it. A class may be absent: choose another metric, or more validation examples"
        )
    best = max(values, key=lambda name: sign * values[name])
    compared = {}
    for name, row in scores.items():
        behind = paired_difference(scores[best], row, metric=metric)
        compared[name] = {
            **estimate(row, shown),
            "loss": values[name] if metric == "loss" else None,
            "behind_best": sign * behind["value"] + 0.0,  # no -0
            "behind_best_error": behind["standard_error"],
        }
    return compared


def is_tie(point: Mapping[str, float]) -> bool:
    """Whether a point of `compare` is within one standard error of the best."""
    # One example behind is exactly one error behind: a tie, whatever the rounding.
    return point["behind_best"] <= np.nan_to_num(point["behind_best_error"]) + 1e-12


def check_alike(
    first: Params, second: Params, *, names: tuple[str, str] = ("pretrained", "fine-tuned")
) -> None:
    """Raises ValueError naming the paths and shapes in which two trees differ.

    Args:
        first: any tree.
        second: what is to be mixed with it.
        names: of the two, for the message.
    """
    shapes, other_shapes = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (first, second)
    )
    differing = [
        f"{path}: {shapes.get(path, 'absent')} against {other_shapes.get(path, 'absent')}"
        for path in sorted(shapes.keys() | other_shapes.keys())
        if shapes.get(path) != other_shapes.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 10} more" if len(differing) > 10 else ""
        raise ValueError(
            f"The parameters of {names[0]} and {names[1]} cannot be mixed, these differ (the "
            f"former against the latter): {'; '.join(differing[:10])}{more}. Use models of one "
            "configuration that started from one checkpoint."
        )
