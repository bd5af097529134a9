"""The range of every value of configs/common.py, checked before anything is read or computed.

What depends on the data, the model or two values at once is checked where it is known.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ranges import (
    Duration,
    Form,
    Names,
    Number,
    Row,
    Whole,
    are,
    choice,
    is_mesh,
    is_placement,
    is_ranks,
    is_regex,
    is_schedule_table,
    is_size,
    is_table,
)

ADAPTERS = ("full", "head", "bitfit", "norms", "last_layers")
ADAPTERS += ("lora", "rslora", "dora", "ia3", "prompt")
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "txt", "conll", "squad", "flag_embedding")
FORMATS += ("c3", "chid", "wsc")
RECODING = ("control", "zero_width", "halfwidth", "halfwidth_punctuation", "fullwidth_punctuation")
RECODING += ("simplified", "traditional", "simplified_phrases", "traditional_phrases", "variants")
RECODING += ("compatibility", "nfc", "lower", "repeated_punctuation", "repeated_characters")
RECODING += ("urls:drop", "urls:mask", "mentions:drop", "mentions:mask", "emoji:drop", "emoji:mask")
RECODING += ("chinese_spaces", "whitespace")
EXTRACTORS = ("lengths", "characters", "punctuation", "lexicon", "pinyin", "radicals")
EXTRACTORS += ("character_tfidf", "word_tfidf", "values")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "sgd", "schedule_free")
SCHEDULES = ("constant", "linear", "cosine", "polynomial", "inverse_sqrt", "wsd")
SCHEDULES += ("cosine_restarts", "one_cycle")
METHODS = ("interpolation", "soup", "greedy_soup", "ensemble")

COUNT, SOME = Whole(0), Whole(1)
POSITIVE, NOT_NEGATIVE = Number(0, above=True), Number(0)
SHARE, BELOW_ONE = Number(0, 1), Number(0, 1, below=True)
SIMILARITY = Number(0, 1, above=True)
TEXT = Form("a string", lambda value: isinstance(value, str))
NEEDED = Form("a string that is not empty", lambda value: isinstance(value, str) and value != "")
SWITCH = Form("True or False", lambda value: isinstance(value, bool))
_TYPES = {str: TEXT, bool: SWITCH}  # of keys without a row of their own
LABELS = Form(
    "a tuple of strings or numbers", are(Form("", lambda name: isinstance(name, str | int | float)))
)
SIZE = Form("a share of at least 0 and below 1, or a whole number from 1 on", is_size)
TEMPLATE = Form(
    "a text in which a line break is one, not a backslash and an n: in a shell write "
    "--config.data.template=$'{text}\\n{pair}'",
    lambda value: isinstance(value, str) and "\\n" not in value,
)
_ROWS = "rows of a regular expression and a number, "
_ROWS += "as in \"(('.*embedder.*', 0.1), ('.*', 1.0))\""
LR_TABLE = Form(f"{_ROWS}, or None that freezes", lambda value: is_table(value, freezes=True))
MESH = Form("two sizes, (data, model), of which one may be -1", is_mesh)
PLACEMENT = Form(
    "rows of a regular expression and 'replicate', 'fsdp', or for each axis None, 'data' or "
    "'model', as in \"(('.*/kernel', (None, 'model')), ('.*', 'replicate'))\"",
    is_placement,
)
DECAY_TABLE = Form(_ROWS, lambda value: is_table(value, freezes=False))
WEIGHTS = Form(
    "a number of at least 0 for each label, or ('balanced',)",
    lambda value: are(NOT_NEGATIVE)(value) or value in (("balanced",), ["balanced"]),
)


def _is_threshold(value: Any) -> bool:
    try:
        return value == "fitted" or Number(0, 1, above=True, below=True).fits(float(value))
    except (TypeError, ValueError):
        return False


def _is_alpha(value: Any) -> bool:
    try:
        return value == "best" or SHARE.fits(float(value))
    except (TypeError, ValueError):
        return False


def _is_checkpoint(value: Any) -> bool:
    named = value in ("best", "latest", "integrated")
    return isinstance(value, str) and (named or (value.isascii() and value.isdigit()))


def _by_type(config: ConfigDict, prefix: str = "") -> dict[str, Row]:
    """Returns the rows that the defaults give: any string, True or False."""
    rows: dict[str, Row] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            rows |= _by_type(value, f"{prefix}{name}.")
        elif type(value) in _TYPES:
            rows[prefix + name] = _TYPES[type(value)]
    return rows


TABLE: dict[str, Row] = _by_type(common.get_config()) | {
    "seed": Whole(0, 2**32 - 1),
    "seeds": SOME,
    "task": NEEDED,  # one of those that check_values is given
    "data.source": NEEDED,
    "data.format": choice("", *FORMATS),
    "data.encoding": NEEDED,
    "data.text_column": NEEDED,
    "data.label_kind": choice("class", "number"),
    "data.first_choice": Whole(-(2**31)),
    "data.value_columns": Names(),
    "data.labels": LABELS,
    "data.overlapping_spans": choice("keep", "drop"),
    "data.on_misfit": choice("drop", "stop"),
    "data.on_new_label": choice("drop", "stop"),
    "data.skip_labels": LABELS,
    "data.normalization": Form(f"a tuple of names out of {RECODING}", are(choice(*RECODING))),
    "data.words": choice("none", "jieba"),
    "data.cleaning.min_characters": COUNT,
    "data.cleaning.max_characters": COUNT,
    "data.cleaning.min_chinese_share": SHARE,
    "data.cleaning.max_repetition": SHARE,
    "data.cleaning.max_template": COUNT,
    "data.cleaning.label_conflicts": choice("drop", "majority", "keep"),
    "data.cleaning.near_duplicates": choice("keep", "drop"),
    "data.cleaning.threshold": SIMILARITY,
    "data.split.kind": choice("stratified", "group", "time", "given"),
    "data.split.validation": SIZE,
    "data.split.test": SIZE,
    "data.split.folds": Whole(2, also=(0,)),
    "data.split.fold": COUNT,
    "data.split.seed": Whole(-(2**63), 2**63),
    "data.audit.kind": choice("off", "exact", "near"),
    "data.audit.threshold": SIMILARITY,
    "data.audit.on_leak": choice("report", "stop"),
    "data.max_train_examples": COUNT,
    "data.max_validation_examples": COUNT,
    "data.max_test_examples": COUNT,
    "data.batch_size": SOME,
    "data.template": TEMPLATE,
    "data.overlap": COUNT,
    "tokenizer.vocab_size": SOME,
    "tokenizer.marks": choice("auto", "none", "bos", "eos", "both"),
    "tokenizer.keep_others": Whole(-1),
    "tokenizer.new_pieces": COUNT,
    "layout.kind": choice("pad", "bucket", "pack"),
    "layout.max_length": SOME,
    "layout.row_length": SOME,
    "layout.max_shapes": SOME,
    "augmentation.share": Number(0, 1, above=True),
    "augmentation.deletion_rate": BELOW_ONE,
    "augmentation.swap_rate": BELOW_ONE,
    "augmentation.insertion_rate": BELOW_ONE,
    "augmentation.punctuation_rate": BELOW_ONE,
    "augmentation.mask_rate": BELOW_ONE,
    "augmentation.homophone_rate": BELOW_ONE,
    "augmentation.shape_rate": BELOW_ONE,
    "augmentation.synonym_rate": BELOW_ONE,
    "augmentation.word_deletion_rate": BELOW_ONE,
    "augmentation.word_swap_rate": BELOW_ONE,
    "augmentation.word_insertion_rate": BELOW_ONE,
    "augmentation.entity_rate": BELOW_ONE,
    "augmentation.cutoff_rate": BELOW_ONE,
    "augmentation.mixing_rate": BELOW_ONE,
    "augmentation.sampling_rate": BELOW_ONE,
    "augmentation.sampling_alpha": Number(0, 1, above=True),
    "features.use": choice("none", "both"),
    "features.extractors": Names(EXTRACTORS, least=1),
    "features.svd": COUNT,
    "features.transformation": choice("none", "log", "power", "quantile"),
    "features.scaling": choice("none", "standard", "min_max", "robust"),
    "features.selection": choice("none", "variance", "chi2", "mutual_information", "model"),
    "features.max_features": SOME,
    "model.checkpoint": NEEDED,
    "model.init": choice("pretrained", "scratch"),
    "model.keep_layers": COUNT,
    "model.dtype": choice("float32", "bfloat16", "auto"),
    "model.attention": choice("auto", "plain", "fused"),
    "model.remat": choice("none", "dots", "layers"),
    "model.pooling": choice("first", "last", "mean", "pooler", "mask", "auto"),
    "model.head": choice("linear", "label_words"),
    "model.head_start": choice("random", "probe"),
    "model.label_words": Names(),
    "model.dropout": BELOW_ONE,
    "model.dropout_samples": SOME,
    "model.hidden_dropout": BELOW_ONE,
    "model.attention_dropout": BELOW_ONE,
    "classification.kind": choice("single", "multi", "regression", "ordinal", "hierarchical"),
    "classification.separator": NEEDED,
    "classification.class_weights": WEIGHTS,
    "classification.focal_gamma": NOT_NEGATIVE,
    "classification.threshold": Form("'fitted' or a probability between 0 and 1", _is_threshold),
    "tagging.head": choice("softmax", "crf", "global_pointer"),
    "tagging.max_spans": SOME,
    "tagging.slots": SOME,
    "tagging.dropout": BELOW_ONE,
    "reading.max_answer": SOME,
    "reading.threshold": Number(),
    "language.mask_share": Number(0, 1, above=True, below=True),
    "language.chunk": SOME,
    "generation.train_on": choice("last", "all"),
    "generation.on_long": choice("drop", "stop", "cut"),
    "generation.max_tokens": SOME,
    "generation.temperature": NOT_NEGATIVE,
    "generation.top_k": COUNT,
    "generation.top_p": Number(0, 1, above=True),
    "generation.beams": SOME,
    "generation.length_penalty": NOT_NEGATIVE,
    "generation.examples": COUNT,
    "embedding.loss": choice("auto", "info_nce", "triplet", "cosent", "listwise", "pointwise"),
    "embedding.negatives": COUNT,
    "embedding.temperature": POSITIVE,
    "embedding.margin": POSITIVE,
    "embedding.dimensions": Form("a tuple of numbers of dimensions, such as (64, 128)", are(SOME)),
    "embedding.passage_template": TEMPLATE,
    "multi.temperature": POSITIVE,
    "multi.rates": Form("a number above 0 for each member", are(POSITIVE)),
    "adapt.kind": choice(*ADAPTERS),
    "adapt.targets": Form("a regular expression", is_regex),
    "adapt.rank": SOME,
    "adapt.alpha": POSITIVE,
    "adapt.layers": SOME,
    "adapt.prompt_length": SOME,
    "adapt.unfreeze_every": Duration(empty=True),
    "adapt.frozen_dtype": choice("float32", "bfloat16", "int8"),
    "regularize.label_smoothing": BELOW_ONE,
    "regularize.r_drop": NOT_NEGATIVE,
    "regularize.r3f": NOT_NEGATIVE,
    "regularize.neftune": NOT_NEGATIVE,
    "regularize.fgm": NOT_NEGATIVE,
    "regularize.freelb": NOT_NEGATIVE,
    "regularize.sam": NOT_NEGATIVE,
    "regularize.mixout": BELOW_ONE,
    "regularize.l2_sp": NOT_NEGATIVE,
    "regularize.child_tuning": BELOW_ONE,
    "regularize.mixup": NOT_NEGATIVE,
    "regularize.noisy_tune": NOT_NEGATIVE,
    "regularize.reinit_layers": COUNT,
    "teach.share": SHARE,
    "teach.temperature": POSITIVE,
    "optimizer.name": choice(*OPTIMIZERS),
    "optimizer.learning_rate": POSITIVE,
    "optimizer.b1": BELOW_ONE,
    "optimizer.b2": BELOW_ONE,
    "optimizer.eps": POSITIVE,
    "optimizer.clip_norm": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.lr_table": LR_TABLE,
    "optimizer.decay_table": DECAY_TABLE,
    "optimizer.layer_decay": Number(0, 1, above=True),
    "schedule.name": choice(*SCHEDULES, "plateau"),
    "schedule.table": Form(
        f"rows of a regular expression, one of {('', *SCHEDULES)} and a duration, as in "
        "\"(('backbone/.*', '', '20%'),)\"",
        lambda rows: is_schedule_table(rows, ("", *SCHEDULES)),
    ),
    "schedule.warmup": Duration(zero=True),
    "schedule.end_factor": SHARE,
    "schedule.power": POSITIVE,
    "schedule.cooldown": Duration(zero=True),
    "schedule.cycles": SOME,
    "schedule.patience": SOME,
    "train.duration": Duration(share=False),
    "sharding.mesh": MESH,
    "sharding.table": PLACEMENT,
    "sharding.fsdp_mib": NOT_NEGATIVE,
    "sharding.devices": COUNT,
    "train.microbatches": SOME,
    "train.log_every": Duration(),
    "train.checkpoint_every": Duration(),
    "train.keep_latest": SOME,
    "train.keep_best": SOME,
    "train.ema": BELOW_ONE,
    "train.swa_from": Duration(empty=True, zero=True),
    "train.collapse": choice("ignore", "stop", "restart"),
    "train.early_stopping": COUNT,
    "train.on_config_change": choice("refuse", "continue", "overwrite"),
    "eval.every": Duration(),
    "eval.metric": NEEDED,
    "eval.rows": SOME,
    "eval.checkpoint": Form("'best', 'latest', 'integrated' or a step", _is_checkpoint),
    "eval.split": choice("train", "validation", "test"),  # which --mode=evaluate refuses by name
    "eval.calibration": choice("none", "temperature", "bias"),
    "integrate.methods": Names(METHODS, least=1),
    "integrate.runs": Names(),
    "integrate.points": Whole(2),
    "integrate.alpha": Form("'best' or a point of the line from 0 to 1", _is_alpha),
    "integrate.max_examples": COUNT,
    "embedding.nearest": SOME,
    "mine.by": choice("model", "bm25"),
    "mine.ranks": Form("two ranks from 1 on, the first not above the last", is_ranks),
    "mine.negatives": SOME,
    "mine.below": POSITIVE,
    "review.folds": Whole(2),
    "search.range_test": Duration(share=False, empty=True),
    "search.trials": COUNT,
    "report.runs": Names(),
    "inspect.examples": COUNT,
    "verify.tolerance": NOT_NEGATIVE,
    "export.formats": Names(("huggingface", "stablehlo", "peft"), least=1),
}
MEMBERS = "multi.members"  # a group that holds a config under each name
_GROUPS = {key[: dot.start()] for key in TABLE for dot in re.finditer(r"\.", key)} | {MEMBERS}


def check_values(config: ConfigDict, *, tasks: Sequence[str], path: str = "config") -> None:
    """Raises on an unknown or missing key, and on a value out of its range.

    Args:
      config: of a run.
      tasks: the values of config.task.
      path: of `config`, for messages.

    Raises:
      ValueError: with the key, its value and the range.
    """
    table = TABLE | {"task": choice(*tasks)}
    values = dict(_leaves(config))
    for key, value in values.items():
        if key in _GROUPS:
            raise ValueError(f"{path}.{key}: found {value!r}, expected the keys of a group")
        if key not in table:
            near = difflib.get_close_matches(key, table, n=1, cutoff=0)[0]
            raise ValueError(f"{path}.{key}: no such key; the nearest is {path}.{near}")
    for key, row in table.items():
        if key not in values:
            group, _, name = f"{path}.{key}".rpartition(".")
            raise ValueError(
                f"{group} lacks the key {name!r}: start from configs/common.py, and change a group "
                f"by {group}.update(...), which keeps its other keys"
            )
        if not row.fits(values[key]):
            raise ValueError(f"{path}.{key}: found {values[key]!r}, expected {row.expected}")
    for name, member in config.multi.members.items():
        check_values(member, tasks=tasks, path=f"{path}.{MEMBERS}.{name}")


def expected(key: str) -> str:
    """Returns the range of 'config.a.b', or of a member's key, in words; '' for a group."""
    key = re.sub(rf"^config\.(?:{MEMBERS}\.\w+\.)*", "", key)
    return TABLE[key].expected if key in TABLE else ""


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key as 'a.b', and its value, without those of members."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if not isinstance(value, ConfigDict):
            yield key, value
        elif key != MEMBERS:
            yield from _leaves(value, f"{key}.")
        else:
            wrong = {n: member for n, member in value.items() if not isinstance(member, ConfigDict)}
            yield from ((f"{key}.{n}", member) for n, member in wrong.items())
