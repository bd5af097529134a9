"""Classification of whole texts, or pairs of them, into one of C labels.

The head lives in models/heads.py. Here: targets, loss, statistics and the reading of a prediction
where exactly one label is right. Several labels, numbers, ordered labels and trees of labels are in
multi_label.py, regression.py, ordinal.py and hierarchical.py, which build on this; heads from words
are in label_words.py.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from sklearn.metrics import confusion_matrix

from evaluation import baselines, calibration, classification_metrics
from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, class_counts, macro_f1, mean, one_each
from input_pipeline.batches.template import MASK, Encoded
from input_pipeline.examples import Examples
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.backbone import BackboneConfig
from models.heads import ClassifierHead
from tasks import label_words, limits
from tasks.limits import Given, Limit
from tasks.task import Chunk, Loss, Targets, Task, check_labels, digest, rows_of, text_record

ACCURACY = Metric("accuracy", "accuracy, %", mean, scale=100, digits=1)
MACRO_F1 = Metric("macro_f1", "macro-F1, %", macro_f1, scale=100, digits=1)
LOSS = Metric("loss", "loss", mean, higher_is_better=False)

_KINDS = {  # of config.classification.kind, beside 'single': module and class
    "multi": ("multi_label", "MultiLabel"),
    "regression": ("regression", "Regression"),
    "ordinal": ("ordinal", "Ordinal"),
    "hierarchical": ("hierarchical", "Hierarchical"),
}


class Classification(Task):
    """A text carries exactly one of `labels`; class c is `labels[c]`.

    Called with another config.classification.kind, it makes one of that kind.

    Attributes:
        OPTIONS: what of config.classification changes the loss of this kind.
        WORDS: whether a head from label words means anything.
        size: C.
        fitted: {'temperature', 'bias'} as of evaluation.calibration.fit, chosen on the validation
            split; nothing where config.eval.calibration is 'none'.
    """

    METRICS = (ACCURACY, MACRO_F1, *classification_metrics.METRICS, LOSS)
    FLOOR = baselines.TFIDF
    OPTIONS: ClassVar[tuple[str, ...]] = ("class_weights", "focal_gamma", "label_smoothing")
    WORDS: ClassVar[bool] = True

    def __new__(cls, config: ConfigDict, *args: Any, **parts: Any) -> "Classification":
        """Chooses the class of config.classification.kind."""
        if cls is Classification and (kind := config.classification.kind) != "single":
            module, name = _KINDS[kind]
            cls = getattr(importlib.import_module(f"tasks.{module}"), name)
        return super().__new__(cls)

    def __init__(
        self,
        config: ConfigDict,
        labels: Sequence[str],
        *,
        tokenizer: Tokenizer,
        backbone: BackboneConfig,
    ):
        """Takes what Task.__init__ does.

        Raises:
            ValueError: fewer than two labels, or one twice; options of config.classification that
                this kind has no use for; words, weights or a template that don't fit.
        """
        super().__init__(config, labels, tokenizer=tokenizer, backbone=backbone)
        self.size = len(self.labels)
        self._check_labels()
        options, model = config.classification, config.model
        for name in ("class_weights", "focal_gamma", "label_smoothing"):
            if options[name] and name not in self.OPTIONS:
                raise ValueError(
                    f"config.classification.{name}={options[name]!r} means nothing for "
                    f"kind={options.kind!r}: leave it at its default"
                )
        self._weights_C = np.ones(self.size, np.float32)
        self._taught: set[int] = set()
        self._balanced = tuple(options.class_weights) == ("balanced",)
        if (weights := tuple(options.class_weights)) and not self._balanced:
            if len(weights) != self.size:
                raise ValueError(
                    f"config.classification.class_weights: found {len(weights)} for {self.size} "
                    f"labels {self.labels}: give one each, or ('balanced',)"
                )
            self._weights_C = np.array(weights, np.float32)
        if model.pooling == "mask" and MASK not in config.data.template:
            raise ValueError(
                f"config.model.pooling='mask' pools where config.data.template has {MASK}, found "
                f"{config.data.template!r}: write {MASK} into it, such as '{{text}} {MASK}'"
            )
        self._word_ids: list[list[int]] = []
        if model.head == "label_words":
            if not self.WORDS:
                raise ValueError(
                    f"config.model.head='label_words' means nothing for config.classification."
                    f"kind={options.kind!r}: set it to 'linear'"
                )
            self._word_ids = label_words.piece_ids(
                config, self.labels, tokenizer=tokenizer, backbone=backbone
            )

    def _check_labels(self) -> None:
        if self.size < 2 or len(set(self.labels)) < self.size:
            raise ValueError(
                f"config.task='classification' needs at least two labels, each once; found "
                f"{self.labels!r}: set config.data.label_column and labels, "
                "or another config.task"
            )

    def prose(self) -> str:
        """Says what is learned, for the start-up log."""
        model = self.config.model
        named = ", ".join(self.labels[:20]) + f" and {self.size - 20} more" * (self.size > 20)
        return f"{model.pooling} pooling and a {model.head} head over {named}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the checkpoint that the head calls, or starts from."""
        pooling = self.config.model.pooling
        words = ("mlm_head" if pooling == "mask" else "lm_head",) if self._word_ids else ()
        return ("pooler",) * (pooling == "pooler") + words

    @property
    def POSITIONS(self) -> tuple[str, ...]:
        """Where the template's masks are."""
        return ("mask_RxL",) if self.config.model.pooling == "mask" else ()

    def check(self, examples: Examples, split: str) -> None:
        """Refuses examples without a class; counts those of the training split."""
        if examples.labels_N is None:
            raise ValueError(
                f"the {split} data have no single class label for each example, which "
                f"config.classification.kind={self.config.classification.kind!r} needs: set "
                "config.data.label_column, config.classification.kind='multi' for several labels "
                "or 'regression' for numbers, or another config.task"
            )
        check_labels(examples.labels_N, split)
        if split == "train" and self._balanced:
            counts_C = np.bincount(examples.labels_N[examples.labels_N >= 0], minlength=self.size)
            weights_C = counts_C.sum() / (self.size * np.maximum(counts_C, 1))
            self._weights_C = weights_C.astype(np.float32)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what is cut, without a label, or of a label that was not learned."""
        yield from super().limits(given)
        labels, masked = self._known_labels(given.examples)
        yield limits.masked(masked, len(given.examples))
        if given.training:
            self._taught = set(labels.tolist())
            yield from limits.unused(self._taught, self.labels)
            if self.config.model.pooling != "mask":  # which has a mask for each piece
                yield Limit(
                    sum(len(pieces) > 1 for pieces in self._word_ids),
                    len(self._word_ids),
                    "label words take several tokens, and the head starts from the mean of these",
                    "choose words in config.model.label_words that are one token each",
                )
        elif self._taught:
            yield from limits.untaught(labels, self._taught, self.labels, "labels")

    def _known_labels(self, examples: Examples) -> tuple[np.ndarray, int]:
        """Returns the labels that the examples carry, and how many examples are masked."""
        if examples.labels_N is None:
            return np.zeros(0, int), 0
        known_N = examples.labels_N >= 0
        return examples.labels_N[known_N], int((~known_N).sum())

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns labels, weights that mask them, and where the template's masks are."""
        labels_B = np.full(len(chunk.indices_B), -1 if chunk.training else 0, np.int32)
        if chunk.examples.labels_N is not None:
            labels_B = chunk.examples.labels_N[chunk.indices_B]
        weights_B = (labels_B >= 0).astype(np.float32)
        labels_B = np.maximum(labels_B, 0)
        return Targets(self.masks(encoded), {"labels_B": labels_B, "weights_B": weights_B})

    def masks(self, encoded: Encoded) -> dict[str, np.ndarray]:
        """Returns mask_RxL: 1 + the number of each mask of the template within its example."""
        if not self.POSITIONS:
            return {}
        here = (encoded.tokens == self.tokenizer.mask_id) & (encoded.fields < 0)
        count = np.cumsum(here)
        before = (count - here)[encoded.starts_B]
        return {"mask_RxL": np.where(here, count - np.repeat(before, encoded.lengths_B), 0)}

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the classifier's head."""
        return ClassifierHead(self.size, **self.head_options(num_features))

    def head_options(self, num_features: int) -> dict[str, Any]:
        """Returns the attributes of a ClassifierHead beside the number of its columns."""
        model = self.config.model
        masks = len(self._word_ids[0]) if self._word_ids and model.pooling == "mask" else 0
        return {
            "pooling": model.pooling,
            "dropout": model.dropout,
            "bias": model.head_bias,
            "num_features": num_features,
            "masks": masks,
        }

    def start_head(
        self, heads: dict[str, np.ndarray], params: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Starts from the language model's output vectors of the label words, if there are any."""
        if not self._word_ids:
            return super().start_head(heads, params)
        fresh = {path for path in heads if path.endswith("feature_kernel")}
        return heads | label_words.start(heads, params, self._word_ids), fresh

    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> Loss:
        """Sums the loss; 'correct' is the weighted number of right predictions."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        labels_B = batch["labels_B"]
        # Replaced before the logarithm, not after: 0 * NaN would reach the gradient.
        logits_BxC = jnp.where(
            weights_B[:, None] > 0, outputs["logits_BxC"].astype(jnp.float32), 0.0
        )
        # Divided by the weights of the classes, the loss of balanced ones stays of the usual size.
        weights_B *= jnp.asarray(self._weights_C)[labels_B]
        correct = jnp.sum(weights_B * (jnp.argmax(logits_BxC, axis=-1) == labels_B))
        losses_B = self.losses(logits_BxC, labels_B)
        return jnp.sum(weights_B * losses_B), jnp.sum(weights_B), {"correct": correct}

    def losses(self, logits_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
        """Returns the loss of each example: cross-entropy, smoothed or focused if so configured."""
        options = self.config.classification
        targets_BxC = optax.smooth_labels(
            jax.nn.one_hot(labels_B, self.size), options.label_smoothing
        )
        losses_B = optax.softmax_cross_entropy(logits_BxC, targets_BxC)
        if options.focal_gamma:  # (1 - p) ** gamma of the true class (1708.02002)
            right_B = jnp.sum(jax.nn.softmax(logits_BxC) * jax.nn.one_hot(labels_B, self.size), -1)
            # Kept off 0, where the power's derivative may be infinite.
            losses_B *= jnp.maximum(1 - right_B, 1e-6) ** options.focal_gamma
        return losses_B

    def fit(self, predictions: Predictions, validation: Examples) -> dict[str, Any]:
        """Returns the temperature and, if so configured, the biases that calibrate the model.

        Models are chosen by scores on the same examples. One number fitted to all N of them makes
        their loss about 1 / N nats less than that of new examples (Akaike 1974), for every model
        alike and far within its error; C - 1 biases beside it make that C / N.
        """
        labels_N = validation.labels_N[rows_of(validation, predictions.ids_N)]
        kind = self.config.eval.calibration
        return calibration.fit(self.logits(predictions), labels_N, kind=kind)

    def log_probabilities(self, predictions: Predictions) -> np.ndarray:
        """Returns those of the labels, calibrated by `fitted`; float64 [N, C]."""
        return calibration.calibrate(self.logits(predictions), self.fitted)

    def calibration(self, predictions: Predictions, examples: Examples) -> dict[str, Any] | None:
        """Returns cards as of evaluation.calibration.card of the model's own probabilities and of
        the calibrated ones: 'before', 'after', and 'temperature' and 'bias' between them."""
        labels_N = examples.labels_N[rows_of(examples, predictions.ids_N)]
        logits_NxC = self.logits(predictions)
        return calibration_cards(labels_N, logits_NxC, self.fitted, classes=self.classes)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns what predictions are worth, by METRICS; the loss is without class weights."""
        labels_N = examples.labels_N[rows_of(examples, predictions.ids_N)]
        return self.scores(predictions.ids_N, labels_N, self.log_probabilities(predictions))

    def scores(
        self, ids_N: np.ndarray, labels_N: np.ndarray, log_probabilities_NxC: np.ndarray
    ) -> Scores:
        """Returns what log probabilities are worth."""
        classes_N = self.classes(log_probabilities_NxC)
        statistics = self.statistics(labels_N, classes_N, log_probabilities_NxC)
        detail = details(labels_N, classes_N, self.labels)
        return Scores(self.metrics, ids_N, statistics, detail, digest(labels_N))

    def classes(self, log_probabilities_NxC: np.ndarray) -> np.ndarray:
        """Returns the predicted class of each example."""
        return log_probabilities_NxC.argmax(axis=-1)

    def statistics(
        self, labels_N: np.ndarray, classes_N: np.ndarray, log_probabilities_NxC: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the statistics of each metric."""
        return {
            "accuracy": one_each(labels_N == classes_N),
            **classification_metrics.statistics(labels_N, classes_N, log_probabilities_NxC),
            "loss": one_each(-log_probabilities_NxC[np.arange(len(labels_N)), labels_N]),
        }

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Returns the majority class, TF-IDF and, if there are any, features alone; as they are,
        not calibrated."""
        train, examples = (part.take(part.labels_N >= 0) for part in (train, examples))
        examples = examples.take(np.argsort(examples.ids_N))
        models = {
            baselines.MAJORITY: baselines.majority,
            baselines.TFIDF: baselines.tfidf_logistic_regression,
        }
        if train.features_NxK is not None:
            models[baselines.FEATURES] = baselines.features_logistic_regression
        return {
            name: self.scores(
                examples.ids_N, examples.labels_N, fit(train, examples, num_classes=self.size)
            )
            for name, fit in models.items()
        }

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields 'id', 'name', 'text', 'pair', 'label' and 'wrong' (each if known), 'prediction',
        'confidence' and 'probabilities', calibrated."""
        log_probabilities_NxC = self.log_probabilities(predictions)
        classes_N = self.classes(log_probabilities_NxC)
        probabilities_NxC = np.exp(log_probabilities_NxC)
        rows_N, examples = rows_of(examples, predictions.ids_N), examples.as_given()
        for row, found, probabilities_C in zip(rows_N, classes_N, probabilities_NxC, strict=True):
            record = text_record(examples, int(row))
            if examples.labels_N is not None and examples.labels_N[row] >= 0:
                record["label"] = self.labels[examples.labels_N[row]]
                record["wrong"] = bool(found != examples.labels_N[row])
            record["prediction"] = self.labels[found]
            record["confidence"] = round(float(probabilities_C[found]), 6)
            record["probabilities"] = {
                label: round(float(probability), 6)
                for label, probability in zip(self.labels, probabilities_C, strict=True)
            }
            yield record

    def logits(self, predictions: Predictions) -> np.ndarray:
        """Returns the logits, one column for each label.

        Raises:
            ValueError: there are more, or fewer.
        """
        logits_NxC = predictions["logits_NxC"]
        if logits_NxC.shape[-1] != self.size:
            raise ValueError(
                f"Predictions over {logits_NxC.shape[-1]} classes do not fit the {self.size} "
                f"labels {self.labels!r}."
            )
        return logits_NxC


def calibration_cards(
    labels_N: np.ndarray,
    logits_NxC: np.ndarray,
    fitted: Mapping[str, Any],
    *,
    classes: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """Returns what Task.calibration does.

    Args:
        labels_N: true classes.
        logits_NxC: of the model.
        fitted: as of evaluation.calibration.fit.
        classes: log probabilities to predicted classes.
    """
    found = {}
    for name, how in {"before": {}, "after": fitted}.items():
        logs_NxC = calibration.calibrate(logits_NxC, how)
        found[name] = calibration.card(labels_N, classes(logs_NxC), logs_NxC)
    return {**found, "temperature": 1.0, "bias": [0.0] * logits_NxC.shape[1], **fitted}


def details(labels_N: np.ndarray, classes_N: np.ndarray, labels: tuple[str, ...]) -> dict[str, Any]:
    """Returns the confusion matrix (true by predicted) and what is known of each class."""
    counts_Nx3C = class_counts(labels_N, classes_N, len(labels))
    indices = np.arange(len(labels))
    return {
        "confusion_matrix": confusion_matrix(labels_N, classes_N, labels=indices).tolist(),
        "per_class": classification_metrics.per_class(counts_Nx3C, labels),
    }
