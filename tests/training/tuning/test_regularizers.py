"""Regularisers do what their papers say, the same in every layout and division of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from input_pipeline.corpus.preparation import load_split, prepare
from training.experiment import build
from training.sharding import put_batch
from training.state import TrainState, random_stream
from training.train_step import make_train_step
from training.tuning.regularizers import Passes, Place, Regularizers, first_weights
from workflows.train import train

ACTING = {
    "neftune": 5.0,
    "r3f": 1.0,
    "fgm": 0.3,
    "freelb": 0.3,
    "sam": 0.5,
    "mixout": 0.5,
    "l2_sp": 0.3,
    "child_tuning": 0.5,
    "mixup": 0.5,
}
TOGETHER = ("neftune", "fgm", "sam", "mixout", "l2_sp", "mixup")


@pytest.fixture(scope="module")
def built(make_config, tmp_path_factory):
    """Experiments by layout and microbatches, each with its first batch."""
    experiments = {}
    for layout, microbatches in (("pack", 1), ("pad", 1), ("pack", 2)):
        config, workdir = make_config(), tmp_path_factory.mktemp("built")
        config.layout.kind, config.train.microbatches = layout, microbatches
        config.model.head = "linear"
        prepared = prepare(config.data)
        examples = load_split(prepared, "train", limit=config.data.max_train_examples)
        experiment = build(config, workdir, prepared.labels, lambda line: None)
        experiment.pipeline.plan(examples)
        batch = next(experiment.pipeline.train(examples, first_example=0))
        experiments[layout, microbatches] = experiment, batch
    return experiments


def one_step(experiment, batch, *, step=3, **options):
    """Returns the gradients of the batch as the optimiser gets them, and the metrics."""
    regularize = common.get_config().regularize
    regularize.update(options)
    train_step = make_train_step(
        Regularizers(regularize, experiment.passes(), seed=0),
        optax.with_extra_args_support(optax.scale(-1.0)),
        learning_rate=1.0,
        schedule=lambda examples: dict.fromkeys(experiment.initial, 1.0),
        batch_size=experiment.config.data.batch_size,
        sam=regularize.sam,
    )
    # Weights that differ from the pretrained ones, so that a pull to these is felt.
    pretrained = experiment.put(experiment.initial)
    params = {path: value * 1.1 + 0.01 for path, value in pretrained.items()}
    backbone = {path: value for path, value in pretrained.items() if path not in experiment.fresh}
    state = TrainState(jnp.int32(step), jnp.int32(0), params, optax.EmptyState(), None, backbone)
    placed = put_batch(batch, experiment.mesh)
    after, metrics = jax.jit(train_step)(state, experiment.frozen, placed)
    gradients = jax.tree.map(lambda old, new: np.asarray(old - new), params, after.params)
    return gradients, {name: float(value) for name, value in metrics.items()}


def assert_alike(found, expected, *, tolerance=2e-4):
    largest = max(np.abs(value).max() for value in expected.values())
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=tolerance * largest, err_msg=path)


@pytest.mark.parametrize(
    "names",
    [TOGETHER, ("freelb",), *(pytest.param((name,), marks=pytest.mark.long) for name in ACTING)],
)
def test_regularised_gradients_are_those_of_any_layout_and_division(built, names):
    options = {name: ACTING[name] for name in names}
    packed, metrics = one_step(*built["pack", 1], **options)
    assert_alike(one_step(*built["pad", 1], **options)[0], packed)
    assert_alike(one_step(*built["pack", 2], **options)[0], packed)
    assert np.isfinite(list(metrics.values())).all()
    if names != ("r3f",):  # its noise of 1e-5 is within rounding
        plain, _ = one_step(*built["pack", 1])
        change = sum(np.abs(packed[path] - plain[path]).sum() for path in plain)
        assert change > 1e-3 * sum(np.abs(value).sum() for value in plain.values())


def test_what_is_random_differs_between_steps_and_not_between_calls(built):
    options = {name: ACTING[name] for name in ("neftune", "mixout", "child_tuning", "mixup")}
    draws = [one_step(*built["pack", 1], step=step, **options)[0] for step in (3, 3, 4)]
    path = "backbone/layer_0/mlp/up/kernel"
    np.testing.assert_array_equal(draws[0][path], draws[1][path])
    assert (draws[0][path] != draws[2][path]).mean() > 0.2


# A model that is simple enough to do by hand: the score of an example is the sum of its tokens'
# vectors times w, its loss half the squared distance to its label.
TOKENS = np.array([[1, 2, 3, 0], [4, 5, 0, 0]])
segments_RxL = np.array([[1, 1, 1, 0], [2, 2, 0, 0]])
BATCH = {
    "tokens_RxL": TOKENS,
    "segments_RxL": segments_RxL,
    "positions_RxL": np.array([[0, 1, 2, 0], [0, 1, 0, 0]]),
    "labels_B": np.array([1.0, -2.0], np.float32),
    "weights_B": np.array([1.0, 1.0], np.float32),
}
PLACE = Place(jnp.int32(0), jnp.int32(0))


def toy_params():
    rng = np.random.default_rng(0)
    table, vector = rng.normal(size=(6, 3)), rng.normal(size=3)
    return {"backbone/table": jnp.float32(table), "head/w": jnp.float32(vector)}


def toy_scores(params, batch, rng=None):
    embedded = params["backbone/table"][batch["tokens_RxL"]] + batch.get("noise_RxLxE", 0.0)
    states_BxE = jnp.stack([jnp.sum(embedded[segments_RxL == i + 1], axis=0) for i in range(2)])
    if "mix_B" in batch:
        mix = batch["mix_B"][:, None]
        states_BxE = mix * states_BxE + (1 - mix) * states_BxE[::-1]
    scores_B = states_BxE @ params["head/w"]
    return [{"scores_B": scores_B}]


def toy_loss(outputs, batch):
    squares_B = jnp.square(outputs["scores_B"] - batch["labels_B"]) / 2
    return jnp.sum(batch["weights_B"] * squares_B), jnp.sum(batch["weights_B"]), {}


def toy_embed(params, batch):
    return params["backbone/table"][batch["tokens_RxL"]]


def toy_apart(outputs, others, batch, logits):
    return jnp.sum(jnp.square(outputs["scores_B"] - others["scores_B"]))


def toy(outputs=toy_scores, **options):
    config = common.get_config().regularize
    config.update(options)
    return Regularizers(config, Passes(outputs, toy_loss, toy_apart, toy_embed), seed=0)


def slope_of(params, noise_RxLxE, fixed=BATCH):
    def loss(params, noise_RxLxE):
        return toy_loss(toy_scores(params, {**fixed, "noise_RxLxE": noise_RxLxE})[0], fixed)[0]

    return jax.grad(loss, (0, 1))(params, noise_RxLxE)


def by_example(x):
    """The norm of each example's part."""
    return [float(jnp.linalg.norm(x[segments_RxL == i + 1])) for i in range(2)]


