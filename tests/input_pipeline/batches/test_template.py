"""Templates: what stands where around texts and pairs, with which types, and what is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.batches.template import Encoder
from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.vocabulary import train_tokenizer

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "好", "差", "很", "，"]


@pytest.fixture(scope="module")
def trained_path(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "tokenizer.model"
    train_tokenizer([text for text, _ in reviews], path, vocab_size=400)
    return path


@pytest.fixture(scope="module")
def trained(trained_path):
    return load_tokenizer(trained_path, marks="both")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY), "utf-8")
    return load_tokenizer(path)


def test_marks_types_and_prefix_stand_around_pairs_as_bert_has_them(bert):
    encoder = Encoder(bert, "很{text}，{pair}很", max_length=20, prefix_ids=(9, 10))
    encoded = encoder(["好好", ""], ["差", "差差"])
    first, second = np.split(np.arange(len(encoded.tokens)), [encoded.lengths_B[0]])
    names = [*VOCABULARY, "v0", "v1"]
    assert [names[i] for i in encoded.tokens[first]] == [
        *("v0", "v1", "[CLS]", "很", "好", "好", "[SEP]"),
        *("，", "差", "很", "[SEP]"),
    ]
    assert encoded.types[first].tolist() == [0] * 7 + [1] * 4
    assert encoded.types[second].tolist() == [0] * 5 + [1] * 5
    assert encoded.types.dtype == np.int32
    single = Encoder(bert, "{text}", max_length=20)(["好"])
    assert [names[i] for i in single.tokens] == ["[CLS]", "好", "[SEP]"]
    assert not single.types.any()


def test_types_follow_the_cut(bert):
    encoded = Encoder(bert, "{text}{pair}", max_length=8)(["好" * 9], ["差" * 9])
    assert [VOCABULARY[i] for i in encoded.tokens] == [
        *("[CLS]", "好", "好", "好", "[SEP]", "差", "差", "[SEP]")
    ]
    assert encoded.types.tolist() == [0] * 5 + [1] * 3


def test_a_family_without_types_has_none(trained):
    encoded = Encoder(trained, "{text}{pair}", max_length=20)(["好"], ["差"])
    assert not encoded.types.any()
    assert len(encoded.types) == len(encoded.tokens)


def test_a_long_text_is_cut_and_its_template_is_not(trained):
    encoder = Encoder(trained, "评论：{text}\n总的来说，很", max_length=40)
    encoded = encoder(["房间" * 100, "好", ""])
    first, second, third = np.split(encoded.tokens, np.cumsum(encoded.lengths_B)[:-1])
    assert encoded.cut_B.tolist() == [True, False, False]
    assert len(first) == 40
    for ids in (first, second, third):
        assert (ids[0], ids[-1]) == (trained.bos_id, trained.eos_id)
        assert trained.decode(ids).startswith("评论：")
        assert trained.decode(ids).endswith("\n总的来说，很")
    assert "房间房间" in trained.decode(first)
    assert trained.decode(second) == "评论：好\n总的来说，很"


@pytest.mark.parametrize("template", ["", "评论：", "{text}{text}", "{Text}"])
def test_a_template_without_exactly_one_text_is_refused(trained, template):
    with pytest.raises(ValueError, match=r"data\.template=.* exactly once"):
        Encoder(trained, template, max_length=40)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(12, 50))
@settings(max_examples=50)
def test_of_a_pair_the_longer_text_is_cut_first_and_no_room_is_wasted(
    trained, first, second, max_length
):
    encoder = Encoder(trained, "{text}\n{pair}", max_length=max_length)
    texts = ["好" * first, "差" * second]
    good, bad = (trained.piece_ids(text) for text in texts)
    encoded = encoder(texts[:1], texts[1:])
    newline = trained.piece_ids("\n")
    tokens = encoded.tokens.tolist()
    kept_good = sum(token in good for token in tokens)
    kept_bad = sum(token in bad for token in tokens)
    start, end = [trained.bos_id], [trained.eos_id]
    assert tokens == start + good[:kept_good] + newline + bad[:kept_bad] + end
    assert len(tokens) == min(max_length, len(good) + len(bad) + 2 + len(newline))
    cut = kept_good < len(good), kept_bad < len(bad)
    assert encoded.cut_B.tolist() == [any(cut)]
    if any(cut):  # the one that lost something is not the shorter one by more than rounding
        assert kept_good >= kept_bad - 1 if cut[0] else kept_bad >= kept_good - 1


def test_pairs_and_their_template_belong_together(trained):
    with pytest.raises(ValueError, match=r"data have pair, but data\.template is for text"):
        Encoder(trained, "{text}", max_length=8)(["好"], ["差"])
    with pytest.raises(ValueError, match=r"no second text, but .* is for text and pair"):
        Encoder(trained, "{text}{pair}", max_length=8)(["好"])


def test_a_template_that_leaves_no_room_is_refused(trained):
    with pytest.raises(ValueError, match=r"layout\.max_length=3 leaves no room"):
        Encoder(trained, "评论：{text}\n总的来说，很", max_length=3)


def test_an_example_without_any_token_is_refused(trained_path):
    bare = load_tokenizer(trained_path, marks="none")
    with pytest.raises(ValueError, match="text 1 of 2 is empty"):
        Encoder(bare, "{text}", max_length=8)(["好", ""])
