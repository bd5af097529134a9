"""Text to token ids, with SentencePiece.

Here: loading a tokeniser from a SentencePiece .model or from the metadata of a GGUF file, training
a new one, and encoding texts within a template. Not here: which texts (stream.py), how their tokens
share rows (layout.py), and reading GGUF files (models/pretrained/gguf.py). Called by pipeline.py
and training/experiment.py. Imports no TensorFlow.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto_lib

from input_pipeline.augmentation_ops import numpy_mix

_SPACE = "\u2581"  # what SentencePiece writes for a space
_TYPES = proto_lib.ModelProto.SentencePiece  # NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE


class Tokenizer:
    """A SentencePiece model with its marks of beginning and end.

    Attributes:
        vocab_size: number of pieces.
        bos_id, eos_id, pad_id: ids of the control pieces, -1 where the model has none.
        start_ids, end_ids: the marks put around every example, as configured.
        fingerprint: sha256 of the serialised model.
    """

    def __init__(self, model: bytes, *, file: str, add_bos: bool, add_eos: bool):
        """Takes a serialised ModelProto, and the file it comes from, for messages.

        Raises:
            ValueError: `model` is no SentencePiece model, or lacks a mark that is asked for.
        """
        self._model = model
        try:
            if not model:  # SentencePiece takes it for a model yet to come
                raise RuntimeError
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:  # what SentencePiece raises, with a C++ source line for a message
            raise ValueError(
                f"{file} ({len(model):,} bytes) is not a whole SentencePiece model: copy it again, "
                "or set tokenizer.model to another file"
            ) from None
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.pad_id: int = self._processor.pad_id()
        self.fingerprint = hashlib.sha256(model).hexdigest()
        for key, wanted, piece_id in (("bos", add_bos, self.bos_id), ("eos", add_eos, self.eos_id)):
            if wanted and piece_id < 0:
                raise ValueError(
                    f"tokenizer.add_{key} is True, but this tokeniser has no such piece: "
                    f"set tokenizer.add_{key}=False"
                )
        self.start_ids = [self.bos_id] if add_bos else []
        self.end_ids = [self.eos_id] if add_eos else []

    @property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """SentencePiece's own object, for what this class does not offer."""
        return self._processor

    @property
    def model(self) -> bytes:
        """The serialised ModelProto."""
        return self._model

    def encode_batch(
        self, texts: Sequence[str] | Sequence[bytes], *, num_threads: int | None = None
    ) -> list[list[int]]:
        """Returns each text's ids, without the marks, from one call that releases the GIL.

        Args:
            texts: str, or UTF-8 bytes.
            num_threads: None takes every core; 1 suits callers that run in parallel themselves.
        """
        threads = num_threads or os.cpu_count() or 1
        return self._processor.encode(list(texts), out_type=int, num_threads=threads)

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
        """Returns the text that `ids` spell; control pieces vanish."""
        return self._processor.decode([int(i) for i in ids])

    def piece_ids(self, word: str) -> list[int]:
        """Returns the ids of one word, spelled as it is."""
        return self.encode_batch([word], num_threads=1)[0]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model as a SentencePiece .model file."""
        Path(path).write_bytes(self._model)


def load_tokenizer(path: str | os.PathLike, *, add_bos: bool, add_eos: bool) -> Tokenizer:
    """Loads a .model file, or a folder that holds tokenizer.model.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the file is truncated, or no SentencePiece model.
    """
    path = Path(path)
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"no tokeniser at {file}: set tokenizer.model to a SentencePiece .model or a .gguf file"
        )
    return Tokenizer(file.read_bytes(), file=str(file), add_bos=add_bos, add_eos=add_eos)


def tokenizer_from_gguf(
    metadata: Mapping[str, Any], *, file: str, add_bos: bool, add_eos: bool
) -> Tokenizer:
    """Makes the tokeniser that a GGUF file's metadata hold; errors as of `model_from_gguf`."""
    model = model_from_gguf(metadata, file=file)
    return Tokenizer(model, file=file, add_bos=add_bos, add_eos=add_eos)


