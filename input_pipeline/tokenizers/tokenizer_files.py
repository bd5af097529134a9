"""Which tokeniser a folder holds, decided from its files before one is made of them.

Here: the files, the class that they name and how it is read, the ids that they give to pieces, and
pieces added to a vocabulary. Not here: the tokenisers that are made of them
(sentencepiece_tokenizer.py, huggingface_tokenizer.py).

What decides is the class in tokenizer_config.json or config.json, then tokenizer.json, then what
the files are. The architecture decides nothing: BERT's comes with XLM-R's tokeniser
(multilingual-e5), LLaMA's with byte-level BPE. It is a hint where no class is named.
"""

import functools
import re
from collections.abc import Container, Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from input_pipeline.tokenizers.tokenization import (
    BESIDE,
    CONFIG,
    JSON,
    SPACE,
    parse_json,
    special_names,
    special_pieces,
    spelled_alike,
)

Token = dict[str, Any]  # a row of added_tokens in a tokenizer.json
_Reading = tuple[str, tuple[str, ...]]  # a kind, and the files it is read from

MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_FILES = (*MODEL_FILES, JSON, "vocab.txt", "vocab.json", "merges.txt", *BESIDE)
ADDED = ("id", "content", "special", "single_word", "lstrip", "rstrip", "normalized")
_SOURCES = {
    "wordpiece": ("vocab.txt",),
    "roberta": ("vocab.json", "merges.txt"),
    "qwen2": ("vocab.json", "merges.txt"),
    "xlm-roberta": ("sentencepiece.bpe.model",),
    "t5": ("spiece.model",),
    "llama": ("tokenizer.model",),
    "gemma": ("tokenizer.model",),
}
OWN_NAMES = {kind: names[0] for kind, names in _SOURCES.items()}
_WHOLE: _Reading = ("json", (JSON,))
# Kinds by their files, where neither a class nor an architecture is known.
_GUESSES: list[_Reading] = [
    ("plain", ("tokenizer.model",)),
    *((kind, _SOURCES[kind]) for kind in ("t5", "xlm-roberta", "wordpiece")),
]
# Classes, without 'Tokenizer' and 'Fast', and how they are read.
_KINDS = {
    **dict.fromkeys(("bert", "convbert", "distilbert", "electra", "ernie"), "wordpiece"),
    **{"roberta": "roberta", "qwen2": "qwen2", "xlmroberta": "xlm-roberta"},
    **{"t5": "t5", "mt5": "t5", "llama": "llama", "gemma": "gemma"},
}
# Classes that are nothing but their tokenizer.json, and those that name no kind at all. Others of
# transformers do more (CpmTokenizer and RoFormerTokenizer cut Chinese words first).
_OF_JSON = re.findall(
    r"\w+",
    "albert bart barthez bigbird blenderbot bloom camembert codegen codellama cohere deberta "
    "debertav2 fnet funnel gpt2 gptneox layoutlm layoutxlm led longformer mbart mbart50 mobilebert "
    "mpnet mvp nllb pegasus reformer rembert squeezebert xglm xlnet",
)
_GENERIC = ("auto", "pretrained", "tokenizersbackend")
# Kinds by the beginning of model_type, or of the first of architectures.
_HINTS = _KINDS | {"albert": "json", "mistral": "llama", "qwen": "qwen2", "umt5": "t5"}
_FAIRSEQ = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>"}  # that XLM-R's class puts first
MISFITS = 0.001  # share of pieces; tokenizer.json spells a few otherwise (a tab in Gemma's)
_FLAGS = dict.fromkeys(("special", "single_word", "lstrip", "rstrip"), False)


