"""What passes between the pipeline and a task: examples on their way, and what the task asks.

Here: the types alone, and the part of a task that the pipeline calls. Not here: the tasks, which
are in tasks/.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.examples import Examples, Ragged


class Chunk(NamedTuple):
    """B examples on their way through the pipeline.

    Attributes:
        examples: the set that they are of.
        indices_B: int64, which of it.
        epochs_B: int64, the epochs they are drawn in; zeros outside training.
        texts_B: str as the model reads them, behind augmentation.
        spans: of those texts, rows of (start, stop, index in examples.span_labels); None without.
        seed: config.seed, for what is drawn; a draw is a function of (seed, epoch, example id).
        training: whether a loss will be computed; False may leave targets out.
    """

    examples: Examples
    indices_B: np.ndarray
    epochs_B: np.ndarray
    texts_B: Sequence[str]
    spans: Ragged | None
    seed: int
    training: bool


class Targets(NamedTuple):
    """What a batch holds for the task beside tokens, positions, segments, types, ids and weights.

    Attributes:
        positions: '<name>_RxL' -> int32, flat like Encoded.tokens; 0 is what padding gets, and so
            must mean that nothing is asked there. The pipeline lays them out as it does tokens.
            'tokens_RxL' replaces the tokens (masking).
        examples: '<name>_B...' -> [B, ...] of any dtype, whose shape behind B is always the same;
            padding examples get zeros. 'weights_B' (float32) replaces the 1 of each example,
            'lengths_B' the numbers of tokens, where `positions` has others.
    """

    positions: dict[str, np.ndarray]
    examples: dict[str, np.ndarray]


class Task(Protocol):
    """What the pipeline calls of tasks.task.Task."""

    positions: tuple[str, ...]
    offsets: bool
    sequences: int

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns what turns texts into tokens."""

    def candidates(
        self, examples: Examples, indices_B: np.ndarray, epochs_B: np.ndarray
    ) -> Sequence[Sequence[str]] | None:
        """Returns the choices, or passages, of each example; None without."""

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns what the loss needs of B * K sequences."""
