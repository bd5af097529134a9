"""What augmentation has to know of the examples: checks, and tables as TensorFlow constants.

Here: what config.augmentation may ask of which examples, and the corpus as code points with all
that ops put in. Not here: the draws and the ops (augmentation_ops.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.batches import dictionaries
from input_pipeline.batches.augmentation_ops import Choices
from input_pipeline.examples import Examples, Ragged
from input_pipeline.lazy import tf

PUNCTUATION = ("，", "。", "；", "：", "？", "！")
MASK = "□"
WORD_OPS = ("synonym", "word_insertion", "word_swap", "word_deletion")
CHARACTER_OPS = ("cutoff", "swap", "insertion", "punctuation", "deletion")
IN_PLACE_OPS = ("homophone", "shape", "mask")
OPS = ("mixing", *WORD_OPS, *CHARACTER_OPS, "entity", *IN_PLACE_OPS)  # in the order applied


class SpanTables(NamedTuple):
    """The S spans of the corpus, those of one text end to end.

    Attributes:
        covered: bool, by character of the corpus: whether it stands in a span.
        entangled_S: bool, spans that overlap another.
        mention_firsts_S, mention_lengths_S: int64, characters of the corpus, sorted by label.
        label_splits: int64, the mentions of each label.
    """

    covered: "tf.Tensor"
    entangled_S: "tf.Tensor"
    mention_firsts_S: "tf.Tensor"
    mention_lengths_S: "tf.Tensor"
    label_splits: "tf.Tensor"


class WordTables(NamedTuple):
    """The words of the corpus, and behind them their synonyms.

    Attributes:
        splits: int64, of the texts.
        starts, lengths: int64, of words and synonyms among the code points.
        kinds: int32, of each word: a key of `synonyms`, 0 where it has none.
        synonyms: references to what can stand for a kind.
        known_kinds: int32, the kinds of those words alone that have synonyms.
        known_splits: int64, of the texts in them.
        covered: bool, words that reach into a span; None without spans.
    """

    splits: "tf.Tensor"
    starts: "tf.Tensor"
    lengths: "tf.Tensor"
    kinds: "tf.Tensor"
    synonyms: Choices
    known_kinds: "tf.Tensor"
    known_splits: "tf.Tensor"
    covered: "tf.Tensor | None"


class LabelTables(NamedTuple):
    """The examples of each label.

    Attributes:
        members: int64, examples sorted by label.
        firsts_N, counts_N: int64, where among them those with the label of an example are.
    """

    members: "tf.Tensor"
    firsts_N: "tf.Tensor"
    counts_N: "tf.Tensor"


class Tables(NamedTuple):
    """All of it.

    Attributes:
        codes: int32 code points: texts, second texts, and what ops put in.
        splits: int64, the texts and second texts in it.
        size: code points of the corpus; from there on is what ops put in.
        marks, mask: where PUNCTUATION and MASK are; int64.
        choices: of 'homophone' and 'shape', by code point.
        spans, words, labels: what the ops that are on need.
    """

    codes: "tf.Tensor"
    splits: "tf.Tensor"
    size: int
    marks: int
    mask: "tf.Tensor"
    choices: dict[str, Choices]
    spans: SpanTables | None
    words: WordTables | None
    labels: LabelTables | None


def active_ops(augmentation: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the ops whose rate is not 0, in the order applied."""
    return tuple(name for name in OPS if augmentation[f"{name}_rate"])


def texts_of(examples: Examples) -> list[str]:
    """Returns the texts, and behind them the second texts."""
    return [*examples.texts_N, *(() if examples.pairs_N is None else examples.pairs_N)]


def build(examples: Examples, augmentation: ConfigDict) -> Tables:
    """Makes the tables for what `check` has passed.

    Raises:
        ValueError: a package is missing, a lexicon is no lexicon, or no op can change anything.
        FileNotFoundError: no lexicon of synonyms.
    """
    ops, texts = active_ops(augmentation), texts_of(examples)
    splits = splits_of([len(text) for text in texts])
    size = int(splits[-1])
    parts = [*texts, *PUNCTUATION, MASK]
    sources = {"homophone": dictionaries.homophones, "shape": dictionaries.similar_shapes}
    choices, first = {}, size + len(PUNCTUATION) + 1
    for name in (name for name in sources if name in ops):
        candidates = sources[name]()
        counts = np.zeros(max(map(ord, candidates)) + 2, np.int64)  # the last one has none
        counts[[ord(character) for character in candidates]] = [*map(len, candidates.values())]
        choices[name] = Choices(tf.constant(splits_of(counts)), first)
        parts += ["".join(candidates[character]) for character in sorted(candidates)]
        first += int(counts.sum())
    spans = words = labels = covered = None
    if examples.spans is not None:
        spans, covered = _spans(examples.spans, splits)
        sparing = [op for op in ops if op in WORD_OPS + CHARACTER_OPS]
        if examples.pairs_N is None and sparing and len(covered) and covered.all():
            raise ValueError(
                f"augmentation.{sparing[0]}_rate={augmentation[f'{sparing[0]}_rate']} can change "
                "nothing: it spares spans, which cover these texts from end to end; set it to 0, "
                "or choose entity_rate, homophone_rate, shape_rate or mask_rate"
            )
    if set(ops) & set(WORD_OPS):
        lexicon = {}
        if {"synonym", "word_insertion"} & set(ops):
            lexicon = dictionaries.synonyms(augmentation.synonyms)
        rows = [side for side in (examples.words, examples.pair_words) if side is not None]
        words, synonyms = _words(rows, texts, lexicon, covered, first=first)
        parts += synonyms
    if "mixing" in ops:
        labels = _labels(examples.labels_N)
    codes = tf.constant(np.frombuffer("".join(parts).encode("utf-32-le"), np.int32))
    mask = tf.constant(size + len(PUNCTUATION), tf.int64)
    return Tables(codes, tf.constant(splits), size, size, mask, choices, spans, words, labels)