class TokenizerFiles:
    """A tokeniser's files and how they are read.

    Attributes:
        path: the folder or file that was named.
        json: returns the content of one of the JSON files by its name, {} where it is missing.
        class_name: as a file names it; '' where none does.
        kind: 'wordpiece', 'roberta', 'qwen2', 'xlm-roberta', 't5', 'llama', 'gemma'; 'json' is what
            tokenizer.json says, 'plain' a SentencePiece model with the ids that it has. Set by
            `choose`, as are the next two.
        main: name of the file that holds the pieces.
        is_guessed: whether a SentencePiece model's name alone decided its kind.
    """

    kind: str = ""
    main: str = ""
    is_guessed: bool = False

    def __init__(self, path: Path, checkpoint: Path | None = None):
        """Looks for the files.

        Args:
            path: of a folder as a model hub has it, or of a file in or from such a folder.
            checkpoint: whose folder names the class where `path` doesn't.

        Raises:
            ValueError: a JSON file is damaged.
        """
        self.path, self._named = path, "" if path.is_dir() else _name_of(path)
        folder = path if path.is_dir() else path.parent
        places = [folder, checkpoint] if checkpoint and checkpoint.is_dir() else [folder]
        paths = {name: path / name for name in _FILES}
        if self._named:
            near = (p for p in places if any((p / name).is_file() for name in BESIDE))
            near = next(near, folder)
            paths = {name: near / name for name in BESIDE} | {self._named: path}
        self._paths = {name: file for name, file in paths.items() if file.is_file()}
        self.json = functools.cache(lambda name: _read_json(self._paths.get(name)))
        if JSON in self._paths:  # which describes a tokeniser by itself
            places = [folder]
        names = [place / name for place in places for name in (CONFIG, "config.json")]
        self._configs = {file: _read_json(file) for file in names}
        self._hints = [config for file, config in self._configs.items() if file.name != CONFIG]
        self.class_name, self._class_file, self._has_code = self._class()

    @functools.cached_property
    def contents(self) -> dict[str, bytes]:
        """The files of the tokeniser, by name."""
        return {name: read_file(file) for name, file in self._paths.items()}

    @property
    def where(self) -> str:
        """The main file, for messages."""
        return str(self.path) if self._named else f"{self.path}/{self.main}"

    @functools.cached_property
    def left_out(self) -> frozenset[int]:
        """Ids of special pieces behind the embedding's last row, which Gemma 3 has for images.

        No text reaches them; those with a role would be used.
        """
        size = next(filter(None, (hint.get("vocab_size") for hint in self._hints)), None)
        roles = special_pieces(self.json).values()
        return frozenset(
            i
            for i, token in self._declared.items()
            if size and i >= size and token["special"] and token["content"] not in roles
        )

    @property
    def note(self) -> str:
        """A sentence on each thing that was guessed or left out, or ''."""
        notes = []
        if self.is_guessed and any(self._hints):  # whose architecture has another one
            notes.append(
                f"No file beside {self.main} names the tokeniser's class: its ids are arranged as "
                f"those of {self.kind} are. If that is wrong, name the class in {CONFIG}."
            )
        if self.left_out:
            names = ", ".join(repr(self._declared[i]["content"]) for i in sorted(self.left_out)[:3])
            notes.append(f"Left out: {len(self.left_out)} special pieces without a row ({names}).")
        return " ".join(notes)

    @property
    def declared(self) -> dict[int, Token]:
        """Pieces whose ids the files name, as rows of added_tokens, by id."""
        return {i: row for i, row in self._declared.items() if i not in self.left_out}

    @property
    def named_pieces(self) -> dict[int, str]:
        """Spellings by id of `declared` and of the pieces that the class implies."""
        kind = (self.kind or _KINDS.get(_stem(self.class_name))) if self.class_name else ""
        implied = _FAIRSEQ if kind == "xlm-roberta" else {}
        return {i: token["content"] for i, token in self.declared.items()} | implied

    @property
    def reading(self) -> str:
        """What the fingerprint holds of how the files are read; '' where that never changed.

        Earlier versions looked at model_type and not at the class: their runs must not go on with
        other ids.
        """
        (_, config), (_, hint), *_ = self._configs.items()
        before = "" if self._named else hint.get("model_type") or config.get("tokenizer_class")
        name = next((name for name in MODEL_FILES if name in self.contents), self.main)
        was = "json"
        if name in MODEL_FILES:
            guess = next(kind for kind, names in _GUESSES if name in names)
            was = _hint([{"model_type": before or guess}])
            was = was if was in ("json", "xlm-roberta", "t5") else "plain"
        now = self.kind if self.kind in ("xlm-roberta", "t5") else "plain"
        return "" if was == (now if self.main in MODEL_FILES else "json") else f"{self.kind} "

    def choose(self) -> None:
        """Sets `kind` and `main`.

        Raises:
            FileNotFoundError: no tokeniser is there.
            ValueError: a file is damaged, or the class isn't implemented.
        """
        # A class decides; a generic one says nothing about a file that is named by itself.
        stem, guesses = _stem(self.class_name), []
        if self._named == JSON:  # asked for by name, and complete
            readings = [_WHOLE]
        elif self._has_code or (stem and not (stem in _GENERIC and self._named)):
            kind = "json" if stem in _GENERIC or stem in _OF_JSON else _KINDS.get(stem)
            if self._has_code or kind is None:
                raise _not_implemented(self.class_name, self._class_file)
            readings = _readings(kind, any_name=True)
        else:
            kind, stem = _hint(self._hints), ""
            if kind == "json" and JSON not in self.contents and self.contents.keys() & MODEL_FILES:
                raise ValueError(
                    f"{self.path} holds an ALBERT model without {JSON}, which alone describes how "
                    f"texts are normalised: put {JSON} beside it"
                )
            readings, guesses = _readings(kind), _GUESSES
        for reading in (*readings, *guesses):
            if self.contents.keys() >= {*reading[1]}:
                self.kind, self.main = reading[0], reading[1][0]
                self.is_guessed = reading not in readings and self.kind in ("t5", "xlm-roberta")
                return
        raise self._nothing_to_read(kind if stem else "")

    def _nothing_to_read(self, kind: str) -> Exception:
        """Returns the error for files that are missing; `kind` is that of the class, if any."""
        remedy = "set config.tokenizer.model to the right file or folder"
        if kind:
            names = " and ".join(_SOURCES[kind]) + f" or {JSON}" if kind in _SOURCES else JSON
            there = ", ".join(name for name in self.contents if name not in BESIDE)
            return ValueError(
                f"{self._class_file} names the tokeniser {self.class_name}, which is read from "
                f"{names}; {self.path} has {there or 'none'}. Put {names} there, or {remedy}. "
                f"transformers writes {JSON}: AutoTokenizer.from_pretrained(folder)"
                ".save_pretrained(folder)"
            )
        if self.contents.keys() >= {"vocab.json", "merges.txt"}:
            return ValueError(
                f"{self.path} holds vocab.json and merges.txt of a model of unknown kind: name the "
                f"class in {CONFIG} (RobertaTokenizer or Qwen2Tokenizer), or put {JSON} beside them"
            )
        kind_of_error = ValueError if self._named else FileNotFoundError
        return kind_of_error(
            f"no known tokeniser at {self.path}: expected {', '.join(MODEL_FILES)}, {JSON}, "
            f"vocab.txt or a .gguf file; {remedy}"
        )

    def added_to(self, pieces: Mapping[int, str]) -> list[Token]:
        """Returns the tokens that the files add to a vocabulary, or name in it, by id.

        Special pieces that a file names without an id follow at the end, as in transformers.

        Args:
            pieces: the vocabulary by id, arranged.

        Raises:
            ValueError: the ids named are not those of the vocabulary.
        """
        tokens = sorted(self.declared.values(), key=itemgetter("id"))
        ids = {piece: i for i, piece in pieces.items()}
        size = max(pieces, default=-1) + 1
        for token in tokens:
            i, content = token["id"], token["content"]
            claim = f"{self.path}: {token['file']} gives {content!r} the id {i}, but "
            if not spelled_alike(pieces.get(i, content), content) or ids.get(content, i) != i:
                there = f"{pieces.get(i, 'nothing')!r} there"
                there += f" and {content!r} at {ids[content]}" if content in ids else ""
                raise ValueError(
                    f"{claim}{self.main}, read as {self.class_name or self.kind}, has {there}: "
                    f"they are of different tokenisers, or tokenizer_class in {CONFIG} is wrong; "
                    "correct it, or copy the folder again"
                )
            if i > size:
                raise ValueError(
                    f"{claim}the pieces before it end at {size - 1}: {self.main} was cut off or is "
                    "of another tokeniser; copy it again"
                )
            size = max(size, i + 1)
        # transformers appends special pieces that have a role but no id.
        known = ids.keys() | {token["content"] for token in tokens}
        for piece in special_names(self.json):
            if not {piece, SPACE + piece} & known:
                tokens.append(_FLAGS | {"id": size, "content": piece, "special": True})
                tokens[-1]["normalized"] = False
                known |= {piece}
                size += 1
        return tokens

    def refuse_conflict(self, name: str, pieces: Mapping[int, str]) -> None:
        """Compares the pieces of another file with those of a tokenizer.json beside it.

        Raises:
            ValueError: they are not the same.
        """
        others = pieces_of(self.json(JSON), self.left_out)
        different = [i for i, piece in others.items() if pieces.get(i) != piece]
        if len(different) > MISFITS * len(others) or not pieces.keys() >= {*different}:
            i = min(different)
            there = repr(pieces[i]) if i in pieces else "nothing"
            raise ValueError(
                f"{self.path}: {name} has {there} at {i}, where {JSON} has {others[i]!r} "
                f"({len(different):,} of {len(others):,} pieces differ): one of them is another "
                "model's or was cut off, or tokenizer_class is wrong; copy both again, or name one"
            )

    def _class(self) -> tuple[str, str, bool]:
        """Returns the class that is named, the file that does, and whether it has its own code."""
        for file, config in self._configs.items():
            name, code = str(config.get("tokenizer_class") or ""), config.get("auto_map") or {}
            code = code.get("AutoTokenizer") if isinstance(code, dict) else code
            if code and self._named != JSON:
                codes = [code] if isinstance(code, str) else code
                name = next(filter(None, [name, *codes]))
                return name, f"{file} (auto_map: code of its own)", True
            if name:
                return name, str(file), False
        return "", "", False

    @functools.cached_property
    def _declared(self) -> dict[int, Token]:
        """`declared`, with those that are left out."""
        special, file = set(special_names(self.json)), f"{CONFIG} (added_tokens_decoder)"
        spec, config, more = map(self.json, (JSON, CONFIG, "added_tokens.json"))
        try:
            tokens = [token | {"file": JSON} for token in spec.get("added_tokens") or ()]
            for i, token in (config.get("added_tokens_decoder") or {}).items():
                is_special = token.get("special", False) or token["content"] in special
                row = {"normalized": True} | token | {"special": is_special}
                tokens.append(row | {"id": int(i), "file": file})
            for content, i in more.items():
                flags = {"special": content in special, "normalized": content not in special}
                row = {"id": int(i), "content": content, "file": "added_tokens.json"}
                tokens.append(row | flags)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path}: the added tokens of {JSON}, {CONFIG} or added_tokens.json have an "
                f"unknown form ({type(error).__name__}: {error}): copy the files again"
            ) from None
        by_id: dict[int, Token] = {}
        by_content: dict[str, Token] = {}
        for token in (_FLAGS | token for token in tokens):
            i, content = token["id"], token["content"]
            for other in (by_id.setdefault(i, token), by_content.setdefault(content, token)):
                if (other["id"], other["content"]) != (i, content):
                    raise ValueError(
                        f"{self.path}: {other['file']} has {other['content']!r} at "
                        f"{other['id']}, but {token['file']} has {content!r} at {i}: the files "
                        "are of different tokenisers; copy the folder again"
                    )
        return by_id


