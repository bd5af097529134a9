"""Metrics of generated texts beside reference answers: chrF, BLEU, ROUGE-L.

All count characters. chrF (W15-3049) and BLEU are of a corpus, from n-gram counts that add up over
examples; they are those of sacrebleu.corpus_chrf and sacrebleu.corpus_bleu(tokenize='zh'), and so
comparable with published ones. ROUGE-L (W04-1013) is a mean over examples. Also a floor without a
model: the answer to the most similar prompt.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from evaluation.metrics import Metric, mean

_BLOCK = 256  # prompts whose similarities are held at once


def check_installed() -> None:
    """Raises ValueError where sacrebleu, which counts chrF and BLEU, is missing."""
    try:
        import sacrebleu  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(
            "config.generation.examples > 0 scores written texts with sacrebleu, which is not "
            "installed: run pip install -e '.[generation]', or set it to 0"
        ) from None


@functools.cache
def _sacrebleu(name: str) -> Any:
    check_installed()
    import sacrebleu

    # Silent about texts that look tokenised: those of Chinese never are.
    if name == "bleu":
        return sacrebleu.BLEU(tokenize="zh", force=True)
    return sacrebleu.CHRF()


def _corpus_score(name: str, sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Metric.value of sacrebleu's statistics, from 0 to 1."""
    del whole
    # sacrebleu resamples corpora by these statistics; no public name leads to them.
    score = _sacrebleu(name)._compute_score_from_stats
    rows = sums.reshape(-1, sums.shape[-1])
    return np.reshape([score(row.tolist()).score / 100 for row in rows], sums.shape[:-1])


METRICS = (
    Metric("chrf", "chrF", functools.partial(_corpus_score, "chrf"), scale=100, digits=1),
    Metric("bleu", "BLEU", functools.partial(_corpus_score, "bleu"), scale=100, digits=1),
    Metric("rouge_l", "ROUGE-L", mean, scale=100, digits=1),
)


def statistics(texts_N: Sequence[str | None], answers_N: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Returns the statistics of METRICS, by name: float64 [N, K].

    Args:
        texts_N: what was written; None where nothing was, which adds nothing to any metric.
        answers_N: the references.
    """
    written_N = np.array([text is not None for text in texts_N], bool)
    texts = [text for text in texts_N if text is not None]
    answers = [answer for answer, written in zip(answers_N, written_N, strict=True) if written]
    rouge = [(rouge_l(*both), 1) for both in zip(texts, answers, strict=True)]
    chrf, bleu = (
        _sacrebleu(name)._extract_corpus_statistics(texts, [answers]) if texts else []
        for name in ("chrf", "bleu")
    )
    statistics = {}
    for name, width, rows in (("chrf", 18, chrf), ("bleu", 10, bleu), ("rouge_l", 2, rouge)):
        statistics[name] = np.zeros((len(written_N), width))
        statistics[name][written_N] = np.array(rows, np.float64).reshape(-1, width)
    return statistics


def rouge_l(text: str, answer: str) -> float:
    """Returns the F1 of the longest common subsequence of characters; white space is none.

    Bit by bit, a row of the table at once (Hyyrö 2004): bit i of `row` is 0 where the i + 1 first
    characters of the text have a longer subsequence in common with the answer than the i first.
    """
    text, answer = "".join(text.split()), "".join(answer.split())
    if not text or not answer:
        return 0.0
    places: dict[str, int] = {}
    for i, character in enumerate(text):
        places[character] = places.get(character, 0) | 1 << i
    every = row = (1 << len(text)) - 1
    for character in answer:
        same = row & places.get(character, 0)
        row = ((row + same) | (row - same)) & every
    return 2 * (len(text) - row.bit_count()) / (len(text) + len(answer))


def nearest_answers(
    prompts: Sequence[str], train_prompts: Sequence[str], train_answers: Sequence[str]
) -> list[str]:
    """Returns for each prompt the answer of the most similar training prompt, the first of equals.

    The similarity is the cosine of character 1-2-gram TF-IDF vectors.
    """
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    known = vectorizer.fit_transform(train_prompts)
    asked = vectorizer.transform(prompts)
    answers = []
    for first in range(0, len(prompts), _BLOCK):
        similar = (asked[first : first + _BLOCK] @ known.T).toarray()
        answers += [train_answers[i] for i in similar.argmax(axis=1)]
    return answers
