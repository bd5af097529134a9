"""Long texts to windows that the model can read whole: overlapping stretches of characters.

Here: where a text is cut, and what of its spans and words each window keeps. Not here: tokens
(template.py encodes windows as it does texts), and putting predictions of windows together, which
is the tasks'. Imports no TensorFlow.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.tokenizers.tokenization import Offsets, Tokenizer

_BATCH = 4096  # texts whose ids are held at once

_Window = tuple[int, int]  # start, stop in characters of the text


def split(examples: Examples, tokenizer: Tokenizer, *, room: int, overlap: int) -> Examples:
    """Cuts the texts that are too long for the model into windows; the others are one window each.

    The windows of a text cover it in order, and two neighbours share about `overlap` tokens. They
    begin and end between tokens, never within a character, and each is encoded again by itself: if
    a cut changed the tokenisation, windows get smaller until they fit. A function of its arguments.

    Args:
        examples: a pair takes its place in the room whole, beside each window.
        tokenizer: of the run.
        room: Encoder.room, tokens for text and pair together.
        overlap: config.data.overlap.

    Returns:
        Examples of windows in the order of their owners: `ids_N` from 0 on, `owners_N`, `starts_N`;
        spans that a window holds whole, and words, in its own characters; all else repeated.

    Raises:
        ValueError: the overlap, or a pair, leaves a window no room to advance.
    """
    lengths_N = token_counts(examples.texts_N, tokenizer)
    rooms_N = np.full(len(examples), room)
    if examples.pairs_N is not None:
        rooms_N -= token_counts(examples.pairs_N, tokenizer)
    long = np.flatnonzero(lengths_N > rooms_N)
    tight = long[rooms_N[long] <= overlap]  # in which windows could not advance
    if len(tight):
        row = int(tight[np.argmin(rooms_N[tight])])
        pair = (
            "" if examples.pairs_N is None else f" beside its pair {examples.pairs_N[row][:40]!r}"
        )
        raise ValueError(
            f"config.data.overlap={overlap}, but a window of example {examples.ids_N[row]} has "
            f"{max(rooms_N[row], 0)} tokens{pair}: lower it, or raise config.layout.max_length"
        )
    windows: list[list[_Window]] = [[(0, len(text))] for text in examples.texts_N]
    for first in range(0, len(long), _BATCH):
        rows = long[first : first + _BATCH]
        cut = _cut(list(examples.texts_N[rows]), tokenizer, rooms_N[rows].tolist(), overlap)
        for row, windows_of_row in zip(rows.tolist(), cut, strict=True):
            windows[row] = windows_of_row
    return _examples_of(examples, windows)


def token_counts(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Returns how many tokens each text has, int64 [N]; holds the ids of a few at a time."""
    counts: list[int] = []
    for first in range(0, len(texts), _BATCH):
        counts += map(len, tokenizer.encode_batch(list(texts[first : first + _BATCH])))
    return np.array(counts, np.int64)


def _cut(
    texts: list[str], tokenizer: Tokenizer, rooms: list[int], overlap: int
) -> list[list[_Window]]:
    """Returns the windows of each text."""
    cuts = [
        _cuts(text, offsets)
        for text, (_, offsets) in zip(texts, tokenizer.encode_with_offsets(texts), strict=True)
    ]
    budgets = list(rooms)
    windows: list[list[_Window]] = [[]] * len(texts)
    todo = list(range(len(texts)))
    while todo:
        for i in todo:
            windows[i] = _plan(*cuts[i], budget=budgets[i], overlap=overlap)
        counts = token_counts([texts[i][a:b] for i in todo for a, b in windows[i]], tokenizer)
        bounds = np.cumsum([len(windows[i]) for i in todo])[:-1]
        # A cut can change the tokenisation: what is too long gets smaller windows.
        excess = {
            i: int(part.max()) - rooms[i]
            for i, part in zip(todo, np.split(counts, bounds), strict=True)
        }
        todo = [i for i in todo if excess[i] > 0]
        for i in todo:
            budgets[i] -= excess[i]
            if budgets[i] < 1:
                raise ValueError(
                    f"no window of {rooms[i]} tokens can be cut from the text {texts[i][:40]!r}: "
                    "raise config.layout.max_length"
                )
    return windows


