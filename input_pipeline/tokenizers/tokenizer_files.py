"""Which tokeniser a folder holds, told from its files before one is made of them.

Here: the files, the class that they name and how it is read, the ids that they give to pieces, and
pieces added to a vocabulary. Not here: the tokenisers that are made of them
(sentencepiece_tokenizer.py, huggingface_tokenizer.py). Called by tokenization.py and training/.

What decides is the class in tokenizer_config.json or config.json, then tokenizer.json, then what
the files are. The architecture decides nothing: BERT's comes with XLM-R's tokeniser
(multilingual-e5), LLaMA's with byte-level BPE. It is a hint where no class is named.
"""

import functools
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.tokenizers.tokenization import (
    FILES,
    MODEL_FILES,
    SPACE,
    parse_json,
    special_pieces,
    spelled_alike,
    stored_json,
)

Token = dict[str, Any]  # a row of added_tokens in a tokenizer.json

JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
ADDED = ("id", "content", "special", "single_word", "lstrip", "rstrip", "normalized")
_BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
# What each kind is read from.
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
_GUESSES = {"tokenizer.model": "plain", "spiece.model": "t5"}
_GUESSES["sentencepiece.bpe.model"] = "xlm-roberta"
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
# The class by the beginning of model_type, or of the first of architectures; first match wins.
_HINTS = (
    *(("xlmroberta", "XLMRoberta"), ("roberta", "Roberta"), ("electra", "Electra")),
    *(("bert", "Bert"), ("ernie", "Ernie"), ("albert", "Albert"), ("mistral", "Llama")),
    *(("llama", "Llama"), ("gemma", "Gemma"), ("qwen", "Qwen2"), ("umt5", "T5")),
    *(("mt5", "T5"), ("t5", "T5")),
)
_FAIRSEQ = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>"}  # that XLM-R's class puts first
MISFITS = 0.001  # share of pieces; tokenizer.json spells a few otherwise (a tab in Gemma's)
_UNSAID = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)


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
    if not data.strip() and path.suffix != ".model":  # SentencePiece's reader says it of these
        raise ValueError(f"{path} is empty: copy it again")
    return data


