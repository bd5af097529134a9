"""WordPiece, byte-level BPE and all else that a tokenizer.json can say, through `tokenizers`.

Here: the tokeniser, and making it of a folder's files. Not here: what a tokenizer.json holds where
there is none (tokenizer_json.py). Imports no TensorFlow.
"""

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import tokenizers

from input_pipeline.tokenizers.tokenization import (
    CONFIG,
    JSON,
    Ids,
    Marks,
    Offsets,
    Texts,
    Tokenizer,
    json_bytes,
    special_pieces,
)
from input_pipeline.tokenizers.tokenizer_files import ADDED, TokenizerFiles, pieces_of
from input_pipeline.tokenizers.tokenizer_json import (
    BERT,
    EMPTY,
    ROBERTA,
    Spec,
    of_merges,
    of_vocab,
    vocab_lines,
)

_HIDDEN = "\ufdd0 "  # a noncharacter and a space: no normalised text holds them
_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class HuggingFaceTokenizer(Tokenizer):
    """What a tokenizer.json describes, with special pieces in a text read as text."""

    def __init__(
        self,
        spec: Spec,
        names: Mapping[str, str],
        *,
        file: str,
        contents: Mapping[str, bytes],
        reading: str = "",
    ):
        """Makes the tokeniser of a parsed tokenizer.json.

        Args:
            spec: as it is in the file; padding and truncation in it are left out.
            names: special pieces by role, see `special_pieces`.
            file: where it comes from, for messages.
            contents: the files it was read from, by name.
            reading: see Tokenizer.

        Raises:
            ValueError: no tokenizer.json.
        """
        bare = spec | dict.fromkeys(("padding", "truncation", "post_processor"))
        self._tokenizer = _made(_unreachable(bare), file)
        self._tokenizer.encode_special_tokens = True
        self._normalizer = _normalizer(spec, file)
        pieces = self._tokenizer.get_vocab().items()
        self._pieces = {i: piece.removeprefix(_HIDDEN) for piece, i in pieces}
        vocabulary = {piece: i for i, piece in self._pieces.items()}
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
            family=_family(spec["post_processor"], file),
            files=contents,
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

    def encode_batch(self, texts: Texts, *, num_threads: int | None = None) -> Ids:
        """See Tokenizer; the package has one pool of threads, whatever `num_threads` is."""
        texts = [text if isinstance(text, str) else text.decode() for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """See Tokenizer."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def following(self) -> Tokenizer:
        """See Tokenizer."""
        changed = self.json.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        if changed == self.json:
            return self
        other = copy.copy(self)
        other._tokenizer = tokenizers.Tokenizer.from_str(changed)
        other._tokenizer.encode_special_tokens = True
        return other

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        """See Tokenizer."""
        piece = self._pieces.get(int(token_id), "")
        if not self._byte_level or token_id in self._added:
            return piece
        if token_id in self.fragments:
            return "".join(f"<0x{_BYTES[c]:02X}>" if c in _BYTES else c for c in piece)
        return _read(piece)

    def _normalize(self, texts: Sequence[str]) -> list[str]:
        return [self._normalizer.normalize_str(t) for t in texts] if self._normalizer else [*texts]

    def normalized_parts(self, text: str) -> list[tuple[str, str]]:
        """See Tokenizer: characters with the marks that combine with them."""
        sources = re.findall(r".[\u0300-\u036f\u3099\u309a\uff9e\uff9f]*", text, re.DOTALL)
        results = self.normalize([f"a{source}a" for source in sources])
        parts = [(source, res[1:-1]) for source, res in zip(sources, results, strict=True)]
        [whole] = self.normalize([text])
        return parts if "".join(result for _, result in parts) == whole else [(text, whole)]


def from_files(files: TokenizerFiles) -> HuggingFaceTokenizer:
    """Makes the tokeniser of a folder.

    Args:
        files: read, their kind chosen.

    Raises:
        ValueError: a file is damaged, or others contradict it.
    """
    names = special_pieces(files.json)
    if files.kind == "json":
        spec = files.json(JSON)
        kinds = dict.fromkeys(EMPTY, dict | None) | {"added_tokens": list, "model": dict}
        kinds["version"] = object
        if absent := [k for k in sorted(kinds) if not isinstance(spec.get(k, ...), kinds[k])]:
            raise ValueError(f"{files.where} lacks {', '.join(absent)}: it is no whole {JSON}")
        special = {token["content"] for token in spec["added_tokens"] if token["special"]}
        usual = [*ROBERTA.items(), *BERT.items()]  # for folders that don't name them
        names = {role: piece for role, piece in usual if piece in special} | names
        if "vocab.txt" in files.contents and spec["model"].get("type") == "WordPiece":
            lines = vocab_lines(files.contents["vocab.txt"], f"{files.path}: vocab.txt")
            files.refuse_conflict("vocab.txt", dict(enumerate(lines)))
    else:
        spec, names = (of_vocab if files.kind == "wordpiece" else of_merges)(files, names)
    normalizer, config = spec["normalizer"] or {}, files.json(CONFIG)
    if normalizer.get("type") == "BertNormalizer":  # as transformers overrides them
        normalizer |= {key: config[name] for name, key in _BERT_OPTIONS.items() if name in config}
    spec, added = _with_added(spec, files)
    reading = files.reading + "added" * added
    return HuggingFaceTokenizer(
        spec, names, file=files.where, contents=files.contents, reading=reading
    )


def from_spec(
    spec: Spec,
    names: Mapping[str, str],
    config: Mapping[str, Any],
    *,
    file: str,
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> HuggingFaceTokenizer:
    """Makes the tokeniser of a tokenizer.json that was written here.

    Args:
        spec: of tokenizer.json.
        names: special pieces by role.
        config: the fields of tokenizer_config.json.
        file: where it comes from, for messages.
        more: other files of its folder.
    """
    contents = {
        JSON: json.dumps(spec, ensure_ascii=False).encode(),
        CONFIG: json_bytes(config, ensure_ascii=False),
        **more,
    }
    return HuggingFaceTokenizer(spec, names, file=file, contents=contents)


def _with_added(spec: Spec, files: TokenizerFiles) -> tuple[Spec, bool]:
    """Returns a tokenizer.json with the tokens that other files add to it, and whether any do."""
    if files.left_out:
        model = spec["model"]  # pieces that are left out have its last ids
        kept = pieces_of(spec, files.left_out).items()
        is_list = not isinstance(model["vocab"], dict)
        vocab = model["vocab"][: len(kept)] if is_list else {piece: i for i, piece in kept}
        rows = [row for row in spec["added_tokens"] if row["id"] not in files.left_out]
        spec = spec | {"model": model | {"vocab": vocab}, "added_tokens": rows}
    known = {token["content"] for token in spec["added_tokens"]}
    added = [token for token in files.added_to(pieces_of(spec)) if token["content"] not in known]
    rows = [*spec["added_tokens"], *({key: token[key] for key in ADDED} for token in added)]
    if added:
        spec = spec | {"added_tokens": sorted(rows, key=itemgetter("id"))}
    return spec, bool(added)


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
