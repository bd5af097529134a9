"""Checks of a config's values before anything is read, written or computed.

What only the data or the model can tell is checked where they are known.
"""

from typing import Any

from ml_collections import ConfigDict

from tasks import KINDS

ADAPTERS = ("full", "head", "bitfit", "norms", "last_layers")
ADAPTERS += ("lora", "rslora", "dora", "ia3", "prompt")
_CHOICES = {
    "task": KINDS,
    "classification.kind": ("single", "multi", "regression", "ordinal", "hierarchical"),
    "tagging.head": ("softmax", "crf", "global_pointer"),
    "generation.train_on": ("last", "all"),
    "generation.on_long": ("drop", "stop", "cut"),
    "generation.on_empty": ("drop", "stop"),
    "multi.mixing": ("temperature", "rates"),
    "data.label_kind": ("class", "number"),
    "data.overlapping_spans": ("keep", "drop"),
    "data.on_misfit": ("drop", "stop"),
    "data.on_new_label": ("drop", "stop"),
    "data.words": ("none", "jieba"),
    "data.cleaning.label_conflicts": ("drop", "majority", "keep"),
    "data.cleaning.near_duplicates": ("keep", "drop"),
    "data.split.kind": ("stratified", "group", "time", "given"),
    "data.audit.kind": ("off", "exact", "near"),
    "data.audit.on_leak": ("report", "stop"),
    "augmentation.pair": ("apart", "alike", "text", "pair"),
    "features.use": ("none", "both"),
    "features.transformation": ("none", "log", "power", "quantile"),
    "features.scaling": ("none", "standard", "min_max", "robust"),
    "features.selection": ("none", "variance", "chi2", "mutual_information", "model"),
    "model.dtype": ("float32", "bfloat16"),
    "model.init": ("pretrained", "scratch"),
    "model.head": ("linear", "label_words"),
    "model.pooling": ("first", "last", "mean", "pooler", "mask"),
    "tokenizer.marks": ("auto", "none", "bos", "eos", "both"),
    "adapt.kind": ADAPTERS,
    "adapt.frozen_dtype": ("float32", "bfloat16", "int8"),
    "train.collapse": ("ignore", "stop", "restart"),
    "eval.calibration": ("none", "temperature", "bias"),
    "train.on_config_change": ("refuse", "continue", "overwrite"),
}
_AT_LEAST = {
    "data.cleaning.min_characters": 0,
    "data.cleaning.max_characters": 0,
    "data.cleaning.max_template": 0,
    "data.split.validation": 0,
    "data.split.test": 0,
    "data.split.folds": 0,
    "tokenizer.keep_others": -1,
    "tokenizer.new_pieces": 0,
    "adapt.rank": 1,
    "adapt.layers": 1,
    "adapt.prompt_length": 1,
    "verify.examples": 1,
    "features.tfidf_terms": 1,
    "features.svd": 0,
    "features.max_features": 1,
    "tagging.head_size": 2,
    "tagging.max_spans": 1,
    "reading.n_best": 1,
    "reading.max_answer": 1,
    "language.chunk": 1,
    "language.mean_span": 1,
    "generation.chunk": 1,
    "generation.max_tokens": 1,
    "generation.temperature": 0,
    "generation.top_k": 0,
    "generation.beams": 1,
    "generation.examples": 0,
    "data.overlap": 0,
    "data.batch_size": 1,
    "train.microbatches": 1,
    "train.keep_latest": 1,
    "eval.rows": 1,
    "integrate.points": 2,
    "review.folds": 2,
    "review.neighbours": 0,
    "search.trials": 0,
    "seeds": 1,
}
_SHARES = ("data.cleaning.min_chinese_share", "data.cleaning.max_repetition")
_SHARES += ("classification.label_smoothing", "language.mask_share", "generation.top_p")
_SHARES += ("tagging.dropout", "self_training.threshold", "train.ema")


def check_values(config: ConfigDict) -> None:
    """Raises on a value that cannot work.

    Raises:
      ValueError: names the key, what was found and what is expected.
    """
    if config.task == "multi_task":
        if len(config.multi.members) < 2:
            raise ValueError(
                "config.task='multi_task' needs at least two config.multi.members, see "
                "configs/multi.py"
            )
        for name, member in config.multi.members.items():
            try:
                check_values(member)
            except ValueError as error:
                raise ValueError(f"config.multi.members.{name}: {error}") from None
    for key, choices in _CHOICES.items():
        if (found := _value(config, key)) not in choices:
            raise ValueError(f"config.{key}: found {found!r}, expected one of {choices}")
    for key, least in _AT_LEAST.items():
        if (found := _value(config, key)) < least:
            raise ValueError(f"config.{key}: found {found}, expected at least {least}")
    if "\\n" in config.data.template:
        raise ValueError(
            f"config.data.template: found {config.data.template!r} with a backslash and an n, "
            "expected a line break: in a shell write --config.data.template=$'{text}\\n{pair}'"
        )
    for key in _SHARES:
        if not 0 <= (found := _value(config, key)) <= 1:
            raise ValueError(f"config.{key}: found {found}, expected a share between 0 and 1")
    for key in ("optimizer.lr_table", "optimizer.decay_table"):
        for row in _value(config, key):
            if not _is_row(row) or (row[1] is None and key.endswith("decay_table")):
                raise ValueError(
                    f"config.{key}: found the row {row!r}, expected (regex, number) as in "
                    "\"(('.*embedder.*', 0.1), ('.*', 1.0))\""
                )


def _value(config: ConfigDict, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, tuple | list)
        and len(row) == 2
        and isinstance(row[0], str)
        and (row[1] is None or isinstance(row[1], int | float))
    )
