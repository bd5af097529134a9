"""The silent-loss meter: what of a text a tokeniser does not pass on to the model as it is.

Here: counting, over the texts of a data set, the characters that a tokeniser's own normaliser
changes or drops, those that its vocabulary does not know, and those that fall back to bytes. The
normaliser of XLM-R and mT5, for example, turns ， into , without a word; this says so at start-up.
Not here: the recoding that the config asks for (normalization.py counts its own). Called by
preparation.py and training/experiment.py.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import Any

import numpy as np
import sentencepiece

from input_pipeline.tokenization import Tokenizer

_SPACE = "\u2581"  # what SentencePiece writes for a space
_BATCH = 10_000  # texts at a time, to bound memory
_VERBS = {
    "changed": "changes",
    "dropped": "drops",
    "unknown": "does not know",
    "byte_fallback": "spells in bytes",
}


@dataclasses.dataclass(frozen=True)
class Loss:
    """What happens to one character.

    Attributes:
        character: as it stands in the texts; of unknown ones, after normalisation.
        code: 'U+FF0C'.
        what: 'changed', 'dropped', 'unknown' or 'byte_fallback'.
        count: how often.
        becomes: what stands for it then, at its most frequent; '' unless changed.
    """

    character: str
    code: str
    what: str
    count: int
    becomes: str


@dataclasses.dataclass(frozen=True)
class SilentLoss:
    """What a tokeniser does to the characters of some texts.

    Attributes:
        texts, characters: how many were measured.
        changed, dropped: characters of the texts that the normaliser replaces, or leaves out.
        unknown, byte_fallback: characters, as normalised, without a piece: of these, the model
            sees one and the same mark, or the bytes of UTF-8.
        worst: the most frequent losses of each kind, of all kinds by frequency.
    """

    texts: int
    characters: int
    changed: int
    dropped: int
    unknown: int
    byte_fallback: int
    worst: tuple[Loss, ...]

    def prose(self) -> str:
        """Returns a sentence for the start-up log, with the five worst characters of each kind."""
        parts = []
        for what, verb in _VERBS.items():
            if count := getattr(self, what):
                worst = [loss for loss in self.worst if loss.what == what][:5]
                shown = " ".join(
                    _visible(loss.character)
                    + (f"→{_visible(loss.becomes)}" if loss.becomes else "")
                    + f" ({loss.count:,})"
                    for loss in worst
                )
                parts.append(f"{verb} {count:,} ({100 * count / self.characters:.3g}%): {shown}")
        kept = "keeps all as they are"
        head = f"Of {self.characters:,} characters in {self.texts:,} texts, the tokeniser"
        return f"{head} {'; '.join(parts) or kept}."

    def to_json(self) -> dict[str, Any]:
        """Returns all of it, ready for JSON, with each loss's share of the characters."""
        shares = {f"{what}_share": getattr(self, what) / max(1, self.characters) for what in _VERBS}
        return dataclasses.asdict(self) | shares


def measure(
    texts: Iterable[str], tokenizer: Tokenizer, *, limit: int = 20, max_texts: int | None = None
) -> SilentLoss:
    """Counts what `tokenizer` does to the characters of `texts`.

    That a space becomes U+2581, and that one is put before a text, is no loss.

    Args:
        texts: without lone surrogates.
        tokenizer: of the model.
        limit: how many of the most frequent losses of each kind to list.
        max_texts: measure the first ones only; None takes all.
    """
    remaining = islice(texts, max_texts)
    count = characters = 0
    losses: Counter[tuple[str, str, str]] = Counter()  # of (what, character, what it becomes)
    while batch := list(islice(remaining, _BATCH)):
        count += len(batch)
        characters += sum(map(len, batch))
        losses += _normalizer_losses(batch, tokenizer.processor)
        losses += _vocabulary_losses(batch, tokenizer)
    totals: Counter[str] = Counter()
    by_character: Counter[tuple[str, str]] = Counter()
    becomes: dict[tuple[str, str], str] = {}
    for (what, character, result), number in losses.most_common():
        totals[what] += number
        by_character[what, character] += number
        becomes.setdefault((what, character), result)  # the most frequent one comes first
    ranked = sorted(by_character.items(), key=lambda item: (-item[1], item[0]))
    listed: Counter[str] = Counter()
    worst = []
    for (what, character), number in ranked:
        listed[what] += 1
        if listed[what] <= limit:
            code, result = _code(character), becomes[what, character]
            worst.append(Loss(character, code, what, number, result))
    totals_by_kind = {what: totals[what] for what in _VERBS}
    return SilentLoss(count, characters, **totals_by_kind, worst=tuple(worst))


