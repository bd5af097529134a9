"""Metrics of language models: nats, perplexity, bits per character, and the floors. No model here.

Predictions here hold, for each document, 'targets_N' (1 + the target token), 'log_probability_N'
and 'best_N' (the likeliest token), for all target tokens in order.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, mean
from evaluation.ngrams import CharacterNgrams
from input_pipeline.examples import object_array


def _perplexity(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.exp(mean(sums, whole))


PERPLEXITY = Metric("perplexity", "perplexity", _perplexity, higher_is_better=False, digits=2)
ACCURACY = Metric("accuracy", "tokens right, %", mean, scale=100, digits=2)
OF_TOKENS = (PERPLEXITY, ACCURACY)
BITS = (
    Metric("bits_per_character", "bits per character", mean, higher_is_better=False),
    Metric("bits_per_byte", "bits per byte", mean, higher_is_better=False),
)


def by_document(predictions: Predictions, owners_W: np.ndarray) -> Predictions:
    """Joins predictions of windows to those of documents.

    Args:
        predictions: of W windows, in the order of their ids; of all of their positions, with
            targets 0 where there is none.
        owners_W: ids of the documents.

    Returns:
        Predictions as described above, ids ascending, and 'windows_N', the number per document.
    """
    order = np.argsort(owners_W, kind="stable")
    ids_N, first_N = np.unique(owners_W[order], return_index=True)
    bounds = np.append(first_N, len(order))
    asked_W = [targets > 0 for targets in predictions["targets_N"]]
    outputs = {"windows_N": np.diff(bounds)}
    for name in ("targets_N", "log_probability_N", "best_N"):
        parts = [predictions[name][i][asked_W[i]] for i in order]
        joined = [np.concatenate(parts[start:stop]) for start, stop in itertools.pairwise(bounds)]
        outputs[name] = object_array(joined)
    return Predictions(ids_N, outputs)


def sums(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns nats, correct predictions and target tokens of each document, float64 [N] each."""
    scores_N, targets_N = predictions["log_probability_N"], predictions["targets_N"]
    nats_N = [-scores.sum(dtype=np.float64) for scores in scores_N]
    pairs = zip(predictions["best_N"], targets_N, strict=True)
    correct_N = [np.count_nonzero(best == targets - 1) for best, targets in pairs]
    return tuple(np.array(x, np.float64) for x in (nats_N, correct_N, list(map(len, targets_N))))


def token_scores(predictions: Predictions) -> Scores:
    """Returns perplexity and accuracy of the target tokens."""
    nats_N, correct_N, tokens_N = sums(predictions)
    statistics = {
        PERPLEXITY.name: np.stack([nats_N, tokens_N], axis=1),
        ACCURACY.name: np.stack([correct_N, tokens_N], axis=1),
    }
    truth = _digest(targets.tobytes() for targets in predictions["targets_N"])
    return Scores(OF_TOKENS, predictions.ids_N, statistics, truth=truth)


def bit_scores(ids_N: np.ndarray, nats_N: np.ndarray, texts: Sequence[str]) -> Scores:
    """Returns bits per character and per byte of whole texts that cost so many nats."""
    lengths = [len(text) for text in texts], [len(text.encode()) for text in texts]
    statistics = {
        metric.name: np.stack([nats_N / np.log(2), np.array(counts)], axis=1)
        for metric, counts in zip(BITS, lengths, strict=True)
    }
    return Scores(BITS, ids_N, statistics, truth=_digest(text.encode() for text in texts))


def frequency_floor(asked: Predictions, training_tokens: np.ndarray, *, vocab_size: int) -> Scores:
    """Returns the scores of predicting the target tokens by their frequency in training texts."""
    counts_V = np.bincount(training_tokens, minlength=vocab_size).astype(np.float64)
    # Witten-Bell: unseen tokens share the probability of seeing a token for the first time.
    kinds = np.count_nonzero(counts_V)
    logs_V = np.log((counts_V + kinds / vocab_size) / (counts_V.sum() + kinds))
    outputs = {
        "targets_N": asked["targets_N"],
        "log_probability_N": object_array([logs_V[t - 1] for t in asked["targets_N"]]),
        "best_N": object_array([0 * t + counts_V.argmax() for t in asked["targets_N"]]),
    }
    return token_scores(Predictions(asked.ids_N, outputs))


def ngram_floor(training_texts: Sequence[str], ids_N: np.ndarray, texts: Sequence[str]) -> Scores:
    """Returns the scores of character 5-grams that learned the training texts."""
    return bit_scores(ids_N, -CharacterNgrams(training_texts).log_probabilities(texts), texts)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()
