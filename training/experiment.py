"""What all modes share, built once from a config: tokeniser, pipeline, model, weights."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation.evaluate import Predictions, predict
from evaluation.metrics import Metric, Scores, find, rank
from input_pipeline.batches.mixture import MixturePipeline
from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.eta import phase, working
from input_pipeline.examples import Examples
from input_pipeline.features.features import FeaturePipeline
from input_pipeline.tokenizers.tokenization import Tokenizer
from models import adapters, pretrained
from models.backbone import BackboneConfig, choose_attention
from models.decoder import DecoderConfig
from models.heads import Model
from tasks import task_class
from tasks.limits import Given, report
from tasks.task import Loaded, Task, rows_of
from training import run_tokenizer
from training.compilation import PerShape, resolve_dtype
from training.run_features import run_features
from training.run_probe import run_probe
from training.sharding import Placement, own_shards, put_batch
from training.tuning.regularizers import Passes, Teacher
from training.weights import Weights, num_layers

_PROBED = 2048  # training examples (of long texts, windows) that a probe is fitted on


@dataclasses.dataclass
class Experiment:
    """The parts of a run, and what all modes do with them.

    Attributes:
      model: the Linen module.
      checkpoint: where its weights come from.
      placement: where parameters live on the devices.
      initial: the trained parameters before training, flat, on the host.
      frozen: the other parameters, flat, on the devices, in config.adapt.frozen_dtype.
      factors: factor on the learning rate of every trained path.
      fresh: paths that no checkpoint filled; interpolation keeps their trained values.
      fingerprints: of the tokeniser, the pretrained weights and the features; they travel in
        checkpoints.
      features: as fitted on the training split, None without.
      teacher: of training, see workflows/teacher.py.
      original: the checkpoint's tokeniser where `tokenizer` is a trimmed or extended one.
      left_out: the records of `check`: what is dropped, cut or unreachable, JSON-ready.
    """

    config: ConfigDict
    task: Task
    tokenizer: Tokenizer
    pipeline: TextPipeline
    model: Model
    checkpoint: pretrained.Checkpoint
    placement: Placement
    initial: dict[str, np.ndarray]
    frozen: dict[str, Any]
    factors: dict[str, float]
    fresh: set[str]
    fingerprints: dict[str, str]
    features: FeaturePipeline | None
    say: Callable[[str], None]
    teacher: Teacher | None = None
    original: Tokenizer | None = None
    left_out: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self._windows: dict[bool, tuple[Examples, Examples]] = {}
        self.apply = adapters.adapted(self.config.adapt, self._apply)

        def forward(frozen: Mapping, params: Mapping, batch: Mapping[str, jax.Array]) -> Any:
            outputs = self.task.outputs(self.apply({**frozen, **params}, batch), batch)
            return jax.lax.with_sharding_constraint(outputs, self.placement.whole)

        self._forward = PerShape(forward, "the evaluation step", self.say)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices of all processes."""
        return self.placement.mesh

    @property
    def held(self) -> dict[str, Any]:
        """What a train step reads and does not change: frozen parameters, a teacher's."""
        return self.frozen | (self.teacher.held if self.teacher else {})

    @property
    def counted(self) -> "Experiment":
        """The same in programs of which XLA counts every operation once: no kernels, no remat."""
        model = self.model.clone(fused=None, remat="none")
        return self if model == self.model else dataclasses.replace(self, model=model)

    @property
    def metric(self) -> Metric:
        """The metric that chooses: config.eval.metric, or the task's first."""
        return find(self.task.metrics, self.config.eval.metric)

    @property
    def rootless(self) -> set[str]:
        """Trained paths without a pretrained side: heads drawn at random, and prompts."""
        return self.fresh | {path for path in self.initial if adapters.is_prompt(path)}

    @property
    def num_layers(self) -> int:
        """Number of layers with parameters of their own."""
        return num_layers(self.model.config)

    @property
    def decoder_layers(self) -> int:
        """Number of layers of an encoder-decoder's decoder that the run has."""
        return adapters.decoder_layers({**self.initial, **self.frozen})

    def _apply(self, params: Mapping, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the head's outputs without dropout; `self.apply` takes flat parameters."""
        return self.model.apply({"params": params}, batch, deterministic=True)

    def passes(self) -> Passes:
        """Returns what a train step computes of the model and the task."""
        samples = self.config.model.dropout_samples

        def outputs(params: Mapping, batch: Mapping, rng: jax.Array) -> list[dict]:
            options = {"rngs": {"dropout": rng}, "count": samples, "method": Model.samples}
            return self.model.apply({"params": params}, batch, **options)

        def embed(params: Mapping, batch: Mapping) -> jax.Array:
            return self.model.apply({"params": params}, batch, method=Model.embed)

        def logits(params: Mapping, hidden: jax.Array) -> jax.Array:
            return self.model.apply({"params": params}, hidden, method=Model.logits)

        task, adapted = self.task, functools.partial(adapters.adapted, self.config.adapt)
        return Passes(
            adapted(outputs),
            task.loss,
            task.divergence,
            adapted(embed),
            adapted(logits),
            task.sequences,
            task.JOINT,
        )

    def with_features(self, examples: Examples) -> Examples:
        """Returns the examples with the features that the head reads, if it reads any."""
        if self.features is None or examples.features_NxK is not None:
            return examples
        with working("Extracting features"):
            return dataclasses.replace(examples, features_NxK=self.features.transform(examples))

    def windows(self, examples: Examples, *, training: bool) -> Examples:
        """Returns what the model reads of the examples: with their features, long ones in parts."""
        if self._windows.get(training, (None,))[0] is not examples:  # the same at each evaluation
            complete = self.with_features(examples)
            windows = self.task.windows(complete, self.pipeline.encoder, training=training)
            self._windows[training] = examples, windows
        return self._windows[training][1]

    def check(
        self,
        examples: Examples,
        split: str,
        *,
        training: bool = False,
        complete: bool = False,
        labelled: bool = True,
    ) -> None:
        """Reports what of the examples is dropped, cut or unreachable; keeps it in `left_out`.

        Args:
            examples: of a split.
            split: its name.
            training: whether the model learns from them; the training split comes first.
            complete: whether they are predicted with what takes a loop over the model.
            labelled: whether the task requires labels.
        """
        if labelled:
            self.task.check(examples, split)
        with working(f"Checking the {split} examples"):
            windows = self.windows(examples, training=training)
            given = Given(examples, windows, self.pipeline, training, complete)
            records = report(self.task.limits(given), split, self.say)
        if self.original and not training and len(examples):
            texts = examples.all_texts
            self.say(run_tokenizer.lengths(texts, split, self.original, self.tokenizer))
        self.left_out += [record for record in records if record not in self.left_out]

    def predict(
        self,
        params: Mapping[str, jax.Array],
        examples: Examples,
        fitted: Mapping[str, Any],
        *,
        complete: bool = False,
    ) -> Predictions:
        """Predicts all of `examples`; one code path for every mode.

        Args:
            params: the trained ones.
            examples: any; labels are not needed.
            fitted: with these parameters, see Task.fit; Task.unfitted before any evaluation.
            complete: also what takes a loop over the model, such as generated texts.
        """

        def apply_fn(params: Any, batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
            return self._forward(self.frozen, params, put_batch(batch, self.mesh))

        windows, encoder = self.windows(examples, training=False), self.pipeline.encoder
        batches = self.pipeline.evaluate(windows)
        predictions = predict(apply_fn, params, batches, total=len(windows))
        predictions = self.task.decode(predictions, windows, examples, encoder)
        if complete:
            adapted = functools.partial(adapters.adapted, self.config.adapt)
            loaded = Loaded(self.model, {**self.frozen, **params}, adapted)
            predictions = self.task.complete(predictions, examples, encoder, loaded)
        return dataclasses.replace(predictions, fitted=fitted)

    def score(
        self, params: Mapping[str, jax.Array], validation: Examples
    ) -> tuple[Scores, Mapping[str, Any]]:
        """Evaluates on the validation split; also returns what the task fitted on it."""
        predictions = self.predict(params, validation, self.task.unfitted)
        fitted = self.task.fit(predictions, validation)
        predictions = dataclasses.replace(predictions, fitted=fitted)
        return self.task.score(predictions, validation), fitted

    def rank(self, values: Mapping[str, float]) -> list[float]:
        """Orders evaluations by their metrics' values: better is greater."""
        return rank(values, self.task.metrics, self.config.eval.metric)

    def put(self, params: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Copies host parameters to the devices."""
        return {path: self.placement.put(path, value) for path, value in params.items()}

    def pretrained_end(self, trained: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the pretrained side of the line to `trained`.

        A head that was drawn at random has no such side: it is kept as trained.
        """
        added = {path: value for path, value in trained.items() if adapters.is_added(path)}
        start = {
            path: value
            for path, value in self.initial.items()
            if path not in self.fresh and path not in added
        }
        end = self.put(adapters.pretrained_end(added, params=self.frozen))
        return {path: trained[path] for path in self.fresh} | self.put(start) | end

    def probe(self, training: Examples) -> dict[str, np.ndarray]:
        """Returns parameters of the head, fitted on the pretrained model's vectors.

        Args:
            training: the training split, of which the first examples are read.
        """
        windows = self.windows(training, training=True).first(_PROBED)

        def inputs(params: Mapping, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            vectors = self.model.apply({"params": params}, batch, method=Model.head_inputs)
            return jax.lax.with_sharding_constraint(vectors, self.placement.whole)

        forward = PerShape(adapters.adapted(self.config.adapt, inputs), "the probe", self.say)

        def apply_fn(params: Any, batch: Mapping[str, np.ndarray]) -> Mapping[str, jax.Array]:
            return forward(params, put_batch(batch, self.mesh))

        params = {**self.frozen, **self.put(self.initial)}
        batches = self.pipeline.evaluate(windows)
        with working("Reading training examples for the probe"):
            predictions = predict(apply_fn, params, batches, total=len(windows))
        windows = windows.take(rows_of(windows, predictions.ids_N))  # masked ones are not predicted
        try:
            with working("Fitting the probe"):
                heads, fit = self.task.probe(windows, predictions, self.pipeline.encoder)
        except ValueError as error:
            raise ValueError(
                f"config.model.head_start='probe' cannot fit the head: {error}; set it to 'random'"
            ) from None
        self.say(f"Probe: the head is fitted on {len(windows):,} training examples; {fit}.")
        return heads

    def gates(self, period_examples: int | str) -> Callable | None:
        """Returns the gates of gradual unfreezing for the train step; None without a period."""
        if not period_examples:
            return None
        return adapters.gates(
            self.config.adapt,
            self.initial,
            num_layers=self.num_layers,
            period_examples=period_examples,
        )

    def like(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Describes the trained parameters for restoring."""
        return self.placement.like(self.initial)


def build(
    config: ConfigDict,
    workdir: Path,
    labels: Any,
    say: Callable[[str], None],
    training: Examples | None = None,
    *,
    read: bool = True,
) -> Experiment:
    """Loads the tokeniser and the weights that `config` names and puts the parts together.

    Args:
      config: the whole config.
      workdir: a tokeniser that is trained or changed here is kept in it.
      labels: what the task predicts, of the data or of a checkpoint.
      say: receives one line of prose for each derived decision.
      training: the examples that a new or changed tokeniser and the features are fitted on; None
        loads both from `workdir`.
      read: False leaves the weights unread: `initial` and `frozen` are their shapes.

    Raises:
      ValueError: parts that don't fit each other, naming both.
    """
    resolve_dtype(config, workdir, say)
    placement = Placement(config.sharding)
    path = pretrained.resolve(config.model.checkpoint)
    checkpoint = pretrained.open_checkpoint(path, config_alone=not read)
    if checkpoint.note:
        say(checkpoint.note)
    if keep := config.model.keep_layers:
        count, checkpoint = checkpoint.config.num_layers, checkpoint.keeping(keep)
        which = f"{', '.join(map(str, checkpoint.kept))} (the first is 0)"
        if len(checkpoint.kept) < keep:
            which = "all have the same parameters"
        say(f"{keep} of {count} layers are kept: {which}.")
    for why, count in checkpoint.ignored.items():
        say(f"Not read: {count} tensors of {checkpoint.path.name} ({why}).")
    read_ids = functools.partial(_read_ids, config, labels, checkpoint, training)
    original, tokenizer = run_tokenizer.run_tokenizers(config, workdir, training, read_ids)
    if note := run_tokenizer.check_original(config, checkpoint, original):
        say(note)
    backbone = _backbone_config(config, checkpoint.config, tokenizer, original)
    task = task_class(config)(config, labels, tokenizer=tokenizer, backbone=backbone)
    if note := task.adopt(checkpoint.path):
        say(note)
    if training is not None:
        task.check(training, "train")
    features = run_features(config, workdir, training)
    if features:
        say(features.prose())
    num_features = len(features.names) if features else 0
    model = Model(
        backbone,
        task.head(num_features=num_features),
        hidden_dropout=config.model.hidden_dropout,
        attention_dropout=config.model.attention_dropout,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
        fused=choose_attention(
            config.model.attention,
            backbone,
            dtype=config.model.dtype,
            mesh=placement.mesh,
            say=say,
            dropout=config.model.attention_dropout,
        ),
    )
    weights = Weights(config, model, task, checkpoint, placement, num_features, say)
    if read:
        with working("Reading the weights"):
            weights.read(original, tokenizer, training)
            weights.add_heads()
            weights.add_adapters()
    else:
        weights.describe()
    placement.check_rows({**weights.initial, **weights.frozen})
    experiment = Experiment(
        config=config,
        task=task,
        tokenizer=tokenizer,
        pipeline=make_pipeline(
            config,
            task,
            row_multiple=placement.mesh.shape["data"],
            shards=own_shards(placement.mesh),
        ),
        model=model,
        checkpoint=checkpoint,
        placement=placement,
        initial=weights.initial,
        frozen=weights.frozen,
        factors=weights.factors,
        fresh=weights.fresh,
        fingerprints={
            "tokenizer": tokenizer.fingerprint,
            "pretrained": checkpoint.fingerprint,
            **({"features": features.fingerprint} if features else {}),
        },
        features=features,
        say=say,
        original=original if original is not tokenizer else None,
    )
    if config.model.head_start == "probe" and read:
        with phase("probe"):
            heads = run_probe(config, workdir, training, experiment.probe, experiment.initial)
        experiment.initial |= heads
        experiment.fresh -= heads.keys()
    say(
        f"Model: {checkpoint.path.name} ({backbone.model_type}), {backbone.num_layers} layers, "
        f"computed in {config.model.dtype}, {config.model.init} weights; {task.prose()}."
    )
    return experiment


def _read_ids(
    config: ConfigDict,
    labels: Any,
    checkpoint: pretrained.Checkpoint,
    training: Examples,
    tokenizer: Tokenizer,
) -> set[int]:
    """Returns the ids that the model would read of the training examples."""
    task = task_class(config)(config, labels, tokenizer=tokenizer, backbone=checkpoint.config)
    task.adopt(checkpoint.path)
    task.check(training, "train")
    pipeline = make_pipeline(config, task)
    return pipeline.ids(task.windows(training, pipeline.encoder, training=True))


def _backbone_config(
    config: ConfigDict, backbone: BackboneConfig, tokenizer: Tokenizer, original: Tokenizer
) -> BackboneConfig:
    """Returns the checkpoint's config with this run's changes."""
    name, length = config.model.checkpoint, config.layout.max_length
    if config.model.bidirectional:
        if not isinstance(backbone, DecoderConfig):
            raise ValueError(
                f"config.model.bidirectional is for decoders, but {name} is a "
                f"{backbone.model_type}: leave it False"
            )
        backbone = dataclasses.replace(backbone, bidirectional=True)
    if tokenizer is not original:
        backbone = dataclasses.replace(backbone, vocab_size=tokenizer.vocab_size)
    if backbone.max_length and length > backbone.max_length:
        raise ValueError(
            f"config.layout.max_length={length}, but {name} has positions for "
            f"{backbone.max_length} tokens only: lower it"
        )
    return backbone


def make_pipeline(config: ConfigDict, task: Task, **split: Any) -> TextPipeline | MixturePipeline:
    """Returns what turns examples into batches; `split` says how rows are: see TextPipeline."""
    if task.members:
        pipelines = {
            name: make_pipeline(member.config, member, **split)
            for name, member in task.members.items()
        }
        return MixturePipeline(pipelines, config)
    length = config.adapt.prompt_length if config.adapt.kind == "prompt" else 0
    prefix_ids = range(task.backbone.vocab_size, task.backbone.vocab_size + length)
    return TextPipeline(task, config, prefix_ids=prefix_ids, **split)
