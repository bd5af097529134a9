"""The n-gram floor: probabilities that sum to one, whatever the context, and what it learns."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.ngrams import UNICODE, CharacterNgrams

TEXTS = st.lists(st.text("人民日报新年", min_size=1, max_size=12), min_size=1, max_size=8)


@given(TEXTS, st.text("人民日报新x", max_size=6), st.integers(1, 4))
@settings(max_examples=60)
def test_probabilities_of_all_characters_sum_to_one(texts, context, order):
    model = CharacterNgrams(texts, order=order)
    before = model.log_probabilities([context])[0]
    following = "人民日报新年"
    logs = model.log_probabilities([context + character for character in following + "猫"]) - before
    known, unknown = np.exp(logs[:-1]).sum(), np.exp(logs[-1])
    assert np.isclose(known + (UNICODE - len(following)) * unknown, 1, rtol=1e-9)


@given(TEXTS, TEXTS)
@settings(max_examples=40)
def test_texts_are_scored_apart(texts, others):
    model = CharacterNgrams(texts)
    together = model.log_probabilities(others)
    apart = [model.log_probabilities([text])[0] for text in others]
    np.testing.assert_allclose(together, apart, rtol=1e-12)


def test_one_level_is_kneser_neys_formula():
    """Two orders by hand: 'ab', 'ab', 'ac': S stands for the start."""
    model = CharacterNgrams(["ab", "ab", "ac"], order=2)
    # Bigrams Sa 3, ab 2, ac 1: one is there once, one twice, D = 1 / (1 + 2).
    discount = 1 / 3
    # Unigrams count what precedes them: a, b and c one each; none twice, so the discount is 1/2.
    lower = (1 - 0.5 + 0.5 * 3 / UNICODE) / 3
    first = (3 - discount + discount * 1 * lower) / 3
    second = (1 - discount + discount * 2 * lower) / 3
    assert np.isclose(model.log_probabilities(["ac"])[0], np.log(first) + np.log(second))


def test_more_context_and_more_text_help():
    rng = np.random.default_rng(0)
    words = ["人民日报", "新年快乐", "今天", "天气", "很好", "我们", "北京", "发展经济"]
    texts = ["".join(rng.choice(words, 20)) for _ in range(120)]
    train, test = texts[:100], texts[100:]
    characters = sum(map(len, test))

    def bits(model: CharacterNgrams) -> float:
        return -model.log_probabilities(test).sum() / np.log(2) / characters

    found = [bits(CharacterNgrams(train, order=order)) for order in (1, 2, 5)]
    assert all(a > b for a, b in itertools.pairwise(found))
    assert bits(CharacterNgrams(train)) < bits(CharacterNgrams(train[:5]))
    # 8 words of 2.75 characters on average: 3 bits a word is the least there is.
    assert found[-1] == pytest.approx(3 / 2.75, rel=0.15)


def test_no_text_and_lone_surrogates_are_texts_too():
    model = CharacterNgrams(["人民", ""])
    assert np.isfinite(model.log_probabilities(["", "\ud800", "人民𠮷"])).all()
    assert model.log_probabilities([""])[0] == 0
    assert len(model.log_probabilities([])) == 0
