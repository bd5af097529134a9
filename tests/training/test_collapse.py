"""Properties of the collapse guard: what ends a training, what must not, and the new start."""

import json

import numpy as np
import pytest

from training import collapse
from training.collapse import MIN_STEPS, Collapsed, CollapseGuard

ONE_CLASS = [[0, 12], [0, 12]]
ENTROPY = float(np.log(2))


def evaluate(guard, steps, confusion=ONE_CLASS, loss=ENTROPY):
    for step in steps:
        guard.check(step, confusion_CxC=confusion, loss=loss)


def test_one_class_twice_in_the_second_half_ends_the_training():
    guard = CollapseGuard("stop", total_steps=1000)
    evaluate(guard, [250, 500])
    with pytest.raises(Collapsed, match=r"step 750 of 1000: all 24 .*learning_rate"):
        evaluate(guard, [750])


@pytest.mark.parametrize(
    ("steps", "confusion", "loss"),
    [
        ((250, 490), ONE_CLASS, ENTROPY),  # in the first half
        ((750,), ONE_CLASS, ENTROPY),  # once
        ((500, 750, 1000), [[0, 24], [0, 0]], 0.0),  # the truth is of one class
        ((500, 750, 1000), [[1, 11], [0, 12]], 0.6),  # one is right
        ((500, 750, 1000), [[0, 1], [0, 23]], 0.1),  # rare class ranked: better than its frequency
        ((500, 750, 1000), None, ENTROPY),  # another task
    ],
)
def test_what_may_be_learning_goes_on(steps, confusion, loss):
    evaluate(CollapseGuard("stop", total_steps=1000), steps, confusion, loss)


@pytest.mark.parametrize("total", [2, 48, MIN_STEPS])
def test_a_short_training_is_never_ended(total):
    guard = CollapseGuard("stop", total_steps=total)
    for step in range(1, total + 1):
        guard.check_loss(step, 1.0 if step < 10 else 1e6)
        evaluate(guard, [step])


def test_an_evaluation_that_shows_more_classes_starts_the_count_anew():
    guard = CollapseGuard("stop", total_steps=1000)
    evaluate(guard, [600])
    evaluate(guard, [700], [[5, 7], [6, 6]])
    evaluate(guard, [800])
    with pytest.raises(Collapsed):
        evaluate(guard, [900])


def test_a_resumed_training_is_judged_like_an_uninterrupted_one():
    guard = CollapseGuard("stop", total_steps=1000)
    for step in range(1, 600):
        guard.check_loss(step, 0.7)
    evaluate(guard, [600])
    saved = json.loads(json.dumps(guard.seen))
    with pytest.raises(Collapsed):
        evaluate(CollapseGuard("stop", total_steps=1000, seen=saved), [700])
    resumed = CollapseGuard("stop", total_steps=1000, seen=saved)
    with pytest.raises(Collapsed, match="training loss is 5 .*at most 0.7"):
        for step in range(601, 650):
            resumed.check_loss(step, 5.0)


def test_a_loss_that_stays_far_above_the_start_ends_the_training_and_a_peak_does_not():
    guard = CollapseGuard("stop", total_steps=1000)
    rng = np.random.default_rng(0)
    for step in range(1, 300):
        guard.check_loss(step, 50.0 if step % 40 < 8 and step > 40 else rng.uniform(0.2, 1.0))
    with pytest.raises(Collapsed, match="far|median of 20 steps"):
        for step in range(300, 330):
            guard.check_loss(step, 50.0)


def test_ignored_nothing_ends_and_at_the_last_step_a_stop_only_warns():
    evaluate(CollapseGuard("ignore", total_steps=1000), [500, 750, 1000])
    guard = CollapseGuard("stop", total_steps=1000)
    evaluate(guard, [900])
    with pytest.warns(UserWarning, match="collapsed at step 1000"):
        evaluate(guard, [1000])
    guard = CollapseGuard("restart", total_steps=1000)
    evaluate(guard, [900])
    with pytest.raises(Collapsed):
        evaluate(guard, [1000])


def test_each_new_start_halves_the_rate_and_the_third_collapse_ends_the_run(tmp_path):
    found = Collapsed("one class only")
    for number in (1, 2):
        rate = 1e-3 * collapse.rate_factor(tmp_path)
        (tmp_path / "checkpoints" / "7").mkdir(parents=True)
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        collapse.restart("restart", tmp_path, found, learning_rate=rate)
        assert not (tmp_path / "checkpoints").exists()
        assert (tmp_path / f"checkpoints_collapsed_{number}" / "7").is_dir()
        assert (tmp_path / f"checkpoints_collapsed_{number}" / "metrics.jsonl").exists()
    assert collapse.rate_factor(tmp_path) == 0.25
    assert collapse.history(tmp_path) == [
        {"found": "one class only", "learning_rate": 1e-3},
        {"found": "one class only", "learning_rate": 5e-4},
    ]
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(Collapsed, match="one class only"):
        collapse.restart("restart", tmp_path, found, learning_rate=2.5e-4)
    assert (tmp_path / "checkpoints").exists()


def test_without_the_choice_to_restart_nothing_is_moved(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(Collapsed):
        collapse.restart("stop", tmp_path, Collapsed("x"), learning_rate=1e-3)
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoints"]
    assert collapse.history(tmp_path) == []


@pytest.mark.parametrize(
    ("values", "guess", "reason"),
    [
        ({"accuracy": 0.5, "loss": 0.692}, 0.693, "loss 0.692 is no better than that of a guess"),
        ({"accuracy": 0.5, "loss": 0.6}, 0.693, ""),
        ({"f1": 0.0, "precision": 0.0}, None, "the validation f1 is 0"),
        ({"f1": 0.01, "precision": 0.0}, None, ""),
        ({"f1": 0.0, "loss": 3.0}, None, ""),
        ({"accuracy": 1.0, "loss": 0.01}, 0.0, ""),
    ],
)
def test_what_was_learned_shows_in_loss_or_score(values, guess, reason):
    said = collapse.nothing_learned(values, guess, next(iter(values)))
    assert (reason in said) if reason else not said
