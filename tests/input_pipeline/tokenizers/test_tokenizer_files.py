"""How a folder's tokeniser is read: its class, added tokens, the ids that files name, bad files."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.batches.template import Encoder
from input_pipeline.tokenizers.loading import check_belongs, load_tokenizer
from input_pipeline.tokenizers.tokenizer_files import TokenizerFiles

ROOT = Path(__file__).parents[2] / "fixtures" / "tokenizers"


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT.parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _script("make_tokenizers")
with pytest.MonkeyPatch.context() as patch:
    patch.setitem(__import__("sys").modules, "make_tokenizers", make)
    added = _script("make_added_tokens")
CASES = json.loads((ROOT / "added_tokens.json").read_text("utf-8"))
TEXTS = [*added.OWN, *make.TEXTS]
E5 = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 1837, "pad_token_id": 0}


def write(folder, **files):
    """Writes JSON files, by name without its ending."""
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    def folder(kind, **files):
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        return write(make.restore(ROOT / kind, tmp_path / kind), **files)

    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}-{case['form']}")
def test_added_tokens_have_transformers_ids(folder, case):
    files = {name.removesuffix(".json"): value for name, value in case["files"].items()}
    path = folder(case["kind"], **files)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == case["size"]
    for text, ids in zip(TEXTS, case["ids"], strict=False):
        assert tokenizer.piece_ids(text) == ids, text
    [(ids, offsets)] = tokenizer.encode_with_offsets([TEXTS[2]])
    spelled = [
        TEXTS[2][a:b] for i, (a, b) in zip(ids, offsets, strict=True) if i >= case["size"] - 3
    ]
    assert ("[新词]" in spelled) == (case["form"] != "bare")
    assert Encoder(tokenizer, "{text}", max_length=9)(["好"]).tokens.tolist() == case["single"]
    tokenizer.save(path / "saved")
    write(path / "saved", config={"model_type": case["kind"].replace("_", "-")})
    again = load_tokenizer(path / "saved")
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert again.role_ids.items() >= tokenizer.role_ids.items()


@pytest.mark.parametrize("form", ["special", "decoder"])
@pytest.mark.parametrize("kind", ["bert", "xlm_roberta", "llama"])
def test_added_special_pieces_are_known_and_no_text_reaches_them(folder, kind, form):
    [case] = [case for case in CASES if (case["kind"], case["form"]) == (kind, form)]
    files = {name.removesuffix(".json"): value for name, value in case["files"].items()}
    tokenizer = load_tokenizer(folder(kind, **files))
    special = tokenizer.special_pieces["[特]"]
    assert special == case["size"] - 1
    assert special not in tokenizer.piece_ids("好[特]吧 [特]")


def test_a_llama_with_a_pad_that_was_added_stays_a_sentencepiece_model(folder):
    """What Chinese-Alpaca has; its rows can still be trimmed and its segmentations drawn."""
    path = folder("llama", added_tokens={"[PAD]": 2200}, special_tokens_map={"pad_token": "[PAD]"})
    tokenizer = load_tokenizer(path)
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (2200, 2201)
    pieces = proto_lib.ModelProto.FromString(tokenizer.model).pieces
    assert pieces[2200].type == pieces[2200].CONTROL
    assert tokenizer.encode_batch(TEXTS) == load_tokenizer(folder("llama")).encode_batch(TEXTS)


def test_a_special_piece_without_an_id_follows_the_vocabulary(folder):
    path = folder("llama", special_tokens_map={"pad_token": {"content": "[PAD]"}})
    assert load_tokenizer(path).role_ids["pad"] == 2200


@pytest.mark.parametrize("where", ["tokenizer_config", "config", "both"])
@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast"])
def test_the_class_decides_and_not_the_architecture(folder, where, name):
    want = load_tokenizer(folder("xlm_roberta"))
    config = E5 | ({"tokenizer_class": name} if where != "tokenizer_config" else {})
    files = {} if where == "config" else {"tokenizer_config": {"tokenizer_class": name}}
    path = folder("xlm_roberta", config=config, **files)
    tokenizer = load_tokenizer(path)
    assert tokenizer.model == want.model
    assert (tokenizer.start_ids, tokenizer.pad_id, tokenizer.mask_id) == ([0], 1, 1801)
    tokenizer.save(path / "saved")  # where no config.json names the class
    assert load_tokenizer(path / "saved").model == want.model
    # What a run of before had from these files; it must not go on with other ids.
    assert tokenizer.fingerprint != want.fingerprint


def test_a_file_or_folder_that_is_named_is_read_as_the_checkpoints_class(folder, tmp_path):
    checkpoint = folder("xlm_roberta", config=E5 | {"tokenizer_class": "XLMRobertaTokenizer"})
    want = load_tokenizer(checkpoint)
    alone = tmp_path / "elsewhere" / "spm.model"
    alone.parent.mkdir()
    shutil.copy(checkpoint / "sentencepiece.bpe.model", alone)
    whole = tmp_path / "tokeniser"
    whole.mkdir()
    shutil.copy(checkpoint / "sentencepiece.bpe.model", whole)
    named = (checkpoint, checkpoint / "sentencepiece.bpe.model", alone, whole)
    for path in named:
        tokenizer = load_tokenizer(path, checkpoint=checkpoint)
        assert tokenizer.model == want.model
        note = check_belongs(
            tokenizer,
            vocab_size=1837,
            special_ids={"pad": 0},
            file=str(checkpoint),
            named_pieces=TokenizerFiles(checkpoint).named_pieces,
        )
        assert "pad_token_id=0, but that piece is 1 (<pad>)" in note
        assert "35 rows more than the tokeniser has pieces (1,802)" in note
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").model == want.model


def test_without_a_class_the_files_decide_and_the_guess_is_checked(folder):
    path = folder("xlm_roberta", config=E5)
    tokenizer = load_tokenizer(path)
    assert tokenizer.piece(1) == "<pad>"
    rows = {"vocab_size": 1837, "file": str(path), "named_pieces": tokenizer.named_pieces}
    assert "arranged as those of xlm-roberta" in check_belongs(
        tokenizer, special_ids={"pad": 1}, **rows
    )
    with pytest.raises(ValueError, match=r"pad_token_id=0, but .* name the tokenizer_class in"):
        check_belongs(tokenizer, special_ids={"pad": 0}, **rows)
    write(path, tokenizer_config={"tokenizer_class": "XLMRobertaTokenizer"})  # the remedy
    rows["named_pieces"] = (tokenizer := load_tokenizer(path)).named_pieces
    assert "1 is used" in check_belongs(tokenizer, special_ids={"pad": 0}, **rows)


def test_a_spiece_model_is_not_taken_for_t5s_by_its_name(folder):
    path = folder("t5")
    (path / "config.json").write_text("{}")
    assert load_tokenizer(path).vocab_size == 1700
    shutil.copy(folder("llama") / "tokenizer.model", path / "spiece.model")
    with pytest.raises(ValueError, match=r"spiece\.model begins with <unk>, <s>, </s>, .* name"):
        load_tokenizer(path)


def test_a_class_of_bert_is_not_read_from_a_sentencepiece_model(folder):
    path = folder("xlm_roberta", config=E5 | {"tokenizer_class": "BertTokenizer"})
    with pytest.raises(ValueError, match=r"BertTokenizer, which is read from vocab\.txt or token"):
        load_tokenizer(path)


@pytest.mark.parametrize("generic", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_generic_class_is_what_its_tokenizer_json_says(folder, tmp_path, generic):
    path = folder("qwen2", tokenizer_config={"tokenizer_class": generic})
    shutil.copy(folder("t5") / "spiece.model", path)  # which a generic class doesn't read
    assert load_tokenizer(path).encode_batch(TEXTS) == load_tokenizer(folder("qwen2")).encode_batch(
        TEXTS
    )
    bare = folder("llama", tokenizer_config={"tokenizer_class": generic})
    with pytest.raises(ValueError, match=rf"{generic}, which is read from tokenizer\.json; .*has"):
        load_tokenizer(bare)
    # The remedy: the file, named.
    assert load_tokenizer(bare / "tokenizer.model").vocab_size == 2200


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer"),
        ({"tokenizer_class": "SomeTokenizerFast"}, "SomeTokenizerFast"),
        ({"auto_map": {"AutoTokenizer": ["tokenization_a.ATokenizer", None]}}, "ATokenizer"),
        (
            {"tokenizer_class": "GLMTokenizer", "auto_map": {"AutoTokenizer": ["a.B", None]}},
            "GLMTokenizer",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "qwen2", "llama"])
def test_a_class_that_is_not_implemented_is_refused_by_name(folder, kind, config, name):
    for file in ("tokenizer_config", "config"):
        path = folder(kind, **{"tokenizer_config": {}, file: config})
        with pytest.raises(ValueError, match=rf"{file}\.json .*{name}.* isn't implemented"):
            load_tokenizer(path)
    if kind == "qwen2":  # the remedy: its tokenizer.json, named
        tokenizer = load_tokenizer(path / "tokenizer.json", checkpoint=path)
        assert tokenizer.vocab_size == load_tokenizer(folder(kind)).vocab_size


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("t5", "DebertaV2Tokenizer", r"is read from tokenizer\.json; .* has spiece\.model"),
        ("bert", "RobertaTokenizer", r"from vocab\.json and merges\.txt or tokenizer\.json; .*voc"),
        ("llama", "XLMRobertaTokenizer", r"is wrong|is no model of an XLMRobertaTokenizer"),
        ("t5", "XLMRobertaTokenizer", r"starts with <pad>, </s>, <unk>, without <s>"),
    ],
)
def test_a_class_that_the_files_are_not_of_is_refused(folder, kind, name, message):
    path = folder(kind, tokenizer_config={"tokenizer_class": name, "bos_token": "<s>"})
    if kind == "llama":  # begins as XLM-R's does; only ids that files name can tell
        flags = {"special": True, "normalized": False}
        decoder = {"1": {"content": "<s>"} | flags, "2": {"content": "</s>"} | flags}
        write(path, tokenizer_config={"tokenizer_class": name, "added_tokens_decoder": decoder})
    with pytest.raises(ValueError, match=message):
        load_tokenizer(path)


def test_qwens_vocab_json_and_merges_give_the_ids_of_its_tokenizer_json(folder, tmp_path):
    path = folder("qwen2")
    want = load_tokenizer(path)
    spec = json.loads((path / "tokenizer.json").read_text("utf-8"))
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    vocab = {piece: i for piece, i in spec["model"]["vocab"].items() if piece not in special}
    count = len(special)  # behind the vocabulary, as Qwen has them
    vocab = {piece: i - count for piece, i in vocab.items()}
    rows = {
        str(len(vocab) + i): {"content": piece, "special": True} for piece, i in special.items()
    }
    merges = "\n".join(" ".join(pair) for pair in spec["model"]["merges"]) + "\n"
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": rows}
    files = write(tmp_path, vocab=vocab, tokenizer_config=config | {"eos_token": "<|im_end|>"})
    (files / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    tokenizer = load_tokenizer(files)
    ids = [[i - count for i in row] for row in want.encode_batch(TEXTS)]
    assert tokenizer.encode_batch(TEXTS) == ids
    assert tokenizer.eos_id == len(vocab) + special["<|im_end|>"]
    for cut in (merges[: len(merges) // 2], merges[:-5]):
        (files / "merges.txt").write_text(cut, "utf-8")
        with pytest.raises(ValueError, match=r"merges\.txt doesn't make|json is no tokeniser"):
            load_tokenizer(files)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"好": 1501}}, r"added_tokens\.json gives '好' the id 1501, but vocab"),
        ({"added_tokens": {"[新词]": 1510}}, r"the id 1510, but the pieces before it end at 1500"),
        (
            {"added_tokens": {"[新词]": 7}},
            r"'\[新词\]' the id 7, but vocab\.txt, .* has '.+' there",
        ),
        ({"added_tokens": {"a": "b"}}, r"added tokens of .* in no form that is known|invalid lit"),
        ({"added_tokens": ["a"]}, r"added_tokens\.json holds a JSON list"),
        (
            {
                "added_tokens": {"<e>": 1501},
                "tokenizer_config": {"added_tokens_decoder": {"1501": {"content": "<f>"}}},
            },
            r"has '<f>' at 1501, but added_tokens\.json has '<e>' at 1501",
        ),
    ],
)
def test_ids_that_contradict_each_other_are_refused(folder, files, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder("bert", **files))


def test_a_model_that_is_not_that_of_its_tokenizer_json_is_refused(folder):
    path = folder("llama")
    proto = proto_lib.ModelProto.FromString((path / "tokenizer.model").read_bytes())
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    write(path, tokenizer={"added_tokens": [], "model": {"vocab": vocab}})
    assert load_tokenizer(path).vocab_size == 2200
    for changed in ({piece: i + 1 for piece, i in vocab.items()}, vocab | {"[新词]": 2200}):
        write(path, tokenizer={"added_tokens": [], "model": {"vocab": changed}})
        with pytest.raises(ValueError, match=r"tokenizer\.model has .*, where tokenizer\.json has"):
            load_tokenizer(path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "vocab.txt"),
        ("bert_cased", "tokenizer_config.json"),
        ("bert_cased", "config.json"),
        ("bert", "added_tokens.json"),
        ("bert", "special_tokens_map.json"),
        ("roberta", "vocab.json"),
        ("roberta", "merges.txt"),
        ("qwen2", "tokenizer.json"),
        ("llama", "tokenizer.model"),
        ("t5", "spiece.model"),
        ("xlm_roberta", "sentencepiece.bpe.model"),
    ],
)
def test_a_file_that_is_a_pointer_empty_or_cut_off_is_named(folder, kind, name):
    file = folder(kind, added_tokens={}, special_tokens_map={}) / name
    whole = file.read_bytes()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=rf"{name} is a pointer left by git lfs.*git lfs pull"):
        load_tokenizer(file.parent)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} (is empty|.*is not a whole SentencePiece)"):
        load_tokenizer(file.parent)
    for share in (0.3, 0.9) if name != "vocab.txt" else ():  # measured against the embedding
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=name):
            load_tokenizer(file.parent)


def test_a_sentencepiece_model_cut_between_two_pieces_is_not_whole(folder):
    file = folder("llama") / "tokenizer.model"
    proto = proto_lib.ModelProto.FromString(file.read_bytes())
    del proto.pieces[1000:]
    for field in ("normalizer_spec", "trainer_spec"):  # as they stand in the file, from its end
        proto.ClearField(field)
        file.write_bytes(proto.SerializeToString())
        with pytest.raises(ValueError, match=r"tokenizer\.model .* is not a whole SentencePiece"):
            load_tokenizer(file.parent)


def test_a_vocabulary_that_is_not_the_embeddings_is_refused(folder):
    path = folder("bert")
    rows = {"special_ids": {}, "file": "x"}
    vocab = (path / "vocab.txt").read_bytes()
    (path / "vocab.txt").write_bytes(vocab[: vocab.index(b"\n", len(vocab) - 90) - 1])
    with pytest.raises(ValueError, match=r"vocab\.txt ends within a line, \d+ pieces before"):
        check_belongs(load_tokenizer(path), vocab_size=1501, **rows)
    larger = load_tokenizer(folder("bert", added_tokens={"[新词]": 1501, "<e>": 1502}))
    with pytest.raises(ValueError, match=r"1,503 pieces .* 1,502 .* '<e>' without a row .*; copy"):
        check_belongs(larger, vocab_size=1502, chosen=False, **rows)
    assert check_belongs(larger, vocab_size=1503, **rows) == ""


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_special_pieces_for_images_behind_the_last_row_are_left_out(folder, kind):
    """Gemma 3 has one; a special piece with a role, and words, are refused there."""
    want = load_tokenizer(folder(kind))
    size, rows = want.vocab_size, {"special_ids": {}, "file": "x", "vocab_size": want.vocab_size}
    token = {"content": "<image>", "special": True}
    decoder = {"added_tokens_decoder": {str(size): token}}
    config = {"vocab_size": size}
    tokenizer = load_tokenizer(folder(kind, tokenizer_config=decoder, config=config))
    assert tokenizer.encode_batch(TEXTS) == want.encode_batch(TEXTS)
    assert "Left out: 1 special pieces without a row ('<image>')" in check_belongs(
        tokenizer, **rows
    )
    if kind == "qwen2":  # named in tokenizer.json's vocabulary as well
        spec = json.loads((ROOT / kind / "tokenizer.json").read_text("utf-8"))
        spec["model"]["vocab"]["<image>"] = size
        tokenizer = load_tokenizer(
            folder(kind, tokenizer_config=decoder, config=config, tokenizer=spec)
        )
        assert tokenizer.vocab_size == size
    token["special"] = False
    for more in (decoder, {"pad_token": "<image>"}):
        tokenizer = load_tokenizer(folder(kind, tokenizer_config=more, config=config))
        with pytest.raises(ValueError, match=r"'<image>' without a row should not be in"):
            check_belongs(tokenizer, **rows)


def test_special_pieces_of_the_checkpoint_are_looked_up_in_a_named_tokenizer(folder):
    """Vocabularies of one size, whose special pieces alone tell them apart."""
    tokenizer = load_tokenizer(folder("llama"))
    rows = {"vocab_size": 2200, "special_ids": {}, "file": "x"}
    assert check_belongs(tokenizer, named_pieces={1: "<s>", 2: "</s>"}, **rows) == ""
    with pytest.raises(
        ValueError, match=r"beside x give '</s>' the id 1, but .* has '<s>' there and"
    ):
        check_belongs(tokenizer, named_pieces={1: "</s>"}, **rows)


def test_wordpiece_options_that_are_not_applied_are_refused(folder):
    for option in ({"do_basic_tokenize": False}, {"never_split": ["a"]}):
        with pytest.raises(ValueError, match=r"vocab\.txt is read without do_basic_tokenize"):
            load_tokenizer(folder("bert", tokenizer_config=option))


def test_an_albert_with_a_vocab_txt_is_read_as_its_file_is(folder):
    """voidful/albert_chinese and clue/albert_chinese name no class."""
    want = load_tokenizer(folder("bert")).encode_batch(TEXTS)
    path = folder("bert", config={"model_type": "albert", "architectures": ["AlbertModel"]})
    assert load_tokenizer(path).encode_batch(TEXTS) == want


@pytest.mark.parametrize(
    "kind, name, changed",
    [
        ("bert", "vocab.txt", lambda data: data.replace(b"\n", b"\r\n")),
        ("bert", "vocab.txt", lambda data: b"\xef\xbb\xbf" + data),
        ("roberta", "merges.txt", lambda data: data.replace(b"\n", b"\r\n")),
    ],
    ids=["crlf", "bom", "merges"],
)
def test_line_ends_and_a_byte_order_mark_are_no_part_of_a_piece(folder, kind, name, changed):
    path = folder(kind)
    want = load_tokenizer(path)
    (path / name).write_bytes(changed((path / name).read_bytes()))
    found = load_tokenizer(path)
    assert found.encode_batch(TEXTS) == want.encode_batch(TEXTS)
    assert found.role_ids == want.role_ids


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer_config": {"tokenizer_class": ["Odd"]}}, r"Odd.* isn't implemented"),
        ({"tokenizer": {"added_tokens": None, "model": None}}, r"lacks added_tokens, decoder, "),
        ({"tokenizer": {"vocab_size": 9}}, r"tokenizer\.json lacks added_tokens, decoder, model"),
        ({"tokenizer_config": {"cls_token": ["[CLS]"]}}, r"JSON file .* another form .*TypeError"),
    ],
    ids=["class", "null", "other", "piece"],
)
def test_json_of_another_form_is_refused_by_file(folder, files, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder("bert", **files))


def test_a_json_file_that_is_no_tokenizer_is_refused_where_it_is_named(folder):
    path = folder("bert", config={"model_type": "bert"}, special_tokens_map={"pad_token": "[X]"})
    with pytest.raises(ValueError, match=r"config\.json lacks added_tokens, decoder, model"):
        load_tokenizer(path / "config.json")


def test_the_marks_are_those_of_the_class_and_not_of_the_models_pieces(folder):
    """japanese-roberta-base is RoBERTa with T5's tokeniser, whose model has a <s>."""
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    path = folder("xlm_roberta", config=E5, tokenizer_config=config)
    tokenizer = load_tokenizer(path)
    assert tokenizer.piece(1) == "<s>"  # SentencePiece's own ids
    assert [tokenizer.start_ids, tokenizer.between_ids, tokenizer.end_ids] == [[], [2], [2]]
    tokenizer.save(path / "saved")
    assert load_tokenizer(path / "saved").end_ids == [2]
