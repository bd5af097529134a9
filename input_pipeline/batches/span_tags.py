"""Spans of characters to tags of tokens and back.

Here: which tokens a span is of, BIOES tags, and which characters a run of tokens stands for; for
one text at a time, in numpy. Not here: heads, losses, windows (windows.py).

A token is of a span if they share characters; of several, of the one with which it shares most, of
equals the first. So a border within a token cannot be kept, and of two names in one token only one
is. Back again a run of tokens stands for all the characters from its first to its last, but not for
white space at its ends (pieces hold the space before a word), nor for what the run before it holds
(a character may be several tokens). `representable` returns which spans survive both ways.

Tags are 0 outside and 1 + 4 * label + one of BEGIN, INSIDE, END, SINGLE. BIOES rather than BIO:
every tag holds whether a name ends with its token, which is what a segmentation consists of, and
the last character of a Chinese name or word (市, 公司) is stronger evidence than the one behind it.
"""

import itertools

import numpy as np

BEGIN, INSIDE, END, SINGLE = range(4)


def num_tags(num_labels: int) -> int:
    """Returns the number of tags."""
    return 1 + 4 * num_labels


def allowed(labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns which tags may follow, start and end: bool [C, C] (from, to), [C] and [C]."""
    kinds_C = np.arange(-1, 4 * labels) % 4
    of_C = np.arange(3, 4 * labels + 4) // 4  # 0 outside, else 1 + label
    is_open_C = (of_C > 0) & ((kinds_C == BEGIN) | (kinds_C == INSIDE))  # more has to come
    goes_on_C = (of_C > 0) & ((kinds_C == INSIDE) | (kinds_C == END))
    follows_CxC = is_open_C[:, None] & goes_on_C & (of_C[:, None] == of_C)
    return follows_CxC | (~is_open_C[:, None] & ~goes_on_C), ~goes_on_C, ~is_open_C


def tokens_of(offsets_Tx2: np.ndarray, spans_Sx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the tokens of spans.

    Args:
        offsets_Tx2: characters of the tokens, start and stop.
        spans_Sx3: start, stop (characters), label.

    Returns:
        shared_SxT int64, how many characters a span and a token share; owners_T int64, the span
        that a token is of where no two may share it, -1 for none.
    """
    starts_S1, stops_S1 = spans_Sx3[:, :1], spans_Sx3[:, 1:2]
    shared_SxT = np.minimum(stops_S1, offsets_Tx2[:, 1]) - np.maximum(starts_S1, offsets_Tx2[:, 0])
    shared_SxT = np.maximum(shared_SxT, 0)
    if not len(spans_Sx3):
        return shared_SxT, np.full(len(offsets_Tx2), -1)
    order = np.argsort(spans_Sx3[:, 0], kind="stable")
    best_T = order[shared_SxT[order].argmax(axis=0)]
    return shared_SxT, np.where(shared_SxT.any(axis=0), best_T, -1)


def to_tags(owners_T: np.ndarray, labels_S: np.ndarray) -> np.ndarray:
    """Returns the tags, int64 [T], of tokens that are each of one span or none (-1)."""
    changes_T1 = np.append(True, owners_T[1:] != owners_T[:-1])
    begins_T, ends_T = changes_T1, np.append(changes_T1[1:], True)
    kinds_T = np.where(begins_T, np.where(ends_T, SINGLE, BEGIN), np.where(ends_T, END, INSIDE))
    labels_T = np.append(labels_S, 0)[owners_T]
    return np.where(owners_T < 0, 0, 1 + 4 * labels_T + kinds_T)[: len(owners_T)]


def from_tags(tags_T: np.ndarray) -> np.ndarray:
    """Reads tags, legal or not: a span begins also where the one before cannot go on.

    Returns:
        int64 [S, 3] of first token, last token, label.
    """
    labels_T, kinds_T = np.divmod(np.asarray(tags_T, np.int64) - 1, 4)
    before_T = np.append(-1, labels_T[:-1])[: len(labels_T)]
    ended_T = np.isin(np.append(END, kinds_T[:-1])[: len(labels_T)], (END, SINGLE))
    starts_T = np.isin(kinds_T, (BEGIN, SINGLE)) | (labels_T != before_T) | ended_T
    firsts = np.flatnonzero((labels_T >= 0) & starts_T)
    # A span goes on up to the next that begins, or the next token outside.
    breaks = np.flatnonzero((labels_T < 0) | starts_T)
    lasts = np.append(breaks, len(labels_T))[np.searchsorted(breaks, firsts, side="right")] - 1
    return np.stack([firsts, lasts, labels_T[firsts]], axis=1)


def to_characters(
    runs_Sx3: np.ndarray, offsets_Tx2: np.ndarray, text: str, *, flat: bool
) -> np.ndarray:
    """Returns the spans of characters that runs of tokens stand for.

    Args:
        runs_Sx3: first token, last token, label.
        offsets_Tx2: characters of the tokens.
        text: of the tokens.
        flat: whether no two spans may share a character; `runs_Sx3` are then in their order.

    Returns:
        int32 [S, 3] of start, stop and label; stop is start where nothing is left of a run.
    """
    spans, taken = [], 0
    for first, last, label in runs_Sx3.tolist():
        start, stop = int(offsets_Tx2[first, 0]), int(offsets_Tx2[last, 1])
        if flat:
            start = max(start, taken)
        if not text[start:stop].isspace():
            while start < stop and text[start].isspace():
                start += 1
            while start < stop and text[stop - 1].isspace():
                stop -= 1
        stop = max(start, stop)
        taken = max(taken, stop)
        spans.append((start, stop, label))
    return np.array(spans, np.int32).reshape(-1, 3)


def representable(
    spans_Sx3: np.ndarray, offsets_Tx2: np.ndarray, text: str, *, flat: bool
) -> np.ndarray:
    """Returns which spans come back from their tokens as they were, bool [S]."""
    shared_SxT, owners_T = tokens_of(offsets_Tx2, spans_Sx3)
    if flat:
        runs_Sx3 = from_tags(to_tags(owners_T, spans_Sx3[:, 2]))
    else:
        runs_Sx3 = runs_of(shared_SxT, spans_Sx3[:, 2])
    back = set(map(tuple, to_characters(runs_Sx3, offsets_Tx2, text, flat=flat).tolist()))
    return np.array([tuple(span) in back for span in spans_Sx3.tolist()], bool)


def runs_of(shared_SxT: np.ndarray, labels_S: np.ndarray) -> np.ndarray:
    """Returns first token, last token and label of each span that has a token, where several spans
    may share tokens: int64 [S, 3]."""
    touched_SxT = shared_SxT > 0
    kept_S = touched_SxT.any(axis=1)
    firsts_S = touched_SxT.argmax(axis=1) if touched_SxT.size else np.zeros(len(labels_S), int)
    lasts_S = touched_SxT.shape[1] - 1
    if touched_SxT.size:
        lasts_S = lasts_S - touched_SxT[:, ::-1].argmax(axis=1)
    runs_Sx3 = np.stack(np.broadcast_arrays(firsts_S, lasts_S, labels_S), axis=1)
    return runs_Sx3[kept_S]


def overlapping(spans_Sx3: np.ndarray) -> bool:
    """Returns whether two spans share a character."""
    ordered = sorted(spans_Sx3[:, :2].tolist())
    return any(first[1] > second[0] for first, second in itertools.pairwise(ordered))
