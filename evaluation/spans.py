"""What found spans are worth, and floors: spans found from the training spans alone.

Here: entity-level counts, equal to seqeval's on the same spans, and two baselines without an
encoder, which read bare texts and return int32 [S, 3] of start, stop and label for each. Called by
tasks/tagging.py.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from evaluation.classification_metrics import per_class
from evaluation.metrics import Metric, Scores
from input_pipeline.batches.span_tags import from_tags, to_tags, tokens_of
from input_pipeline.examples import Examples

_TILED = 0.99  # share of the characters in spans from which on these are taken for words


def scores(
    metrics: tuple[Metric, ...],
    ids_N: np.ndarray,
    found: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
    *,
    labels: Sequence[str],
    reachable_N: np.ndarray | None = None,
) -> Scores:
    """Counts spans: right are those whose start, stop and label are all true ones'.

    Args:
        metrics: functions of (right, found, true).
        ids_N: of the texts.
        found, true: of each text, int32 [S, 3] of start, stop and index in `labels`.
        labels: names.
        reachable_N: true spans that could be found; their share is told.
    """
    counts_NxCx3 = np.zeros((len(ids_N), len(labels), 3))
    digest = hashlib.sha256()
    for row, sides in enumerate(zip(found, true, strict=True)):
        one, other = (set(map(tuple, side.tolist())) for side in sides)
        for kind, part in enumerate((one & other, one, other)):
            np.add.at(counts_NxCx3, (row, [label for _, _, label in part], kind), 1)
        digest.update(repr(sorted(other)).encode())
    known = per_class(np.moveaxis(counts_NxCx3, -1, 1).reshape(len(ids_N), -1), labels)
    detail = {"per_class": known, "spans": int(counts_NxCx3[..., 2].sum())}
    if reachable_N is not None:
        detail["representable"] = int(reachable_N.sum())
    counts_Nx3 = counts_NxCx3.sum(axis=1)
    statistics = {metric.name: counts_Nx3 for metric in metrics}
    return Scores(metrics, ids_N, statistics, detail, truth=digest.hexdigest())


def character_frequency(train: Examples, texts: Sequence[str]) -> list[np.ndarray]:
    """Gives each character the tag that it has most often in training, whatever stands beside it.

    Tags are those of input_pipeline/batches/span_tags.py; an unseen character gets the most
    frequent one.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row, text in enumerate(train.texts_N):
        spans_Sx3 = train.spans.row(row)
        _, owners_T = tokens_of(_characters(text), spans_Sx3)
        for character, tag in zip(text, to_tags(owners_T, spans_Sx3[:, 2]).tolist(), strict=True):
            counts[character][tag] += 1
    total = sum(counts.values(), Counter())
    usual = total.most_common(1)[0][0]
    tag_of = {character: found.most_common(1)[0][0] for character, found in counts.items()}
    found = [from_tags(np.array([tag_of.get(c, usual) for c in text], int)) for text in texts]
    return [(runs + np.array([0, 1, 0])).astype(np.int32) for runs in found]


def dictionary(train: Examples, texts: Sequence[str]) -> list[np.ndarray]:
    """Finds the spellings of training spans, the longest at each place, from the left.

    Spellings that are a span in less than half of the places in which they are so found in the
    training texts are left out. Where training spans tile the texts, which are words then, a
    character in none is a word of its own, with the most frequent label of such words.
    """
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for row, text in enumerate(train.texts_N):
        for start, stop, label in train.spans.row(row).tolist():
            labels[text[start:stop]][label] += 1
    label_of = {spelling: found.most_common(1)[0][0] for spelling, found in labels.items()}
    right: Counter[str] = Counter()
    proposed: Counter[str] = Counter()
    for row, (text, found) in enumerate(
        zip(train.texts_N, _longest(train.texts_N, label_of), strict=True)
    ):
        true = set(map(tuple, train.spans.row(row).tolist()))
        spelled = [text[start:stop] for start, stop, _ in found]
        proposed.update(spelled)
        right.update(s for s, span in zip(spelled, found, strict=True) if span in true)
    label_of = {s: label for s, label in label_of.items() if 2 * right[s] >= proposed[s]}
    spans_Sx3 = train.spans.values
    tiled = (spans_Sx3[:, 1] - spans_Sx3[:, 0]).sum() >= _TILED * sum(map(len, train.texts_N))
    single = -1
    if tiled:
        alone = sum((found for s, found in labels.items() if len(s) == 1), Counter())
        single = (alone or Counter(spans_Sx3[:, 2].tolist())).most_common(1)[0][0]
    found = _longest(texts, label_of, single=single)
    return [np.array(spans, np.int32).reshape(-1, 3) for spans in found]


def _characters(text: str) -> np.ndarray:
    """The offsets of tokens that are a character each."""
    return np.arange(len(text))[:, None] + [0, 1]


def _longest(
    texts: Sequence[str], label_of: dict[str, int], *, single: int = -1
) -> list[list[tuple[int, int, int]]]:
    """Returns the longest matches from left to right; `single` labels characters in none."""
    sizes: dict[str, set[int]] = defaultdict(set)
    for spelling in label_of:
        sizes[spelling[0]].add(len(spelling))
    longest_first = {character: sorted(found, reverse=True) for character, found in sizes.items()}
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
