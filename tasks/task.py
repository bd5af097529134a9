"""What a kind of task says, and no more: targets, head, loss, prediction, metrics, floor.

Here: the interface that all kinds share and its defaults. One file per kind beside this one;
tasks/__init__.py chooses. The pipeline, the train step and the evaluation call the hooks below and
know of no kind of task. In the order in which an example meets them:

    check      refuses examples that cannot serve                          host, once
    encoder    texts to tokens                                             host, once
    limits     what of examples is left out, cut or out of reach           host, once
    windows    examples to examples that fit the model                     host, once
    targets    tokens to what the loss needs beside them                   host, each batch
    head       a Linen module from hidden states to outputs                device
    loss       outputs and batch to (sum, weight, sums)                    device, under jit
    outputs    of them what is fetched of a prediction                     device, under jit
    decode     fetched outputs of windows to predictions of examples       host
    fit        what is chosen on the validation split: thresholds          host
    complete   what takes a loop over the model: generated texts           host and device
    score      predictions and truth to statistics that add up             host
    baselines  what needs no encoder, for the table of results             host
    describe   predictions as JSON                                         host
    calibration  whether their probabilities can be believed               host
"""

import abc
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

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

__all__ = ["Chunk", "Loss", "Targets", "Task", "digest", "rows_of", "text_record"]

Loss = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