def test_fgm_goes_along_each_examples_gradient_by_a_share_of_its_norm():
    params, zeros = toy_params(), jnp.zeros((2, 4, 3))
    (_, sums), gradients = toy(fgm=0.2).gradient(params, {}, BATCH, PLACE)
    clean, slope = slope_of(params, zeros)
    sizes, lengths = by_example(toy_embed(params, BATCH)), by_example(slope)
    change = np.zeros((2, 4, 3))
    for i in range(2):
        change[segments_RxL == i + 1] = 0.2 * sizes[i] / lengths[i] * slope[segments_RxL == i + 1]
    adversarial, _ = slope_of(params, jnp.float32(change))
    for path in params:
        expected = (clean[path] + adversarial[path]) / 2
        np.testing.assert_allclose(gradients[path], expected, rtol=1e-5, err_msg=path)
    assert float(sums["weight"]) == 2


def test_freelb_stays_within_its_radius_and_raises_the_loss():
    params, seen = toy_params(), []

    def watched(params, batch, rng):
        jax.debug.callback(lambda noise: seen.append(noise), batch["noise_RxLxE"], ordered=True)
        return toy_scores(params, batch)

    toy(watched, freelb=0.3).gradient(params, {}, BATCH, PLACE)
    jax.effects_barrier()
    sizes, losses = by_example(toy_embed(params, BATCH)), []
    for noise in seen:
        assert (np.divide(by_example(noise), sizes) <= 0.3 * (1 + 1e-5)).all()
        assert not noise[segments_RxL == 0].any()
        outputs = toy_scores(params, {**BATCH, "noise_RxLxE": noise})[0]
        losses.append(float(toy_loss(outputs, BATCH)[0]))
    assert len(losses) >= 3
    assert losses == sorted(losses)


