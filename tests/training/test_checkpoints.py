"""What is kept, what is refused, and that a failed write loses nothing."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.checkpoints import Checkpoints
from training.state import TrainState

META = {"labels": ["a", "b"], "best_value": None}


def state(step: int, size: int = 4) -> TrainState:
    rng = np.random.default_rng(step)
    params = {
        "backbone/layer_0/kernel": jnp.array(rng.normal(size=(size, 8)), jnp.float32),
        "head/kernel": jnp.array(rng.normal(size=(8, 2)), jnp.float32),
    }
    moments = {path: value + 1 for path, value in params.items()}
    return TrainState(jnp.int32(step), jnp.int32(8 * step), params, (moments,))


def like(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_state_and_meta_come_back_bit_equal(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(3, state(3), META)
    checkpoints.wait()
    assert_equal(checkpoints.restore(3, like(state(3))), state(3))
    assert_equal(checkpoints.restore_params(3, like(state(3).params)), state(3).params)
    assert checkpoints.meta(3) == META


def test_an_average_comes_back_and_a_run_that_wants_one_is_told_where_there_is_none(tmp_path):
    averaged = state(4)._replace(average={path: x * 2 for path, x in state(4).params.items()})
    checkpoints = Checkpoints(tmp_path / "c", keep_latest=2)
    checkpoints.save(3, state(3), META)
    checkpoints.save(4, averaged, META)
    checkpoints.wait()
    assert [checkpoints.has_average(step) for step in (3, 4)] == [False, True]
    assert_equal(checkpoints.restore(4, like(averaged)), averaged)
    found = checkpoints.restore_params(4, like(averaged.params), item="average")
    assert_equal(found, averaged.average)
    assert checkpoints.restore(4, like(state(4))).average is None
    with pytest.raises(ValueError, match=r"checkpoint 3 of .* set config\.train\.ema=0"):
        checkpoints.restore(3, like(averaged._replace(step=jnp.int32(3))))


@pytest.mark.parametrize(("sign", "best"), [(1, 2), (-1, 1)])
def test_the_latest_and_the_best_are_kept(tmp_path, sign, best):
    checkpoints = Checkpoints(tmp_path / "c", keep_latest=2)
    values = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: 0.8, 6: None}
    for step, value in values.items():
        metrics, ranks = ({"loss": value}, [sign * value]) if value else (None, ())
        checkpoints.save(step, state(step), META, metrics, ranks=ranks)
    checkpoints.close()
    again = Checkpoints(tmp_path / "c", read_only=True)
    assert again.resolve("best") == best
    assert again.resolve("latest") == 6
    assert again.resolve("5") == 5
    with pytest.raises(ValueError, match=rf"'4' is not in .* holds the steps \[{best}, 5, 6\]"):
        again.resolve("4")


def test_several_best_ones_are_kept_and_a_soup_has_them(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep_best=3)
    for step, value in enumerate((0.5, 0.9, 0.6, 0.8, 0.7, 0.1), start=1):
        checkpoints.save(step, state(step), META, {"a": value}, ranks=[value])
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "c").iterdir()) == [2, 4, 5, 6]


def test_a_rate_comes_back_and_the_state_of_another_optimizer_is_refused(tmp_path):
    reduced = state(3)._replace(rate=jnp.float32(0.25))
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(3, reduced, META)
    checkpoints.wait()
    assert_equal(checkpoints.restore(3, like(reduced)), reduced)
    more = reduced._replace(optimizer=(*reduced.optimizer, {"z": jnp.zeros(3)}))
    for other in (state(3), more):
        with pytest.raises(ValueError, match=r"state of another optimiser.*optimizer\.name"):
            checkpoints.restore(3, like(other))


def test_of_equals_the_second_rank_decides_and_then_the_earliest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    for step, loss in ((1, 0.7), (2, 0.6), (3, 0.6), (4, 0.7)):
        checkpoints.save(step, state(step), META, {"loss": loss}, ranks=[0.5, -loss])
    checkpoints.wait()
    assert checkpoints.best() == 2
    assert checkpoints.resolve("2") == 2


def test_meta_is_that_of_the_step_even_when_it_is_written_later(tmp_path):
    checkpoints, meta = Checkpoints(tmp_path / "c"), {"best_value": 0.5}
    checkpoints.save(1, state(1), meta)
    meta["best_value"] = 0.9
    checkpoints.wait()
    assert checkpoints.meta(1) == {"best_value": 0.5}


def test_a_full_disk_is_one_error_and_the_previous_checkpoint_survives(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state(1), META)
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # writes beyond fail, for real
    try:
        with pytest.raises(
            OSError, match=r"Steps \[1\] are intact. If the disk is full, free"
        ) as error:
            checkpoints.save(2, state(2, size=100_000), META)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in str(error.value)
    again = Checkpoints(tmp_path / "c")
    assert again.latest() == 1
    assert_equal(again.restore(1, like(state(1))), state(1))
    again.save(2, state(2), META)  # and there is nothing in the way of the next one
    again.wait()
    assert again.latest() == 2


def test_parameters_that_do_not_fit_are_listed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state(1), META)
    checkpoints.wait()
    wanted = like(state(1).params)
    wanted["head/bias"] = wanted.pop("head/kernel")
    wanted["backbone/layer_0/kernel"] = jax.ShapeDtypeStruct((5, 8), jnp.float32)
    with pytest.raises(ValueError, match="does not fit the config") as error:
        checkpoints.restore_params(1, wanted)
    for line in (
        "head/bias: missing in the checkpoint",
        "head/kernel: only in the checkpoint",
        "backbone/layer_0/kernel: (4, 8) in the checkpoint, (5, 8) in the model",
    ):
        assert line in str(error.value)


def test_an_integrated_checkpoint_is_replaced_by_the_next(tmp_path):
    for seed in (1, 2):
        checkpoints = Checkpoints(tmp_path / "c")
        checkpoints.save_params(state(seed).params, META)
        checkpoints.close()
    again = Checkpoints(tmp_path / "c", read_only=True)
    found = again.restore_params(again.resolve("latest"), like(state(2).params))
    assert_equal(found, state(2).params)


def test_reading_makes_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="train with this --workdir first"):
        Checkpoints(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "empty", read_only=True).resolve("best")
