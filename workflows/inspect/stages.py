"""Examples after each stage, as lines of plain text: what --mode=inspect prints.

Only rendering: the stages are called as training calls them. The marks:

    ⟦旧→新⟧    what a stage changed; ⟦→新⟧ it inserted, ⟦旧→⟧ it deleted
    【江泽民|person】    a span and its label
    很│好    the boundary of two tokens; ┃ that of template and text
    *江泽民    a token that the loss counts or, of tasks that don't predict tokens, one in a span
    ✂…✂    what is cut off, beyond layout.max_length
    ⏎ ⇥ ‹U+200B›    invisible characters
"""

import difflib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.batches.augmentation import Augmented, Augmenter, segmentation_draws
from input_pipeline.batches.template import Encoded, Encoder, Sampling
from input_pipeline.corpus import cleaning
from input_pipeline.corpus.normalization import Normalizer
from input_pipeline.examples import Examples
from input_pipeline.lazy import tf
from input_pipeline.records import Record
from input_pipeline.tokenizers.tokenization import Tokenizer

_SHOWN = 400  # characters of a text
_NAME = 17  # columns of a line's name
_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
_CUT = 20  # tokens shown of what is cut off

_Span = tuple[int, int, str]  # start, stop, label


def show_records(records: Sequence[Record], data: ConfigDict) -> Iterator[str]:
    """Yields lines on records as read: what recoding changes, and what cleaning drops.

    Args:
        records: some rows of the source; cleaning sees these only, not their copies elsewhere.
        data: config.data.
    """
    normalizer = Normalizer(data.normalization)
    recoded = [normalizer.record(record)[0] for record in records]
    cleaned = cleaning.clean(recoded, data.cleaning)
    reasons = {where: reason for reason, rows in cleaned.dropped.items() for where in rows}
    for before, after in zip(records, recoded, strict=True):
        labels = ", ".join(before.labels) or "without a label"
        yield _title(f"{before.where} · {labels}")
        for (name, old), (_, new) in zip(_texts(before), _texts(after), strict=True):
            spans = (before.spans, after.spans) if name == "text" else ((), ())
            if old:
                yield _line(name, mark_spans(old, spans[0]))
            if old != new:
                yield _line("  recoded", changes(old, new))
                yield _line("", mark_spans(new, spans[1]))
        reason = reasons.get(before.where)
        yield _line("cleaning", f"dropped: {reason}" if reason else "kept")
        yield ""


def _texts(record: Record) -> list[tuple[str, str]]:
    """Returns all texts of a record, each with its name."""
    turns = [(f"before, {role}", content) for role, content in json.loads(record.history or "[]")]
    choices = [(f"choice {number}", text) for number, text in enumerate(record.choices)]
    others = [("negative", text) for text in record.negatives]
    return [*turns, ("text", record.text), ("pair", record.pair), *choices, *others]


def show_examples(
    config: ConfigDict,
    examples: Examples,
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str],
    counted: tuple[Encoded, np.ndarray | None] | None = None,
) -> Iterator[str]:
    """Yields lines on the first examples of a split: each augmentation, tokens, and loss mask.

    Args:
        config: config.inspect names how many examples.
        examples: the training split.
        tokenizer: as in training.
        labels: class names, in order.
        counted: of tasks that make their tokens otherwise: what the examples become, one or more
            sequences each; and which of the tokens the loss counts, bool, flat, if it is about
            tokens.
    """
    count = min(config.inspect.examples, len(examples))
    if not count:
        return
    indices = np.arange(count)
    epochs_B, ids_B = np.zeros(count, np.int64), examples.ids_N[indices]
    augmenter = Augmenter(examples, config.augmentation, seed=config.seed)
    stages = [
        _stage(augmenter(tf.constant(indices), tf.constant(epochs_B), ops=ops), examples)
        for ops in (augmenter.ops[:last] for last in range(len(augmenter.ops) + 1))
    ]
    sampling = segmentation_draws(config.augmentation, config.seed, epochs_B, ids_B)
    if counted is None:
        tokens_B = _tokens(config, stages[-1], tokenizer, sampling)
    else:
        tokens_B = _counted_tokens(*counted, tokenizer)
    labelled, each = examples.labels_N is not None, len(tokens_B) // count
    for i in indices:
        label = labels[examples.labels_N[i]] if labelled else "no label"
        masked = labelled and examples.labels_N[i] < 0
        yield _title(f"example {ids_B[i]} · {'masked' if masked else label} · first epoch")
        for name in ("text", "pair"):
            if getattr(stages[0], name) is not None:
                yield from _augmented(name, stages, augmenter.ops, i)
        for name, texts_N in (("choice", examples.choices_N), ("negative", examples.negatives_N)):
            for text in () if texts_N is None else texts_N[i]:
                yield _line(name, mark_spans(text, ()))
        if examples.words is not None:
            stops = examples.words.row(i).tolist()
            words = (examples.texts_N[i][a:b] for a, b in itertools.pairwise([0, *stops]))
            yield _line("words", "│".join(map(_visible, words)))
        for named in tokens_B[i * each : (i + 1) * each]:
            yield _line(*named)
        if counted is None and labelled:
            yield _line("loss", "does not count" if masked else "counts")
        yield ""


