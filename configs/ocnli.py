"""Does one sentence follow from another: OCNLI by path, with multilingual-e5-small.

    pip install -e '.[demo]' && python main.py --config=configs/ocnli.py --workdir=runs/ocnli \\
        --config.data.files=train.10k.json --config.data.test_files=dev.json

Trained on the subset of 10,000 pairs, tested on the dev set. Pairs on which annotators disagree
("-") are dropped and counted. `:full` trains on all pairs; `:runlocal` takes about a minute. For an
encoder of BERT-base's size: configs/clue.py:ocnli.

Result: accuracy 56.0 ± 2.2 %, TF-IDF 47.0 ± 2.2 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None, 'full' or 'runlocal'."""
    common.check_arg("ocnli", arg, "full")
    config = common.get_config()
    config.data.update(source="files", text_column="sentence1", pair_column="sentence2")
    config.data.files, config.data.test_files = "train.10k.json", "dev.json"
    config.data.labels = ("contradiction", "entailment", "neutral")
    config.data.skip_labels = ("-",)
    config.data.split.update(kind="given", validation=0.1)
    config.data.template = "query: {text}{pair}"
    config.data.max_train_examples = 2560
    config.data.max_validation_examples = 200
    config.data.max_test_examples = 500
    config.data.batch_size = 32

    config.layout.update(max_length=96, row_length=192)
    common.use_encoder(config)
    config.train.duration = "3 epochs"
    config.eval.every = config.train.checkpoint_every = "34%"
    config.integrate.points = 3
    if arg == "full":
        for split in ("train", "validation", "test"):
            config.data[f"max_{split}_examples"] = 0
        config.eval.every = config.train.checkpoint_every = "20%"
    if arg == "runlocal":
        common.runlocal(config)
    return config
