"""The reviews with engineered features beside the encoder, and the result of each alone.

    pip install -e '.[demo]' && python main.py --config=configs/features.py --workdir=runs/features

It trains the encoder alone, then encoder and features together. The table also holds the features
alone, under a logistic regression.

Result: accuracy 82.6 ± 1.7 %, the encoder alone 84.6 ± 1.6 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import reviews_decoder


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is that of configs/reviews_decoder.py."""
    config = reviews_decoder.get_config(arg)
    config.features.use = "both"
    # The head's half on features starts from zeros and has 80 steps to get somewhere.
    config.optimizer.lr_table = (("head/feature_kernel", 200.0), *config.optimizer.lr_table)
    return config
