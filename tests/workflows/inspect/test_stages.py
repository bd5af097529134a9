"""What --mode=inspect prints: true to the stages, and every mark where it belongs."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from input_pipeline.batches.augmentation import Augmenter
from input_pipeline.batches.template import Encoder
from input_pipeline.corpus.normalization import Normalizer
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.lazy import tf
from input_pipeline.records import Record, Span
from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.vocabulary import train_tokenizer
from workflows.inspect.stages import changes, mark_spans, show_examples, show_records

TEXT = st.text("前后酒店，a \n", max_size=12)


@pytest.fixture(scope="module")
def tokenizer(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("inspection") / "tokenizer.model"
    train_tokenizer([text for text, _ in reviews], path, vocab_size=400)
    return load_tokenizer(path, marks="both")


def make_examples(texts, **fields):
    values = {"labels_N": np.arange(len(texts), dtype=np.int32) % 2, "ids_N": np.arange(len(texts))}
    return Examples(texts_N=object_array(texts), **(values | fields))


def show(examples, tokenizer, *, max_length=64, template="评论：{text}\n很", count=2, **rates):
    config = common.get_config()
    config.augmentation.update(rates)
    config.data.template, config.layout.max_length = template, max_length
    config.inspect.update(examples=count)
    return list(show_examples(config, examples, tokenizer, labels=("坏", "好")))


def value(lines, name):
    """Returns what stands behind the first line's `name`."""
    return (
        next(line for line in lines if line.strip().startswith(name)).strip()[len(name) :].strip()
    )


@given(before=TEXT, after=TEXT)
def test_both_texts_can_be_read_from_the_changes(before, after):
    line = changes(before, after)
    for text, side in ((before, 1), (after, 2)):
        assert re.sub("⟦(.*?)→(.*?)⟧", rf"\{side}", line).replace("⏎", "\n") == text


def test_changes_are_marked_where_they_are():
    assert changes("房间很好！！！", "房间好！吧") == "房间⟦很→⟧好！⟦！！→吧⟧"
    assert changes("我离开酒店时", "我开离酒店时") == "我⟦离开→开离⟧酒店时"
    assert changes("a\u200bb\u3000", "ab") == "a⟦‹U+200B›→⟧b⟦‹U+3000›→⟧"
    assert changes("好" * 500, "好" * 500).endswith("… 100 more")


def test_spans_are_marked_also_where_they_nest_and_touch():
    spans = [(0, 4, "place"), (0, 2, "country"), (4, 6, "word")]
    assert mark_spans("中国北京欢迎你", spans) == "【【中国|country】北京|place】【欢迎|word】你"
    assert mark_spans("", []) == ""
    assert mark_spans("好" * 400 + "江泽民", [(400, 403, "person")]).endswith("… 3 more")


def test_records_show_what_recoding_changes_and_why_cleaning_drops():
    records = [
        Record("酒店很好！！！！！！", "a.csv:2", labels=("好",)),
        Record("江泽民  在北京", "a.csv:3", spans=(Span(0, 3, "person"), Span(6, 8, "place"))),
        Record("x", "a.csv:4", labels=("坏",)),
    ]
    data = common.get_config().data
    data.normalization = ("repeated_punctuation", "chinese_spaces")
    normalizer = Normalizer(data.normalization)
    first, second, third = (
        block.split("\n") for block in "\n".join(show_records(records, data)).split("\n\n")
    )
    assert first[0] == "── a.csv:2 · 好 ──"
    assert changes(records[0].text, normalizer.text(records[0].text)) in first[2]
    assert value(second, "text") == "【江泽民|person】  在【北京|place】"
    assert second[3].strip() == "【江泽民|person】在【北京|place】"
    assert value(second, "cleaning") == "kept"
    assert value(third, "cleaning") == "dropped: too_short"


def test_all_texts_of_a_record_are_shown_with_what_recoding_changes(tokenizer):
    data = common.get_config().data
    data.normalization = ("repeated_punctuation",)
    history = json.dumps([["user", "你好！！！！"]])
    records = [
        Record("问！！！！", "a:1", choices=("甲", "乙！！！！")),
        Record("问", "a:2", pair="是", negatives=("丙！！！！", "丁"), history=history),
    ]
    first, second = "\n".join(show_records(records, data)).rstrip().split("\n\n")
    for block, names in ((first, ["text", "choice 1"]), (second, ["before, user", "negative"])):
        rows = block.split("\n")
        for name in names:
            row = next(i for i, line in enumerate(rows) if line.startswith(f"{name} "))
            assert rows[row].endswith("！！！！") and "⟦" in rows[row + 1]
    assert value(first.split("\n"), "choice 0") == "甲"
    assert sum(line.startswith("negative ") for line in second.split("\n")) == 2
    others = {"negatives_N": object_array([("丙", "丁"), ()])}
    lines = show(make_examples(["问", "再问"], **others), tokenizer)
    assert [line.split() for line in lines if "negative" in line] == [
        ["negative", x] for x in "丙丁"
    ]


