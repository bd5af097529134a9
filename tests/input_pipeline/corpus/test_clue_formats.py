"""CLUE: handfuls of rows as they are published, read with the very settings of configs/clue.py."""

import json

import pytest

from configs.checks import check_values
from configs.clue import TASKS, get_config
from input_pipeline.corpus import preparation, sources
from tasks import KINDS

NEWS = [
    ("108", "上课时学生手机响个不停，老师一怒之下把手机摔了，家长拿发票让老师赔"),
    ("104", "商赢环球股份有限公司关于延期回复上海证券交易所问询函的公告"),
    ("108", "通过中介公司买了二手房，首付都付了，现在卖家不想卖了。怎么处理？"),
]
QUESTIONS = [
    ("双十一花呗提额在哪", "里可以提花呗额度", "0"),
    ("花呗支持高铁票支付吗", "为什么友付宝不支持花呗付款", "0"),
    ("网商贷怎么转变成借呗", "如何将网商贷切换为借呗", "1"),
]
INFERENCES = [
    ("新的权利已经足够好了", "每个人都很喜欢最新的福利", "neutral"),
    ("他们都写了一些有关玻璃的文章", "他们写了文章", "entailment"),
    ("身上裹一件工厂发的棉大衣,手插在袖筒里", "身上没有衣服", "contradiction"),
    ("就是我们的预算不够", "预算很多", "-"),
]
IDIOMS = ["慢条斯理", "天马行空", "各有千秋", "数一数二", "一模一样"]
IDIOMS += ["手忙脚乱", "不可思议", "风和日丽", "全力以赴", "一日千里"]
WSC_TEXT = "裂开的伤口涂满尘土，里面有碎石子和木头刺，我小心翼翼把它们剔除出去。"


def pairs(rows, mark):
    return [{"sentence1": mark + a, "sentence2": b, "label": label} for a, b, label in rows]


def c3(mark):
    film = {
        "question": "女的最喜欢哪种电影?",
        "choice": ["恐怖片", "爱情片", "喜剧片", "科幻片"],
        "answer": "喜剧片",
    }
    when = {"question": "他们什么时候见面?", "choice": ["晚上", "上午"], "answer": "晚上"}
    cinema = [f"男：{mark}今天晚上有时间吗?我们一起去看电影吧?", "女：我喜欢喜剧片。"]
    now = {"question": "现在是什么时候?", "choice": ["早上", "下午", "晚上"], "answer": "早上"}
    rows = [[cinema, [film, when], "25-35"], [[f"女：{mark}早上好。", "男：早！"], [now], "0"]]
    return json.dumps(rows, ensure_ascii=False, indent=2)


def chid(mark):
    start = {"训": 378, "验": 578}[mark]
    tags = [f"#idiom{start + i:06}#" for i in range(3)]
    return [
        {
            "candidates": IDIOMS,
            "content": [f"{mark}他俩{tags[0]}。", f"{mark}他说话{tags[1]}，做事却{tags[2]}。"],
        }
    ]


def wsc(mark):
    text = mark + WSC_TEXT
    places = {name: text.index(name) for name in ("伤口", "碎石子", "它们")}
    return [
        {
            "target": {
                "span1_text": noun,
                "span1_index": places[noun],
                "span2_text": "它们",
                "span2_index": places["它们"],
            },
            "label": label,
            "text": text,
        }
        for noun, label in (("伤口", "false"), ("碎石子", "true"))
    ]


def cmrc(mark):
    context = f"{mark}范廷颂枢机（，），圣名保禄·若瑟（），是越南罗马天主教枢机。1963年被任为主教。"
    answer = {"text": "1963年", "answer_start": context.index("1963年")}
    wrong = {"text": "法国", "answer_start": 3}
    questions = [
        {"question": "范廷颂何时被任为主教的？", "id": f"{mark}_0", "answers": [answer] * 3},
        {"question": "范廷颂是哪国人？", "id": f"{mark}_1", "answers": [wrong]},
    ]
    paragraph = {"id": mark, "context": context, "qas": questions}
    return {"version": "v1.0", "data": [{"paragraphs": [paragraph], "id": mark, "title": "范廷颂"}]}


def cluener(mark):
    bank = f"{mark}浙商银行企业信贷部叶老桂博士则从另一个角度对五道门槛进行了解读。"
    game = f"{mark}生生不息CSOL生化狂潮让你填弹狂扫"
    return [
        {
            "text": bank,
            "label": {"name": {"叶老桂": [[10, 12]]}, "company": {"浙商银行": [[1, 4]]}},
        },
        {"text": game, "label": {"game": {"CSOL": [[5, 8]]}}},
    ]


def msra(mark):
    sentences = [
        [f"{mark} O", "希 B-LOC", "望 I-LOC", "工 O"],
        [f"{mark} O", "马 B-PER", "克 I-PER"],
    ]
    return "\n\n".join("\n".join(lines) for lines in sentences) + "\n"


