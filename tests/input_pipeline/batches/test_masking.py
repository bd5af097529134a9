"""Masks and corrupted spans: shares, words, what they are functions of, and that texts survive."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.batches.masking import (
    Draws,
    corrupt_spans,
    mask_tokens,
    sentinels,
    span_counts,
    word_of_tokens,
)
from input_pipeline.batches.template import Encoder
from input_pipeline.examples import Ragged
from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.vocabulary import train_tokenizer

MASK, END, VOCAB = 999, 1, 1000
SENTINELS = np.arange(998, 798, -1, dtype=np.int32)


def draws_of(count: int, *, seed: int = 0, epoch: int = 0, first: int = 0) -> Draws:
    return Draws(seed, np.full(count, epoch), np.arange(first, first + count))


@st.composite
def batches(draw):
    """Tokens of 1 to 6 examples, whose ends are marks; units of 1 to 4 tokens."""
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    tokens = rng.integers(10, 700, sum(lengths)).astype(np.int32)
    may = np.ones(len(tokens), bool)
    may[np.cumsum(lengths) - 1] = False
    units = np.concatenate([np.cumsum(rng.random(n) < 0.5) for n in lengths])
    return tokens, np.array(lengths), may, units


def mask(batch, draws, *, share: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    tokens, lengths, may, units = batch
    return mask_tokens(
        tokens,
        lengths,
        may_mask_P=may,
        units_P=units,
        share=share,
        mask_id=MASK,
        vocab_size=VOCAB,
        draws=draws,
    )


@given(batches(), st.floats(0.01, 0.9), st.integers(0, 3))
@settings(max_examples=100)
def test_whole_units_of_the_asked_share_are_masked(batch, share, seed):
    tokens, lengths, may, units = batch
    masked, targets = mask(batch, draws_of(len(lengths), seed=seed), share=share)
    assert (masked[targets == 0] == tokens[targets == 0]).all()
    assert (targets[targets > 0] == tokens[targets > 0] + 1).all()
    assert not targets[~may].any()
    for start, stop in zip(np.cumsum(lengths) - lengths, np.cumsum(lengths), strict=True):
        here = slice(start, stop)
        sizes, asked = {}, {}
        for unit, is_asked in zip(units[here][:-1], targets[here][:-1] > 0, strict=True):
            sizes[unit] = sizes.get(unit, 0) + 1
            asked.setdefault(unit, set()).add(bool(is_asked))
        assert all(len(found) == 1 for found in asked.values())  # all of a word or nothing
        if not sizes:
            continue
        wanted = max(1, int(np.floor(share * sum(sizes.values()) + 0.5)))
        total = int((targets[here] > 0).sum())
        assert total > 0
        if total > wanted:  # every unit is larger than what is wanted: one is masked
            assert min(sizes.values()) > wanted
            assert sum(True in found for found in asked.values()) == 1
        # What is left of the share has no room for any unit that was left out.
        left = [size for unit, size in sizes.items() if True not in asked[unit]]
        assert total >= wanted or all(size > wanted - total for size in left)


def test_single_tokens_are_masked_in_the_exact_share():
    lengths = np.array([100, 7, 3, 1, 200])
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    batch = (tokens, lengths, np.ones(len(tokens), bool), tokens)
    _, targets = mask(batch, draws_of(5))
    counts = np.add.reduceat(targets > 0, np.cumsum(lengths) - lengths)
    assert counts.tolist() == [15, 1, 1, 1, 30]


def test_of_the_masked_tokens_four_of_five_are_masks_and_a_tenth_stays():
    lengths = np.full(200, 500)
    tokens = np.full(lengths.sum(), 5, np.int32)
    batch = (tokens, lengths, np.ones(len(tokens), bool), np.arange(len(tokens)))
    masked, targets = mask(batch, draws_of(200))
    asked = masked[targets > 0]
    assert len(asked) == 200 * 75
    assert abs((asked == MASK).mean() - 0.8) < 0.015
    assert abs((asked == 5).mean() - 0.1) < 0.015
    other = asked[(asked != MASK) & (asked != 5)]
    assert len(np.unique(other)) > 700  # any piece


def test_masks_are_a_function_of_seed_epoch_and_id():
    lengths = np.full(6, 50)
    tokens = np.arange(300, dtype=np.int32)
    whole = (tokens, lengths, np.ones(300, bool), np.tile(np.arange(50), 6))
    masked, _ = mask(whole, draws_of(6))
    again, _ = mask(
        (tokens[150:], lengths[:3], whole[2][:150], whole[3][:150]), draws_of(3, first=3)
    )
    np.testing.assert_array_equal(masked[150:], again)  # whatever batch it comes in
    assert not np.array_equal(masked, mask(whole, draws_of(6, epoch=1))[0])
    assert not np.array_equal(masked, mask(whole, draws_of(6, seed=1))[0])
    assert not np.array_equal(masked[:50] == MASK, masked[50:100] == MASK)


@pytest.fixture(scope="module")
def tokenizer(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([text for text, _ in reviews], path, vocab_size=500)
    return load_tokenizer(path)


@given(st.lists(st.lists(st.text("这家酒店的房间很好 𠮷x", min_size=1, max_size=5), min_size=1)))
@settings(max_examples=60)
def test_tokens_are_of_the_word_in_which_they_start(tokenizer, texts):
    encoder = Encoder(tokenizer, "评论：{text}。", max_length=600)
    encoded = encoder(["".join(words) for words in texts], offsets=True)
    stops = Ragged.of([np.cumsum([len(word) for word in words]) for words in texts])
    units = word_of_tokens(encoded, stops)
    for words, start, count in zip(texts, encoded.starts_B, encoded.lengths_B, strict=True):
        of_character = [index for index, word in enumerate(words) for _ in word]
        for place in range(start, start + count):
            if encoded.fields[place] == 0:
                character = min(encoded.offsets[place, 0], len(of_character) - 1)
                assert units[place] == of_character[character]


def corrupt(tokens, lengths, is_text, draws, *, share=0.15, mean_span=3.0):
    return corrupt_spans(
        tokens,
        lengths,
        is_text_P=is_text,
        share=share,
        mean_span=mean_span,
        sentinel_ids=SENTINELS,
        end_id=END,
        draws=draws,
    )


@given(batches(), st.floats(0.05, 0.5), st.floats(1, 5), st.integers(0, 3))
@settings(max_examples=100)
def test_source_and_target_put_together_are_the_text(batch, share, mean_span, seed):
    tokens, lengths, is_text, _ = batch
    found, is_target, new_lengths = corrupt(
        tokens,
        lengths,
        is_text,
        draws_of(len(lengths), seed=seed),
        share=share,
        mean_span=mean_span,
    )
    noise, spans = span_counts(lengths - 1, share=share, mean_span=mean_span)
    np.testing.assert_array_equal(new_lengths, lengths + 2 * spans + 1)
    bounds = np.cumsum(new_lengths)[:-1]
    originals = np.split(tokens, np.cumsum(lengths)[:-1])
    parts = zip(np.split(found, bounds), np.split(is_target, bounds), strict=True)
    for i, (part, target) in enumerate(parts):
        assert (np.diff(target.astype(int)) >= 0).all()  # the source comes first
        source, written = part[~target].tolist(), part[target].tolist()
        assert written.pop() == END
        pieces: dict[int, list[int]] = {}
        for token in written:
            if token in SENTINELS:
                pieces[token] = []
            else:
                pieces[list(pieces)[-1]].append(token)
        assert list(pieces) == SENTINELS[: spans[i]].tolist()
        assert sum(map(len, pieces.values())) == noise[i]
        assert all(pieces.values())
        whole = [t for token in source for t in pieces.get(token, [token])]
        assert whole == originals[i].tolist()


def test_spans_are_a_function_of_seed_epoch_and_id_and_of_the_mean_length():
    lengths = np.full(4, 100)
    tokens = np.tile(np.arange(10, 110, dtype=np.int32), 4)
    is_text = np.ones(400, bool)
    found, _, new_lengths = corrupt(tokens, lengths, is_text, draws_of(4))
    assert new_lengths.tolist() == [100 + 2 * 5 + 1] * 4  # 15 tokens in 5 spans
    alone, _, _ = corrupt(tokens[:100], lengths[:1], is_text[:100], draws_of(1, first=2))
    np.testing.assert_array_equal(alone, found[2 * 111 : 3 * 111])
    other, _, _ = corrupt(tokens, lengths, is_text, draws_of(4, epoch=1))
    assert not np.array_equal(found, other)


def test_every_way_to_cut_is_equally_likely():
    """5 tokens of noise in 2 spans; 20 that stay before, between (at least one) and behind."""
    count = 4000
    tokens = np.tile(np.arange(10, 35, dtype=np.int32), count)
    found, is_target, _ = corrupt(
        tokens, np.full(count, 25), np.ones(len(tokens), bool), draws_of(count), share=0.2
    )
    whole = found.reshape(count, -1)
    target = whole[is_target.reshape(count, -1)].reshape(count, -1)
    second = np.argmax(target == SENTINELS[1], axis=1) - 1  # tokens of the first span
    np.testing.assert_allclose(np.bincount(second, minlength=5)[1:] / count, 0.25, atol=0.03)
    first = np.argmax(whole == SENTINELS[0], axis=1)  # tokens before it
    shares = np.arange(20, 0, -1) / 210  # as many ways for the other two stretches
    np.testing.assert_allclose(np.bincount(first, minlength=20) / count, shares, atol=0.02)


def test_sentinels_are_those_of_the_tokeniser(tokenizer):
    t5 = load_tokenizer(Path(__file__).parents[2] / "fixtures" / "tokenizers" / "t5")
    found = sentinels(t5)
    assert len(found) == 100 and found[0] == t5.vocab_size - 1
    assert [t5.piece(i) for i in found[:2]] == ["<extra_id_0>", "<extra_id_1>"]
    assert not len(sentinels(tokenizer))
