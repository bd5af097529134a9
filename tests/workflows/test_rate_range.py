"""The range test: what it proposes on curves that are known, and what it reads and writes."""

import json
import math

import numpy as np
import pytest

from training.data import RunData
from workflows.rate_range import propose, until_diverged
from workflows.sweep import sweep


@pytest.mark.parametrize("seed", range(5))
def test_the_steepest_fall_is_found_in_the_noise_of_batches(seed):
    rng, exponents = np.random.default_rng(seed), np.linspace(-2, 2, 100)
    falls = 0.7 - 0.5 / (1 + np.exp(-4 * (exponents - 0.3)))
    losses = falls + np.maximum(exponents - 1.2, 0) + rng.normal(0, 0.1, 100)
    smoothed, steepest, tenth = propose(10**exponents, losses)
    assert abs(math.log10(steepest) - 0.3) < 0.35
    assert steepest < 10 * tenth < 10**1.6
    assert len(smoothed) == 100


def test_no_rate_is_proposed_for_the_noise_of_batches():
    rng, rates = np.random.default_rng(0), np.geomspace(1e-6, 1e-2, 100)
    proposed = [propose(rates, rng.normal(0.5, 0.15, 100))[1] for _ in range(100)]
    assert sum(rate is not None for rate in proposed) <= 5


def test_no_rate_is_proposed_where_none_lowers_the_loss():
    _, steepest, tenth = propose(np.geomspace(1, 100, 50), np.linspace(1, 2, 50))
    assert steepest is tenth is None
    with pytest.raises(ValueError, match=r"range_test: 8 steps are too few .* expected 20"):
        propose(np.geomspace(1, 100, 8), np.linspace(2, 1, 8))


@pytest.mark.parametrize("end", [4.1, math.nan])
def test_a_diverging_loss_ends_the_test_and_a_single_high_one_does_not(end):
    losses = [1.0] * 10 + [9.0] + [1.0] * 10 + [end] * 10
    kept = [loss for _, loss in until_diverged((rate, loss) for rate, loss in enumerate(losses))]
    assert kept == losses[: 21 if math.isnan(end) else 26]


@pytest.mark.usefixtures("figures")
def test_the_rate_grows_over_four_decades_and_no_other_split_is_opened(
    tiny_config, tmp_path, monkeypatch, capsys
):
    opened, split = set(), RunData.split

    def note(self, name):
        opened.add(name)
        return split(self, name)

    monkeypatch.setattr(RunData, "split", note)
    tiny_config.search.range_test = "40 steps"
    tiny_config.adapt.kind = "head"  # little to compile
    tiny_config.search.trials = 2
    with pytest.raises(ValueError, match=r"range_test is one short training: set search\.trials=0"):
        sweep(tiny_config, tmp_path, recipe="configs/reviews.py")
    tiny_config.search.trials = 0
    before = tiny_config.to_json()
    assert sweep(tiny_config, tmp_path, recipe="configs/reviews.py") == []
    assert tiny_config.to_json() == before
    assert opened == {"train"}
    record = json.loads((tmp_path / "rate_range.json").read_text())
    peak, steps = tiny_config.optimizer.learning_rate, len(record["rate"])
    assert steps == len(record["loss"]) == len(record["smoothed"]) <= 40
    expected = peak * 100 ** (2 * (np.arange(steps) + 0.5) / 40 - 1)
    np.testing.assert_allclose(record["rate"], expected, rtol=1e-4)
    assert record["proposed"] in record["rate"]
    assert f"--config.optimizer.learning_rate={record['proposed']:.2g}" in capsys.readouterr().out
    assert (tmp_path / "rate_range.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("**/checkpoints"))
