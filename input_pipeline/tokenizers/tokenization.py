"""The interface of every tokeniser: text to token ids and back.

Here: what a tokeniser offers, and the JSON files of its folder. Not here: the kinds
(sentencepiece_tokenizer.py, huggingface_tokenizer.py), which of them a folder or a GGUF file holds
(loading.py, gguf_tokenizers.py), and templates around texts (batches/template.py). Imports no
TensorFlow.
"""

import abc
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

SPACE = "\u2581"  # what SentencePiece writes for a space
JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
_MAP, _TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
BESIDE = (CONFIG, _MAP, "added_tokens.json", _TEMPLATE)  # files that hold no vocabulary
_ROLES = ("bos", "eos", "pad", "unk", "mask")

Texts = Sequence[str] | Sequence[bytes]
Ids = list[list[int]]
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
        note: a sentence for the start-up log on what had to be guessed, or ''.
        fragments: ids of pieces that are bytes and not whole characters.
        special_pieces: ids by spelling, of control pieces and others that are no parts of words.
    """

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
        files: Mapping[str, bytes],
        reading: str = "",
    ):
        """Sets what all kinds have.

        Args:
            special_ids: by role: bos, eos, pad, unk, mask, cls, sep; -1 or absent where there is
                none.
            vocab_size: see the attribute.
            family: the marks of the tokeniser's family.
            files: by name, see `files()`.
            reading: how the files are read, where their bytes alone don't decide it.
        """
        self.role_ids = {role: i for role, i in special_ids.items() if i >= 0}
        ids = (self.role_ids.get(role, -1) for role in _ROLES)
        self.bos_id, self.eos_id, self.pad_id, self.unk_id, self.mask_id = ids
        self.vocab_size, self._files = vocab_size, dict(files)
        digest = hashlib.sha256()
        for name, data in sorted(self._files.items()):
            digest.update(f"{name} {len(data)}\n".encode() + data)
        digest.update(reading.encode())
        self.fingerprint = digest.hexdigest()
        self.start_ids, self.between_ids, self.end_ids = map(list, family[:3])
        self.second_type = family.second_type

    def set_marks(self, marks: str, *, file: str) -> None:
        """Replaces the family's marks by config.tokenizer.marks, unless that is 'auto'.

        Raises:
            ValueError: the tokeniser has no such mark.
        """
        if marks == "auto":
            return
        self.between_ids = []
        for name, role, instead in (("start", "bos", "cls"), ("end", "eos", "sep")):
            token_id = self.role_ids.get(role, self.role_ids.get(instead))
            if token_id is None and marks in (role, "both"):
                raise ValueError(
                    f"config.tokenizer.marks asks for a mark {role!r}, but the tokeniser of {file} "
                    "has no such piece: set config.tokenizer.marks='auto' or 'none'"
                )
            setattr(self, f"{name}_ids", [token_id] if marks in (role, "both") else [])

    @abc.abstractmethod
    def encode_batch(self, texts: Texts, *, num_threads: int | None = None) -> Ids:
        """Returns each text's ids, without the marks, from one call that releases the GIL.

        Special pieces that stand in a text are encoded as the characters they are written with.

        Args:
            texts: str, or UTF-8 bytes.
            num_threads: None uses every core; 1 suits callers that run in parallel themselves.
        """

    @abc.abstractmethod
    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """Returns each text's ids as `encode_batch` does, and each id's slice of characters.

        Starts and stops never decrease. Pieces that are bytes of one character all have its slice;
        a space that the tokeniser put in has an empty one.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text that `ids` spell; special pieces vanish."""

    @abc.abstractmethod
    def piece(self, token_id: int) -> str:
        """Returns a piece's spelling for display: bytes as characters where these are whole."""

    @abc.abstractmethod
    def _normalize(self, texts: Sequence[str]) -> list[str]:
        """Returns texts as the tokeniser's normaliser leaves them."""

    @functools.cached_property
    def _prefix(self) -> int:
        return self._normalize(["a"])[0].index("a")  # 1 where a space is put before every text

    def normalize(self, texts: Sequence[str]) -> list[str]:
        """Returns texts as the tokeniser's normaliser leaves them, without the spaces it adds."""
        return [text[self._prefix :].replace(SPACE, " ") for text in self._normalize(texts)]

    @abc.abstractmethod
    def normalized_parts(self, text: str) -> list[tuple[str, str]]:
        """Returns the stretches of a text that are normalised apart, each with its result."""

    def sample_batch(self, texts: Texts, uniforms_B: np.ndarray, *, size: int, alpha: float) -> Ids:
        """Returns each text's ids in a segmentation that is drawn; SentencePiece only."""
        raise ValueError(
            f"augmentation.sampling_rate: a {type(self).__name__} cannot draw segmentations, "
            "SentencePiece models can: set the rate to 0"
        )

    def following(self) -> "Tokenizer":
        """Returns the tokeniser of text behind a special piece: it puts no space before texts."""
        return self

    @property
    def chat_template(self) -> str:
        """The chat template in Jinja that came with the files; '' without."""
        if _TEMPLATE in self._files:
            return self._files[_TEMPLATE].decode()
        template = stored_json(self._files, CONFIG, file="the tokeniser").get("chat_template") or ""
        if isinstance(template, list):  # several, by name
            return {row["name"]: row["template"] for row in template}.get("default", "")
        return template

    def piece_ids(self, word: str) -> list[int]:
        """Returns the ids of one word, spelled as it is."""
        return self.encode_batch([word], num_threads=1)[0]

    def files(self) -> dict[str, bytes]:
        """Returns the files of a folder that `load_tokenizer` and transformers load, by name."""
        return dict(self._files)

    def name_class(self, name: str) -> None:
        """Adds the tokeniser's class to its files, where none of them names it."""
        config = stored_json(self._files, CONFIG, file="the tokeniser")
        if name and not config.get("tokenizer_class"):
            self._files[CONFIG] = json_bytes(config | {"tokenizer_class": name}, ensure_ascii=False)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `files()` into a folder, made if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self._files.items():
            Path(folder, name).write_bytes(data)


