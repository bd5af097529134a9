"""Properties of pooling, the classifier and its head."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoder import Decoder
from models.heads import POOLINGS, ClassifierHead, Model, label_word_kernel, pool
from models.pretrained import load_pretrained

LENGTHS = [[4, 1], [7], []]
FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"


def batch_of(packed, num_examples, **more):
    names = ("tokens_RxL", "positions_RxL", "segments_RxL")
    batch = dict(zip(names, packed, strict=True)) | more
    types = {"types_RxL": np.zeros_like(packed[0]), "weights_B": np.ones(num_examples, np.float32)}
    return types | batch


def logits_of(model, params, packed, num_examples, **more):
    call = jax.jit(partial(model.apply, deterministic=True))
    return np.asarray(
        call({"params": params}, batch_of(packed, num_examples, **more))["logits_BxC"]
    )


def changed(model, **options):
    """The model with another head."""
    return model.clone(task_head=model.task_head.clone(**options))


ONE = batch_of([np.ones((1, 1), np.int32)] * 3, 1)


@pytest.fixture(scope="module")
def classifier(tiny):
    """A classifier of three classes on the tiny model, with a head that matters."""
    model = Model(tiny.config, ClassifierHead(3))
    params = jax.eval_shape(partial(model.init, deterministic=True), jax.random.key(0), ONE)
    head = {"kernel": jax.random.normal(jax.random.key(1), (32, 3)), "bias": jnp.arange(3.0)}
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, each) for each in (params["params"]["head"], head)
    ]
    assert shapes[0] == shapes[1]
    assert jax.tree.structure(params["params"]["backbone"]) == jax.tree.structure(tiny.params)
    return model, {"backbone": tiny.params, "head": head}


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_equals_a_loop(pack, kind):
    _, _, segments = pack(LENGTHS, 9)
    hidden = np.random.default_rng(0).normal(size=(*segments.shape, 5)).astype(np.float32)
    pooled = pool(hidden, segments, num_examples=4, kind=kind)
    for example in range(4):
        own = hidden[segments == example + 1]
        if len(own) == 0:
            expected = np.zeros(5)
        else:
            expected = {"first": own[0], "last": own[-1], "mean": own.mean(0)}[kind]
        np.testing.assert_allclose(pooled[example], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", POOLINGS)
def test_packed_and_padded_layouts_give_the_same_logits(classifier, pack, kind):
    model, params = classifier
    model = changed(model, pooling=kind)
    packed = pack(LENGTHS, 9)
    padded = pack([[4], [1], [7]], 12)
    np.testing.assert_array_equal(packed[0][packed[2] > 0], padded[0][padded[2] > 0])
    both = [logits_of(model, params, batch, 4)[:3] for batch in (packed, padded)]
    np.testing.assert_allclose(*both, rtol=0, atol=1e-4)


def test_examples_without_positions_give_finite_gradients(classifier, pack):
    model, params = classifier
    batch = pack([[], []], 6)

    def loss(params):
        found = model.apply({"params": params}, batch_of(batch, 2), deterministic=True)
        return found["logits_BxC"].sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert all(np.all(np.isfinite(leaf)) for leaf in gradients)


def test_a_fresh_head_starts_near_log_of_the_number_of_classes(tiny, pack):
    model = Model(tiny.config, ClassifierHead(3))
    batch = pack(LENGTHS, 9)
    init = jax.jit(partial(model.init, deterministic=True))
    params = init(jax.random.key(0), batch_of(batch, 3))["params"]
    logits = logits_of(model, params | {"backbone": tiny.params}, batch, 3)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(jax.nn.log_softmax(logits), -np.log(3), atol=0.1)
    assert np.any(params["head"]["kernel"] != 0)


def test_dropout_follows_its_rng_and_stops_when_deterministic(classifier, pack):
    model, params = classifier
    model, batch = changed(model, dropout=0.5), pack(LENGTHS, 9)

    @jax.jit
    def draw(seed):
        rngs = {"dropout": jax.random.key(seed)}
        call = {"deterministic": False, "rngs": rngs}
        return model.apply({"params": params}, batch_of(batch, 3), **call)["logits_BxC"]

    np.testing.assert_array_equal(draw(0), draw(0))
    assert np.any(draw(0) != draw(1))
    plain = logits_of(changed(model, dropout=0.0), params, batch, 3)
    np.testing.assert_array_equal(logits_of(model, params, batch, 3), plain)


@pytest.fixture(scope="module")
def fused(classifier):
    """The classifier with a head on 5 features, as it starts."""
    model, params = classifier
    model, batch = changed(model, num_features=5), ONE | {"features_BxK": np.ones((1, 5))}
    init = partial(model.init, deterministic=True)
    drawn = jax.jit(lambda: init(jax.random.key(0), batch)["params"]["head"]["feature_kernel"])()
    return model, params | {"head": params["head"] | {"feature_kernel": drawn}}


def test_a_fused_head_starts_as_the_encoder_alone(classifier, fused, pack):
    batch, features = pack(LENGTHS, 9), np.full((3, 5), 1e3, np.float32)
    assert fused[1]["head"]["feature_kernel"].shape == (5, 3)
    alone = logits_of(*classifier, batch, 3)
    np.testing.assert_array_equal(logits_of(*fused, batch, 3, features_BxK=features), alone)


def test_features_add_their_own_logits_to_their_own_example(classifier, fused, pack):
    model, params = fused
    batch, rng = pack(LENGTHS, 9), np.random.default_rng(0)
    features, kernel = rng.normal(size=(3, 5)), rng.normal(size=(5, 3))
    params = params | {"head": params["head"] | {"feature_kernel": kernel}}
    both = logits_of(model, params, batch, 3, features_BxK=features)
    expected = logits_of(*classifier, batch, 3) + features @ kernel
    np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-4)


def test_the_first_gradient_reaches_features_and_encoder_through_dropout(fused, pack):
    model, params = fused
    batch, features = pack(LENGTHS, 9), np.random.default_rng(0).normal(size=(3, 5))
    model = changed(model, dropout=0.5)

    def loss(params):
        call = {"deterministic": False, "rngs": {"dropout": rng}}
        found = model.apply({"params": params}, batch_of(batch, 3, features_BxK=features), **call)
        return -jax.nn.log_softmax(found["logits_BxC"])[:, 0].sum()

    rng = jax.random.key(0)
    gradients = jax.jit(jax.grad(loss))(params)
    assert np.all(gradients["head"]["feature_kernel"] != 0)
    assert np.any(gradients["backbone"]["embedder"]["embedding"] != 0)


@pytest.mark.parametrize(("takes", "gets"), [(5, None), (0, 5), (5, 4)])
def test_another_number_of_features_is_refused(fused, pack, takes, gets):
    model, params = changed(fused[0], num_features=takes), fused[1]
    features = {} if gets is None else {"features_BxK": np.ones((3, gets))}
    with pytest.raises(ValueError, match=f"{gets or 0} features per example.*takes {takes}"):
        logits_of(model, params, pack(LENGTHS, 9), 3, **features)


def test_label_words_start_from_the_language_models_logits(classifier, tiny, pack):
    model, params = classifier
    words = [[5], [11], [3, 8]]
    kernel = label_word_kernel(tiny.params["embedder"]["embedding"], words)
    head = {"kernel": kernel, "bias": np.zeros(3, np.float32)}
    batch = pack([[6]], 6)
    logits = logits_of(changed(model, pooling="last"), params | {"head": head}, batch, 1)[0]
    decoder = Decoder(tiny.config)

    @jax.jit
    def next_token_logits(params):
        hidden = decoder.apply(params, *batch)
        return decoder.apply(params, hidden[0, -1], method="logits")

    expected = np.asarray(next_token_logits({"params": tiny.params}))
    expected = [expected[5], expected[11], expected[[3, 8]].mean()]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("words", [[[5], []], [[5], [5]]])
def test_label_words_that_cannot_tell_labels_apart_are_refused(words):
    with pytest.raises(ValueError, match=r"config\.model\.label_words"):
        label_word_kernel(np.zeros((8, 4), np.float32), words)


@pytest.mark.parametrize("name", ["gemma3", "bert", "t5_v1_1"])
def test_noise_of_the_embeddings_acts_as_other_embeddings_do(name, pack):
    pretrained = load_pretrained(FAMILIES / name)
    tokens, positions, segments = pack([[4, 1], [7]], 9)
    tokens %= pretrained.config.vocab_size
    model = Model(pretrained.config, ClassifierHead(2))
    batch = batch_of((tokens, positions, segments), 3)
    params = {
        "backbone": pretrained.params,
        "head": {"kernel": np.ones((pretrained.config.width, 2), np.float32), "bias": np.zeros(2)},
    }
    rng, backbone = np.random.default_rng(0), pretrained.params
    table = backbone["embedder"]["embedding"]
    moved = table + rng.normal(size=table.shape).astype(np.float32) * table.std()
    scale = getattr(pretrained.config, "embedding_scale", 1.0)
    noise = scale * (moved - table)[tokens]
    others = {**backbone, "embedder": {**backbone["embedder"], "embedding": moved}}
    call = partial(model.apply, deterministic=True)
    found = call({"params": params}, {**batch, "noise_RxLxE": noise})["logits_BxC"]
    expected = call({"params": {**params, "backbone": others}}, batch)["logits_BxC"]
    plain = call({"params": params}, batch)["logits_BxC"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(found - plain).max() > 0.01
    np.testing.assert_allclose(
        model.apply({"params": params}, batch, method=Model.embed), scale * table[tokens], rtol=1e-6
    )


def test_samples_share_the_backbones_dropout_and_differ_before_the_head(classifier, pack):
    model, params = classifier
    batch = batch_of(pack(LENGTHS, 9), 4)

    def drawn(model, seed):
        rngs = {"dropout": jax.random.key(seed)}
        options = {"count": 3, "method": Model.samples, "rngs": rngs}
        return [part["logits_BxC"] for part in model.apply({"params": params}, batch, **options)]

    one, two, three = drawn(changed(model, dropout=0.5), 0)
    assert not np.allclose(one, two) and not np.allclose(two, three)
    one, two, three = drawn(model.clone(hidden_dropout=0.5), 0)
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, drawn(model.clone(hidden_dropout=0.5), 1)[0])
