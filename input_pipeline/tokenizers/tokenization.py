"""Text to token ids: the interface of every tokeniser, and the choice of the one a folder holds.

Here: what a tokeniser offers, its marks, whether it belongs to some weights, and training a new
one. Not here: the kinds (sentencepiece_tokenizer.py, huggingface_tokenizer.py), templates around
texts (template.py), reading GGUF files (models/pretrained/gguf.py). Called by training/ and
pipeline.py. Imports no TensorFlow.
"""

import abc
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

SPACE = "\u2581"  # what SentencePiece writes for a space
MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
FILES = (
    *MODEL_FILES,
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
_ROLES = ("bos", "eos", "pad", "unk", "mask")
_PADDING = 0.9  # least share of the embedding's rows that pieces take

Offsets = list[tuple[int, int]]


class Marks(NamedTuple):
    """Ids that a family puts around a text, and between two; and the second text's type id."""

    start: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    second_type: int = 0


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
        vocab_size: number of pieces, or one more than the highest id.
        bos_id, eos_id, pad_id, unk_id, mask_id: ids of the special pieces, -1 where there is none.
        start_ids, between_ids, end_ids: marks around every example, and behind the first of a pair.
        second_type: type id of the second text of a pair, 0 where a family has none.
        fingerprint: sha256 over `files()`.
        role_ids: ids of the special pieces by role, those of 'cls' and 'sep' too.
        named_pieces: spellings by id of the pieces to which its files give ids.
        note: a sentence for people on what had to be guessed, or ''.
        fragments: ids of pieces that are bytes and not whole characters.
        special_pieces: ids by spelling, of control pieces and others that are no parts of words.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int
    mask_id: int
    fragments: frozenset[int]
    special_pieces: Mapping[str, int]
    named_pieces: Mapping[int, str] = MappingProxyType({})
    note: str = ""

    def __init__(
        self,
        special_ids: Mapping[str, int],
        *,
        vocab_size: int,
        family: Marks,
        marks: str,
        files: Mapping[str, bytes],
        file: str,
        reading: str = "",
    ):
        """Takes what all kinds have.

        Args:
            special_ids: by role: bos, eos, pad, unk, mask, cls, sep; absent ones may be left out.
            vocab_size: as of the attribute.
            family: what 'auto' means.
            marks: config.tokenizer.marks.
            files: by name, as of `files()`.
            file: where it comes from, for messages.
            reading: how the files are read, where their bytes don't say it all.

        Raises:
            ValueError: a mark is asked for that there is not.
        """
        self.role_ids = {role: i for role, i in special_ids.items() if i >= 0}
        for role in _ROLES:
            setattr(self, f"{role}_id", self.role_ids.get(role, -1))
        self.vocab_size = vocab_size
        self._files = dict(files)
        digest = hashlib.sha256()
        for name, data in sorted(self._files.items()):
            digest.update(f"{name} {len(data)}\n".encode() + data)
        digest.update(reading.encode())
        self.fingerprint = digest.hexdigest()
        if marks != "auto":
            start = _asked("bos", "cls", special_ids, file) if marks in ("bos", "both") else ()
            end = _asked("eos", "sep", special_ids, file) if marks in ("eos", "both") else ()
            family = Marks(start, (), end, family.second_type)
        self.start_ids, self.between_ids, self.end_ids = map(list, family[:3])
        self.second_type = family.second_type

    @abc.abstractmethod
    def encode_batch(
        self, texts: Sequence[str] | Sequence[bytes], *, num_threads: int | None = None
    ) -> list[list[int]]:
        """Returns each text's ids, without the marks, from one call that releases the GIL.

        Special pieces that stand in a text are encoded as the characters they are written with.

        Args:
            texts: str, or UTF-8 bytes.
            num_threads: None takes every core; 1 suits callers that run in parallel themselves.
        """

    @abc.abstractmethod
    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """Returns each text's ids as of `encode_batch`, and which characters each of them is of.

        Starts and stops never decrease. Pieces that are bytes of one character have its slice each;
        a space that the tokeniser put in has an empty one.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text that `ids` spell; special pieces vanish."""

    @abc.abstractmethod
    def piece(self, token_id: int) -> str:
        """Returns how a piece is spelled, for people: bytes as characters where these are whole."""

    @abc.abstractmethod
    def normalize(self, texts: Sequence[str]) -> list[str]:
        """Returns texts as the tokeniser's normaliser leaves them, without the spaces it adds."""

    @abc.abstractmethod
    def normalized_parts(self, text: str) -> list[tuple[str, str]]:
        """Returns the stretches of a text that are normalised apart, each with what it becomes."""

    @property
    def model(self) -> bytes:
        """The serialised SentencePiece ModelProto.

        Raises:
            ValueError: a tokeniser of another kind.
        """
        raise ValueError(
            "config.tokenizer.keep_others and new_pieces change SentencePiece vocabularies only, "
            f"found a {type(self).__name__}: set them to -1 and 0"
        )

    def sample_batch(
        self,
        texts: Sequence[str] | Sequence[bytes],
        uniforms_B: np.ndarray,
        *,
        size: int,
        alpha: float,
    ) -> list[list[int]]:
        """Returns each text's ids in a segmentation that is drawn; SentencePiece only."""
        raise ValueError(
            f"augmentation.sampling_rate: a {type(self).__name__} cannot draw segmentations, "
            "SentencePiece models can: set the rate to 0"
        )

    def following(self) -> "Tokenizer":
        """Returns the tokeniser of what follows a special piece: it puts no space before texts."""
        return self

    @property
    def chat_template(self) -> str:
        """The chat template in Jinja that came with the files; '' without."""
        if (template := self._files.get("chat_template.jinja")) is not None:
            return template.decode()
        found = stored_json(self._files, "tokenizer_config.json", file="the tokeniser")
        found = found.get("chat_template") or ""
        if isinstance(found, list):  # several, by name
            found = {row["name"]: row["template"] for row in found}.get("default", "")
        return found

    def piece_ids(self, word: str) -> list[int]:
        """Returns the ids of one word, spelled as it is."""
        return self.encode_batch([word], num_threads=1)[0]

    def files(self) -> dict[str, bytes]:
        """Returns the files of a folder that `load_tokenizer` and transformers load, by name."""
        return dict(self._files)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `files()` into a folder, made if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self._files.items():
            Path(folder, name).write_bytes(data)


def _asked(role: str, instead: str, ids: Mapping[str, int], file: str) -> tuple[int, ...]:
    token_id = max(ids.get(role, -1), -1)
    token_id = ids.get(instead, -1) if token_id < 0 else token_id
    if token_id < 0:
        raise ValueError(
            f"config.tokenizer.marks asks for a mark {role!r}, but the tokeniser of {file} has no "
            "such piece: set config.tokenizer.marks='auto' or 'none'"
        )
    return (token_id,)


def load_tokenizer(
    path: str | os.PathLike, *, marks: str = "auto", checkpoint: str | os.PathLike | None = None
) -> Tokenizer:
    """Loads the tokeniser of a folder, or of one of its files.

    Args:
        path: of a folder as a model hub has it, or of a SentencePiece model, tokenizer.json or
            vocab.txt.
        marks: config.tokenizer.marks.
        checkpoint: whose folder names the tokeniser's class where none is named beside `path`.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file is damaged or contradicts another, or of a kind that isn't implemented.
    """
    from input_pipeline.tokenizers import (
        huggingface_tokenizer,
        sentencepiece_tokenizer,
        tokenizer_files,
    )

    try:
        files = tokenizer_files.TokenizerFiles(Path(path), checkpoint and Path(checkpoint))
        read = sentencepiece_tokenizer if files.main in MODEL_FILES else huggingface_tokenizer
        tokenizer = read.from_files(files, marks=marks)
    except (AttributeError, KeyError, TypeError) as error:  # well-formed JSON of another form
        raise ValueError(
            f"{path}: a JSON file of the tokeniser there has another form than transformers gives "
            f"it ({type(error).__name__}: {error}): copy the files again"
        ) from error
    tokenizer.named_pieces, tokenizer.note = files.named_pieces, files.note.strip()
    name = "tokenizer_config.json"
    config = stored_json(tokenizer.files(), name, file=str(path))
    if files.class_name and not config.get("tokenizer_class"):  # named by a file of the model
        config |= {"tokenizer_class": files.class_name}
        tokenizer._files[name] = json_bytes(config, ensure_ascii=False)
    return tokenizer


def tokenizer_from_gguf(
    metadata: Mapping[str, Any], *, file: str, marks: str = "auto"
) -> Tokenizer:
    """Makes the tokeniser that a GGUF file's metadata hold.

    Args:
        metadata: of the file, by key.
        file: its name, for messages.
        marks: config.tokenizer.marks.

    Raises:
        ValueError: a tokeniser of another kind, or not all there.
    """
    from input_pipeline.tokenizers import huggingface_tokenizer, sentencepiece_tokenizer

    if metadata.get("tokenizer.ggml.model") == "gpt2":
        return huggingface_tokenizer.from_gguf(metadata, file=file, marks=marks)
    return sentencepiece_tokenizer.from_gguf(metadata, file=file, marks=marks)


def parse_json(data: bytes, file: str | os.PathLike) -> dict[str, Any]:
    """Returns what a JSON file holds.

    Raises:
        ValueError: no JSON object.
    """
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{file} is no whole JSON file ({error}): copy it again") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{file} holds a JSON {type(parsed).__name__}, expected an object")
    return parsed


