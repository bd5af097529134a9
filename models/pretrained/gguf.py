"""Reads GGUF files: metadata, and tensors dequantised to float32.

The header is parsed here instead of by gguf.GGUFReader, which takes 8 seconds for a vocabulary of
262,144 pieces (this takes 0.15) and shows a truncated file as an error from within numpy. Blocks
are dequantised by the gguf package. What the metadata says of a tokeniser is the business of
input_pipeline/tokenization.py. Called by `load_pretrained`, and for `metadata` by whoever builds
that tokeniser.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import functools
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from models.decoder import DecoderConfig
from models.pretrained.tables import StoredTensor

# Metadata value types of the specification; those of numbers as struct codes.
_UINT32, _STRING, _ARRAY, _UINT64 = 4, 8, 9, 10
_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_LENGTH = struct.Struct("<Q")
# What Gemma 3's metadata leaves out (technical report, 2503.19786): every sixth layer is global,
# and the others have this rotary base.
_GLOBAL_EVERY = 6
_LOCAL_ROPE_BASE = 10_000.0


class _Header:
    """The header of a file, read to its metadata; then a cursor over what follows.

    Attributes:
        data: uint8, the whole file, mapped.
        num_tensors: how many tensors the header tells of, from `offset` on.
        metadata: by key; arrays are lists.
    """

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        self.data = np.memmap(path, np.uint8, "r") if self.size else np.zeros(0, np.uint8)
        self._view = memoryview(self.data)
        if (magic := bytes(self._view[:4])) != b"GGUF":
            raise ValueError(
                f"{path} is not a GGUF file: it starts with {magic!r}, expected b'GGUF'. Fetch the "
                "file again."
            )
        self.offset = 4
        if (version := self.value(_UINT32)) not in (2, 3):
            raise ValueError(
                f"{path} has GGUF version {version}, expected 2 or 3: convert it again"
            )
        self.num_tensors, num_keys = self.values(_UINT64, 2)
        self.metadata = {self.string(): self.value(self.value(_UINT32)) for _ in range(num_keys)}

    def value(self, kind: int) -> Any:
        """Reads one value of a type."""
        return self.values(kind, 1)[0]

    def values(self, kind: int, count: int) -> list:
        """Reads values of a type; arrays are lists."""
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind == _ARRAY:
            return [self.values(self.value(_UINT32), self.value(_UINT64)) for _ in range(count)]
        if kind not in _NUMBERS:
            raise self._damaged(f"value of unknown type {kind}")
        start = self._advance(count * struct.calcsize(_NUMBERS[kind]))
        return list(struct.unpack_from(f"<{count}{_NUMBERS[kind]}", self._view, start))

    def string(self) -> str:
        """Reads a length and that many bytes of UTF-8; lean, for a vocabulary has 262,144."""
        start = self._advance(_LENGTH.unpack_from(self._view, self._advance(8))[0])
        try:
            return str(self._view[start : self.offset], "utf-8")
        except UnicodeDecodeError:
            raise self._damaged("string that is no UTF-8") from None

    def _advance(self, length: int) -> int:
        """Steps over `length` bytes, all within the file; returns the offset before them."""
        start, self.offset = self.offset, self.offset + length
        if self.offset > self.size:
            raise truncated(self.path, found=self.size, expected=self.offset, at_least=True)
        return start

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path} is damaged: {what} before byte {self.offset:,}. Delete it and fetch it "
            "again."
        )


def metadata(path: Path) -> dict[str, Any]:
    """Reads the metadata of a GGUF file, vocabulary and all; arrays are lists.

    Raises:
        ValueError: the file is no GGUF, is truncated (naming bytes found and expected), or damaged.
    """
    return _Header(path).metadata


def read(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Reads the header of a GGUF file.

    Returns:
        Metadata by key (arrays are left out), and tensors by name.

    Raises:
        ValueError: as `metadata`, or a quantisation that can't be dequantised.
    """
    header = _Header(path)
    infos = {}
    for _ in range(header.num_tensors):
        name = header.string()
        dimensions = header.values(_UINT64, header.value(_UINT32))
        infos[name] = (tuple(reversed(dimensions)), header.value(_UINT32), header.value(_UINT64))
    alignment = header.metadata.get("general.alignment", 32)  # 32 is the specification's default
    start = math.ceil(header.offset / alignment) * alignment

    stored, end = {}, start
    for name, (shape, code, offset) in infos.items():
        kind = _quantisation(path, name, code)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        first = start + offset
        last = first + math.prod(shape) // block * block_bytes
        end = max(end, last)
        stored[name] = StoredTensor(
            shape, functools.partial(_dequantise, header.data, first, last, kind, shape)
        )
    if end > header.size:
        raise truncated(path, found=header.size, expected=end)
    return {k: v for k, v in header.metadata.items() if not isinstance(v, list)}, stored


