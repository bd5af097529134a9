"""The same examples with their texts changed as they may come when a model is in use.

Here: the changes of config.eval.robustness, drawn by seed, on the host. They keep labels of whole
texts; where the answer is a place in the text or is to be written, it would change: see tasks/.
Not here: augmentation of training examples (augmentation.py), which draws its replacements from the
same tables (dictionaries.py); what a model predicts of changed texts (workflows/robustness.py).

    homophones           a share of the characters, for others of their sound; tones apart
    similar_shapes       a share of the characters that have such, for others in one component
    punctuation_width    full-width punctuation to half width; where most has that, the other way
    punctuation_dropped  none but within numbers and Latin words: 3.5
    width                Latin letters and digits to full width, and those of full width to half
    script               simplified to traditional characters, as Taiwan writes them; texts that are
                         traditional, the other way
    characters_dropped   a share of all
    repeated             the text twice
    first_half, last_half, first_characters

The blank of a cloze question stays: what is before and behind it is changed as a text of its own.
"""

import dataclasses
import operator
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from input_pipeline.batches import dictionaries
from input_pipeline.corpus.clue_formats import BLANK
from input_pipeline.corpus.normalization import Normalizer
from input_pipeline.corpus.words import word_stops
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.hashing import stream

# Of the characters that can be replaced or dropped; at least one of every text. Not measured on any
# source of errors: more than careful people leave, and still read without effort.
REPLACED = 0.1
DROPPED = 0.1
FIRST = 32  # characters, such as a preview shows

_ALPHANUMERIC = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_WIDE = "".join(chr(ord(character) + 0xFEE0) for character in _ALPHANUMERIC)
_OTHER_WIDTH = str.maketrans(_ALPHANUMERIC + _WIDE, _WIDE + _ALPHANUMERIC)
_MORE_MARKS = "~～"  # which Unicode takes for mathematics


def perturb(
    examples: Examples, name: str, *, seed: int, normalization: Sequence[str] = ()
) -> Examples:
    """Changes text and pair of every example; what a text becomes depends on seed, name and id.

    Args:
        examples: with labels of whole texts, or none. Choices and histories stay as they are.
        name: of PERTURBATIONS.
        seed: draws what is replaced or dropped.
        normalization: config.data.normalization, which changed texts go through as texts do that
            are predicted on: what it undoes does not reach the model.

    Returns:
        The same examples in the same order, with new words and features yet to be made. A text
        of which nothing would be left is not changed.

    Raises:
        ValueError: no such perturbation, or the examples have spans, which would move.
    """
    if name not in _CHANGES:
        raise ValueError(f"no perturbation {name!r}: choose from {', '.join(PERTURBATIONS)}")
    if examples.spans is not None:
        raise ValueError(
            f"the perturbation {name!r} would move the spans of these examples: perturb examples "
            "whose labels are of whole texts"
        )
    normalizer, parts = Normalizer(normalization), {}
    for side, (texts, words) in enumerate((("texts_N", "words"), ("pairs_N", "pair_words"))):
        if getattr(examples, texts) is not None:
            rows = zip(getattr(examples, texts), examples.ids_N.tolist(), strict=True)
            key = [seed % 2**64, stream(name) + side]
            changed = [_changed(text, name, [*key, id_], normalizer) for text, id_ in rows]
            parts[texts] = object_array(changed)
            if getattr(examples, words) is not None:
                parts[words] = Ragged.of([word_stops(text) for text in changed])
    return dataclasses.replace(examples.without_features(), **parts)


def differ(examples: Examples, others: Examples) -> np.ndarray:
    """Returns which examples differ in their text or pair from the others, bool [N]."""
    differs_N = examples.texts_N != others.texts_N
    if examples.pairs_N is not None:
        differs_N = differs_N | (examples.pairs_N != others.pairs_N)
    return differs_N.astype(bool)


def _changed(text: str, name: str, key: Sequence[int], normalizer: Normalizer) -> str:
    rng = np.random.default_rng(key)
    _, change = _CHANGES[name]
    changed = BLANK.join([change(part, rng) for part in text.split(BLANK)])
    if changed == text:  # also what was prepared another way
        return text
    return normalizer.text(changed).strip() or text


def _drawn(places: Sequence[int], share: float, rng: np.random.Generator) -> list[int]:
    """Draws a share of places, at least one; none of none."""
    count = max(round(share * len(places)), 1) if places else 0
    return rng.choice(places, count, replace=False).tolist() if count else []


def _replaced(
    table: Callable[[], dictionaries.Candidates], text: str, rng: np.random.Generator
) -> str:
    """Replaces characters by others that the table has for them."""
    candidates, characters = table(), list(text)
    places = [place for place, character in enumerate(text) if character in candidates]
    for place in _drawn(places, REPLACED, rng):
        choices = candidates[text[place]]
        characters[place] = choices[rng.integers(len(choices))]
    return "".join(characters)


def _characters_dropped(text: str, rng: np.random.Generator) -> str:
    dropped = set(_drawn(range(len(text)), DROPPED, rng))
    return "".join([character for place, character in enumerate(text) if place not in dropped])


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" or character in _MORE_MARKS


def _punctuation_dropped(text: str, rng: np.random.Generator) -> str:
    padded = f" {text} "
    kept = [
        character
        for left, character, right in zip(padded, text, padded[2:], strict=False)
        if not _is_mark(character) or (left in _ALPHANUMERIC and right in _ALPHANUMERIC)
    ]
    return "".join(kept)


def _recoded(there: Sequence[str], back: Sequence[str], text: str, rng: np.random.Generator) -> str:
    """Applies ops of normalisation, or those that lead back if these change more characters."""
    recoded = [Normalizer(ops).text(text) for ops in (there, back)]
    return max(recoded, key=lambda changed: sum(map(operator.ne, text, changed)))


_homophones = partial(_replaced, dictionaries.homophones)
_similar_shapes = partial(_replaced, dictionaries.similar_shapes)
_punctuation_width = partial(_recoded, ["halfwidth_punctuation"], ["fullwidth_punctuation"])
_script = partial(_recoded, ["traditional", "variants"], ["simplified"])

# What tables call the perturbations, and functions of a text and a generator.
_CHANGES: dict[str, tuple[str, Callable[[str, np.random.Generator], str]]] = {
    "homophones": (f"{100 * REPLACED:g} % homophones", _homophones),
    "similar_shapes": (f"{100 * REPLACED:g} % similar shapes", _similar_shapes),
    "punctuation_width": ("punctuation in the other width", _punctuation_width),
    "punctuation_dropped": ("no punctuation", _punctuation_dropped),
    "width": (
        "letters and digits in the other width",
        lambda text, _: text.translate(_OTHER_WIDTH),
    ),
    "script": ("the other script (simplified, traditional)", _script),
    "characters_dropped": (f"{100 * DROPPED:g} % of characters dropped", _characters_dropped),
    "repeated": ("the text twice", lambda text, _: 2 * text),
    "first_half": ("first half", lambda text, _: text[: (len(text) + 1) // 2]),
    "last_half": ("last half", lambda text, _: text[len(text) // 2 :]),
    "first_characters": (f"first {FIRST} characters", lambda text, _: text[:FIRST]),
}
PERTURBATIONS = {name: title for name, (title, _) in _CHANGES.items()}
