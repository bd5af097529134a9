"""A SentencePiece model as a tokenizer.json, for what SentencePiece itself can't do.

It can't cut added tokens out of a text as transformers does: there each part between two of them is
a text of its own, with the space before it and without the spaces around it that the model wants.
Called by sentencepiece_tokenizer.py. Imports no TensorFlow.
"""

import base64
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.tokenization import SPACE

_TYPES = proto_lib.ModelProto.SentencePiece
_BPE = proto_lib.TrainerSpec.BPE
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def to_json(proto: proto_lib.ModelProto, tokens: Sequence[dict[str, Any]]) -> dict[str, Any]:
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


def _normalizers(proto: proto_lib.ModelProto) -> Iterator[dict[str, Any]]:
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


def _decoders(proto: proto_lib.ModelProto) -> Iterator[dict[str, Any]]:
    yield {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    yield from ({"type": "ByteFallback"}, {"type": "Fuse"})
    if proto.normalizer_spec.add_dummy_prefix:
        yield {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _unigram(proto: proto_lib.ModelProto) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": next(i for i, p in enumerate(proto.pieces) if p.type == _TYPES.UNKNOWN),
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "vocab": [[piece.piece, piece.score] for piece in proto.pieces],
    }


def _bpe(proto: proto_lib.ModelProto) -> dict[str, Any]:
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
