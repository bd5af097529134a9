"""Several tasks that share the backbone: a head, a loss and metrics for each of them, kept apart.

Every batch is of one member, which its names reveal when it is traced
(input_pipeline/batches/mixture.py), so that the train step and the evaluation see an ordinary task.
Not here: what the members do (the other files of tasks/), nor mixing their batches.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evaluation.evaluate import Predictions
from evaluation.metrics import Metric, Scores, about, counted
from input_pipeline.batches import mixture
from input_pipeline.batches.mixture import MARKER, Mixture, member_of
from input_pipeline.batches.template import Encoder
from input_pipeline.examples import Examples
from tasks import task_class
from tasks.limits import Given, Limit
from tasks.task import Arrays, Fit, Loaded, Loss, Task

MEAN = "mean"  # the metric over all members
Encoders = Mapping[str, Encoder]


class MemberHeads(nn.Module):
    """A head per member, under 'heads_<name>'; a batch meets that of its member.

    A batch of all members, as MultiTask.blank makes it, meets all, so that their parameters are
    initialised; nothing is made of the outputs then.

    Attributes:
        names: of the members.
        head_of: the unbound head of each. Not a dict of them, which Linen would bind as it stands
            in this module before models.heads.Model makes its own copy of it.
    """

    names: tuple[str, ...]
    head_of: Callable[[str], nn.Module]

    @property
    def dropout(self) -> float:
        """The highest of the heads'."""
        return max(getattr(self.head_of(name), "dropout", 0.0) for name in self.names)

    @nn.compact
    def __call__(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Arrays, *, deterministic: bool
    ) -> dict[str, jax.Array]:
        """Returns the outputs of the batch's member."""
        outputs = {}
        for name in self.names:
            if MARKER + name in batch:
                head = self.head_of(name).clone(name=f"heads_{name}", parent=self)
                outputs = head(backbone, hidden_RxLxD, batch, deterministic=deterministic)
        return outputs

    def inputs(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Arrays
    ) -> dict[str, jax.Array]:
        """Returns what the head of the batch's member is linear in, named for the member."""
        name = member_of(batch)
        read = getattr(self.head_of(name), "inputs", None)
        return _renamed(read(backbone, hidden_RxLxD, batch), "", f"{name}/") if read else {}


