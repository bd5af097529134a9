"""The state of a run, and its named random streams.

Parameters are flat dicts {path: array}; `merge` turns them into the tree that Flax applies. The
state holds the trained part only: frozen parameters are read again from where they came from.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import optax

from models.backbone import unflatten

Params = Mapping[str, jax.Array]


class TrainState(NamedTuple):
    """What a checkpoint holds. Nothing random lives here."""

    step: jax.Array  # int32 scalar, optimiser steps taken
    examples: jax.Array  # int32 scalar, training examples seen: where the stream goes on
    params: dict[str, jax.Array]  # the trained ones
    optimizer: optax.OptState
    average: dict[str, jax.Array] | None = None  # of the parameters, with config.train.ema
    # What regularisers pull the trained weights to, by path; no step changes it, and checkpoints
    # lack it, since it is read again.
    pretrained: dict[str, jax.Array] | None = None
    rate: jax.Array | None = None  # float32 factor on the learning rate, of the schedule 'plateau'


def merge(*parts: Params) -> dict:
    """Joins flat dicts, later ones first in precedence, into one nested tree."""
    return unflatten({path: leaf for part in parts for path, leaf in part.items()})


def random_stream(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
    """Returns the key of the stream `name` at `step`: a pure function of its arguments."""
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step
    )
