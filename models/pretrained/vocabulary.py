"""Parameters that follow a changed vocabulary, as functions on parameter trees.

input_pipeline/tokenizers/vocabulary.py finds which old pieces each new one replaces.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from models.backbone import BackboneConfig, flatten, parameter_shapes, parts_of, unflatten


def follow_vocabulary(
    config: BackboneConfig, params: dict, parts: Sequence[Sequence[int]]
) -> tuple[BackboneConfig, dict]:
    """Rebuilds the token table, and every other parameter with a vocabulary axis.

    Args:
        config: of the backbone.
        params: nested dict of numpy arrays, the backbone's tree with any of its parts: biases and
            output layers of language models follow too.
        parts: for each new id the old ids that it replaces. A single one keeps its vector; several
            give their mean, which is closest to the old segmentation. Vectors that no part names
            are dropped, those of padding too.

    Returns:
        The config with the new vocab_size, and the tree with the new token table [V', E]; arrays
        without an axis V are shared.

    Raises:
        ValueError: an old id without a row in the token table.
    """
    ids = np.fromiter(itertools.chain.from_iterable(parts), np.int64)
    lengths_V = np.fromiter(map(len, parts), np.int64, len(parts))
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ValueError(
            f"the vocabulary is made of pieces {ids.min()} to {ids.max()}, but the checkpoint has "
            f"embeddings for {config.vocab_size}: leave config.tokenizer.model empty to use its "
            "own tokeniser"
        )
    first_ids_V = ids[np.cumsum(lengths_V) - lengths_V]
    joined = np.flatnonzero(lengths_V > 1)

    def follow(array: np.ndarray, axis: int) -> np.ndarray:
        source = np.moveaxis(array, axis, 0)
        target = source[first_ids_V]
        for i in joined:
            target[i] = source[list(parts[i])].mean(0)
        return np.ascontiguousarray(np.moveaxis(target, 0, axis))

    axes, flat = _vocabulary_axes(config), flatten(params)
    changed = {path: follow(flat[path], axis) for path, axis in axes.items() if path in flat}
    return dataclasses.replace(config, vocab_size=len(parts)), unflatten(flat | changed)


def _vocabulary_axes(config: BackboneConfig) -> dict[str, int]:
    """Returns the axis V of each parameter that has one: the axis that grows with vocab_size."""
    larger = dataclasses.replace(config, vocab_size=config.vocab_size + 1)
    now, then = (flatten(parameter_shapes(c, parts_of(c))) for c in (config, larger))
    return {
        path: int(np.flatnonzero(np.not_equal(leaf.shape, then[path].shape))[0])
        for path, leaf in now.items()
        if leaf.shape != then[path].shape
    }
