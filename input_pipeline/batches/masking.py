"""What a language model has to fill in: masked tokens, masked words, corrupted spans.

Pure functions of numpy arrays over whole batches, without a loop over examples. What is drawn is a
function of (seed, epoch, example id) alone: the batch, its order, a restart and the number of hosts
change nothing. Not here: tokens (template.py), losses.
"""

import re
from typing import NamedTuple

import numpy as np

from input_pipeline.batches.template import Encoded
from input_pipeline.examples import Ragged
from input_pipeline.hashing import numpy_keys, numpy_mix, numpy_unit
from input_pipeline.tokenizers.tokenization import Tokenizer

_SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")
_KEPT, _RANDOM = 0.1, 0.1  # of the tokens that are asked for; the others become the mask


class Draws(NamedTuple):
    """What draws are a function of.

    Attributes:
        seed: of the run.
        epochs_B: int64.
        ids_B: int64, of the examples.
    """

    seed: int
    epochs_B: np.ndarray
    ids_B: np.ndarray

    def bits(self, name: str, rows_I: np.ndarray, places_I: np.ndarray) -> np.ndarray:
        """Returns 64 bits for each item, uint64: of the `name` of a draw, example and place."""
        keys_B = numpy_keys(self.seed, self.epochs_B, self.ids_B, name)
        return numpy_mix(keys_B[rows_I] ^ numpy_mix(places_I.astype(np.uint64)))


def word_of_tokens(encoded: Encoded, words: Ragged) -> np.ndarray:
    """Returns for each token the index of its word in its example's text, int64 [P].

    A token that reaches into several words counts to the first of them; one without a character, to
    the word before which it stands. Those of the template get 0.

    Args:
        encoded: with offsets.
        words: stops of the words of each text.
    """
    rows_P, splits = _rows(encoded.lengths_B), words.splits_N1
    # All texts end to end, so that one search serves them; each takes one place more than it has
    # characters, for a token may stand behind its last one.
    stops_B = np.zeros(len(encoded.lengths_B), np.int64)
    filled_B = np.diff(splits) > 0
    stops_B[filled_B] = words.values[splits[1:][filled_B] - 1]
    bases_B = np.cumsum(stops_B + 1) - stops_B - 1
    all_stops_W = words.values + np.repeat(bases_B, np.diff(splits))
    words_P = np.searchsorted(all_stops_W, encoded.offsets[:, 0] + bases_B[rows_P], side="right")
    last_P = np.maximum(splits[1:] - 1, splits[:-1])[rows_P]
    return np.where(encoded.fields == 0, np.minimum(words_P, last_P) - splits[:-1][rows_P], 0)


