"""The parameters of a run before training: read from its checkpoint, drawn, or both."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.examples import Examples
from input_pipeline.tokenizers.tokenization import Tokenizer
from models import adapters, pretrained
from models.backbone import BackboneConfig, flatten, parameter_shapes, parts_of
from models.heads import Model
from models.pretrained import peft
from tasks.task import Task
from training import run_tokenizer
from training.sharding import Placement
from training.state import random_stream
from training.tuning.optimizers import learning_rate_factors

# Kept on the host for a changed vocabulary and for heads that start from words.
_VOCABULARY = "embedder/embedding"


def num_layers(config: BackboneConfig) -> int:
    """Number of layers with parameters of their own; ALBERT's share theirs."""
    return getattr(config, "num_distinct_layers", config.num_layers)


class Weights:
    """The parameters of a run while they are put together.

    Attributes:
      initial, frozen, factors, fresh: See Experiment.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Model,
        task: Task,
        checkpoint: pretrained.Checkpoint,
        placement: Placement,
        num_features: int,
        say: Callable[[str], None],
    ):
        self._config, self._model, self._checkpoint = config, model, checkpoint
        self._task, self._placement, self._say = task, placement, say
        self._blank = task.blank(num_features=num_features)
        self._layers = num_layers(model.config)
        self._draw = jax.jit(self._init)  # jitted here, for one trace to serve all uses
        self._shapes = jax.eval_shape(self._draw, jax.random.key(0))
        self._added = {
            path: jax.ShapeDtypeStruct(shape, np.float32)
            for path, shape in adapters.added_shapes(config.adapt, self._shapes).items()
        }
        trained = adapters.trained_paths(config.adapt, self._shapes, num_layers=self._layers)
        self.initial: dict[str, np.ndarray] = {}
        self.frozen: dict[str, Any] = {}
        self.fresh: set[str] = set()
        factors = learning_rate_factors(
            config.optimizer,
            [*self._shapes, *self._added],
            num_layers=self._layers,
            decoder_layers=adapters.decoder_layers(self._shapes),
        )
        self.factors = {
            path: factors[path] for path in (*trained, *self._added) if factors[path] is not None
        }
        if not self.factors:
            raise ValueError("config.optimizer.lr_table freezes every parameter: nothing to train")

    def describe(self) -> None:
        """Puts shapes in the place of parameters, with where they are to live; reads none."""
        freeze = functools.partial(adapters.freeze, self._config.adapt)
        for path, leaf in {**self._shapes, **self._added}.items():
            if path in self.factors:
                self.initial[path] = leaf
            else:
                self.frozen[path] = jax.eval_shape(functools.partial(freeze, path), leaf)
        self.initial, self.frozen = map(self._placement.like, (self.initial, self.frozen))

    def read(self, original: Tokenizer, tokenizer: Tokenizer, training: Examples | None) -> None:
        """Reads the backbone from the checkpoint, or draws it."""
        config, checkpoint = self._config, self._checkpoint
        if config.model.init == "scratch":
            drawn = jax.device_get(self._draw(self._rng()))
            self.fresh |= set(drawn)
            for path, value in drawn.items():
                self._place(path, value)
            return
        # Each tensor is placed as it is read, in the dtype it keeps: no second copy of all.
        parts = self._parts()
        params = checkpoint.read(
            parts,
            place=lambda path, value: (
                np.asarray(value, np.float32)
                if path == _VOCABULARY or path.split("/")[0] in parts
                else self._place(f"backbone/{path}", value)
            ),
        )
        if tokenizer is not original:
            _, params = run_tokenizer.follow(
                checkpoint.config, params, original, tokenizer, training=training, say=self._say
            )
        kept = ("embedder", *parts)
        self._words = {name: params[name] for name in kept}
        for path, value in flatten(self._words).items():
            if f"backbone/{path}" in self._shapes:  # not all that a head starts from stays
                self._place(f"backbone/{path}", value)

    def add_heads(self) -> None:
        """Adds what no checkpoint fills: a drawn head, or one that starts from label words."""
        if self._config.model.init == "scratch":
            return
        known = self.initial.keys() | self.frozen.keys()
        # jit removes what is not returned, so that only the head is drawn.
        heads = jax.jit(lambda rng: {p: v for p, v in self._draw(rng).items() if p not in known})
        heads, fresh = self._task.start_head(jax.device_get(heads(self._rng())), self._words)
        self.fresh |= fresh
        del self._words
        for path, value in heads.items():
            self._place(path, value)
        if frozen_fresh := sorted(self.fresh & self.frozen.keys()):
            raise ValueError(
                f"config.optimizer.lr_table freezes {', '.join(frozen_fresh[:3])}, which no "
                "checkpoint filled: give it a rate"
            )

    def add_adapters(self) -> None:
        """Adds the leaves of an adapter, drawn or read from config.adapt.start."""
        config, params = self._config, {**self.frozen, **self.initial}
        rng = random_stream(config.seed, "adapters")
        added = adapters.init(config.adapt, self._shapes, rng, params=params)
        if config.adapt.start:
            started = peft.read_peft(config.adapt.start, self._model.config, config.adapt)
            if unknown := sorted(started.keys() - added.keys() - self._shapes.keys()):
                raise ValueError(
                    f"config.adapt.start: {config.adapt.start} adapts {', '.join(unknown[:3])} "
                    f"({len(unknown)} in all), which this model does not have or config.adapt does "
                    "not name: set config.adapt.targets, and the checkpoint it was made for"
                )
            added |= {path: value for path, value in started.items() if path in added}
            self.initial |= {p: v for p, v in started.items() if p in self.initial}
            self.fresh -= started.keys()
        for path, value in added.items():
            self._place(path, value)

    def _place(self, path: str, value: Any) -> None:
        """Keeps a trained parameter on the host, puts a frozen one on the devices."""
        if path in self.factors:
            self.initial[path] = np.array(value, np.float32)
        else:
            kept = adapters.freeze(self._config.adapt, path, value)
            self.frozen[path] = self._placement.put(path, kept)

    def _parts(self) -> list[str]:
        """Names what is needed of the checkpoint beside the backbone."""
        stored = self._checkpoint.parts
        known = flatten(parameter_shapes(self._checkpoint.config, parts_of(self._model.config)))
        possible = {path.split("/")[0] for path in known}
        wanted = [part for part in self._task.parts if part in possible]
        if missing := [part for part in wanted if part not in stored]:
            raise ValueError(
                f"config.task={self._config.task!r} needs {' and '.join(missing)} of "
                f"{self._config.model.checkpoint}, which holds {', '.join(stored) or 'none'} "
                f"beside its layers: choose a checkpoint with {' and '.join(missing)}, or another "
                "config.model.head or pooling"
            )
        return wanted

    def _rng(self) -> jax.Array:
        return random_stream(self._config.seed, "parameters")

    def _init(self, rng: jax.Array) -> dict:
        """Draws all parameters of the model; flat."""
        return flatten(self._model.init(rng, self._blank, deterministic=True)["params"])
