"""Which learning rate, and how much of the difference is chance: the reviews, swept.

    python main.py --config=configs/reviews_sweep.py --workdir=runs/sweep --mode=sweep

runs three learning rates with two seeds each and compares them on the validation split; the same
command continues a stopped sweep. The test split stays unread until the printed `--mode=test`
command. Other ways to run it:

    ... --mode=sweep --config.search.print_commands=True    a command for each run, for a job queue
    ... --mode=sweep --config.search.trials=20 --config.eval.every=10%    Optuna over space(), with
                                                            pruning from the third evaluation on
    ... --mode=train --config.seeds=5                       no sweep: the recipe with five seeds

Optuna is the extra 'search': pip install -e '.[demo,search]'. `:runlocal` is small, as in
configs/reviews.py.

Result: 87.0 % at 2e-5, 81.8 at 5e-5, 75.8 at 1e-4 on validation (docs/sweeps_and_reports.md).
"""

from ml_collections import ConfigDict

from configs import reviews_decoder
from configs.sweeping import Space, Sweep, choice, log_uniform, product


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns what all runs share; see configs/reviews.py for `arg`."""
    config = reviews_decoder.get_config(arg)
    config.train.integrate = False  # of the winner, by --mode=integrate, not of every run
    return config


def sweep() -> Sweep:
    """What --mode=sweep runs."""
    return product({"optimizer.learning_rate": (2e-5, 5e-5, 1e-4), "seed": range(2)})


def space() -> Space:
    """What --config.search.trials searches."""
    return {
        "optimizer.learning_rate": log_uniform(1e-5, 3e-4),
        "optimizer.layer_decay": choice(1.0, 0.9),
    }