def parse_json(data: bytes, file: str | os.PathLike) -> dict[str, Any]:
    """Returns the content of a JSON file.

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
    """Returns the content of one of a folder's JSON files; {} where it is missing."""
    return parse_json(contents[name], f"{file}: {name}") if name in contents else {}


def json_bytes(value: Mapping[str, Any], *, ensure_ascii: bool = True) -> bytes:
    """Returns one of a folder's JSON files."""
    return json.dumps(value, indent=2, ensure_ascii=ensure_ascii).encode() + b"\n"


def spelled_alike(piece: str, content: str) -> bool:
    """Whether a vocabulary's piece is the token that a JSON file names."""
    return piece in (content, SPACE + content, content.replace(" ", SPACE))


def special_pieces(read: Callable[[str], Mapping[str, Any]]) -> dict[str, str]:
    """Returns the special pieces that a folder's JSON files name, by role: 'cls', 'pad', ...

    Args:
        read: returns the content of a JSON file by its name.
    """
    roles = [(read(name), role) for name in (_MAP, CONFIG) for role in (*_ROLES, "cls", "sep")]
    return {
        role: piece for values, role in roles if (piece := _content(values.get(f"{role}_token")))
    }


def special_names(read: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """Returns all special pieces that the JSON files name, in the order transformers adds them."""
    pieces: list[str] = []
    for values in map(read, (_MAP, CONFIG)):
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            pieces.append(_content(values.get(f"{role}_token")))
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = values.get(key) or ()
            pieces += map(_content, listed.values() if isinstance(listed, dict) else listed)
    return list(dict.fromkeys(filter(None, pieces)))


def _content(piece: Any) -> str:
    return (piece["content"] if isinstance(piece, dict) else piece) or ""
