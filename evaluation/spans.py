"""Entity-level counts of predicted spans, equal to seqeval's, and two baselines without an encoder.

The baselines learn from the training spans alone, read bare texts and return int32 [S, 3] of start,
stop and label for each.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from evaluation.classification_metrics import per_class
from evaluation.metrics import Metric, Scores
from input_pipeline.batches.span_tags import from_tags, to_tags, tokens_of
from input_pipeline.examples import Examples

_TILED = 0.99  # from this share of the characters in spans on, the spans are words


def scores(
    metrics: tuple[Metric, ...],
    ids_N: np.ndarray,
    predicted: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
    *,
    labels: Sequence[str],
    reachable_N: np.ndarray | None = None,
    groups_N: np.ndarray | None = None,
) -> Scores:
    """Counts spans: right are those whose start, stop and label are all those of a true one.

    Args:
        metrics: functions of (right, predicted, true).
        ids_N: of the texts.
        predicted, true: of each text, int32 [S, 3] of start, stop and index in `labels`.
        labels: names.
        reachable_N: true spans that could be predicted; their number is reported.
        groups_N: see Scores.
    """
    counts_NxCx3 = np.zeros((len(ids_N), len(labels), 3))
    digest = hashlib.sha256()
    for row, sides in enumerate(zip(predicted, true, strict=True)):
        one, other = (set(map(tuple, side.tolist())) for side in sides)
        for kind, part in enumerate((one & other, one, other)):
            np.add.at(counts_NxCx3, (row, [label for _, _, label in part], kind), 1)
        digest.update(repr(sorted(other)).encode())
    counts_Nx3C = np.moveaxis(counts_NxCx3, -1, 1).reshape(len(ids_N), -1)
    classes = per_class(counts_Nx3C, labels, groups_N)
    detail = {"per_class": classes, "spans": int(counts_NxCx3[..., 2].sum())}
    if reachable_N is not None:
        detail["representable"] = int(reachable_N.sum())
    counts_Nx3 = counts_NxCx3.sum(axis=1)
    statistics = {metric.name: counts_Nx3 for metric in metrics}
    return Scores(metrics, ids_N, statistics, detail, digest.hexdigest(), groups_N)


def character_frequency(train: Examples, texts: Sequence[str]) -> list[np.ndarray]:
    """Gives each character the tag that it has most often in training, whatever is beside it.

    Tags are those of input_pipeline/batches/span_tags.py; an unseen character gets the most
    frequent one.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row, text in enumerate(train.texts_N):
        spans_Sx3 = train.spans.row(row)
        offsets_Tx2 = np.arange(len(text))[:, None] + [0, 1]  # a token is a character
        _, owners_T = tokens_of(offsets_Tx2, spans_Sx3)
        for character, tag in zip(text, to_tags(owners_T, spans_Sx3[:, 2]).tolist(), strict=True):
            counts[character][tag] += 1
    usual = _most_common(sum(counts.values(), Counter()))
    tag_of = {character: _most_common(tags) for character, tags in counts.items()}
    tagged = [from_tags(np.array([tag_of.get(c, usual) for c in text], int)) for text in texts]
    return [(runs + np.array([0, 1, 0])).astype(np.int32) for runs in tagged]  # stops are exclusive


def dictionary(train: Examples, texts: Sequence[str]) -> list[np.ndarray]:
    """Finds the spellings of training spans, the longest at each place, from the left.

    Spellings that are a span at less than half of these places in the training texts are left out.
    Where training spans tile the texts, so that they are words, a character in none is a word by
    itself, with the most frequent label of one-character words.
    """
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for row, text in enumerate(train.texts_N):
        for start, stop, label in train.spans.row(row).tolist():
            labels[text[start:stop]][label] += 1
    label_of = {spelling: _most_common(counts) for spelling, counts in labels.items()}
    balance: Counter[str] = Counter()  # of each spelling: right places minus wrong ones
    for row, (text, spans) in enumerate(
        zip(train.texts_N, _longest(train.texts_N, label_of), strict=True)
    ):
        true = set(map(tuple, train.spans.row(row).tolist()))
        for span in spans:
            balance[text[span[0] : span[1]]] += 1 if span in true else -1
    label_of = {s: label for s, label in label_of.items() if balance[s] >= 0}
    spans_Sx3 = train.spans.values
    tiled = (spans_Sx3[:, 1] - spans_Sx3[:, 0]).sum() >= _TILED * sum(map(len, train.texts_N))
    single = -1
    if tiled:
        alone = sum((counts for s, counts in labels.items() if len(s) == 1), Counter())
        single = _most_common(alone or Counter(spans_Sx3[:, 2].tolist()))
    matches = _longest(texts, label_of, single=single)
    return [np.array(spans, np.int32).reshape(-1, 3) for spans in matches]


def _most_common(counts: Counter[int]) -> int:
    return counts.most_common(1)[0][0]


def _longest(
    texts: Sequence[str], label_of: dict[str, int], *, single: int = -1
) -> list[list[tuple[int, int, int]]]:
    """Returns the longest matches from left to right; `single` labels characters in none."""
    sizes: dict[str, set[int]] = defaultdict(set)
    for spelling in label_of:
        sizes[spelling[0]].add(len(spelling))
    longest_first = {character: sorted(these, reverse=True) for character, these in sizes.items()}
    results = []
    for text in texts:
        spans, place = [], 0
        while place < len(text):
            fits = (
                n for n in longest_first.get(text[place], ()) if text[place : place + n] in label_of
            )
            size = next(fits, 0)
            if size or single >= 0:
                spelling = text[place : place + max(size, 1)]
                spans.append((place, place + len(spelling), label_of.get(spelling, single)))
            place += max(size, 1)
        results.append(spans)
    return results