def read_file(path: Path) -> bytes:
    """Reads one of a tokeniser's files.

    Raises:
        ValueError: it is empty, or what git leaves where git-lfs wasn't there to fetch it.
    """
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs."):
        raise ValueError(
            f"{path} is a pointer left by git lfs, not the file itself: run 'git lfs pull' in its "
            "folder, or download the file"
        )
    if not data.strip() and path.suffix != ".model":  # SentencePiece's reader reports these
        raise ValueError(f"{path} is empty: copy it again")
    return data


def pieces_of(spec: Mapping[str, Any], left_out: Container[int] = ()) -> dict[int, str]:
    """Returns the vocabulary of a tokenizer.json's model, by id."""
    vocab = (spec.get("model") or {}).get("vocab") or {}
    if isinstance(vocab, dict):
        return {i: piece for piece, i in vocab.items() if i not in left_out}
    return {i: row[0] for i, row in enumerate(vocab) if i not in left_out}


def _read_json(path: Path | None) -> dict[str, Any]:
    return parse_json(read_file(path), path) if path and path.is_file() else {}


def _readings(kind: str, *, any_name: bool = False) -> list[_Reading]:
    """Returns what a kind is read from, the best first; `any_name` reads any SentencePiece file."""
    own = _SOURCES.get(kind, ())
    if own and own[0] in MODEL_FILES:  # a tokenizer.json beside it is the same, and slower
        return [(kind, (name,)) for name in (*own, *MODEL_FILES * any_name)] + [_WHOLE]
    return [_WHOLE, (kind, own)] if own else [_WHOLE]