def train_tokenizer(texts: Iterable[str], path: str | os.PathLike, *, vocab_size: int) -> None:
    """Learns a BPE model from `texts` and writes it to `path`.

    Characters stay as they are (identity normalisation), so that full-width ，？；： survive, and
    what the vocabulary lacks falls back to bytes: every text decodes to itself. The same texts in
    the same order give the same file.

    Raises:
        ValueError: the texts are too few for `vocab_size`, or `vocab_size` is too small for the 260
            fixed pieces and the characters that the texts consist of.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.9995,
            required_chars=_SPACE,  # as bytes it would decode to itself, not to a space
            normalization_rule_name="identity",
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            bos_piece="<bos>",
            eos_piece="<eos>",
            num_threads=1,  # more threads would make ties fall as they like
            max_sentence_length=1 << 20,  # bytes; longer texts would be left out
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"no tokeniser of tokenizer.vocab_size={vocab_size} can be learned from these texts "
            f"(SentencePiece: {error}): change tokenizer.vocab_size"
        ) from None
    Path(path).write_bytes(model.getvalue())


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A draw of segmentations (subword regularisation, 1804.10959).

    Attributes:
        chosen_B: bool, which texts are drawn.
        uniforms_B: float64 in [0, 1), their draws.
        size, alpha: as of Tokenizer.sample_batch.
    """

    chosen_B: np.ndarray
    uniforms_B: np.ndarray
    size: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of B examples.

    Attributes:
        tokens: int32, the examples' ids end to end.
        lengths_B: int64, how many of `tokens` each example has; at least 1.
        cut_B: bool, which examples lost the end of their text.
    """

    tokens: np.ndarray
    lengths_B: np.ndarray
    cut_B: np.ndarray


NO_SAMPLING: Mapping[str, Sampling] = {}
FIELD = re.compile(r"\{(text|pair)\}")  # of a template


class Encoder:
    """Texts to token ids within a template, of at most `max_length` tokens.

    What stands around {text} and {pair} is tokenised apart from them, so that cutting a long text
    leaves the template and the marks of beginning and end whole. Of a pair the longer text is cut
    first, down to the length of the other; then both.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, *, max_length: int):
        """Tokenises the template.

        Raises:
            ValueError: not exactly one {text}, or several {pair}, in the template, or no room for a
                text beside it.
        """
        self.fields = tuple(FIELD.findall(template))
        if sorted(self.fields) not in (["text"], ["pair", "text"]):
            raise ValueError(
                f"data.template must hold {{text}} exactly once, and {{pair}} at most once, found "
                f"{template!r}: write for example '评论：{{text}}'"
            )
        around = tokenizer.encode_batch(FIELD.split(template)[::2], num_threads=1)
        around[0] = tokenizer.start_ids + around[0]
        around[-1] = around[-1] + tokenizer.end_ids
        self._tokenizer = tokenizer
        self.around = around  # the ids before, between and behind the fields
        self.max_length = max_length
        self._room = max_length - sum(map(len, around))
        if self._room < len(self.fields):
            raise ValueError(
                f"layout.max_length={max_length} leaves no room for a text: the template and its "
                f"marks take {max_length - self._room} tokens; raise layout.max_length"
            )

    def __call__(
        self,
        texts: Sequence[str] | Sequence[bytes],
        pairs: Sequence[str] | Sequence[bytes] | None = None,
        *,
        num_threads: int | None = None,
        sampling: Mapping[str, Sampling] = NO_SAMPLING,
    ) -> Encoded:
        """Encodes texts, or pairs of them if the template holds {pair}.

        Args:
            texts: str, or UTF-8 bytes.
            pairs: the second texts.
            num_threads: as of Tokenizer.encode_batch.
            sampling: by field, 'text' or 'pair': draws a segmentation, else the best is taken.

        Raises:
            ValueError: an example without any token: an empty text without template and marks; or
                {pair} in the template and no pairs.
        """
        if (pairs is not None) != ("pair" in self.fields):
            found = "the data have no second text" if pairs is None else "the data are pairs"
            raise ValueError(
                f"{found}, but data.template is for {' and '.join(self.fields)}: write {{text}} "
                "and, for pairs, {pair} where they belong, and set data.pair_column"
            )
        parts = {"text": texts, "pair": pairs}
        ids = [
            self._encode(parts[field], num_threads=num_threads, sampling=sampling.get(field))
            for field in self.fields
        ]
        lengths_FxB = np.array([[len(part) for part in parts] for parts in ids], np.int64)
        kept_FxB = self._cut(lengths_FxB)
        lengths_B = self.max_length - self._room + kept_FxB.sum(axis=0)
        if not lengths_B.all():
            raise ValueError(
                f"text {int(np.argmin(lengths_B))} of {len(texts)} is empty and would give no "
                "token: remove empty texts, or set tokenizer.add_bos=True"
            )
        stretches: list[list[int]] = []
        for *parts, kept in zip(*ids, kept_FxB.T.tolist(), strict=True):
            stretches.append(self.around[0])
            for part, count, after in zip(parts, kept, self.around[1:], strict=True):
                stretches += part[:count], after
        tokens = np.fromiter(itertools.chain.from_iterable(stretches), np.int32, lengths_B.sum())
        return Encoded(tokens, lengths_B, cut_B=(kept_FxB < lengths_FxB).any(axis=0))

    def _encode(
        self, texts: Sequence, *, num_threads: int | None, sampling: Sampling | None
    ) -> list[list[int]]:
        if sampling is None or not sampling.chosen_B.any():
            return self._tokenizer.encode_batch(texts, num_threads=num_threads)
        ids: list[list[int]] = [[]] * len(texts)
        others, chosen = (np.flatnonzero(sampling.chosen_B == chosen) for chosen in (False, True))
        best = self._tokenizer.encode_batch([texts[i] for i in others], num_threads=num_threads)
        drawn = self._tokenizer.sample_batch(
            [texts[i] for i in chosen],
            sampling.uniforms_B[chosen],
            size=sampling.size,
            alpha=sampling.alpha,
        )
        for i, tokens in zip([*others, *chosen], best + drawn, strict=True):
            ids[i] = tokens
        return ids

    def _cut(self, lengths_FxB: np.ndarray) -> np.ndarray:
        """Returns how many tokens of each field stay."""
        if len(lengths_FxB) == 1:
            return np.minimum(lengths_FxB, self._room)
        others_FxB = lengths_FxB[::-1]
        half = np.array([[self._room - self._room // 2], [self._room // 2]])
        return np.minimum(lengths_FxB, np.maximum(half, self._room - others_FxB))


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
            f"{file} holds a tokeniser of kind {kind!r}, expected 'llama' (SentencePiece BPE): "
            "set tokenizer.model to a SentencePiece .model file"
        )
    keys = [f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")]
    if absent := [key for key in keys if key not in metadata]:
        raise ValueError(
            f"{file} lacks {', '.join(absent)}, of which a SentencePiece model is made: set "
            "tokenizer.model to a SentencePiece .model file"
        )
    model = proto_lib.ModelProto()
    pieces, scores, types = (metadata[key] for key in keys)
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        if kind == _TYPES.USER_DEFINED:  # GGUF stores runs of spaces unescaped
            piece = piece.replace(" ", _SPACE)
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
