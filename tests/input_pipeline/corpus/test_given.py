"""Rows to predict on: what is read of them leads back to what was given."""

import itertools
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from input_pipeline.corpus.preparation import read_unlabelled

OPS = ("control", "zero_width", "halfwidth", "simplified", "compatibility", "nfc", "lower")
OPS += ("repeated_punctuation", "urls:mask", "emoji:drop", "chinese_spaces", "whitespace")
NOISE = ("\u3000", " ", "\t", "\r\n", "\u200b", "\ufeff", "\u0301", "e\u0301", "\u00a0", "\u0130")
NOISE += (
    "Ａ１",
    "㎡",
    "ﬁ",
    "！！！",
    "……。",
    "張三",
    "http://a.cn/b ",
    "\U0001f468\u200d\U0001f469",
)
MARKS = "甲乙丙丁戊己庚辛"  # which no op changes
GAPS = st.lists(
    st.lists(st.sampled_from(NOISE), max_size=4).map("".join), min_size=1, max_size=len(MARKS)
)


def read(folder, texts, ops):
    data = common.get_config().data
    data.normalization = ops
    path = folder / "new.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return read_unlabelled(str(path), data)


@given(st.lists(GAPS, min_size=1, max_size=3), st.sets(st.sampled_from(OPS)))
@settings(max_examples=100)
def test_what_is_read_stands_in_the_text_as_it_was_given(tmp_path_factory, gaps, chosen):
    texts = ["".join(itertools.chain(*zip(row, MARKS, strict=False))) + row[0] for row in gaps]
    ops = tuple(op for op in OPS if op in chosen)
    examples = read(tmp_path_factory.mktemp("given"), texts, ops)
    assert list(examples.as_given().texts_N) == texts
    for row, (text, found) in enumerate(zip(texts, examples.texts_N, strict=True)):
        places = [examples.span_as_given(row, i, i + 1) for i in range(len(found))]
        assert places == sorted(places)
        assert all(0 <= start < stop <= len(text) for start, stop in places)
        marks = [mark for mark in MARKS if mark in text]
        for first, last in itertools.product(marks, marks):
            if first <= last and found.index(first) <= found.index(last):
                span = found.index(first), found.index(last) + 1
                expected = text[text.index(first) : text.index(last) + 1]
                start, stop = examples.span_as_given(row, *span)
                assert text[start:stop] == expected


def test_rows_that_are_read_as_they_are_need_no_way_back(tmp_path):
    examples = read(tmp_path, ["我在北京见到张三", "好"], ("halfwidth",))
    assert examples.given_N is None and examples.as_given() is examples
    assert examples.span_as_given(0, 2, 4) == (2, 4)
    examples = read(tmp_path, ["　　我在北京见到张三", "好"], ())
    assert list(examples.texts_N) == ["我在北京见到张三", "好"]
    assert examples.span_as_given(0, 2, 4) == (4, 6)
    assert examples.take(np.array([1])).span_as_given(0, 0, 1) == (0, 1)