def changes(before: str, after: str) -> str:
    """Returns `after` with what differs from `before` marked as ⟦before→after⟧."""
    old, new = before[:_SHOWN], after[:_SHOWN]
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    line = ""
    while blocks:
        tag, a, b, c, d = blocks.pop(0)
        following = [block[0] for block in blocks[:2]]
        swapped = following in (["equal", "insert"], ["equal", "delete"]) and tag not in following
        if swapped and tag != "equal" and blocks[0][2] - blocks[0][1] == 1:
            _, _, b, _, d = blocks[1]  # 后前 is clearer than two changes around 前
            blocks = blocks[2:]
        same = tag == "equal"
        line += _visible(new[c:d]) if same else f"⟦{_visible(old[a:b])}→{_visible(new[c:d])}⟧"
    return line + _rest(after)


def mark_spans(text: str, spans: Sequence[_Span]) -> str:
    """Returns `text` with its spans marked as 【text|label】."""
    marks = defaultdict(str)
    for start, stop, label in spans:
        marks[stop] = f"|{label}】{marks[stop]}"  # closes before others open
        marks[start] += "【"
    places = sorted({0, *(place for place in marks if place < _SHOWN), min(len(text), _SHOWN)})
    cuts = itertools.pairwise([*places, places[-1]])
    return "".join(marks[a] + _visible(text[a:b]) for a, b in cuts) + _rest(text)


class _Stage(NamedTuple):
    """B examples after some of the augmentations; `spans` are empty where there are none."""

    text: list[str]
    pair: list[str] | None
    spans: list[list[_Span]]


def _stage(augmented: Augmented, examples: Examples) -> _Stage:
    """Fetches what the graph made."""
    texts, pairs = (
        None if tensor is None else [text.decode() for text in tensor.numpy()]
        for tensor in (augmented.texts_B, augmented.pairs_B)
    )
    spans: list[list[_Span]] = [[] for _ in texts]
    if augmented.spans is not None:
        values_Sx3, splits = (part.numpy() for part in augmented.spans)
        for i, (first, last) in enumerate(itertools.pairwise(splits)):
            rows = values_Sx3[first:last].tolist()
            spans[i] = [(start, stop, examples.span_labels[k]) for start, stop, k in rows]
    return _Stage(texts, pairs, spans)


def _augmented(name: str, stages: Sequence[_Stage], ops: Sequence[str], i: int) -> Iterator[str]:
    """Yields a line on a text as it was, and one on each op that changed it."""
    texts = [getattr(stage, name)[i] for stage in stages]
    spans = [stage.spans[i] if name == "text" else [] for stage in stages]
    yield _line(name, mark_spans(texts[0], spans[0]))
    for op, (before, after) in zip(ops, itertools.pairwise(texts), strict=True):
        if before != after:
            yield _line(f"  {op}", changes(before, after))
    if texts[0] != texts[-1]:
        yield _line("  augmented", mark_spans(texts[-1], spans[-1]))
    elif ops:
        yield _line("  augmented", "(unchanged)")


