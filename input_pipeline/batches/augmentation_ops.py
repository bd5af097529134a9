"""What augmentation does with the characters or words of a batch, in the TensorFlow graph.

Here: draws by hashing, and the ops on flat integer arrays. An item, a character or a word, is a
reference: 0 or more is its index in the corpus; below, `~reference` is an index into a table of
what ops put in, which no later op changes. Not here: which ops, on which texts, and the tables
(augmentation.py, augmentation_tables.py).

Draws are SplitMix64 hashes (Steele, Lea, Flood, OOPSLA 2014) of the seed, the epoch, the example's
id, the op and the place of the item in its source text. R is the number of texts of the batch, I
that of items, K that of the items that an op changes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from input_pipeline.hashing import FIRST, GAMMA, SECOND, numpy_mix
from input_pipeline.lazy import tf


def mix(x: "tf.Tensor") -> "tf.Tensor":
    """Hashes uint64 to uint64: a step of SplitMix64."""
    x = x + tf.constant(GAMMA, tf.uint64)
    x = (x ^ _shift(x, 30)) * tf.constant(FIRST, tf.uint64)
    x = (x ^ _shift(x, 27)) * tf.constant(SECOND, tf.uint64)
    return x ^ _shift(x, 31)


def _shift(x: "tf.Tensor", bits: int) -> "tf.Tensor":
    return tf.bitwise.right_shift(x, tf.constant(bits, tf.uint64))


def unit(bits: "tf.Tensor") -> "tf.Tensor":
    """Returns float64 in [0, 1)."""
    return tf.cast(_shift(bits, 11), tf.float64) / 2.0**53


def below(bits: "tf.Tensor", counts: "tf.Tensor") -> "tf.Tensor":
    """Returns int64 in [0, counts) from the low half of `bits`; whether an op hits is in the high.

    Counts, below 2**31, may be int64 or a number.
    """
    low = tf.bitcast(tf.bitwise.bitwise_and(bits, tf.constant(2**32 - 1, tf.uint64)), tf.int64)
    return tf.bitwise.right_shift(low * counts, tf.constant(32, tf.int64))


def example_keys(seed: int, epochs_B: "tf.Tensor", ids_B: "tf.Tensor") -> "tf.Tensor":
    """Returns uint64 [B], of which all draws for an example derive."""
    (key,) = numpy_mix(np.array([seed % 2**64], np.uint64))
    keys_B = mix(tf.bitcast(epochs_B, tf.uint64) ^ key)
    return mix(keys_B ^ tf.bitcast(ids_B, tf.uint64))


class Items(NamedTuple):
    """The items of R texts end to end.

    Attributes:
        refs: int64 [I], references; see the module.
        splits: int64 [R + 1], where the texts start, and the last one stops.
        whole: whether they are all items of their texts, in order, as no op has touched them.
    """

    refs: "tf.Tensor"
    splits: "tf.Tensor"
    whole: bool = False

    @property
    def rows(self) -> "tf.Tensor":
        """The text of each item, int64 [I]; TensorFlow computes what is asked for twice once."""
        high_R = tf.range(tf.size(self.splits, tf.int64) - 1) * 2**32  # the low half only counts
        return tf.bitwise.right_shift(
            stretches(high_R, high_R + self.splits[1:] - self.splits[:-1]),
            tf.constant(32, tf.int64),
        )

    def take(self, index: "tf.Tensor") -> "Items":
        """Returns the items at `index`, which is increasing."""
        return Items(tf.gather(self.refs, index), bounds(index, self.splits))


class Draws(NamedTuple):
    """The draws of one op.

    Attributes:
        keys_R: uint64, of the example and the op.
        first_R: int64, the index in the corpus of the first item of each source text.
        active_R: bool, texts that are augmented; None is all.
        protected: bool, by index in the corpus: items that must stay where they are; None is none.
        rate: probability.
    """

    keys_R: "tf.Tensor"
    first_R: "tf.Tensor"
    active_R: "tf.Tensor | None"
    protected: "tf.Tensor | None"
    rate: float

    def places(self, items: Items) -> "tf.Tensor":
        """Returns a hash per item, uint64 [I], of its place in its source text."""
        start_R = tf.bitcast(_shift(self.keys_R, 2), tf.int64)  # leaves room to count
        if items.whole:  # what follows comes to the same, and takes longer
            counts = stretches(start_R, start_R + items.splits[1:] - items.splits[:-1])
        else:
            counts = tf.gather(start_R - self.first_R, items.rows) + items.refs
        return mix(tf.bitcast(counts, tf.uint64))

    def hits(self, items: Items, *, moving: bool) -> tuple["tf.Tensor", "tf.Tensor"]:
        """Draws items.

        Args:
            items: what to draw from.
            moving: whether the op would move or drop the item, which protected ones do not allow.

        Returns:
            bool [I], and the hashes behind it, uint64 [I].
        """
        bits = self.places(items)
        hit = bits < tf.constant(int(self.rate * 2.0**64), tf.uint64)
        if not items.whole or (moving and self.protected is not None):
            hit &= self.free(items.refs, moving=moving)
        if self.active_R is not None:
            hit &= tf.gather(self.active_R, items.rows)
        return hit, bits

    def at(self, items: Items, *, moving: bool) -> tuple["tf.Tensor", "tf.Tensor"]:
        """Returns where `hits` hit, int64 [K], and the hashes there, uint64 [K]."""
        hit, bits = self.hits(items, moving=moving)
        at_K = where(hit)
        return at_K, tf.gather(bits, at_K)

    def free(self, refs: "tf.Tensor", *, moving: bool) -> "tf.Tensor":
        """Returns which references an op may change, bool."""
        own = refs >= 0
        if not moving or self.protected is None:
            return own
        return own & ~tf.gather(self.protected, tf.maximum(refs, 0))

    def rows_hit(self) -> "tf.Tensor":
        """Draws texts: bool [R]."""
        hit_R = unit(self.keys_R) < self.rate
        return hit_R if self.active_R is None else hit_R & self.active_R


class Choices(NamedTuple):
    """What can stand for each of some keys: entries splits[key] to splits[key + 1] of a table.

    Attributes:
        splits: int64; the last key has no entry, nor has any beyond it.
        first: index of entry 0 among what references refer to.
        order: int32, the indices from `first` on of all entries; None is 0, 1, ...
    """

    splits: "tf.Tensor"
    first: int
    order: "tf.Tensor | None" = None

    def draw(
        self, keys_K: "tf.Tensor", bits_K: "tf.Tensor", otherwise_K: "tf.Tensor"
    ) -> "tf.Tensor":
        """Returns a reference for each key, or that of `otherwise_K` where it has no entry."""
        keys_K = tf.minimum(tf.cast(keys_K, tf.int64), tf.size(self.splits, tf.int64) - 2)
        entry_K, some_K = pick(self.splits, keys_K, bits_K)
        if self.order is not None:
            entry_K = tf.cast(tf.gather(self.order, entry_K), tf.int64)
        return tf.where(some_K, ~(self.first + entry_K), otherwise_K)


def items_of(starts_RxN: "tf.Tensor", limits_RxN: "tf.Tensor") -> Items:
    """Returns the items of the corpus from N stretches for each text."""
    refs = stretches(tf.reshape(starts_RxN, [-1]), tf.reshape(limits_RxN, [-1]))
    splits = cumulative(tf.reduce_sum(limits_RxN - starts_RxN, 1))
    return Items(refs, splits, whole=starts_RxN.shape[1] == 1)


def bounds(ordered: "tf.Tensor", values: "tf.Tensor") -> "tf.Tensor":
    """Returns how many of `ordered` lie below each value, int64."""
    return tf.searchsorted(ordered, values, out_type=tf.int64)


def pick(
    splits: "tf.Tensor", rows_K: "tf.Tensor", bits_K: "tf.Tensor"
) -> tuple["tf.Tensor", "tf.Tensor"]:
    """Draws an item of each row, int64 [K]; also returns whether it has any, bool [K]."""
    low_K = tf.gather(splits, rows_K)
    count_K = tf.gather(splits, rows_K + 1) - low_K
    return low_K + below(bits_K, count_K), count_K > 0


def index_of(refs: "tf.Tensor") -> "tf.Tensor":
    """Returns what references refer to, be it of the corpus or put in."""
    return tf.maximum(refs, ~refs)


def where(mask: "tf.Tensor") -> "tf.Tensor":
    """Returns the indices at which `mask` [I] is true, int64 [K]."""
    return tf.where(mask)[:, 0]


def cumulative(lengths: "tf.Tensor") -> "tf.Tensor":
    """Returns int64 [I + 1]: the sums of the first 0, 1, ... lengths."""
    return tf.concat([tf.zeros([1], tf.int64), tf.cumsum(lengths)], 0)


def stretches(starts: "tf.Tensor", limits: "tf.Tensor") -> "tf.Tensor":
    """Returns starts[0], ..., limits[0] - 1, starts[1], ..., int64."""
    return tf.ragged.range(starts, limits).values


def delete(items: Items, draws: Draws) -> Items:
    """Drops items; of each text at least one stays."""
    hit, _ = draws.hits(items, moving=True)
    start_R, length_R = items.splits[:-1], items.splits[1:] - items.splits[:-1]
    kept = bounds(where(~hit), items.splits)
    emptied = where((kept[1:] == kept[:-1]) & (length_R > 0))
    spared = tf.gather(start_R + below(draws.keys_R, length_R), emptied)
    hit = tf.tensor_scatter_nd_update(hit, spared[:, None], tf.zeros_like(spared, tf.bool))
    return items.take(where(~hit))


def swap(items: Items, draws: Draws) -> Items:
    """Exchanges items with their neighbours.

    Items are paired from the first or second of a text on, as drawn; the rate is that of a pair
    to be exchanged, and so of an item, but for an odd one at either end.
    """
    hit, _ = draws.hits(items, moving=True)
    rows = items.rows
    start_R = items.splits[:-1] + below(draws.keys_R, 2)
    places = tf.range(tf.size(hit, tf.int64)) - tf.gather(start_R, rows)
    free = draws.free(items.refs, moving=True)
    partner = tf.concat([free[1:] & (rows[1:] == rows[:-1]), tf.zeros_like(hit[:1])], 0)
    first = tf.cast(hit & partner & (tf.bitwise.bitwise_and(places, 1) == 0), tf.int64)
    second = tf.concat([tf.zeros_like(first[:1]), first[:-1]], 0)
    index = tf.range(tf.size(hit, tf.int64)) + first - second
    return Items(tf.gather(items.refs, index), items.splits)


def insert(items: Items, at_K: "tf.Tensor", refs_K: "tf.Tensor") -> Items:
    """Puts references in, each before the item at `at_K`, which is increasing."""
    zero, size = tf.zeros([1], tf.int64), tf.size(items.refs, tf.int64)[None]
    twice = stretches(tf.concat([zero, at_K], 0), tf.concat([at_K + 1, size], 0))
    places_K = at_K + tf.range(tf.size(at_K, tf.int64))  # the first of the two
    more = Items(tf.gather(items.refs, twice), items.splits + bounds(at_K, items.splits))
    return substitute(more, places_K, refs_K)


def cut(items: Items, draws: Draws) -> Items:
    """Drops one stretch of each text: `draws.rate` of it, and never all."""
    start_R, length_R = items.splits[:-1], items.splits[1:] - items.splits[:-1]
    wanted_R = tf.cast(length_R, tf.float64) * draws.rate + unit(draws.keys_R)
    wanted_R = tf.maximum(tf.minimum(tf.cast(wanted_R, tf.int64), length_R - 1), 0)
    if draws.active_R is not None:
        wanted_R = tf.where(draws.active_R, wanted_R, 0)
    start_R += below(draws.keys_R, length_R - wanted_R + 1)
    gone = stretches(start_R, start_R + wanted_R)
    if draws.protected is not None:
        refs = tf.gather(items.refs, gone)
        gone = tf.gather(gone, where(draws.free(refs, moving=True) | (refs < 0)))
    keep = tf.tensor_scatter_nd_update(
        tf.ones_like(items.refs, tf.bool), gone[:, None], tf.zeros_like(gone, tf.bool)
    )
    return items.take(where(keep))


def substitute(items: Items, at_K: "tf.Tensor", refs_K: "tf.Tensor") -> Items:
    """Puts references in place of the items at `at_K`."""
    refs = tf.tensor_scatter_nd_update(items.refs, at_K[:, None], refs_K)
    return Items(refs, items.splits)


def replace(
    items: Items,
    starts_K: "tf.Tensor",
    stops_K: "tf.Tensor",
    *,
    firsts_K: "tf.Tensor",
    lengths_K: "tf.Tensor",
) -> tuple[Items, Callable[["tf.Tensor"], "tf.Tensor"]]:
    """Replaces stretches of items, which do not overlap, by stretches of what ops can put in.

    Args:
        items: characters or words.
        starts_K, stops_K: the stretches, none of which is empty.
        firsts_K, lengths_K: what takes their place.

    Returns:
        The items, and a function from old places, which are not inside a stretch, to new ones.
    """
    order_K = tf.argsort(starts_K)
    starts_K, stops_K, firsts_K, lengths_K = (
        tf.gather(part_K, order_K) for part_K in (starts_K, stops_K, firsts_K, lengths_K)
    )
    zero, size = tf.zeros([1], tf.int64), tf.size(items.refs, tf.int64)
    growth = cumulative(lengths_K - (stops_K - starts_K))

    def places(old: "tf.Tensor") -> "tf.Tensor":
        return old + tf.gather(growth, bounds(starts_K, old))

    # Stretches of old items and of new ones, which are numbered behind the old, take turns.
    old_starts = tf.concat([zero, stops_K], 0)
    old_limits = tf.concat([starts_K, size[None]], 0)
    new_starts = size + tf.concat([firsts_K, zero], 0)
    new_limits = new_starts + tf.concat([lengths_K, zero], 0)
    index = stretches(
        tf.reshape(tf.stack([old_starts, new_starts], 1), [-1]),
        tf.reshape(tf.stack([old_limits, new_limits], 1), [-1]),
    )
    old_refs = tf.gather(items.refs, tf.minimum(index, size - 1))
    refs = tf.where(index < size, old_refs, ~(index - size))
    return Items(refs, places(items.splits)), places
