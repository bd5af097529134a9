"""What the kinds of language modelling share: windows, head, loss, scores by document.

Long documents become windows that follow one another, so that every token is predicted. Not here:
what is asked for (language_modelling.py), log probabilities in chunks (models/language_heads.py),
metrics and floors (evaluation/surprisal.py).
"""

from collections.abc import Iterator, Mapping, Sequence
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
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.backbone import BackboneConfig
from models.bert import BertConfig
from models.decoder import DecoderConfig
from models.language_heads import LanguageHead, Seq2SeqHead
from models.t5 import T5Config
from tasks.limits import Given, Limit
from tasks.task import Chunk, Loss, Targets, Task, rows_of

_FITTING = {
    BertConfig: "masked_language_modelling",
    DecoderConfig: "causal_language_modelling",
    T5Config: "span_corruption",
}
_WORST = 5  # tokens that `describe` names
_CHUNK = 256  # examples whose targets are made at once for the floor


class LanguageModelling(Task):
    """What the three kinds share: windows, loss, and scores of the tokens that are asked for."""

    METRICS = surprisal.OF_TOKENS
    FLOOR = "token frequencies"
    POSITIONS = ("targets_RxL",)
    BACKBONE: ClassVar[type]

    def __init__(
        self,
        config: ConfigDict,
        labels: Sequence[str],
        *,
        tokenizer: Tokenizer,
        backbone: BackboneConfig,
    ):
        """Checks the options.

        Raises:
            ValueError: the model is of another kind, or the template has more than a text.
        """
        super().__init__(config, labels, tokenizer=tokenizer, backbone=backbone)
        kind = config.task
        if not isinstance(backbone, self.BACKBONE):
            raise ValueError(
                f"config.task={kind!r} does not fit {config.model.checkpoint}, a "
                f"{backbone.model_type}: set config.task={_FITTING[type(backbone)]!r}"
            )
        if "{pair}" in config.data.template or "{choice}" in config.data.template:
            raise ValueError(
                f"config.data.template={config.data.template!r}: {kind} reads texts alone, "
                "expected '{text}'; to learn to write answers set config.task='generation'"
            )

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Cuts long documents, so that nothing of them is lost."""
        del training
        return windows.split(examples, self.tokenizer, room=encoder.room, overlap=0)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields nothing: every token is in a window."""
        del given
        return iter(())

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the output projection of the backbone, chunk by chunk."""
        if num_features:
            raise ValueError("config.features.use: language models read no features: set 'none'")
        head = Seq2SeqHead if self.BACKBONE is T5Config else LanguageHead
        return head(chunk=self.config.language.chunk)

    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> Loss:
        """Sums the cross-entropy of the tokens that are asked for; the weight is their number."""
        scores_RxL, targets_RxL = outputs["log_probability_RxL"], batch["targets_RxL"]
        segments_RxL = batch["segments_RxL"]
        weights_RxL = batch["weights_B"].astype(jnp.float32)[jnp.maximum(segments_RxL - 1, 0)]
        weights_RxL *= (targets_RxL > 0) & (segments_RxL > 0)
        scores_RxL = jnp.where(weights_RxL > 0, scores_RxL, 0.0)
        right_RxL = outputs["best_RxL"] == targets_RxL - 1
        correct = jnp.sum(weights_RxL * right_RxL)
        return -jnp.sum(weights_RxL * scores_RxL), jnp.sum(weights_RxL), {"correct": correct}

    def outputs(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> Mapping[str, jax.Array]:
        """Returns them with what was asked for."""
        return {**outputs, "targets_RxL": batch["targets_RxL"]}

    def decode(
        self, predictions: Predictions, windows: Examples, examples: Examples, encoder: Encoder
    ) -> Predictions:
        """Joins the windows of each document, as evaluation/surprisal.py describes."""
        del examples, encoder
        owners_W = windows.owners_N[rows_of(windows, predictions.ids_N)]
        return surprisal.by_document(predictions, owners_W)

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Counts nats and right answers of the tokens asked for."""
        del examples
        return surprisal.token_scores(predictions)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Returns what tokens are worth by their frequency in the training texts."""
        asked, size = self._asked(examples), self.backbone.vocab_size
        floor = surprisal.frequency_floor(asked, self._tokens(train), vocab_size=size)
        return {self.FLOOR: floor}

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields what each document costs, in nats, and its least expected tokens.

        'wrong' is one of which not every token is the likeliest; 'confidence', its nats per token.
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
                **self._costs(float(nats_N[i]), examples.texts_N[row]),
                "worst": worst,
                "wrong": bool(correct_N[i] < tokens_N[i]),
                "confidence": round(float(nats_N[i] / max(tokens_N[i], 1)), 4),
            }

    def counted(self, encoded: Encoded, targets: Targets) -> np.ndarray:
        """Returns the tokens that are predicted."""
        del encoded
        return targets.positions["targets_RxL"] > 0

    def _costs(self, nats: float, text: str) -> dict[str, float]:
        """Returns more that `describe` tells of a document."""
        del nats, text
        return {}

    def _draws(self, chunk: Chunk) -> masking.Draws:
        """Returns the draws of a batch; outside training, the same ones for all seeds."""
        ids_B = chunk.examples.ids_N[chunk.indices_B]
        return masking.Draws(chunk.seed if chunk.training else 0, chunk.epochs_B, ids_B)

    def _tokens(self, train: Examples) -> np.ndarray:
        """Returns tokens of the training texts, such as are asked for."""
        return np.concatenate([np.zeros(0, int), *self.tokenizer.encode_batch(train.texts_N)])

    def _asked(self, examples: Examples) -> Predictions:
        """Returns what the evaluation asks of examples; its scores are zeros."""
        data, adapt = self.config.data, self.config.adapt
        prefix = [0] * (adapt.prompt_length if adapt.kind == "prompt" else 0)
        encoder = self.encoder(
            data.template, max_length=self.config.layout.max_length, prefix_ids=prefix
        )
        parts, found = self.windows(examples, encoder, training=False), []
        for first in range(0, len(parts), _CHUNK):
            indices = np.arange(first, min(first + _CHUNK, len(parts)))
            texts = list(parts.texts_N[indices])
            encoded = encoder(texts, offsets=self.OFFSETS)
            chunk = Chunk(parts, indices, np.zeros_like(indices), texts, None, 0, training=False)
            made = self.targets(encoded, chunk)
            lengths_B = made.examples.get("lengths_B", encoded.lengths_B)
            found += np.split(made.positions["targets_RxL"], np.cumsum(lengths_B)[:-1])
        zeros = [0 * targets for targets in found]
        outputs = {"targets_N": found, "log_probability_N": zeros, "best_N": zeros}
        outputs = {name: object_array(values) for name, values in outputs.items()}
        return self.decode(Predictions(parts.ids_N, outputs), parts, examples, encoder)
