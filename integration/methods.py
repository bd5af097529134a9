"""What config.integrate.methods may name, and what speaks against it before anything is read.

Called by run.py and, so that nothing is trained in vain, by the training at its start.
"""

from ml_collections import ConfigDict

from models.adapters import LORA_KINDS
from tasks import require

SOUPS = ("soup", "greedy_soup")
MERGES = ("add", "ties")
ROOTED = ("interpolation", *MERGES)  # start from the pretrained weights
METHODS = ("interpolation", *SOUPS, *MERGES, "ensemble")


def apply(config: ConfigDict) -> bool:
    """Whether a training ends with integration; one from scratch has nothing to interpolate with,
    and no more is asked for by default."""
    only_default = tuple(config.integrate.methods) == ("interpolation",)
    return config.train.integrate and not (config.model.init == "scratch" and only_default)


def check(config: ConfigDict) -> None:
    """Raises ValueError where config.integrate asks for what cannot be.

    LoRA, rsLoRA and DoRA have interpolation and ensembles only: the product of averaged factors
    lora_a and lora_b is not the average of the products, which is what the models are, and that has
    a rank too high for a checkpoint of this run. All other kinds of config.adapt have one array for
    each thing they change, in which weights are linear.
    """
    options, kind = config.integrate, config.adapt.kind
    methods = tuple(options.methods)
    averages = [name for name in methods if name in (*SOUPS, *MERGES)]
    if averages and kind in LORA_KINDS:
        raise ValueError(
            f"config.integrate.methods: {averages[0]!r} averages weights, and the product of "
            f"averaged factors is not the average of the products that config.adapt.kind={kind!r} "
            "trains: use 'interpolation' and 'ensemble', or train with config.adapt.kind='full'"
        )
    merges = [name for name in methods if name in MERGES]
    if merges and not options.runs:
        raise ValueError(
            f"config.integrate.methods: {merges[0]!r} merges several runs: name the others in "
            "config.integrate.runs, found none"
        )
    rooted = [name for name in methods if name in ROOTED]
    if options.runs:
        rooted += [name for name in methods if name in SOUPS]
    if rooted and config.model.init == "scratch":
        raise ValueError(
            f"config.integrate.methods: {rooted[0]!r} needs the pretrained weights that training "
            "started from, but config.model.init='scratch' has none: use 'ensemble', or fine-tune "
            "a pretrained checkpoint"
        )
    if "ensemble" in methods:
        require(config, "AVERAGE", "config.integrate.methods: 'ensemble'")
    if options.targets and "ensemble" not in methods:
        raise ValueError(
            f"config.integrate.targets={options.targets!r} is written by an ensemble: add "
            f"'ensemble' to config.integrate.methods, found {methods}"
        )
    if options.shifted_files and "interpolation" not in methods:
        raise ValueError(
            f"config.integrate.shifted_files={options.shifted_files!r} has the curve of "
            f"'interpolation': add it to config.integrate.methods, found {methods}"
        )
    if options.shifted_files:
        require(config, "SHIFTED", "config.integrate.shifted_files")
