"""The collapse guard: detects a model that predicts a single class, or a loss that diverges.

The rules must never end a training that is merely short or slow. A single class counts as a
collapse only if all of this holds: half of the training and MIN_STEPS steps are over; in two
evaluations in a row all validation predictions are of one class though the labels are of several;
and the validation loss is no better than that of the class frequencies, which any model that has
learned something beats by its probabilities, even if it rightly predicts the common class only.
"""

import collections
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline import hosts

MIN_STEPS = 100  # before these, a model that predicts one class may just not have learned yet
MOST_RESTARTS = 2
_TWICE = 2  # evaluations in a row
_SHARE = 0.99  # of the class frequencies' loss: what counts as no better
_WINDOW = 20  # losses that stand for the start, and for the present
_FACTOR = 3.0  # how far the present loss is above the highest of the start
_FOLDER = "checkpoints_collapsed_"
_NOTE = "collapse.json"  # in that folder


def nothing_learned(values: Mapping[str, float], guess: float | None, first: str) -> str:
    """Returns why an evaluation shows that nothing was learned, '' if it does not.

    Args:
        values: of the metrics, by name.
        guess: See Task.guess_loss.
        first: name of the metric that decides where there is no loss: of spans and answers, 0
            means that none is right.
    """
    if guess is not None:
        stuck = values["loss"] >= _SHARE * guess > 0  # 0 where there is but one answer to guess
        said = f"the validation loss {values['loss']:.3f} is no better than that of a guess"
        return f"{said} without the texts, {guess:.3f}" if stuck else ""
    return f"the validation {first} is 0" if values[first] == 0 and "loss" not in values else ""


class Collapsed(ValueError):
    """Training has collapsed; going on cannot save it."""


class CollapseGuard:
    """Watches one training.

    Attributes:
        total: steps of the whole training.
        seen: its state, JSON-ready; kept in checkpoints, so that a resumed training is judged like
            an uninterrupted one but for the losses just before.
    """

    def __init__(self, choice: str, *, total_steps: int, seen: Mapping[str, Any] | None = None):
        """Starts with no history, or with that of a checkpoint.

        Args:
            choice: config.train.collapse; with 'ignore' nothing is ever raised.
            total_steps: of the whole training.
            seen: the state in the checkpoint that training resumes from.
        """
        self._choice, self.total = choice, total_steps
        self.seen = dict(seen or {"one_class": 0, "losses": 0, "highest": 0.0})
        self._recent: collections.deque[float] = collections.deque(maxlen=_WINDOW)

    def check_loss(self, step: int, loss: float) -> None:
        """Checks the training loss of a step.

        Raises:
            Collapsed: over the last steps it was far above all of the first ones.
        """
        if self.seen["losses"] < _WINDOW:
            self.seen["losses"] += 1
            self.seen["highest"] = max(self.seen["highest"], loss)
            return
        self._recent.append(loss)
        now, start = float(np.median(self._recent)), self.seen["highest"]
        if len(self._recent) == _WINDOW and step > MIN_STEPS and now > _FACTOR * start:
            self._end(
                step,
                f"the training loss is {now:.3g} (median of {_WINDOW} steps), but was at most "
                f"{start:.3g} in the first {_WINDOW} steps",
            )

    def check(
        self, step: int, *, confusion_CxC: Sequence[Sequence[int]] | None, loss: float | None
    ) -> None:
        """Checks an evaluation on the validation split.

        Args:
            step: of the evaluation.
            confusion_CxC: true by predicted class; None for tasks without classes, which pass.
            loss: mean negative log probability of the true class, nats.

        Raises:
            Collapsed: for the second evaluation in a row the model predicts a single class.
        """
        if confusion_CxC is None or loss is None:
            return
        counts_CxC = np.asarray(confusion_CxC, float)
        truth_C, predicted_C = counts_CxC.sum(axis=1), counts_CxC.sum(axis=0)
        shares = truth_C[truth_C > 0] / truth_C.sum()
        entropy = float(-(shares * np.log(shares)).sum())
        late = step > MIN_STEPS and step >= self.total / 2
        one_class = predicted_C.max() == predicted_C.sum() and len(shares) > 1
        stuck = one_class and loss >= _SHARE * entropy
        self.seen["one_class"] = self.seen["one_class"] + 1 if late and stuck else 0
        if self.seen["one_class"] >= _TWICE:
            self._end(
                step,
                f"all {int(predicted_C.sum())} validation predictions are of one class, for the "
                f"{_TWICE}nd evaluation in a row, while the labels are of {len(shares)}; the loss "
                f"{loss:.3f} is no better than that of the class frequencies, {entropy:.3f}",
            )

    def _end(self, step: int, reason: str) -> None:
        if self._choice == "ignore":
            return
        message = (
            f"the training has collapsed at step {step} of {self.total}: {reason}. The likely "
            "cause is a learning rate too high for this batch size: lower config.optimizer."
            "learning_rate, lengthen config.schedule.warmup or raise config.data.batch_size; "
            "config.train.collapse='restart' starts again at half the rate, 'ignore' goes on"
        )
        if self._choice == "stop" and step >= self.total:
            warnings.warn(message, stacklevel=2)  # nothing is saved by stopping at the end
            return
        raise Collapsed(message)


def restart(choice: str, workdir: Path, error: Collapsed, *, learning_rate: float) -> None:
    """Moves checkpoints and curves to checkpoints_collapsed_<n>, for a new start.

    The rename comes last and is the only state: a process killed before it finds the old training.

    Args:
        choice: config.train.collapse.
        workdir: of the run, whose checkpoints are closed.
        error: the collapse.
        learning_rate: the peak rate that led to it.

    Raises:
        Collapsed: `error`, unless the choice is 'restart' and there were fewer than MOST_RESTARTS.
    """
    number = len(history(workdir)) + 1
    if choice != "restart" or number > MOST_RESTARTS:
        raise error
    folder = workdir / "checkpoints"
    hosts.wait("to restart")  # all have counted the restarts so far
    if hosts.writes():
        if (workdir / "metrics.jsonl").exists():
            shutil.copy(workdir / "metrics.jsonl", folder / "metrics.jsonl")
        note = {"found": str(error), "learning_rate": learning_rate}
        (folder / _NOTE).write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")
        folder.rename(workdir / f"{_FOLDER}{number}")
    hosts.wait("restart")
    print(
        f"Note: {error}.\nStarting again at half the learning rate, {learning_rate / 2:g} "
        f"(restart {number} of at most {MOST_RESTARTS}); the checkpoints so far are in "
        f"{workdir / f'{_FOLDER}{number}'} and may be deleted when the run is finished."
    )


def history(workdir: Path) -> list[dict[str, Any]]:
    """Returns the collapses before each new start, as {'found': message, 'learning_rate'}."""
    folders = (workdir / f"{_FOLDER}{number}" for number in range(1, MOST_RESTARTS + 1))
    return [
        json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        for folder in folders
        if folder.is_dir()
    ]


def rate_factor(workdir: Path) -> float:
    """Returns the factor on config.optimizer.learning_rate: 1, halved with each new start."""
    return 0.5 ** len(history(workdir))
