"""What all modes share, built once from a config: tokeniser, pipeline, model, weights, predictions.

Called by training/train.py and evaluation/protocol.py.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation.evaluate import Predictions, predict
from input_pipeline.pipeline import TextPipeline
from input_pipeline.preparation import Examples
from input_pipeline.tokenization import (
    Tokenizer,
    load_tokenizer,
    tokenizer_from_gguf,
    train_tokenizer,
)
from models import pretrained
from models.heads import Classifier, label_word_kernel
from tasks.classification import Classification
from training.compilation import PerShape
from training.optimizers import learning_rate_factors
from training.sharding import make_mesh, put_batch, replicated
from training.state import flatten, merge, random_stream


@dataclasses.dataclass
class Experiment:
    """A config made real.

    Attributes:
      model: the Linen module.
      initial: the trained parameters before training, flat, on the host.
      frozen: the other parameters, flat, on the devices.
      factors: factor on the learning rate of every trained path.
      fresh: paths that no checkpoint filled; interpolation leaves them as trained.
      fingerprints: of the tokeniser and the pretrained weights; they travel in checkpoints.
    """

    config: ConfigDict
    task: Classification
    tokenizer: Tokenizer
    pipeline: TextPipeline
    model: Classifier
    num_layers: int
    mesh: jax.sharding.Mesh
    initial: dict[str, np.ndarray]
    frozen: dict[str, jax.Array]
    factors: dict[str, float]
    fresh: set[str]
    fingerprints: dict[str, str]
    say: Callable[[str], None]

    def __post_init__(self):
        def forward(frozen: Mapping, params: Mapping, batch: Mapping[str, jax.Array]) -> jax.Array:
            logits_BxC = self.apply(merge(frozen, params), batch)
            return jax.lax.with_sharding_constraint(logits_BxC, replicated(self.mesh))

        self._forward = PerShape(forward, "the evaluation step", self.say)

    def apply(
        self, params: Mapping, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
    ) -> jax.Array:
        """Returns logits_BxC; with `rng`, dropout is on."""
        return self.model.apply(
            {"params": params},
            batch["tokens_RxL"],
            batch["positions_RxL"],
            batch["segments_RxL"],
            num_examples=batch["labels_B"].shape[-1],
            deterministic=rng is None,
            rngs=None if rng is None else {"dropout": rng},
        )

    def predict(self, params: Mapping[str, jax.Array], examples: Examples) -> Predictions:
        """Runs the model over all of `examples`; one code path for every mode."""

        def apply_fn(params: Any, batch: Mapping[str, np.ndarray]) -> jax.Array:
            return self._forward(self.frozen, params, put_batch(batch, self.mesh))

        return predict(apply_fn, params, self.pipeline.evaluate(examples))

    def put(self, params: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Copies host parameters to the devices."""
        # A copy, since donation of a buffer that aliases host memory would overwrite `initial`.
        return {
            path: jax.device_put(jnp.array(value, copy=True), replicated(self.mesh))
            for path, value in params.items()
        }

    def like(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Describes the trained parameters for restoring."""
        return {
            path: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=replicated(self.mesh))
            for path, value in self.initial.items()
        }


def build(
    config: ConfigDict,
    workdir: Path,
    labels: Sequence[str],
    say: Callable[[str], None],
    training_texts: Sequence[str] = (),
) -> Experiment:
    """Loads the tokeniser and the weights that `config` names and puts the parts together.

    Args:
      config: the whole config.
      workdir: a tokeniser that is trained here is kept in it.
      labels: label names in class order.
      say: receives one line of prose for each derived decision.
      training_texts: what a new tokeniser learns from.

    Raises:
      ValueError: parts that don't fit each other, naming both.
    """
    mesh = make_mesh()
    path = pretrained.resolve(config.model.checkpoint)
    loaded = pretrained.load_pretrained(path)
    tokenizer = _tokenizer(config, workdir, path, training_texts)
    if tokenizer.vocab_size > loaded.config.vocab_size:
        raise ValueError(
            f"the tokeniser has {tokenizer.vocab_size} pieces but {path} has embeddings for "
            f"{loaded.config.vocab_size}: leave config.tokenizer.model empty to use its own"
        )
    task = Classification(tuple(labels))
    model = Classifier(
        loaded.config,
        num_classes=len(labels),
        pooling=config.model.pooling,
        dropout=config.model.dropout,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
    )
    params, fresh = _initial_params(config, model, loaded.params, tokenizer, labels)
    factors = learning_rate_factors(config.optimizer, params, loaded.config.num_layers)
    trained = {path: factor for path, factor in factors.items() if factor is not None}
    if not trained:
        raise ValueError("config.optimizer.lr_table freezes every parameter: nothing to train")
    if frozen_fresh := sorted(fresh - trained.keys()):
        raise ValueError(
            f"config.optimizer.lr_table freezes {', '.join(frozen_fresh[:3])}, which no checkpoint "
            "filled: give it a rate"
        )
    experiment = Experiment(
        config=config,
        task=task,
        tokenizer=tokenizer,
        pipeline=TextPipeline(
            tokenizer,
            template=config.data.template,
            layout=config.layout,
            augmentation=config.augmentation,
            batch_size=config.data.batch_size,
            microbatches=config.train.microbatches,
            row_multiple=mesh.size,
            seed=config.seed,
            eval_rows=config.eval.rows,
        ),
        model=model,
        num_layers=loaded.config.num_layers,
        mesh=mesh,
        initial={path: params[path] for path in trained},
        frozen={},
        factors=trained,
        fresh=fresh,
        fingerprints={"tokenizer": tokenizer.fingerprint, "pretrained": loaded.fingerprint},
        say=say,
    )
    experiment.frozen = experiment.put({p: v for p, v in params.items() if p not in trained})
    size = sum(value.size for value in params.values())
    say(
        f"Model: {path.name}, {loaded.config.num_layers} layers, {size / 1e6:.1f}M parameters "
        f"computed in {config.model.dtype}, {config.model.init} weights; {config.model.pooling} "
        f"pooling and a {config.model.head} head over {', '.join(labels)}."
    )
    return experiment


def _tokenizer(
    config: ConfigDict, workdir: Path, checkpoint: Path, training_texts: Sequence[str]
) -> Tokenizer:
    """Returns the checkpoint's tokeniser, another one, or one learned from the training texts."""
    options = {"add_bos": config.tokenizer.add_bos, "add_eos": config.tokenizer.add_eos}
    if config.tokenizer.model != "train":
        path = Path(config.tokenizer.model or checkpoint)
        if path.suffix == ".gguf" and path.is_file():
            return tokenizer_from_gguf(pretrained.gguf.metadata(path), file=str(path), **options)
        return load_tokenizer(path, **options)
    if config.model.init != "scratch":
        raise ValueError(
            "config.tokenizer.model is 'train' but the weights are pretrained with another "
            "vocabulary: set config.model.init=scratch or keep the checkpoint's tokeniser"
        )
    path = workdir / "tokenizer.model"
    if not (workdir / "checkpoints").exists():  # one of a failed start may be another config's
        workdir.mkdir(parents=True, exist_ok=True)
        train_tokenizer(list(training_texts), path, vocab_size=config.tokenizer.vocab_size)
    return load_tokenizer(path, **options)


def _initial_params(
    config: ConfigDict,
    model: Classifier,
    backbone: Mapping,
    tokenizer: Tokenizer,
    labels: Sequence[str],
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Returns all parameters, flat, and the paths among them that no checkpoint filled."""
    one = jnp.zeros((1, 1), jnp.int32)
    rng = random_stream(config.seed, "parameters")

    def draw(rng: jax.Array) -> dict:
        return flatten(model.init(rng, one, one, one, num_examples=1, deterministic=True)["params"])

    if config.model.init == "scratch":
        params = jax.device_get(jax.jit(draw)(rng))
        return params, set(params)
    params = flatten({"backbone": backbone})
    # jit removes what is not returned, so that only the head is drawn.
    heads = jax.jit(lambda rng: {p: v for p, v in draw(rng).items() if p not in params})(rng)
    params |= jax.device_get(heads)
    if config.model.head == "linear":
        return params, set(heads)
    words = tuple(config.model.label_words)
    if len(words) != len(labels):
        raise ValueError(
            f"config.model.label_words: found {len(words)} words {words} for {len(labels)} labels "
            f"{tuple(labels)}; give one word per label, in this order"
        )
    kernel = label_word_kernel(
        params["backbone/embedder/embedding"], [tokenizer.piece_ids(word) for word in words]
    )
    params["head/kernel"] = np.asarray(kernel, np.float32)
    return params, set()
