"""Several texts of one example as token sequences of their own: a query and its passages.

Here: encoding each by its template, and putting the sequences of an example next to each other.
Not here: the template of one sequence (template.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.batches.template import NO_SAMPLING, Encoded, Encoder, Sampling


class SeparateEncoder:
    """Encodes B examples of K texts as B * K sequences; of a text that is absent, it is empty.

    Attributes:
        fields: which fields of an example are read.
        sequences: K: the query, the passage that belongs to it, and up to K - 2 that do not.
        query, passage: the encoders of either.
    """

    fields = ("text", "pair")

    def __init__(self, query: Encoder, passage: Encoder, *, sequences: int):
        """Takes both encoders, of one text each."""
        self.query, self.passage, self.sequences = query, passage, sequences
        self.around, self.room, self.max_length = query.around, query.room, query.max_length

    def __call__(
        self,
        texts: Sequence,
        pairs: Sequence | None = None,
        *,
        negatives: Sequence[Sequence[str]] | None = None,
        num_threads: int | None = None,
        sampling: Mapping[str, Sampling] = NO_SAMPLING,
        offsets: bool = False,
    ) -> Encoded:
        """Encodes texts, with what belongs to them and the first of what does not.

        Args:
            texts: the queries.
            pairs: the passages that belong to them; '' is absent.
            negatives: for each query those that do not.
            num_threads: see Tokenizer.encode_batch.
            sampling: see Encoder.
            offsets: see Encoder.
        """
        count, extra = len(texts), self.sequences - 2
        rows = [list(row[:extra]) for row in negatives] if negatives is not None else []
        parts = [self.query(texts, num_threads=num_threads, sampling=sampling, offsets=offsets)]
        places = [np.arange(count) * self.sequences]
        options = {"num_threads": num_threads, "offsets": offsets}
        there = np.array([i for i, pair in enumerate([] if pairs is None else pairs) if pair], int)
        if len(there):
            drawn = NO_SAMPLING
            if draws := sampling.get("pair"):
                chosen, uniforms = draws.chosen_B[there], draws.uniforms_B[there]
                drawn = {"text": draws._replace(chosen_B=chosen, uniforms_B=uniforms)}
            parts.append(self.passage([pairs[i] for i in there], sampling=drawn, **options))
            places.append(there * self.sequences + 1)
        if flat := [text for row in rows for text in row]:
            parts.append(self.passage(flat, **options))
            first = (b * self.sequences + 2 for b in range(count))
            spots = [at + k for at, row in zip(first, rows, strict=True) for k in range(len(row))]
            places.append(np.array(spots))
        return _interleaved(parts, np.concatenate(places), count * self.sequences)


def _interleaved(parts: Sequence[Encoded], places: np.ndarray, count: int) -> Encoded:
    """Returns the sequences of all parts at their places among `count`; the others are empty."""
    lengths, cut = np.zeros(count, np.int64), np.zeros(count, bool)
    given = np.concatenate([part.lengths_B for part in parts])
    lengths[places], cut[places] = given, np.concatenate([part.cut_B for part in parts])
    order = np.argsort(places, kind="stable")
    starts = (np.cumsum(given) - given)[order]
    given = given[order]
    within = np.arange(given.sum()) - np.repeat(np.cumsum(given) - given, given)
    source = np.repeat(starts, given) + within

    def gathered(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[source]

    offsets = None if parts[0].offsets is None else gathered("offsets")
    encoded = dataclasses.replace(parts[0], lengths_B=lengths, cut_B=cut, offsets=offsets)
    flat = {name: gathered(name) for name in ("tokens", "types", "fields")}
    return dataclasses.replace(encoded, **flat)
