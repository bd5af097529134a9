"""Recoding: every op and composition, and the way of spans through them."""

import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from input_pipeline.alignment import Alignment, Edit, apply_edits, minimal
from input_pipeline.corpus import normalization
from input_pipeline.corpus.normalization import Normalizer
from input_pipeline.records import Record, Span

OPS = tuple(normalization._OPS)
# Marks of all ops, and what Unicode makes hard: joiners, flags, tags, jamo, stacked accents, RTL.
HARD = (
    "好 ,?!:;()（）[]，。、…—．～%＠ＡｚＺ９０　"
    "\u200b\u200c\u200d\u200e\ufeff\xad\ufe0f\ufe0e\ufe00"
    "\U000e0101❤😀👩👨🏽🏴🇨🇳\U000e0067\U000e007f1#*\u20e3©™㎡①ﬁ⼀豈ｱㄱ각각e\u0301\u0323"
    "\u1e9b\u0344\u0f73שלום\u064b爲裏説吿乾髮头发软件打印机印表機軟體滑鼠里面皇后人工智能台湾"
    "İΣßǅ..。。!!——~~aaaa哈哈哈哈@w:/.htps\t\n\r\x00\x85\u2028\u3000\xa0\U00020bb7\U0001d400"
)
WORDS = (
    *(
        "软件",
        "打印机",
        "以太网",
        "人工智能",
        "鼠标",
        "头发",
        "干净",
        "皇后",
        "軟體",
        "印表機",
        "滑鼠",
    ),
    *(
        "記憶體",
        "http://t.cn/a",
        "www.b.c",
        "@小明",
        "哈哈哈哈哈",
        "!!!!",
        "。。。",
        "......",
        "，，",
    ),
    *(
        "好,",
        "(好)",
        ":)",
        "：",
        "  ",
        "\n \n",
        "e\u0301",
        "👩\u200d💻",
        "🇨🇳",
        "1\ufe0f\u20e3",
        "❤\ufe0f",
    ),
)
TEXTS = st.one_of(
    st.text(st.sampled_from(HARD), max_size=24),
    st.lists(st.sampled_from(WORDS) | st.sampled_from(HARD), max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=24),
)
COMPOSITIONS = st.lists(st.sampled_from(OPS), max_size=6).map(tuple)


def normalized(op: str, text: str) -> str:
    return Normalizer([op]).text(text)


def check_alignment(ops: tuple[str, ...], text: str) -> None:
    """The properties that hold for every op and composition."""
    normalizer = Normalizer(ops)
    result, alignment = normalizer.align(text)
    assert result == normalizer.text(text)
    starts, stops = alignment.starts_N, alignment.stops_N
    assert len(starts) == len(stops) == len(result)
    assert (starts < stops).all()
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(stops) >= 0).all()
    assert starts.min(initial=0) >= 0
    assert stops.max(initial=0) <= len(text)
    for start in range(len(result)):
        for stop in range(start + 1, len(result) + 1):
            source = alignment.to_source(start, stop)
            back = alignment.to_normalized(*source)
            assert back[0] <= start < stop <= back[1]
    for start in range(len(text)):  # and the other way round, for what is not dropped
        first, last = alignment.to_normalized(start, start + 1)
        if first < last:
            source = alignment.to_source(first, last)
            assert source[0] <= start < source[1]
        else:
            assert not ((starts <= start) & (start < stops)).any()
    if result == text:
        assert alignment.to_normalized(0, len(text)) == (0, len(text))


@pytest.mark.parametrize("op", OPS)
def test_every_span_of_the_recoded_text_maps_back_to_what_it_came_from(op):
    @settings(max_examples=60)
    @given(TEXTS)
    @example("")
    def check(text):
        check_alignment((op,), text)

    check()


@settings(max_examples=200)
@given(COMPOSITIONS, TEXTS)
def test_spans_map_back_through_any_composition_of_ops(ops, text):
    check_alignment(ops, text)


@pytest.mark.parametrize("op", OPS)
def test_characters_in_no_edit_are_mapped_to_themselves(op):
    @settings(max_examples=60)
    @given(TEXTS)
    def check(text):
        step = normalization._step(op)
        edits = list(minimal(text, step.edits(text)))
        assert all(e.start < e.stop and text[e.start : e.stop] != e.replacement for e in edits)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(edits))
        result, alignment = Normalizer([op]).align(text)
        assert result == apply_edits(text, edits)
        assert bool(edits) == (result != text)
        edited = {place for e in edits for place in range(e.start, e.stop)}
        for place in set(range(len(text))) - edited:
            first, last = alignment.to_normalized(place, place + 1)
            assert result[first:last] == text[place]

    check()