class MultiTask(Task):
    """The tasks of config.multi.members in one; Predictions.fitted has an entry for each.

    Attributes:
        members: name -> task. Each has its own labels, options and metrics.
    """

    FLOOR = "each task's floor"
    PROBE = True  # of the members that can
    SHIFTED = False
    SMOOTHING = True  # each member judges for itself

    def __init__(self, config: ConfigDict, labels: Mapping[str, Sequence[str]], **parts: Any):
        """Makes the members.

        Raises:
            ValueError: members that do not make sense, or that `labels` do not name.
        """
        configs = self.member_configs(config)
        if labels.keys() != configs.keys():
            raise ValueError(
                f"config.multi.members are {list(configs)}, but there are labels for "
                f"{list(labels)}: take the members that the run was trained with"
            )
        super().__init__(config, (), **parts)
        self.members: dict[str, Task] = {
            name: task_class(own)(own, labels[name], **parts) for name, own in configs.items()
        }
        tasks = self.members.values()
        self.JOINT = any(task.JOINT for task in tasks)
        self.labels = {name: list(labels[name]) for name in configs}
        self.metrics = _metrics({name: task.metrics for name, task in self.members.items()}, ())
        self.positions = tuple(dict.fromkeys(name for task in tasks for name in task.positions))
        self.parts = tuple(dict.fromkeys(part for task in tasks for part in task.parts))

    @staticmethod
    def member_configs(config: ConfigDict) -> Mapping[str, ConfigDict]:
        """Returns the config of each member."""
        return mixture.member_configs(config)

    def prose(self) -> str:
        """Describes what is learned."""
        return "; ".join(f"{name}: {task.prose()}" for name, task in self.members.items())

    def check(self, examples: Mixture, split: str) -> None:
        """Checks the examples of each member."""
        for name, task in self.members.items():
            task.check(examples.parts[name], split)
        self.unfitted = {name: task.unfitted for name, task in self.members.items()}

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what each member does, naming it."""
        for name, task in self.members.items():
            parts = given.examples.parts[name], given.windows.parts[name]
            pipeline = given.pipeline.pipelines[name]
            for limit in task.limits(Given(*parts, pipeline, given.training, given.complete)):
                yield limit._replace(what=f"{name} {limit.what}")

    def windows(self, examples: Mixture, encoder: Encoders, *, training: bool) -> Mixture:
        """Returns the windows of each member."""
        return examples.map(
            lambda name, part: self.members[name].windows(part, encoder[name], training=training)
        )

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the heads of all members."""
        heads = {n: task.head(num_features=num_features) for n, task in self.members.items()}
        return MemberHeads(tuple(heads), heads.__getitem__)

    def blank(self, *, num_features: int) -> dict[str, jax.Array]:
        """Returns a batch of all members, which initialises the parameters of all their heads."""
        markers = {MARKER + name: jnp.ones(1, jnp.int32) for name in self.members}
        return super().blank(num_features=num_features) | markers

    def start_head(
        self, heads: dict[str, np.ndarray], params: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Lets each member start its own head."""
        started, fresh = {}, set()
        for name, task in self.members.items():
            prefix = _prefix(name)
            own, own_fresh = task.start_head(_renamed(heads, prefix, "head/"), params)
            started |= _renamed(own, "head/", prefix)
            fresh |= _renamed(dict.fromkeys(own_fresh), "head/", prefix).keys()
        return started, fresh

    def probe(self, windows: Mixture, vectors: Predictions, encoder: Encoders) -> Fit:
        """Fits the heads of the members that have PROBE; the others stay as they are drawn."""

        def fit(task: Task, own: Predictions, windows: Examples, encoder: Encoder) -> Fit:
            return task.probe(windows, own, encoder) if task.PROBE else ({}, "random")

        fits = self._each(fit, vectors, windows.parts, encoder)
        heads: dict[str, np.ndarray] = {}
        for name, (own, _) in fits.items():
            heads |= _renamed(own, "head/", _prefix(name))
        return heads, "; ".join(f"{name}: {prose}" for name, (_, prose) in fits.items())

    def loss(self, outputs: Arrays, batch: Arrays) -> Loss:
        """Returns the loss of the batch's member; its sums are named for it."""
        name = member_of(batch)
        total, weight, sums = self.members[name].loss(outputs, batch)
        return total, weight, _renamed({"loss": total, **sums}, "", f"{name}/")

    def divergence(
        self, outputs: Arrays, others: Arrays, batch: Arrays, projections: tuple[Callable, ...]
    ) -> jax.Array:
        """Compares what the batch's member predicts."""
        return self.members[member_of(batch)].divergence(outputs, others, batch, projections)

    def outputs(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """Returns what the batch's member fetches, named for it."""
        name = member_of(batch)
        return _renamed(self.members[name].outputs(outputs, batch), "", f"{name}/")

    def decode(
        self, predictions: Predictions, windows: Mixture, examples: Mixture, encoder: Encoders
    ) -> Predictions:
        """Decodes the predictions of each member."""
        sides = windows.parts, examples.parts, encoder
        return self._join(self._each(lambda task, *own: task.decode(*own), predictions, *sides))

    def complete(
        self, predictions: Predictions, examples: Mixture, encoder: Encoders, loaded: Loaded
    ) -> Predictions:
        """Completes each member's with the model that has its head alone."""
        backbone = {path: v for path, v in loaded.params.items() if not path.startswith("head/")}
        alone = {}
        for name in self.members:
            model = loaded.model.clone(task_head=loaded.model.task_head.head_of(name))
            params = backbone | _renamed(loaded.params, _prefix(name), "head/")
            alone[name] = Loaded(model, params, loaded.adapted)
        sides = examples.parts, encoder, alone
        return self._join(self._each(lambda task, *own: task.complete(*own), predictions, *sides))

    def fit(self, predictions: Predictions, validation: Mixture) -> dict[str, Any]:
        """Returns what each member chooses."""
        return self._each(lambda task, *own: task.fit(*own), predictions, validation.parts)

    def score(self, predictions: Predictions, examples: Mixture) -> Scores:
        """Scores each member's predictions, whose metrics are about its own examples."""
        sides = predictions, examples.parts
        return self._joint(self._each(lambda task, *own: task.score(*own), *sides))

    def baselines(self, train: Mixture, examples: Mixture) -> dict[str, Scores]:
        """Returns one row, in which each member has the baseline it is compared with."""
        floors = {
            name: task.baselines(train.parts[name], examples.parts[name])[task.FLOOR]
            for name, task in self.members.items()
        }
        return {self.FLOOR: self._joint(floors)}

    def describe(self, predictions: Predictions, examples: Mixture) -> Iterator[dict[str, Any]]:
        """Yields each member's dicts, with its name; ids are the member's own."""
        sides = predictions, examples.parts
        records = self._each(lambda task, *own: task.describe(*own), *sides)
        for name, of_member in records.items():
            yield from ({"member": name, **record} for record in of_member)

    def _each(
        self, method: Callable, predictions: Predictions, *sides: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns `method(task, predictions, *sides)` of each member that has predictions, with
        its own predictions and sides."""
        results = {}
        for index, (name, task) in enumerate(self.members.items()):
            ids_N = mixture.own_ids(index, predictions.ids_N)
            if len(ids_N):
                outputs = _renamed(predictions.outputs, f"{name}/", "")
                part = Predictions(ids_N, outputs, predictions.fitted.get(name, {}))
                try:
                    results[name] = method(task, part, *(side[name] for side in sides))
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return results

    def _global_ids(self, parts: Mapping[str, Any]) -> list[np.ndarray]:
        """Returns the ids in a Mixture of each part's `ids_N`."""
        order = list(self.members)
        return [mixture.global_ids(order.index(name), part.ids_N) for name, part in parts.items()]

    def _join(self, parts: Mapping[str, Predictions]) -> Predictions:
        """The way back of `_each`: an output '<member>/<name>' has a row for each of the member's
        examples."""
        outputs = {}
        for name, part in parts.items():
            outputs |= _renamed(part.outputs, "", f"{name}/")
        return Predictions(np.concatenate(self._global_ids(parts)), outputs)

    def _joint(self, scores: Mapping[str, Scores]) -> Scores:
        """Returns the scores of all members, whose metrics are about their own examples alone.

        The mean is about all; in the columns of another member's metric an example has zeros.
        """
        ids_N = self._global_ids(scores)
        bounds = np.cumsum([0, *map(len, ids_N)])
        statistics, firsts = {}, []
        for start, stop, (name, part) in zip(bounds, bounds[1:], scores.items(), strict=False):
            rows = ((start, bounds[-1] - stop), (0, 0))
            padded = {m.name: np.pad(part.statistics[m.name], rows) for m in part.metrics}
            firsts.append(padded[part.metrics[0].name])
            is_own_N = (np.arange(bounds[-1]) >= start) & (np.arange(bounds[-1]) < stop)
            statistics |= {f"{name}/{key}": about(is_own_N, v) for key, v in padded.items()}
        is_in_mean_N = np.all([counted(first) for first in firsts], axis=0)
        return Scores(
            _metrics({n: s.metrics for n, s in scores.items()}, [f.shape[1] for f in firsts]),
            np.concatenate(ids_N),
            {MEAN: about(is_in_mean_N, np.concatenate(firsts, axis=1)), **statistics},
            {name: dict(part.detail) for name, part in scores.items()},
            {name: part.truth for name, part in scores.items()},
            _joint_groups([part.groups_N for part in scores.values()], np.diff(bounds)),
        )


def _joint_groups(parts: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray | None:
    """Returns the groups of all members' examples, none of them in two; None without any."""
    if all(groups_N is None for groups_N in parts):
        return None
    pairs = zip(parts, counts, strict=True)
    known = [np.arange(count) if groups_N is None else groups_N for groups_N, count in pairs]
    starts = np.cumsum([0, *(groups_N.max() + 1 for groups_N in known)])
    return np.concatenate(
        [start + groups_N for start, groups_N in zip(starts, known, strict=False)]
    )


def _metrics(metrics: Mapping[str, Sequence[Metric]], widths: Sequence[int]) -> tuple[Metric, ...]:
    """Returns the metrics over all members: the mean of their first ones, then all of theirs.

    A metric v of which less is better enters the mean as 1 / (1 + v), so that more is better.

    Args:
        metrics: of each member.
        widths: how many statistics the first of each has, side by side in those of the mean.
    """
    firsts = [of_member[0] for of_member in metrics.values()]
    parts = [(metric.value, metric.higher_is_better) for metric in firsts]
    bounds = np.cumsum(widths)[:-1].astype(int).tolist()
    named = [
        metric._replace(name=f"{name}/{metric.name}", title=f"{name}: {metric.title}")
        for name, of_member in metrics.items()
        for metric in of_member
    ]
    mean = functools.partial(_mean, parts, bounds)
    additive = all(metric.additive for metric in firsts)
    return (Metric(MEAN, "mean of the tasks", mean, additive=additive), *named)


def _mean(
    parts: Sequence[tuple[Callable, bool]],
    bounds: Sequence[int],
    sums: np.ndarray,
    whole: np.ndarray,
) -> np.ndarray:
    """Metric.value of the mean: `parts` are of each member value and whether more is better."""
    values = []
    sides = (np.split(statistics, bounds, axis=-1) for statistics in (sums, whole))
    for (value_of, higher_is_better), own_sums, own_whole in zip(parts, *sides, strict=True):
        value = value_of(own_sums, own_whole)
        values.append(value if higher_is_better else 1 / (1 + value))
    return np.mean(values, axis=0)


def _prefix(name: str) -> str:
    """Returns how the parameters of a member's head begin."""
    return f"{mixture.HEADS}{name}/"


def _renamed(values: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Returns the values whose name begins with `old`, under names that begin with `new`."""
    return {new + k.removeprefix(old): v for k, v in values.items() if k.startswith(old)}
