"""WordPiece, byte-level BPE and all else that a tokenizer.json can say, through `tokenizers`.

Here: the tokeniser, of a folder's files or of a GGUF file (Qwen, Llama 3). Not here: what a
tokenizer.json holds where there is none (tokenizer_json.py). Called by tokenization.py. Imports no
TensorFlow.
"""

import copy
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from input_pipeline.tokenizers.tokenization import (
    SPACE,
    Marks,
    Offsets,
    Tokenizer,
    json_bytes,
    special_pieces,
    stored_chat_template,
)
from input_pipeline.tokenizers.tokenizer_files import ADDED, CONFIG, JSON, TokenizerFiles, pieces_of
from input_pipeline.tokenizers.tokenizer_json import (
    BERT,
    EMPTY,
    ROBERTA,
    WORDS,
    Spec,
    added_row,
    byte_level,
    of_merges,
    of_vocab,
    post_processor,
    set_bert_options,
    vocab_lines,
)

_GGUF_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "mask": "mask"}
_HIDDEN = "\ufdd0 "  # a noncharacter and a space: no normalised text holds them
_REPLACED = ("added_tokens_decoder", "sp_model_kwargs", "legacy", "add_bos_token", "add_eos_token")


class HuggingFaceTokenizer(Tokenizer):
    """What a tokenizer.json says, with special pieces in a text taken for text."""

    def __init__(
        self,
        spec: Spec,
        *,
        file: str,
        marks: str = "auto",
        names: Mapping[str, str],
        contents: Mapping[str, bytes],
        reading: str = "",
    ):
        """Takes a parsed tokenizer.json.

        Args:
            spec: as it is in the file; padding and truncation in it are left out.
            file: where it comes from, for messages.
            marks: config.tokenizer.marks.
            names: special pieces by role, as of `special_pieces`.
            contents: the files it was read from, by name.
            reading: as of Tokenizer.

        Raises:
            ValueError: no tokenizer.json, or a mark is asked for that there is not.
        """
        bare = spec | dict.fromkeys(("padding", "truncation", "post_processor"))
        self._tokenizer = _made(_unreachable(bare), file)
        self._normalizer = _normalizer(spec, file)
        family = _family(spec["post_processor"], file)
        self._tokenizer.encode_special_tokens = True
        vocabulary = {
            piece.removeprefix(_HIDDEN): i for piece, i in self._tokenizer.get_vocab().items()
        }
        self._pieces = {i: piece for piece, i in vocabulary.items()}
        self.special_pieces = {token["content"]: token["id"] for token in spec["added_tokens"]}
        for piece, i in self.special_pieces.items():
            if vocabulary.get(piece) != i:
                raise ValueError(
                    f"{file} gives the added token {piece!r} the id {i}, but behind the "
                    f"vocabulary it gets {vocabulary.get(piece)}: copy the file again"
                )
        self._added = set(self.special_pieces.values())
        self._byte_level = '"ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["decoder"]])
        ids = {role: vocabulary[piece] for role, piece in names.items() if piece in vocabulary}
        model = spec["model"]
        unknown = vocabulary.get(model.get("unk_token"), -1)
        ids["unk"] = model["unk_id"] if isinstance(model.get("unk_id"), int) else unknown
        super().__init__(
            ids,
            vocab_size=max(self._pieces) + 1,
            family=family,
            marks=marks,
            files=contents,
            file=file,
            reading=reading,
        )
        byte = re.compile("<0x[0-9A-F]{2}>" if model.get("byte_fallback") else "(?!)")
        self.fragments = frozenset(
            i
            for i, piece in self._pieces.items()
            if i not in self._added
            and (byte.fullmatch(piece) or (self._byte_level and "\ufffd" in _read(piece)))
        )

    @property
    def json(self) -> str:
        """The tokenizer.json as it is used here, with which `tokenizers` gives the same ids."""
        return self._tokenizer.to_str()

    def encode_batch(
        self, texts: Sequence[str] | Sequence[bytes], *, num_threads: int | None = None
    ) -> list[list[int]]:
        """As of Tokenizer; the package has one pool of threads, whatever `num_threads` says."""
        texts = [text if isinstance(text, str) else text.decode() for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """As of Tokenizer."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def following(self) -> Tokenizer:
        """As of Tokenizer."""
        made = self._tokenizer.to_str()
        changed = made.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        if changed == made:
            return self
        other = copy.copy(self)
        other._tokenizer = tokenizers.Tokenizer.from_str(changed)
        other._tokenizer.encode_special_tokens = True
        return other

    def decode(self, ids: Sequence[int]) -> str:
        """As of Tokenizer."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        """As of Tokenizer."""
        piece = self._pieces.get(int(token_id), "")
        if not self._byte_level or token_id in self._added:
            return piece
        if token_id in self.fragments:
            return "".join(f"<0x{_BYTES[c]:02X}>" if c in _BYTES else c for c in piece)
        return _read(piece)

    @functools.cached_property
    def _prefix(self) -> int:
        return self._normalizer.normalize_str("a").index("a") if self._normalizer else 0

    def normalize(self, texts: Sequence[str]) -> list[str]:
        """As of Tokenizer."""
        if self._normalizer is None:
            return list(texts)
        results = map(self._normalizer.normalize_str, texts)
        return [result[self._prefix :].replace(SPACE, " ") for result in results]

    def normalized_parts(self, text: str) -> list[tuple[str, str]]:
        """As of Tokenizer: characters with the marks that combine with them."""
        sources = re.findall(r".[\u0300-\u036f\u3099\u309a\uff9e\uff9f]*", text, re.DOTALL)
        parts = list(zip(sources, self._alone(sources), strict=True))
        [whole] = self.normalize([text])
        return parts if "".join(result for _, result in parts) == whole else [(text, whole)]

    def _alone(self, sources: Sequence[str]) -> list[str]:
        results = self.normalize([f"a{source}a" for source in sources])
        return [result[1:-1] for result in results]


def from_files(files: TokenizerFiles, *, marks: str = "auto") -> HuggingFaceTokenizer:
    """Makes the tokeniser of a folder.

    Args:
        files: read, their kind chosen.
        marks: config.tokenizer.marks.

    Raises:
        ValueError: a file is damaged, or others contradict it.
    """
    names = special_pieces(files.contents, file=str(files.path))
    config = files.json(CONFIG)
    if files.kind == "json":
        spec = files.json(JSON)
        kinds = {"added_tokens": list, "model": dict}
        if absent := sorted(
            key
            for key in EMPTY.keys() - {"version"}
            if key not in spec or not isinstance(spec[key], kinds.get(key, object))
        ):
            raise ValueError(
                f"{files.where} lacks {', '.join(absent)}: it is no whole tokenizer.json"
            )
        names = _named_in(spec) | names
        if "vocab.txt" in files.contents and spec.get("model", {}).get("type") == "WordPiece":
            lines = vocab_lines(files.contents["vocab.txt"], f"{files.path}: vocab.txt")
            files.refuse_conflict("vocab.txt", dict(enumerate(lines)))
        set_bert_options(spec.get("normalizer"), config)
    elif files.kind == "wordpiece":
        names = BERT | names
        spec = of_vocab(files.contents[files.main], names, config, file=files.where)
    else:
        spec, names = of_merges(files, names)
    spec, added = _with_added(spec, files)
    return HuggingFaceTokenizer(
        spec,
        file=files.where,
        marks=marks,
        names=names,
        contents=files.contents,
        reading=files.reading + ("added" if added else ""),
    )


def _with_added(spec: Spec, files: TokenizerFiles) -> tuple[Spec, bool]:
    """Returns a tokenizer.json with the tokens that other files add to it, and whether any do."""
    if files.left_out:
        model = spec["model"]
        kept = pieces_of(spec, files.left_out).items()
        is_list = not isinstance(model["vocab"], dict)
        vocab = model["vocab"][: len(kept)] if is_list else {piece: i for i, piece in kept}
        rows = [row for row in spec["added_tokens"] if row["id"] not in files.left_out]
        spec = spec | {"model": model | {"vocab": vocab}, "added_tokens": rows}
    known = {token["content"] for token in spec.get("added_tokens") or ()}
    added = [token for token in files.added_to(pieces_of(spec)) if token["content"] not in known]
    if added:
        rows = [{key: token[key] for key in ADDED} for token in added]
        rows = sorted([*spec["added_tokens"], *rows], key=lambda token: token["id"])
        spec = spec | {"added_tokens": rows}
    return spec, bool(added)


def from_model(
    spec: Spec,
    files: TokenizerFiles,
    *,
    names: Mapping[str, str],
    around: Sequence[Sequence[int]],
    marks: str,
) -> HuggingFaceTokenizer:
    """Makes the tokeniser of a SentencePiece model that was written as a tokenizer.json.

    Args:
        spec: without a post-processor.
        files: it was read from, for all that is not the model.
        names: special pieces by role.
        around: ids before the first text of a pair, between the two and at the end.
        marks: config.tokenizer.marks.
    """
    pieces = pieces_of(spec)
    start, between, end = ([pieces[i] for i in ids] for ids in around)
    if start or end:
        spec["post_processor"] = post_processor(spec, [*start, "A", *between, "B", *end])
    config = {key: value for key, value in files.json(CONFIG).items() if key not in _REPLACED}
    config |= {f"{role}_token": piece for role, piece in names.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    contents = {
        JSON: json.dumps(spec, ensure_ascii=False).encode(),
        CONFIG: json_bytes(config, ensure_ascii=False),
    }
    if (template := files.contents.get("chat_template.jinja")) is not None:
        contents["chat_template.jinja"] = template
    return HuggingFaceTokenizer(spec, file=files.where, marks=marks, names=names, contents=contents)


def from_gguf(
    metadata: Mapping[str, Any], *, file: str, marks: str = "auto"
) -> HuggingFaceTokenizer:
    """Makes the byte-level BPE whose vocabulary and merges a GGUF file carries.

    Args:
        metadata: of the file, by key.
        file: its name, for messages.
        marks: config.tokenizer.marks.

    Raises:
        ValueError: the metadata are not all there, or cut texts in a way that isn't known.
    """
    keys = [f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type")]
    if absent := [key for key in keys if key not in metadata]:
        raise ValueError(
            f"{file} lacks {', '.join(absent)}, of which a byte-level BPE is made: set "
            "config.tokenizer.model to a folder with tokenizer.json"
        )
    cut = metadata.get("tokenizer.ggml.pre")
    if cut not in ("qwen2", "llama-bpe"):
        raise ValueError(
            f"{file} has tokenizer.ggml.pre={cut!r}, expected 'qwen2' or 'llama-bpe': set "
            "config.tokenizer.model to a folder with tokenizer.json"
        )
    tokens, merges, types = (metadata[key] for key in keys)
    control, user_defined = 3, 4  # of llama.cpp's token types
    spec = byte_level(
        {token: i for i, token in enumerate(tokens)},
        merges,
        special=[token for token, kind in zip(tokens, types, strict=True) if kind == control],
        words=WORDS % ("{1,3}" if cut == "llama-bpe" else ""),
    )
    added = [token for token, kind in zip(tokens, types, strict=True) if kind == user_defined]
    spec["added_tokens"] += [added_row(token, spec, special=False) for token in added]
    spec["added_tokens"].sort(key=lambda token: token["id"])
    spec["normalizer"] = {"type": "NFC"} if cut == "qwen2" else None
    spec["model"]["ignore_merges"] = cut == "llama-bpe"
    ids = {r: metadata.get(f"tokenizer.ggml.{key}_token_id", -1) for r, key in _GGUF_ROLES.items()}
    names = {role: tokens[i] for role, i in ids.items() if 0 <= i < len(tokens)}
    with_bos = metadata.get("tokenizer.ggml.add_bos_token", cut == "llama-bpe")
    if with_bos and "bos" in names:
        spec["post_processor"] = post_processor(spec, [names["bos"], "A", names["bos"], "B"])
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {f"{role}_token": piece for role, piece in names.items()}
    config |= stored_chat_template(metadata)
    contents = {
        JSON: json.dumps(spec, ensure_ascii=False).encode(),
        CONFIG: json_bytes(config, ensure_ascii=False),
    }
    return HuggingFaceTokenizer(spec, file=file, marks=marks, names=names, contents=contents)


def _made(spec: Spec, file: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the package raises no narrower one
        raise ValueError(
            f"{file} is no tokeniser that the package tokenizers {tokenizers.__version__} "
            f"understands ({error}): update the package, or copy the file again"
        ) from None


def _family(post_processor: Spec | None, file: str) -> Marks:
    """Reads off a post-processor's result, whatever its kind, what it puts around two texts.

    Marks between two texts that only repeat the start (the <bos> of decoders) are left out: what
    joins their texts is the template.
    """
    if post_processor is None:
        return Marks()
    pair = _made(EMPTY | {"post_processor": post_processor}, file).encode("a", "a")
    first, second = (pair.sequence_ids.index(text) for text in (0, 1))
    ids, second_type = pair.ids, pair.type_ids[second]
    start, between, end = ids[:first], ids[first + 1 : second], ids[second + 1 :]
    if between == start:
        between, second_type = [], 0
    return Marks(tuple(start), tuple(between), tuple(end), second_type)


def _named_in(spec: Spec) -> dict[str, str]:
    """Finds special pieces with the usual names, for folders that do not say which they are."""
    special = {token["content"] for token in spec.get("added_tokens", ()) if token["special"]}
    found = {role: piece for role, piece in ROBERTA.items() if piece in special}
    return found | {role: piece for role, piece in BERT.items() if piece in special}


def _unreachable(spec: Spec) -> Spec:
    """Renames the special pieces of a unigram model, whose trie would find them in texts."""
    if spec["model"].get("type") != "Unigram":
        return spec
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}

    def renamed(piece: str) -> str:
        return _HIDDEN + piece if piece in special else piece

    vocab = [[renamed(piece), score] for piece, score in spec["model"]["vocab"]]
    added = [token | {"content": renamed(token["content"])} for token in spec["added_tokens"]]
    return spec | {"model": spec["model"] | {"vocab": vocab}, "added_tokens": added}


def _normalizer(spec: Spec, file: str) -> tokenizers.normalizers.Normalizer | None:
    """The normaliser as a text's losses are seen by: spaces around characters are none."""
    shown = json.dumps(spec["normalizer"])
    shown = re.sub(r'("handle_chinese_chars": )true', r"\1false", shown)
    return _made(EMPTY | {"normalizer": json.loads(shown)}, file).normalizer


def _byte_alphabet() -> dict[str, int]:
    """What byte-level BPE writes for each byte: itself if printable, else from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


_BYTES = _byte_alphabet()


def _read(piece: str) -> str:
    """Returns the text of a byte-level piece, with U+FFFD for what is no whole character."""
    if not _BYTES.keys() >= set(piece):
        return piece
    return bytes(_BYTES[character] for character in piece).decode("utf-8", errors="replace")
