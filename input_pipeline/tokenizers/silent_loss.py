"""The silent-loss meter: what a tokeniser doesn't pass on to the model as the text has it.

Here: counting, over the texts of a data set, the characters that a tokeniser's own normaliser
changes or drops, those that its vocabulary lacks, and those that fall back to bytes. The normaliser
of XLM-R and mT5, for example, turns ， into , and BERT's lower-cases and strips accents.
Not here: the recoding that the config asks for (normalization.py counts its own).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import Any

import numpy as np

from input_pipeline.tokenizers.tokenization import SPACE, Tokenizer

_BATCH = 10_000  # texts at a time, to bound memory
_LISTED = 20  # most frequent losses of each kind
_KINDS = {
    "changed": "are changed by the tokeniser",
    "dropped": "are dropped by the tokeniser",
    "unknown": "are unknown to the tokeniser",
    "byte_fallback": "fall back to bytes",
}


@dataclasses.dataclass(frozen=True)
class Loss:
    """What happens to one character.

    Attributes:
        character: as it stands in the texts.
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
        unknown, byte_fallback: characters without a piece: of these, the model sees one and the
            same mark, for whole words in WordPiece, or the bytes of UTF-8.
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
        for what, verb in _KINDS.items():
            if count := getattr(self, what):
                worst = [loss for loss in self.worst if loss.what == what][:5]
                shown = (
                    f"{_visible(loss.character)}{f'→{_visible(loss.becomes)}' * bool(loss.becomes)}"
                    f" ({loss.count:,})"
                    for loss in worst
                )
                share = 100 * count / self.characters
                parts.append(f"{count:,} ({share:.3g}%) {verb}: {' '.join(shown)}")
        head = f"Of {self.characters:,} characters in {self.texts:,} texts,"
        return f"{head} {'; '.join(parts) or 'the tokeniser keeps all as they are'}."

    def to_json(self) -> dict[str, Any]:
        """Returns all of it, ready for JSON, with each loss's share of the characters."""
        shares = {f"{what}_share": getattr(self, what) / max(1, self.characters) for what in _KINDS}
        return dataclasses.asdict(self) | shares


def measure(texts: Iterable[str], tokenizer: Tokenizer) -> SilentLoss:
    """Counts what `tokenizer` does to the characters of `texts`.

    That a space becomes U+2581 or only bounds words, and that some are put in, is no loss.

    Args:
        texts: without lone surrogates.
        tokenizer: of the model.
    """
    texts = iter(texts)
    count = characters = 0
    losses: Counter[tuple[str, str, str]] = Counter()  # of (what, character, what it becomes)
    while batch := list(islice(texts, _BATCH)):
        count += len(batch)
        characters += sum(map(len, batch))
        losses += _normalizer_losses(batch, tokenizer)
        losses += _vocabulary_losses(batch, tokenizer)
    totals = dict.fromkeys(_KINDS, 0)
    by_character: Counter[tuple[str, str]] = Counter()
    becomes: dict[tuple[str, str], str] = {}
    for (what, character, result), number in losses.most_common():
        totals[what] += number
        by_character[what, character] += number
        becomes.setdefault((what, character), result)  # the most frequent one comes first
    listed: Counter[str] = Counter()
    worst = []
    for (what, character), number in sorted(by_character.items(), key=lambda x: (-x[1], x[0])):
        listed[what] += 1
        if listed[what] <= _LISTED:
            result = becomes[what, character]
            worst.append(Loss(character, _code(character), what, number, result))
    return SilentLoss(count, characters, **totals, worst=tuple(worst))


def _normalizer_losses(texts: list[str], tokenizer: Tokenizer) -> Counter[tuple[str, str, str]]:
    """Counts the characters that the tokeniser's normaliser changes and drops."""
    losses: Counter[tuple[str, str, str]] = Counter()

    @cache
    def alone(character: str) -> str:
        return tokenizer.normalize([f"a{character}a"])[0][1:-1]

    for text, result in zip(texts, tokenizer.normalize(texts), strict=True):
        if result != text.replace(SPACE, " "):
            for source, piece in tokenizer.normalized_parts(text):
                if source != piece:
                    losses.update(_pairs(source, piece, alone))
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
    rare = np.zeros(tokenizer.vocab_size, bool)
    rare[[i for i in (tokenizer.unk_id, *tokenizer.fragments) if i >= 0]] = True
    ids = tokenizer.encode_batch(texts)
    chosen = [text for text, row in zip(texts, ids, strict=True) if rare[row].any()]
    losses: Counter[tuple[str, str, str]] = Counter()
    encoded = tokenizer.encode_with_offsets(chosen)
    for text, (text_ids, offsets) in zip(chosen, encoded, strict=True):
        pieces = Counter(chain.from_iterable(range(*offset) for offset in offsets))
        spelled = set()
        for piece_id, (start, stop) in zip(text_ids, offsets, strict=True):
            if piece_id == tokenizer.unk_id:
                losses.update(("unknown", character, "") for character in text[start:stop])
            elif piece_id in tokenizer.fragments:  # it may hold a whole character beside a part
                spelled |= {i for i in range(start, stop) if stop - start == 1 or pieces[i] > 1}
        losses.update(("byte_fallback", text[i], "") for i in spelled)
    return losses


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def _visible(text: str) -> str:
    return text if text.isprintable() and text.strip() else " ".join(map(_code, text))
