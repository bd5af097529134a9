"""Word boundaries."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.corpus.words import word_stops


@given(st.text())
def test_words_tile_any_text(text):
    stops = list(word_stops(text))
    assert stops == sorted(set(stops)) and (stops or [0])[-1] == len(text)


def test_chinese_words_are_found():
    text = "这家酒店的服务非常好"
    stops = [0, *word_stops(text)]
    words = [text[a:b] for a, b in itertools.pairwise(stops)]
    assert {"酒店", "服务", "非常"} <= set(words)
