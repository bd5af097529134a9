"""Writes a tokenizer.json where there is none.

Here: from BERT's vocab.txt, from the vocab.json and merges.txt of RoBERTa and Qwen, and from a
SentencePiece model. The last is for what SentencePiece itself can't do: it can't cut added tokens
out of a text as transformers does, which tokenises each part between two of them as a text of its
own, with the space before it and without those around it as the model has it. Not here: the
tokeniser (huggingface_tokenizer.py). Imports no TensorFlow.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.tokenizers.tokenization import CONFIG, SPACE
from input_pipeline.tokenizers.tokenizer_files import MISFITS, TokenizerFiles, pieces_of

Spec = dict[str, Any]  # what a tokenizer.json holds

_TYPES = proto_lib.ModelProto.SentencePiece
_BPE = proto_lib.TrainerSpec.BPE
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
BERT = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
ROBERTA = {
    **{"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>"},
    **{"pad": "<pad>", "unk": "<unk>", "mask": "<mask>"},
}
QWEN = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
# What texts are cut into before BPE, as the publishers of the models give it; digits one by one in
# Qwen, up to three in Llama 3.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EMPTY: Spec = {
    "version": "1.0",
    **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor")),
    "decoder": None,
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
}


def vocab_lines(data: bytes, file: str) -> list[str]:
    """Returns the lines of a vocab.txt, or of a merges.txt, as any system ends them."""
    try:
        # U+2028 is a piece, no end of a line; U+FEFF before the first would be part of its piece.
        lines = io.StringIO(data.decode("utf-8-sig"), newline=None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error}): copy it again") from None
    return [line.rstrip("\n") for line in lines]


def of_vocab(files: TokenizerFiles, names: Mapping[str, str]) -> tuple[Spec, Mapping[str, str]]:
    """Returns BERT's tokenizer.json from a vocab.txt, and the special pieces by role."""
    names, config = BERT | names, files.json(CONFIG)
    vocab = {p: i for i, p in enumerate(vocab_lines(files.contents[files.main], files.where))}
    if absent := [names[role] for role in ("cls", "sep", "unk") if names[role] not in vocab]:
        raise ValueError(
            f"{files.where} has no piece {', '.join(absent)}: it is no vocabulary of a BERT, or "
            f"{CONFIG} should name its special pieces"
        )
    if config.get("do_basic_tokenize") is False or config.get("never_split"):
        raise ValueError(
            f"{files.where} is read without do_basic_tokenize=False and never_split, which "
            f"{CONFIG} sets: take them out, or put a tokenizer.json beside it"
        )
    model = {"type": "WordPiece", "unk_token": names["unk"], "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": vocab}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    spec = EMPTY | {
        "model": model,
        "normalizer": normalizer | {"strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }
    put_added(spec, (names[role] for role in BERT))
    around = [names["cls"], "A", names["sep"], "B", names["sep"]]
    return put_marks(spec, around, second_type=1), names


def byte_level(
    vocab: Mapping[str, int],
    merges: Sequence[str],
    *,
    special: Sequence[str],
    words: str = "",
    prefix: bool = False,
) -> Spec:
    """Byte-level BPE; `words` is a regex that cuts texts, '' cuts as GPT-2 does."""
    model = {"type": "BPE", "vocab": vocab, "merges": [line.split(" ") for line in merges]}
    model |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    step = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True}
    step["use_regex"] = not words
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    spec = EMPTY | {"model": model, "decoder": step}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, step]} if words else step
    put_added(spec, special)
    return spec


def put_added(spec: Spec, pieces: Iterable[str], *, special: bool = True) -> None:
    """Adds pieces of the vocabulary to a tokenizer.json's added tokens, by id."""
    vocab = spec["model"]["vocab"]
    rows = [
        {"id": vocab[piece], "content": piece, "special": special, **_FLAGS}
        for piece in {*pieces} & vocab.keys()
    ]
    spec["added_tokens"] = sorted([*spec["added_tokens"], *rows], key=itemgetter("id"))


def put_marks(spec: Spec, around: Sequence[str], *, second_type: int = 0) -> Spec:
    """Returns a tokenizer.json that puts special pieces around texts 'A' and 'B'."""
    items, type_id = [], 0
    for piece in around:
        type_id = second_type if piece == "B" else type_id
        kind = "Sequence" if piece in ("A", "B") else "SpecialToken"
        items.append({kind: {"id": piece, "type_id": type_id}})
    first = around.index("A")
    # One text has the marks before it, and behind it as many as stand at a pair's end.
    behind = len(around) - 1 - around.index("B")
    known = {piece: i for i, piece in pieces_of(spec).items()}
    marks = dict.fromkeys(piece for piece in around if piece not in ("A", "B"))
    post_processor = {
        "type": "TemplateProcessing",
        "single": items[: first + 1 + behind],
        "pair": items,
        "special_tokens": {p: {"id": p, "ids": [known[p]], "tokens": [p]} for p in marks},
    }
    return spec | {"post_processor": post_processor}


