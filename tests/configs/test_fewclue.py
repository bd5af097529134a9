"""FewCLUE: a few invented rows in each published format, read by configs/fewclue.py itself."""

import json

import jax
import numpy as np
import pytest

from configs.checks import check_values
from configs.fewclue import TASKS, get_config, methods, sweep
from input_pipeline.corpus import preparation, sources
from models.backbone import parameter_shapes
from models.bert import BertConfig
from models.pretrained import write_pretrained
from tasks import KINDS
from training.experiment import build

IDIOMS = ["一目了然", "举足轻重", "乐此不疲", "五花八门", "井井有条", "亡羊补牢", "画蛇添足"]


def pair(mark, label):
    return {"sentence1": f"{mark}把灯关掉", "sentence2": f"{mark}请关灯{label}", "label": label}


def referents(mark, label):
    text = f"{mark}的树叶落进河里，它漂走了。"
    target = {"span1_text": "树叶", "span1_index": text.index("树叶"), "span2_text": "它"}
    target["span2_index"] = text.index("它")
    return {"target": target, "idx": 0, "label": label, "text": text.replace("了", label)}


FORMATS = {  # labels, and a row of a label; `mark` makes the rows of each file different
    "eprstmt": (
        ("Negative", "Positive"),
        lambda mark, label: {"id": 0, "sentence": f"{mark}屏幕很亮{label}", "label": label},
    ),
    "csldcp": (
        ("数学", "法学"),
        lambda mark, label: {"content": f"{mark}本文研究{label}。", "label": label, "id": 3},
    ),
    "tnews": (
        (100, 116),
        lambda mark, label: {
            "label": label,
            "label_desc": "news_story",
            "sentence": f"{mark}老街的故事{label}",
            "keywords": "",
            "id": 1,
        },
    ),
    "iflytek": (
        ("打车", "租车"),
        lambda mark, label: {"label": 3, "label_des": label, "sentence": f"{mark}找车{label}"},
    ),
    "ocnli": (
        ("contradiction", "entailment", "neutral"),
        lambda mark, label: {
            "level": "easy",
            **pair(mark, label),
            "label0": None,
            "genre": "tv",
            "prem_id": "tv_1",
            "id": 0,
        },
    ),
    "bustm": (("0", "1"), lambda mark, label: {"id": 0, **pair(mark, label)}),
    "csl": (
        ("0", "1"),
        lambda mark, label: {
            "id": 0,
            "abst": f"{mark}提出一种调度方法{label}。",
            "keyword": ["调度", "云计算"],
            "label": label,
        },
    ),
    "cluewsc": (("false", "true"), referents),
    "chid": (
        (0, 6),
        lambda mark, label: {
            "id": 9,
            "candidates": IDIOMS,
            "content": f"{mark}表格让数据#idiom#{label}。",
            "answer": label,
        },
    ),
}


def config_of(task, folder, fold=0, method=""):
    """The recipe of a task, with rows of its labels in train_0, train_1, dev_0, dev_1 and test."""
    labels, row = FORMATS[task]
    config = get_config(f"{task}:{method}" if method else task)
    for name, mark in (
        *((f"{split}_{n}", f"{split}{n}") for split in ("train", "dev") for n in (0, 1)),
        ("test_public", "test"),
    ):
        lines = (json.dumps(row(mark, label), ensure_ascii=False) + "\n" for label in labels)
        (folder / f"{name}.json").write_text("".join(lines), "utf-8")
    for key in ("files", "validation_files", "test_files"):
        config.data[key] = str(folder / config.data[key].rpartition("/")[2])
    config.data.prepared_dir = str(folder / "prepared")
    config.data.split.fold = fold
    return config


@pytest.mark.parametrize("task", TASKS)
def test_each_fold_reads_its_own_files_and_all_share_the_test_split(tmp_path, task):
    fingerprints = []
    for fold in (0, 1):
        config = config_of(task, tmp_path, fold)
        prepared = preparation.prepare(config.data)
        splits = {name: preparation.load_split(prepared, name) for name in ("train", "validation")}
        for name, mark in (("train", f"train{fold}"), ("validation", f"dev{fold}")):
            assert len(splits[name]) == len(FORMATS[task][0])
            assert all(text.startswith(mark) for text in splits[name].texts_N)
        assert (splits["train"].pairs_N is None) == ("{pair}" not in config.data.template)
        fingerprints.append(prepared.manifest["splits"]["test"]["fingerprint"])
    assert fingerprints[0] == fingerprints[1]


