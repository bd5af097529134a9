"""Properties of models/decoder.py, attention.py and layers.py that need no reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention, layers
from models.backbone import layer_of, parameter_shapes
from models.decoder import Decoder
from models.layers import Rope

LENGTHS = [[9, 5, 4], [16]]


@jax.jit(static_argnums=0)
def logits_of(decoder, params, batch):
    hidden = decoder.apply({"params": params}, *batch)
    return decoder.apply({"params": params}, hidden, method="logits")


@pytest.fixture(scope="module")
def model(make_config, random_params):
    """A config of two layers and parameters for it."""
    config = make_config()
    return config, random_params(config)


def gradient(config, params, batch, **options):
    """Gradient of a sum over real positions in all parameters."""
    decoder = Decoder(config, **options)

    def loss(params):
        hidden = decoder.apply({"params": params}, *batch).astype(jnp.float32)
        return jnp.sum(jnp.sin(hidden) * (batch[2] > 0)[..., None])

    return jax.jit(jax.grad(loss))(params)


def test_changing_one_segment_leaves_the_others_bit_equal(hidden_of, pack):
    tokens, positions, segments = pack(LENGTHS, 20)
    changed = np.where(segments == 2, (tokens + 7) % 40, tokens)
    before, after = (hidden_of(each, positions, segments) for each in (tokens, changed))
    np.testing.assert_array_equal(before[segments != 2], after[segments != 2])
    assert np.all(np.any(before[segments == 2] != after[segments == 2], axis=-1))


def test_packed_equals_separate_rows(hidden_of, pack):
    tokens, positions, segments = pack(LENGTHS, 20)
    packed = hidden_of(tokens, positions, segments)
    for segment in range(1, segments.max() + 1):
        alone = tokens[segments == segment][None]
        expected = hidden_of(alone, np.arange(alone.shape[1])[None], np.ones_like(alone))
        np.testing.assert_allclose(packed[segments == segment], expected[0], rtol=0, atol=2e-5)


def test_order_of_segments_in_a_row_does_not_matter(hidden_of, pack):
    batch = pack([[6, 8]], 14)
    turned = [np.roll(each, 8, axis=1) for each in batch]
    moved = np.roll(hidden_of(*turned), -8, axis=1)
    np.testing.assert_allclose(hidden_of(*batch), moved, rtol=0, atol=2e-5)


def test_later_tokens_do_not_change_earlier_positions(hidden_of, pack):
    tokens, positions, segments = pack([[20]], 20)
    changed = tokens.copy()
    changed[0, 12] = 0
    before, after = (hidden_of(each, positions, segments)[0] for each in (tokens, changed))
    np.testing.assert_array_equal(before[:12], after[:12])
    assert np.all(np.any(before[12:] != after[12:], axis=-1))


def test_a_window_hides_what_is_further_away(make_config, random_params, pack):
    config = make_config(windows=(3, 3))
    tokens, positions, segments = pack([[12]], 12)
    changed = tokens.copy()
    changed[0, 2] = 0
    decoder = Decoder(config)
    params = random_params(config)
    batches = [(each, positions, segments) for each in (tokens, changed)]
    before, after = (logits_of(decoder, params, batch)[0] for batch in batches)
    # Two layers of window 3 carry a token at most four positions ahead.
    differs = np.any(before != after, axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(differs), [2, 3, 4, 5, 6])


@pytest.mark.parametrize("causal", [True, False])
def test_mask_equals_its_definition(pack, causal):
    _, positions, segments = pack([[4, 3], [6]], 8)
    mask = np.asarray(attention.attention_mask(positions, segments, window=2, causal=causal))
    for row in range(2):
        for query in range(8):
            for key in range(8):
                distance = positions[row, query] - positions[row, key]
                same = segments[row, query] == segments[row, key]
                near = 0 <= distance < 2 if causal else abs(distance) <= 1
                assert mask[row, query, key] == (same and near)


def test_attention_equals_its_definition_for_each_query_head():
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.normal(size=(2, length, heads, 8)).astype(np.float32)
        for length, heads in ((5, 6), (7, 2), (7, 2))
    )
    mask, bias = rng.random((2, 5, 7)) < 0.7, rng.normal(size=(1, 6, 5, 7)).astype(np.float32)
    mask[:, :, 0] = True
    found = attention.attend(query, key, value, mask, scale=0.5, cap=2.0, bias=bias)
    for row in range(2):
        for head in range(6):
            scores = 0.5 * query[row, :, head] @ key[row, :, head // 3].T
            scores = np.where(mask[row], 2 * np.tanh(scores / 2) + bias[0, head], -np.inf)
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            expected = weights @ value[row, :, head // 3]
            np.testing.assert_allclose(found[row, :, head], expected, rtol=0, atol=1e-5)


def test_attention_stays_exact_for_large_scores():
    query = jnp.full((1, 2, 1, 4), 1e3)
    mask = jnp.tril(jnp.ones((1, 2, 2), bool))
    value = jnp.arange(8.0).reshape(1, 2, 1, 4)

    def mixed(query):
        return attention.attend(query, query, value, mask, scale=1.0)

    np.testing.assert_allclose(mixed(query)[0, :, 0, 0], [0.0, 2.0])
    assert np.all(np.isfinite(jax.grad(lambda query: mixed(query).sum())(query)))


def test_all_padding_rows_give_finite_gradients(model, pack):
    gradients = jax.tree.leaves(gradient(*model, pack([[5, 3], []], 8)))
    assert all(np.all(np.isfinite(leaf)) for leaf in gradients)
    assert all(np.any(leaf != 0) for leaf in gradients)


def test_padding_does_not_change_gradients(model, pack):
    padded = gradient(*model, pack([[5, 3], []], 12))
    tight = gradient(*model, pack([[5, 3]], 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), padded, tight)


def test_remat_gives_the_same_parameters_and_gradients(model, pack):
    batch = pack([[5, 3]], 8)
    stored = gradient(*model, batch)
    for remat in layers.REMAT:
        recomputed = gradient(*model, batch, remat=remat)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stored, recomputed
        )


@pytest.mark.parametrize("narrow", [True, False])  # on CPUs, on accelerators
def test_bfloat16_computes_near_float32_with_float32_parameters(
    tiny, model, hidden_of, pack, monkeypatch, narrow
):
    monkeypatch.setattr(layers, "is_narrow", lambda dtype: narrow and dtype == jnp.bfloat16)
    jax.clear_caches()  # which know nothing of that
    batch = pack(LENGTHS, 20)
    decoder = Decoder(tiny.config, dtype=jnp.bfloat16)
    low = jax.jit(decoder.apply)({"params": tiny.params}, *batch)
    assert low.dtype == (jnp.float32 if narrow else jnp.bfloat16)
    untied = dataclasses.replace(tiny.config, tied=False)
    for each in (decoder, Decoder(untied, dtype=jnp.bfloat16)):
        params = {**tiny.params, "lm_head": {"kernel": tiny.params["embedder"]["embedding"].T}}
        logits = each.apply({"params": params}, low, method="logits")
        assert logits.dtype == jnp.float32
    high = hidden_of(*batch)
    assert np.abs(np.asarray(low, np.float32) - high).mean() < 0.03 * np.abs(high).mean()
    gradients = jax.tree.leaves(gradient(*model, batch, dtype=jnp.bfloat16))
    assert all(leaf.dtype == jnp.float32 and np.all(np.isfinite(leaf)) for leaf in gradients)


def test_a_token_outside_the_vocabulary_gives_nan(hidden_of, pack):
    tokens, positions, segments = pack([[3]], 3)
    for outside in (tokens + 64, tokens - 64):
        assert np.all(np.isnan(hidden_of(outside, positions, segments)))


def test_a_prompt_in_the_tree_is_read_by_ids_behind_the_vocabulary():
    embedder = layers.Embedder(vocab_size=4, size=2)
    table = {"embedding": jnp.arange(8.0).reshape(4, 2)}
    ids = jnp.array([1, 4, 5, 6, -1])
    plain = embedder.apply({"params": table}, ids)
    np.testing.assert_array_equal(plain[0], [2.0, 3.0])
    assert np.all(np.isnan(plain[1:]))
    prompted = {**table, "prompt": jnp.array([[7.0, 8.0], [9.0, 10.0]], jnp.bfloat16)}
    found = embedder.apply({"params": prompted}, ids)
    np.testing.assert_array_equal(found[:3], [[2.0, 3.0], [7.0, 8.0], [9.0, 10.0]])
    assert np.all(np.isnan(found[3:])) and found.dtype == jnp.float32
    gradient = jax.grad(lambda params: embedder.apply({"params": params}, ids[:3]).sum())(prompted)
    np.testing.assert_array_equal(gradient["embedding"][:, 0], [0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(gradient["prompt"], np.ones((2, 2)))


def test_dropout_acts_only_in_training_and_by_its_rng(make_config, random_params, pack):
    config = make_config(num_layers=1, windows=(0,), ropes=(Rope(base=1e4),))
    params, batch = random_params(config), pack([[8]], 8)

    @jax.jit(static_argnums=(0, 1))
    def hidden(decoder, deterministic, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return decoder.apply({"params": params}, *batch, deterministic=deterministic, rngs=rngs)

    decoder = Decoder(config, dropout=0.5, remat="layers")
    np.testing.assert_allclose(
        hidden(decoder, True, 0), hidden(Decoder(config), True, 0), atol=1e-5
    )
    np.testing.assert_array_equal(hidden(decoder, False, 0), hidden(decoder, False, 0))
    assert np.abs(hidden(decoder, False, 0) - hidden(decoder, False, 1)).max() > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "silu"},
        {"query_key_norm": False},
        {"post_norms": False},
        {"attention_cap": 0.05},
        {"logit_cap": 0.5},
        {"ropes": (Rope(base=1e2),)},
        {"ropes": (Rope(base=1e4, kind="linear", factor=2.0),)},
        {"bidirectional": True},
        {"embedding_scale": 1.0},
    ],
)
def test_each_option_changes_the_logits(make_config, random_params, pack, change):
    batch = pack([[8]], 8)
    one_layer = {"num_layers": 1, "windows": (0,), "ropes": (Rope(base=1e4),)}

    def logits(**change):
        config = make_config(**one_layer | change)
        return logits_of(Decoder(config), random_params(config), batch)

    assert np.abs(logits() - logits(**change)).max() > 1e-4


def test_logit_cap_bounds_logits(make_config, random_params, pack):
    config = make_config(logit_cap=0.5)
    logits = logits_of(Decoder(config), random_params(config), pack([[8]], 8))
    assert logits.dtype == jnp.float32 and np.abs(logits).max() <= 0.5


def test_heads_that_cannot_share_keys_evenly_are_rejected(make_config):
    with pytest.raises(ValueError, match="num_kv_heads must divide"):
        make_config(num_kv_heads=3)


def test_paths_name_their_layer(make_config):
    shapes = parameter_shapes(make_config())
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(shapes)
    ]
    assert "layer_0/attention/query/kernel" in paths and "embedder/embedding" in paths
    assert {layer_of(path) for path in paths} == {0, 1, None}
    assert layer_of("backbone/layer_13/mlp/up/kernel") == 13


def test_a_program_is_the_same_in_every_process(model, pack, monkeypatch):
    """A compile cache finds it again, however this process hashes."""
    config, params = model
    batch = pack([[4]], 6)

    def program(hash_of_a_rope):
        monkeypatch.setattr(Rope, "__hash__", hash_of_a_rope)
        apply = Decoder(config).apply  # a new method, or jax would return the same program
        return jax.jit(lambda *args: apply({"params": params}, *args)).lower(*batch).as_text()

    assert program(lambda rope: rope.base < 1e5) == program(lambda rope: rope.base > 1e5)
