"""Embeddings that follow a changed vocabulary, as functions on parameter trees.

Which old pieces a new one stands for is found by input_pipeline/vocabulary.py. Called by
training/experiment.py, after loading.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.decoder import DecoderConfig


def follow_vocabulary(
    config: DecoderConfig, params: dict, parts: Sequence[Sequence[int]]
) -> tuple[DecoderConfig, dict]:
    """Rebuilds the tied embedding for another vocabulary.

    Args:
        config: of the decoder.
        params: nested dict of numpy arrays, the tree of `Decoder`.
        parts: for each new id the old ids that it stands for. A single one hands its row on as it
            is; several give the mean of their rows, which next to the old segmentation is the least
            surprising start. Rows that no part names go, those of padding too.

    Returns:
        The config with the new vocab_size, and the tree with the new embedding [V', D]; the other
        arrays are shared.

    Raises:
        ValueError: an old id that the embedding has no row for.
    """
    embedding_VxD = params["embedder"]["embedding"]
    ids = np.fromiter(itertools.chain.from_iterable(parts), np.int64)
    lengths_V = np.fromiter(map(len, parts), np.int64, len(parts))
    if ids.min() < 0 or ids.max() >= len(embedding_VxD):
        raise ValueError(
            f"the vocabulary is made of pieces {ids.min()} to {ids.max()}, but the checkpoint has "
            f"embeddings for {len(embedding_VxD)}: leave config.tokenizer.model empty to use its "
            "own tokeniser"
        )
    starts_V = np.cumsum(lengths_V) - lengths_V
    rows_VxD = embedding_VxD[ids[starts_V]]
    for i in np.flatnonzero(lengths_V > 1):
        rows_VxD[i] = embedding_VxD[list(parts[i])].mean(0)
    changed: dict[str, Any] = {**params, "embedder": {"embedding": rows_VxD}}
    return dataclasses.replace(config, vocab_size=len(parts)), changed