def test_sam_is_the_gradient_at_the_top_of_its_radius():
    params = toy_params()
    batch = {name: np.stack([array] * 4) for name, array in BATCH.items()}  # 4 microbatches of 2
    step = make_train_step(
        toy(),
        optax.with_extra_args_support(optax.scale(-1.0)),
        learning_rate=1.0,
        schedule=lambda examples: dict.fromkeys(params, 1.0),
        batch_size=8,
        sam=0.1,
    )
    state = TrainState(jnp.int32(0), jnp.int32(0), params, optax.EmptyState())
    after, _ = step(state, {}, batch)
    slope, _ = slope_of(params, jnp.zeros((2, 4, 3)))  # a fourth of the batch is its first part
    length = optax.tree.norm(slope)
    climbed = jax.tree.map(lambda p, g: p + 0.1 * g / length, params, slope)
    expected, _ = slope_of(climbed, jnp.zeros((2, 4, 3)))
    for path, value in params.items():
        np.testing.assert_allclose(
            value - after.params[path], expected[path] / 2, rtol=1e-4, atol=1e-5
        )


def test_mixout_puts_entries_back_and_keeps_the_mean():
    params, start = {"backbone/k": jnp.full((50, 50), 3.0)}, {"backbone/k": jnp.full((50, 50), 1.0)}
    draws = [toy(mixout=0.75).weights(params, start, jnp.int32(i))["backbone/k"] for i in range(20)]
    assert set(np.unique(draws).tolist()) == {1.0, 9.0}  # 1 + (3 - 1) / 0.25
    assert np.mean(draws) == pytest.approx(3.0, abs=0.1)


