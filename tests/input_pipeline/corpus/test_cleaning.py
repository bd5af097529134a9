"""Cleaning: every record is kept or counted under one reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from input_pipeline.corpus.cleaning import REASONS, chinese_share, clean, repetition, strip
from input_pipeline.records import Record, Span


def knobs(**options):
    cleaning = common.get_config().data.cleaning
    cleaning.update(options)
    return cleaning


def records(*rows, **fields):
    """Makes records of (text, label); 'f:1' is where the first stands."""
    return [
        Record(text=text, where=f"f:{i}", labels=(label,) if label else (), **fields)
        for i, (text, label) in enumerate(rows, start=1)
    ]


def dropped(found, **options):
    """Returns {reason: where} for those reasons that occur."""
    return {k: v for k, v in clean(found, knobs(**options)).dropped.items() if v}


def test_each_reason_drops_what_it_names_by_default():
    cleaned = clean(
        records(
            (" \u3000\n", "好"),
            ("。", "好"),
            (" 不错 ", "好"),
            ("一般般", "好"),
            ("不错", "好"),
            ("一般般", "差"),
            ("一般般", "好"),
            ("太差", "差"),
        ),
        knobs(),
    )
    assert [(r.text, r.where) for r in cleaned.kept] == [("不错", "f:3"), ("太差", "f:8")]
    assert tuple(cleaned.dropped) == REASONS
    assert {reason: where for reason, where in cleaned.dropped.items() if where} == {
        "empty": ["f:1"],
        "too_short": ["f:2"],
        "contradictory": ["f:4", "f:6", "f:7"],
        "duplicate": ["f:5"],
    }
    assert cleaned.examples["duplicate"] == [{"where": "f:5", "text": "不错", "kept": "f:3"}]
    assert cleaned.examples["contradictory"][1] == {"where": "f:6", "text": "一般般", "found": "差"}


def test_texts_with_other_questions_choices_or_histories_are_no_copies():
    record = Record(
        "同一段文字", "f:1", pair="谁？", labels=("0",), choices=("甲", "乙"), history="[]"
    )
    others = [{"pair": "何时？"}, {"choices": ("甲", "丙")}, {"history": '[["user", "好"]]'}, {}]
    found = [record] + [
        record._replace(where=f"f:{i}", labels=("1",) if change else ("0",), **change)
        for i, change in enumerate(others, start=2)
    ]
    assert dropped(found, label_conflicts="keep") == {"duplicate": ["f:5"]}
    assert dropped(found) == {"duplicate": ["f:5"]}
    assert dropped(found[:3], max_template=1) == {}


def test_numbers_contradict_each_other_only_if_they_differ():
    found = [Record("还不错", f"f:{i}", number=n) for i, n in enumerate((0.5, 0.5, 1.0))]
    assert dropped(found[:2]) == {"duplicate": ["f:1"]}
    assert dropped(found) == {"contradictory": ["f:0", "f:1", "f:2"]}
    assert dropped(found, label_conflicts="majority") == {
        "contradictory": ["f:2"],
        "duplicate": ["f:1"],
    }
    assert clean(found, knobs()).examples["contradictory"][2]["found"] == "1"


def test_answers_to_write_are_left_to_their_task():
    found = [
        Record(text, f"f:{i}", pair=pair)
        for i, (text, pair) in enumerate(
            [("是吗？", "是"), ("好吗？", ""), ("是吗？", "不"), ("", "好")]
        )
    ]
    assert dropped(found) == {"empty": ["f:3"]}
    labelled = [record._replace(labels=("a",)) for record in found]
    assert dropped(labelled) == {"too_short": ["f:0", "f:2"], "empty": ["f:1", "f:3"]}


def test_examples_are_three_and_short():
    cleaned = clean(records(*[("长" * 99, "好")] * 9), knobs())
    assert len(cleaned.dropped["duplicate"]) == 8
    assert [e["text"] for e in cleaned.examples["duplicate"]] == ["长" * 40] * 3


def test_length_script_and_repetition_are_dropped_when_asked_for():
    texts = ("很好" * 6, "good 好", "哈哈哈哈哈哈", "房间很干净", "666")
    found = records(*[(text, "好") for text in texts])
    assert dropped(found) == {}
    assert dropped(found, max_characters=10) == {"too_long": ["f:1"]}
    assert dropped(found, min_chinese_share=0.5) == {"not_chinese": ["f:2", "f:5"]}
    assert dropped(found, max_repetition=0.8) == {"repetitive": ["f:1", "f:3"]}
    assert dropped(found, max_repetition=0.8, max_characters=10, min_characters=6) == {
        "too_short": ["f:4", "f:5"],
        "too_long": ["f:1"],
        "repetitive": ["f:3"],
    }


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("哈哈哈哈哈哈哈", 1.0),
        ("asdasdasd", 7 / 9),
        ("很好！！！！！！", 6 / 8),
        ("这家酒店很好，这家酒店很差", 8 / 13),
        ("房间很干净", 0.0),
        ("哈哈哈哈", 0.0),
        ("", 0.0),
        ("\ufffd\ufffd好", 2 / 3),
        ("锟斤拷锟斤拷", 1.0),
        ("好\ue000\x00\ud800", 3 / 4),
        ("很好\n不错\t的", 0.0),
    ],
)
def test_repetition_is_the_share_of_copies_or_of_broken_characters(text, share):
    assert repetition(text) == pytest.approx(share)


@given(st.text(max_size=50))
def test_shares_are_shares(text):
    assert 0 <= chinese_share(text) <= 1
    assert 0 <= repetition(text) <= 1


def test_chinese_share_is_of_letters():
    assert chinese_share("iPhone手机，12元！") == 3 / 9
    assert chinese_share("〇𠮷々豈") == 1
    assert chinese_share("12！") == 0


def test_template_counts_different_texts_that_differ_in_digits_alone():
    rows = [(f"订单{i}号已发货", "好") for i in range(4)] + [("没有数字", "好")] * 9
    wheres = [f"f:{i}" for i in range(1, 5)]
    assert dropped(records(*rows), max_template=3)["template"] == wheres
    assert "template" not in dropped(records(*rows), max_template=4)
    assert "template" not in dropped(records(*rows))


CONFLICT = (("一般", "好"), ("一般", "差"), ("一般", "好"), ("平手", "好"), ("平手", "差"))


@pytest.mark.parametrize(
    ("policy", "kept", "reasons"),
    [
        ("drop", [], {"contradictory": ["f:1", "f:2", "f:3", "f:4", "f:5"]}),
        ("majority", ["f:1"], {"contradictory": ["f:2", "f:4", "f:5"], "duplicate": ["f:3"]}),
        ("keep", ["f:1", "f:2", "f:4", "f:5"], {"duplicate": ["f:3"]}),
    ],
)
def test_label_conflicts(policy, kept, reasons):
    cleaning = knobs(label_conflicts=policy)
    assert [r.where for r in clean(records(*CONFLICT), cleaning).kept] == kept
    assert dropped(records(*CONFLICT), label_conflicts=policy) == reasons


def test_majority_is_the_most_frequent_even_if_under_half():
    rows = [("一般", label) for label in "好好中差"]
    cleaned = clean(records(*rows), knobs(label_conflicts="majority"))
    assert [r.labels for r in cleaned.kept] == [("好",)]


def test_sets_of_labels_are_compared_in_any_order():
    a, b = records(("又快又好", ""), ("又快又好", ""))
    agreeing = [a._replace(labels=("快", "好")), b._replace(labels=("好", "快"))]
    assert dropped(agreeing) == {"duplicate": ["f:2"]}
    assert dropped([a._replace(labels=("快", "好")), b._replace(labels=("快",))]) == {
        "contradictory": ["f:1", "f:2"]
    }


def test_same_text_with_other_spans_is_contradictory_and_without_labels_a_duplicate():
    a, b = records(("小明在北京", ""), ("小明在北京", ""))
    assert dropped([a, b]) == {"duplicate": ["f:2"]}
    spans = (Span(0, 2, "人"), Span(3, 5, "地"))
    assert dropped([a._replace(spans=spans), b._replace(spans=spans[::-1])]) == {
        "duplicate": ["f:2"]
    }
    assert dropped([a._replace(spans=spans), b._replace(spans=spans[:1])]) == {
        "contradictory": ["f:1", "f:2"]
    }


def test_a_pair_is_one_identity_and_its_second_text_is_judged_too():
    pairs = [("假设", "是"), ("另一假设", "否"), (" 假设 ", "是"), ("", "是"), ("短", "是")]
    rows = [
        Record(text="前提", pair=pair, where=f"f:{i}", labels=(label,))
        for i, (pair, label) in enumerate(pairs, start=1)
    ]
    assert dropped(rows) == {"duplicate": ["f:3"], "empty": ["f:4"], "too_short": ["f:5"]}
    assert dropped(rows, max_characters=3)["too_long"] == ["f:2"]


NEAR = (
    ("这家位于市中心的酒店的房间很大很干净，早餐也非常丰富，值得推荐", "好"),
    ("这家位于市中心的酒店的房间很大很干净，早餐也非常丰富，值得推荐！", "差"),
    ("这家位于市中心的酒店的房间很大很干净，早餐也非常丰富，不值得推荐", "差"),
    ("位置不好找，服务态度也差，再也不来", "差"),
)


def test_near_duplicates_are_dropped_when_asked_for():
    assert dropped(records(*NEAR)) == {}
    cleaned = clean(records(*NEAR), knobs(near_duplicates="drop", threshold=0.8))
    assert len(cleaned.kept) == 2
    assert {e["kept"] for e in cleaned.examples["near_duplicate"]} == {cleaned.kept[0].where}
    assert len(clean(records(*NEAR), knobs(near_duplicates="drop", threshold=1.0)).kept) == 3


def test_near_duplicates_kept_do_not_depend_on_the_file_order():
    cleaning = knobs(near_duplicates="drop")
    kept = {r.text for r in clean(records(*NEAR), cleaning).kept}
    assert kept == {r.text for r in clean(records(*NEAR[::-1]), cleaning).kept}


def test_near_duplicates_of_a_pair_need_two_similar_texts():
    premise, other = NEAR[0][0], NEAR[3][0]
    rows = [
        Record(text=premise, pair=pair, where=f"f:{i}")
        for i, pair in enumerate([other, other + "了", "房间很大"])
    ]
    cleaned = clean(rows, knobs(near_duplicates="drop"))
    assert [r.where for r in cleaned.kept] == ["f:0", "f:2"]


def test_conflicting_labels_that_are_kept_outlive_the_near_duplicates():
    rows = [("这家酒店很好", "好"), ("这家酒店很好", "差"), ("这家酒店很好！", "好")]
    cleaned = clean(records(*rows), knobs(near_duplicates="drop", label_conflicts="keep"))
    assert [r.where for r in cleaned.kept] == ["f:1", "f:2"]


def test_the_given_test_split_keeps_its_copies_and_its_labels():
    a, b, c, d = records(("不错", "好"), ("不错", "好"), ("一般", "好"), ("一般", "差"))
    found = [a._replace(split="train"), b._replace(split="test")]
    assert dropped(found) == {"duplicate": ["f:1"]}
    found = [c._replace(split="train"), d._replace(split="test")]
    assert dropped(found) == {}
    splits = ("train", "train", "validation", "test")
    near = [r._replace(split=name) for r, name in zip(records(*NEAR), splits, strict=True)]
    cleaned = clean(near, knobs(near_duplicates="drop"))
    assert [r.where for r in cleaned.kept] == ["f:3", "f:4"]


@given(
    st.text(" \u3000\n好a", max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=3),
)
def test_spans_cover_the_same_characters_after_stripping(text, bounds):
    spans = [Span(min(a, b), max(a, b), "x") for a, b in bounds if max(a, b) <= len(text)]
    record = strip(Record(text=text, where="f:1", spans=tuple(spans), pair=" 对 "))
    assert [record.text[s.start : s.stop] for s in record.spans] == [
        text[s.start : s.stop] for s in spans
    ]
    assert record.pair == "对"
    if not spans:
        assert record.text == text.strip()


ROWS = st.lists(st.tuples(st.text("好差 ", max_size=3), st.sampled_from("ab")))
OPTIONS = st.fixed_dictionaries(
    {
        "min_characters": st.integers(0, 3),
        "label_conflicts": st.sampled_from(["drop", "majority", "keep"]),
        "near_duplicates": st.sampled_from(["keep", "drop"]),
    }
)


@given(ROWS, OPTIONS)
def test_every_record_is_kept_or_counted_once_and_clean_data_stays(rows, options):
    kept, counted, *_ = clean(records(*rows), knobs(**options))
    wheres = [record.where for record in kept] + [where for d in counted.values() for where in d]
    assert sorted(wheres) == sorted(record.where for record in records(*rows))
    again, nothing, *_ = clean(kept, knobs(**options | {"label_conflicts": "keep"}))
    assert again == kept
    assert not any(nothing.values())
