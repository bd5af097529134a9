"""SentencePiece: the tokenisers of Gemma, Llama 2, Mistral, T5 and XLM-R.

Here: the tokeniser, of a folder's files or of a GGUF file. Not here: how the ids of XLM-R, of T5
and of added tokens get into a model (sentencepiece_models.py). Called by tokenization.py. Imports
no TensorFlow.
"""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto_lib
from sentencepiece import sentencepiece_pb2 as text_lib

from input_pipeline.hashing import numpy_mix
from input_pipeline.tokenizers import huggingface_tokenizer
from input_pipeline.tokenizers.sentencepiece_models import (
    add_tokens,
    arrange,
    cuts_alike,
    is_fairseq,
    serialised,
    stored_files,
)
from input_pipeline.tokenizers.tokenization import (
    SPACE,
    Marks,
    Offsets,
    Tokenizer,
    json_bytes,
    special_pieces,
    stored_chat_template,
    stored_json,
)
from input_pipeline.tokenizers.tokenizer_files import CONFIG, JSON, OWN_NAMES, TokenizerFiles
from input_pipeline.tokenizers.tokenizer_json import of_sentencepiece

_TYPES = proto_lib.ModelProto.SentencePiece  # NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with its marks."""

    def __init__(
        self,
        model: bytes,
        *,
        file: str,
        marks: str = "auto",
        contents: Mapping[str, bytes] | None = None,
        reading: str = "",
        kind: str = "",
    ):
        """Takes a serialised ModelProto whose ids are the embedding's.

        Args:
            model: with XLM-R's and T5's ids in it, as `from_files` puts them.
            file: where it comes from, for messages.
            marks: config.tokenizer.marks.
            contents: the files it was read from, by name; None makes them of the model.
            reading: as of Tokenizer.
            kind: as of TokenizerFiles, where a class is named; '' tells the marks by the pieces.

        Raises:
            ValueError: `model` is no SentencePiece model, or lacks a mark that is asked for.
        """
        self._model = model
        try:
            if not model:  # SentencePiece takes it for a model yet to come
                raise RuntimeError
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:  # what SentencePiece raises, with a C++ source line for a message
            raise _not_whole(model, file) from None
        processor, size = self._processor, self._processor.vocab_size()
        names = special_pieces(contents or {}, file=file)
        ids = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk")}
        for role, piece in ({"mask": "<mask>"} | names).items():
            if processor.id_to_piece(i := processor[piece]) == piece:
                ids[role] = i
        super().__init__(
            ids,
            vocab_size=size,
            family=_family(processor, ids, contents or {}, file, kind),
            marks=marks,
            files=contents or stored_files(model),
            file=file,
            reading=reading,
        )
        self.fragments = frozenset(i for i in range(size) if processor.is_byte(i))

    @property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """SentencePiece's own object, for what this class does not offer."""
        return self._processor

    @property
    def model(self) -> bytes:
        """The serialised ModelProto."""
        return self._model

    @functools.cached_property
    def special_pieces(self) -> Mapping[str, int]:
        """As of Tokenizer: control pieces, and those of users that are more than white space."""
        pieces = proto_lib.ModelProto.FromString(self._model).pieces
        own = (_TYPES.CONTROL, _TYPES.USER_DEFINED)
        found = {piece.piece: i for i, piece in enumerate(pieces) if piece.type in own}
        return {piece: i for piece, i in found.items() if piece.replace(SPACE, " ").strip()}

    def following(self) -> Tokenizer:
        """As of Tokenizer."""
        proto = proto_lib.ModelProto.FromString(self._model)
        if not proto.normalizer_spec.add_dummy_prefix:
            return self
        proto.normalizer_spec.add_dummy_prefix = False
        model = proto.SerializeToString()
        return SentencePieceTokenizer(model, file="the tokeniser", contents=self.files())

    def encode_batch(
        self, texts: Sequence[str] | Sequence[bytes], *, num_threads: int | None = None
    ) -> list[list[int]]:
        """As of Tokenizer."""
        threads = num_threads or os.cpu_count() or 1
        return self._processor.encode(list(texts), out_type=int, num_threads=threads)

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """As of Tokenizer."""
        # The one output whose offsets are the same, bytes, in all releases.
        found = self._processor.encode(list(texts), out_type="serialized_proto")
        return [_offsets(data, text) for data, text in zip(found, texts, strict=True)]

    def sample_batch(
        self,
        texts: Sequence[str] | Sequence[bytes],
        uniforms_B: np.ndarray,
        *,
        size: int,
        alpha: float,
    ) -> list[list[int]]:
        """Returns each text's ids in a segmentation that is drawn: a function of text and uniform.

        A unigram model draws one of the best in proportion to its probability ** alpha
        (1804.10959). A BPE model, which has no list of the best, leaves out the merges across
        places that are drawn between characters, a share of alpha (after 1910.13267).
        SentencePiece's own sampling won't do: it draws differently in every process.

        Args:
            texts: str, or UTF-8 bytes.
            uniforms_B: float64 in [0, 1), a draw for each text.
            size: how many best of a unigram model.
            alpha: inverse temperature, or the share of places.

        Raises:
            ValueError: a BPE model that changes the white space of a text.
        """
        texts = [text if isinstance(text, str) else text.decode() for text in texts]
        if self._is_unigram:
            draws = zip(texts, uniforms_B, strict=True)
            return [self._draw_best(text, draw, size, alpha) for text, draw in draws]
        lengths_B = np.fromiter(map(len, texts), np.int64, len(texts))
        first_B = np.cumsum(lengths_B) - lengths_B
        places = np.arange(lengths_B.sum()) - np.repeat(first_B, lengths_B)
        seeds = numpy_mix((uniforms_B * 2.0**53).astype(np.uint64))
        draws = numpy_mix(np.repeat(seeds, lengths_B) + places.astype(np.uint64))
        cut = (draws >> np.uint64(11)).astype(np.float64) < alpha * 2.0**53
        cut |= places == 0
        starts = np.flatnonzero(cut)
        joined = "".join(texts)
        bounds = [*starts.tolist(), len(joined)]
        parts = [joined[start:stop] for start, stop in itertools.pairwise(bounds)]
        counts = np.diff(np.searchsorted(starts, [*first_B, len(joined)])).tolist()
        ids = iter(self.encode_batch(parts, num_threads=1))
        return [list(itertools.chain.from_iterable(itertools.islice(ids, n))) for n in counts]

    @functools.cached_property
    def _is_unigram(self) -> bool:
        model = proto_lib.ModelProto.FromString(self._model)
        normalizer = model.normalizer_spec
        if model.trainer_spec.model_type == proto_lib.TrainerSpec.UNIGRAM:
            return True
        if normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces:
            raise ValueError(
                "augmentation.sampling_rate: this BPE tokeniser changes the white space at the "
                "ends of a text, so that its pieces cannot be drawn; set the rate to 0, or use a "
                "unigram tokeniser"
            )
        return False

    @functools.cached_property
    def _scores_V(self) -> np.ndarray:
        return np.array([self._processor.get_score(i) for i in range(self.vocab_size)])

    def _draw_best(self, text: str, uniform: float, size: int, alpha: float) -> list[int]:
        best = self._processor.nbest_encode(text, nbest_size=size, out_type=int)
        scores = np.array([self._scores_V[ids].sum() for ids in best])
        weights = np.cumsum(np.exp(alpha * (scores - scores.max())))
        return best[int(np.searchsorted(weights, uniform * weights[-1], side="right"))]

    def decode(self, ids: Sequence[int]) -> str:
        """As of Tokenizer."""
        return self._processor.decode([int(i) for i in ids if i < self.vocab_size])

    def piece(self, token_id: int) -> str:
        """As of Tokenizer; U+2581 for a space."""
        known = token_id < self.vocab_size  # embeddings may have rows that are nobody's
        return self._processor.id_to_piece(int(token_id)) if known else ""

    @functools.cached_property
    def _prefix(self) -> int:
        return self._processor.normalize("a").index("a")  # 1 where a space is put before every text

    def normalize(self, texts: Sequence[str]) -> list[str]:
        """As of Tokenizer."""
        results = self._processor.normalize(list(texts))
        return [result[self._prefix :].replace(SPACE, " ") for result in results]

    def normalized_parts(self, text: str) -> list[tuple[str, str]]:
        """As of Tokenizer."""
        result, offsets = self._processor.normalize(text, with_offsets=True)
        parts, piece, start = [], "", 0
        characters = result[self._prefix :].replace(SPACE, " ")
        for character, stop in zip(characters, offsets[self._prefix + 1 :], strict=True):
            piece += character
            if stop > start:  # else more comes of the same source
                parts.append((text[start:stop], piece))
                piece, start = "", stop
        return [*parts, (text[start:], "")]