ROWS = {  # as lines of JSON, if it isn't a string or an object; `mark` tells train from dev
    "tnews": lambda mark: [
        {"label": label, "label_desc": "news_edu", "sentence": mark + text, "keywords": ""}
        for label, text in NEWS
    ],
    "iflytek": lambda mark: [
        {"label": label, "label_des": "薅羊毛", "sentence": mark + text} for label, text in NEWS
    ],
    "afqmc": lambda mark: pairs(QUESTIONS, mark),
    "cmnli": lambda mark: pairs(INFERENCES, mark),
    "ocnli": lambda mark: [
        {"level": "easy", **row, "label0": row["label"], "prem_id": f"lit_{i}", "id": i}
        for i, row in enumerate(pairs(INFERENCES, mark))
    ],
    "csl": lambda mark: [
        {
            "id": i,
            "abst": f"{mark}为解决波束形成算法{i}",
            "keyword": ["水声学", "FFT"],
            "label": str(i),
        }
        for i in range(2)
    ],
    "wsc": wsc,
    "cmrc": cmrc,
    "c3": c3,
    "chid": chid,
    "cluener": cluener,
    "msra": msra,
}
KEPT = {"cluener": 2, "msra": 2, "wsc": 2, "csl": 2, "cmrc": 1}  # of each split; others keep 3


def write(path, content):
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, "utf-8")
    return str(path)


def config_of(task, folder):
    """The recipe of a task, with the rows above as its files."""
    config = get_config(task)
    suffix = ".txt" if task == "msra" else ".json"
    config.data.files = write(folder / f"train{suffix}", ROWS[task]("训"))
    config.data.validation_files = write(folder / f"dev{suffix}", ROWS[task]("验"))
    config.data.prepared_dir = str(folder / "prepared")
    if task == "chid":
        write(
            folder / "train_answer.json", {f"#idiom000{378 + i}#": (2, 0, 5)[i] for i in range(3)}
        )
        write(folder / "dev_answer.json", {f"#idiom000{578 + i}#": 9 - i for i in range(3)})
        config.data.answers_file = str(folder / "*_answer.json")
    return config


def records_of(task, folder):
    config = config_of(task, folder)
    return [record for record in sources.read(config.data, {}) if record.split == "train"]


@pytest.mark.parametrize("task", TASKS)
def test_recipe_prepares_its_published_format(tmp_path, task):
    config = config_of(task, tmp_path)
    check_values(config, tasks=KINDS)
    prepared = preparation.prepare(config.data)
    sizes = {name: split["examples"] for name, split in prepared.manifest["splits"].items()}
    assert sizes == {"train": KEPT.get(task, 3), "validation": KEPT.get(task, 3), "test": 0}
    examples = preparation.load_split(prepared, "train")
    assert all(text.startswith(("训", "男：训", "女：训", "_")) for text in examples.texts_N)
    if config.task == "classification":
        assert len(prepared.labels) == len(set(examples.labels_N))
        assert (examples.pairs_N is None) == ("{pair}" not in config.data.template)
    if config.task == "multiple_choice":
        assert prepared.labels == tuple(map(str, range(max(map(len, examples.choices_N)))))
    if config.task in ("tagging", "reading_comprehension"):
        assert len(examples.spans.values) >= len(examples) and examples.span_labels


def test_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match=r"configs/clue\.py:xnli: expected a task, one of tnews"):
        get_config("xnli")


def test_csl_keywords_are_one_text(tmp_path):
    assert [(r.pair, r.labels) for r in records_of("csl", tmp_path)] == [
        ("水声学，FFT", ("0",)),
        ("水声学，FFT", ("1",)),
    ]


def test_inferences_without_a_label_are_counted(tmp_path):
    problems = {}
    assert len(list(sources.read(config_of("cmnli", tmp_path).data, problems))) == 6
    assert problems == {
        "skipped_label": [f"{tmp_path}/train.json:4", f"{tmp_path}/dev.json:4"],
    }


def test_cluener_names_end_inclusively_and_msra_tags_are_spans(tmp_path):
    first, second = records_of("cluener", tmp_path)
    assert {(first.text[a:b], label) for a, b, label in first.spans} == {
        ("叶老桂", "name"),
        ("浙商银行", "company"),
    }
    assert [(second.text[a:b], label) for a, b, label in second.spans] == [("CSOL", "game")]
    (tmp_path / "msra").mkdir()
    sentences = records_of("msra", tmp_path / "msra")
    assert [(r.text[a:b], label) for r in sentences for a, b, label in r.spans] == [
        ("希望", "LOC"),
        ("马克", "PER"),
    ]


def test_cmrc_questions_keep_their_ids_and_answers_elsewhere_are_counted(tmp_path):
    problems = {}
    records = list(sources.read(config_of("cmrc", tmp_path).data, problems))
    assert [(r.name, r.text[slice(*r.spans[0][:2])]) for r in records] == [
        ("训_0", "1963年"),
        ("验_0", "1963年"),
    ]
    assert problems == {
        "answer_not_in_context": [
            f"{tmp_path}/{name}:1 ({mark}_1)"
            for name, mark in (("train.json", "训"), ("dev.json", "验"))
        ],
    }


