"""The passages that the queries of a split search, and which of them belong to each."""

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from input_pipeline.examples import Examples


class PassagePool:
    """The different passages of a split, and which of them belong to each query.

    Attributes:
        texts: of the passages, P.
        rows_P, places_P: example and sequence behind the query of each passage's first occurrence.
        relevant_N: for each example the passages of its query, ascending.
        own_N: the passage of each example; 0 where it has none.
        has_pair_N: whether it has one.
        first_N: whether an example is the first of its query, and that has a passage.
    """

    def __init__(self, examples: Examples, drawn: Sequence[Sequence[str]] | None):
        places: dict[str, tuple[int, int]] = {}
        belonging: dict[str, set[str]] = {}
        for row, (text, pair) in enumerate(zip(examples.texts_N, examples.pairs_N, strict=True)):
            if pair:
                places.setdefault(pair, (row, 0))
                belonging.setdefault(text, set()).add(pair)
        for row, texts in enumerate(drawn or ()):
            for place, text in enumerate(texts, start=1):
                places.setdefault(text, (row, place))
        numbers = {text: number for number, text in enumerate(places)}
        self.texts = list(places)
        self.rows_P, self.places_P = np.array(list(places.values()), np.int64).reshape(-1, 2).T
        self.has_pair_N = np.array([bool(pair) for pair in examples.pairs_N])
        self.own_N = np.array([numbers.get(pair, 0) for pair in examples.pairs_N])
        self.relevant_N = [
            np.array(sorted(numbers[pair] for pair in belonging.get(text, ())), np.int64)
            for text in examples.texts_N
        ]
        _, firsts = np.unique(examples.texts_N.astype(str), return_index=True)
        self.first_N = np.isin(np.arange(len(examples)), firsts)
        self.first_N &= np.array([text in belonging for text in examples.texts_N])

    def losses(self, rows: np.ndarray, logits_RxP: np.ndarray) -> np.ndarray:
        """Returns -log of the softmax of each example's passage among it and those of no use."""
        own_R = logits_RxP[np.arange(len(rows)), self.own_N[rows]].copy()
        for row, logits_P in zip(rows, logits_RxP, strict=True):
            logits_P[self.relevant_N[row]] = -np.inf
        return np.logaddexp(own_R, logsumexp(logits_RxP, axis=1)) - own_R