def test_l2_sp_pulls_to_the_start_but_not_where_nothing_is_taught():
    params, start = toy_params(), {"backbone/table": jnp.ones((6, 3))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    rule = toy(l2_sp=0.5)
    pulled = rule.after(zeros, params, start, jnp.int32(0), jnp.array(True))
    expected = 0.5 * (params["backbone/table"] - 1)
    np.testing.assert_allclose(pulled["backbone/table"], expected, rtol=1e-6)
    assert not pulled["head/w"].any()
    idle = rule.after(zeros, params, start, jnp.int32(0), jnp.array(False))
    assert not idle["backbone/table"].any()


def test_child_tuning_drops_entries_of_the_backbone_alone():
    gradients = {"backbone/k": jnp.ones((100, 100)), "head/w": jnp.ones(100)}
    rule = toy(child_tuning=0.6)
    changed = rule.after(gradients, gradients, None, jnp.int32(0), jnp.array(True))
    assert set(np.unique(changed["backbone/k"]).round(5).tolist()) == {0.0, 2.5}
    assert (changed["backbone/k"] == 0).mean() == pytest.approx(0.6, abs=0.03)
    assert (changed["head/w"] == 1).all()


def test_neftune_is_uniform_within_the_papers_bound_and_spares_padding():
    seen = []

    def watched(params, batch, rng):
        jax.debug.callback(lambda noise: seen.append(noise), batch["noise_RxLxE"])
        return toy_scores(params, batch)

    for step in range(50):
        place = Place(jnp.int32(step), jnp.int32(0))
        toy(watched, neftune=5.0).gradient(toy_params(), {}, BATCH, place)
    jax.effects_barrier()
    noise = np.stack(seen)
    for number, count in ((1, 3), (2, 2)):
        bound = 5.0 / np.sqrt(count * 3)
        part = noise[:, segments_RxL == number]
        assert 0.95 * bound < np.abs(part).max() <= bound
        assert np.std(part) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert not noise[:, segments_RxL == 0].any()


def test_mixup_weighs_both_labels_by_the_shares_of_the_inputs():
    params = toy_params()
    (total, sums), _ = toy(mixup=1.0).gradient(params, {}, BATCH, PLACE)
    mix = toy(mixup=1.0)._mix(2, PLACE)
    assert mix[0] == mix[1] and 0 < mix[0] < 1
    scores = toy_scores(params, {**BATCH, "mix_B": mix})[0]["scores_B"]
    squares = jnp.square(scores[:, None] - BATCH["labels_B"]) / 2  # example, label
    expected = mix[0] * jnp.trace(squares) + (1 - mix[0]) * (squares.sum() - jnp.trace(squares))
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    assert float(sums["weight"]) == pytest.approx(2)


def test_r_drop_adds_a_fourth_of_its_weight_times_the_divergence_of_two_passes():
    def dropping(params, batch, rng):
        (outputs,) = toy_scores(params, batch)
        return [{"scores_B": outputs["scores_B"] + jax.random.normal(rng, (2,))}]

    (total, sums), _ = toy(dropping, r_drop=2.0).gradient(toy_params(), {}, BATCH, PLACE)
    rng = jax.random.fold_in(random_stream(0, "dropout", 0), 0)
    scores = [dropping(toy_params(), BATCH, key)[0] for key in (rng, jax.random.fold_in(rng, 1))]
    divergence = 2.0 / 4 * float(toy_apart(*scores, BATCH, None))
    assert float(sums["divergence"]) == pytest.approx(divergence, rel=1e-4)
    mean = np.mean([float(toy_loss(outputs, BATCH)[0]) for outputs in scores])
    assert float(total) == pytest.approx(mean + divergence, rel=1e-4)


def test_r3f_compares_with_noise_of_at_most_1e_5():
    params = toy_params()
    (_, sums), _ = toy(r3f=1e8).gradient(params, {}, BATCH, PLACE)
    reach = 1e-5 * float(jnp.abs(params["head/w"]).sum())
    largest = 1e8 * sum((count * reach) ** 2 for count in (3, 2))
    assert 0 < float(sums["divergence"]) <= largest


def test_first_weights_move_by_their_deviations_or_are_drawn_anew():
    rng = np.random.default_rng(0)
    params = {
        "backbone/layer_0/mlp/up/kernel": jnp.float32(rng.normal(size=(80, 80)) * 3),
        "backbone/layer_1/mlp/up/kernel": jnp.float32(rng.normal(size=(80, 80)) * 3),
        "backbone/layer_1/mlp/up/bias": jnp.ones(80),
        "backbone/layer_1/mlp_norm/scale": jnp.full(80, 4.0),
        "head/kernel": jnp.ones((80, 2)),
    }
    config = common.get_config().regularize
    config.update(noisy_tune=0.2)
    top = [path for path in params if "layer_1" in path]
    noisy = ["backbone/layer_0/mlp/up/kernel"]
    changed = first_weights(config, params, noisy, top, seed=0)
    difference = changed[noisy[0]] - params[noisy[0]]
    deviation = float(jnp.std(params[noisy[0]]))
    assert 0.09 * deviation < float(jnp.abs(difference).max()) <= 0.1 * deviation * 1.001
    assert float(jnp.std(changed[top[0]])) == pytest.approx(0.02, rel=0.05)
    assert not changed[top[1]].any() and (changed[top[2]] == 1).all()
    np.testing.assert_array_equal(changed["head/kernel"], params["head/kernel"])


def test_swa_is_the_mean_of_the_weights_from_its_start():
    params = {"w": jnp.zeros(3)}
    passes = Passes(
        lambda params, batch, rng: [{"w": params["w"]}],
        lambda outputs, batch: (outputs["w"].sum(), jnp.float32(1), {}),
    )
    step = make_train_step(
        Regularizers(common.get_config().regularize, passes, seed=0),
        optax.with_extra_args_support(optax.scale(-1.0)),
        learning_rate=1.0,
        schedule=lambda examples: dict.fromkeys(params, 1.0),
        batch_size=4,
        swa_from=10,
    )
    batch = {"weights_B": np.ones((1, 4), np.float32)}
    state = TrainState(jnp.int32(0), jnp.int32(0), params, optax.EmptyState(), params)
    weights = []
    for _ in range(7):
        state, _ = step(state, {}, batch)
        weights.append(float(state.params["w"][0]))
    # The third step ends after 12 examples, the first that ends later than the tenth began it.
    assert float(state.average["w"][0]) == pytest.approx(np.mean(weights[3:]), abs=1e-6)


REFUSED = {
    "fgm and freelb": {"regularize": {"fgm": 0.1, "freelb": 0.1}},
    "two averages": {"train": {"ema": 0.9, "swa_from": "50%"}},
    "r_drop compares two passes": {"regularize": {"r_drop": 1.0}},
    "dropout_samples=4 needs dropout": {"model": {"dropout_samples": 4}},
    "mixout needs trained weights": {"regularize": {"mixout": 0.5}, "model": {"init": "scratch"}},
    "l2_sp needs trained weights": {"regularize": {"l2_sp": 0.5}, "adapt": {"kind": "lora"}},
    "reinit_layers=9, but the model has": {"regularize": {"reinit_layers": 9}},
    "not trained": {"regularize": {"reinit_layers": 1}, "adapt": {"kind": "lora"}},
    "swa_from='200 steps' is after": {"train": {"swa_from": "200 steps"}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_act_is_refused_by_name(tiny_config, tmp_path, message):
    for group, values in REFUSED[message].items():
        tiny_config[group].update(values)
    tiny_config.model.head = "linear"
    with pytest.raises(ValueError, match=message):
        train(tiny_config, tmp_path)
