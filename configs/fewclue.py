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
checkpoint counts: 32 validation examples are too few to choose by. Copies are dropped and counted.

Result on eprstmt, mean (deviation) of the splits: probe 82.5 (2.6), causal 85.4 (2.7), TF-IDF 65.1
(6.8); published: fine-tuning 65.4 (7.7), label words 86.7 (1.0) (docs/tasks.md).
"""

from ml_collections import ConfigDict

from configs import common
from configs.sweeping import Sweep, product

_SENTENCE = {"text_column": "sentence"}
_PAIR = {"text_column": "sentence1", "pair_column": "sentence2"}
_DATA = {  # longest length in tokens, config.data
    "eprstmt": (128, _SENTENCE),
    "csldcp": (256, {"text_column": "content"}),
    "tnews": (128, _SENTENCE),
    "iflytek": (256, _SENTENCE | {"label_column": "label_des"}),
    "ocnli": (128, _PAIR),
    "bustm": (128, _PAIR),
    "csl": (256, {"text_column": "abst", "pair_column": "keyword"}),
    "cluewsc": (256, {"format": "wsc"}),
    "chid": (128, {"format": "chid", "label_column": ""}),
}
_LABELS = {  # in the order of their words
    "eprstmt": "Negative Positive",
    "tnews": "100 101 102 103 104 106 107 108 109 110 112 113 114 115 116",
    "ocnli": "contradiction entailment neutral",
    "bustm": "0 1",
    "csl": "0 1",
    "cluewsc": "false true",
}
_NEWS = "故事 文化 娱乐 体育 财经 房产 汽车 教育 科技 军事 旅游 国际 股票 农业 游戏"
_WORDS = {  # template, label words
    "eprstmt:causal": ("评论：{text}\n总的来说，很", "差 好"),
    "eprstmt:masked": ("总的来说，很{mask}。{text}", "差 好"),
    "tnews:causal": ("新闻：{text}\n类别：", _NEWS),
    "tnews:masked": ("{mask}{mask}新闻：{text}", _NEWS),
    "ocnli:causal": ("前提：{text}\n假设：{pair}\n由前提可知，假设", "错误 正确 可能"),
    "ocnli:masked": ("{text}？{mask}{mask}，{pair}", "不是 是的 也许"),
    "bustm:causal": ("甲：{text}\n乙：{pair}\n这两句话的意思", "不同 相同"),
    "bustm:masked": ("“{text}”和“{pair}”的意思{mask}同。", "不 相"),
    "csl:causal": ("摘要：{text}\n关键词：{pair}\n这些关键词", "错误 正确"),
    "csl:masked": ("{text}关键词：{pair}。这些关键词{mask}正确。", "不 都"),
    "cluewsc:causal": ("{text}\n下划线之间的名词和方括号里的代词指的人或物", "不同 相同"),
    "cluewsc:masked": ("下划线之间的词{mask}是方括号里的词。{text}", "不 就"),
    "chid:causal": ("{text}", ""),  # a choice is as likely as the text around it
}
TASKS = tuple(_DATA)


def methods(task: str) -> tuple[str, ...]:
    """Returns the methods that a task has, the default first."""
    fitted = ("probe",) * (task != "chid")  # no regression fits the choices
    words = [name for name in ("causal", "masked") if f"{task}:{name}" in _WORDS]
    return (*fitted, "fine_tuning", *words)


def get_config(arg: str | None = "eprstmt") -> ConfigDict:
    """Returns the recipe; `arg` is 'TASK' or 'TASK:METHOD'."""
    name, _, method = (arg or "").partition(":")
    if name not in TASKS:
        raise ValueError(f"configs/fewclue.py:{arg}: expected a task, one of {', '.join(TASKS)}")
    method = method or methods(name)[0]
    if method not in methods(name):
        known = ", ".join(f"{name}:{known}" for known in methods(name))
        raise ValueError(f"configs/fewclue.py:{arg}: expected one of {known}")
    config, (length, data) = common.get_config(), _DATA[name]
    config.task = "multiple_choice" if name == "chid" else "classification"
    config.data.update(data, source="files", labels=tuple(_LABELS.get(name, "").split()))
    config.data.files = f"FewCLUE/datasets/{name}/train_{{fold}}.json"
    config.data.validation_files = f"FewCLUE/datasets/{name}/dev_{{fold}}.json"
    config.data.test_files = f"FewCLUE/datasets/{name}/test_public.json"
    config.data.batch_size = 8
    config.data.split.kind = "given"
    config.data.cleaning.update(min_characters=1, label_conflicts="keep")
    config.data.audit.kind = "exact"
    config.layout.max_length = length

    config.train.update(duration="10 epochs", integrate=False, collapse="ignore")
    config.eval.every = config.train.checkpoint_every = "100%"
    if method in ("probe", "fine_tuning"):
        common.use_encoder(config)
        config.data.template = "query: {text}" + "{pair}" * ("pair_column" in data)
        config.optimizer.learning_rate = 1e-5  # the probe's head is far from 0 with so few examples
        if method == "fine_tuning":  # a random head needs a higher rate than the encoder
            config.model.head_start, config.optimizer.learning_rate = "random", 3e-5
            config.optimizer.lr_table = (("head/.*", 20.0), *config.optimizer.lr_table)
            config.train.duration = "20 epochs"
        return config
    config.data.template, words = _WORDS[f"{name}:{method}"]
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
    return product({"data.split.fold": range(5)})
