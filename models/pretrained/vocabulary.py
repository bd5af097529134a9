"""Parameters that follow a changed vocabulary, as functions on parameter trees.

Which old pieces a new one stands for is found by input_pipeline/tokenizers/vocabulary.py. Called by
training/run_tokenizer.py, after loading.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from flax import traverse_util

from models.backbone import BackboneConfig, parameter_shapes, parts_of
from models.pretrained.tables import flatten


def follow_vocabulary(
    config: BackboneConfig, params: dict, parts: Sequence[Sequence[int]]
) -> tuple[BackboneConfig, dict]:
    """Rebuilds the token table for another vocabulary, and all else that has an entry a piece.

    Args:
        config: of the backbone.
        params: nested dict of numpy arrays, the backbone's tree with any of its parts: biases and
            output layers of language models follow too.
        parts: for each new id the old ids that it stands for. A single one hands its vector on as
            it is; several give the mean of theirs, which next to the old segmentation is the least
            surprising start. Vectors that no part names go, those of padding too.

    Returns:
        The config with the new vocab_size, and the tree with the new token table [V', E]; arrays
        without an axis V are shared.

    Raises:
        ValueError: an old id that the token table has no row for.
    """
    ids = np.fromiter(itertools.chain.from_iterable(parts), np.int64)
    lengths_V = np.fromiter(map(len, parts), np.int64, len(parts))
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ValueError(
            f"the vocabulary is made of pieces {ids.min()} to {ids.max()}, but the checkpoint has "
            f"embeddings for {config.vocab_size}: leave config.tokenizer.model empty to use its "
            "own tokeniser"
        )
    starts_V = np.cumsum(lengths_V) - lengths_V
    joined = np.flatnonzero(lengths_V > 1)

    def follow(array: np.ndarray, axis: int) -> np.ndarray:
        source = np.moveaxis(array, axis, 0)
        target = source[ids[starts_V]]
        for i in joined:
            target[i] = source[list(parts[i])].mean(0)
        return np.ascontiguousarray(np.moveaxis(target, 0, axis))

    axes, flat = _vocabulary_axes(config), flatten(params)
    changed = {path: follow(flat[path], axis) for path, axis in axes.items() if path in flat}
    tree = traverse_util.unflatten_dict(flat | changed, sep="/")
    return dataclasses.replace(config, vocab_size=len(parts)), tree


def _vocabulary_axes(config: BackboneConfig) -> dict[str, int]:
    """Returns the axis V of each parameter that has one: what grows with the vocabulary."""
    larger = dataclasses.replace(config, vocab_size=config.vocab_size + 1)
    now, then = (flatten(parameter_shapes(each, parts_of(each))) for each in (config, larger))
    return {
        path: int(np.flatnonzero(np.not_equal(leaf.shape, then[path].shape))[0])
        for path, leaf in now.items()
        if leaf.shape != then[path].shape
    }