LOCAL = (
    *("halfwidth", "halfwidth_punctuation", "variants", "compatibility", "lower"),
    *("emoji:mask", "repeated_punctuation", "traditional_phrases"),
)


@pytest.mark.parametrize("op", LOCAL)
def test_recoding_what_an_edit_replaced_gives_its_replacement(op):
    @settings(max_examples=80)
    @given(TEXTS)
    def check(text):
        for start, stop, replacement in normalization._step(op).edits(text):
            assert normalized(op, text[start:stop]) == replacement

    check()


@pytest.mark.parametrize("op", [op for op in OPS if "simplified" not in op and "tradit" not in op])
def test_an_op_applied_again_changes_nothing(op):
    @settings(max_examples=100)
    @given(TEXTS)
    def check(text):
        once = normalized(op, text)
        assert normalized(op, once) == once

    check()


def test_a_colon_before_a_parenthesis_that_turns_wide_is_no_emoticon():
    assert normalized("fullwidth_punctuation", "(乾:) 好:)") == "（乾：） 好:)"


UNTOUCHED = {
    "halfwidth_punctuation": "abc, 大家好 今天很好!",
    "traditional": "abc 2024, 大家好，今天（日）很好！",
    "traditional_phrases": "abc 2024, 大家好，今天（日）很好！",
}


@pytest.mark.parametrize("op", OPS)
def test_text_without_targets_keeps_identity_alignment(op):
    text = UNTOUCHED.get(op, "abc 2024 (x), 12:30 大家好，今天（周一）很好！:)")
    result, alignment = Normalizer([op]).align(text)
    assert result == text
    assert alignment.starts_N.tolist() == list(range(len(text)))
    assert alignment.stops_N.tolist() == list(range(1, len(text) + 1))


@pytest.mark.parametrize(
    ("op", "text", "expected"),
    [
        ("control", "\ufeffa\u200eb\xad\x07\tc\n❤\ufe0f葛\U000e0100", "ab\tc\n❤\ufe0f葛"),
        ("zero_width", "a\u200bb\u200dc👩\u200d💻", "abc👩\u200d💻"),
        ("halfwidth", "ＡＢ１．５％　，。？！：；（）", "AB1.5% ，。？！：；（）"),
        ("halfwidth_punctuation", "好，（真）。“啊”", '好,(真)."啊"'),
        ("fullwidth_punctuation", "好,真的?!(是)3,5 f(x) a?", "好，真的？！（是）3,5 f(x) a?"),
        ("fullwidth_punctuation", "如下:(没有) 好:) 哭:( 好!:D", "如下：（没有） 好:) 哭:( 好！:D"),
        ("simplified", "頭髮乾淨，皇后在後面", "头发干净，皇后在后面"),
        ("traditional", "头发干净，皇后在后面", "頭髮乾淨，皇后在後面"),
        ("simplified_phrases", "用滑鼠和印表機", "用鼠标和打印机"),
        ("simplified_phrases", "显著的核心，塔吉克斯坦", "显著的核心，塔吉克斯坦"),
        ("traditional_phrases", "用鼠标和打印机", "用滑鼠和印表機"),
        ("variants", "爲什麼説敎，户着温", "為什麼說教，户着温"),
        ("compatibility", "㎡①ﬁ⼀豈，…Ａ（ㅠㅠ", "m21fi一豈，…Ａ（ㅠㅠ"),
        ("nfc", "e\u0301\u1100\u1161\u212b", "é가Å"),
        ("lower", "Ａb İΣ", "ａb i\u0307σ"),
        ("repeated_punctuation", "好！！！？？!?,,。。。...", "好！？!?,……"),
        ("repeated_punctuation", "a.b..c...————…", "a.b..c……——…"),
        ("repeated_characters", "哈哈哈哈哈goooood10000----", "哈哈哈goood10000----"),
        ("urls:drop", "看http://t.cn/zA?b=1,好www.a.com。", "看,好。"),
        ("urls:mask", "看HTTPS://t.cn/zA，好", "看链接，好"),
        ("mentions:drop", "@小明 你好a@b.cn ＠x_y-1：", " 你好a@b.cn ："),
        ("mentions:drop", "@_@ ＡＢ＠ＣＯＭ //@a_:", "@_@ ＡＢ＠ＣＯＭ //:"),
        ("mentions:mask", "@小明：好", "@用户：好"),
        ("emoji:drop", "好👩\u200d💻🇨🇳1\ufe0f\u20e3❤\ufe0f❤©1#👍🏽", "好❤©1#"),
        ("emoji:drop", "🇨😀🇳 ©😀\ufe0f\ufe0f 1😀\u20e3", " © 1"),
        ("emoji:mask", "好👩\u200d💻!", "好表情!"),
        (
            "chinese_spaces",
            "你 好\u3000，ok 好 “是” “no” a\n好 \n",
            "你好，ok 好“是” “no” a\n好 \n",
        ),
        ("whitespace", " \ta \t b\r\n c\u3000\u3000d\n", "a b\nc d"),
    ],
)
def test_ops_do_what_their_names_say(op, text, expected):
    assert normalized(op, text) == expected