def _offsets(data: bytes, text: str) -> tuple[list[int], Offsets]:
    """Returns the ids of a serialised SentencePieceText and their slices in characters."""
    pieces = text_lib.SentencePieceText.FromString(data).pieces
    utf8 = np.frombuffer(text.encode(), np.uint8)
    # How many characters start before each byte.
    place = np.concatenate([[0], np.cumsum((utf8 & 0xC0) != 0x80)]).tolist()
    slices: Offsets = []
    following = (-1, -1)
    for piece in reversed(pieces):
        start, stop = place[piece.begin], place[piece.end]
        if start == stop == following[0] and piece.piece != SPACE:
            stop = following[1]  # bytes of one character, or several pieces of what it became
        following = (start, stop)
        slices.append(following)
    return [piece.id for piece in pieces], slices[::-1]


def _family(
    processor: sentencepiece.SentencePieceProcessor,
    ids: Mapping[str, int],
    contents: Mapping[str, bytes],
    file: str,
    kind: str,
) -> Marks:
    """Tells the marks by the pieces: those of XLM-R, of T5 (which has no bos), or one bos.

    T5's class puts no bos before a text where its model has one, as japanese-roberta-base has.
    """
    bos, eos = ids["bos"] if processor.bos_id() >= 0 else -1, ids["eos"]
    if is_fairseq([processor.id_to_piece(i) for i in range(min(4, len(processor)))]):
        return Marks((bos,), (eos, eos), (eos,))
    if bos < 0 or kind == "t5":
        return Marks((), (eos,), (eos,)) if eos >= 0 else Marks()
    config = stored_json(contents, "tokenizer_config.json", file=file)
    add_bos, add_eos = (config.get(f"add_{name}_token") for name in ("bos", "eos"))
    return Marks((bos,) if add_bos is not False else (), (), (eos,) if add_eos else ())