class TokenizerFiles:
    """A tokeniser's files and how they are read.

    Attributes:
        path: the folder or file that was named.
        contents: those of `FILES` that are there, by name.
        kind: 'wordpiece', 'roberta', 'qwen2', 'xlm-roberta', 't5', 'llama', 'gemma'; 'json' is what
            tokenizer.json says, 'plain' a SentencePiece model with the ids that it has.
        main: name of the file that holds the pieces.
        class_name: as a file names it; '' where none does.
        declared: pieces whose ids the files name, as rows of added_tokens, by id.
        left_out: ids of special pieces that the embedding has no rows for.
        is_guessed: whether a SentencePiece model's name alone told its kind.
        note: a sentence on what was guessed, or ''.
    """

    def __init__(self, path: Path, checkpoint: Path | None = None):
        """Reads the files and chooses.

        Args:
            path: of a folder as a model hub has it, or of a file in or from such a folder.
            checkpoint: whose folder names the class where `path` doesn't.

        Raises:
            FileNotFoundError: no tokeniser is there.
            ValueError: a file is damaged or contradicts another, or the class isn't implemented.
        """
        self.path, self.note, self.is_guessed = path, "", False
        folder = path if path.is_dir() else path.parent
        checkpoint = checkpoint if checkpoint and checkpoint.is_dir() else None
        self._named = "" if path.is_dir() else _name_of(path)
        if self._named:
            near = [each for each in (folder, checkpoint) if each and _holds(each, _BESIDE)]
            files = {name: near[0] / name for name in _BESIDE if near} | {self._named: path}
        else:
            files = {name: path / name for name in FILES}
        self.contents = {name: read_file(file) for name, file in files.items() if file.is_file()}
        places = [folder]
        if JSON not in self.contents and checkpoint:  # which says all of a tokeniser by itself
            places.append(checkpoint)
        self._configs = [self._config(place, CONFIG) for place in places]
        self._hints = [self._config(place, "config.json") for place in places]
        self.class_name, self._class_file = self._class(places)
        self.kind, self.main = self._choose()
        self.declared = _declared(self.json, str(path))
        self._rows = next(filter(None, (each.get("vocab_size") for each in self._hints)), None)
        self.left_out = self._without_rows()
        self.declared = {i: row for i, row in self.declared.items() if i not in self.left_out}

    @property
    def where(self) -> str:
        """The main file, for messages."""
        return str(self.path) if self._named else f"{self.path}/{self.main}"

    def json(self, name: str) -> dict[str, Any]:
        """Returns what one of the JSON files holds; {} where it isn't there."""
        if name not in self._parsed:
            self._parsed[name] = stored_json(self.contents, name, file=str(self.path))
        return self._parsed[name]

    @functools.cached_property
    def _parsed(self) -> dict[str, dict[str, Any]]:
        return {}

    def _without_rows(self) -> set[int]:
        """Finds special pieces behind the embedding's last row, which Gemma 3 has for images.

        No text reaches them; those with a role would be used.
        """
        roles = special_pieces(self.contents, file=str(self.path)).values()
        found = {
            i
            for i, token in self.declared.items()
            if self._rows and i >= self._rows and token["special"] and token["content"] not in roles
        }
        if found:
            names = ", ".join(repr(self.declared[i]["content"]) for i in sorted(found)[:3])
            self.note += f"Left out: {len(found)} special pieces without a row ({names}). "
        return found

    @property
    def named_pieces(self) -> dict[int, str]:
        """Spellings by id, as of `declared` and by the class."""
        implied = _FAIRSEQ if self.class_name and self.kind == "xlm-roberta" else {}
        return {i: token["content"] for i, token in self.declared.items()} | implied

    @property
    def reading(self) -> str:
        """What the fingerprint holds of how the files are read; '' where that never changed.

        Until the class decided, model_type did: runs of then must not go on with other ids.
        """
        model_type = self._hints[0].get("model_type") or self._configs[0].get("tokenizer_class")
        before = "" if self._named else str(model_type or "").lower().replace("-", "")
        name = next((name for name in MODEL_FILES if name in self.contents), self.main)
        kind = "json"
        if name in MODEL_FILES and not before.startswith("albert"):
            kind = "plain"
            if before.startswith("xlmroberta") or (not before and "bpe" in name):
                kind = "xlm-roberta"
            elif before.startswith(("t5", "mt5", "umt5")) or (not before and "spiece" in name):
                kind = "t5"
        now = self.kind if self.kind in ("xlm-roberta", "t5") else "plain"
        return "" if kind == (now if self.main in MODEL_FILES else "json") else f"{self.kind} "

    def added_to(self, pieces: Mapping[int, str]) -> list[Token]:
        """Returns the tokens that the files add to a vocabulary, or name in it, by id.

        Special pieces that a file names and nothing gives an id follow at the end, as transformers
        has it.

        Args:
            pieces: the vocabulary by id, arranged.

        Raises:
            ValueError: the ids named are not those of the vocabulary.
        """
        tokens = sorted(self.declared.values(), key=lambda token: token["id"])
        special = special_names(self.json)
        wanted = {token["content"] for token in tokens}.union(special, (SPACE + s for s in special))
        ids = {piece: i for i, piece in pieces.items() if piece in wanted}
        size = max(pieces, default=-1) + 1
        for token in tokens:
            i, content = token["id"], token["content"]
            says = f"{self.path}: {token['file']} gives {content!r} the id {i}, but "
            there = repr(pieces[i]) if i in pieces else "nothing"
            if not spelled_alike(pieces.get(i, content), content) or ids.get(content, i) != i:
                other = f", and {content!r} at {ids[content]}" if content in ids else ""
                raise ValueError(
                    f"{says}{self.main}, read as {self.class_name or self.kind}, has {there} "
                    f"there{other}: they are of different tokenisers, or tokenizer_class is wrong; "
                    f"correct it in {CONFIG}, or copy the folder again"
                )
            if i > size:
                raise ValueError(
                    f"{says}the pieces before it end at {size - 1}: {self.main} was cut off or is "
                    "of another tokeniser; copy it again"
                )
            size = max(size, i + 1)
        known = ids.keys() | {token["content"] for token in tokens}
        for piece in special:
            if not any(spelling in known for spelling in (piece, SPACE + piece)):
                tokens.append(_token(size, piece, special=True, file=CONFIG))
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
                f"({len(different):,} of {len(others):,} pieces differ): one of the two is of "
                "another model or was cut off, or tokenizer_class is wrong; copy both again, or "
                "set config.tokenizer.model to the right one"
            )

    def _config(self, place: Path, name: str) -> dict[str, Any]:
        file = place / name
        return parse_json(read_file(file), file) if file.is_file() else {}

    def _class(self, places: Iterable[Path]) -> tuple[str, str]:
        """Returns the class that is named, and the file that does."""
        for place, *configs in zip(places, self._configs, self._hints, strict=True):
            for name, config in zip((CONFIG, "config.json"), configs, strict=True):
                found, code = str(config.get("tokenizer_class") or ""), config.get("auto_map") or {}
                code = code.get("AutoTokenizer") if isinstance(code, dict) else code
                if code and self._named != JSON:
                    found = found or str(
                        next(filter(None, [code] if isinstance(code, str) else code))
                    )
                    raise _not_implemented(found, f"{place / name} (auto_map: code of its own)")
                if found:
                    return found, str(place / name)
        return "", ""

    def _choose(self) -> tuple[str, str]:
        """Returns `kind` and `main`."""
        stem = _stem(self.class_name)
        if self._named == JSON:  # asked for by name, and complete
            return "json", JSON
        if stem and not (stem in _GENERIC and self._named):
            return self._of_class(stem)
        kind = _kind(hint := _hint(self._hints))
        sources = _SOURCES.get(kind, ())
        preferred = JSON not in self.contents or (sources[:1] and sources[0] in MODEL_FILES)
        if sources and preferred and self.contents.keys() >= {*sources}:
            return kind, sources[0]
        if JSON in self.contents:
            return "json", JSON
        if kind == "json" and any(name in self.contents for name in MODEL_FILES):
            raise ValueError(
                f"{self.path} holds an {hint.upper()} model without {JSON}, which alone says "
                f"what is done to texts before their pieces are looked up: put {JSON} beside it"
            )
        return self._of_files()

    def _of_class(self, stem: str) -> tuple[str, str]:
        kind = "json" if stem in _GENERIC or stem in _OF_JSON else _KINDS.get(stem)
        if kind is None:
            raise _not_implemented(self.class_name, self._class_file)
        sources = _SOURCES.get(kind, (JSON,))
        if sources[0] in MODEL_FILES:
            # The model under any name, then tokenizer.json, which says the same more slowly.
            for name in (*sources, *MODEL_FILES, JSON):
                if name in self.contents:
                    return ("json" if name == JSON else kind), name
        elif JSON in self.contents:
            return "json", JSON
        elif all(name in self.contents for name in sources):
            return kind, sources[0]
        names = " and ".join(sources) + ("" if kind == "json" else f" or {JSON}")
        raise ValueError(
            f"{self._class_file} names the tokeniser {self.class_name}, which is read from {names};"
            f" {self.path} has {', '.join(self._mains()) or 'none of them'}. Put {names} there, or "
            "set config.tokenizer.model to the file or folder that holds it"
            + (
                ". With transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                if kind == "json"
                else ""
            )
        )

    def _of_files(self) -> tuple[str, str]:
        for name, kind in _GUESSES.items():
            if name in self.contents:
                self.is_guessed = kind != "plain"
                if self.is_guessed and any(self._hints):  # whose architecture has another one
                    self.note = (
                        f"No file beside {name} names the tokeniser's class: its ids are arranged "
                        f"as those of {kind} are. If that is wrong, name the class in {CONFIG}. "
                    )
                return kind, name
        if "vocab.txt" in self.contents:
            return "wordpiece", "vocab.txt"
        if self.contents.keys() >= {"vocab.json", "merges.txt"}:
            raise ValueError(
                f"{self.path} holds vocab.json and merges.txt of a model of unknown kind; they are "
                f"read for RobertaTokenizer and Qwen2Tokenizer (tokenizer_class in {CONFIG}): name "
                f"the class there, or put {JSON} beside them"
            )
        if self._named:
            raise ValueError(
                f"{self.path} is no tokeniser that is known: set config.tokenizer.model to a "
                ".model, tokenizer.json, vocab.txt or .gguf file, or a folder"
            )
        raise FileNotFoundError(
            f"no tokeniser at {self.path}: expected {', '.join(MODEL_FILES)}, tokenizer.json or "
            "vocab.txt. Set config.tokenizer.model to such a file or a folder with one, or to a "
            ".gguf file"
        )

    def _mains(self) -> list[str]:
        return [name for name in FILES if name in self.contents and name not in _BESIDE]


