"""FewCLUE (2107.07498): nine sets with few labels, five training splits of each, by path.

    git clone --depth 1 https://github.com/CLUEbenchmark/FewCLUE
    python main.py --config=configs/fewclue.py:eprstmt --workdir=runs/eprstmt --mode=sweep

trains on each of the five splits and reports mean and deviation on the public test. Without
--mode=sweep it is the split --config.data.split.fold=0. Files elsewhere are named by
--config.data.files=DIR/train_{fold}.json, validation_files and test_files. The method may follow
the task, as in configs/fewclue.py:eprstmt:causal:

    probe        multilingual-e5-small, whose head starts from a probe (the default)
    fine_tuning  the same with a random head
    causal       label words of Gemma 3 270M, with LoRA
    masked       label words of RoBERTa-wwm-ext, or of the model in --config.model.checkpoint

csldcp (67 labels) and iflytek (119) have no label words; chid has fine_tuning and causal. The last
checkpoint counts: 32 validation examples are too few to choose by.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import common
from configs.sweeping import Sweep, product


class _Task(NamedTuple):
    """What differs between the sets; the words of label words are in the order of the labels."""

    data: dict[str, Any]
    labels: str = ""  # '' is those of the data, sorted
    causal: tuple[str, str] | None = None  # template, words
    masked: tuple[str, str] | None = None
    length: int = 128


_SENTENCE = {"text_column": "sentence"}
_PAIR = {"text_column": "sentence1", "pair_column": "sentence2"}
_NEWS = "故事 文化 娱乐 体育 财经 房产 汽车 教育 科技 军事 旅游 国际 股票 农业 游戏"
_TASKS = {
    "eprstmt": _Task(
        _SENTENCE,
        "Negative Positive",
        ("评论：{text}\n总的来说，很", "差 好"),
        ("总的来说，很{mask}。{text}", "差 好"),
    ),
    "csldcp": _Task({"text_column": "content"}, length=256),
    "tnews": _Task(
        _SENTENCE,
        "100 101 102 103 104 106 107 108 109 110 112 113 114 115 116",
        ("新闻：{text}\n类别：", _NEWS),
        ("{mask}{mask}新闻：{text}", _NEWS),
    ),
    "iflytek": _Task(_SENTENCE, length=256),
    "ocnli": _Task(
        _PAIR,
        "contradiction entailment neutral",
        ("前提：{text}\n假设：{pair}\n由前提可知，假设", "错误 正确 可能"),
        ("{text}？{mask}{mask}，{pair}", "不是 是的 也许"),
    ),
    "bustm": _Task(
        _PAIR,
        "0 1",
        ("甲：{text}\n乙：{pair}\n这两句话的意思", "不同 相同"),
        ("“{text}”和“{pair}”的意思{mask}同。", "不 相"),
    ),
    "csl": _Task(
        {"text_column": "abst", "pair_column": "keyword"},
        "0 1",
        ("摘要：{text}\n关键词：{pair}\n这些关键词", "错误 正确"),
        ("{text}关键词：{pair}。这些关键词{mask}正确。", "不 都"),
        length=256,
    ),
    "cluewsc": _Task(
        {"format": "wsc"},
        "false true",
        ("{text}\n下划线之间的名词和方括号里的代词指的人或物", "不同 相同"),
        ("下划线之间的词{mask}是方括号里的词。{text}", "不 就"),
        length=256,
    ),
    "chid": _Task({"format": "chid", "label_column": ""}, causal=("{text}", "")),
}
TASKS, METHODS, SPLITS = tuple(_TASKS), ("probe", "fine_tuning", "causal", "masked"), 5


def methods(task: str) -> tuple[str, ...]:
    """Returns the methods that a task has, the default first."""
    words = tuple(method for method in METHODS[2:] if getattr(_TASKS[task], method))
    # No regression fits the choices of chid.
    return (METHODS[1:2] if task == "chid" else METHODS[:2]) + words


def get_config(arg: str | None = "eprstmt") -> ConfigDict:
    """Returns the recipe; `arg` is 'TASK' or 'TASK:METHOD'."""
    name, _, method = (arg or "").partition(":")
    if name not in TASKS:
        raise ValueError(f"configs/fewclue.py:{arg}: expected a task, one of {', '.join(TASKS)}")
    method = method or methods(name)[0]
    if method not in methods(name):
        known = ", ".join(f"{name}:{known}" for known in methods(name))
        raise ValueError(f"configs/fewclue.py:{arg}: expected one of {known}")
    task, config = _TASKS[name], common.get_config()
    config.task = "multiple_choice" if name == "chid" else "classification"
    folder = f"FewCLUE/datasets/{name}"
    config.data.update(task.data, source="files", labels=tuple(task.labels.split()), batch_size=8)
    config.data.update(
        files=f"{folder}/train_{{fold}}.json", test_files=f"{folder}/test_public.json"
    )
    config.data.validation_files = f"{folder}/dev_{{fold}}.json"
    config.data.split.kind = "given"
    config.data.cleaning.update(min_characters=1, label_conflicts="keep")
    config.data.audit.kind = "exact"
    config.layout.update(max_length=task.length, max_shapes=2)

    config.train.update(duration="20 epochs", integrate=False, collapse="ignore")
    config.eval.every = config.train.checkpoint_every = "100%"
    if method in ("probe", "fine_tuning"):
        common.use_encoder(config)
        config.data.template = "query: {text}" + "{pair}" * ("pair_column" in task.data)
        if method == "fine_tuning":  # a random head needs a higher rate than the encoder
            config.model.head_start = "random"
            config.optimizer.lr_table = (("head/.*", 20.0), *config.optimizer.lr_table)
        return config
    config.data.template, words = task.masked if method == "masked" else task.causal
    config.model.update(head="label_words", pooling="last", label_words=tuple(words.split()))
    if method == "causal":
        config.adapt.kind = "lora"
        config.optimizer.learning_rate = 2e-4
    else:
        config.model.update(checkpoint="hf://hfl/chinese-roberta-wwm-ext", pooling="mask")
        config.optimizer.learning_rate = 2e-5
    return config


def sweep() -> Sweep:
    """What --mode=sweep runs: the five splits."""
    return product({"data.split.fold": range(SPLITS)})