def _not_whole(model: bytes, file: str) -> ValueError:
    return ValueError(
        f"{file} ({len(model):,} bytes) is not a whole SentencePiece model: copy it again, "
        "or set config.tokenizer.model to another file"
    )


def from_files(files: TokenizerFiles, *, marks: str = "auto") -> Tokenizer:
    """Makes the tokeniser of a SentencePiece model and the files beside it.

    Args:
        files: read, their kind chosen.
        marks: config.tokenizer.marks.

    Returns:
        A SentencePieceTokenizer, unless tokens were added that SentencePiece can't cut out of a
        text as transformers does: then one of `tokenizers`.

    Raises:
        ValueError: the model is damaged, or other files contradict it.
    """
    data = files.contents[files.main]
    try:
        proto = proto_lib.ModelProto.FromString(data)
    except DecodeError:
        raise _not_whole(data, files.where) from None
    # What comes last in the file: one that is cut off between two pieces can be parsed.
    if not (proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")):
        raise _not_whole(data, files.where)
    arranged = arrange(proto, files)
    tokens = files.added_to(pieces := dict(enumerate(piece.piece for piece in proto.pieces)))
    files.refuse_conflict(files.main, pieces | {token["id"]: token["content"] for token in tokens})
    types = {piece.type for piece in proto.pieces}
    added, cut = add_tokens(proto, tokens)
    contents = {OWN_NAMES.get(files.kind, files.main): data}
    contents |= {name: file for name, file in files.contents.items() if name != files.main}
    make = functools.partial(
        SentencePieceTokenizer,
        serialised(proto) if arranged or added else data,
        file=files.where,
        # A model of ours has its ids arranged already; its files are made of it.
        contents=None if files.kind == "plain" and len(contents) == 1 else contents,
        reading=(files.reading if arranged else "") + ("added" if added else ""),
        kind=files.kind,
    )
    if not cut or cuts_alike(proto, cut):
        return make(marks=marks)
    if JSON in files.contents:
        files.kind, files.main = "json", JSON
        return huggingface_tokenizer.from_files(files, marks=marks)
    if files.json(CONFIG).get("legacy") is False or types & {_TYPES.USER_DEFINED, _TYPES.UNUSED}:
        raise ValueError(
            f"{files.where} has added tokens ({cut[0]['content']!r}) and 'legacy': false or pieces "
            f"of its users: how texts are cut at all these, only {JSON} says. Write it with "
            "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    own = make()
    return huggingface_tokenizer.from_model(
        of_sentencepiece(proto, cut),
        files,
        names={role: own.piece(i) for role, i in own.role_ids.items()},
        around=(own.start_ids, own.between_ids or own.start_ids, own.end_ids),
        marks=marks,
    )


def from_gguf(
    metadata: Mapping[str, Any], *, file: str, marks: str = "auto"
) -> SentencePieceTokenizer:
    """Makes the tokeniser of a GGUF file; errors as of `model_from_gguf`."""
    model = model_from_gguf(metadata, file=file)
    flags = {f"add_{name}_token": f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos")}
    config = {name: bool(metadata[key]) for name, key in flags.items() if key in metadata}
    contents = {"tokenizer.model": model}
    config |= stored_chat_template(metadata)
    if config:
        contents[CONFIG] = json_bytes(config)
    return SentencePieceTokenizer(model, file=file, marks=marks, contents=contents)


def model_from_gguf(metadata: Mapping[str, Any], *, file: str) -> bytes:
    """Rebuilds the SentencePiece model whose vocabulary a GGUF file carries.

    GGUF keeps pieces, scores and types, and drops the rest of the model: BPE with byte fallback and
    without normalisation is what its 'llama' tokenisers are.

    Args:
        metadata: of the file, by key.
        file: its name, for messages.

    Returns:
        A serialised ModelProto.

    Raises:
        ValueError: the tokeniser is of another kind, or not all there.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "llama":
        raise ValueError(
            f"{file} holds a tokeniser of kind {kind!r}, expected 'llama' (SentencePiece BPE) or "
            "'gpt2' (byte-level BPE): set config.tokenizer.model to a tokeniser's file or folder"
        )
    keys = [f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")]
    if absent := [key for key in keys if key not in metadata]:
        raise ValueError(
            f"{file} lacks {', '.join(absent)}, of which a SentencePiece model is made: set "
            "config.tokenizer.model to a SentencePiece .model file"
        )
    model = proto_lib.ModelProto()
    pieces, scores, types = (metadata[key] for key in keys)
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        if kind == _TYPES.USER_DEFINED:  # GGUF stores runs of spaces unescaped
            piece = piece.replace(" ", SPACE)
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = proto_lib.TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = True
    for name, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        piece_id = metadata.get(f"tokenizer.ggml.{key}_token_id", -1)
        setattr(trainer, f"{name}_id", piece_id)
        if piece_id >= 0:
            setattr(trainer, f"{name}_piece", pieces[piece_id])
    if trainer.unk_id >= 0:  # GGUF files of Gemma call it a control piece
        model.pieces[trainer.unk_id].type = _TYPES.UNKNOWN
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    normalizer.remove_extra_whitespaces = False
    return model.SerializeToString(deterministic=True)
