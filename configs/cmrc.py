"""Answers to questions in CMRC 2018: trained on the trial set, tested on the dev set.

    python main.py --config=configs/cmrc.py --workdir=runs/cmrc \\
        --config.data.files=cmrc2018_trial.json --config.data.test_files=cmrc2018_dev.json

`:full`, for an accelerator, takes the official training file:

    python main.py --config=configs/cmrc.py:full --workdir=runs/cmrc \\
        --config.data.files=cmrc2018_train.json --config.data.test_files=cmrc2018_dev.json

Result: F1 47.1 ± 2.6 %, baseline 29.0 ± 1.9 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None, 'full' or 'runlocal'."""
    common.check_arg("cmrc", arg, "full")
    config = common.get_config()
    config.task = "reading_comprehension"
    config.data.update(source="files", format="squad", template="{pair}\n{text}", overlap=96)
    config.data.files, config.data.test_files = "cmrc2018_trial.json", "cmrc2018_dev.json"
    config.data.split.update(kind="given", validation=0.1)
    config.data.cleaning.label_conflicts = "keep"  # a context comes with several questions
    config.data.max_train_examples = 320
    config.data.max_validation_examples = 40
    config.data.max_test_examples = 200
    config.data.batch_size = 8
    config.layout.update(max_length=384, row_length=384)

    # The question comes first, so that a decoder knows it at every position of the text. In so few
    # steps it can't learn to look ahead: F1 is 6.9 with config.model.bidirectional=True.
    config.adapt.update(kind="lora", rank=16, alpha=32.0, frozen_dtype="bfloat16")
    config.optimizer.learning_rate = 3e-4
    config.optimizer.lr_table = (("head/.*", 4.0), (".*", 1.0))
    config.train.update(duration="1 epoch", integrate=False)
    config.eval.every = config.train.checkpoint_every = "100%"

    if arg == "full":
        config.data.max_train_examples = config.data.max_test_examples = 0
        config.data.max_validation_examples = 500
        config.data.batch_size = 32
        config.layout.update(max_length=512, row_length=512)
        config.train.duration = "2 epochs"
        config.eval.every = config.train.checkpoint_every = "25%"
    if arg == "runlocal":
        common.runlocal(config, train=16, test=16)
    return config