def _stem(class_name: str) -> str:
    return class_name.lower().removesuffix("fast").removesuffix("tokenizer")


def _hint(configs: Iterable[Mapping[str, Any]]) -> str:
    """Returns the kind that an architecture usually has; '' where it isn't known."""
    for config in configs:
        for name in (config.get("model_type") or "", *(config.get("architectures") or ())):
            plain = re.sub("[-_]", "", str(name).lower())
            for beginning, kind in _HINTS.items():
                if plain.startswith(beginning):
                    return kind
    return ""


def _name_of(path: Path) -> str:
    """Returns the name in `_FILES` that a file named by itself stands for."""
    if path.name in ("vocab.json", "merges.txt"):
        raise ValueError(
            f"{path} is one of two files of a tokeniser: set config.tokenizer.model to their folder"
        )
    if path.suffix == ".json":
        return JSON
    return path.name if path.suffix != ".model" or path.name in MODEL_FILES else MODEL_FILES[0]


def _not_implemented(name: str, file: str) -> ValueError:
    return ValueError(
        f"{file} names the tokeniser {name}, which isn't implemented: "
        f"{', '.join(sorted(_KINDS))} (each …Tokenizer) are, as are PreTrainedTokenizerFast and "
        f"{len(_OF_JSON)} classes that nothing but their tokenizer.json describes. If a "
        f"{JSON} describes it wholly, set config.tokenizer.model to that file"
    )
