"""What every kind of task declares and defines: the interface and its defaults.

One file per kind beside this one; `tasks.task_class` finds its class. The pipeline, the train step
and the evaluation call the methods below and never ask which kind they have. In the order in which
an example meets them:

    check        raises on examples that cannot serve                  host, once
    encoder      texts to tokens                                       host, once
    limits       what of the examples is dropped, cut or out of reach  host, once
    windows      examples to examples that fit the model               host, once
    targets      tokens to what the loss needs beside them             host, each batch
    head         a Linen module from hidden states to outputs          device
    loss         outputs and batch to (sum, weight, sums)              device, under jit
    divergence   two outputs of a batch to how far they are apart      device, under jit
    outputs      what is fetched of a prediction                       device, under jit
    decode       fetched outputs of windows to predictions             host
    complete     what needs a loop over the model: generated texts     host and device
    fit          what is chosen on the validation split: thresholds    host
    score        predictions and truth to statistics that add up       host
    baselines    models without an encoder, for the table of results   host
    describe     predictions as JSON                                   host
    calibration  how well probabilities are calibrated                 host
"""

import abc
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores
from input_pipeline.batches.targets import Chunk, Targets
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.examples import Examples
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.backbone import BackboneConfig
from tasks.limits import Given, Limit

__all__ = ["Arrays", "Chunk", "Fit", "Loss", "Targets", "Task", "digest", "rows_of", "text_record"]

Arrays = Mapping[str, jax.Array]
Fit = tuple[dict[str, np.ndarray], str]  # parameters of a head, flat, and how they were fitted
Loss = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


class Loaded(NamedTuple):
    """A model with its parameters, for `Task.complete`.

    Attributes:
        model: models.heads.Model.
        params: flat, adapters included.
        adapted: `adapted(f)` is a function of (flat params, ...) for a function
            f(nested params, ...), in which adapters act.
    """

    model: nn.Module
    params: Arrays
    adapted: Callable[[Callable], Callable]