class Task(abc.ABC):
    """One kind of task for one run.

    Attributes:
        METRICS: every metric, by default the first chooses the checkpoint; the last breaks ties.
        FLOOR: name of the row of `baselines` that the results are compared with.
        POSITIONS: names of `Targets.positions`.
        OFFSETS: whether `targets` reads Encoded.offsets and Encoded.fields.
        labels: JSON-ready; what `make_task` was given, kept in checkpoints.
        sequences: token sequences per example: choices, each of which is a segment of its own.
        fitted: what `fit` returned, read by `score` and `describe`; kept in checkpoints.
    """

    METRICS: ClassVar[tuple[Metric, ...]]
    FLOOR: ClassVar[str]
    POSITIONS: ClassVar[tuple[str, ...]] = ()
    OFFSETS: ClassVar[bool] = False
    sequences: int = 1

    def __init__(
        self,
        config: ConfigDict,
        labels: Sequence[str],
        *,
        tokenizer: Tokenizer,
        backbone: BackboneConfig,
    ):
        """Takes what the kinds need; they check it in their own __init__.

        Args:
            config: the whole config.
            labels: class names (tagging: span labels) in order; () where there are none.
            tokenizer: of the run.
            backbone: shapes of the model.
        """
        self.config, self.labels = config, tuple(labels)
        self.tokenizer, self.backbone = tokenizer, backbone
        self.fitted: dict[str, Any] = {}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of this run: METRICS, for kinds whose options do not change them."""
        return self.METRICS

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the checkpoint beside the backbone that the head calls (backbone.PARTS)."""
        return ()

    def prose(self) -> str:
        """Says what is learned, for the start-up log."""
        return self.config.task.replace("_", " ")

    def check(self, examples: Examples, split: str) -> None:  # noqa: B027, fine for most
        """Raises ValueError where examples of a split cannot serve, saying what to set."""

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns what turns texts into tokens; arguments as of Encoder, whose interface it has."""
        return Encoder(self.tokenizer, template, max_length=max_length, prefix_ids=prefix_ids)

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Returns examples that fit the model; by default the very ones, cut where too long."""
        del encoder, training
        return examples

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what of examples is left out, cut or can never be predicted.

        By default texts are cut to the longest length. Kinds that make windows of long ones, or
        leave them out, say what that loses instead.

        The training split comes first.
        """
        yield self.cut([encoded.cut_B for encoded in given.pipeline.encoded(given.windows)], given)

    def cut(self, cuts: Sequence[np.ndarray], given: Given) -> Limit:
        """Returns the limit of sequences, K an example and chunk by chunk, that are cut or not."""
        cut_S, layout = np.concatenate([np.zeros(0, bool), *cuts]), self.config.layout
        cut_N = cut_S.reshape(-1, self.sequences).any(axis=1)
        remedy = "raise config.layout.max_length (and row_length)"
        if getattr(self.backbone, "max_length", 0) == layout.max_length:
            remedy = "the checkpoint has no more positions, so take another, or shorten the texts"
        return Limit(
            int(cut_N.sum()),
            len(cut_N),
            f"examples are longer than config.layout.max_length={layout.max_length} tokens and cut",
            remedy,
            first=len(cut_N) < len(given.windows),
        )

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns what the loss needs. With `sequences` K, encoded has B * K of them, K by K."""
        del encoded, chunk
        return Targets({}, {})

    @abc.abstractmethod
    def head(self, *, num_features: int) -> nn.Module:
        """Returns the head, an unbound module whose parameters come under 'head/'.

        Called as `head(backbone, hidden_RxLxD, batch, deterministic=...)`, it returns a dict of
        arrays, all float32 if not said otherwise. `backbone` is bound: `backbone.logits(...)`.
        """

    def blank(self, *, num_features: int) -> dict[str, jax.Array]:
        """Returns a batch of one example in one position, to draw parameters with."""
        names = ("tokens", "positions", "segments", "types")
        batch = {name: jnp.zeros((1, 1), jnp.int32) for name in self.POSITIONS}
        batch |= {f"{name}_RxL": jnp.zeros((1, 1), jnp.int32) for name in names}
        batch["weights_B"] = jnp.ones(1, jnp.float32)
        if num_features:
            batch["features_BxK"] = jnp.zeros((1, num_features), jnp.float32)
        return batch

    def start_head(
        self, heads: dict[str, np.ndarray], params: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Returns the head's parameters before training, and which of them no checkpoint filled.

        Args:
            heads: flat, as drawn: 'head/kernel', ...
            params: nested, of the backbone: the leaf embedder/embedding and those of `parts`, as
                numpy arrays.
        """
        del params
        return heads, set(heads)

    @abc.abstractmethod
    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> Loss:
        """Sums the loss over the examples of a batch; pure, under jit.

        Nothing is divided here: the caller adds up microbatches and devices and divides once.
        Examples of weight 0 must change neither sum nor gradient, even if not finite.

        Returns:
            (sum in nats, sum of weights, {name: sum that is logged divided by the weight}), float32
            scalars.
        """

    def outputs(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> Mapping[str, jax.Array]:
        """Returns what is fetched of a prediction: '<name>_B...' of examples, '<name>_RxL...'
        of positions, which arrive on the host as '<name>_N...' and, cut into one array for each
        example, as object array '<name>_N'."""
        del batch
        return outputs

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Returns predictions of `examples` from those of their windows, ids ascending."""
        del windows, examples, encoder
        return predictions

    def complete(
        self,
        predictions: Predictions,
        examples: Examples,
        encoder: Encoder,
        *,
        model: nn.Module,
        params: Mapping[str, jax.Array],
        adapted: Callable[[Callable], Callable],
    ) -> Predictions:
        """Adds what takes a loop over the model; called for final results, not while training.

        Args:
            predictions: as `decode` returned.
            examples: all of them.
            encoder: texts to tokens.
            model: models.heads.Model.
            params: flat, adapters included.
            adapted: `adapted(f)` is a function of (flat params, ...) for a function
                f(nested params, ...), in which adapters act.
        """
        del examples, encoder, model, params, adapted
        return predictions

    def fit(self, predictions: Predictions, validation: Examples) -> dict[str, Any]:
        """Returns what is chosen on the validation split, such as thresholds; JSON-ready."""
        del predictions, validation
        return {}

    @abc.abstractmethod
    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns what predictions are worth, as statistics of each example that add up."""

    @abc.abstractmethod
    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Returns what the models are worth that need no encoder, by name, FLOOR among them."""

    @abc.abstractmethod
    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields one JSON-ready dict per prediction, in the order of the ids.

        Where the truth is known it holds 'wrong' (bool), and 'confidence' (float), by which wrong
        ones are sorted, greatest first.
        """

    def calibration(self, predictions: Predictions, examples: Examples) -> dict[str, Any] | None:
        """Returns how far probabilities can be believed, before and after what `fit` does to them:
        {'before', 'after', 'temperature', 'bias'}, JSON-ready; None where a prediction has none."""
        del predictions, examples

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray | None:
        """Returns which tokens the loss counts, bool, flat; None where it is not about tokens."""
        del encoded, targets
        return None


def rows_of(examples: Examples, ids_N: np.ndarray) -> np.ndarray:
    """Returns at which index each id stands among the examples.

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


def check_labels(labels_N: np.ndarray, split: str) -> None:
    """Raises ValueError where every label is masked: such a split teaches and measures nothing."""
    if not (labels_N >= 0).any():
        raise ValueError(
            f"none of the {len(labels_N):,} {split} examples has a label: name other data, or what "
            "holds the labels (config.data.label_column)"
        )


def digest(truth_N: np.ndarray) -> str:
    """Returns Scores.truth of true answers, int or float."""
    return hashlib.sha256(np.ascontiguousarray(truth_N).tobytes()).hexdigest()


def text_record(
    examples: Examples, row: int, text: str = "text", pair: str = "pair"
) -> dict[str, Any]:
    """Returns what a description begins with: id, name, text and pair, as far as there are.

    Args:
        examples: all of them.
        row: at which index.
        text: what to call the text; "" leaves it out.
        pair: what to call the pair; "" leaves it out.
    """
    record: dict[str, Any] = {"id": int(examples.ids_N[row])}
    for name, values_N in {
        "name": examples.names_N,
        text: examples.texts_N,
        pair: examples.pairs_N,
    }.items():
        if name and values_N is not None:
            record[name] = values_N[row]
    return record
