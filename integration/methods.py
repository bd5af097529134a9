"""What config.integrate.methods may name, and checks made before anything is read or trained."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from models.adapters import LORA_KINDS
from tasks import require

SOUPS = ("soup", "greedy_soup")
METHODS = ("interpolation", *SOUPS, "ensemble")


def apply(config: ConfigDict) -> bool:
    """Whether a training ends with integration; one from scratch has nothing to interpolate with,
    and no more is asked for by default."""
    only_default = tuple(config.integrate.methods) == ("interpolation",)
    return config.train.integrate and not (config.model.init == "scratch" and only_default)


def given_alpha(config: ConfigDict) -> float | None:
    """Returns the point of the line that config.integrate.alpha names, None where the best is
    taken."""
    alpha = config.integrate.alpha
    return None if alpha == "best" else float(alpha)


def check(config: ConfigDict) -> None:
    """Raises ValueError where config.integrate asks for what cannot be.

    LoRA, rsLoRA and DoRA have interpolation and ensembles only: the product of averaged factors
    lora_a and lora_b is not the average of the products, which is what the models are, and that has
    a rank too high for a checkpoint of this run. All other kinds of config.adapt have one array for
    each thing they change, in which weights are linear.
    """
    options, kind = config.integrate, config.adapt.kind
    methods = tuple(options.methods)
    from_scratch = config.model.init == "scratch"
    if kind in LORA_KINDS:
        _refuse(
            methods,
            SOUPS,
            "averages weights, and the product of averaged factors is not the average of the "
            f"products that config.adapt.kind={kind!r} trains: use 'interpolation' and 'ensemble', "
            "or train with config.adapt.kind='full'",
        )
    if from_scratch:
        _refuse(
            methods,
            ("interpolation", *SOUPS * bool(options.runs)),
            "needs the pretrained weights that training started from, but config.model.init="
            "'scratch' has none: use 'ensemble', or fine-tune a pretrained checkpoint",
        )
    if "ensemble" in methods:
        require(config, "AVERAGE", "config.integrate.methods: 'ensemble'")
    if options.targets and "ensemble" not in methods:
        raise ValueError(
            f"config.integrate.targets={options.targets!r} needs the method 'ensemble': add "
            f"'ensemble' to config.integrate.methods, found {methods}"
        )
    grid, alpha = np.linspace(0, 1, options.points).round(6), given_alpha(config)
    if alpha is not None and (alpha not in grid or methods != ("interpolation",)):
        raise ValueError(
            f"config.integrate.alpha={options.alpha} takes a point of the line: name one of "
            f"{', '.join(f'{alpha:g}' for alpha in grid)} (config.integrate.points), with the "
            "method 'interpolation' alone"
        )


def _refuse(methods: Sequence[str], refused: Sequence[str], why: str) -> None:
    for name in methods:
        if name in refused:
            raise ValueError(f"config.integrate.methods: {name!r} {why}")