def _tokens(
    config: ConfigDict, stage: _Stage, tokenizer: Tokenizer, sampling: Mapping[str, Sampling]
) -> list[tuple[str, str]]:
    """Returns a name and a line for the tokens of each example."""
    encoder = Encoder(tokenizer, config.data.template, max_length=config.layout.max_length)
    encoded = encoder(stage.text, stage.pair, sampling=sampling)
    # Each text alone and uncut, to show what is cut off, without the marks around it.
    whole = Encoder(tokenizer, "{text}", max_length=1 << 30)
    text_only = slice(len(tokenizer.start_ids), -len(tokenizer.end_ids) or None)
    fields = []
    for name in encoder.fields:
        drawn = {"text": sampling[name]} if name in sampling else {}
        uncut = whole(getattr(stage, name), sampling=drawn)
        fields.append([row[text_only].tolist() for row in _split(uncut)])
    around = encoder.around
    lines = []
    for i, tokens in enumerate(_split(encoded)):
        parts = [field[i] for field in fields]
        kept = _kept(tokens.tolist(), parts, around)
        line = _pieces(tokenizer, around[0])
        for name, ids, count, after in zip(encoder.fields, parts, kept, around[1:], strict=True):
            spans = stage.spans[i] if name == "text" else []
            marked = _in_spans(tokenizer, ids, getattr(stage, name)[i], spans)
            line += f"┃{_pieces(tokenizer, ids[:count], marked)}"
            if count < len(ids):
                line += f"✂{_pieces(tokenizer, ids[count:][:_CUT], marked[count:])}"
                line += f"… {len(ids) - count} tokens cut✂"
            line += f"┃{_pieces(tokenizer, after)}"
        drawn = any(side.chosen_B[i] for side in sampling.values())
        lines.append((f"{len(tokens)} {'drawn' if drawn else 'tokens'}", line))
    return lines


def _counted_tokens(
    encoded: Encoded, counts_P: np.ndarray | None, tokenizer: Tokenizer
) -> list[tuple[str, str]]:
    """Returns a name and a line for the tokens of each sequence, those that count marked."""
    lines = []
    for start, length in zip(encoded.starts_B, encoded.lengths_B, strict=True):
        here = slice(start, start + length)
        counts = [] if counts_P is None else counts_P[here].tolist()
        line = _pieces(tokenizer, encoded.tokens[here].tolist(), counts)
        marked = "" if counts_P is None else "\n" + _line("loss", f"{sum(counts)} marked *")
        lines.append((f"{length} tokens", line + marked))
    return lines


def _split(encoded: Encoded) -> list[np.ndarray]:
    """Returns the tokens of each sequence."""
    return np.split(encoded.tokens, np.cumsum(encoded.lengths_B)[:-1])


def _kept(tokens: list[int], parts: list[list[int]], around: list[list[int]]) -> tuple[int, ...]:
    """Returns how many tokens of each part are among `tokens`, within the template."""
    room = len(tokens) - sum(map(len, around))

    def joined(counts: tuple[int, ...]) -> list[int]:
        cut = (part[:count] for part, count in zip(parts, counts, strict=True))
        following = (ids + after for ids, after in zip(cut, around[1:], strict=True))
        return [*around[0], *itertools.chain.from_iterable(following)]

    ways = ((first, room - first)[: len(parts)] for first in range(room, -1, -1))
    return next(counts for counts in ways if joined(counts) == tokens)


def _in_spans(
    tokenizer: Tokenizer, ids: Sequence[int], text: str, spans: Sequence[_Span]
) -> list[bool]:
    """Returns which tokens reach into a span; none if their segmentation is drawn."""
    [(best, offsets)] = tokenizer.encode_with_offsets([text])
    if best != list(ids):
        return [False] * len(ids)
    return [any(start < b and a < stop for start, stop, _ in spans) for a, b in offsets]


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], marked: Iterable[bool] = ()) -> str:
    pieces = (_visible(tokenizer.piece(i)) for i in ids)
    flags = itertools.chain(marked, itertools.repeat(False))
    return "│".join("*" * flag + piece for piece, flag in zip(pieces, flags, strict=False))


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else _VISIBLE.get(c, f"‹U+{ord(c):04X}›") for c in text)


def _rest(text: str) -> str:
    return f"… {len(text) - _SHOWN:,} more" if len(text) > _SHOWN else ""


def _title(text: str) -> str:
    return f"── {text} ──"


def _line(name: str, text: str) -> str:
    return f"{name:<{_NAME}}{text}"
