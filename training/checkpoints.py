"""Checkpoints: the only place that knows Orbax.

A checkpoint holds three items: `params` (the trained ones), `optimizer` (its state and the
counters) and `meta` (the resolved config, labels and fingerprints), so that evaluation reads no
optimiser state. Writing is asynchronous and ends with a rename: a save that fails or is killed
leaves the checkpoints before it as they were.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from models.backbone import flatten
from training.state import TrainState, merge

Meta = dict[str, Any]


class Checkpoints:
    """The checkpoints under one folder.

    Args:
      directory: created when missing, unless `read_only`.
      rank: orders evaluations by their metrics, and the best are kept beside the latest; None goes
        by the ranks they were saved with.
      keep_latest: how many of the newest to keep.
      keep_best: how many of the best to keep.
      read_only: for evaluation: nothing is created, cleaned or deleted.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rank: Callable[[Mapping[str, float]], Sequence[float]] | None = None,
        keep_latest: int = 1,
        keep_best: int = 1,
        read_only: bool = False,
    ):
        if read_only and not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such folder; train with this --workdir first")
        self._directory, self._read_only, self._rank = directory, read_only, rank
        policies = [
            checkpoint_managers.LatestN(n=keep_latest),
            checkpoint_managers.BestN(
                get_metric_fn=self._score, n=keep_best, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=self._score,  # without it Orbax keeps metrics in memory only
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def _score(self, metrics: Mapping[str, float]) -> list[float]:
        saved = (value for name, value in sorted(metrics.items()) if name.startswith("rank_"))
        ranks = self._rank(metrics) if self._rank else saved
        return [*ranks, -metrics["step"]]  # of equals the earliest

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step with the best metric, or None."""
        metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scores = {step: self._score(values) for step, values in metrics.items() if values}
        return max(scores, key=scores.get) if scores else None

    def resolve(self, name: str) -> int:
        """Returns the step that 'best', 'latest' or a number stands for.

        Raises:
          ValueError: there is no such checkpoint; the message lists the existing steps.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise ValueError(f"{self._directory} holds no checkpoint: train first")
        named = {"best": self.best, "latest": self.latest}
        step = named[name]() if name in named else int(name) if str(name).isdigit() else None
        if step not in steps:
            raise ValueError(
                f"config.eval.checkpoint: {name!r} is not in {self._directory}, which holds "
                f"the steps {steps}; 'best' and 'latest' are names too"
            )
        return step

    def save_params(self, params: Mapping[str, jax.Array], meta: Meta) -> None:
        """Writes parameters alone under the next free number; waits for the write."""
        step = (self.latest() or 0) + 1
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(merge(params)), meta=ocp.args.JsonSave(meta)
        )
        with self._writing():
            self._manager.save(step, args=items, metrics=None)
        self.wait()

    def save(
        self,
        step: int,
        state: TrainState,
        meta: Meta,
        metrics: Mapping[str, float] | None = None,
        *,
        ranks: Sequence[float] = (),
    ) -> None:
        """Starts to write a checkpoint; waits for the one before.

        Args:
          step: names the checkpoint.
          state: everything that training needs to go on.
          meta: JSON-ready; copied, since it is written later.
          metrics: evaluation metrics of this very step, if it was evaluated.
          ranks: of the evaluation: the checkpoint with the greatest is the best.

        Raises:
          OSError: the one before could not be written; earlier ones are untouched.
        """
        items = {
            "params": ocp.args.StandardSave(merge(state.params)),
            "optimizer": ocp.args.StandardSave(_optimizer(state)),
            "meta": ocp.args.JsonSave(copy.deepcopy(meta)),
        }
        if state.average is not None:
            items["average"] = ocp.args.StandardSave(merge(state.average))
        numbered = {f"rank_{i}": value for i, value in enumerate(ranks)}
        ranked = {**metrics, **numbered, "step": step} if metrics else None
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=ranked)

    def wait(self) -> None:
        """Blocks until what was started is on disk; raises as `save` does."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a failed write into one message that names the checkpoints that are intact."""
        try:
            yield
        except (OSError, ValueError) as error:
            self._manager.reload()
            kept = sorted(self._manager.all_steps())
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = reason if len(reason) < 150 else "…" + reason[-150:]  # the cause comes last
            raise OSError(
                f"a checkpoint could not be written to {self._directory}: {reason}\n"
                f"Steps {kept} are intact. If the disk is full, free some space; then start the "
                "same command again."
            ) from None

    def meta(self, step: int) -> Meta:
        """Returns what was saved beside the parameters."""
        return self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta

    def has_average(self, step: int) -> bool:
        """Whether a running average of the parameters was saved (config.train.ema)."""
        return (self._directory / str(step) / "average").is_dir()

    def restore_params(
        self, step: int, like: Mapping[str, jax.ShapeDtypeStruct], *, item: str = "params"
    ) -> dict:
        """Restores the trained parameters, or their 'average', as a flat dict, placed as in `like`.

        Raises:
          ValueError: the checkpoint's parameters are not those of `like`.
        """
        self._check(step, like)
        items = ocp.args.Composite(**{item: ocp.args.StandardRestore(merge(like))})
        return flatten(self._manager.restore(step, args=items)[item])

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restores the whole state; `like` holds shapes, dtypes and shardings."""
        self._check(step, like.params)
        self._check_optimizer(step, like)
        items = {
            "params": ocp.args.StandardRestore(merge(like.params)),
            "optimizer": ocp.args.StandardRestore(_optimizer(like)),
        }
        if like.average is not None:
            if not self.has_average(step):
                raise ValueError(
                    f"checkpoint {step} of {self._directory} has no running average of the "
                    "parameters: set config.train.ema=0 and swa_from='' to go on from it"
                )
            items["average"] = ocp.args.StandardRestore(merge(like.average))
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        parts = restored.optimizer
        return TrainState(
            parts["step"],
            parts["examples"],
            flatten(restored.params),
            parts["state"],
            None if like.average is None else flatten(restored["average"]),
            rate=parts.get("rate"),
        )

    def _check_optimizer(self, step: int, like: TrainState) -> None:
        """Raises ValueError unless the saved optimiser has the state of `like`'s."""
        if _shapes(self._metadata(step, "optimizer")) != _shapes(_optimizer(like)):
            raise ValueError(
                f"checkpoint {step} of {self._directory} has the state of another optimiser, of "
                "other tasks or of an older version: use the config it was trained with "
                "(config.json in its workdir; optimizer.name, multi.members and schedule.name, "
                "'plateau' or not, decide), or start another run with config.resume_from"
            )

    def _check(self, step: int, like: Mapping[str, Any]) -> None:
        saved = self._metadata(step, "params")
        saved = {path: tuple(leaf.shape) for path, leaf in flatten(saved).items()}
        wanted = {path: tuple(leaf.shape) for path, leaf in like.items()}
        problems = [f"{path}: missing in the checkpoint" for path in wanted if path not in saved]
        problems += [f"{path}: only in the checkpoint" for path in saved if path not in wanted]
        problems += [
            f"{path}: {saved[path]} in the checkpoint, {wanted[path]} in the model"
            for path in wanted
            if path in saved and saved[path] != wanted[path]
        ]
        if problems:
            listed = "\n  ".join(problems[:8])
            raise ValueError(
                f"checkpoint {step} of {self._directory} does not fit the config "
                f"({len(problems)} parameters):\n  {listed}\nUse the config it was trained with "
                "(config.json in its workdir): model, labels and lr_table decide."
            )

    def _metadata(self, step: int, item: str) -> Any:
        """Returns the tree of what was saved, with shapes in the place of arrays."""
        path = self._directory.absolute() / str(step) / item
        return ocp.StandardCheckpointHandler().metadata(path).tree

    def close(self) -> None:
        """Waits for writes and ends Orbax's threads."""
        if not self._read_only:
            self.wait()
        self._manager.close()


def _optimizer(state: TrainState) -> dict[str, Any]:
    """Returns the item of a checkpoint that holds what evaluation does not need."""
    rate = {} if state.rate is None else {"rate": state.rate}
    return {"step": state.step, "examples": state.examples, "state": state.optimizer, **rate}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf by its path, whatever the kinds of the nodes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(keys): tuple(leaf.shape) for keys, leaf in leaves}
