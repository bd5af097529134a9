"""Several data sets in one run: their examples side by side, and a stream that mixes their batches.

Here: the configs of the members, examples of all of them under one numbering, which step is of
which member, and a pipeline with the interface of TextPipeline that hands out batches of one member
at a time. Not here: making batches (pipeline.py) and tasks (tasks/multi_task.py). Imports no
TensorFlow.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.common import TASK_GROUPS
from input_pipeline.batches.stream import random_words
from input_pipeline.batches.template import Encoder
from input_pipeline.examples import Examples

MARKER = "member_"  # a batch of the member 'x' holds an array 'member_x'
HEADS = "head/heads_"  # the parameters of its head begin with 'head/heads_x/'

# What a member's config decides; all else is the run's.
_GROUPS = ("task", "data", "augmentation", *TASK_GROUPS)
_HEAD = ("head", "pooling", "head_bias", "label_words", "dropout")  # of config.model
_NAME = re.compile("[a-z][a-z0-9_]*")
_STRIDE = 1 << 40  # ids of one member lie below; a split has fewer examples
_STEPS = 4096  # whose members are looked up at once
_GOLDEN = (5**0.5 - 1) / 2


def member_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of each member: its own task, data and head, the rest of the run.

    Args:
        config: of the run. Members come in the order of their names.

    Raises:
        ValueError: fewer than two members, a name that cannot be one, a member of several tasks, or
            features.
    """
    if len(config.multi.members) < 2:
        raise ValueError(
            f"config.multi.members holds {list(config.multi.members)}: config.task='multi_task' "
            "needs two or more, see configs/multi.py"
        )
    if config.features.use != "none":
        raise ValueError("config.features.use: with several tasks only 'none' is possible")
    configs = {}
    for name, given in config.multi.members.items():
        if not _NAME.fullmatch(name) or given.task == "multi_task":
            raise ValueError(
                f"config.multi.members.{name} (task {given.task!r}): expected a name of lower-case "
                "letters, digits and _, and another task than 'multi_task'"
            )
        member = config.copy_and_resolve_references().unlock()
        member.multi.members = ConfigDict()
        member.update({key: given[key] for key in _GROUPS})
        member.model.update({key: given.model[key] for key in _HEAD})
        member.data.batch_size = config.data.batch_size
        member.data.prepared_dir = given.data.prepared_dir or config.data.prepared_dir
        configs[name] = member
    return configs


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """The examples of several members, one member after the other; what Examples are to a loop.

    Attributes:
        parts: member -> its examples, each with ids of its own. Ids of the whole are unique: those
            of the second member lie above all of the first's, and so on, in every selection.
    """

    parts: Mapping[str, Examples]

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    @property
    def texts_N(self) -> np.ndarray:
        """The first texts of all."""
        return np.concatenate([part.texts_N for part in self.parts.values()])

    @property
    def all_texts(self) -> list[str]:
        """The texts of all."""
        return [text for part in self.parts.values() for text in part.all_texts]

    @property
    def ids_N(self) -> np.ndarray:
        """Ids that are unique over all members."""
        return self._joined([part.ids_N for part in self.parts.values()])

    @property
    def owners_N(self) -> np.ndarray | None:
        """Not None where a member's examples are windows of longer ones."""
        return None if all(part.owners_N is None for part in self.parts.values()) else self.ids_N

    @property
    def leaked_ids(self) -> np.ndarray:
        """Those of `ids_N` with a copy in another split of their member."""
        return self._joined([part.leaked_ids for part in self.parts.values()])

    def take(self, indices: np.ndarray) -> "Mixture":
        """Returns the examples of those indices, or of a mask; members stay one after the other."""
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        taken, start = {}, 0
        for name, part in self.parts.items():
            inside = (indices >= start) & (indices < start + len(part))
            taken[name] = part.take(indices[inside] - start)
            start += len(part)
        return Mixture(taken)

    def first(self, count: int) -> "Mixture":
        """Returns the first examples of each member: `count` of all, shared out by their sizes."""
        share = min(1.0, count / max(len(self), 1))
        return Mixture(
            {name: part.first(round(share * len(part))) for name, part in self.parts.items()}
        )

    def map(self, function: Callable[[str, Examples], Examples]) -> "Mixture":
        """Returns a mixture of `function(name, examples)` of each member."""
        return Mixture({name: function(name, part) for name, part in self.parts.items()})

    def _joined(self, ids: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([global_ids(i, ids_N) for i, ids_N in enumerate(ids)])


def global_ids(member: int, ids_N: np.ndarray) -> np.ndarray:
    """Returns the ids in a Mixture of a member's own ones; -1, of padding, stays."""
    return np.where(ids_N < 0, ids_N, ids_N + member * _STRIDE)


def own_ids(member: int, ids_N: np.ndarray) -> np.ndarray:
    """Returns a member's own ids among those of a Mixture: the way back of `global_ids`."""
    return ids_N[ids_N // _STRIDE == member] - member * _STRIDE


def member_of(batch: Mapping[str, Any]) -> str:
    """Returns which member a batch is of: a fact about its names, known when it is traced.

    Raises:
        ValueError: it is of none or of several.
    """
    names = [name.removeprefix(MARKER) for name in batch if name.startswith(MARKER)]
    if len(names) != 1:
        raise ValueError(f"a batch is of exactly one member, found {names}")
    return names[0]


def head_of(path: str) -> str:
    """Returns the start of the paths of a member's head, '' for any other parameter's path."""
    return path[: path.index("/", len(HEADS)) + 1] if path.startswith(HEADS) else ""


def is_read(path: str, batch: Mapping[str, Any]) -> bool:
    """Returns whether a batch reads a parameter: all but the heads of the other members."""
    head = head_of(path)
    return not head or MARKER + head[len(HEADS) : -1] in batch


class Schedule:
    """Which member each step is of: a function of the seed and the step, without a state.

    Step s takes the member in whose share of [0, 1) lies the fractional part of u + s / phi, phi
    the golden ratio and u drawn from the seed. Of all sequences of this kind it keeps closest to
    the rates: after any number of steps, each member is within a few of its share.
    """

    def __init__(self, rates: Mapping[str, float], *, seed: int):
        """Takes the members' rates, in any unit."""
        self.names = tuple(rates)
        self.rates_M = np.array(list(rates.values()), np.float64) / sum(rates.values())
        self._bounds_M = np.cumsum(self.rates_M)[:-1]
        # 53 bits as a float in [0, 1); see stream.py for why it is no Generator's.
        self._start = float(random_words((seed, len(rates)), 1)[0] >> 11) * 2.0**-53

    def at(self, first: int, count: int) -> np.ndarray:
        """Returns the index of the member of the steps `first` to `first + count - 1`, int64."""
        points = (self._start + np.arange(first, first + count) * _GOLDEN) % 1.0
        return np.searchsorted(self._bounds_M, points, side="right")

    def before(self, step: int, *, since: int = 0) -> np.ndarray:
        """Returns how many of the steps `since` to `step - 1` are of each member, int64 [M]."""
        return np.bincount(self.at(since, step - since), minlength=len(self.names))


def mixing_rates(multi: ConfigDict, sizes: Mapping[str, int]) -> dict[str, float]:
    """Returns each member's share of the steps.

    Args:
        multi: config.multi.
        sizes: training examples of each member, whose share is theirs ** (1 / temperature) (as in
            1910.10683), so that 1 mixes examples and a large one members alike.

    Raises:
        ValueError: more or fewer rates than members.
    """
    if multi.rates:
        if len(multi.rates) != len(sizes):
            raise ValueError(
                f"config.multi.rates={tuple(multi.rates)}: expected a number for each of "
                f"{', '.join(sizes)}, in this order"
            )
        rates = dict(zip(sizes, multi.rates, strict=True))
    else:
        largest = max(sizes.values())
        rates = {name: (size / largest) ** (1 / multi.temperature) for name, size in sizes.items()}
    total = sum(rates.values())
    return {name: rate / total for name, rate in rates.items()}


@dataclasses.dataclass(frozen=True)
class MixturePlan:
    """The plans of the members, and their shares of the steps."""

    plans: Mapping[str, Any]
    rates: Mapping[str, float]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Those of all members."""
        return [shape for plan in self.plans.values() for shape in plan.shapes]

    def prose(self) -> str:
        """Describes it for the start-up log."""
        return "\n".join(
            f"Member {name!r} gets {self.rates[name]:.1%} of the steps. {plan.prose()}"
            for name, plan in self.plans.items()
        )


class Position(NamedTuple):
    """Where the streams of a mixture stand; JSON-ready.

    Attributes:
        step: steps so far.
        seen: examples that each member gave to them.
    """

    step: int
    seen: Mapping[str, int]


class MixturePipeline:
    """The pipelines of several members as one; every batch is of a single member.

    A batch is the member's own with an array `member_<name>` more: int32 [1], in training [M, 1].
    """

    def __init__(self, pipelines: Mapping[str, Any], config: ConfigDict):
        """Takes the TextPipeline of each member, and the config of the run."""
        self.pipelines, self._config = dict(pipelines), config

    @property
    def encoder(self) -> dict[str, Encoder]:
        """Texts to tokens, by member."""
        return {name: pipeline.encoder for name, pipeline in self.pipelines.items()}

    def ids(self, examples: Mixture) -> set[int]:
        """Returns all token ids that the examples have."""
        return set().union(*(self.pipelines[name].ids(x) for name, x in examples.parts.items()))

    def plan(self, examples: Mixture) -> MixturePlan:
        """Chooses the shapes of each member's training batches."""
        plans = {name: self.pipelines[name].plan(part) for name, part in examples.parts.items()}
        return MixturePlan(plans, self._rates(examples))

    def seen(
        self,
        examples: Mixture,
        step: int,
        *,
        since: Sequence | None = None,
        batch_size: int = 0,
    ) -> Position:
        """Returns where the streams of the members stand after `step` steps.

        Args:
            examples: the training splits.
            step: of the whole run.
            since: a Position, or one from JSON: where they stood earlier. That is no function of
                the step, since batch sizes and rates may have been others; None is the start.
            batch_size: of the steps since; 0 takes the present one.
        """
        first, seen = since or (0, {})
        schedule, size = self._schedule(examples), batch_size or self._config.data.batch_size
        counts = zip(schedule.names, schedule.before(step, since=first).tolist(), strict=True)
        return Position(step, {n: seen.get(n, 0) + count * size for n, count in counts})

    def train(
        self, examples: Mixture, *, first_example: int, position: Position | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields training batches without end.

        A member's own stream goes on where its earlier steps left it, so that a run that is resumed
        sees what it would have seen, with another batch size or other rates too.

        Args:
            examples: the training splits.
            first_example: step * batch_size to go on after `step` steps like those to come.
            position: to go on after others; takes the place of `first_example`.
        """
        schedule, config = self._schedule(examples), self._config
        position = position or self.seen(examples, first_example // config.data.batch_size)
        streams = {
            name: self.pipelines[name].train(part, first_example=position.seen.get(name, 0))
            for name, part in examples.parts.items()
        }
        for step in itertools.count(position.step, _STEPS):
            for member in schedule.at(step, _STEPS).tolist():
                name = schedule.names[member]
                yield _marked(next(streams[name]), member, name, config.train.microbatches, 1)

    def evaluate(self, examples: Mixture) -> Iterator[dict[str, np.ndarray]]:
        """Yields every example once, member by member, as TextPipeline.evaluate does."""
        for member, (name, part) in enumerate(examples.parts.items()):
            for batch in self.pipelines[name].evaluate(part):
                yield _marked(batch, member, name, 1)

    def _schedule(self, examples: Mixture) -> Schedule:
        return Schedule(self._rates(examples), seed=self._config.seed)

    def _rates(self, examples: Mixture) -> dict[str, float]:
        return mixing_rates(self._config.multi, {n: len(p) for n, p in examples.parts.items()})


def _marked(
    batch: Mapping[str, np.ndarray], member: int, name: str, *shape: int
) -> dict[str, np.ndarray]:
    ids_B = global_ids(member, batch["ids_B"])
    return {**batch, "ids_B": ids_B, MARKER + name: np.ones(shape, np.int32)}