def gemma3_config(
    metadata: dict[str, Any], stored: dict[str, StoredTensor], *, file: str
) -> DecoderConfig:
    """Builds the config of a Gemma 3 text model from GGUF metadata.

    Raises:
        ValueError: another architecture, a key that is missing, or one that this reader would have
            to honour and doesn't know.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "gemma3":
        raise ValueError(
            f"{file} holds architecture {architecture!r}, expected 'gemma3': use a GGUF of a Gemma "
            "3 text model"
        )
    names = {
        "embedding_length": "width",
        "block_count": "num_layers",
        "feed_forward_length": "hidden",
        "attention.head_count": "num_heads",
        "attention.head_count_kv": "num_kv_heads",
        "attention.key_length": "head_size",
        "attention.value_length": "value_size",
        "attention.layer_norm_rms_epsilon": "norm_epsilon",
        "attention.sliding_window": "window",
        "rope.freq_base": "rope_base",
    }
    prefix, unused = "gemma3.", {"context_length"}
    found = {key[len(prefix) :] for key in metadata if key.startswith(prefix)} - unused
    has_embedding = "token_embd.weight" in stored
    if found != names.keys() or not has_embedding:
        raise ValueError(
            f"{file}: metadata of another Gemma 3 than the text models read here. Missing: "
            f"{sorted(names.keys() - found)}; unknown: {sorted(found - names.keys())} (each under "
            f"{prefix!r}); token_embd.weight {'is' if has_embedding else 'is not'} there. Use a "
            "GGUF converted from a Gemma 3 text model of up to 1B parameters."
        )
    values = {name: metadata[prefix + key] for key, name in names.items()}
    if (value_size := values.pop("value_size")) != values["head_size"]:
        raise ValueError(f"{file}: value heads of {value_size}, expected {values['head_size']}")
    window, base = values.pop("window"), values.pop("rope_base")
    is_global = [
        layer % _GLOBAL_EVERY == _GLOBAL_EVERY - 1 for layer in range(values["num_layers"])
    ]
    return DecoderConfig(
        vocab_size=stored["token_embd.weight"].shape[0],
        windows=tuple(0 if g else window for g in is_global),
        rope_bases=tuple(base if g else _LOCAL_ROPE_BASE for g in is_global),
        attention_scale=values["head_size"] ** -0.5,
        embedding_scale=values["width"] ** 0.5,
        **values,
    )


def truncated(path: Path, *, found: int, expected: int, at_least: bool = False) -> ValueError:
    """The one error for a file that ends early; safetensors.py raises it too."""
    return ValueError(
        f"{path} is truncated: found {found:,} bytes, expected {'at least ' * at_least}"
        f"{expected:,}. Delete it and fetch it again."
    )


def _quantisation(path: Path, name: str, code: int) -> GGMLQuantizationType:
    try:
        kind = GGMLQuantizationType(code)
        # Tried on one block of zeros, so that a refusal comes before minutes of reading.
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError):
        raise ValueError(
            f"{path}: tensor {name} has type {code}, which the installed gguf package can't "
            "dequantise: upgrade gguf, or quantise the model to Q4_K_M or Q8_0"
        ) from None
    return kind


def _dequantise(
    data: np.ndarray, first: int, last: int, kind: GGMLQuantizationType, shape: tuple[int, ...]
) -> np.ndarray:
    """Reads bytes [first, last) as float32 of `shape`."""
    rows = math.prod(shape[:-1])
    # The gguf package loops over groups of 16 rows. Blocks don't cross rows, so that rows can be
    # joined: fewer, longer rows make the embedding 9 times faster (0.4 s).
    block = data[first:last].reshape(rows // math.gcd(rows, 16), -1)
    return quants.dequantize(block, kind).reshape(shape)
