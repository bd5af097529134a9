"""The tasks of CLUE (2004.05986), CLUENER and MSRA, from their published files.

    python main.py --config=configs/clue.py:tnews --workdir=runs/tnews \\
        --config.data.files=tnews/train.json --config.data.validation_files=tnews/dev.json

The name after the colon is the task. Settings are those that did best with BERT-base in PaddleNLP's
table, except for chid (the whole passage in 256 tokens instead of 64 around the blank), cluener and
msra, whose settings are this file's own.

CLUE's test files have no labels, so dev chooses the checkpoint and is reported. msra takes its
labelled test file as validation_files. chid also needs
--config.data.answers_file='chid/*_answer.json'. Duplicates and rows that do not fit are dropped and
counted.

Not measured; published scores are in docs/tasks.md.
"""

from ml_collections import ConfigDict

from configs import common

_PAIR = {"text_column": "sentence1", "pair_column": "sentence2", "template": "{text}{pair}"}
_CHOICES = {"label_column": "", "template": "{text}{choice}"}
_TASKS = {  # kind, learning rate, batch, epochs, length, config.data
    "tnews": ("classification", 5e-5, 16, 3, 128, {"text_column": "sentence"}),
    "iflytek": ("classification", 5e-5, 16, 3, 128, {"text_column": "sentence"}),
    "afqmc": ("classification", 2e-5, 16, 3, 128, _PAIR),
    "cmnli": ("classification", 5e-5, 64, 2, 128, _PAIR | {"skip_labels": ("-",)}),
    "ocnli": ("classification", 3e-5, 16, 5, 128, _PAIR | {"skip_labels": ("-",)}),
    "csl": (
        "classification",
        1e-5,
        16,
        5,
        256,
        {"text_column": "abst", "pair_column": "keyword", "template": "{text}{pair}"},
    ),
    "wsc": ("classification", 3e-5, 16, 50, 128, {"format": "wsc"}),
    "cmrc": ("reading_comprehension", 3e-5, 24, 2, 512, {"format": "squad"}),
    "c3": ("multiple_choice", 3e-5, 24, 8, 512, _CHOICES | {"format": "c3"}),
    "chid": ("multiple_choice", 2e-5, 32, 3, 256, _CHOICES | {"format": "chid"}),
    "cluener": ("tagging", 3e-5, 24, 4, 128, {"label_column": "", "spans_column": "label"}),
    "msra": ("tagging", 3e-5, 24, 4, 256, {"label_column": "", "format": "conll"}),
}
TASKS = tuple(_TASKS)


def get_config(arg: str | None = "tnews") -> ConfigDict:
    """Returns the recipe of the task `arg`, one of TASKS."""
    if arg not in TASKS:
        raise ValueError(f"configs/clue.py:{arg}: expected a task, one of {', '.join(TASKS)}")
    config = common.get_config()
    config.task, rate, batch, epochs, length, data = _TASKS[arg]
    config.data.update(data, source="files", batch_size=batch, split={"kind": "given", "test": 0})
    config.data.cleaning.update(min_characters=1, label_conflicts="keep")
    config.data.audit.kind = "exact"
    if config.task == "reading_comprehension":
        config.data.update(template="{pair}{text}", overlap=128)  # the question first
    if arg == "c3":
        config.data.template = "{text}{pair}{choice}"
    config.layout.update(max_length=length, row_length=max(384, length))

    config.model.checkpoint = "hf://hfl/chinese-roberta-wwm-ext"
    config.model.update(pooling="pooler", dropout=0.1, hidden_dropout=0.1)
    config.optimizer.learning_rate = rate
    if config.task == "tagging":
        config.tagging.head = "global_pointer" if arg == "cluener" else "crf"
        config.data.overlapping_spans = "keep" if arg == "cluener" else "drop"
        config.optimizer.lr_table = (("head/.*", 30.0), (".*", 1.0))
    config.schedule.update(name="linear", warmup="10%")
    config.train.update(duration=f"{epochs} epochs", integrate=False)
    config.eval.test = False
    return config