def splits_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the row splits, int64, of rows of `counts` items."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _spans(spans: Ragged, splits: np.ndarray) -> tuple[SpanTables, np.ndarray]:
    """Returns the tables of spans, and which characters of the corpus stand in one, bool."""
    values, counts = spans.values.reshape(-1, 3).astype(np.int64), np.diff(spans.splits_N1)
    offsets = np.repeat(splits[: len(counts)], counts)
    starts, stops = offsets + values[:, 0], offsets + values[:, 1]
    opened, closed = (np.bincount(edges, minlength=splits[-1] + 1) for edges in (starts, stops))
    covered = np.cumsum(opened - closed)[:-1] > 0
    order = np.argsort(starts, kind="stable")
    entangled = np.zeros(len(order), bool)
    furthest = np.maximum.accumulate(stops[order])
    entangled[order[1:]] = furthest[:-1] > starts[order[1:]]
    entangled[order[:-1]] |= starts[order[1:]] < stops[order[:-1]]
    mentions = np.argsort(values[:, 2], kind="stable")
    arrays = (covered, entangled, starts[mentions])
    arrays += (stops - starts)[mentions], splits_of(np.bincount(values[:, 2]))
    return SpanTables(*map(tf.constant, arrays)), covered


def _words(
    rows: Sequence[Ragged],
    texts: Sequence[str],
    lexicon: dictionaries.Candidates,
    covered: np.ndarray | None,
    *,
    first: int,
) -> tuple[WordTables, list[str]]:
    """Returns the tables of words, and the synonyms, which will stand from `first` on."""
    counts = np.concatenate([np.diff(side.splits_N1) for side in rows])
    splits = splits_of(counts)
    stops = np.concatenate([side.values for side in rows]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1]])[: len(stops)]
    starts[splits[:-1][counts > 0]] = 0
    numbers = {word: number for number, word in enumerate(lexicon, start=1)}
    kinds = np.zeros(len(stops), np.int32)
    if lexicon:
        columns = (np.repeat(np.arange(len(texts)), counts), starts, stops)
        words = zip(*(column.tolist() for column in columns), strict=True)
        spelled = (texts[row][start:stop] for row, start, stop in words)
        kinds = np.fromiter((numbers.get(word, 0) for word in spelled), np.int32, len(stops))
    used, kinds = np.unique(np.append(kinds, 0), return_inverse=True)
    kinds = kinds[:-1].astype(np.int32)  # 0 stays 0; a small table is a fast one
    candidates = list(lexicon.values())
    candidates = [candidates[number - 1] for number in used[1:].tolist()]
    places_of: dict[str, int] = {}  # each synonym stands in the table once
    entries = [places_of.setdefault(o, len(places_of)) for others in candidates for o in others]
    sizes = np.array([len(synonym) for synonym in places_of], np.int64)
    corpus = splits_of(stops - starts)
    lengths = np.concatenate([stops - starts, sizes])
    places = np.concatenate([corpus[:-1], first + splits_of(sizes)[:-1]])
    if covered is not None:
        total = splits_of(covered)
        covered = tf.constant(total[corpus[1:]] > total[corpus[:-1]])
    counts = [0, *map(len, candidates), 0]  # kind 0 has none, nor has the last
    entries = tf.constant([*entries, 0], tf.int32)  # never empty
    choices = Choices(tf.constant(splits_of(counts)), len(stops), entries)
    known = (kinds[kinds > 0], splits_of(kinds > 0)[splits])
    constants = map(tf.constant, (splits, places, lengths, kinds))
    return WordTables(*constants, choices, *map(tf.constant, known), covered), list(places_of)


def _labels(labels_N: np.ndarray) -> LabelTables:
    """Returns the tables of labels; a masked example has no other like it."""
    members = np.argsort(labels_N, kind="stable")
    low_N, high_N = (
        np.searchsorted(labels_N[members], labels_N, side=side) for side in ("left", "right")
    )
    counts_N = np.where(labels_N < 0, 0, high_N - low_N)
    return LabelTables(*map(tf.constant, (members, low_N, counts_N)))


def check(examples: Examples, augmentation: ConfigDict) -> None:
    """Raises ValueError for an op that needs what the examples do not have."""
    ops, paired = active_ops(augmentation), examples.pairs_N is not None
    spanned = examples.spans is not None and len(examples.spans.values) > 0
    labelled = examples.labels_N is not None and (examples.labels_N >= 0).any()
    problems = {}
    if examples.words is None or (paired and examples.pair_words is None):
        words = "needs the boundaries of words, which are not stored: set data.words='jieba'"
        problems = dict.fromkeys(WORD_OPS, words)
    if not spanned:
        problems["entity"] = "replaces spans, which these examples do not have: set it to 0"
    if not labelled:
        problems["mixing"] = "joins texts of one label, but these have no labels: set it to 0"
    if examples.spans is not None or paired:
        what = "pairs of texts" if paired else "spans"
        problems["mixing"] = f"joins halves of two texts, which does not suit {what}: set it to 0"
    for op in (op for op in ops if op in problems):
        raise ValueError(f"augmentation.{op}_rate={augmentation[f'{op}_rate']} {problems[op]}")
