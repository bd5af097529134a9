"""The ids of a SentencePiece model: those of XLM-R and T5, and of tokens added to it.

They are put into the model itself, so that SentencePiece gives them and all else (vocabulary.py,
draws of segmentations) need not know; functions here change a parsed model in place.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.tokenizers.tokenization import CONFIG, SPACE, json_bytes
from input_pipeline.tokenizers.tokenizer_files import Token, TokenizerFiles

_TYPES = proto_lib.ModelProto.SentencePiece  # NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")  # the first ids of XLM-R; <mask> is the last one
_T5 = ("<pad>", "</s>", "<unk>")
_SENTINEL = "<extra_id_{}>"
_SENTINELS = 100  # what T5's tokenisers add where nothing is said
_LAST = ("<mask>", _SENTINEL.format(0))  # of the pieces that a class adds to its model


def is_fairseq(pieces: Sequence[str]) -> bool:
    """Whether the first pieces are those of XLM-R."""
    return tuple(pieces) == _FAIRSEQ


def arrange(proto: proto_lib.ModelProto, files: TokenizerFiles) -> bool:
    """Gives a model the ids that its class has; returns whether that changed it."""
    config, first = files.json(CONFIG), tuple(piece.piece for piece in proto.pieces[:4])
    prefix, changed = config.get("add_prefix_space") is not False, False
    if files.kind in ("llama", "t5") and config.get("legacy") is False:
        # Then transformers puts the space before a text itself, whatever the model has.
        changed = proto.normalizer_spec.add_dummy_prefix != prefix
        proto.normalizer_spec.add_dummy_prefix = prefix
    if files.kind == "xlm-roberta" and first != _FAIRSEQ:
        _put_fairseq_ids(proto, files.where)
        return True
    known = {piece.piece.removeprefix(SPACE) for piece in proto.pieces}
    if files.kind == "t5" and _SENTINEL.format(0) not in known:
        if files.is_guessed and first[:3] != _T5:
            raise ValueError(
                f"{files.where} begins with {', '.join(first[:3])}, not as T5's models do, so that "
                f"its ids can't be inferred: name the class in {CONFIG} (tokenizer_class)"
            )
        # Sentinels stand at the end, counting down; as control pieces no text reaches them.
        for i in reversed(range(config.get("extra_ids", _SENTINELS))):
            proto.pieces.add(piece=_SENTINEL.format(i), type=_TYPES.CONTROL)
        return True
    return changed


def add_tokens(proto: proto_lib.ModelProto, tokens: Sequence[Token]) -> tuple[bool, list[Token]]:
    """Puts added tokens into a model, in place.

    Returns:
        Whether that changed it, and the tokens that are cut out of a text before all else.
    """
    changed, cut = False, []
    for token in tokens:
        if token["id"] == len(proto.pieces):
            proto.pieces.add(piece=token["content"])
        piece = proto.pieces[token["id"]]
        if piece.type == _TYPES.NORMAL:
            # No text reaches control pieces.
            piece.type = _TYPES.CONTROL if token["special"] else _TYPES.USER_DEFINED
            changed, cut = True, cut if token["special"] else [*cut, token]
    return changed, cut


def cuts_alike(proto: proto_lib.ModelProto, cut: Sequence[Token]) -> bool:
    """Whether SentencePiece cuts tokens out of a text with the ids that transformers gives.

    It does if it changes no text: transformers tokenises what stands between such tokens apart,
    each part with a space before it and without those at its ends where the model has it so.
    """
    normalizer = proto.normalizer_spec
    return not (
        normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
        or normalizer.precompiled_charsmap
        or any(token[flag] for token in cut for flag in ("lstrip", "rstrip", "single_word"))
    )


def _put_fairseq_ids(proto: proto_lib.ModelProto, file: str) -> None:
    """Puts XLM-R's first ids in place and <mask> at the end; other pieces move up by one."""
    first = {p.piece: _TYPES.FromString(p.SerializeToString()) for p in proto.pieces[:3]}
    first["<pad>"] = _TYPES(piece="<pad>", type=_TYPES.CONTROL)
    if absent := [piece for piece in _FAIRSEQ if piece not in first]:
        raise ValueError(
            f"{file} starts with {', '.join(first)}, without {', '.join(absent)}: it is no model "
            f"of an XLMRobertaTokenizer; correct config.tokenizer.model or, in {CONFIG}, its class"
        )
    del proto.pieces[:3]
    for place, piece in enumerate(_FAIRSEQ):
        proto.pieces.insert(place, first[piece])
    proto.pieces.add(piece="<mask>", type=_TYPES.CONTROL)


def serialised(proto: proto_lib.ModelProto) -> bytes:
    """Returns a changed model, its number of pieces set."""
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


def stored_files(model: bytes) -> dict[str, bytes]:
    """Returns a model's files without the arrangements above, which reading them makes anew."""
    proto = proto_lib.ModelProto.FromString(model)
    pieces = [piece.piece for piece in proto.pieces]
    # What was added, as special pieces, stands behind the last of the class's own.
    last = len(pieces) - 1
    while last and proto.pieces[last].type == _TYPES.CONTROL and pieces[last] not in _LAST:
        last -= 1
    added = {pieces[i]: i for i in range(last + 1, len(pieces))}
    files = {"added_tokens.json": json_bytes(added)} if added else {}
    if is_fairseq(pieces[:4]) and pieces[last] == "<mask>":
        del proto.pieces[last:]
        proto.pieces.insert(0, proto.pieces.pop(3))
        del proto.pieces[2]
        files["sentencepiece.bpe.model"] = serialised(proto)
        return files | _config("XLMRobertaTokenizer", added)
    count = 0
    while count < last and pieces[last - count] == _SENTINEL.format(count):
        count += proto.pieces[last - count].type == _TYPES.CONTROL or len(pieces)
    if 0 < count < last:
        del proto.pieces[last + 1 - count :]
        files["spiece.model"] = serialised(proto)
        return files | _config("T5Tokenizer", added, extra_ids=count)
    return {"tokenizer.model": model}


def _config(name: str, special: Iterable[str], **fields: Any) -> dict[str, bytes]:
    config = {"tokenizer_class": name, **fields}
    if special := list(special):
        config["additional_special_tokens"] = special
    return {CONFIG: json_bytes(config)}
