"""Sentiment of hotel reviews in a CSV (ChnSentiCorp_htl) with an encoder of your own.

    python main.py --config=configs/encoder.py --workdir=runs/encoder \\
        --config.data.files=ChnSentiCorp_htl_all.csv --config.model.checkpoint=DIR_OR_HUB

The checkpoint is a folder as a model hub has it (BERT, RoBERTa-wwm, MacBERT, ERNIE, ELECTRA, ...),
or a name such as hf://hfl/chinese-macbert-base. Its rate, pooling and dropout are the usual ones of
a BERT of base size; the head starts from a probe. Without a checkpoint it is multilingual-e5-small.
"""

from ml_collections import ConfigDict

from configs import own_csv


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is that of configs/own_csv.py."""
    config = own_csv.get_config(arg)
    config.model.hidden_dropout = 0.1
    config.data.template = "{text}"
    config.optimizer.lr_table = ((".*", 1.0),)
    config.optimizer.learning_rate = 2e-5
    config.schedule.name = "linear"
    if arg != "runlocal":
        config.train.duration = "3 epochs"
    return config