def _cuts(text: str, offsets: Offsets) -> tuple[np.ndarray, np.ndarray]:
    """Returns where a text may be cut, and how many tokens stand before each: both [K] ascending.

    Characters without a token of their own go with the token before them.
    """
    starts, stops = np.array(offsets, np.int64).reshape(-1, 2).T
    # Bytes of one character share its start; a token may reach into what the next one shares.
    behind = np.maximum.accumulate(stops)[:-1]
    between = 1 + np.flatnonzero((starts[1:] > starts[:-1]) & (starts[1:] >= behind))
    between = between[starts[between] > 0]
    return (
        np.concatenate([[0], starts[between], [len(text)]]),
        np.concatenate([[0], between, [len(starts)]]),
    )


def _plan(
    characters: np.ndarray, tokens: np.ndarray, *, budget: int, overlap: int
) -> list[_Window]:
    """Returns windows of at most `budget` tokens, or of one stretch that can't be cut."""
    windows: list[_Window] = []
    first, last = 0, len(tokens) - 1
    while True:
        # The last of equal counts: what has no token is no reason for a window.
        stop = int(np.searchsorted(tokens, tokens[first] + budget, side="right")) - 1
        stop = min(max(stop, first + 1), last)
        windows.append((int(characters[first]), int(characters[stop])))
        if stop == last:
            return windows
        first = max(int(np.searchsorted(tokens, tokens[stop] - overlap)), first + 1)


def _examples_of(examples: Examples, windows: list[list[_Window]]) -> Examples:
    """Returns the windows as examples."""
    counts = np.array([len(of_text) for of_text in windows], np.int64)
    rows_W = np.repeat(np.arange(len(examples)), counts)
    bounds_Wx2 = np.array([window for of_text in windows for window in of_text], np.int64)
    starts_W, stops_W = bounds_Wx2.reshape(-1, 2).T
    repeated = examples.take(rows_W)
    cut = np.flatnonzero(np.repeat(counts > 1, counts)).tolist()
    texts = list(repeated.texts_N)
    for i in cut:
        texts[i] = texts[i][starts_W[i] : stops_W[i]]
    kept: dict[str, Ragged] = {}
    if examples.spans is not None:
        owners_S = np.repeat(np.arange(len(rows_W)), np.diff(repeated.spans.splits_N1))
        spans_Sx3 = repeated.spans.values
        whole_S = (spans_Sx3[:, 0] >= starts_W[owners_S]) & (spans_Sx3[:, 1] <= stops_W[owners_S])
        owners_S, moved_Sx3 = owners_S[whole_S], spans_Sx3[whole_S].copy()
        moved_Sx3[:, :2] -= starts_W[owners_S, None].astype(moved_Sx3.dtype)
        splits = np.searchsorted(owners_S, np.arange(len(rows_W) + 1)).astype(np.int64)
        kept["spans"] = Ragged(moved_Sx3, splits)
    if examples.words is not None:
        rows = [repeated.words.row(i) for i in range(len(rows_W))]
        for i in cut:  # the words tile a window, at whose edges they are cut
            inside = rows[i][(rows[i] > starts_W[i]) & (rows[i] < stops_W[i])]
            rows[i] = np.append(inside, stops_W[i]) - starts_W[i]
        kept["words"] = Ragged.of(rows, examples.words.values.dtype)
    return dataclasses.replace(
        repeated,
        texts_N=object_array(texts),
        ids_N=np.arange(len(rows_W), dtype=np.int64),
        owners_N=examples.ids_N[rows_W],
        starts_N=starts_W,
        **kept,
    )
