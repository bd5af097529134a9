"""What tasks that predict tokens share: the head, the loss, and what is fetched of a prediction.

Also the windows and scores of language modelling: long documents become windows that follow one
another, so that every token is predicted. Not here: what is asked for (language_modelling.py,
generation.py), log probabilities in chunks (models/language_heads.py), metrics and floors
(evaluation/surprisal.py).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation import surprisal
from evaluation.evaluate import Predictions
from evaluation.metrics import Scores
from input_pipeline.batches import masking, windows
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.examples import Examples, object_array
from models.bert import BertConfig
from models.decoder import DecoderConfig
from models.language_heads import LanguageHead, Seq2SeqHead, divergences
from models.t5 import T5Config
from tasks.limits import Given, Limit
from tasks.task import Arrays, Chunk, Loss, Targets, Task, groups_of, rows_of

_FITTING = {BertConfig: "masked_language_modelling", DecoderConfig: "causal_language_modelling"}
_FITTING[T5Config] = "span_corruption"
_WORST = 5  # tokens that `describe` names
_CHUNK = 256  # examples whose targets are made at once for the floor


class TokenTask(Task):
    """Asks for tokens: 'targets_RxL' holds 1 + the token that is asked for, else 0."""

    EXPORT = "language_model"
    SMOOTHING = True
    positions = ("targets_RxL",)

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the output projection of the backbone, chunk by chunk."""
        head = Seq2SeqHead if isinstance(self.backbone, T5Config) else LanguageHead
        smoothing = self.config.regularize.label_smoothing
        return head(chunk=self.config.language.chunk, smoothing=smoothing)

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the cross-entropy of the tokens that are asked for; the weight is their number."""
        targets_RxL, weights_RxL = batch["targets_RxL"], _weights(batch)
        scores_RxL = jnp.where(weights_RxL > 0, outputs["log_probability_RxL"], 0.0)
        correct = jnp.sum(weights_RxL * (outputs["best_RxL"] == targets_RxL - 1))
        return -jnp.sum(weights_RxL * scores_RxL), jnp.sum(weights_RxL), {"correct": correct}

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Compares the probabilities of the tokens at each place that asks for one."""
        apart_RxL = divergences(
            projections,
            outputs["hidden_RxLxD"],
            others["hidden_RxLxD"],
            targets_RxL=batch["targets_RxL"],
            chunk=self.config.language.chunk,
        )
        weights_RxL = _weights(batch)
        return jnp.sum(weights_RxL * jnp.where(weights_RxL > 0, apart_RxL, 0.0))

    def outputs(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Returns them with what was asked for."""
        return {**outputs, "targets_RxL": batch["targets_RxL"]}


def _weights(batch: Arrays) -> jax.Array:
    """Returns the weight of each position [R, L]: its example's, 0 where no token is asked for."""
    segments_RxL = batch["segments_RxL"]
    weights_RxL = batch["weights_B"].astype(jnp.float32)[jnp.maximum(segments_RxL - 1, 0)]
    return weights_RxL * ((batch["targets_RxL"] > 0) & (segments_RxL > 0))


class LanguageModelling(TokenTask):
    """What the three kinds of language modelling share: windows and scores."""

    metrics = surprisal.OF_TOKENS
    FLOOR = "token frequencies"
    BACKBONE: ClassVar[type]

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Checks the options.

        Raises:
            ValueError: the model is of another kind, or the template has more than a text.
        """
        super().__init__(config, labels, **parts)
        kind, template = config.task, config.data.template
        if not isinstance(self.backbone, self.BACKBONE):
            raise ValueError(
                f"config.task={kind!r} does not fit {config.model.checkpoint}, a "
                f"{self.backbone.model_type}: set config.task={_FITTING[type(self.backbone)]!r}"
            )
        if "{pair}" in template or "{choice}" in template:
            raise ValueError(
                f"config.data.template={template!r}: {kind} reads texts alone, not {{pair}}; to "
                "learn to write answers set config.task='generation'"
            )

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Cuts long documents, so that nothing of them is lost."""
        return windows.split(examples, self.tokenizer, room=encoder.room, overlap=0)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields nothing: every token is in a window."""
        return iter(())

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Joins the windows of each document, as evaluation/surprisal.py describes."""
        owners_W = windows.owners_N[rows_of(windows, predictions.ids_N)]
        return surprisal.by_document(predictions, owners_W)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Counts nats and right answers of the tokens asked for."""
        scores = surprisal.token_scores(predictions)
        return dataclasses.replace(scores, groups_N=groups_of(examples, predictions.ids_N))

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores tokens by their frequency in the training texts."""
        tokens, size = self.asked_tokens(train), self.backbone.vocab_size
        asked = self.asked(examples)
        floor = surprisal.frequency_floor(asked, tokens, vocab_size=size)
        return {self.FLOOR: dataclasses.replace(floor, groups_N=groups_of(examples, asked.ids_N))}

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields each document's loss in nats, and its least expected tokens.

        A document is 'wrong' if not every token is the likeliest; 'confidence' is nats per token.
        """
        nats_N, correct_N, tokens_N = surprisal.sums(predictions)
        given_N = examples.as_given().texts_N
        for i, row in enumerate(rows_of(examples, predictions.ids_N).tolist()):
            scores, targets = predictions["log_probability_N"][i], predictions["targets_N"][i]
            worst = [
                {
                    "token": self.tokenizer.piece(int(targets[place]) - 1),
                    "nats": round(-float(scores[place]), 4),
                    "expected": self.tokenizer.piece(int(predictions["best_N"][i][place])),
                }
                for place in np.argsort(scores, kind="stable")[:_WORST].tolist()
            ]
            yield {
                "id": int(predictions.ids_N[i]),
                "text": given_N[row],
                "nats": round(float(nats_N[i]), 4),
                "tokens": int(tokens_N[i]),
                **self.rates(float(nats_N[i]), examples.texts_N[row]),
                "worst": worst,
                "wrong": bool(correct_N[i] < tokens_N[i]),
                "confidence": round(float(nats_N[i] / max(tokens_N[i], 1)), 4),
            }

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray:
        """Returns the tokens that are predicted."""
        return targets.positions["targets_RxL"] > 0

    def rates(self, nats: float, text: str) -> Mapping[str, float]:
        """Returns further entries of a description: the loss per unit of the text."""
        return {}

    def draws(self, chunk: Chunk) -> masking.Draws:
        """Returns the draws of a batch; outside training, the same ones for all seeds."""
        ids_B = chunk.examples.ids_N[chunk.indices_B]
        return masking.Draws(chunk.seed if chunk.training else 0, chunk.epochs_B, ids_B)

    def asked_tokens(self, train: Examples) -> np.ndarray:
        """Returns the tokens of training texts whose frequencies are the floor."""
        return np.concatenate([np.zeros(0, int), *self.tokenizer.encode_batch(train.texts_N)])

    def asked(self, examples: Examples) -> Predictions:
        """Returns what the evaluation asks of examples; its scores are zeros."""
        data, adapt = self.config.data, self.config.adapt
        prefix = [0] * (adapt.prompt_length if adapt.kind == "prompt" else 0)
        length = self.config.layout.max_length
        encoder = self.encoder(data.template, max_length=length, prefix_ids=prefix)
        parts, asked = self.windows(examples, encoder, training=False), []
        for first in range(0, len(parts), _CHUNK):
            indices = np.arange(first, min(first + _CHUNK, len(parts)))
            texts = list(parts.texts_N[indices])
            encoded = encoder(texts, offsets=self.offsets)
            chunk = Chunk(parts, indices, np.zeros_like(indices), texts, None, 0, training=False)
            made = self.targets(encoded, chunk)
            lengths_B = made.examples.get("lengths_B", encoded.lengths_B)
            asked += np.split(made.positions["targets_RxL"], np.cumsum(lengths_B)[:-1])
        targets_N, zeros_N = object_array(asked), object_array([0 * part for part in asked])
        outputs = {"targets_N": targets_N, "log_probability_N": zeros_N, "best_N": zeros_N}
        return self.decode(Predictions(parts.ids_N, outputs), parts, examples, encoder)
