"""Checks of a config's values before anything is read, written or computed.

What only the data or the model can tell is checked where they are known.
"""

from typing import Any

from ml_collections import ConfigDict

_CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.init": ("pretrained", "scratch"),
    "model.head": ("linear", "label_words"),
    "model.pooling": ("first", "last", "mean"),
    "eval.metric": ("accuracy", "macro_f1", "loss"),
    "train.on_config_change": ("refuse", "continue", "overwrite"),
}
_AT_LEAST = {
    "data.batch_size": 1,
    "train.microbatches": 1,
    "train.keep_latest": 1,
    "eval.rows": 1,
    "integrate.points": 2,
}


def check_values(config: ConfigDict) -> None:
    """Raises on a value that cannot work.

    Raises:
      ValueError: names the key, what was found and what is expected.
    """
    for key, choices in _CHOICES.items():
        if (found := _value(config, key)) not in choices:
            raise ValueError(f"config.{key}: found {found!r}, expected one of {choices}")
    for key, least in _AT_LEAST.items():
        if (found := _value(config, key)) < least:
            raise ValueError(f"config.{key}: found {found}, expected at least {least}")
    for key in ("data.validation_share", "data.test_share"):
        if not 0 < (found := _value(config, key)) < 1:
            raise ValueError(f"config.{key}: found {found}, expected a share between 0 and 1")
    for key in ("optimizer.lr_table", "optimizer.decay_table"):
        for row in _value(config, key):
            if not _is_row(row) or (row[1] is None and key.endswith("decay_table")):
                raise ValueError(
                    f"config.{key}: found the row {row!r}, expected (regex, number) as in "
                    "\"(('.*embedder.*', 0.1), ('.*', 1.0))\""
                )


def _value(config: ConfigDict, key: str) -> Any:
    group, name = key.split(".")
    return config[group][name]


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, tuple | list)
        and len(row) == 2
        and isinstance(row[0], str)
        and (row[1] is None or isinstance(row[1], int | float))
    )
