"""Sixty-four labels: label words and LoRA, with Gemma 3 270M.

    pip install -e '.[demo]' && python main.py --config=configs/few_labels.py --workdir=runs/few

The head starts from the label words 差 and 好 at the end of the template, so the model answers
before any training (step 0, and the row "before training"). `:runlocal` takes about a minute.

Result: accuracy 80.2 ± 1.8 % (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common, reviews_decoder


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None or 'runlocal'."""
    common.check_arg("few_labels", arg)
    config = reviews_decoder.get_config(arg)
    config.data.max_train_examples = 64
    config.data.max_validation_examples = 64  # few labels to choose by, too
    config.data.batch_size = 8
    config.layout.max_length = 128
    config.adapt.kind = "lora"
    config.optimizer.learning_rate = 2e-4
    config.train.duration = "640 examples"
    config.train.integrate = False
    config.eval.at_start = True
    config.eval.every = config.train.checkpoint_every = "100%"
    if arg == "runlocal":
        config.data.update(max_train_examples=16, max_validation_examples=16)
        config.train.duration = "32 examples"
    return config
