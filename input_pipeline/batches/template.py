"""Texts in a template to token ids: what the model reads of an example.

Here: the template's fields, the marks around and between them, cutting to the longest length, and
type ids. Not here: tokenisers (tokenization.py), how examples share rows (layout.py). Called by
pipeline.py and inspection.py. Imports no TensorFlow.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.tokenizers.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A draw of segmentations (subword regularisation, 1804.10959).

    Attributes:
        chosen_B: bool, which texts are drawn.
        uniforms_B: float64 in [0, 1), their draws.
        size, alpha: as of SentencePieceTokenizer.sample_batch.
    """

    chosen_B: np.ndarray
    uniforms_B: np.ndarray
    size: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of B examples.

    Attributes:
        tokens: int32, the examples' ids end to end.
        types: int32, flat like `tokens`: 0 up to and including the marks between two texts, then
            the tokeniser's second_type.
        lengths_B: int64, how many of `tokens` each example has; at least 1.
        cut_B: bool, which examples lost the end of their text.
        fields: int8, flat: which of FIELDS a token is of; -1 of the template, the marks and {mask}.
        offsets: int32 [P, 2], flat: which characters of its field's text a token is of, start and
            stop; zeros of the template. None if they were not asked for.
    """

    tokens: np.ndarray
    types: np.ndarray
    lengths_B: np.ndarray
    cut_B: np.ndarray
    fields: np.ndarray
    offsets: np.ndarray | None = None

    @property
    def starts_B(self) -> np.ndarray:
        """Where each example starts among the tokens, int64."""
        return np.cumsum(self.lengths_B) - self.lengths_B


NO_SAMPLING: Mapping[str, Sampling] = {}
FIELDS = ("text", "pair", "choice")
FIELD = re.compile(r"\{(text|pair|choice)\}")  # of a template
MASK = "{mask}"  # of a template: a position that a masked language model fills in


class Encoder:
    """Texts to token ids within a template, of at most `max_length` tokens.

    What stands around {text}, {pair} and {choice} is tokenised apart from them, so that cutting a
    long text leaves the template and the marks whole: prefix, start, first field, between, the
    other fields, end, with the template's words around the fields. {mask} in these words becomes
    the tokeniser's mask. The longest text is cut first, down to the length of the next; then both.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        *,
        max_length: int,
        prefix_ids: Sequence[int] = (),
    ):
        """Tokenises the template.

        Args:
            tokenizer: of the model.
            template: config.data.template.
            max_length: tokens of an example, with template, marks and prefix.
            prefix_ids: before everything: the virtual tokens of prompt tuning.

        Raises:
            ValueError: not exactly one {text}, another field more than once, a {mask} that the
                tokeniser has none for, or no room for a text beside the template.
        """
        self.fields = tuple(FIELD.findall(template))
        if "text" not in self.fields or len(set(self.fields)) < len(self.fields):
            raise ValueError(
                f"data.template must hold {{text}} exactly once, and {{pair}} and {{choice}} at "
                f"most once, found {template!r}: write for example '评论：{{text}}'"
            )
        around = [_words(tokenizer, words) for words in FIELD.split(template)[::2]]
        around[0] = [*prefix_ids, *tokenizer.start_ids, *around[0]]
        if len(self.fields) > 1:
            around[1] = tokenizer.between_ids + around[1]
        around[-1] = around[-1] + tokenizer.end_ids
        self._tokenizer = tokenizer
        self.around = around  # the ids before, between and behind the fields
        self.max_length = max_length
        self.room = max_length - sum(map(len, around))  # tokens for the fields together
        if self.room < len(self.fields):
            raise ValueError(
                f"layout.max_length={max_length} leaves no room for a text: the template and its "
                f"marks take {max_length - self.room} tokens; raise layout.max_length"
            )

    def __call__(
        self,
        texts: Sequence[str] | Sequence[bytes],
        pairs: Sequence[str] | Sequence[bytes] | None = None,
        *,
        choices: Sequence[str] | Sequence[bytes] | None = None,
        num_threads: int | None = None,
        sampling: Mapping[str, Sampling] = NO_SAMPLING,
        offsets: bool = False,
    ) -> Encoded:
        """Encodes texts, with second texts and choices if the template holds them.

        Args:
            texts: str, or UTF-8 bytes.
            pairs: the second texts.
            choices: a choice for each text.
            num_threads: as of Tokenizer.encode_batch.
            sampling: by field, 'text' or 'pair': draws a segmentation, else the best is taken.
            offsets: also say which characters a token is of; slower, and not of a drawn
                segmentation.

        Raises:
            ValueError: an example without any token: an empty text without template and marks; or
                a field of the template that the data do not have, or the other way round.
        """
        given = {"text": texts, "pair": pairs, "choice": choices}
        self._check_fields({name for name, part in given.items() if part is not None})
        if offsets and sampling:
            raise ValueError(
                "augmentation.sampling_rate draws segmentations, whose characters are not known; "
                "this task needs them: set it to 0"
            )
        encoded = []
        for name in self.fields:
            encoded.append(
                self._with_offsets(given[name])
                if offsets
                else self._encode(given[name], num_threads, sampling.get(name))
            )
        lengths_FxB = np.array([[len(part) for part in parts] for parts, _ in encoded], np.int64)
        kept_FxB = self._cut(lengths_FxB)
        lengths_B = self.max_length - self.room + kept_FxB.sum(axis=0)
        if not lengths_B.all():
            raise ValueError(
                f"text {int(np.argmin(lengths_B))} of {len(texts)} is empty and would give no "
                "token: remove empty texts, or set config.tokenizer.marks to 'bos' or 'eos'"
            )
        stretches: list[list[int]] = []
        ids = (parts for parts, _ in encoded)
        for *parts, kept in zip(*ids, kept_FxB.T.tolist(), strict=True):
            stretches.append(self.around[0])
            for part, count, after in zip(parts, kept, self.around[1:], strict=True):
                stretches += part[:count], after
        tokens = np.fromiter(itertools.chain.from_iterable(stretches), np.int32, lengths_B.sum())
        fields = self._fields(kept_FxB)
        types = self._types(kept_FxB, lengths_B)
        places = None
        if offsets:
            places = np.zeros((len(tokens), 2), np.int32)
            for name, (_, spots), kept_B in zip(self.fields, encoded, kept_FxB, strict=True):
                found = [spot[:count] for spot, count in zip(spots, kept_B, strict=True)]
                of_field = fields == FIELDS.index(name)
                places[of_field] = np.array(
                    list(itertools.chain.from_iterable(found)), np.int32
                ).reshape(-1, 2)
        cut_B = (kept_FxB < lengths_FxB).any(axis=0)
        return Encoded(tokens, types, lengths_B, cut_B, fields, places)

    def _check_fields(self, given: set[str]) -> None:
        if given != set(self.fields):
            found = sorted(given - {"text"}) or ["no second text"]
            raise ValueError(
                f"the data have {' and '.join(found)}, but data.template is for "
                f"{' and '.join(self.fields)}: write {{text}}, and {{pair}} or {{choice}} where "
                "they belong, and set data.pair_column or data.choices_column"
            )

    def _fields(self, kept_FxB: np.ndarray) -> np.ndarray:
        """Returns Encoded.fields."""
        counts, kinds = [np.full(kept_FxB.shape[1], len(self.around[0]))], [-1]
        for name, kept_B, after in zip(self.fields, kept_FxB, self.around[1:], strict=True):
            counts += kept_B, np.full(len(kept_B), len(after))
            kinds += FIELDS.index(name), -1
        counts_BxK = np.stack(counts, axis=1)
        kinds_BxK = np.tile(np.array(kinds, np.int8), (len(counts_BxK), 1))
        return np.repeat(kinds_BxK.reshape(-1), counts_BxK.reshape(-1))

    def _types(self, kept_FxB: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        types = np.zeros(lengths_B.sum(), np.int32)
        if len(self.fields) > 1 and self._tokenizer.second_type:
            first_B = len(self.around[0]) + kept_FxB[0] + len(self._tokenizer.between_ids)
            place = np.arange(len(types)) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
            types[place >= np.repeat(first_B, lengths_B)] = self._tokenizer.second_type
        return types

    def _with_offsets(self, texts: Sequence) -> tuple[list[list[int]], list[list]]:
        """Returns ids and offsets of texts."""
        strings = [text.decode() if isinstance(text, bytes) else text for text in texts]
        pairs = self._tokenizer.encode_with_offsets(strings)
        return [ids for ids, _ in pairs], [offsets for _, offsets in pairs]

    def _encode(
        self, texts: Sequence, num_threads: int | None, sampling: Sampling | None
    ) -> tuple[list[list[int]], None]:
        if sampling is None or not sampling.chosen_B.any():
            return self._tokenizer.encode_batch(texts, num_threads=num_threads), None
        ids: list[list[int]] = [[]] * len(texts)
        others, chosen = (np.flatnonzero(sampling.chosen_B == chosen) for chosen in (False, True))
        best = self._tokenizer.encode_batch([texts[i] for i in others], num_threads=num_threads)
        drawn = self._tokenizer.sample_batch(
            [texts[i] for i in chosen],
            sampling.uniforms_B[chosen],
            size=sampling.size,
            alpha=sampling.alpha,
        )
        for i, tokens in zip([*others, *chosen], best + drawn, strict=True):
            ids[i] = tokens
        return ids, None

    def _cut(self, lengths_FxB: np.ndarray) -> np.ndarray:
        """Returns how many tokens of each field stay: the longest are cut to one length."""
        kept_FxB = lengths_FxB.copy()
        level_FxB = np.sort(lengths_FxB, axis=0)[::-1]  # the longest first
        for count in range(1, len(level_FxB) + 1):  # how many fields are cut
            others_B = level_FxB[count:].sum(axis=0)
            room_B = np.maximum(self.room - others_B, 0)
            following_B = level_FxB[count] if count < len(level_FxB) else 0
            # Cut to one length, which lies between those of the last that is cut and of the next.
            fits_B = (lengths_FxB.sum(axis=0) > self.room) & (room_B // count >= following_B)
            fits_B &= (kept_FxB == lengths_FxB).all(axis=0)
            if not fits_B.any():
                continue
            order_FxB = np.argsort(-lengths_FxB, axis=0, kind="stable")
            rank_FxB = np.argsort(order_FxB, axis=0, kind="stable")
            is_cut_FxB = (rank_FxB < count) & fits_B
            # What the division leaves over goes to the first fields of the template.
            turn_FxB = np.cumsum(is_cut_FxB, axis=0) - 1
            share_FxB = room_B // count + (turn_FxB < room_B % count)
            kept_FxB = np.where(is_cut_FxB, np.minimum(share_FxB, lengths_FxB), kept_FxB)
        return kept_FxB


def _words(tokenizer: Tokenizer, words: str) -> list[int]:
    """Returns the ids of a stretch of the template."""
    if MASK in words and tokenizer.mask_id < 0:
        raise ValueError(
            f"data.template holds {MASK}, but the tokeniser has no mask: use a masked language "
            "model, or model.pooling='last' with the label word at the end"
        )
    parts = tokenizer.encode_batch(words.split(MASK), num_threads=1)
    return [*parts[0], *(i for part in parts[1:] for i in (tokenizer.mask_id, *part))]
