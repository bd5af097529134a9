"""What a run is trained, chosen and tested on: prepared data and their splits.

The data of one task and of several tasks, which are prepared separately, have one interface.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.batches.mixture import Mixture
from input_pipeline.corpus.manifest import prose
from input_pipeline.corpus.preparation import Prepared, load_split, prepare
from input_pipeline.examples import Examples
from tasks import task_class


@dataclasses.dataclass(frozen=True, eq=False)
class RunData:
    """The prepared data of one task.

    Attributes:
        labels: what the task predicts; JSON-ready.
        fingerprints: of the splits.
        available: number of training examples, before config.data.max_train_examples.
    """

    config: ConfigDict
    prepared: Prepared

    @property
    def labels(self) -> Any:
        """What the task predicts: class names, of tagging those of spans."""
        return list(self.prepared.manifest[task_class(self.config).LABELS])

    @property
    def splits(self) -> Mapping[str, Any]:
        """The manifest's facts about each split that has examples."""
        splits = self.prepared.manifest["splits"]
        return {name: part for name, part in splits.items() if part["examples"]}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the splits."""
        return {name: part["fingerprint"] for name, part in self.splits.items()}

    @property
    def available(self) -> int:
        """Number of training examples, before config.data.max_train_examples."""
        return self.splits["train"]["examples"]

    @functools.lru_cache(maxsize=4)  # noqa: B019, as many as there are splits
    def split(self, name: str) -> Examples:
        """Returns the first config.data.max_<name>_examples of a split.

        Raises:
            ValueError: there is no such split, or it is empty.
        """
        if name not in self.splits:
            raise ValueError(
                f"the data have no {name} examples, but {sorted(self.splits)}: raise config.data."
                f"split.{name}, or set config.data.{name}_files and config.data.split.kind='given'"
            )
        return load_split(self.prepared, name, limit=self.config.data[f"max_{name}_examples"])

    def used(self, name: str) -> int:
        """Returns how many examples of a split `split` returns."""
        size = self.prepared.manifest["splits"][name]["examples"]
        return min(self.config.data[f"max_{name}_examples"] or size, size)

    def prose(self) -> str:
        """Describes what was prepared, how much of it is used, and where it is."""
        sizes = {name: (self.used(name), part["examples"]) for name, part in self.splits.items()}
        some = [f"{n:,} of {size:,} {name}" for name, (n, size) in sizes.items() if n < size]
        kept = f"config.data.max_*_examples leave {', '.join(some)} examples.\n" if some else ""
        return (
            f"{prose(self.prepared.manifest)}\n{kept}"
            f"Data: {self.prepared.directory}, described in its manifest.json."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SeveralData:
    """The data of several tasks, with the interface of RunData.

    Attributes:
        members: name -> its data.
    """

    members: Mapping[str, RunData]

    @property
    def labels(self) -> dict[str, Any]:
        """What each member predicts."""
        return {name: data.labels for name, data in self.members.items()}

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The manifests' facts about each split that all members have."""
        shared = set.intersection(*(set(data.splits) for data in self.members.values()))
        return {
            split: {name: data.splits[split] for name, data in self.members.items()}
            for split in sorted(shared)
        }

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the splits over all members."""
        return {
            split: " ".join(part["fingerprint"] for part in parts.values())
            for split, parts in self.splits.items()
        }

    @property
    def available(self) -> int:
        """Number of training examples of all members."""
        return sum(data.available for data in self.members.values())

    def split(self, name: str) -> Mixture:
        """Returns a split of all members, each up to its own limit."""
        return Mixture({member: data.split(name) for member, data in self.members.items()})

    def prose(self) -> str:
        """Describes what was prepared, and where it is."""
        return "\n".join(f"{name}: {data.prose()}" for name, data in self.members.items())


def load_data(config: ConfigDict) -> RunData | SeveralData:
    """Prepares the data of config.data, or of each member, unless they are prepared already."""
    if members := task_class(config).member_configs(config):
        return SeveralData({name: load_data(member) for name, member in members.items()})
    return RunData(config, prepare(config.data))
