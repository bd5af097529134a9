"""Augmentation: what is drawn, how often, and what the draw depends on."""

import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.augmentation import PUNCTUATION, augment

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MARKS = re.compile("[" + "".join(PUNCTUATION) + "]")


def run(texts, *, ids=None, epochs=None, seed=0, deletion=0.0, punctuation=0.0):
    ids = np.arange(len(texts)) if ids is None else np.asarray(ids)
    epochs = np.zeros(len(texts)) if epochs is None else np.asarray(epochs)
    out = augment(
        tf.constant(texts),
        tf.constant(ids, tf.int64),
        tf.constant(epochs, tf.int64),
        seed=seed,
        deletion_rate=deletion,
        punctuation_rate=punctuation,
    )
    return [text.decode() for text in out.numpy()]


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_rates_of_zero_leave_texts_as_they_are(texts):
    assert run(texts) == texts


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6), st.randoms())
def test_a_draw_does_not_depend_on_the_batch(texts, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    rates = {"deletion": 0.3, "punctuation": 0.3}
    whole = run(texts, ids=range(len(texts)), **rates)
    shuffled = run([texts[i] for i in order], ids=order, **rates)
    alone = [run([text], ids=[i], **rates)[0] for i, text in enumerate(texts)]
    assert whole == alone == [shuffled[order.index(i)] for i in range(len(texts))]


@settings(max_examples=30, deadline=None)
@given(TEXT.filter(len))
def test_deletion_keeps_a_subsequence_of_at_least_one_character(text):
    for rate in (0.5, 0.999):
        (kept,) = run([text], deletion=rate)
        rest = iter(text)
        assert kept and all(character in rest for character in kept)


@settings(max_examples=30, deadline=None)
@given(TEXT.filter(lambda text: not MARKS.search(text)))
def test_insertion_adds_nothing_but_marks(text):
    (more,) = run([text], punctuation=0.5)
    assert MARKS.sub("", more) == text


def test_rates_are_met():
    texts = ["汉" * 500] * 100  # 50,000 characters: the standard error of a rate of 0.1 is 0.0013
    kept = sum(map(len, run(texts, deletion=0.1)))
    assert kept / 50_000 == pytest.approx(0.9, abs=0.006)
    marks = "".join(run(texts, punctuation=0.2)).replace("汉", "")
    assert len(marks) / 50_000 == pytest.approx(0.2, abs=0.008)
    counts = [marks.count(mark) / len(marks) for mark in PUNCTUATION]
    assert counts == pytest.approx([1 / 6] * 6, abs=0.02)


def test_characters_places_and_examples_are_drawn_independently():
    kept = np.zeros((400, 100), bool)
    alphabet = [chr(0x4E00 + place) for place in range(100)]
    for row, text in enumerate(run(["".join(alphabet)] * 400, deletion=0.5)):
        kept[row, [alphabet.index(character) for character in text]] = True
    correlation = np.corrcoef(kept.T) - np.eye(100)
    assert abs(correlation).max() < 0.25  # standard deviation 0.05, 4,950 pairs
    assert abs(np.corrcoef(kept) - np.eye(400)).max() < 0.55  # standard deviation 0.1, 79,800 pairs


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": [1] * 8}, {"ids": range(8, 16)}])
def test_seed_epoch_and_id_each_change_the_draw(change):
    texts = ["这家酒店的服务非常好，房间也很干净，下次还会再来住。"] * 8
    first, second = run(texts, deletion=0.3), run(texts, deletion=0.3, **change)
    assert len(set(first)) == 8
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert second == run(texts, deletion=0.3, **change)


def test_deletion_does_not_move_insertion():
    """Each is drawn from a stream of its own: the marks stay where they were."""
    text = ["".join(chr(0x4E00 + place) for place in range(200))]
    (inserted,), (both,) = run(text, punctuation=0.2), run(text, punctuation=0.2, deletion=0.2)
    assert MARKS.findall(inserted) == MARKS.findall(both)
