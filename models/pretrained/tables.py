"""One weight table per model family, applied in both directions.

A row binds a parameter's path in our tree to its name in GGUF and in Hugging Face safetensors;
`{}` stands for the layer number. `parameters_from` reads a checkpoint through a table and refuses
gaps on either side, `tensors_from` is its inverse. Bytes are the business of gguf.py and
safetensors.py.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from flax import traverse_util

Column = Literal["gguf", "safetensors"]


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, known without reading, and how to read it as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Row(NamedTuple):
    """Where one kind of parameter is stored.

    Attributes:
        parameter: path in our tree, '/' between levels.
        gguf: name in a GGUF file.
        safetensors: name in a Hugging Face checkpoint.
        kind: 'as_is'; 'kernel', stored [out, in] by both and [in, out] by us; or 'norm', of which
            safetensors stores scale - 1 while GGUF and we store the scale.
    """

    parameter: str
    gguf: str
    safetensors: str
    kind: Literal["as_is", "kernel", "norm"]


def _layer(parameter: str, gguf: str, safetensors: str, kind: Literal["kernel", "norm"]) -> Row:
    """A row within a layer: fills in what all of them share."""
    suffix = {"kernel": "kernel", "norm": "scale"}[kind]
    return Row(
        f"layer_{{}}/{parameter}/{suffix}",
        f"blk.{{}}.{gguf}.weight",
        f"model.layers.{{}}.{safetensors}.weight",
        kind,
    )


GEMMA3 = (
    Row("embedder/embedding", "token_embd.weight", "model.embed_tokens.weight", "as_is"),
    Row("final_norm/scale", "output_norm.weight", "model.norm.weight", "norm"),
    _layer("pre_attention_norm", "attn_norm", "input_layernorm", "norm"),
    _layer("attention/query", "attn_q", "self_attn.q_proj", "kernel"),
    _layer("attention/key", "attn_k", "self_attn.k_proj", "kernel"),
    _layer("attention/value", "attn_v", "self_attn.v_proj", "kernel"),
    _layer("attention/query_norm", "attn_q_norm", "self_attn.q_norm", "norm"),
    _layer("attention/key_norm", "attn_k_norm", "self_attn.k_norm", "norm"),
    _layer("attention/output", "attn_output", "self_attn.o_proj", "kernel"),
    _layer("post_attention_norm", "post_attention_norm", "post_attention_layernorm", "norm"),
    _layer("pre_mlp_norm", "ffn_norm", "pre_feedforward_layernorm", "norm"),
    _layer("mlp/gate", "ffn_gate", "mlp.gate_proj", "kernel"),
    _layer("mlp/up", "ffn_up", "mlp.up_proj", "kernel"),
    _layer("mlp/down", "ffn_down", "mlp.down_proj", "kernel"),
    _layer("post_mlp_norm", "post_ffw_norm", "post_feedforward_layernorm", "norm"),
)


def parameters_from(
    stored: Mapping[str, StoredTensor],
    shapes: dict,
    *,
    table: tuple[Row, ...],
    column: Column,
    file: str,
) -> dict:
    """Reads a checkpoint's tensors into a parameter tree.

    Args:
        stored: tensors of the checkpoint by their name there.
        shapes: nested dict of what the model holds; leaves have `.shape`.
        table: of the model's family.
        column: whose names `stored` uses.
        file: the checkpoint, for messages.

    Returns:
        Nested dict like `shapes` of contiguous float32 arrays.

    Raises:
        ValueError: naming every tensor that no parameter takes, every parameter that no tensor
            fills, or every tensor whose shape doesn't fit.
    """
    expected = {path: leaf.shape for path, leaf in _flatten(shapes).items()}
    matches = {name: _translate(name, table, column, "parameter") for name in stored}
    source = {match[0]: (name, match[1]) for name, match in matches.items() if match}
    unmapped = sorted(n for n, match in matches.items() if not match or match[0] not in expected)
    unfilled = sorted(expected.keys() - source.keys())
    if unmapped or unfilled:
        raise ValueError(
            f"{file} doesn't hold this model.\n"
            f"Tensors without a parameter: {_listing(unmapped)}.\n"
            f"Parameters without a tensor: {_listing(unfilled)}.\n"
            "Use a whole checkpoint of a supported family (Gemma 3 text), or add its names to "
            "models/pretrained/tables.py."
        )
    misfits = []
    for path, (name, kind) in source.items():
        found, wanted = stored[name].shape, expected[path]
        wanted = wanted[::-1] if kind == "kernel" else wanted
        if found != wanted:
            misfits.append(f"{name} has shape {found}, expected {wanted} for {path}")
    if misfits:
        raise ValueError(
            f"{file}: shapes don't fit its own metadata.\n{_listing(misfits, separator='; ')}.\n"
            "The metadata (config.json or GGUF header) is another model's: use the one saved with "
            "the weights."
        )

    def parameter(name: str, kind: str) -> np.ndarray:
        value = stored[name].read()
        if kind == "kernel":
            return np.ascontiguousarray(value.T)
        return value + np.float32(1) if kind == "norm" and column == "safetensors" else value

    flat = {path: parameter(*source[path]) for path in expected}
    return traverse_util.unflatten_dict(flat, sep="/")


def tensors_from(parameters: dict, *, table: tuple[Row, ...], column: Column) -> dict:
    """Inverse of `parameters_from`: contiguous float32 arrays by their names in `column`.

    Raises:
        ValueError: naming every parameter that the table doesn't know.
    """

    def tensor(value: np.ndarray, kind: str) -> np.ndarray:
        value = np.asarray(value, np.float32)
        if kind == "kernel":
            return np.ascontiguousarray(value.T)
        return value - np.float32(1) if kind == "norm" and column == "safetensors" else value

    tensors, unmapped = {}, []
    for path, value in _flatten(parameters).items():
        match = _translate(path, table, "parameter", column)
        if match:
            tensors[match[0]] = tensor(value, match[1])
        else:
            unmapped.append(path)
    if unmapped:
        raise ValueError(
            f"Parameters without a name in {column}: {_listing(unmapped)}. Write the backbone "
            "only, or add them to models/pretrained/tables.py."
        )
    return tensors


def _translate(
    name: str, table: tuple[Row, ...], source: str, target: str
) -> tuple[str, str] | None:
    """Finds the row whose `source` column matches; returns its `target` name and its kind."""
    for row in table:
        pattern = re.escape(getattr(row, source)).replace(r"\{\}", r"(\d+)")
        if match := re.fullmatch(pattern, name):
            return getattr(row, target).format(*match.groups()), row.kind
    return None


def _flatten(tree: dict) -> dict:
    return traverse_util.flatten_dict(tree, sep="/")


def _listing(items: list[str], *, separator: str = ", ") -> str:
    """Items for a message: all of a few, the first of many."""
    shown = separator.join(items[:20]) or "none"
    return shown if len(items) <= 20 else f"{shown} and {len(items) - 20} more"