def _normalizer_losses(
    texts: list[str], processor: sentencepiece.SentencePieceProcessor
) -> Counter[tuple[str, str, str]]:
    """Counts the characters that SentencePiece's normaliser changes and drops."""
    losses: Counter[tuple[str, str, str]] = Counter()
    prefix = processor.normalize("a").index("a")  # 1 where a space is put before every text

    @cache
    def alone(character: str) -> str:
        return processor.normalize(f"a{character}a")[prefix + 1 : -1].replace(_SPACE, " ")

    for text, result in zip(texts, processor.normalize(texts), strict=True):
        if result[prefix:].replace(_SPACE, " ") == text.replace(_SPACE, " "):
            continue
        result, offsets = processor.normalize(text, with_offsets=True)
        piece, start = "", 0
        for character, stop in zip(result[prefix:], offsets[prefix + 1 :], strict=True):
            piece += " " if character == _SPACE else character
            if stop > start:  # else more comes of the same source
                if (source := text[start:stop]) != piece:
                    losses.update(_pairs(source, piece, alone))
                piece, start = "", stop
        losses.update(_pairs(text[start:], "", alone))
    return losses


def _pairs(source: str, result: str, alone: Callable[[str], str]) -> Iterator[tuple[str, str, str]]:
    """Yields what became of each lost character of `source`, which became `result` together."""
    parts = [result] if len(source) == 1 else list(map(alone, source))
    if "".join(parts) != result:  # they act on each other: runs of spaces, combining marks
        while source and source[-1:] == result[-1:]:
            source, result = source[:-1], result[:-1]
        parts = [*result[: len(source)], *[""] * (len(source) - len(result))]
    for character, part in zip(source, parts, strict=True):
        if character != part:
            yield "changed" if part else "dropped", character, part


def _vocabulary_losses(texts: list[str], tokenizer: Tokenizer) -> Counter[tuple[str, str, str]]:
    """Counts the characters that are encoded as the unknown piece, or as bytes."""
    processor = tokenizer.processor
    ids = tokenizer.encode_batch(texts)
    values = np.full(tokenizer.vocab_size, -1, np.int16)  # of byte pieces, which byte
    for byte in range(256):
        piece_id = processor.piece_to_id(f"<0x{byte:02X}>")
        if processor.is_byte(piece_id):
            values[piece_id] = byte
    found = values[np.fromiter(chain.from_iterable(ids), np.int64, sum(map(len, ids)))]
    spelled = found[found >= 0].astype(np.uint8).tobytes().decode("utf-8", errors="replace")
    unknown: Counter[str] = Counter()
    unknown_id = processor.unk_id()
    rare = [
        (text, text_ids)
        for text, text_ids in zip(texts, ids, strict=True)
        if unknown_id in text_ids
    ]
    pieces = processor.encode([text for text, _ in rare], out_type=str)
    for (_, text_ids), text_pieces in zip(rare, pieces, strict=True):
        for piece_id, piece in zip(text_ids, text_pieces, strict=True):
            if piece_id == unknown_id:
                unknown.update(piece)
    counts = {("unknown", character, ""): number for character, number in unknown.items()}
    for character, number in Counter(spelled).items():
        counts["byte_fallback", character, ""] = number
    return Counter(counts)


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def _visible(text: str) -> str:
    return text if text.isprintable() and text.strip() else " ".join(map(_code, text))
