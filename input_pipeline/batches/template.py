"""Texts in a template to token ids: what the model reads of an example.

Here: the template's fields, the marks around and between them, cutting to the longest length, and
type ids. Not here: tokenisers (tokenization.py), how examples share rows (layout.py). Imports no
TensorFlow.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.tokenizers.tokenization import Tokenizer


class Sampling(NamedTuple):
    """A draw of segmentations (subword regularisation, 1804.10959).

    Attributes:
        chosen_B: bool, which texts are drawn.
        uniforms_B: float64 in [0, 1), their draws.
        size, alpha: see SentencePieceTokenizer.sample_batch.
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
                f"data.template={template!r} must hold {{text}} exactly once, {{pair}} and "
                "{choice} at most once, as '评论：{text}' does"
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
                f"layout.max_length={max_length} leaves no room for a text beside the template's "
                f"{max_length - self.room} tokens: raise it"
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
            num_threads: see Tokenizer.encode_batch.
            sampling: by field, 'text' or 'pair': draws a segmentation; without it the best one.
            offsets: also return which characters a token is of; slower, and not of a drawn
                segmentation.

        Raises:
            ValueError: an example without any token: an empty text without template and marks; or
                a field of the template that the data do not have, or the other way round.
        """
        given = {"text": texts, "pair": pairs, "choice": choices}
        present = {name for name, part in given.items() if part is not None}
        if present != set(self.fields):
            names = " and ".join(sorted(present - {"text"})) or "no second text"
            raise ValueError(
                f"the data have {names}, but data.template is for {' and '.join(self.fields)}: "
                "change it, or data.pair_column or data.choices_column"
            )
        if offsets and sampling:
            raise ValueError(
                "augmentation.sampling_rate: the characters of drawn segmentations, which this "
                "task needs, are not known: set it to 0"
            )
        spots_F: list[list] = []  # of each field the characters of each text's tokens
        if offsets:
            rows_F = [self._with_offsets(given[name]) for name in self.fields]
            ids_F, spots_F = ([[row[i] for row in rows] for rows in rows_F] for i in (0, 1))
        else:
            ids_F = [self._encode(given[n], num_threads, sampling.get(n)) for n in self.fields]
        lengths_FxB = np.array([[len(ids) for ids in rows] for rows in ids_F], np.int64)
        kept_FxB = self._cut(lengths_FxB)
        lengths_B = self.max_length - self.room + kept_FxB.sum(axis=0)
        if not lengths_B.all():
            raise ValueError(
                f"text {int(np.argmin(lengths_B))} of {len(texts)} is empty and would give no "
                "token: remove empty texts, or set config.tokenizer.marks to 'bos' or 'eos'"
            )
        stretches: list[list[int]] = []
        for *parts, kept in zip(*ids_F, kept_FxB.T.tolist(), strict=True):
            stretches.append(self.around[0])
            for ids, count, after in zip(parts, kept, self.around[1:], strict=True):
                stretches += ids[:count], after
        tokens = np.fromiter(itertools.chain.from_iterable(stretches), np.int32, lengths_B.sum())
        fields, places = self._fields(kept_FxB), None
        if offsets:
            places = np.zeros((len(tokens), 2), np.int32)
            for name, spots, kept_B in zip(self.fields, spots_F, kept_FxB, strict=True):
                rows = (row[:count] for row, count in zip(spots, kept_B, strict=True))
                of_field = np.array([*itertools.chain.from_iterable(rows)], np.int32)
                places[fields == FIELDS.index(name)] = of_field.reshape(-1, 2)
        cut_B = (kept_FxB < lengths_FxB).any(axis=0)
        return Encoded(tokens, self._types(kept_FxB, lengths_B), lengths_B, cut_B, fields, places)

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

    def _with_offsets(self, texts: Sequence) -> list[tuple[list[int], list]]:
        """Returns ids and offsets of texts."""
        strings = [text.decode() if isinstance(text, bytes) else text for text in texts]
        return self._tokenizer.encode_with_offsets(strings)

    def _encode(
        self, texts: Sequence, num_threads: int | None, sampling: Sampling | None
    ) -> list[list[int]]:
        """Returns ids of texts."""
        if sampling is None or not sampling.chosen_B.any():
            return self._tokenizer.encode_batch(texts, num_threads=num_threads)
        best, drawn = (np.flatnonzero(sampling.chosen_B == chosen) for chosen in (False, True))
        ids = self._tokenizer.encode_batch([texts[i] for i in best], num_threads=num_threads)
        ids += self._tokenizer.sample_batch(
            [texts[i] for i in drawn],
            sampling.uniforms_B[drawn],
            size=sampling.size,
            alpha=sampling.alpha,
        )
        return [ids[i] for i in np.argsort(np.concatenate([best, drawn]))]

    def _cut(self, lengths_FxB: np.ndarray) -> np.ndarray:
        """Returns how many tokens of each field stay: the longest are cut to one length."""
        ordered_FxB = np.sort(lengths_FxB, axis=0)
        shorter_FxB = np.cumsum(ordered_FxB, axis=0) - ordered_FxB
        num_cut_Fx1 = np.arange(len(lengths_FxB), 0, -1)[:, None]
        # With the k shortest whole, the others have at most the k-th of these lengths; for any
        # other k than the right one that is too careful.
        length_B = ((self.room - shorter_FxB) // num_cut_Fx1).max(axis=0)
        kept_FxB = np.minimum(lengths_FxB, length_B)
        # What the division leaves over goes to the first fields of the template.
        is_cut_FxB = kept_FxB < lengths_FxB
        spare_B = self.room - kept_FxB.sum(axis=0)
        return kept_FxB + (is_cut_FxB & (np.cumsum(is_cut_FxB, axis=0) <= spare_B))


def _words(tokenizer: Tokenizer, words: str) -> list[int]:
    """Returns the ids of a stretch of the template."""
    if MASK in words and tokenizer.mask_id < 0:
        raise ValueError(
            f"data.template holds {MASK}, but the tokeniser has no mask: take a masked language "
            "model, or model.pooling='last' and a label word at the end"
        )
    parts = tokenizer.encode_batch(words.split(MASK), num_threads=1)
    return [*parts[0], *(i for part in parts[1:] for i in (tokenizer.mask_id, *part))]
