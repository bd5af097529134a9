"""Entities in Weibo posts (Peng and Dredze 2015), read by path, on two CPU cores.

    pip install -e '.[demo]' && python main.py --config=configs/weibo.py --workdir=runs/weibo \\
        --config.data.files=DIR/weiboNER_2nd_conll.train \\
        --config.data.validation_files=DIR/weiboNER_2nd_conll.dev \\
        --config.data.test_files=DIR/weiboNER_2nd_conll.test

1,890 posts with their own split: names and nominal mentions of persons, places, organisations and
geopolitical entities. Posts that are in two splits are counted, and the result is reported without
them as well. `:full` fine-tunes all of BERT-base, on an accelerator.

Result: F1 62.4 ± 3.1 %, dictionary of training names 48.1 ± 3.5 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None, 'full' or 'runlocal'."""
    common.check_arg("weibo", arg, "full")
    config = common.get_config()
    config.task = "tagging"
    config.data.source = "files"
    config.data.format = "conll"
    config.data.label_column = ""
    config.data.spans_column = "spans"
    config.data.split.kind = "given"
    config.data.overlap = 32
    config.layout.max_length = 192
    common.tag_with_encoder(config)
    config.data.max_validation_examples = 100
    config.train.duration = "5 epochs"
    config.eval.every = config.train.checkpoint_every = "20%"
    config.train.integrate = False
    if arg == "full":
        config.data.max_validation_examples = 0
        config.model.checkpoint = "hf://google-bert/bert-base-chinese"
        config.tagging.update(characters=True, slots=1)
        config.optimizer.learning_rate = 3e-5
        config.optimizer.lr_table = (("head/(transitions|starts|ends)", 100.0), (".*", 1.0))
        config.train.duration = "10 epochs"
        config.eval.every = config.train.checkpoint_every = "10%"
    if arg == "runlocal":
        common.runlocal(config)
        config.train.duration = "1 epoch"
    return config
