"""Whole runs with other optimisers and a rate that falls by the validation metric."""

import jax
import numpy as np
import pytest

from training.checkpoints import Checkpoints
from training.experiment import Experiment
from training.progress import read_metrics
from workflows.train import train


def saved(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    return checkpoints._manager.restore(checkpoints.latest())


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        ("muon", "plateau"),
        pytest.param("schedule_free", "constant", marks=pytest.mark.long),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    make_config, tmp_path, monkeypatch, optimizer, schedule
):
    """To the bit; no evaluation but the first is a gain, so that every second halves the rate."""
    monkeypatch.setattr(Experiment, "rank", lambda self, values: [0.0])
    config = make_config()
    config.optimizer.name = optimizer
    config.adapt.update(kind="last_layers", layers=1)  # less to compile
    config.schedule.update(name=schedule, patience=2)
    config.train.update(
        duration="16 steps", checkpoint_every="2 steps", log_every="1 step", integrate=False
    )
    config.eval.update(every="2 steps", test=False)

    def stop(step, rank):
        if step == 12:
            raise KeyboardInterrupt

    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", on_evaluation=stop)
    train(config, tmp_path / "parts")
    whole, parts = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert jax.tree.leaves(whole["params"]) and jax.tree.leaves(whole["optimizer"])
    for item in ("params", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, parts[item], whole[item])
    lines = read_metrics(tmp_path / "parts" / "metrics.jsonl")
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    falls = [step for step in range(4, 17) if rates[step] == pytest.approx(rates[step - 1] / 2)]
    assert falls == ([7, 11, 15] if schedule == "plateau" else [])
    assert len(set(rates.values())) > 2  # the warm-up


def test_an_evaluation_among_the_best_is_saved_though_it_is_no_gain(make_config, tmp_path):
    config = make_config()
    config.adapt.kind = "head"
    config.train.update(duration="10 steps", checkpoint_every="100%", keep_best=3, integrate=False)
    config.eval.update(every="2 steps", test=False)
    ranks = {}
    train(config, tmp_path, on_evaluation=ranks.__setitem__)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    best = sorted(ranks, key=lambda step: (ranks[step], -step))[-2:]
    assert len(kept) >= 3 and set(best) <= kept