def test_each_op_and_the_outcome_are_those_of_training(tokenizer, reviews):
    texts = [text for text, _ in reviews[:20]]
    rates = {"deletion_rate": 0.2, "swap_rate": 0.2, "punctuation_rate": 0.2}
    lines = show(make_examples(texts), tokenizer, **rates)
    config = common.get_config()
    config.augmentation.update(rates)
    augmenter = Augmenter(make_examples(texts), config.augmentation, seed=0)
    result = augmenter(tf.constant([0, 1], tf.int64), tf.constant([0, 0], tf.int64))
    blocks = "\n".join(lines[:-1]).split("\n\n")
    for block, text, final in zip(blocks, texts[:2], result.texts_B.numpy(), strict=True):
        rows = block.split("\n")
        assert value(rows, "text") == text
        assert value(rows, "augmented") == final.decode()
        steps = [row.split() for row in rows if "⟦" in row]
        assert {op for op, _ in steps} <= set(augmenter.ops) == {"deletion", "swap", "punctuation"}
        for _, line in steps:
            old, new = (re.sub("⟦(.*?)→(.*?)⟧", rf"\{side}", line) for side in (1, 2))
            assert old == text
            text = new
        assert text == final.decode()


def test_tokens_are_the_encoders_with_template_marks_and_cut(tokenizer):
    texts = ["房间很好，值得推荐！" * 4, "好"]
    lines = show(make_examples(texts), tokenizer, max_length=20)
    line = value(lines, "20 tokens")
    before, kept, after = line.split("┃")
    kept, cut, end = kept.split("✂")
    encoded = Encoder(tokenizer, "评论：{text}\n很", max_length=20)(texts)
    pieces = [tokenizer.piece(i) for i in encoded.tokens[:20]]
    shown = [*before.split("│"), *kept.split("│"), *after.split("│")]
    assert [piece.replace("⏎", "\n") for piece in shown] == pieces
    assert (before[:5], end) == ("<bos>", "")
    whole = len(tokenizer.piece_ids(texts[0]))
    assert cut.endswith(f"… {whole - len(kept.split('│'))} tokens cut")
    assert "✂" not in "\n".join(lines[lines.index("") :])


@pytest.mark.parametrize("max_length", [14, 64])
def test_pairs_stand_beside_each_other_and_are_cut_apart(tokenizer, max_length):
    pairs = object_array(["价格好" * 6, "很好"])
    examples = make_examples(["房间很好", "好"], pairs_N=pairs)
    lines = show(examples, tokenizer, template="{text}，{pair}", max_length=max_length)
    assert value(lines, "pair") == pairs[0]
    row = next(line for line in lines if "┃" in line)
    _, text, between, pair, _ = row.split("┃")
    assert text.replace("│", "") == "房间很好"
    assert between == "，"
    assert ("✂" in pair) == (max_length == 14)


def test_no_example_is_shown_where_none_is_asked_for(tokenizer):
    assert show(make_examples(["好的"]), tokenizer, count=0) == []


def test_tokens_in_spans_and_masked_labels_are_marked(tokenizer):
    spans = Ragged(np.array([[2, 4, 0], [0, 1, 1]], np.int32), np.array([0, 1, 2]))
    fields = {"spans": spans, "span_labels": ("thing", "x")}
    labels = np.array([-1, 1], np.int32)
    examples = make_examples(["我的房间很好", "𠮷野"], labels_N=labels, **fields)
    first, second = ("\n".join(show(examples, tokenizer, template="{text}")).split("\n\n"))[:2]
    assert "masked" in first
    assert value(first.split("\n"), "loss") == "does not count"
    assert value(first.split("\n"), "text") == "我的【房间|thing】很好"
    marked = [piece for piece in re.split("[│┃]", first) if piece.startswith("*")]
    assert "".join(marked).replace("*", "") == "房间"
    assert second.count("*<0x") == 4  # the bytes of 𠮷
    assert value(second.split("\n"), "loss") == "counts"


def test_words_and_drawn_segmentations_are_shown(tokenizer):
    words = Ragged(np.array([2, 4, 1], np.int32), np.array([0, 2, 3]))
    examples = make_examples(["房间很好", "好"], words=words)
    lines = show(examples, tokenizer, sampling_rate=0.999999, sampling_alpha=0.9)
    assert value(lines, "words") == "房间│很好"
    assert any(re.match(r"\d+ drawn", line) for line in lines)