def of_merges(files: TokenizerFiles, names: Mapping[str, str]) -> tuple[Spec, Mapping[str, str]]:
    """Returns a tokenizer.json of RoBERTa or Qwen from vocab.json and merges.txt, and the roles."""
    is_roberta = files.kind == "roberta"
    names, vocab = (ROBERTA if is_roberta else QWEN) | names, files.json("vocab.json")
    merges = vocab_lines(files.contents["merges.txt"], f"{files.path}/merges.txt")
    merges = [line for line in merges if line and not line.startswith("#version")]
    known = {line.replace(" ", "") for line in merges if line.count(" ") == 1}
    known |= {*names.values(), *(token["content"] for token in files.declared.values())}
    lost = sum(len(piece) > 1 and piece not in known for piece in vocab)
    if lost > MISFITS * len(vocab) or any(line.count(" ") != 1 for line in merges):
        raise ValueError(
            f"{files.path}/merges.txt doesn't make {lost:,} of the {len(vocab):,} pieces of "
            "vocab.json: it was cut off, or is of another tokeniser; copy both again"
        )
    prefix = bool(files.json(CONFIG).get("add_prefix_space", False))
    words = "" if is_roberta else WORDS % ""
    spec = byte_level(vocab, merges, special=names.values(), words=words, prefix=prefix)
    if not is_roberta:
        return spec | {"normalizer": {"type": "NFC"}}, names
    around = [names["cls"], "A", names["sep"], names["sep"], "B", names["sep"]]
    return put_marks(spec, around), names


def of_sentencepiece(proto: proto_lib.ModelProto, tokens: Sequence[Spec]) -> Spec:
    """Returns what a tokenizer.json holds that gives the ids of a model; without a post-processor.

    Args:
        proto: BPE or unigram.
        tokens: rows of added_tokens for the user-defined pieces that are more than their spelling.
    """
    flags = {token["id"]: {key: token[key] for key in _FLAGS} for token in tokens}
    rows = []
    for i, piece in enumerate(proto.pieces):
        if piece.type in (_TYPES.CONTROL, _TYPES.UNKNOWN, _TYPES.USER_DEFINED):
            row = {"id": i, "content": piece.piece, "special": piece.type != _TYPES.USER_DEFINED}
            # SentencePiece's tokenisers in transformers look for them in the text as it is.
            rows.append(row | _FLAGS | flags.get(i, {}) | {"normalized": False})
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "pre_tokenizer", "post_processor")),
        "added_tokens": rows,
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(proto))},
        "decoder": {"type": "Sequence", "decoders": list(_decoders(proto))},
        "model": _bpe(proto) if proto.trainer_spec.model_type == _BPE else _unigram(proto),
    }


def _normalizers(proto: proto_lib.ModelProto) -> Iterator[Spec]:
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap:
        table = base64.b64encode(spec.precompiled_charsmap).decode()
        yield {"type": "Precompiled", "precompiled_charsmap": table}
    if spec.remove_extra_whitespaces:
        yield {"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""}
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if spec.add_dummy_prefix:
        yield {"type": "Prepend", "prepend": SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def _decoders(proto: proto_lib.ModelProto) -> Iterator[Spec]:
    yield {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    yield from ({"type": "ByteFallback"}, {"type": "Fuse"})
    if proto.normalizer_spec.add_dummy_prefix:
        yield {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _unigram(proto: proto_lib.ModelProto) -> Spec:
    return {
        "type": "Unigram",
        "unk_id": next(i for i, p in enumerate(proto.pieces) if p.type == _TYPES.UNKNOWN),
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "vocab": [[piece.piece, piece.score] for piece in proto.pieces],
    }


def _bpe(proto: proto_lib.ModelProto) -> Spec:
    """The highest score merges first: so the merges of a piece are ranked by its score."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _TYPES.NORMAL}
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    merges = []
    for piece, score in scores.items():
        for place in range(1, len(piece)):
            left, right = piece[:place], piece[place:]
            if left in scores and right in scores:
                merges.append((-score, ids[piece], ids[left], f"{left} {right}"))
    merges.sort(key=itemgetter(0, 1, 2))
    return {
        "type": "BPE",
        "unk_token": next(p.piece for p in proto.pieces if p.type == _TYPES.UNKNOWN),
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        **dict.fromkeys(("dropout", "continuing_subword_prefix", "end_of_word_suffix")),
        "ignore_merges": False,
        "vocab": ids,
        "merges": [merge for *_, merge in merges],
    }