def mask_tokens(
    tokens: np.ndarray,
    lengths_B: np.ndarray,
    *,
    may_mask_P: np.ndarray,
    units_P: np.ndarray,
    share: float,
    mask_id: int,
    vocab_size: int,
    draws: Draws,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks a share of each example's tokens as BERT does (1810.04805), whole units at a time.

    Units are taken in a drawn order as long as they fit into the share, rounded, of the example's
    tokens; at least one is. Of the tokens taken 80 % become the mask, 10 % any piece, 10 % stay.

    Args:
        tokens: int32, those of B examples end to end.
        lengths_B: how many each has.
        may_mask_P: which may be masked.
        units_P: what is masked together: ascending numbers within an example.
        share: of the tokens that may be masked.
        mask_id: the mask.
        vocab_size: V, from which random pieces are drawn.
        draws: what they are a function of.

    Returns:
        The tokens after masking, and the targets: 1 + the token where one is asked for, else 0.
    """
    places = np.flatnonzero(may_mask_P)
    rows_M, units_M = _rows(lengths_B)[places], units_P[places]
    if not len(places):
        return tokens, np.zeros_like(tokens)
    new_M = np.append(True, (rows_M[1:] != rows_M[:-1]) | (units_M[1:] != units_M[:-1]))
    unit_M = np.cumsum(new_M) - 1  # numbered over all examples: U of them
    rows_U, sizes_U = rows_M[new_M], np.bincount(unit_M)
    wanted_B = np.bincount(rows_M, minlength=len(lengths_B))
    wanted_B = np.where(wanted_B > 0, np.maximum(_round(share * wanted_B), 1), 0)
    asked_M = _fill(rows_U, sizes_U, wanted_B, draws.bits("units", rows_U, units_M[new_M]))[unit_M]

    asked = places[asked_M]
    rows_A = rows_M[asked_M]
    places_A = asked - (np.cumsum(lengths_B) - lengths_B)[rows_A]
    fate_A = numpy_unit(draws.bits("fate", rows_A, places_A))
    pieces_A = draws.bits("piece", rows_A, places_A) % np.uint64(vocab_size)
    targets, masked = np.zeros_like(tokens), tokens.copy()
    targets[asked] = tokens[asked] + 1
    random_A = fate_A < _RANDOM
    masked[asked[random_A]] = pieces_A[random_A].astype(tokens.dtype)
    masked[asked[fate_A >= _RANDOM + _KEPT]] = mask_id
    return masked, targets


def _fill(
    rows_U: np.ndarray, sizes_U: np.ndarray, wanted_B: np.ndarray, bits_U: np.ndarray
) -> np.ndarray:
    """Takes units in a drawn order, leaving out those for which there is no room; bool [U]."""
    order = np.lexsort((bits_U, rows_U))
    first_B = np.searchsorted(rows_U[order], np.arange(len(wanted_B)))
    taken_U = np.zeros(len(rows_U), bool)
    left_B, waiting = wanted_B.copy(), order
    while len(waiting):
        # Room only gets smaller: what does not fit now never will.
        waiting = waiting[sizes_U[waiting] <= left_B[rows_U[waiting]]]
        rows, total = rows_U[waiting], np.cumsum(sizes_U[waiting])
        starts = np.searchsorted(rows, rows)
        total -= (total - sizes_U[waiting])[starts]
        fits = total <= left_B[rows]
        taken_U[waiting[fits]] = True
        left_B -= np.bincount(rows[fits], sizes_U[waiting[fits]], len(left_B)).astype(left_B.dtype)
        waiting = waiting[~fits]
    # Where every unit is larger than what is wanted, take the first one.
    none_B = (left_B == wanted_B) & (wanted_B > 0)
    taken_U[order[first_B[none_B]]] = True
    return taken_U


def sentinels(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the ids of T5's sentinels, <extra_id_0> first, int32; empty without any."""
    pieces = ((_SENTINEL.fullmatch(tokenizer.piece(i)), i) for i in range(tokenizer.vocab_size))
    ids = sorted((int(match[1]), token_id) for match, token_id in pieces if match)
    return np.array([token_id for _, token_id in ids], np.int32)


def span_counts(
    lengths_B: np.ndarray, *, share: float, mean_span: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many tokens of texts are corrupted, and in how many spans; int64 both.

    At least one token is corrupted, and of texts that have two at least one stays.
    """
    noise_B = np.clip(_round(share * lengths_B), 1, np.maximum(lengths_B - 1, 1))
    noise_B = np.where(lengths_B > 0, noise_B, 0)
    most_B = np.minimum(noise_B, np.maximum(lengths_B - noise_B, 1))
    return noise_B, np.minimum(np.maximum(_round(noise_B / mean_span), 1), most_B)


def corrupt_spans(
    tokens: np.ndarray,
    lengths_B: np.ndarray,
    *,
    is_text_P: np.ndarray,
    share: float,
    mean_span: float,
    sentinel_ids: np.ndarray,
    end_id: int,
    draws: Draws,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes spans out of texts, for a T5 to write (1910.10683, section 3.1.4).

    The source keeps a sentinel for each span; the target has them again, each before the tokens of
    its span, and the end. Lengths of spans, and of what stays between them, are drawn uniformly
    among all that add up; a text may begin and end with a span, which T5's own masks always do at
    the end, so that of a short text they would take the end alone.

    Args:
        tokens: int32, those of B examples end to end; text tokens of one stand together.
        lengths_B: how many each has.
        is_text_P: which may be corrupted.
        share: of the text.
        mean_span: tokens of a span.
        sentinel_ids: see `sentinels`; at least as many as `span_counts` gives.
        end_id: ends a target.
        draws: what they are a function of.

    Returns:
        The tokens of sources and targets, each example's source first; where they are of a target,
        bool; the new lengths_B.
    """
    rows_P = _rows(lengths_B)
    places = np.flatnonzero(is_text_P)
    texts_B = np.bincount(rows_P[places], minlength=len(lengths_B))
    noise_B, spans_B = span_counts(texts_B, share=share, mean_span=mean_span)
    kept, noise = _stretches(texts_B, noise_B, spans_B, draws=draws)
    rows, spans = (np.concatenate(both) for both in zip(kept, noise, strict=True))
    is_noise = np.repeat([False, True], [len(kept[0]), len(noise[0])])
    order = np.lexsort((is_noise, spans, rows))  # what stays, a span, what stays, a span, ...
    noise, spans = places[is_noise[order]], spans[order][is_noise[order]]
    span_of_row = np.stack([rows_P[noise], spans])
    first = np.append(True, (span_of_row[:, 1:] != span_of_row[:, :-1]).any(axis=0))[: len(noise)]
    marks, mark_ids = noise[first], sentinel_ids[spans[first]]
    stays = np.setdiff1d(np.arange(len(tokens)), noise)
    count = len(lengths_B)
    # token, example, whether of its target, place, and whether behind a sentinel at that place
    columns = [
        (tokens[stays], rows_P[stays], 0, stays, 1),
        (mark_ids, rows_P[marks], 0, marks, 0),
        (mark_ids, rows_P[marks], 1, marks, 0),
        (tokens[noise], rows_P[noise], 1, noise, 1),
        (np.full(count, end_id), np.arange(count), 1, np.full(count, len(tokens)), 1),
    ]
    token, row, side, place, behind = (
        np.concatenate([np.broadcast_to(part[i], len(part[0])) for part in columns])
        for i in range(5)
    )
    order = np.lexsort((behind, place, side, row))
    new_lengths_B = np.bincount(row, minlength=count)
    return token[order].astype(np.int32), side[order] > 0, new_lengths_B


def _stretches(
    texts_B: np.ndarray, noise_B: np.ndarray, spans_B: np.ndarray, *, draws: Draws
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Draws lengths: the example and the number of the span of each token that stays, which is the
    span behind it, and of each that goes."""
    # What stays before the first span and behind the last may be nothing: it is drawn with a token
    # more on either side, which are dropped.
    around_B = np.where(spans_B > 0, texts_B - noise_B + 2, 0)
    rows, spans, places = _parts(around_B, spans_B + 1, draws, "kept")
    inside = (places > 0) & (places < around_B[rows] - 1)
    return (rows[inside], spans[inside]), _parts(noise_B, spans_B, draws, "noise")[:2]


def _parts(
    totals_B: np.ndarray, parts_B: np.ndarray, draws: Draws, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts stretches of items into parts of one or more: row, part and place of each item."""
    rows, firsts_B = _rows(totals_B), np.cumsum(totals_B) - totals_B
    places = np.arange(len(rows)) - firsts_B[rows]
    bits = draws.bits(name, rows, places)
    bits[places == 0] = 0  # a stretch starts a part; further starts are the smallest draws
    order = np.lexsort((places > 0, bits, rows))
    starts = np.zeros(len(rows), np.int64)
    starts[order[places < parts_B[rows]]] = 1
    total = np.cumsum(starts)
    return rows, total - total[firsts_B[rows]], places


def _rows(lengths_B: np.ndarray) -> np.ndarray:
    """Returns the example of each token."""
    return np.repeat(np.arange(len(lengths_B)), lengths_B)


def _round(x: np.ndarray) -> np.ndarray:
    return np.floor(np.asarray(x, np.float64) + 0.5).astype(np.int64)
