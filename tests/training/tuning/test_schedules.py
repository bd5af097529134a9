"""Durations and schedules."""

import jax.numpy as jnp
import pytest

from configs import common
from training.tuning.schedules import (
    Durations,
    check_plateau,
    make_schedule,
    parse_duration,
    path_schedules,
)


@pytest.mark.parametrize(
    ("text", "examples"),
    [
        ("500 steps", 4000),
        ("1 step", 8),
        ("2.5 epochs", 250),
        ("1280 examples", 1280),
        ("10%", 50),
        (" 12.5 % ", 62),
    ],
)
def test_every_unit_becomes_examples(text, examples):
    found = parse_duration(text, batch_size=8, epoch_examples=100, total_examples=500)
    assert found == examples


def test_steps_cover_the_examples():
    config, steps = common.get_config(), []
    config.data.batch_size = 8
    for examples in (0.1, 1, 8, 9):
        config.eval.every = f"{examples} examples"
        steps.append(Durations(config, 100).evaluate_every)
    assert steps == [1, 1, 1, 2]


def schedule(name, **options):
    config = common.get_config().schedule
    config.update(name=name, **options)
    return make_schedule(config, warmup=100, cooldown=200, total=1000)


# value at: half the warm-up, its end, the middle of the rest, the end
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("constant", {}, (0.5, 1, 1, 1)),
        ("linear", {}, (0.5, 1, 0.5, 0)),
        ("linear", {"end_factor": 0.2}, (0.5, 1, 0.6, 0.2)),
        ("cosine", {}, (0.5, 1, 0.5, 0)),
        ("polynomial", {"power": 2.0}, (0.5, 1, 0.25, 0)),
        ("inverse_sqrt", {}, (0.5, 1, (100 / 550) ** 0.5, 0.1**0.5)),
        ("wsd", {}, (0.5, 1, 1, 0)),
        ("plateau", {}, (0.5, 1, 1, 1)),
        ("cosine_restarts", {"cycles": 3}, (0.5, 1, 0.5, 0)),
        ("cosine_restarts", {"cycles": 1, "end_factor": 0.2}, (0.5, 1, 0.6, 0.2)),
        ("one_cycle", {}, (0.52, 1, 0.5, 0)),
    ],
)
def test_schedules_have_their_known_values(name, options, expected):
    function = schedule(name, **options)
    found = [float(function(jnp.float32(n))) for n in (50, 100, 550, 1000)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_wsd_decays_only_at_its_end():
    function = schedule("wsd")
    assert float(function(800)) == 1
    assert float(function(900)) == pytest.approx(0.5)


def test_cosines_restart_at_the_peak():
    function = schedule("cosine_restarts", cycles=3, end_factor=0.1)
    assert [float(function(n)) for n in (100, 400, 700)] == pytest.approx([1, 1, 1])
    assert [float(function(n)) for n in (399, 699, 1000)] == pytest.approx([0.1] * 3, abs=1e-4)


def table_schedule(table, **options):
    config = common.get_config()
    config.data.batch_size = 10
    config.train.duration = "1000 examples"
    config.schedule.update(table=table, warmup="100 examples", **options)
    paths = ("backbone/layer_0/x", "backbone/layer_1/x", "head/kernel")
    return path_schedules(config.schedule, paths, durations=Durations(config, 500))


def test_a_row_freezes_and_then_has_its_own_warm_up_and_schedule():
    table = (("backbone/layer_0/.*", "constant", "50%"), ("backbone/.*", "", "200 examples"))
    factors = table_schedule(table, name="linear")
    whole, later = (
        schedule("linear"),
        make_schedule(
            common.get_config().schedule, name="linear", warmup=100, cooldown=0, total=800
        ),
    )
    for n in range(0, 1000, 25):
        values = factors(jnp.float32(n))
        assert float(values["head/kernel"]) == pytest.approx(float(whole(n)))
        expected = float(later(n - 200)) if n >= 200 else 0
        assert float(values["backbone/layer_1/x"]) == pytest.approx(expected)
        expected = min(max(n - 500, 0) / 100, 1)
        assert float(values["backbone/layer_0/x"]) == pytest.approx(expected)


def test_a_row_that_starts_too_late_is_refused():
    with pytest.raises(
        ValueError, match=r"table: 'head.*' starts after 95%, and only 50 examples follow"
    ):
        table_schedule((("head.*", "", "95%"),))


def test_a_plateau_needs_evaluations_before_the_end():
    config = common.get_config()
    config.schedule.update(name="plateau", patience=3)
    with pytest.raises(ValueError, match=r"but only 3 precede the end .* found '25%'"):
        check_plateau(config, Durations(config, 1000))
    config.eval.every = "20%"
    check_plateau(config, Durations(config, 1000))


def test_misfitting_parts_are_refused():
    config = common.get_config().schedule
    with pytest.raises(ValueError, match="warmup covers 100 examples but the training has 100"):
        make_schedule(config, warmup=100, cooldown=0, total=100)
    with pytest.raises(ValueError, match="'one_cycle' rises through the warm-up"):
        make_schedule(config, name="one_cycle", warmup=0, cooldown=0, total=100)
    config.name = "wsd"
    with pytest.raises(ValueError, match="exceed"):
        make_schedule(config, warmup=50, cooldown=60, total=100)