def test_chid_has_its_answers_beside_the_blank(tmp_path):
    records = list(sources.read(config_of("chid", tmp_path).data))
    assert records[1].text == "train0表格让数据____6。" and records[1].choices == tuple(IDIOMS)
    assert [record.labels for record in records[:2]] == [("0",), ("6",)]
    assert records[0].name == "9"
    for change, said in (
        (("#idiom#", "#idiom##idiom#"), "2 blanks"),
        (("answer", "a"), "'answer'"),
    ):
        config = config_of("chid", tmp_path)
        content = (tmp_path / "train_0.json").read_text("utf-8").replace(*change)
        (tmp_path / "train_0.json").write_text(content, "utf-8")
        with pytest.raises(ValueError, match=rf"train_0\.json:1: not like chid at .*{said}"):
            list(sources.read(config.data))


@pytest.mark.parametrize("arg", [f"{task}:{name}" for task in TASKS for name in methods(task)])
def test_every_method_has_a_template_that_fits_its_data_and_a_word_for_each_label(arg):
    config, (task, _, method) = get_config(arg), arg.partition(":")
    check_values(config, tasks=KINDS)
    assert ("{pair}" in config.data.template) == bool(config.data.pair_column)
    words, masks = config.model.label_words, config.data.template.count("{mask}")
    assert bool(masks) == (method == "masked")
    if method in ("masked", "causal") and task != "chid":
        assert len(set(words)) == len(words) == len(config.data.labels)
    if method == "masked":  # a BERT for Chinese reads a character as a piece
        assert {len(word) for word in words} == {masks}


@pytest.mark.parametrize("task", [task for task in TASKS if "masked" in methods(task)])
def test_masked_label_words_stand_at_the_masks_of_a_model_given_by_path(tmp_path, task):
    config = config_of(task, tmp_path, method="masked")
    texts = [path.read_text("utf-8") for path in tmp_path.glob("*.json")]
    characters = sorted(set("".join([*texts, *config.model.label_words, config.data.template])))
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*marks, *filter(str.strip, characters)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    shape = {"width": 16, "num_layers": 1, "num_distinct_layers": 1, "num_heads": 2, "hidden": 16}
    model = BertConfig(
        model_type="bert", vocab_size=len(vocabulary), max_length=256, embedding_size=16, **shape
    )
    shapes = parameter_shapes(model, ["mlm_head"])
    write_pretrained(tmp_path, model, jax.tree.map(lambda x: np.full(x.shape, 0.1, "f4"), shapes))
    config.model.checkpoint = str(tmp_path)
    prepared = preparation.prepare(config.data)
    experiment = build(config, tmp_path, prepared.labels, lambda _: None)
    examples = preparation.load_split(prepared, "train")
    experiment.pipeline.plan(examples)
    batch = next(experiment.pipeline.train(examples, first_example=0))
    masked = batch["tokens_RxL"] == experiment.tokenizer.mask_id
    assert masked.sum() == config.data.batch_size * len(config.model.label_words[0])
    assert (masked == (batch["mask_RxL"] > 0)).all()


def test_the_sweep_is_over_the_published_splits_alone():
    assert sweep() == [{"data.split.fold": fold} for fold in range(5)]


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("cmnli", "fewclue.py:cmnli: expected a task, one of eprstmt, csldcp, tnews"),
        ("bustm:pet", "fewclue.py:bustm:pet: expected one of bustm:probe, bustm:fine_tuning, bus"),
        ("chid:probe", "expected one of chid:fine_tuning, chid:causal"),
        ("iflytek:masked", "expected one of iflytek:probe, iflytek:fine_tuning"),
    ],
)
def test_a_task_or_method_that_does_not_exist_is_named_beside_those_that_do(arg, said):
    with pytest.raises(ValueError, match=said):
        get_config(arg)


def test_a_split_that_does_not_exist_names_its_file(tmp_path):
    data = config_of("eprstmt", tmp_path, fold=5).data
    with pytest.raises(FileNotFoundError, match=rf"no file matches '{tmp_path}/train_5\.json'"):
        preparation.prepare(data)


def test_a_fold_that_nothing_reads_is_refused(tmp_path):
    data = config_of("eprstmt", tmp_path, fold=1).data
    data.files, data.validation_files = (str(tmp_path / f"{n}_0.json") for n in ("train", "dev"))
    with pytest.raises(ValueError, match=r"split\.fold=1 means nothing .*train_\{fold\}\.json"):
        list(sources.read(data))
