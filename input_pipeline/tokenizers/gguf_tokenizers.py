"""Makes the tokeniser that a GGUF file carries: SentencePiece BPE or byte-level BPE.

Also that of multilingual-e5-small, SentencePiece unigram, whose file gives its metadata in GGUF's
terms. Not here: reading the files (models/pretrained/gguf.py and e5.py). Imports no TensorFlow.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer, from_spec
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from input_pipeline.tokenizers.tokenization import CONFIG, SPACE, Tokenizer, json_bytes
from input_pipeline.tokenizers.tokenizer_json import WORDS, byte_level, put_added, put_marks

_PREFIX = "tokenizer.ggml."
_NEEDED = {
    "llama": ("tokens", "scores", "token_type"),
    "gpt2": ("tokens", "merges", "token_type"),
    "xlm-roberta": ("tokens", "scores", "token_type"),  # of e5.py: GGUF has no such kind
}
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "mask": "mask"}
_CONTROL, _USER_DEFINED = 3, 4  # token types of llama.cpp, which are SentencePiece's


def tokenizer_from_gguf(
    metadata: Mapping[str, Any], *, file: str, marks: str = "auto"
) -> Tokenizer:
    """Makes the tokeniser that a GGUF file's metadata hold.

    Args:
        metadata: of the file, by key.
        file: its name, for messages.
        marks: config.tokenizer.marks.

    Raises:
        ValueError: a tokeniser of another kind, one whose metadata are incomplete, or one that cuts
            texts in an unknown way.
    """
    fields = {key.removeprefix(_PREFIX): value for key, value in metadata.items()}
    kind, remedy = fields.get("model"), "set config.tokenizer.model to a tokeniser's file or folder"
    if kind not in _NEEDED:
        raise ValueError(
            f"{file} holds a tokeniser of kind {kind!r}, expected 'llama' (SentencePiece BPE) or "
            f"'gpt2' (byte-level BPE): {remedy}"
        )
    if absent := [_PREFIX + name for name in _NEEDED[kind] if name not in fields]:
        raise ValueError(f"{file} lacks {', '.join(absent)} of its tokeniser: {remedy}")
    if kind == "gpt2" and fields.get("pre") not in ("qwen2", "llama-bpe"):
        raise ValueError(
            f"{file} has {_PREFIX}pre={fields.get('pre')!r}, expected 'qwen2' or 'llama-bpe': "
            + remedy
        )
    make = _byte_level if kind == "gpt2" else _sentencepiece
    ids = {role: fields.get(f"{name}_token_id", -1) for role, name in _ROLES.items()}
    template = metadata.get("tokenizer.chat_template")
    tokenizer = make(fields, ids, {"chat_template": template} if template else {}, file)
    tokenizer.set_marks(marks, file=file)
    return tokenizer


def _byte_level(
    fields: Mapping[str, Any], ids: Mapping[str, int], template: Mapping[str, str], file: str
) -> HuggingFaceTokenizer:
    """Byte-level BPE as Qwen and Llama 3 have it."""
    tokens, types, is_llama = fields["tokens"], fields["token_type"], fields["pre"] == "llama-bpe"
    control, user_defined = (
        list(itertools.compress(tokens, (kind == wanted for kind in types)))
        for wanted in (_CONTROL, _USER_DEFINED)
    )
    vocab = {token: i for i, token in enumerate(tokens)}
    words = WORDS % ("{1,3}" if is_llama else "")
    spec = byte_level(vocab, fields["merges"], special=control, words=words)
    put_added(spec, user_defined, special=False)
    spec["normalizer"] = None if is_llama else {"type": "NFC"}
    spec["model"]["ignore_merges"] = is_llama
    names = {role: tokens[i] for role, i in ids.items() if 0 <= i < len(tokens)}
    if fields.get("add_bos_token", is_llama) and "bos" in names:
        spec = put_marks(spec, [names["bos"], "A", names["bos"], "B"])
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {f"{role}_token": piece for role, piece in names.items()}
    return from_spec(spec, names, config | template, file=file)


def _sentencepiece(
    fields: Mapping[str, Any], ids: Mapping[str, int], template: Mapping[str, str], file: str
) -> SentencePieceTokenizer:
    """Rebuilds a SentencePiece model.

    GGUF keeps pieces, scores and types, and drops the rest of the model: BPE with byte fallback and
    without normalisation is what its 'llama' tokenisers are. XLM-R's is unigram, normalised by
    nmt_nfkc, which SentencePiece brings; its ids are in the pieces already.
    """
    proto, pieces = proto_lib.ModelProto(), fields["tokens"]
    for piece, score, kind in zip(pieces, fields["scores"], fields["token_type"], strict=True):
        if kind == _USER_DEFINED:  # GGUF stores runs of spaces unescaped
            piece = piece.replace(" ", SPACE)
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    is_unigram = fields["model"] == "xlm-roberta"
    kinds = proto_lib.TrainerSpec
    trainer.model_type = kinds.UNIGRAM if is_unigram else kinds.BPE
    trainer.byte_fallback = not is_unigram
    trainer.vocab_size = len(pieces)
    for role in ("unk", "bos", "eos", "pad"):
        setattr(trainer, f"{role}_id", ids[role])
        if ids[role] >= 0:
            setattr(trainer, f"{role}_piece", pieces[ids[role]])
    if ids["unk"] >= 0:  # GGUF files of Gemma call it a control piece
        proto.pieces[ids["unk"]].type = proto_lib.ModelProto.SentencePiece.UNKNOWN
    if is_unigram:
        rules = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
        proto.MergeFromString(rules.serialized_model_proto())
        return SentencePieceTokenizer(proto.SerializeToString(deterministic=True), file=file)
    normalizer.name, normalizer.remove_extra_whitespaces = "identity", False
    normalizer.add_dummy_prefix = fields.get("add_space_prefix", True)
    flags = [f"add_{name}_token" for name in ("bos", "eos")]
    config = {name: bool(fields[name]) for name in flags if name in fields} | template
    model = proto.SerializeToString(deterministic=True)
    contents = {"tokenizer.model": model} | ({CONFIG: json_bytes(config)} if config else {})
    return SentencePieceTokenizer(model, file=file, contents=contents)
