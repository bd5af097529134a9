"""Several tasks that share the backbone: a head, a loss and metrics for each of them, kept apart.

Every batch is of one member, which its names tell when it is traced
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
from input_pipeline.batches.mixture import (
    MARKER,
    Mixture,
    global_ids,
    member_configs,
    member_of,
    own_ids,
)
from input_pipeline.batches.template import Encoder
from input_pipeline.tokenizers.tokenization import Tokenizer
from models.backbone import BackboneConfig
from tasks import task_class
from tasks.limits import Given, Limit
from tasks.task import Loss, Task

MEAN = "mean"  # the metric over all members


class MemberHeads(nn.Module):
    """A head per member, under 'heads_<name>'; a batch meets that of its member.

    A batch of all members, as MultiTask.blank makes it, meets all, so that their parameters are
    drawn; nothing is made of the outputs then.

    Attributes:
        names: of the members.
        head_of: the unbound head of each. Not a dict of them, which Linen would bind as it stands
            in this module before models.heads.Model makes its own copy of it.
    """

    names: tuple[str, ...]
    head_of: Callable[[str], nn.Module]

    @nn.compact
    def __call__(
        self,
        backbone: nn.Module,
        hidden_RxLxD: jax.Array,
        batch: Mapping[str, jax.Array],
        *,
        deterministic: bool,
    ) -> dict[str, jax.Array]:
        """Returns the outputs of the batch's member."""
        outputs = {}
        for name in self.names:
            if MARKER + name in batch:
                head = self.head_of(name).clone(name=f"heads_{name}", parent=self)
                outputs = head(backbone, hidden_RxLxD, batch, deterministic=deterministic)
        return outputs


