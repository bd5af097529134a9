"""The collapse guard: notices a training that says one class only, or whose loss runs away.

Here: the rules, and starting again at half the learning rate. training/train.py shows the guard
every loss and every evaluation and catches `Collapsed`; workflows/finish.py reports `history`.

The rules must never end a training that is merely short or slow, so each asks for all of: half of
the training and MIN_STEPS steps are over; twice in a row, validation predictions are of one class
though the truth is of several; and the validation loss is no better than that of the class
frequencies, which only a model that has learned nothing cannot beat: one that rightly prefers the
common class of rare and common ones beats it by its probabilities. A training of 100 steps or
less, such as every smoke test, is never ended: there is no time to be saved.
"""

import collections
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MIN_STEPS = 100  # before these, a model that says one class may just not have learned yet
MOST_RESTARTS = 2
_TWICE = 2  # evaluations in a row
_SHARE = 0.99  # of the class frequencies' loss: what counts as no better
_WINDOW = 20  # losses that the start and the present are told by
_FACTOR = 3.0  # how far the present loss is above the highest of the start
_FOLDER = "checkpoints_collapsed_"
_NOTE = "collapse.json"  # in that folder


class Collapsed(ValueError):
    """A training that can't be saved by going on."""


class CollapseGuard:
    """Watches one training.

    Attributes:
        seen: what it has to remember, JSON-ready; kept in checkpoints, so that a resumed training
            is judged like an uninterrupted one but for the losses just before.
    """

    def __init__(self, choice: str, *, total_steps: int, seen: Mapping[str, Any] | None = None):
        """Starts, or goes on.

        Args:
            choice: config.train.collapse; with 'ignore' nothing is ever raised.
            total_steps: of the whole training.
            seen: of the checkpoint that it goes on from.
        """
        self._choice, self._total = choice, total_steps
        self.seen = dict(seen or {"one_class": 0, "losses": 0, "highest": 0.0})
        self._recent: collections.deque[float] = collections.deque(maxlen=_WINDOW)

    def check_loss(self, step: int, loss: float) -> None:
        """Takes the training loss of a step.

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
        """Takes an evaluation on the validation split.

        Args:
            step: after which it was made.
            confusion_CxC: true by predicted class; None for other tasks, which are not judged.
            loss: mean negative log probability of the true class, nats.

        Raises:
            Collapsed: the second evaluation in a row shows a model that says one class only.
        """
        if confusion_CxC is None or loss is None:
            return
        counts_CxC = np.asarray(confusion_CxC, float)
        truth_C, found_C = counts_CxC.sum(axis=1), counts_CxC.sum(axis=0)
        shares = truth_C[truth_C > 0] / truth_C.sum()
        entropy = float(-(shares * np.log(shares)).sum())
        late = step > MIN_STEPS and step >= self._total / 2
        stuck = found_C.max() == found_C.sum() and len(shares) > 1 and loss >= _SHARE * entropy
        self.seen["one_class"] = self.seen["one_class"] + 1 if late and stuck else 0
        if self.seen["one_class"] >= _TWICE:
            self._end(
                step,
                f"all {int(found_C.sum())} validation predictions are of one class, for the "
                f"{_TWICE}nd evaluation in a row, while the truth has {len(shares)}; the loss "
                f"{loss:.3f} is no better than that of the class frequencies, {entropy:.3f}",
            )

    def _end(self, step: int, found: str) -> None:
        if self._choice == "ignore":
            return
        message = (
            f"the training has collapsed at step {step} of {self._total}: {found}. The likely "
            "cause is a learning rate that is too high for this batch size: lower config.optimizer."
            "learning_rate, lengthen config.schedule.warmup or raise config.data.batch_size; "
            "config.train.collapse='restart' starts again at half the rate, 'ignore' goes on"
        )
        if self._choice == "stop" and step >= self._total:
            warnings.warn(message, stacklevel=2)  # nothing is saved by stopping at the end
            return
        raise Collapsed(message)


def restart(choice: str, workdir: Path, found: Collapsed, *, learning_rate: float) -> None:
    """Makes way for a new start: moves checkpoints and curves to checkpoints_collapsed_<n>.

    The rename comes last and is the only state: a process killed before it finds the old training.

    Args:
        choice: config.train.collapse.
        workdir: of the run, whose checkpoints are closed.
        found: why.
        learning_rate: peak that it was found with.

    Raises:
        Collapsed: `found`, unless the choice is 'restart' and there were fewer than MOST_RESTARTS.
    """
    number = len(history(workdir)) + 1
    if choice != "restart" or number > MOST_RESTARTS:
        raise found
    folder = workdir / "checkpoints"
    if (workdir / "metrics.jsonl").exists():
        shutil.copy(workdir / "metrics.jsonl", folder / "metrics.jsonl")
    note = {"found": str(found), "learning_rate": learning_rate}
    (folder / _NOTE).write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")
    folder.rename(workdir / f"{_FOLDER}{number}")
    print(
        f"Note: {found}.\nStarting again at half the learning rate, {learning_rate / 2:g} "
        f"(restart {number} of at most {MOST_RESTARTS}); what was trained is in "
        f"{workdir / f'{_FOLDER}{number}'} and may be deleted when the run is finished."
    )


def history(workdir: Path) -> list[dict[str, Any]]:
    """Returns what was found, 'found' and 'learning_rate', before each new start."""
    folders = (workdir / f"{_FOLDER}{number}" for number in range(1, MOST_RESTARTS + 1))
    return [
        json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        for folder in folders
        if folder.is_dir()
    ]


def rate_factor(workdir: Path) -> float:
    """Returns the factor on config.optimizer.learning_rate: 1, halved with each new start."""
    return 0.5 ** len(history(workdir))
