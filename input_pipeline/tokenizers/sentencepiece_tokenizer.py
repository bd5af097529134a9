"""SentencePiece: the tokenisers of Gemma, Llama 2, Mistral, T5 and XLM-R.

Here: the tokeniser, and making it of a folder's files. Not here: how the ids of XLM-R, of T5 and of
added tokens get into a model (sentencepiece_models.py). Imports no TensorFlow.
"""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto_lib
from sentencepiece import sentencepiece_pb2 as text_lib

from input_pipeline.hashing import numpy_mix
from input_pipeline.tokenizers import huggingface_tokenizer, sentencepiece_models
from input_pipeline.tokenizers.tokenization import (
    CONFIG,
    JSON,
    SPACE,
    Ids,
    Marks,
    Offsets,
    Texts,
    Tokenizer,
    special_pieces,
    stored_json,
)
from input_pipeline.tokenizers.tokenizer_files import OWN_NAMES, TokenizerFiles
from input_pipeline.tokenizers.tokenizer_json import Spec, of_sentencepiece, put_marks

_REPLACED = ("added_tokens_decoder", "sp_model_kwargs", "legacy", "add_bos_token", "add_eos_token")
_TYPES = proto_lib.ModelProto.SentencePiece  # NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with its marks.

    Attributes:
        model: the serialised ModelProto.
        processor: SentencePiece's own object, for what this class does not offer.
    """

    def __init__(
        self,
        model: bytes,
        *,
        file: str,
        contents: Mapping[str, bytes] | None = None,
        reading: str = "",
        kind: str = "",
    ):
        """Makes the tokeniser of a serialised ModelProto whose ids are the embedding's.

        Args:
            model: with XLM-R's and T5's ids in it, as `from_files` puts them.
            file: where it comes from, for messages.
            contents: the files it was read from, by name; None makes them of the model.
            reading: see Tokenizer.
            kind: see TokenizerFiles; '' infers the marks from the pieces.

        Raises:
            ValueError: `model` is no SentencePiece model.
        """
        try:
            if not model:  # SentencePiece takes it for a model yet to come
                raise RuntimeError
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:  # what SentencePiece raises, with a C++ source line for a message
            raise _not_whole(model, file) from None
        self.model, self.processor, size = model, processor, processor.vocab_size()
        read = functools.partial(stored_json, contents or {}, file=file)
        ids = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk")}
        for role, piece in ({"mask": "<mask>"} | special_pieces(read)).items():
            if processor.id_to_piece(i := processor[piece]) == piece:
                ids[role] = i
        super().__init__(
            ids,
            vocab_size=size,
            family=_family(processor, ids, read(CONFIG), kind),
            files=contents or sentencepiece_models.stored_files(model),
            reading=reading,
        )
        self.fragments = frozenset(i for i in range(size) if processor.is_byte(i))

    @functools.cached_property
    def special_pieces(self) -> Mapping[str, int]:
        """See Tokenizer: control pieces, and those of users that are more than white space."""
        pieces = proto_lib.ModelProto.FromString(self.model).pieces
        types = (_TYPES.CONTROL, _TYPES.USER_DEFINED)
        ids = {piece.piece: i for i, piece in enumerate(pieces) if piece.type in types}
        return {piece: i for piece, i in ids.items() if piece.replace(SPACE, " ").strip()}

    def following(self) -> Tokenizer:
        """See Tokenizer."""
        proto = proto_lib.ModelProto.FromString(self.model)
        if not proto.normalizer_spec.add_dummy_prefix:
            return self
        proto.normalizer_spec.add_dummy_prefix = False
        return SentencePieceTokenizer(proto.SerializeToString(), file="", contents=self.files())

    def encode_batch(self, texts: Texts, *, num_threads: int | None = None) -> Ids:
        """See Tokenizer."""
        threads = num_threads or os.cpu_count() or 1
        return self.processor.encode(list(texts), out_type=int, num_threads=threads)

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """See Tokenizer."""
        # The one output whose offsets are the same, bytes, in all releases.
        encoded = self.processor.encode(list(texts), out_type="serialized_proto")
        return [_offsets(data, text) for data, text in zip(encoded, texts, strict=True)]

    def sample_batch(self, texts: Texts, uniforms_B: np.ndarray, *, size: int, alpha: float) -> Ids:
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
        # Whether a place is cut depends on the text's draw and the place alone, not on the batch.
        seeds = numpy_mix((uniforms_B * 2.0**53).astype(np.uint64))
        draws = numpy_mix(np.repeat(seeds, lengths_B) + places.astype(np.uint64))
        cut = (draws >> np.uint64(11)).astype(np.float64) < alpha * 2.0**53
        cut |= places == 0
        starts = np.flatnonzero(cut)
        # What lies between two cuts is encoded apart, in one call for all texts.
        joined = "".join(texts)
        bounds = [*starts.tolist(), len(joined)]
        parts = [joined[start:stop] for start, stop in itertools.pairwise(bounds)]
        counts = np.diff(np.searchsorted(starts, [*first_B, len(joined)])).tolist()
        ids = iter(self.encode_batch(parts, num_threads=1))
        return [list(itertools.chain.from_iterable(itertools.islice(ids, n))) for n in counts]

    @functools.cached_property
    def _is_unigram(self) -> bool:
        model = proto_lib.ModelProto.FromString(self.model)
        normalizer = model.normalizer_spec
        if model.trainer_spec.model_type == proto_lib.TrainerSpec.UNIGRAM:
            return True
        if normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces:
            raise ValueError(
                "augmentation.sampling_rate: this BPE tokeniser changes the white space at the ends"
                " of a text, so that its pieces cannot be drawn; set the rate to 0"
            )
        return False

    @functools.cached_property
    def _scores_V(self) -> np.ndarray:
        return np.array([self.processor.get_score(i) for i in range(self.vocab_size)])

    def _draw_best(self, text: str, uniform: float, size: int, alpha: float) -> list[int]:
        best = self.processor.nbest_encode(text, nbest_size=size, out_type=int)
        scores = np.array([self._scores_V[ids].sum() for ids in best])
        weights = np.cumsum(np.exp(alpha * (scores - scores.max())))
        return best[int(np.searchsorted(weights, uniform * weights[-1], side="right"))]

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return self.processor.decode([int(i) for i in ids if i < self.vocab_size])

    def piece(self, token_id: int) -> str:
        """See Tokenizer; U+2581 for a space."""
        known = token_id < self.vocab_size  # embeddings may have rows that are nobody's
        return self.processor.id_to_piece(int(token_id)) if known else ""

    def _normalize(self, texts: Sequence[str]) -> list[str]:
        return self.processor.normalize(list(texts))

    def normalized_parts(self, text: str) -> list[tuple[str, str]]:
        """See Tokenizer."""
        result, offsets = self.processor.normalize(text, with_offsets=True)
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
    config: Mapping[str, object],
    kind: str,
) -> Marks:
    """Infers the marks from the pieces: those of XLM-R, of T5 (which has no bos), or one bos.

    T5's class puts no bos before a text where its model has one, as japanese-roberta-base has.
    """
    bos, eos = processor.bos_id(), ids["eos"]
    if sentencepiece_models.is_fairseq(
        [processor.id_to_piece(i) for i in range(min(4, len(processor)))]
    ):
        return Marks((ids["bos"],), (eos, eos), (eos,))
    if bos < 0 or kind == "t5":
        return Marks((), (eos,), (eos,)) if eos >= 0 else Marks()
    start = (ids["bos"],) if config.get("add_bos_token") is not False else ()
    return Marks(start, (), (eos,) if config.get("add_eos_token") else ())


def _not_whole(model: bytes, file: str) -> ValueError:
    return ValueError(
        f"{file} ({len(model):,} bytes) is not a whole SentencePiece model: copy it again, "
        "or set config.tokenizer.model to another file"
    )


def from_files(files: TokenizerFiles) -> Tokenizer:
    """Makes the tokeniser of a SentencePiece model and the files beside it.

    Args:
        files: read, their kind chosen.

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
    arranged = sentencepiece_models.arrange(proto, files)
    tokens = files.added_to(pieces := dict(enumerate(piece.piece for piece in proto.pieces)))
    files.refuse_conflict(files.main, pieces | {token["id"]: token["content"] for token in tokens})
    types = {piece.type for piece in proto.pieces}
    added, cut = sentencepiece_models.add_tokens(proto, tokens)
    contents = {OWN_NAMES.get(files.kind, files.main): data}
    contents |= {name: file for name, file in files.contents.items() if name != files.main}
    tokenizer = SentencePieceTokenizer(
        sentencepiece_models.serialised(proto) if arranged or added else data,
        file=files.where,
        # A model that a run stored has its ids arranged already; its files are made of it.
        contents=None if files.kind == "plain" and len(contents) == 1 else contents,
        reading=files.reading * arranged + "added" * added,
        kind=files.kind,
    )
    if not cut or sentencepiece_models.cuts_alike(proto, cut):
        return tokenizer
    if JSON in files.contents:
        files.kind, files.main = "json", JSON
        return huggingface_tokenizer.from_files(files)
    if files.json(CONFIG).get("legacy") is False or types & {_TYPES.USER_DEFINED, _TYPES.UNUSED}:
        raise ValueError(
            f"{files.where} has added tokens ({cut[0]['content']!r}) and 'legacy': false or "
            f"user-defined pieces: only {JSON} defines how texts are cut at these. Write it with "
            "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    return _from_model(of_sentencepiece(proto, cut), files, tokenizer)


def _from_model(spec: Spec, files: TokenizerFiles, model: SentencePieceTokenizer) -> Tokenizer:
    """Makes the tokeniser of a model that was written as a tokenizer.json."""
    around = model.start_ids, model.between_ids or model.start_ids, model.end_ids
    start, between, end = ([model.piece(i) for i in ids] for ids in around)
    if start or end:
        spec = put_marks(spec, [*start, "A", *between, "B", *end])
    names = {role: model.piece(i) for role, i in model.role_ids.items()}
    config = {key: value for key, value in files.json(CONFIG).items() if key not in _REPLACED}
    config |= {f"{role}_token": piece for role, piece in names.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    name = "chat_template.jinja"
    more = {name: files.contents[name]} if name in files.contents else {}
    return huggingface_tokenizer.from_spec(spec, names, config, file=files.where, more=more)
