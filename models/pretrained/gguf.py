"""Reads GGUF files: metadata, and tensors, dequantised to float32 if they are quantised.

The header is parsed here instead of by gguf.GGUFReader, which takes 8 seconds for a vocabulary of
262,144 pieces (this takes 0.15) and fails on a truncated file with an error from within numpy.
Blocks are dequantised by the gguf package. The meaning of the metadata is left to the family
(decoder_gguf.py) and to the tokeniser (input_pipeline/tokenizers/gguf_tokenizers.py).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import functools
import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from models.pretrained.files import mapped, truncated
from models.pretrained.tables import StoredTensor

# Metadata value types of the specification; those of numbers as struct codes.
_UINT32, _STRING, _ARRAY, _UINT64 = 4, 8, 9, 10
_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_LENGTH = struct.Struct("<Q")
_PLAIN = {
    GGMLQuantizationType.F32: np.float32,
    GGMLQuantizationType.F16: np.float16,
    GGMLQuantizationType.BF16: ml_dtypes.bfloat16,
}
_BLOCKS = 1 << 13  # dequantised at a time, so that intermediate arrays stay in the cache
_TOKENS, _EMBEDDING = "tokenizer.ggml.tokens", "token_embd.weight"


class _Header:
    """The header of a file, read to its metadata; then a cursor over what follows.

    Attributes:
        data: uint8, the whole file, mapped.
        num_tensors: how many tensors the header describes, from `offset` on.
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
            raise truncated(self.path, self.offset, at_least=True)
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
        Metadata by key (arrays are lists), and tensors by name.

    Raises:
        ValueError: as `metadata`, a quantisation that can't be dequantised, or a vocabulary of
            another size than the embedding.
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
        kind, first = _quantisation(path, name, code), start + offset
        block, block_bytes = GGML_QUANT_SIZES[kind]
        end = max(end, first + math.prod(shape) // block * block_bytes)
        stored[name] = StoredTensor(
            shape, functools.partial(read_tensor, path, first, kind, shape), path
        )
    if end > header.size:
        raise truncated(path, end)
    pieces = header.metadata.get(_TOKENS)
    if pieces and _EMBEDDING in stored and len(pieces) != stored[_EMBEDDING].shape[0]:
        raise ValueError(
            f"{path}: {_TOKENS} has {len(pieces)} pieces, but {_EMBEDDING} has "
            f"{stored[_EMBEDDING].shape[0]} rows: the vocabulary is another model's. Convert it "
            "again, or fetch another file."
        )
    return header.metadata, stored


def _quantisation(path: Path, name: str, code: int) -> GGMLQuantizationType:
    try:
        kind = GGMLQuantizationType(code)
        # Tried on one block of zeros, so that an unknown type fails before minutes of reading.
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError):
        raise ValueError(
            f"{path}: tensor {name} has type {code}, which the installed gguf package can't "
            "dequantise: upgrade gguf, or quantise the model to Q4_K_M or Q8_0"
        ) from None
    return kind


def read_tensor(
    path: Path, first: int, kind: GGMLQuantizationType, shape: tuple[int, ...]
) -> np.ndarray:
    """Reads the tensor at byte `first`: mapped if it isn't quantised, else as float32."""
    if kind in _PLAIN:
        return mapped(path, _PLAIN[kind], shape, first)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    count = math.prod(shape) // block
    data = mapped(path, np.uint8, (count, block_bytes), first)
    values = np.empty((count, block), np.float32)
    for start in range(0, count, _BLOCKS):
        part = slice(start, start + _BLOCKS)
        # As one row: the gguf package loops over groups of 16 rows. Scales that are not finite are
        # reported where the tensor is used, without NumPy's warning.
        with np.errstate(invalid="ignore", over="ignore"):
            values[part] = quants.dequantize(data[part].reshape(1, -1), kind).reshape(-1, block)
    return values.reshape(shape)