def named_pieces(folder: Path) -> dict[int, str]:
    """Returns the pieces whose ids a checkpoint's folder names, whatever its tokeniser is."""
    contents = {
        name: read_file(folder / name) for name in (JSON, *_BESIDE) if (folder / name).is_file()
    }
    read = functools.cache(lambda name: stored_json(contents, name, file=str(folder)))
    config = read(CONFIG)
    file = folder / "config.json"
    named = config.get("tokenizer_class") or (
        parse_json(read_file(file), file).get("tokenizer_class") if file.is_file() else ""
    )
    implied = _FAIRSEQ if _stem(str(named or "")) == "xlmroberta" else {}
    return {i: token["content"] for i, token in _declared(read, str(folder)).items()} | implied


def pieces_of(spec: Mapping[str, Any], left_out: Container[int] = ()) -> dict[int, str]:
    """Returns the vocabulary of a tokenizer.json's model, by id."""
    vocab = (spec.get("model") or {}).get("vocab") or {}
    if isinstance(vocab, dict):
        return {i: piece for piece, i in vocab.items() if i not in left_out}
    return {i: row[0] for i, row in enumerate(vocab) if i not in left_out}


def special_names(read: Any) -> list[str]:
    """Returns the special pieces that the JSON files name, in the order transformers adds them."""
    found: list[str] = []
    for name in ("special_tokens_map.json", CONFIG):
        values = read(name)
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            found.append(_content(values.get(f"{role}_token")))
        for role in ("additional_special_tokens", "extra_special_tokens"):
            listed = values.get(role) or ()
            found += map(_content, listed.values() if isinstance(listed, dict) else listed)
    return list(dict.fromkeys(piece for piece in found if piece))


