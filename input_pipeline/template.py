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

from input_pipeline.tokenization import Tokenizer


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
    """

    tokens: np.ndarray
    types: np.ndarray
    lengths_B: np.ndarray
    cut_B: np.ndarray


NO_SAMPLING: Mapping[str, Sampling] = {}
FIELD = re.compile(r"\{(text|pair)\}")  # of a template


class Encoder:
    """Texts to token ids within a template, of at most `max_length` tokens.

    What stands around {text} and {pair} is tokenised apart from them, so that cutting a long text
    leaves the template and the marks whole: prefix, start, first field, between, second field, end,
    with the template's words around the fields. Of a pair the longer text is cut first, down to the
    length of the other; then both.
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
            ValueError: not exactly one {text}, or several {pair}, in the template, or no room for a
                text beside it.
        """
        self.fields = tuple(FIELD.findall(template))
        if sorted(self.fields) not in (["text"], ["pair", "text"]):
            raise ValueError(
                f"data.template must hold {{text}} exactly once, and {{pair}} at most once, found "
                f"{template!r}: write for example '评论：{{text}}'"
            )
        around = tokenizer.encode_batch(FIELD.split(template)[::2], num_threads=1)
        around[0] = [*prefix_ids, *tokenizer.start_ids, *around[0]]
        if len(self.fields) > 1:
            around[1] = tokenizer.between_ids + around[1]
        around[-1] = around[-1] + tokenizer.end_ids
        self._tokenizer = tokenizer
        self.around = around  # the ids before, between and behind the fields
        self.max_length = max_length
        self._room = max_length - sum(map(len, around))
        if self._room < len(self.fields):
            raise ValueError(
                f"layout.max_length={max_length} leaves no room for a text: the template and its "
                f"marks take {max_length - self._room} tokens; raise layout.max_length"
            )

    def __call__(
        self,
        texts: Sequence[str] | Sequence[bytes],
        pairs: Sequence[str] | Sequence[bytes] | None = None,
        *,
        num_threads: int | None = None,
        sampling: Mapping[str, Sampling] = NO_SAMPLING,
    ) -> Encoded:
        """Encodes texts, or pairs of them if the template holds {pair}.

        Args:
            texts: str, or UTF-8 bytes.
            pairs: the second texts.
            num_threads: as of Tokenizer.encode_batch.
            sampling: by field, 'text' or 'pair': draws a segmentation, else the best is taken.

        Raises:
            ValueError: an example without any token: an empty text without template and marks; or
                {pair} in the template and no pairs.
        """
        if (pairs is not None) != ("pair" in self.fields):
            found = "the data have no second text" if pairs is None else "the data are pairs"
            raise ValueError(
                f"{found}, but data.template is for {' and '.join(self.fields)}: write {{text}} "
                "and, for pairs, {pair} where they belong, and set data.pair_column"
            )
        parts = {"text": texts, "pair": pairs}
        ids = [
            self._encode(parts[field], num_threads=num_threads, sampling=sampling.get(field))
            for field in self.fields
        ]
        lengths_FxB = np.array([[len(part) for part in parts] for parts in ids], np.int64)
        kept_FxB = self._cut(lengths_FxB)
        lengths_B = self.max_length - self._room + kept_FxB.sum(axis=0)
        if not lengths_B.all():
            raise ValueError(
                f"text {int(np.argmin(lengths_B))} of {len(texts)} is empty and would give no "
                "token: remove empty texts, or set config.tokenizer.marks to 'bos' or 'eos'"
            )
        stretches: list[list[int]] = []
        for *parts, kept in zip(*ids, kept_FxB.T.tolist(), strict=True):
            stretches.append(self.around[0])
            for part, count, after in zip(parts, kept, self.around[1:], strict=True):
                stretches += part[:count], after
        tokens = np.fromiter(itertools.chain.from_iterable(stretches), np.int32, lengths_B.sum())
        types = self._types(kept_FxB, lengths_B)
        return Encoded(tokens, types, lengths_B, cut_B=(kept_FxB < lengths_FxB).any(axis=0))

    def _types(self, kept_FxB: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        types = np.zeros(lengths_B.sum(), np.int32)
        if len(self.fields) > 1 and self._tokenizer.second_type:
            first_B = len(self.around[0]) + kept_FxB[0] + len(self._tokenizer.between_ids)
            place = np.arange(len(types)) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
            types[place >= np.repeat(first_B, lengths_B)] = self._tokenizer.second_type
        return types

    def _encode(
        self, texts: Sequence, *, num_threads: int | None, sampling: Sampling | None
    ) -> list[list[int]]:
        if sampling is None or not sampling.chosen_B.any():
            return self._tokenizer.encode_batch(texts, num_threads=num_threads)
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
        return ids

    def _cut(self, lengths_FxB: np.ndarray) -> np.ndarray:
        """Returns how many tokens of each field stay."""
        if len(lengths_FxB) == 1:
            return np.minimum(lengths_FxB, self._room)
        others_FxB = lengths_FxB[::-1]
        half = np.array([[self._room - self._room // 2], [self._room // 2]])
        return np.minimum(lengths_FxB, np.maximum(half, self._room - others_FxB))
