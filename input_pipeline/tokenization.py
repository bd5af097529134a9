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

    def __init__(
        self,
        special_ids: Mapping[str, int],
        *,
        vocab_size: int,
        family: Marks,
        marks: str,
        files: Mapping[str, bytes],
        file: str,
    ):
        """Takes what all kinds have.

        Args:
            special_ids: by role: bos, eos, pad, unk, mask, cls, sep; absent ones may be left out.
            vocab_size: as of the attribute.
            family: what 'auto' means.
            marks: config.tokenizer.marks.
            files: by name, as of `files()`.
            file: where it comes from, for messages.

        Raises:
            ValueError: a mark is asked for that there is not.
        """
        for role in _ROLES:
            setattr(self, f"{role}_id", special_ids.get(role, -1))
        self.vocab_size = vocab_size
        self._files = dict(files)
        digest = hashlib.sha256()
        for name, data in sorted(self._files.items()):
            digest.update(f"{name} {len(data)}\n".encode() + data)
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


def load_tokenizer(path: str | os.PathLike, *, marks: str = "auto") -> Tokenizer:
    """Loads a file, or from a folder a SentencePiece model, tokenizer.json or vocab.txt, in order.

    Args:
        path: of a folder as a model hub has it, or of one of those files.
        marks: config.tokenizer.marks.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file is truncated, or of another kind.
    """
    from input_pipeline import huggingface_tokenizer, sentencepiece_tokenizer  # which import this

    path = Path(path)
    files = {name: path / name for name in FILES if (path / name).is_file()}
    if path.is_file():
        own = "tokenizer.json" if path.suffix == ".json" else path.name
        files = {"tokenizer.model" if path.suffix == ".model" and own not in FILES else own: path}
    contents = {name: file.read_bytes() for name, file in files.items()}
    config = path / "config.json"
    model_type = parse_json(config.read_bytes(), config) if config.is_file() else {}
    named = stored_json(contents, "tokenizer_config.json", file=str(path))
    # Folders without a config.json, as adapters' are, name the class of the tokeniser still.
    model_type = str(model_type.get("model_type") or named.get("tokenizer_class", "")).lower()
    options = {"model_type": model_type, "file": str(path), "marks": marks}
    if files.keys() & set(MODEL_FILES) and not model_type.startswith("albert"):
        return sentencepiece_tokenizer.from_files(contents, **options)
    if files.keys() & {"tokenizer.json", "vocab.txt"} or files.keys() >= {
        *("vocab.json", "merges.txt")
    }:
        return huggingface_tokenizer.from_files(contents, **options)
    if files.keys() & set(MODEL_FILES):
        raise ValueError(
            f"{path} holds an ALBERT model with a SentencePiece file, whose texts are lower-cased "
            "before it by rules that only tokenizer.json holds: put tokenizer.json beside it"
        )
    if path.is_file():
        raise ValueError(
            f"{path} is no tokeniser that is known: set config.tokenizer.model to a .model, "
            "tokenizer.json, vocab.txt or .gguf file, or a folder"
        )
    raise FileNotFoundError(
        f"no tokeniser at {path}: expected {', '.join(MODEL_FILES)}, tokenizer.json or vocab.txt. "
        "Set config.tokenizer.model to such a file or a folder with one, or to a .gguf file"
    )


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
    from input_pipeline import huggingface_tokenizer, sentencepiece_tokenizer

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


def stored_chat_template(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns a GGUF file's chat template as the entry of tokenizer_config.json; {} without."""
    template = metadata.get("tokenizer.chat_template")
    return {"chat_template": template} if template else {}


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
) -> str:
    """Checks that a tokeniser is the one which some weights were trained with.

    Args:
        tokenizer: of the run.
        vocab_size: rows of the token embedding.
        special_ids: the checkpoint's, by role; of several, one has to be the tokeniser's. Roles
            that either side lacks are not compared.
        file: the checkpoint's, for messages.

    Returns:
        A sentence for the start-up log on rows without a piece, '' if there are none.

    Raises:
        ValueError: they do not belong together.
    """
    pieces = tokenizer.vocab_size
    remedy = "leave config.tokenizer.model empty to use the checkpoint's own tokeniser"
    if pieces > vocab_size or pieces < _PADDING * vocab_size:
        raise ValueError(
            f"the tokeniser has {pieces:,} pieces but {file} has embeddings for {vocab_size:,} "
            f"(vocab_size): it is not the one the weights were trained with; {remedy}"
        )
    for role in ("bos", "eos", "pad"):
        own, found = getattr(tokenizer, f"{role}_id"), special_ids.get(role)
        wanted = [found] if isinstance(found, int) else list(found or ())
        if own >= 0 and wanted and wanted != [-1] and own not in wanted:
            raise ValueError(
                f"{file} says {role}_token_id={found}, but that piece is {own} "
                f"({tokenizer.piece(own)}) for the tokeniser: {remedy}, or correct the field"
            )
    if spare := vocab_size - pieces:
        return (
            f"The embedding has {spare:,} rows more than the tokeniser has pieces ({pieces:,}): "
            "padding, which no text reaches."
        )
    return ""


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