def _content(piece: Any) -> str:
    return (piece["content"] if isinstance(piece, dict) else piece) or ""


def _declared(read: Any, path: str) -> dict[int, Token]:
    special = set(special_names(read))
    rows: list[Token] = []
    try:
        for token in read(JSON).get("added_tokens") or ():
            rows.append(_UNSAID | token | {"file": JSON})
        for i, token in (read(CONFIG).get("added_tokens_decoder") or {}).items():
            token = {"special": False, "normalized": True} | token
            token["special"] |= token["content"] in special
            rows.append(
                _UNSAID | token | {"id": int(i), "file": f"{CONFIG} (added_tokens_decoder)"}
            )
        for content, i in read("added_tokens.json").items():
            rows.append(
                _token(int(i), content, special=content in special, file="added_tokens.json")
            )
        known: dict[int, Token] = {}
        ids: dict[str, Token] = {}
        for row in rows:
            for other in (known.get(row["id"], row), ids.get(row["content"], row)):
                if (other["id"], other["content"]) != (row["id"], row["content"]):
                    raise ValueError(
                        f"{path}: {other['file']} has {other['content']!r} at {other['id']}, but "
                        f"{row['file']} has {row['content']!r} at {row['id']}: the files are of "
                        "different tokenisers; copy the folder again"
                    )
            known.setdefault(row["id"], row)
            ids.setdefault(row["content"], row)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: the added tokens of {JSON}, {CONFIG} or added_tokens.json are in no form "
            f"that is known ({type(error).__name__}: {error}): copy the files again"
        ) from None
    return known


def _token(i: int, content: str, *, special: bool, file: str) -> Token:
    flags = {**_UNSAID, "special": special, "normalized": not special}
    return {"id": i, "content": content, **flags, "file": file}


def _stem(class_name: str) -> str:
    return class_name.lower().removesuffix("fast").removesuffix("tokenizer")


def _kind(stem: str) -> str:
    return "json" if _stem(stem) in _OF_JSON else _KINDS.get(_stem(stem), "")


def _hint(configs: Iterable[Mapping[str, Any]]) -> str:
    """Returns the class that an architecture usually has; '' where it isn't known."""
    for config in configs:
        names = [config.get("model_type") or "", *(config.get("architectures") or ())]
        for name in names:
            plain = str(name).lower().replace("-", "").replace("_", "")
            for beginning, hint in _HINTS:
                if plain.startswith(beginning):
                    return hint
    return ""


def _name_of(path: Path) -> str:
    """Returns the name in `FILES` that a file named by itself stands for."""
    if path.name in ("vocab.json", "merges.txt"):
        raise ValueError(
            f"{path} is one of two files of a tokeniser: set config.tokenizer.model to their folder"
        )
    if path.suffix == ".json":
        return JSON
    return path.name if path.suffix != ".model" or path.name in FILES else "tokenizer.model"


def _holds(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _not_implemented(name: str, file: str) -> ValueError:
    return ValueError(
        f"{file} names the tokeniser {name}, which isn't implemented: "
        f"{', '.join(sorted(_KINDS))} (each …Tokenizer) are, as are PreTrainedTokenizerFast and "
        f"{len(_OF_JSON)} classes that nothing but their tokenizer.json describes. If a "
        "tokenizer.json says all that this one does, set config.tokenizer.model to that file"
    )
