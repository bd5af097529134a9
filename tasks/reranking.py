"""Which of a query's passages belongs to it, read together with the query: a cross-encoder.

It is multiple choice with the passage as the answer. Not here: the head, the loss over the
candidates, the temperature.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.special import log_softmax

from evaluation import lexical, retrieval
from evaluation.evaluate import Predictions
from evaluation.metrics import Scores, about, one_each
from input_pipeline.batches.template import Encoder
from input_pipeline.examples import Examples, object_array
from tasks import limits, multiple_choice
from tasks.classification import LOSS
from tasks.embedding import BM25
from tasks.limits import Given, Limit
from tasks.task import Arrays, Loss, digest, groups_of, rows_of, text_record

_LISTWISE, _POINTWISE = "listwise", "pointwise"


class Reranking(multiple_choice.MultipleChoice):
    """A query has a passage that belongs to it and up to config.embedding.negatives others.

    A candidate that scores as high as the passage comes before it: a model that gives one score to
    everything wins nothing.
    """

    metrics = (*(m for m in retrieval.METRICS if m.name in ("mrr_10", "recall_1")), LOSS)
    FLOOR = next(iter(BM25))
    AVERAGE = ""
    ROBUSTNESS = False
    RANKS = True

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Checks the options.

        Raises:
            ValueError: no negatives, a loss of vectors, or a head that is not linear.
        """
        options = config.embedding
        if options.loss not in ("auto", _LISTWISE, _POINTWISE) or not options.negatives:
            raise ValueError(
                f"config.embedding.loss={options.loss!r}, negatives={options.negatives}: "
                "config.task='reranking' compares a passage with 1 or more negatives, by 'listwise'"
                " or 'pointwise'"
            )
        if config.model.head != "linear":
            raise ValueError(f"config.model.head={config.model.head!r}: reranking has a linear one")
        super().__init__(config, tuple(map(str, range(1 + options.negatives))), **parts)

    def prose(self) -> str:
        """Describes what is learned."""
        kind = self.config.embedding.loss.replace("auto", _LISTWISE)
        return f"a {kind} score for a query with each of up to {self.sequences} passages"

    def check(self, examples: Examples, split: str) -> None:
        """Raises on examples without passages, or without any to compare them with."""
        for column, key in ((examples.pairs_N, "pair"), (examples.negatives_N, "negatives")):
            if column is None or not any(column):
                what = "passage" if key == "pair" else "negative"
                raise ValueError(
                    f"no {split} query has a {what}, so that there is nothing to rank: set "
                    f"config.data.{key}_column"
                )

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns what reads each candidate in the place of {pair}."""
        if "{pair}" not in template:
            raise ValueError(
                f"config.data.template={template!r}: reranking reads query and passage together: "
                "write '{text}{pair}'"
            )
        template = template.replace("{pair}", "{choice}")
        return Encoder(self.tokenizer, template, max_length=max_length, prefix_ids=prefix_ids)

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Returns the examples with their candidates as choices, the passage first."""
        return self._with_choices(examples)

    def _with_choices(self, examples: Examples) -> Examples:
        nobody = object_array([()] * len(examples))
        pairs_N = nobody if examples.pairs_N is None else examples.pairs_N
        others_N = nobody if examples.negatives_N is None else examples.negatives_N
        rows = [
            (pair, *others[: self.sequences - 1]) if pair else ()
            for pair, others in zip(pairs_N, others_N, strict=True)
        ]
        labels_N = np.array([0 if len(row) > 1 else -1 for row in rows], np.int32)
        return dataclasses.replace(examples, choices_N=object_array(rows), labels_N=labels_N)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what is cut, queries with nothing to compare, and negatives beyond the number."""
        cut, alike, _ = super().limits(given._replace(examples=given.windows))
        labels_N = given.windows.labels_N
        yield from (cut, alike)
        yield limits.masked(int((labels_N < 0).sum()), len(labels_N), "passage with a negative")
        yield limits.beyond(given.examples, self.sequences - 1, "never read")

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the cross-entropy among the candidates of each query, or the mean of that of each
        candidate by itself."""
        total, weight, sums = super().loss(outputs, batch)
        if self.config.embedding.loss != _POINTWISE:
            return total, weight, sums
        weights_B, exists_BxK = batch["weights_B"].astype(jnp.float32), batch["choices_BxK"] > 0
        logits_BxK = multiple_choice.choice_logits(outputs, batch)
        is_read_BxK = exists_BxK & (weights_B[:, None] > 0)
        signs_K = jnp.where(jnp.arange(self.sequences) == 0, 1.0, -1.0)
        losses_BxK = -jax.nn.log_sigmoid(signs_K * jnp.where(is_read_BxK, logits_BxK, 0.0))
        losses_B = jnp.where(is_read_BxK, losses_BxK, 0.0).sum(axis=1)
        total = jnp.sum(weights_B * losses_B / jnp.maximum(exists_BxK.sum(axis=1), 1))
        return total, weight, sums

    def outputs(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Returns the score of each candidate by itself, [B, K]; of absent ones, -1e9."""
        return {"logits_BxC": multiple_choice.choice_logits(outputs, batch)}

    def guess_loss(self, examples: Examples) -> float:
        """Returns the loss of choosing at random."""
        counts_N = [len(row) for row in self._with_choices(examples).choices_N if len(row) > 1]
        return float(np.mean(np.log(counts_N)))

    def fit(self, predictions: Predictions, validation: Examples) -> Mapping[str, Any]:
        """Fits the temperature."""
        return super().fit(predictions, self._with_choices(validation))

    def calibration(self, predictions: Predictions, examples: Examples) -> dict[str, Any] | None:
        """Returns None: the probabilities are among candidates that somebody chose."""
        return None

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns the place of each passage among the candidates, and the loss in nats."""
        chosen = self._with_choices(examples.take(rows_of(examples, predictions.ids_N)))
        return self._scores(chosen, self.log_probabilities(predictions))

    def _scores(
        self, examples: Examples, logits_NxK: np.ndarray, *, guessing: bool = False
    ) -> Scores:
        del guessing
        asked_N = examples.labels_N >= 0
        before_N = (logits_NxK[:, 1:] >= logits_NxK[:, :1]).sum(axis=1)
        values = {
            "mrr_10": np.where(before_N < 10, 1 / (1 + before_N), 0.0),
            "recall_1": before_N == 0,
            "loss": -log_softmax(logits_NxK, axis=1)[:, 0],
        }
        statistics = {name: about(asked_N, one_each(column)) for name, column in values.items()}
        truth = digest(np.array([len(row) for row in examples.choices_N]))
        groups_N = groups_of(examples, examples.ids_N)
        return Scores(self.metrics, examples.ids_N, statistics, {}, truth, groups_N)

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores BM25 of the candidates, among all passages of the examples."""
        examples = self._with_choices(examples.take(np.argsort(examples.ids_N, kind="stable")))
        rows, places, queries, texts = [], [], [], []
        for row, choices in enumerate(examples.choices_N):
            rows += [row] * len(choices)
            places += range(len(choices))
            queries += [examples.texts_N[row]] * len(choices)
            texts += choices
        scores = {}
        for name, words in BM25.items():
            logits_NxK = np.full((len(examples), self.sequences), -1e9)
            logits_NxK[rows, places] = lexical.bm25_scores(queries, texts, words=words)
            scores[name] = self._scores(examples, logits_NxK)
        return scores

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields each query with its candidates and their logits; 'wrong' where the passage is not
        the first."""
        rows_N, shown = rows_of(examples, predictions.ids_N), examples.as_given()
        choices_N = self._with_choices(shown).choices_N
        for row, logits_K in zip(rows_N, self.logits(predictions), strict=True):
            candidates = choices_N[row]
            scores = [round(float(x), 6) for x in logits_K[: len(candidates)]]
            record = text_record(shown, int(row), pair="") | {"candidates": list(candidates)}
            if len(scores) > 1:
                record |= {"wrong": scores[0] <= max(scores[1:]), "confidence": max(scores)}
            yield record | {"scores": scores}