class MultiTask(Task):
    """The tasks of config.multi.members in one.

    Attributes:
        members: name -> task. Each has its own labels, options and metrics.
    """

    METRICS = ()
    FLOOR = "each task's floor"

    def __init__(
        self,
        config: ConfigDict,
        labels: Mapping[str, Sequence[str]],
        *,
        tokenizer: Tokenizer,
        backbone: BackboneConfig,
    ):
        """Makes the members.

        Args:
            config: the whole config.
            labels: of each member.
            tokenizer: of the run.
            backbone: shapes of the model.

        Raises:
            ValueError: members that do not make sense, or that `labels` do not name.
        """
        configs = member_configs(config)
        if labels.keys() != configs.keys():
            raise ValueError(
                f"config.multi.members are {list(configs)}, but there are labels for "
                f"{list(labels)}: take the members that the run was trained with"
            )
        self.members: dict[str, Task] = {
            name: task_class(own.task)(own, labels[name], tokenizer=tokenizer, backbone=backbone)
            for name, own in configs.items()
        }
        super().__init__(config, (), tokenizer=tokenizer, backbone=backbone)
        self.labels = {name: list(labels[name]) for name in configs}
        self.POSITIONS = tuple({n: None for task in self.members.values() for n in task.POSITIONS})

    @property
    def fitted(self) -> dict[str, Any]:
        """What each member fitted."""
        return {name: task.fitted for name, task in self.members.items()}

    @fitted.setter
    def fitted(self, value: Mapping[str, Any]) -> None:
        for name, task in self.members.items():
            task.fitted = value.get(name, {})

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The mean of the members' first metrics, then all of theirs as '<member>/<metric>'."""
        return _metrics({name: task.metrics for name, task in self.members.items()}, ())

    @property
    def parts(self) -> tuple[str, ...]:
        """What the heads of all members call."""
        return tuple({part: None for task in self.members.values() for part in task.parts})

    def prose(self) -> str:
        """Says what is learned."""
        return "; ".join(f"{name}: {task.prose()}" for name, task in self.members.items())

    def check(self, examples: Mixture, split: str) -> None:
        """Checks the examples of each member."""
        for name, task in self.members.items():
            task.check(examples.parts[name], split)

    def limits(self, given: Given) -> Iterator[Limit]:
        """Yields what each member does, naming it."""
        for name, task in self.members.items():
            own = given._replace(
                examples=given.examples.parts[name],
                windows=given.windows.parts[name],
                pipeline=given.pipeline.pipelines[name],
            )
            for limit in task.limits(own):
                yield limit._replace(what=f"{name} {limit.what}")

    def windows(
        self, examples: Mixture, encoder: Mapping[str, Encoder], *, training: bool
    ) -> Mixture:
        """Returns the windows of each member."""
        return examples.map(
            lambda name, part: self.members[name].windows(part, encoder[name], training=training)
        )

    def head(self, *, num_features: int) -> nn.Module:
        """Returns the heads of all members."""
        heads = {n: task.head(num_features=num_features) for n, task in self.members.items()}
        return MemberHeads(tuple(heads), heads.__getitem__)

    def blank(self, *, num_features: int) -> dict[str, jax.Array]:
        """Returns a batch of all members, which draws the parameters of all their heads."""
        batch: dict[str, jax.Array] = {}
        for name, task in self.members.items():
            batch |= task.blank(num_features=num_features)
            batch[MARKER + name] = jnp.ones(1, jnp.int32)
        return batch

    def start_head(
        self, heads: dict[str, np.ndarray], params: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], set[str]]:
        """Lets each member start its own head."""
        started, fresh = dict(heads), set(heads)
        for name, task in self.members.items():
            prefix = f"head/heads_{name}/"
            own, own_fresh = task.start_head(_renamed(heads, prefix, "head/"), params)
            fresh -= {path for path in heads if path.startswith(prefix)}
            fresh |= _renamed(dict.fromkeys(own_fresh), "head/", prefix).keys()
            started |= _renamed(own, "head/", prefix)
        return started, fresh

    def loss(self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> Loss:
        """The loss of the batch's member; its sums are named for it."""
        name = member_of(batch)
        total, weight, sums = self.members[name].loss(outputs, batch)
        sums = {"loss": total, **sums}
        return total, weight, {f"{name}/{key}": value for key, value in sums.items()}

    def outputs(
        self, outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> Mapping[str, jax.Array]:
        """Returns what the batch's member fetches, named for it."""
        name = member_of(batch)
        found = self.members[name].outputs(outputs, batch)
        return {f"{name}/{key}": value for key, value in found.items()}

    def decode(
        self,
        predictions: Predictions,
        windows: Mixture,
        examples: Mixture,
        encoder: Mapping[str, Encoder],
    ) -> Predictions:
        """Decodes the predictions of each member."""
        return self._join(
            {
                name: self.members[name].decode(
                    found, windows.parts[name], examples.parts[name], encoder[name]
                )
                for name, found in self._split(predictions).items()
            }
        )

    def complete(
        self,
        predictions: Predictions,
        examples: Mixture,
        encoder: Mapping[str, Encoder],
        *,
        model: nn.Module,
        params: Mapping[str, jax.Array],
        adapted: Callable[[Callable], Callable],
    ) -> Predictions:
        """Completes each member's with the model that has its head alone."""
        found = {}
        for name, part in self._split(predictions).items():
            prefix = f"head/heads_{name}/"
            backbone = {p: value for p, value in params.items() if not p.startswith("head/")}
            found[name] = self.members[name].complete(
                part,
                examples.parts[name],
                encoder[name],
                model=model.clone(task_head=model.task_head.head_of(name)),
                params=backbone | _renamed(params, prefix, "head/"),
                adapted=adapted,
            )
        return self._join(found)

    def fit(self, predictions: Predictions, validation: Mixture) -> dict[str, Any]:
        """Returns what each member chooses."""
        return {
            name: self.members[name].fit(found, validation.parts[name])
            for name, found in self._split(predictions).items()
        }

    def score(self, predictions: Predictions, examples: Mixture) -> Scores:
        """Scores each member's predictions, whose metrics are about its own examples."""
        return self._joint(
            {
                name: self.members[name].score(found, examples.parts[name])
                for name, found in self._split(predictions).items()
            }
        )

    def baselines(self, train: Mixture, examples: Mixture) -> dict[str, Scores]:
        """Returns one row, in which each member has the baseline it is compared with."""
        floors = {
            name: task.baselines(train.parts[name], examples.parts[name])[task.FLOOR]
            for name, task in self.members.items()
        }
        return {self.FLOOR: self._joint(floors)}

    def describe(self, predictions: Predictions, examples: Mixture) -> Iterator[dict[str, Any]]:
        """Yields each member's dicts, with its name; ids are the member's own."""
        for name, found in self._split(predictions).items():
            for record in self.members[name].describe(found, examples.parts[name]):
                yield {"member": name, **record}

    def _split(self, predictions: Predictions) -> dict[str, Predictions]:
        """Returns the predictions of each member that has some."""
        found = {}
        for index, name in enumerate(self.members):
            ids_N = own_ids(index, predictions.ids_N)
            if len(ids_N):
                found[name] = Predictions(ids_N, _renamed(predictions.outputs, f"{name}/", ""))
        return found

    def _join(self, found: Mapping[str, Predictions]) -> Predictions:
        """The way back: an output '<member>/<name>' has a row for each example of the member."""
        order = list(self.members)
        ids = [global_ids(order.index(name), part.ids_N) for name, part in found.items()]
        outputs = [_renamed(part.outputs, "", f"{name}/") for name, part in found.items()]
        return Predictions(np.concatenate(ids), {k: v for part in outputs for k, v in part.items()})

    def _joint(self, scores: Mapping[str, Scores]) -> Scores:
        """Returns the scores of all members, whose metrics are about their own examples alone.

        The mean is about all; in the columns of another member's metric an example has zeros.
        """
        order = list(self.members)
        ids_N = [global_ids(order.index(name), part.ids_N) for name, part in scores.items()]
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
        )


def _metrics(metrics: Mapping[str, Sequence[Metric]], widths: Sequence[int]) -> tuple[Metric, ...]:
    """Returns the metrics over all members.

    A metric v of which less is better enters the mean as 1 / (1 + v), so that more is better.

    Args:
        metrics: of each member.
        widths: how many statistics the first of each has, side by side in those of the mean.
    """
    firsts = [of_member[0] for of_member in metrics.values()]
    parts = [(metric.value, metric.higher_is_better) for metric in firsts]
    bounds = np.cumsum(widths)[:-1].astype(int).tolist()
    each = [
        metric._replace(name=f"{name}/{metric.name}", title=f"{name}: {metric.title}")
        for name, of_member in metrics.items()
        for metric in of_member
    ]
    mean = functools.partial(_mean, parts, bounds)
    additive = all(metric.additive for metric in firsts)
    return (Metric(MEAN, "mean of the tasks", mean, additive=additive), *each)


def _mean(
    parts: Sequence[tuple[Callable, bool]],
    bounds: Sequence[int],
    sums: np.ndarray,
    whole: np.ndarray,
) -> np.ndarray:
    """Metric.value of the mean: `parts` are of each member value and whether more is better."""
    values = []
    own = (np.split(statistics, bounds, axis=-1) for statistics in (sums, whole))
    for (value_of, higher_is_better), own_sums, own_whole in zip(parts, *own, strict=True):
        value = value_of(own_sums, own_whole)
        values.append(value if higher_is_better else 1 / (1 + value))
    return np.mean(values, axis=0)


def _renamed(values: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Returns the values whose name begins with `old`, under names that begin with `new`."""
    return {new + k.removeprefix(old): v for k, v in values.items() if k.startswith(old)}
