"""Windows: they cover long texts, fit the model, and keep what they hold whole."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.batches.template import Encoder
from input_pipeline.batches.windows import split, token_counts
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.tokenizers.loading import load_tokenizer

TOKENIZERS = Path(__file__).parents[2] / "fixtures/tokenizers"
KINDS = ("bert", "llama", "qwen2", "t5", "xlm_roberta")
TEXTS = st.text(st.sampled_from("我们在北京，龘😀﷽ab 12.\n\tＡé"), min_size=1, max_size=120)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: load_tokenizer(TOKENIZERS / kind) for kind in KINDS}


def examples_of(texts, *, pairs=None, spans=None, words=None) -> Examples:
    count = len(texts)
    return Examples(
        object_array(texts),
        np.arange(count, dtype=np.int32),
        7 + 3 * np.arange(count, dtype=np.int64),
        names_N=object_array([f"name {i}" for i in range(count)]),
        pairs_N=None if pairs is None else object_array(pairs),
        spans=None if spans is None else Ragged.of(spans, width=3),
        span_labels=() if spans is None else ("a", "b"),
        words=None if words is None else Ragged.of(words),
        leaked_N=np.arange(count) % 2 == 0,
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_windows_cover_every_text_in_order_and_fit_the_model(tokenizers, kind, data):
    tokenizer = tokenizers[kind]
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
    encoder = Encoder(tokenizer, "问：{pair}文：{text}", max_length=96)
    pairs = ["在北京" * data.draw(st.integers(0, 3)) for _ in texts]
    pair_tokens = int(token_counts(pairs, tokenizer).max())
    # Far above what one character of TEXTS needs, so that everything can be cut.
    room = min(pair_tokens + data.draw(st.integers(30, 60)), encoder.room)
    overlap = data.draw(st.integers(0, 12))
    windows = split(examples_of(texts, pairs=pairs), tokenizer, room=room, overlap=overlap)
    assert windows.ids_N.tolist() == list(range(len(windows)))
    for i, text in enumerate(texts):
        own = np.flatnonzero(windows.owners_N == 7 + 3 * i)
        starts = windows.starts_N[own]
        stops = starts + [len(windows.texts_N[w]) for w in own]
        assert starts[0] == 0 and stops[-1] == len(text)
        assert (starts[1:] <= stops[:-1]).all() and (np.diff(starts) > 0).all()
        assert (np.diff(stops) > 0).all()
        for w, start, stop in zip(own, starts, stops, strict=True):
            assert windows.texts_N[w] == text[start:stop]
            assert windows.pairs_N[w] == pairs[i] and windows.names_N[w] == f"name {i}"
            assert windows.labels_N[w] == i and windows.leaked_N[w] == (i % 2 == 0)
    sizes = token_counts(windows.texts_N, tokenizer) + token_counts(windows.pairs_N, tokenizer)
    assert (sizes <= room).all()
    encoded = encoder(windows.texts_N, windows.pairs_N)
    assert not encoded.cut_B.any()


@pytest.mark.parametrize("kind", ["bert", "llama"])
@settings(max_examples=60)
@given(data=st.data())
def test_spans_and_words_keep_their_characters(tokenizers, kind, data):
    text = data.draw(TEXTS)
    place = st.integers(0, len(text))
    bounds = data.draw(st.lists(st.tuples(place, place), max_size=5))
    spans = sorted({(min(b), max(b), i % 2) for i, b in enumerate(bounds) if b[0] != b[1]})
    words = [*sorted(data.draw(st.sets(st.integers(1, len(text))))), len(text)]
    words = sorted(set(words))
    examples = examples_of(["短", text], spans=[[(0, 1, 0)], spans], words=[[1], words])
    windows = split(examples, tokenizers[kind], room=30, overlap=8)
    kept = set()
    for w, (start, found) in enumerate(zip(windows.starts_N, windows.texts_N, strict=True)):
        stop = start + len(found)
        owned = windows.owners_N[w] == 10
        of_text = spans if owned else [(0, 1, 0)]
        held = [(a, b, c) for a, b, c in of_text if start <= a and b <= stop]
        shifted = [(a - start, b - start, c) for a, b, c in held]
        assert windows.spans.row(w).tolist() == [list(span) for span in shifted]
        kept |= set(held) if owned else set()
        stops = windows.words.row(w)
        assert stops[-1] == len(found) and (np.diff(stops) > 0).all()
        inner = {int(s) + int(start) for s in stops[:-1]}
        assert inner == {s for s in (words if owned else [1]) if start < s < stop}


def test_neighbours_share_about_the_overlap(tokenizers):
    text = "我们在北京，" * 40
    windows = split(examples_of([text]), tokenizers["bert"], room=50, overlap=16)
    stops = windows.starts_N + [len(t) for t in windows.texts_N]
    assert len(windows) == 7  # 50, then 34 more in each: 240 characters, a token each
    assert (stops[:-1] - windows.starts_N[1:] == 16).all()


def test_what_fits_stays_one_window_and_a_function_of_its_arguments(tokenizers):
    texts = ["我们在北京", "", "，" * 100]
    examples = examples_of(texts)
    one, two = (split(examples, tokenizers["bert"], room=40, overlap=4) for _ in range(2))
    assert one.texts_N[:2].tolist() == texts[:2] and one.owners_N[:2].tolist() == [7, 10]
    for field in dataclasses.fields(one):
        if isinstance(getattr(one, field.name), np.ndarray):
            assert np.array_equal(getattr(one, field.name), getattr(two, field.name))


def test_a_cut_that_adds_tokens_gives_smaller_windows(tokenizers):
    # LLaMA's SentencePiece puts a space before every text: windows behind the first have it too.
    text = "abc" * 60
    windows = split(examples_of([text]), tokenizers["llama"], room=20, overlap=0)
    assert token_counts(windows.texts_N, tokenizers["llama"]).max() <= 20
    assert "".join(windows.texts_N) == text


def test_no_room_is_refused_with_the_keys_to_set(tokenizers):
    bert = tokenizers["bert"]
    with pytest.raises(ValueError, match=r"config.data.overlap=40.*config.layout.max_length"):
        split(examples_of(["我" * 41]), bert, room=40, overlap=40)
    assert len(split(examples_of(["我" * 40]), bert, room=40, overlap=40)) == 1  # nothing is cut
    examples = examples_of(["我" * 99, "我"], pairs=["北" * 35, "北" * 39])
    with pytest.raises(
        ValueError, match="example 7 has 5 tokens beside its pair .*config.layout.max_length"
    ):
        split(examples, bert, room=40, overlap=8)
    assert len(split(examples.take(np.array([1])), bert, room=40, overlap=8)) == 1
