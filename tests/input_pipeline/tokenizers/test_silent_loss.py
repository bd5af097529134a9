"""The silent-loss meter: what it counts, on tokenisers that do harm and that do not."""

import io
import json
from unittest import mock

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.tokenizers import silent_loss
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from input_pipeline.tokenizers.silent_loss import measure

CORPUS = ["这家酒店，很好！下次还来。", "房间太小；不好？", "abc 1 2 m , ! ? ; . 好好好 酒店"] * 20


def tokenizer(**options) -> SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return SentencePieceTokenizer(model.getvalue(), file="test.model")


@pytest.fixture(scope="module")
def rewriting() -> SentencePieceTokenizer:
    """As XLM-R's: nmt_nfkc, a space put before, runs of spaces shortened, no bytes."""
    return tokenizer(vocab_size=60, model_type="unigram", normalization_rule_name="nmt_nfkc")


@pytest.fixture(scope="module")
def faithful() -> SentencePieceTokenizer:
    """Identity, and bytes for what the vocabulary lacks."""
    return tokenizer(
        vocab_size=320,
        model_type="bpe",
        normalization_rule_name="identity",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )


def found(loss: silent_loss.SilentLoss) -> dict[tuple[str, str], tuple[int, str]]:
    return {(w.what, w.character): (w.count, w.becomes) for w in loss.worst}


def test_reveals_that_nmt_nfkc_rewrites_chinese_punctuation(rewriting):
    loss = measure(["好，很好！", "房间，太小；", "好"], rewriting)
    assert (loss.texts, loss.characters) == (3, 12)
    assert (loss.changed, loss.dropped, loss.unknown, loss.byte_fallback) == (4, 0, 0, 0)
    assert found(loss) == {
        ("changed", "，"): (2, ","),
        ("changed", "！"): (1, "!"),
        ("changed", "；"): (1, ";"),
    }
    assert loss.worst[0].code == "U+FF0C"
    assert loss.prose() == (
        "Of 12 characters in 3 texts, 4 (33.3%) are changed by the tokeniser: "
        "，→, (2) ！→! (1) ；→; (1)."
    )


def test_drops_and_several_characters_for_one_are_told_apart(rewriting):
    loss = measure(["  好  ㎡\x07酒ｶﾞ店\x07 "], rewriting)
    kinds = found(loss)
    assert kinds["changed", "㎡"] == (1, "m2")
    assert kinds["changed", "ｶ"] == (1, "ガ")  # of which the mark after it becomes a part
    assert kinds["dropped", "ﾞ"] == (1, "")
    assert kinds["dropped", " "][0] == 4  # two at the start, one of a run, one at the end
    assert kinds["dropped", "\x07"] == (2, "")
    assert "7 (53.8%) are dropped by the tokeniser: U+0020 (4) U+0007 (2) ﾞ (1)" in loss.prose()


def test_unknown_characters_are_counted_one_by_one(rewriting):
    loss = measure(["好龘龘靐。", "酒龘店"], rewriting)
    assert loss.unknown == 4
    assert found(loss) == {("unknown", "龘"): (3, ""), ("unknown", "靐"): (1, "")}


def test_bytes_are_counted_as_the_characters_that_they_spell(faithful):
    loss = measure(["好龘😀龘，", "酒店　"], faithful)
    assert (loss.changed, loss.dropped, loss.unknown, loss.byte_fallback) == (0, 0, 0, 4)
    assert found(loss) == {
        ("byte_fallback", "龘"): (2, ""),
        ("byte_fallback", "😀"): (1, ""),
        ("byte_fallback", "\u3000"): (1, ""),
    }
    assert "4 (50%) fall back to bytes: 龘 (2) U+3000 (1) 😀 (1)" in loss.prose()


def test_nothing_lost_is_said_so(faithful, rewriting):
    loss = measure(["这家 酒店，很好！", ""], faithful)
    assert loss.worst == ()
    assert loss.prose() == "Of 9 characters in 2 texts, the tokeniser keeps all as they are."
    assert measure(["好 好"], rewriting).worst == ()
    assert measure([], faithful).prose().startswith("Of 0 characters")


def test_frequent_losses_do_not_hide_those_of_another_kind(rewriting, monkeypatch):
    monkeypatch.setattr(silent_loss, "_LISTED", 1)
    loss = measure(["，" * 9 + "！" * 8 + "龘龘靐"], rewriting)
    assert [(w.what, w.character) for w in loss.worst] == [("changed", "，"), ("unknown", "龘")]
    assert "17 (85%) are changed by the tokeniser: ，→, (9); 3 (15%) are unknown to" in loss.prose()


def test_batches_add_up(rewriting, monkeypatch):
    texts = [f"好，龘{'！' * (n % 3)}" for n in range(25)]
    whole = measure(texts, rewriting)
    monkeypatch.setattr(silent_loss, "_BATCH", 4)
    assert measure(texts, rewriting) == whole


def test_json_holds_counts_shares_and_the_worst(rewriting):
    report = json.loads(json.dumps(measure(["好，很好"], rewriting).to_json()))
    assert report["changed"] == 1
    assert report["changed_share"] == 0.25
    assert report["worst"] == [
        {"character": "，", "code": "U+FF0C", "what": "changed", "count": 1, "becomes": ","}
    ]


HARD = (
    "好酒店，！ \t\n\u3000①㎡ﷺe\u0301\u0323가각\u200b\xad\x00\x07\ufeff😀👩\u200d"
    "\u2581龘ＡＢｶﾞ<unk>´"
)


@settings(max_examples=150)
@given(texts=st.lists(st.text(st.sampled_from(HARD) | st.characters(exclude_categories=["Cs"]))))
def test_any_text_is_metered_and_no_character_is_lost_twice(rewriting, faithful, texts):
    characters = sum(map(len, texts))
    with mock.patch.object(silent_loss, "_LISTED", 10_000):
        loss = measure(texts, rewriting)
    assert loss.changed + loss.dropped <= characters
    assert sum(w.count for w in loss.worst) == loss.changed + loss.dropped + loss.unknown
    kept = measure(texts, faithful)
    assert kept.changed == kept.dropped == kept.unknown == 0
    assert kept.byte_fallback <= characters


@settings(max_examples=150)
@given(text=st.text(st.sampled_from(HARD)))
def test_what_the_normaliser_keeps_is_never_reported(rewriting, text):
    """Each of a text's own characters that survive by themselves is left out of the losses."""
    plain = "".join(c for c in text if rewriting.processor.normalize("a" + c + "a")[2:-1] == c)
    if rewriting.processor.normalize(plain)[1:] == plain:
        loss = measure([plain], rewriting)
        assert loss.changed == loss.dropped == 0
