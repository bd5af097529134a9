"""Answers to prompts, written with a model: batches of few shapes, each compiled once.

Not here: the loop over tokens (models/generation.py), prompts as tokens
(input_pipeline/batches/chat.py).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from input_pipeline import hosts
from input_pipeline.eta import working
from models.generation import Decoding, generate

_SHORTEST = 32  # tokens of the shortest prompts' batches; longer ones double


class Writer:
    """Writes answers to prompts. A draw depends on the seed and the prompt's id alone."""

    def __init__(
        self,
        model: nn.Module,
        adapted: Callable[[Callable], Callable],
        decoding: Decoding,
        *,
        rows: int,
        seed: int,
    ):
        """Takes the model; nothing is compiled yet.

        Args:
            model: models.heads.Model.
            adapted: see tasks.task.Loaded.
            decoding: how tokens are chosen.
            rows: prompts of a batch.
            seed: config.seed.
        """
        self._decoding, self._rows, self._seed = decoding, rows, seed

        def write(
            params: Mapping, tokens_BxL: jax.Array, lengths_B: jax.Array, ids_B: jax.Array
        ) -> jax.Array:
            def call(name: str, *args: Any, **kwargs: Any) -> Any:
                # Through the whole model, by whose paths adapters find what they change.
                return model.apply(
                    {"params": params},
                    *args,
                    method=lambda bound, *a, **k: getattr(bound.backbone, name)(*a, **k),
                    **kwargs,
                )

            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), ids_B)
            start = call("start", tokens_BxL, lengths_B, length=decoding.max_tokens)
            return generate(functools.partial(call, "step"), start, decoding, keys_B=keys_B)[0]

        self._write = jax.jit(adapted(write))

    def __call__(
        self, params: Mapping[str, jax.Array], prompts: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> list[list[int]]:
        """Returns the tokens that follow each prompt, without those that end it.

        Args:
            params: flat.
            prompts: token ids, at least one each.
            ids: of the examples.
        """
        by_length: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            length = _SHORTEST
            while length < len(prompt):
                length *= 2
            by_length.setdefault(length, []).append(i)
        written: list[list[int]] = [[]] * len(prompts)
        batches = [
            (length, chosen[first : first + self._rows])
            for length, chosen in sorted(by_length.items())
            for first in range(0, len(chosen), self._rows)
        ]
        with working("answers", len(prompts)) as work:
            for length, batch in batches:
                tokens_BxL = np.zeros((self._rows, length), np.int32)
                lengths_B, ids_B = np.ones(self._rows, np.int32), np.zeros(self._rows, np.uint32)
                for row, i in enumerate(batch):
                    tokens_BxL[row, : len(prompts[i])] = prompts[i]
                    lengths_B[row], ids_B[row] = len(prompts[i]), ids[i] % 2**32
                written_BxT = hosts.whole(self._write(params, tokens_BxL, lengths_B, ids_B))
                for i, row in zip(batch, written_BxT, strict=False):
                    ends = np.flatnonzero(np.isin(row, self._decoding.end_ids))
                    written[i] = row[: ends[0] if len(ends) else None].tolist()
                work.done += len(batch)
        return written