def test_c3_questions_share_their_dialogue_and_keep_to_its_side(tmp_path):
    film, when, now = records_of("c3", tmp_path)
    assert film.text == "男：训今天晚上有时间吗?我们一起去看电影吧?\n女：我喜欢喜剧片。"
    assert (film.pair, film.choices[2], film.labels) == ("女的最喜欢哪种电影?", "喜剧片", ("2",))
    assert (film.name, when.name, now.name) == ("25-35-0", "25-35-1", "0-0")
    assert (film.text, film.group) == (when.text, when.group) and now.group != film.group
    assert film.where == f"{tmp_path}/train.json:2 (25-35-0)"


def test_chid_has_a_row_per_blank_in_which_the_others_are_marked_otherwise(tmp_path):
    first, second, third = records_of("chid", tmp_path)
    assert (first.text, first.name, first.labels) == ("训他俩____。", "#idiom000378#", ("2",))
    assert (second.text, second.labels) == ("训他说话____，做事却□□□□。", ("0",))
    assert (third.text, third.labels) == ("训他说话□□□□，做事却____。", ("5",))
    assert first.choices == tuple(IDIOMS)
    assert second.group == third.group != first.group


def test_wsc_marks_noun_and_pronoun_in_the_text(tmp_path):
    first, second = records_of("wsc", tmp_path)
    assert first.text.startswith("训裂开的_伤口_涂满") and "把[它们]剔除" in first.text
    assert "有_碎石子_和" in second.text
    assert (first.labels, second.labels) == (("false",), ("true",))


def test_wsc_marks_stand_right_whichever_comes_first_and_where_they_meet(tmp_path):
    target = {"span1_text": "小明", "span1_index": 1, "span2_text": "他", "span2_index": 0}
    row = {"target": target, "label": True, "text": "他小明"}
    config = config_of("wsc", tmp_path)
    write(tmp_path / "train.json", [row])
    record = next(sources.read(config.data))
    assert (record.text, record.labels) == ("[他]_小明_", ("true",))


def changed(task, folder, change):
    """The refusal of a task's training file, changed."""
    config = config_of(task, folder)
    content = (folder / "train.json").read_text("utf-8")
    config.data.on_misfit = "stop"
    assert change[0] in content
    (folder / "train.json").write_text(content.replace(*change, 1), "utf-8")
    with pytest.raises(ValueError) as error:
        preparation.prepare(config.data)
    return str(error.value)


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        (
            "c3",
            ('"answer": "早上"', '"answer": "半夜"'),
            "29 (0-0): the answer '半夜' is none of the 3",
        ),
        ("c3", ('"早上",', '"晚上",'), "the choices are ['晚上', '下午', '晚上']; expected two or"),
        ("c3", ('"question"', '"q"'), "2: not like c3 at 'question'; expected [["),
        ("chid", ("#idiom000378#", "#idiom900000#"), "1: no answer to #idiom900000# in config.da"),
        ("chid", ('"content"', '"passages"'), "1: not like chid at 'content'; expected {"),
        ("chid", ('"慢条斯理"', '"天马行空"'), "1 (#idiom000378#): the choices are ['天马行空', '"),
        ("wsc", ('"span1_index": 4', '"span1_index": 5'), "1: span1 at 5 holds '口涂'; expected"),
        ("wsc", ('"target"', '"targets"'), "1: not like wsc at 'target'; expected {"),
    ],
)
def test_row_that_does_not_fit_its_format_is_named(tmp_path, task, change, said):
    found = changed(task, tmp_path, change)
    assert found.startswith(f"{tmp_path}/train.json:")
    assert said in found


def test_chid_without_answers_or_with_two_is_refused_and_new_answers_are_new_data(tmp_path):
    config = config_of("chid", tmp_path)
    first = preparation.prepare(config.data).directory
    write(tmp_path / "dev_answer.json", {f"#idiom000{578 + i}#": i for i in range(3)})
    assert preparation.prepare(config.data).directory != first
    write(tmp_path / "other_answer.json", {"#idiom000578#": 7})
    with pytest.raises(ValueError, match=r"#idiom000578# has the answer 7 here and 0 in a file"):
        list(sources.read(config.data))
    config.data.answers_file = ""
    with pytest.raises(ValueError, match=r"--config\.data\.answers_file=train_answer\.json"):
        list(sources.read(config.data))


@pytest.mark.parametrize("task", ["c3", "chid", "wsc", "cmrc"])
def test_test_files_without_answers_are_read_to_predict(tmp_path, task):
    config = config_of(task, tmp_path)
    with_answers = preparation.read_unlabelled(str(tmp_path / "dev.json"), config.data)
    content = (tmp_path / "dev.json").read_text("utf-8").replace('"answer', '"_answer')
    (tmp_path / "test1.0.json").write_text(content.replace('"label"', '"_label"'), "utf-8")
    config.data.answers_file = ""
    examples = preparation.read_unlabelled(str(tmp_path / "test1.0.json"), config.data)
    assert examples.texts_N.tolist() == with_answers.texts_N.tolist()
    assert examples.labels_N is None and examples.spans is None
    if task != "wsc":
        assert len(set(examples.names_N)) == len(examples)
    if task in ("c3", "chid"):
        assert all(len(choices) >= 2 for choices in examples.choices_N)
