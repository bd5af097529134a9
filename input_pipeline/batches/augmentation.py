"""Random changes of texts, drawn anew for each example in each epoch.

Here: the order of the ops that config.augmentation asks for, in the TensorFlow graph on a batch of
texts. Not here: what they do to arrays (augmentation_ops.py), the checks and tables behind them
(augmentation_tables.py), the draw of a segmentation (template.py), or anything random in the
model. What happens to a text is a function of (seed, epoch, example id) and of the corpus alone:
the batch, its size and order, a restart and the number of hosts change nothing.

Ops that move, drop or insert leave spans whole: what stands in a span stays, and the span moves
with it. Only `entity` changes what a span spells, for another mention of its label. Masks, sounds
and shapes keep the length and act inside spans too. What one op put in, no later one replaces.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.batches import augmentation_ops as ops_lib
from input_pipeline.batches import augmentation_tables as tables_lib
from input_pipeline.batches.augmentation_ops import Draws, Items
from input_pipeline.batches.augmentation_tables import (
    CHARACTER_OPS,
    IN_PLACE_OPS,
    PUNCTUATION,
    WORD_OPS,
)
from input_pipeline.batches.template import Sampling
from input_pipeline.examples import Examples
from input_pipeline.hashing import numpy_keys, numpy_unit, stream
from input_pipeline.lazy import tf

_SAMPLING_SIZE = 8  # best segmentations that one is drawn from; of no meaning with BPE
_SIMPLE_OPS = {
    "cutoff": ops_lib.cut,
    "swap": ops_lib.swap,
    "deletion": ops_lib.delete,
    "word_swap": ops_lib.swap,
    "word_deletion": ops_lib.delete,
}


class Augmented(NamedTuple):
    """B examples.

    Attributes:
        texts_B: UTF-8 strings.
        pairs_B: likewise the second texts, or None.
        spans: int32 [S, 3] of start, stop (characters) and label, and int64 row splits [B + 1]; or
            None.
    """

    texts_B: "tf.Tensor"
    pairs_B: "tf.Tensor | None"
    spans: "tuple[tf.Tensor, tf.Tensor] | None"


def segmentation_draws(
    augmentation: ConfigDict, seed: int, epochs_B: np.ndarray, ids_B: np.ndarray
) -> dict[str, Sampling]:
    """Returns the draws of segmentations of examples in an epoch, by 'text' and 'pair'."""
    if not augmentation.sampling_rate:
        return {}

    def draw(name: str) -> np.ndarray:
        return numpy_unit(numpy_keys(seed, epochs_B, ids_B, name))

    return {
        side: Sampling(
            (draw("share") < augmentation.share)
            & (draw(f"sampling{of}") < augmentation.sampling_rate),
            draw(f"segmentation{of}"),
            _SAMPLING_SIZE,
            augmentation.sampling_alpha,
        )
        for side, of in (("text", ""), ("pair", " of the pair"))
    }


class _Spans(NamedTuple):
    """Spans of a batch.

    Attributes:
        starts_S, stops_S: int64, places in their texts, or among all characters of the batch.
        rows_S: int64, their texts.
        items: which of the corpus, int64 [S], and the splits of the texts.
    """

    starts_S: "tf.Tensor"
    stops_S: "tf.Tensor"
    rows_S: "tf.Tensor"
    items: Items


class _Batch(NamedTuple):
    """What the ops on a batch share; R is B, or 2 B where examples have second texts.

    Attributes:
        indices_B: int64, which examples.
        texts_R: int64, which texts of the corpus.
        keys_R: uint64, of the examples; those of second texts differ in the lowest bit.
        active_R: bool, texts that are augmented; None is all.
    """

    indices_B: "tf.Tensor"
    texts_R: "tf.Tensor"
    keys_R: "tf.Tensor"
    active_R: "tf.Tensor | None"

    def bounds(self, splits: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
        """Returns where the texts start and stop in the corpus, int64 [R]."""
        return tf.gather(splits, self.texts_R), tf.gather(splits, self.texts_R + 1)


class Augmenter:
    """Augments the texts of one set of examples.

    A text becomes references to the characters, or words and then characters, of the corpus, which
    the ops rearrange; only the outcome is written as strings.

    Attributes:
        ops: names of the ops that are on, in the order applied.
    """

    def __init__(self, examples: Examples, augmentation: ConfigDict, *, seed: int):
        """Checks the configuration against the examples and builds the tables.

        Args:
            examples: the training split.
            augmentation: config.augmentation.
            seed: config.seed.

        Raises:
            ValueError: an op that these examples do not allow.
            FileNotFoundError: no lexicon of synonyms.
        """
        tables_lib.check(examples, augmentation)
        self.ops = tables_lib.active_ops(augmentation)
        self._config, self._seed = augmentation, seed
        self._num_examples, self._has_pairs = len(examples), examples.pairs_N is not None
        self._span_splits = None
        if examples.spans is not None:
            self._span_values = tf.constant(examples.spans.values.reshape(-1, 3), tf.int64)
            self._span_splits = tf.constant(examples.spans.splits_N1, tf.int64)
        if self.ops:
            self._ids_N = tf.constant(examples.ids_N, tf.int64)
            self._tables = tables_lib.build(examples, augmentation)
        else:
            self._texts = tf.constant(tables_lib.texts_of(examples), tf.string)

    def __call__(
        self,
        indices_B: "tf.Tensor",
        epochs_B: "tf.Tensor",
        *,
        ops: Sequence[str] | None = None,
    ) -> Augmented:
        """Returns examples as they are in an epoch.

        Args:
            indices_B: int64, which examples.
            epochs_B: int64, the epochs that they are drawn in.
            ops: only these of `self.ops`, for inspection; what an op draws stays the same.
        """
        size, texts_R = tf.size(indices_B, tf.int64), indices_B
        if self._has_pairs:
            texts_R = tf.concat([indices_B, indices_B + self._num_examples], 0)
        spans = None if self._span_splits is None else self._spans_of(indices_B)
        if self.ops:
            batch = self._batch(indices_B, epochs_B, texts_R)
            output_R, spans = self._run(batch, spans, self.ops if ops is None else ops)
        else:
            output_R = tf.gather(self._texts, texts_R)
        pairs_B = output_R[size:] if self._has_pairs else None
        if spans is None:
            return Augmented(output_R[:size], pairs_B, None)
        labels_S = tf.gather(self._span_values[:, 2], spans.items.refs)
        values_Sx3 = tf.cast(tf.stack([spans.starts_S, spans.stops_S, labels_S], 1), tf.int32)
        return Augmented(output_R[:size], pairs_B, (values_Sx3, spans.items.splits))

    def _batch(self, indices_B: "tf.Tensor", epochs_B: "tf.Tensor", texts_R: "tf.Tensor") -> _Batch:
        """Prepares the draws."""
        keys_R = ops_lib.example_keys(self._seed, epochs_B, tf.gather(self._ids_N, indices_B))
        active_R = None
        if self._config.share < 1:
            active_R = ops_lib.unit(ops_lib.mix(keys_R ^ stream("share"))) < self._config.share
        if self._has_pairs:
            keys_R = tf.concat([keys_R, keys_R ^ 1], 0)
            active_R = None if active_R is None else tf.tile(active_R, [2])
        return _Batch(indices_B, texts_R, keys_R, active_R)

    def _draws(self, name: str, batch: _Batch) -> Draws:
        """Returns the draws of an op for the items of its kind."""
        tables, splits, protected = self._tables, self._tables.splits, None
        if name in WORD_OPS:
            splits, protected = tables.words.splits, tables.words.covered
        elif name in CHARACTER_OPS and tables.spans is not None:
            protected = tables.spans.covered
        elif name == "entity":
            splits, protected = self._span_splits, tables.spans.entangled_S
        keys_R, (first_R, _) = ops_lib.mix(batch.keys_R ^ stream(name)), batch.bounds(splits)
        return Draws(keys_R, first_R, batch.active_R, protected, self._config[f"{name}_rate"])

    def _run(
        self, batch: _Batch, spans: _Spans | None, ops: Sequence[str]
    ) -> tuple["tf.Tensor", _Spans | None]:
        """Returns the texts [R] after `ops`, and the spans with their places in them."""
        tables, words = self._tables, self._tables.words
        splits = tables.splits if words is None else words.splits
        stretches = tuple(bound_R[:, None] for bound_R in batch.bounds(splits))
        if "mixing" in ops:
            stretches = self._mix(batch, splits, stretches)
        items = ops_lib.items_of(*stretches)
        if words is not None:
            for name in (op for op in WORD_OPS if op in ops):
                items = self._apply(name, items, batch)
            items = self._spell(items)
        for name in (op for op in CHARACTER_OPS if op in ops):
            items = self._apply(name, items, batch)
        if spans is not None:
            spans = self._follow(spans, items, batch)
            if "entity" in ops:
                items, spans = self._replace_entities(items, spans, batch)
        for name in (op for op in IN_PLACE_OPS if op in ops):
            items = self._apply(name, items, batch)
        if spans is not None:
            first_S = tf.gather(items.splits, spans.rows_S)
            starts_S, stops_S = spans.starts_S - first_S, spans.stops_S - first_S
            spans = spans._replace(starts_S=starts_S, stops_S=stops_S)
        codes = tf.gather(tables.codes, ops_lib.index_of(items.refs))
        ragged = tf.RaggedTensor.from_row_splits(codes, items.splits, validate=False)
        return tf.strings.unicode_encode(ragged, "UTF-8"), spans

    def _mix(
        self, batch: _Batch, splits: "tf.Tensor", stretches: Sequence["tf.Tensor"]
    ) -> tuple["tf.Tensor", "tf.Tensor"]:
        """Returns the stretches [R, 2] of a text's first half and another's second half."""
        draws, (starts_Rx1, limits_Rx1) = self._draws("mixing", batch), stretches
        labels = self._tables.labels
        count_R = tf.gather(labels.counts_N, batch.indices_B)
        place_R = tf.gather(labels.firsts_N, batch.indices_B) + ops_lib.below(draws.keys_R, count_R)
        # A masked example has no others of its label, and its place may be behind the last.
        place_R = tf.minimum(place_R, tf.size(labels.members, tf.int64) - 1)
        partners = batch._replace(texts_R=tf.gather(labels.members, place_R))
        other_Rx1, other_limit_Rx1 = (bound_R[:, None] for bound_R in partners.bounds(splits))
        hit_Rx1 = (draws.rows_hit() & (count_R > 0))[:, None]
        half_Rx1 = tf.where(hit_Rx1, (starts_Rx1 + limits_Rx1 + 1) // 2, limits_Rx1)
        other_Rx1 = tf.where(hit_Rx1, (other_Rx1 + other_limit_Rx1) // 2, other_limit_Rx1)
        starts_Rx2 = tf.concat([starts_Rx1, other_Rx1], 1)
        return starts_Rx2, tf.concat([half_Rx1, other_limit_Rx1], 1)

    def _apply(self, name: str, items: Items, batch: _Batch) -> Items:
        """Applies one of WORD_OPS to words, or another op to characters."""
        draws = self._draws(name, batch)
        if name in _SIMPLE_OPS:
            return _SIMPLE_OPS[name](items, draws)
        tables, words = self._tables, self._tables.words
        at_K, bits_K = draws.at(items, moving=name not in IN_PLACE_OPS)
        refs_K = tf.gather(items.refs, at_K)
        if name == "synonym":
            kinds_K = tf.gather(words.kinds, refs_K)
            return ops_lib.substitute(items, at_K, words.synonyms.draw(kinds_K, bits_K, refs_K))
        if name in ("homophone", "shape"):
            codes_K = tf.gather(tables.codes, refs_K)
            drawn_K = tables.choices[name].draw(codes_K, bits_K, refs_K)
            return ops_lib.substitute(items, at_K, drawn_K)
        if name == "mask":
            return ops_lib.substitute(items, at_K, tf.fill(tf.shape(at_K), ~tables.mask))
        if name == "punctuation":
            marks_K = ~(tables.marks + ops_lib.below(bits_K, len(PUNCTUATION)))
            return ops_lib.insert(items, at_K, marks_K)
        rows_K = tf.gather(items.rows, at_K)
        if name == "insertion":
            place_K, _ = ops_lib.pick(items.splits, rows_K, bits_K)
            return ops_lib.insert(items, at_K, ~ops_lib.index_of(tf.gather(items.refs, place_K)))
        # A synonym of one of the text's words, before another of them.
        texts_K = tf.gather(batch.texts_R, rows_K)
        place_K, some_K = ops_lib.pick(words.known_splits, texts_K, bits_K)
        some_K = ops_lib.where(some_K)
        at_K, bits_K, place_K = (tf.gather(x, some_K) for x in (at_K, bits_K, place_K))
        kinds_K = tf.gather(words.known_kinds, place_K)
        more_K = tf.bitwise.right_shift(bits_K, tf.constant(20, tf.uint64))  # bits not used so far
        none_K = tf.zeros_like(at_K)  # each of these has synonyms
        return ops_lib.insert(items, at_K, words.synonyms.draw(kinds_K, more_K, none_K))

    def _spell(self, items: Items) -> Items:
        """Returns the characters of words."""
        words, index = self._tables.words, ops_lib.index_of(items.refs)
        starts, lengths = tf.gather(words.starts, index), tf.gather(words.lengths, index)
        places = ops_lib.stretches(starts, starts + lengths)
        refs = tf.where(places < self._tables.size, places, ~places)
        return Items(refs, tf.gather(ops_lib.cumulative(lengths), items.splits))

    def _spans_of(self, indices_B: "tf.Tensor") -> _Spans:
        """Returns the spans of examples, with their places in their own texts."""
        low_B, high_B = (tf.gather(self._span_splits, indices_B + i) for i in (0, 1))
        items = ops_lib.items_of(low_B[:, None], high_B[:, None])
        values_Sx3 = tf.gather(self._span_values, items.refs)
        return _Spans(values_Sx3[:, 0], values_Sx3[:, 1], items.rows, items)

    def _follow(self, spans: _Spans, items: Items, batch: _Batch) -> _Spans:
        """Returns the spans with their places among `items`, all characters of the batch.

        The characters in spans are all there: no op so far takes any of them.
        """
        first_R, limit_R = batch.bounds(self._tables.splits)
        before_R = tf.cumsum(limit_R - first_R, exclusive=True)  # in the batch as it came
        own = items.refs + tf.gather(before_R - first_R, items.rows)
        places = tf.math.unsorted_segment_max(
            tf.range(tf.size(own, tf.int64)),
            tf.where(items.refs >= 0, own, -1),  # a negative segment is left out
            tf.reduce_sum(limit_R - first_R),
        )
        before_S = tf.gather(before_R, spans.rows_S)
        return spans._replace(
            starts_S=tf.gather(places, before_S + spans.starts_S),
            stops_S=tf.gather(places, before_S + spans.stops_S - 1) + 1,
        )

    def _replace_entities(self, items: Items, spans: _Spans, batch: _Batch) -> tuple[Items, _Spans]:
        """Puts mentions of the same label in the place of spans that overlap no other."""
        size, tables = tf.size(batch.indices_B), self._tables.spans
        active_B = None if batch.active_R is None else batch.active_R[:size]
        texts = _Batch(batch.indices_B, batch.indices_B, batch.keys_R[:size], active_B)
        at_K, bits_K = self._draws("entity", texts).at(spans.items, moving=True)
        labels_K = tf.gather(self._span_values[:, 2], tf.gather(spans.items.refs, at_K))
        mention_K, _ = ops_lib.pick(tables.label_splits, labels_K, bits_K)
        items, places = ops_lib.replace(
            items,
            tf.gather(spans.starts_S, at_K),
            tf.gather(spans.stops_S, at_K),
            firsts_K=tf.gather(tables.mention_firsts_S, mention_K),
            lengths_K=tf.gather(tables.mention_lengths_S, mention_K),
        )
        return items, spans._replace(starts_S=places(spans.starts_S), stops_S=places(spans.stops_S))