def stored_json(contents: Mapping[str, bytes], name: str, *, file: str) -> dict[str, Any]:
    """Reads one of a folder's JSON files; {} where it lacks it."""
    return parse_json(contents[name], f"{file}: {name}") if name in contents else {}


def json_bytes(value: Mapping[str, Any], *, ensure_ascii: bool = True) -> bytes:
    """Returns one of a folder's JSON files."""
    return json.dumps(value, indent=2, ensure_ascii=ensure_ascii).encode() + b"\n"


def stored_chat_template(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns a GGUF file's chat template as the entry of tokenizer_config.json; {} without."""
    template = metadata.get("tokenizer.chat_template")
    return {"chat_template": template} if template else {}


def spelled_alike(piece: str, content: str) -> bool:
    """Whether a vocabulary's piece is the token that a JSON file names."""
    return piece in (content, SPACE + content, content.replace(" ", SPACE))


def special_pieces(contents: Mapping[str, bytes], *, file: str) -> dict[str, str]:
    """Returns the special pieces that a folder's JSON files name, by role: 'cls', 'pad', ..."""
    named = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = stored_json(contents, name, file=file)
        for role in (*_ROLES, "cls", "sep"):
            piece = values.get(f"{role}_token")
            piece = piece["content"] if isinstance(piece, dict) else piece
            if piece:
                named[role] = piece
    return named


def check_belongs(
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int | Sequence[int] | None],
    file: str,
    named_pieces: Mapping[int, str] = MappingProxyType({}),
    chosen: bool = True,
) -> str:
    """Checks that a tokeniser is the one which some weights were trained with.

    Args:
        tokenizer: of the run.
        vocab_size: rows of the token embedding.
        special_ids: the checkpoint's, by role; of several, one has to be the tokeniser's. Roles
            that either side lacks are not compared.
        file: the checkpoint's, for messages.
        named_pieces: spellings by id of the pieces to which the tokeniser's files in the
            checkpoint's folder give ids. These outrank `special_ids`: many a config.json has a
            pad_token_id that only its model class chose.
        chosen: whether config.tokenizer.model names the tokeniser.

    Returns:
        Sentences for the start-up log on what was guessed, on fields that contradict the
        tokeniser's own files and on rows without a piece; '' if there are none.

    Raises:
        ValueError: they do not belong together.
    """
    pieces = tokenizer.vocab_size
    remedy = "leave config.tokenizer.model empty to use the checkpoint's own tokeniser"
    if not chosen:
        remedy = "copy the folder's tokeniser files again, or name others by config.tokenizer.model"
    notes = [tokenizer.note] if tokenizer.note else []
    if pieces > vocab_size or pieces < _PADDING * vocab_size:
        without = [tokenizer.piece(i) for i in range(vocab_size, min(pieces, vocab_size + 3))]
        raise ValueError(
            f"the tokeniser has {pieces:,} pieces but {file} has embeddings for {vocab_size:,} "
            "(vocab_size): it is not the one the weights were trained with, or it is damaged"
            + (f", or {', '.join(map(repr, without))} without a row should be in none of its files")
            * bool(without)
            + f"; {remedy}"
        )
    for i, piece in named_pieces.items():
        if i < vocab_size and not spelled_alike(own := tokenizer.piece(i), piece):
            elsewhere = tokenizer.special_pieces.get(piece)
            raise ValueError(
                f"the files beside {file} give {piece!r} the id {i}, but for the tokeniser "
                f"{own!r} is {i}"
                + (f" and {piece!r} is {elsewhere}" if elsewhere is not None else "")
                + f": it is not the one the weights were trained with; {remedy}"
            )
    for role, found in special_ids.items():
        own = tokenizer.role_ids.get(role, -1)
        wanted = [found] if isinstance(found, int) else list(found or ())
        if own < 0 or not wanted or wanted == [-1] or own in wanted:
            continue
        says = f"{file} says {role}_token_id={found}, but that piece is {own} "
        says += f"({tokenizer.piece(own)}) for the tokeniser"
        if own not in named_pieces:
            raise ValueError(
                f"{says}: {remedy}; if the tokeniser is right, correct the field or, beside it, "
                "name the tokenizer_class in tokenizer_config.json"
            )
        notes.append(f"{says}, as its own files have it: {own} is used.")
    if spare := vocab_size - pieces:
        if not tokenizer.files().get("vocab.txt", b"\n").endswith(b"\n"):
            raise ValueError(
                f"vocab.txt ends within a line, {spare:,} pieces before the {vocab_size:,} rows of "
                f"the embedding in {file} do: it was cut off; copy it again, or end it with a line "
                "break if it is whole"
            )
        notes.append(
            f"The embedding has {spare:,} rows more than the tokeniser has pieces ({pieces:,}); no "
            "text reaches them."
        )
    return " ".join(notes)


def train_tokenizer(texts: Iterable[str], path: str | os.PathLike, *, vocab_size: int) -> None:
    """Learns a SentencePiece BPE model from `texts` and writes it to `path`.

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
            required_chars=SPACE,  # as bytes it would decode to itself, not to a space
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
