"""Caches against whole sequences; greedy, drawn and searched tokens against what they should be."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoder import Decoder
from models.generation import Decoding, choose, generate, generate_batch
from models.pretrained import load_pretrained, open_checkpoint

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"
DECODERS = ("gemma2", "gemma3", "qwen3")  # caps, windows, ropes, norms, tied and untied heads


def counting(vocab_size: int, end_id: int):
    """A model that says one more than what it read, up to `end_id`; its cache counts the steps."""

    def step(steps, tokens_B):
        following_B = jnp.minimum(tokens_B + 1, end_id)
        return jax.nn.one_hot(following_B, vocab_size) * 10, steps + 1

    return step


def bigrams(seed: int, vocab_size: int):
    """A model whose logits depend on the last token and on how many came before."""
    table = jnp.array(np.random.default_rng(seed).normal(size=(8, vocab_size, vocab_size)) * 2)

    def step(place, tokens_B):
        return table[place[0], tokens_B], place + 1

    return step


@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_gives_the_logits_of_the_whole_sequence(name):
    """Prompts of uneven lengths, longer than the windows of those that have them."""
    folder = FAMILIES / name
    loaded = load_pretrained(folder, parts=open_checkpoint(folder).parts)
    model, rng = Decoder(loaded.config), np.random.default_rng(0)
    lengths_B, steps = np.array([11, 3, 7]), 4
    tokens_BxM = rng.integers(3, loaded.config.vocab_size, (3, 11 + steps)).astype(np.int32)
    variables = {"params": loaded.params}

    @jax.jit
    def whole(tokens_1xL):
        positions = jnp.arange(tokens_1xL.shape[1])[None]
        hidden = model.apply(variables, tokens_1xL, positions, jnp.ones_like(tokens_1xL))
        return model.apply(variables, hidden, method="logits")[0]

    @jax.jit
    def start(prompts_BxL):
        return model.apply(variables, prompts_BxL, lengths_B, length=steps, method="start")

    step = jax.jit(lambda cache, tokens_B: model.apply(variables, cache, tokens_B, method="step"))
    prompts_BxL = np.where(np.arange(11) < lengths_B[:, None], tokens_BxM[:, :11], 5)
    logits_BxV, cache = start(prompts_BxL)
    expected = [whole(tokens_BxM[b : b + 1, : n + steps]) for b, n in enumerate(lengths_B)]
    for place in range(steps):
        for b, n in enumerate(lengths_B):
            np.testing.assert_allclose(logits_BxV[b], expected[b][n - 1 + place], atol=1e-4)
        following_B = tokens_BxM[np.arange(3), lengths_B + place]
        logits_BxV, cache = step(cache, following_B)


def test_the_same_prompt_is_answered_alike_in_any_batch():
    loaded = load_pretrained(FAMILIES / "qwen3", parts=open_checkpoint(FAMILIES / "qwen3").parts)
    decoding = Decoding(max_tokens=6, end_ids=(1,), temperature=1.0, top_p=0.9)
    run = functools.partial(generate_batch, Decoder(loaded.config), decoding=decoding)
    run = jax.jit(run)
    tokens = np.array([[5, 9, 11, 0], [7, 8, 0, 0], [5, 9, 11, 12]], np.int32)
    keys = jax.vmap(jax.random.key)(jnp.array([3, 4, 5]))
    found, scores = run(loaded.params, tokens, np.array([3, 2, 4]), keys_B=keys)
    order = np.array([1, 2, 0])
    other, others = run(loaded.params, tokens[order], np.array([2, 4, 3]), keys_B=keys[order])
    np.testing.assert_array_equal(found[order], other)
    np.testing.assert_allclose(scores[order], others, rtol=1e-5)


def test_a_bidirectional_decoder_can_not_write():
    loaded = load_pretrained(FAMILIES / "gemma3_bidirectional")
    model = Decoder(loaded.config)
    with pytest.raises(ValueError, match="can't write"):
        decoding = Decoding(max_tokens=1, end_ids=(1,))
        ones = jnp.ones((1, 1), jnp.int32)
        generate_batch(model, loaded.params, ones, ones[0], decoding=decoding)


def test_generation_stops_when_all_have_ended_and_pads_behind():
    told = []

    def step(steps, tokens_B):
        jax.debug.callback(lambda steps: told.append(int(steps)), steps)
        return counting(9, 8)(steps, tokens_B)

    start = (jax.nn.one_hot(jnp.array([5, 7]), 9) * 10, 0)
    decoding = Decoding(max_tokens=20, end_ids=(8,))
    found, _ = jax.jit(lambda: generate(step, start, decoding))()
    jax.effects_barrier()
    assert found[:, :5].tolist() == [[5, 6, 7, 8, 0], [7, 8, 0, 0, 0]] and not found[:, 5:].any()
    assert sorted(told) == [0, 1, 2]
    either = Decoding(max_tokens=20, end_ids=(8, 6))
    assert generate(step, start, either)[0][:, :3].tolist() == [[5, 6, 0], [7, 8, 0]]
    short = Decoding(max_tokens=2, end_ids=(8,))
    assert generate(step, start, short)[0].tolist() == [[5, 6], [7, 8]]


def test_sampling_follows_temperature_top_k_top_p_and_key():
    logits_BxV = jnp.log(jnp.tile(jnp.array([0.1, 0.2, 0.3, 0.4]), (4000, 1)))
    keys_B = jax.random.split(jax.random.key(0), 4000)

    def shares(**options) -> np.ndarray:
        decoding = Decoding(max_tokens=1, end_ids=(), **options)
        found = choose(logits_BxV, decoding, keys_B=keys_B)
        return np.bincount(found, minlength=4) / len(logits_BxV)

    close = functools.partial(np.testing.assert_allclose, atol=0.03)
    close(shares(temperature=1.0), [0.1, 0.2, 0.3, 0.4])
    close(shares(temperature=1.0, top_k=2), [0, 0, 3 / 7, 4 / 7])
    close(shares(temperature=0.5), np.array([1, 4, 9, 16]) / 30)
    close(shares(temperature=1.0, top_p=0.65), [0, 0, 3 / 7, 4 / 7])
    close(shares(temperature=1.0, top_p=0.75), [0, 2 / 9, 3 / 9, 4 / 9])
    close(shares(temperature=1.0, top_p=0.01), [0, 0, 0, 1])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_best_of_all_sequences(seed, penalty):
    vocab_size, length, end = 4, 4, 0
    step = bigrams(seed, vocab_size)
    first_V = np.random.default_rng(seed).normal(size=vocab_size)

    def score(sequence):
        logits_V, total = first_V, 0.0
        for place, token in enumerate(sequence):
            total += float(jax.nn.log_softmax(jnp.array(logits_V))[token])
            if token != end and place + 1 < len(sequence):
                logits_V = step(jnp.array([place]), jnp.array([token]))[0][0]
        return total / len(sequence) ** penalty

    ended = [
        (*body, end)
        for size in range(length)
        for body in itertools.product(range(1, vocab_size), repeat=size)
    ]
    cut = list(itertools.product(range(1, vocab_size), repeat=length))
    best = max(ended + cut, key=score)
    decoding = Decoding(
        max_tokens=length, end_ids=(end,), pad_id=0, beams=64, length_penalty=penalty
    )
    start = (jnp.array(np.stack([first_V, first_V])), jnp.zeros(2, jnp.int32))
    found_BxT, scores_B = jax.jit(lambda: generate(step, start, decoding))()
    assert found_BxT[0].tolist() == [*best, *[0] * (length - len(best))]
    np.testing.assert_allclose(scores_B, score(best), rtol=1e-5)
