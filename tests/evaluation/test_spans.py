"""Entity-level scores against seqeval's on the same spans."""

import numpy as np
import pytest

from evaluation import spans
from evaluation.metrics import Metric, estimate, f1, precision, recall

LABELS = ("LOC", "ORG", "PER")
TRUE = (
    [(0, 3, "PER"), (5, 7, "LOC"), (8, 9, "LOC")],
    [],
    [(1, 4, "ORG"), (4, 6, "PER")],
    [(0, 2, "LOC")],
    [(2, 5, "ORG"), (7, 8, "PER")],
)
FOUND = (
    [(0, 3, "PER"), (5, 8, "LOC"), (8, 9, "PER")],
    [(2, 3, "ORG")],
    [(1, 4, "ORG"), (4, 6, "PER")],
    [],
    [(2, 4, "ORG"), (4, 5, "ORG"), (7, 8, "PER")],
)
# What seqeval 1.2.2 says of them as IOBES tags of characters, by default and with mode='strict':
# classification_report(..., output_dict=True).
SEQEVAL = {
    "micro avg": (0.4444444444444444, 0.5, 0.47058823529411764, 8),
    "LOC": (0.0, 0.0, 0.0, 3),
    "ORG": (0.25, 0.5, 0.3333333333333333, 2),
    "PER": (0.75, 1.0, 0.8571428571428571, 3),
}
METRICS = (Metric("f1", "", f1), Metric("precision", "", precision), Metric("recall", "", recall))


def arrays(rows):
    indexed = [[(a, b, LABELS.index(label)) for a, b, label in row] for row in rows]
    return [np.array(row, np.int32).reshape(-1, 3) for row in indexed]


def test_scores_equal_those_of_seqeval():
    scores = spans.scores(METRICS, np.arange(5), arrays(FOUND), arrays(TRUE), labels=LABELS)
    found = [estimate(scores, name)["value"] for name in ("precision", "recall", "f1")]
    assert [*found, scores.detail["spans"]] == pytest.approx(SEQEVAL["micro avg"])
    for label in LABELS:
        own = scores.detail["per_class"][label]
        found = [own[name] for name in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx(SEQEVAL[label])


def test_truth_tells_apart_other_true_spans_alone():
    one, same, other = (
        spans.scores(METRICS, np.arange(5), arrays(found), arrays(true), labels=LABELS).truth
        for found, true in ((FOUND, TRUE), (TRUE, TRUE), (FOUND, FOUND))
    )
    assert one == same != other
