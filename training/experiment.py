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
from input_pipeline import features as feature_fitting
from input_pipeline import vocabulary
from input_pipeline.augmentation_tables import PUNCTUATION
from input_pipeline.examples import Examples
from input_pipeline.features import FeaturePipeline
from input_pipeline.pipeline import TextPipeline
from input_pipeline.tokenization import (
    FIELD,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_gguf,
    train_tokenizer,
)
from models import pretrained
from models.heads import Classifier, label_word_kernel
from models.pretrained.vocabulary import follow_vocabulary
from tasks.classification import Classification
from training.compilation import PerShape
from training.optimizers import learning_rate_factors
from training.sharding import make_mesh, put_batch, replicated
from training.state import flatten, merge, random_stream
from training.workdir import has_checkpoint

_SAMPLE = 10_000  # texts whose length in tokens is told


@dataclasses.dataclass
class Experiment:
    """A config made real.

    Attributes:
      model: the Linen module.
      initial: the trained parameters before training, flat, on the host.
      frozen: the other parameters, flat, on the devices.
      factors: factor on the learning rate of every trained path.
      fresh: paths that no checkpoint filled; interpolation leaves them as trained.
      fingerprints: of the tokeniser, the pretrained weights and the features; they travel in
        checkpoints.
      features: as fitted on the training split, None without.
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
    features: FeaturePipeline | None
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
            features_BxK=batch.get("features_BxK"),
            rngs=None if rng is None else {"dropout": rng},
        )

    def predict(self, params: Mapping[str, jax.Array], examples: Examples) -> Predictions:
        """Runs the model over all of `examples`; one code path for every mode."""

        def apply_fn(params: Any, batch: Mapping[str, np.ndarray]) -> jax.Array:
            return self._forward(self.frozen, params, put_batch(batch, self.mesh))

        return predict(apply_fn, params, self.pipeline.evaluate(self.with_features(examples)))

    def with_features(self, examples: Examples) -> Examples:
        """Returns the examples with the features that the head reads, if it reads any."""
        if self.features is None or examples.features_NxK is not None:
            return examples
        return dataclasses.replace(examples, features_NxK=self.features.transform(examples))

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
    training: Examples | None = None,
) -> Experiment:
    """Loads the tokeniser and the weights that `config` names and puts the parts together.

    Args:
      config: the whole config.
      workdir: a tokeniser that is trained or changed here is kept in it.
      labels: label names in class order.
      say: receives one line of prose for each derived decision.
      training: what a new or changed tokeniser learns from, and features are fitted on; None takes
        both as they were left in `workdir`.

    Raises:
      ValueError: parts that don't fit each other, naming both.
    """
    mesh = make_mesh()
    path = pretrained.resolve(config.model.checkpoint)
    loaded = pretrained.load_pretrained(path)
    own, tokenizer = _tokenizers(config, workdir, training)
    if own.vocab_size > loaded.config.vocab_size:
        raise ValueError(
            f"the tokeniser has {own.vocab_size} pieces but {path} has embeddings for "
            f"{loaded.config.vocab_size}: leave config.tokenizer.model empty to use its own"
        )
    if tokenizer is not own:
        loaded = _follow_vocabulary(
            loaded, own, tokenizer, say, sample=training_texts(training)[:_SAMPLE]
        )
    features = run_features(config, workdir, training)
    if features:
        say(features.prose())
    task = Classification(tuple(labels))
    model = Classifier(
        loaded.config,
        num_classes=len(labels),
        pooling=config.model.pooling,
        dropout=config.model.dropout,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
        num_features=len(features.names) if features else 0,
    )
    params, fresh = _initial_params(config, model, loaded.params, tokenizer, labels)
    trained = _trained_factors(config, params, fresh, num_layers=loaded.config.num_layers)
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
        fingerprints={
            "tokenizer": tokenizer.fingerprint,
            "pretrained": loaded.fingerprint,
            **({"features": features.fingerprint} if features else {}),
        },
        features=features,
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


def _trained_factors(
    config: ConfigDict, params: Mapping[str, np.ndarray], fresh: set[str], *, num_layers: int
) -> dict[str, float]:
    """Returns the factor on the learning rate of each parameter that is not frozen."""
    factors = learning_rate_factors(config.optimizer, params, num_layers)
    trained = {path: factor for path, factor in factors.items() if factor is not None}
    if not trained:
        raise ValueError("config.optimizer.lr_table freezes every parameter: nothing to train")
    if frozen_fresh := sorted(fresh - trained.keys()):
        raise ValueError(
            f"config.optimizer.lr_table freezes {', '.join(frozen_fresh[:3])}, which no checkpoint "
            "filled: give it a rate"
        )
    return trained


def training_tokenizer(
    config: ConfigDict, workdir: Path, training: Examples | None = None
) -> Tokenizer:
    """Returns the tokeniser of a run; arguments and errors as of `build`."""
    return _tokenizers(config, workdir, training)[1]


def training_texts(training: Examples | None) -> list[str]:
    """Returns the first texts, then the second ones."""
    if training is None:
        return []
    return [*training.texts_N, *(() if training.pairs_N is None else training.pairs_N)]


def _tokenizers(
    config: ConfigDict, workdir: Path, training: Examples | None
) -> tuple[Tokenizer, Tokenizer]:
    """Returns the tokeniser that is configured, and the run's; the same if it isn't changed."""
    options, path = config.tokenizer, workdir / "tokenizer.model"
    marks = {"add_bos": options.add_bos, "add_eos": options.add_eos}
    fresh = not has_checkpoint(workdir)  # a failed start's may be another config's
    changed = options.keep_others >= 0 or options.new_pieces
    if options.model != "train":
        file = Path(options.model or pretrained.resolve(config.model.checkpoint))
        if file.suffix == ".gguf" and file.is_file():
            own = tokenizer_from_gguf(pretrained.gguf.metadata(file), file=str(file), **marks)
        else:
            own = load_tokenizer(file, **marks)
        if not changed:
            return own, own
    elif config.model.init != "scratch":
        raise ValueError(
            "config.tokenizer.model is 'train' but the weights are pretrained with another "
            "vocabulary: set config.model.init=scratch or keep the checkpoint's tokeniser"
        )
    elif changed:
        raise ValueError(
            "config.tokenizer.keep_others and new_pieces change a vocabulary that exists, but "
            "config.tokenizer.model='train' makes one: leave them out, and set vocab_size"
        )
    if fresh:
        workdir.mkdir(parents=True, exist_ok=True)
        if changed:
            path.write_bytes(_fitted_model(config, own, training_texts(training)))
        else:
            train_tokenizer(training_texts(training), path, vocab_size=options.vocab_size)
    elif not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the vocabulary that this run's checkpoints were trained with. Put "
            "it back, or train again with --config.train.on_config_change=overwrite"
        )
    tokenizer = load_tokenizer(path, **marks)
    return (own if changed else tokenizer), tokenizer


def _fitted_model(config: ConfigDict, tokenizer: Tokenizer, texts: Sequence[str]) -> bytes:
    """Trims and extends a vocabulary, or takes that of the run that config.resume_from names."""
    other_run = Path(config.resume_from, "tokenizer.model")
    if config.resume_from and other_run.is_file():
        return other_run.read_bytes()
    augmentation = (config.augmentation.mask_character, *PUNCTUATION)
    words = (*FIELD.split(config.data.template)[::2], *config.model.label_words, *augmentation)
    texts, model = [*texts, *words], tokenizer.model
    if config.tokenizer.keep_others >= 0:
        model = vocabulary.trim(model, texts, others=config.tokenizer.keep_others)
    if config.tokenizer.new_pieces:
        model = vocabulary.extend(model, texts, new_pieces=config.tokenizer.new_pieces)
    return model


def _follow_vocabulary(
    loaded: pretrained.Pretrained,
    own: Tokenizer,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
    *,
    sample: Sequence[str],
) -> pretrained.Pretrained:
    """Rebuilds the embeddings for a changed tokeniser, and says what the change did."""
    parts = vocabulary.parts(own.model, tokenizer.model)
    config, params = follow_vocabulary(loaded.config, loaded.params, parts)
    kept = sum(len(ids) == 1 for ids in parts)
    before, after = (v * config.width / 1e6 for v in (loaded.config.vocab_size, len(parts)))
    say(
        f"Vocabulary: {kept:,} of {own.vocab_size:,} pieces kept and {len(parts) - kept:,} added; "
        f"embeddings of {before:.1f}M parameters before, {after:.1f}M now."
    )
    if sample:
        before, after = (
            sum(map(len, each.encode_batch(sample))) / len(sample) for each in (own, tokenizer)
        )
        say(
            f"The first {len(sample):,} training texts take {before:.1f} tokens each with the "
            f"checkpoint's own vocabulary and {after:.1f} with this one."
        )
    return dataclasses.replace(loaded, config=config, params=params)


def run_features(
    config: ConfigDict, workdir: Path, training: Examples | None
) -> FeaturePipeline | None:
    """Fits the features on the training split, or takes up those that the run fitted."""
    if config.features.use == "none":
        return None
    path = workdir / "features.safetensors"
    if training is not None and not has_checkpoint(workdir):
        fitted = feature_fitting.fit(
            training, config.features, value_names=config.data.value_columns
        )
        workdir.mkdir(parents=True, exist_ok=True)
        fitted.save(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the features that this run's checkpoints were trained with. Put "
            "it back, or train again with --config.train.on_config_change=overwrite"
        )
    return feature_fitting.load(path)


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

    few = jnp.zeros((1, model.num_features)) if model.num_features else None

    def draw(rng: jax.Array) -> dict:
        options = {"num_examples": 1, "deterministic": True, "features_BxK": few}
        return flatten(model.init(rng, one, one, one, **options)["params"])

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
    return params, {path for path in heads if path.startswith("feature_head/")}
