"""Durations and schedules."""

import jax.numpy as jnp
import pytest

from configs import common
from training.tuning.schedules import Durations, make_schedule, parse_duration


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


def test_misfitting_parts_are_refused():
    config = common.get_config().schedule
    with pytest.raises(ValueError, match="warmup covers 100 examples but the training has 100"):
        make_schedule(config, warmup=100, cooldown=0, total=100)
    config.name = "wsd"
    with pytest.raises(ValueError, match="exceed"):
        make_schedule(config, warmup=50, cooldown=60, total=100)
