"""Folders of sentence-transformers: how an embedding model pools, and what stands before a text.

    modules.json                        Transformer, Pooling and, mostly, Normalize
    1_Pooling/config.json               mean, first ("cls") or last token
    config_sentence_transformers.json   prompts: words before a query, before a passage
    sentence_bert_config.json           the longest length, lower case

Not here: weights and tokeniser, which are those of transformers (folder.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.files import write_json

_POOLINGS = {"cls": "first", "mean": "mean", "lasttoken": "last"}  # theirs -> ours
_OLD = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "lasttoken"}
_PROMPTS = (("query",), ("document", "passage", "corpus"))  # names of those of either side
_MODE = "pooling_mode_"
_PREFIX = "sentence_transformers.models."


class Embedding(NamedTuple):
    """How a folder makes vectors.

    Attributes:
        pooling: 'mean', 'first' or 'last'.
        query, passage: words before either text; '' without.
        lower: whether texts are put into lower case first.
        max_length: longest sequence in tokens; 0 where it is not said.
    """

    pooling: str
    query: str = ""
    passage: str = ""
    lower: bool = False
    max_length: int = 0


def read(folder: Path) -> Embedding | None:
    """Returns what a folder says; None where it is not of sentence-transformers.

    Raises:
        ValueError: it has parts that are not read here, or a file is damaged.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = _json(path, list)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{path}: found the modules {', '.join(kinds)}, expected Transformer, Pooling and "
            "perhaps Normalize: set config.model.pooling, and know that the others are not applied"
        )
    path = folder / modules[1].get("path", "1_Pooling") / "config.json"
    config = _json(path, dict)
    modes = [key[len(_MODE) :] for key, value in config.items() if key.startswith(_MODE) and value]
    chosen = [_OLD.get(mode, mode) for mode in modes]
    if mode := config.get("pooling_mode"):  # since version 5: a name, or several
        chosen = [mode] if isinstance(mode, str) else list(map(str, mode))
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise ValueError(
            f"{path}: found the pooling {', '.join(chosen) or 'nothing'}, expected one "
            f"of {', '.join(_POOLINGS)}: set config.model.pooling yourself"
        )
    if not config.get("include_prompt", True):
        raise ValueError(
            f"{path}: include_prompt is false, but the words before a text are pooled here: set "
            "config.model.pooling yourself, and know that the vectors are others"
        )
    path = folder / "config_sentence_transformers.json"
    config = _json(path, dict) if path.is_file() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, Mapping) or not all(isinstance(p, str) for p in prompts.values()):
        raise ValueError(f"{path}: prompts is {prompts!r}, expected texts by name: mend the file")
    # Where a side has a prompt, the library's encode_query and encode_document read no default.
    named = any(name in prompts for names in _PROMPTS for name in names)
    default = "" if named else prompts.get(config.get("default_prompt_name") or "", "")
    sides = [next((prompts[n] for n in names if n in prompts), default) for names in _PROMPTS]
    path = folder / "sentence_bert_config.json"
    config = _json(path, dict) if path.is_file() else {}
    lower, length = bool(config.get("do_lower_case")), config.get("max_seq_length") or 0
    return Embedding(_POOLINGS[chosen[0]], *sides, lower, length)


def write(folder: Path, embedding: Embedding, *, width: int) -> None:
    """Writes these files into a folder of transformers, with normalised vectors."""
    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _PREFIX + kind}
        for i, (path, kind) in enumerate(names.items())
    ]
    write_json(folder / "modules.json", modules)
    theirs = {ours: name for name, ours in _POOLINGS.items()}[embedding.pooling]
    modes = {f"pooling_mode_{key}": name == theirs for key, name in _OLD.items()}
    modes |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    for path in list(names)[1:]:
        (folder / path).mkdir()
    config = {"word_embedding_dimension": width, **modes, "include_prompt": True}
    write_json(folder / "1_Pooling/config.json", config)
    prompts = {"query": embedding.query, "document": embedding.passage}
    config = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", config)
    config = {"max_seq_length": embedding.max_length, "do_lower_case": embedding.lower}
    write_json(folder / "sentence_bert_config.json", config)


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): fetch the folder again") from None
    rows = content if kind is list else [content]
    if not isinstance(content, kind) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{path}: expected a {kind.__name__} of JSON: fetch the folder again")
    return content
