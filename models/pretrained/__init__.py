"""Pretrained checkpoints of several families and formats; the names that other folders use.

Files below this one import each other directly, never this package.
"""

from models.pretrained.checkpoint import (
    READERS,
    Checkpoint,
    Pretrained,
    load_pretrained,
    open_checkpoint,
    place_on,
    write_pretrained,
)
from models.pretrained.hub import resolve

__all__ = [
    "READERS",
    "Checkpoint",
    "Pretrained",
    "load_pretrained",
    "open_checkpoint",
    "place_on",
    "resolve",
    "write_pretrained",
]