class Task(abc.ABC):
    """One kind of task for one run.

    Attributes:
        config: the whole config.
        labels: class names (tagging: span labels) in order, () without; kept in checkpoints.
        members: name -> task, of a task that is made of several.
        unfitted: what stands in for the result of `fit` before the first evaluation.
    """

    # What a kind of task can do. The class alone, without data or model, answers these.
    FLOOR: ClassVar[str]  # the row of `baselines` that results are compared with
    LABELS: ClassVar[str] = "labels"  # the entry of a data set's manifest that holds the labels
    BOUND: ClassVar[tuple[str, ...]] = ()  # own knobs that a checkpoint is tied to
    FEATURES: ClassVar[bool] = False  # config.features: the head can read them
    EXPORT: ClassVar[str] = ""  # as 'classifier', 'language_model', 'embedding'; '' refuses
    AVERAGE: ClassVar[str] = ""  # ensembles: average 'softmax', 'sigmoid' or 'numbers'; '' refuses
    UNIT: ClassVar[bool] = False  # `fit` holds the outputs' unit, equal in runs that are joined
    SHIFTED: ClassVar[bool] = True  # config.integrate.shifted_files: one data set has its columns
    REVIEW: ClassVar[bool] = False  # --mode=review, config.review.exclude: one class per text
    ROBUSTNESS: ClassVar[bool] = False  # config.eval.robustness: a changed text keeps its answer
    PROBE: ClassVar[bool] = False  # config.model.head_start: a regression can fit the head
    SMOOTHING: ClassVar[bool] = False  # config.regularize.label_smoothing can spread its labels
    TEACHABLE: ClassVar[bool] = False  # config.teach: the loss reads a teacher's probabilities
    JOINT: bool = False  # the loss of an example reads the outputs of its whole step
    READY: ClassVar[bool] = False  # works before training: the results show it
    RANKS: ClassVar[bool] = False  # config.mine.reranker: scores the candidates of a query
    MIXUP: ClassVar[bool] = False  # config.regularize.mixup: a head reads one vector per example

    # Facts that instances may replace.
    metrics: tuple[Metric, ...]  # the first chooses the checkpoint by default, the last breaks ties
    positions: tuple[str, ...] = ()  # names of Targets.positions
    offsets: bool = False  # whether `targets` reads Encoded.offsets and Encoded.fields
    sequences: int = 1  # token sequences per example: choices, each a segment of its own
    parts: tuple[str, ...] = ()  # of the checkpoint, beside its layers, that the head reads

    def __init__(
        self,
        config: ConfigDict,
        labels: Sequence[str],
        *,
        tokenizer: Tokenizer,
        backbone: BackboneConfig,
    ):
        """Stores the arguments; kinds check them in their __init__.

        Args:
            config: the whole config.
            labels: class names (tagging: span labels) in order; () without.
            tokenizer: of the run.
            backbone: shapes of the model.

        Raises:
            ValueError: features for a head that reads none, smoothing of what is no
                distribution, or a pooling that only embeddings have.
        """
        if config.regularize.label_smoothing and not self.SMOOTHING:
            kind = f" of kind {config.classification.kind}" * (config.task == "classification")
            raise ValueError(
                f"config.regularize.label_smoothing={config.regularize.label_smoothing}: "
                f"config.task={config.task!r}{kind} has no labels to smooth: set it to 0"
            )
        if config.features.use != "none" and not self.FEATURES:
            raise ValueError(
                f"config.features.use={config.features.use!r}: config.task={config.task!r} reads "
                "no features: set it to 'none'"
            )
        if config.model.pooling == "auto" and not self.READY:
            raise ValueError(
                f"config.model.pooling='auto': config.task={config.task!r} makes no vectors, of "
                "which a folder could say how: set it to 'mean', 'first' or 'last'"
            )
        self.config, self.labels = config, tuple(labels)
        self.tokenizer, self.backbone = tokenizer, backbone
        self.members: Mapping[str, Task] = {}
        self.unfitted: Mapping[str, Any] = {}

    @staticmethod
    def member_configs(config: ConfigDict) -> Mapping[str, ConfigDict]:
        """Returns the config of each task that this one is made of; {} for a single task."""
        return {}

    def adopt(self, folder: Path) -> str:
        """Takes over what a checkpoint's folder says about its use; returns a note, or ''."""
        return ""

    def prose(self) -> str:
        """Describes what is learned, for the start-up log."""
        return self.config.task.replace("_", " ")

    def check(self, examples: Examples, split: str) -> None:  # noqa: B027, fine for most
        """Raises ValueError for examples that cannot serve, with the knob to set.

        Of the 'train' split, a task may keep what it needs, such as counts of classes.
        """

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns what turns texts into tokens: an Encoder, or what has its interface."""
        return Encoder(self.tokenizer, template, max_length=max_length, prefix_ids=prefix_ids)

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Returns examples that fit the model; by default the same ones, later cut if too long."""
        return examples

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what of the examples is dropped, cut or can never be predicted.

        By default texts are cut to the longest length. Kinds that make windows of long texts, or
        drop them, report what that loses instead. The training split comes first.
        """
        yield self.cut([encoded.cut_B for encoded in given.pipeline.encoded(given.windows)], given)

    def cut(self, cuts: Sequence[np.ndarray], given: Given) -> Limit:
        """Returns the limit of examples that are cut, from flags of sequences, K per example."""
        cut_S, layout = np.concatenate([np.zeros(0, bool), *cuts]), self.config.layout
        cut_N = cut_S.reshape(-1, self.sequences).any(axis=1)
        remedy = "raise config.layout.max_length (and row_length)"
        if getattr(self.backbone, "max_length", 0) == layout.max_length:
            remedy = "the checkpoint has no more positions, so take another, or shorten the texts"
        what = f"examples are longer than config.layout.max_length={layout.max_length} tokens"
        some = len(cut_N) < len(given.windows)
        return Limit(int(cut_N.sum()), len(cut_N), f"{what} and cut", remedy, first=some)

    def candidates(
        self, examples: Examples, indices_B: np.ndarray, epochs_B: np.ndarray
    ) -> Sequence[Sequence[str]] | None:
        """Returns the texts of each example's sequences that are read beside text and pair."""
        return None if examples.choices_N is None else examples.choices_N[indices_B]

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns what the loss needs. With `sequences` K, encoded has B * K of them, K by K."""
        return Targets({}, {})

    @abc.abstractmethod
    def head(self, *, num_features: int) -> nn.Module:
        """Returns the head, an unbound module whose parameters come under 'head/'.

        Called as `head(backbone, hidden_RxLxD, batch, deterministic=...)`, it returns a dict of
        arrays, float32 unless documented otherwise. `backbone` is bound: `backbone.logits(...)`.
        """

    def blank(self, *, num_features: int) -> dict[str, jax.Array]:
        """Returns a batch of one example in one position, to initialise parameters with."""
        names = ("tokens_RxL", "positions_RxL", "segments_RxL", "types_RxL", *self.positions)
        batch = {name: jnp.zeros((1, 1), jnp.int32) for name in names}
        batch["weights_B"] = jnp.ones(1, jnp.float32)
        if num_features:
            batch["features_BxK"] = jnp.zeros((1, num_features), jnp.float32)
        return batch

    def start_head(
        self, heads: dict[str, np.ndarray], params: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Returns the head's parameters before training, and which of them no checkpoint filled.

        Args:
            heads: flat, as initialised: 'head/kernel', ...
            params: nested, of the backbone: the leaf embedder/embedding and those of `parts`, as
                numpy arrays.
        """
        return heads, set(heads)

    def probe(self, windows: Examples, vectors: Predictions, encoder: Encoder) -> Fit:
        """Fits the head on vectors of the pretrained model, for kinds with PROBE.

        Args:
            windows: training examples that the model reads.
            vectors: 'inputs_NxD', theirs [N, D], or of each the vectors of its tokens [L, D].
            encoder: texts to tokens.

        Returns:
            Parameters of the head, flat, and a description of the fit.

        Raises:
            ValueError: from these examples nothing can be learned.
        """
        raise NotImplementedError

    def guess_loss(self, examples: Examples) -> float | None:
        """Returns the metric 'loss' of a guess without the texts; None where it shows nothing."""
        return None

    @abc.abstractmethod
    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the loss over the examples of a batch; pure, under jit.

        Nothing is divided here: the caller adds up microbatches and devices and divides once.
        Examples of weight 0 must change neither sum nor gradient, even if not finite.

        Returns:
            (sum in nats, sum of weights, {name: sum that is logged divided by the weight}), float32
            scalars.
        """

    @abc.abstractmethod
    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Returns how far two predictions of a batch are apart, summed and weighted as the loss is.

        That is KL(p, q) + KL(q, p) of what the loss is the cross-entropy of, see
        models.layers.divergence; of numbers, the squared difference.

        Args:
            outputs, others: of the head, of the same batch.
            batch: as of `loss`.
            projections: hidden states [..., D] to logits over the vocabulary [..., V], of either.
        """

    def outputs(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Returns what is fetched of a prediction: '<name>_B...' per example, '<name>_RxL...' per
        position, which arrive on the host as '<name>_N...' and, cut into one array per example, as
        the object array '<name>_N'."""
        return outputs

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Returns predictions of `examples` from those of their windows, ids ascending."""
        return predictions

    def complete(
        self, predictions: Predictions, examples: Examples, encoder: Encoder, loaded: Loaded
    ) -> Predictions:
        """Adds what needs a loop over the model to what `decode` returned; for final results only,
        not during training."""
        return predictions

    def fit(self, predictions: Predictions, validation: Examples) -> Mapping[str, Any]:
        """Returns what is chosen on the validation split, such as thresholds; JSON-ready.

        Callers store it in checkpoints and hand it on as Predictions.fitted, where `score`,
        `describe` and `calibration` read it. By default it stays as it was.
        """
        return predictions.fitted

    @abc.abstractmethod
    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Compares predictions with the truth: statistics of each example, which add up."""

    @abc.abstractmethod
    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores models that need no encoder, by name, FLOOR among them."""

    @abc.abstractmethod
    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields one JSON-ready dict per prediction, in the order of the ids.

        Where the truth is known it holds 'wrong' (bool), and 'confidence' (float), by which wrong
        ones are sorted, greatest first.
        """

    def arrays(self, predictions: Predictions) -> dict[str, np.ndarray]:
        """Returns what --mode=predict writes as .npy, by name, in the order of `describe`."""
        return {}

    def calibration(self, predictions: Predictions, examples: Examples) -> dict[str, Any] | None:
        """Returns calibration before and after what `fit` chose, {'before', 'after',
        'temperature', 'bias'}, JSON-ready; None if predictions have no calibrated probability."""
        return None

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray | None:
        """Returns which tokens the loss counts, bool, flat; None if it is not about tokens."""
        return None


def rows_of(examples: Examples, ids_N: np.ndarray) -> np.ndarray:
    """Returns the index of each id among the examples.

    Raises:
        ValueError: an id is not there.
    """
    order = np.argsort(examples.ids_N, kind="stable")
    places_N = np.searchsorted(examples.ids_N, ids_N, sorter=order)
    rows_N = order[np.minimum(places_N, len(order) - 1)]
    missing = ids_N[examples.ids_N[rows_N] != ids_N]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(ids_N)} predicted ids are not among the {len(examples)} "
            f"examples, the first is {missing[0]}. Pass the predicted split."
        )
    return rows_N


def groups_of(examples: Examples, ids_N: np.ndarray) -> np.ndarray | None:
    """Returns Scores.groups_N: the group of the example of each id; None where there are none."""
    return None if examples.groups_N is None else examples.groups_N[rows_of(examples, ids_N)]


def check_labels(labels_N: np.ndarray, split: str) -> None:
    """Raises ValueError if every label is masked: nothing can be learned or measured."""
    if not (labels_N >= 0).any():
        raise ValueError(
            f"none of the {len(labels_N):,} {split} examples has a label: name other data, or what "
            "holds the labels (config.data.label_column)"
        )


def digest(truth_N: np.ndarray) -> str:
    """Returns Scores.truth of true answers, int or float."""
    return hashlib.sha256(np.ascontiguousarray(truth_N).tobytes()).hexdigest()


def text_record(
    examples: Examples, row: int, *, text: str = "text", pair: str = "pair"
) -> dict[str, Any]:
    """Returns the start of a description: id, and name, text and pair if the examples have them.

    Args:
        examples: all of them.
        row: index of the example.
        text: key of the text; "" leaves it out.
        pair: key of the pair; "" leaves it out.
    """
    values = {"name": examples.names_N, text: examples.texts_N, pair: examples.pairs_N}
    known = {key: column[row] for key, column in values.items() if key and column is not None}
    return {"id": int(examples.ids_N[row]), **known}