def test_a_word_that_changes_length_keeps_one_range():
    result, alignment = Normalizer(["traditional_phrases"]).align("新的以太网和打印机。")
    assert result == "新的乙太網路和印表機。"
    for place in range(2, 6):
        assert alignment.to_source(place, place + 1) == (2, 5)
    assert alignment.to_normalized(3, 4) == (2, 6)
    assert alignment.to_normalized(9, 10) == (10, 11)


def test_what_an_edit_appends_comes_from_the_character_before_it():
    result, alignment = Normalizer(["simplified_phrases"]).align("來自塔吉克。")
    assert result == "来自塔吉克斯坦。"
    assert alignment.to_source(5, 7) == (4, 5)
    assert alignment.to_normalized(2, 5) == (2, 7)


def test_dropped_and_empty_spans_are_empty_ranges_at_their_place():
    alignment = Normalizer(["urls:drop"]).align("看http://a.b好")[1]
    assert alignment.to_normalized(1, 11) == (1, 1)
    assert alignment.to_normalized(3, 3) == (1, 1)
    assert alignment.to_source(1, 1) == (1, 1)
    assert Normalizer(["emoji:drop"]).align("😀")[1].to_normalized(0, 1) == (0, 0)


def test_composition_composes_ranges():
    first = Alignment.from_edits(4, [Edit(1, 3, "xyz")])
    second = Alignment.from_edits(5, [Edit(0, 2, "k"), Edit(3, 4, "")])
    both = first.then(second)
    assert both.starts_N.tolist() == [0, 1, 3]
    assert both.stops_N.tolist() == [3, 3, 4]


def test_records_are_recoded_with_their_spans_and_counted():
    record = Record(
        text="我在　臺灣http://a.b用軟體!!!",
        where="a.txt:3",
        pair="軟體",
        spans=(Span(3, 5, "LOC"), Span(5, 15, "URL"), Span(16, 18, "WORD")),
    )
    ops = ("chinese_spaces", "urls:drop", "simplified", "repeated_punctuation")
    normalizer = Normalizer(ops)
    recoded, lost = normalizer.record(record)
    assert lost == 1
    assert recoded.text == "我在台湾用软体!"
    assert recoded.pair == "软体"
    assert [recoded.text[s.start : s.stop] for s in recoded.spans] == ["台湾", "软体"]
    assert [s.label for s in recoded.spans] == ["LOC", "WORD"]
    report = json.loads(json.dumps(normalizer.counts))
    assert list(report) == list(ops)
    assert report["urls:drop"]["dropped"] == 10
    assert report["simplified"]["texts"] == 2
    assert report["simplified"]["changed"] == 6
    example = report["urls:drop"]["examples"][0]
    assert example == {
        "where": "a.txt:3",
        "before": "我在臺灣http://a用軟體!!!",
        "after": "我在臺灣用軟體!!!",
    }


def test_three_examples_at_most_each_short():
    normalizer = Normalizer(["urls:mask"])
    for line in range(9):
        normalizer.record(Record(text="好" * 30 + "http://a.b/" + "c" * 50, where=f"f:{line}"))
    examples = normalizer.counts["urls:mask"]["examples"]
    assert [e["where"] for e in examples] == ["f:0", "f:1", "f:2"]
    assert all(len(e["before"]) <= 20 and len(e["after"]) <= 20 for e in examples)


def test_records_that_nothing_touches_stay_as_they_are():
    record = Record(text="好", where="f:1", spans=(Span(0, 1, "A"),), labels=("x",))
    assert Normalizer(["control"]).record(record) == (record, 0)


def test_long_text_without_a_stop_is_aligned_in_time():
    text = "用鼠标和打印机打软件" * 2000
    result, alignment = Normalizer(["traditional_phrases"]).align(text)
    assert result.endswith("打軟體")
    assert alignment.to_source(len(result) - 2, len(result)) == (len(text) - 2, len(text))


def test_without_opencc_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(ImportError, match=r"data\.normalization needs OpenCC: pip install opencc"):
        normalization._load_opencc("s2t")
