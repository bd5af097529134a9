"""The planned runs of a sweep: their configs, names, folders and commands. Nothing runs here."""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import common
from configs.checks import check_values
from configs.overrides import check_keys, key_paths, load_config, read_key
from configs.sweeping import Overrides
from tasks import KINDS
from training.workdir import run_command

REPEATED = ("seed", "data.split.fold")  # keys of which several values are repeats of one setting
_PER_SWEEP = ("seeds", "search")  # keys that no single run has


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run that has not started.

    Attributes:
      name: of its folder.
      setting: the name without seed and fold: runs that share it are repeats.
      overrides: what it changes.
      config: with the overrides.
      workdir: its folder.
    """

    name: str
    setting: str
    overrides: Overrides
    config: ConfigDict
    workdir: Path

    @property
    def facts(self) -> dict[str, Any]:
        """The first entries of its record."""
        return {"name": self.name, "setting": self.setting, "overrides": self.overrides}


def plan(
    config: ConfigDict, workdir: Path, entries: Sequence[Mapping[str, Any]], *, recipe: str
) -> list[Planned]:
    """Returns the runs of a sweep after a check of all their values."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"a sweep is a list of {{key: value}}, found {entries!r}")
    if not entries:
        raise ValueError(f"the sweep of {recipe} is empty: expected at least one run")
    keys = sorted({key for entry in entries for key in entry})
    check_keys(load_config(recipe), [f"config.{key}" for key in keys])
    if shared_keys := [key for key in keys if key.split(".")[0] in _PER_SWEEP]:
        raise ValueError(f"a sweep cannot set {shared_keys[0]}, which is of all runs; set 'seed'")
    shared = config.copy_and_resolve_references()
    shared.update({key: common.get_config()[key] for key in _PER_SWEEP})
    shared.eval.test = config.eval.test and set(keys) <= set(REPEATED)
    planned, seen = [], {}
    for entry in entries:
        run = _planned(shared, workdir, entry)
        same = seen.setdefault(run.config.to_json(), len(planned))
        if same < len(planned):
            raise ValueError(
                f"runs {same + 1} and {len(planned) + 1} of the sweep, {entries[same]} and "
                f"{entry}, are the same: take one out"
            )
        planned.append(run)
    return planned


def run_name(config: ConfigDict, keys: Collection[str]) -> str:
    """Names a run after its values: 'learning_rate=0.0001,seed=1', fit for a folder.

    The name depends on nothing else, so that a sweep may grow. Characters that are unfit for a file
    name are replaced, and a digest is added.
    """
    paths = [path.removeprefix("config.") for path in key_paths(config)]
    parts = []
    for key in sorted(keys):
        names, value = key.split("."), read_key(config, f"config.{key}")
        ends = (".".join(names[-count:]) for count in range(1, len(names) + 1))
        short = next(
            end
            for end in ends
            if end == key or sum(f".{p}".endswith(f".{end}") for p in paths) == 1
        )
        parts.append(f"{short}={_safe(value if isinstance(value, str) else repr(value), 40)}")
    return _safe(",".join(parts), 180) if parts else "unchanged"


def command(run: Planned, recipe: str, *, mode: str = "train") -> str:
    """Returns the shell command of one run."""
    return run_command(run.config, run.workdir, recipe=recipe, mode=mode)


def _planned(shared: ConfigDict, workdir: Path, overrides: Mapping[str, Any]) -> Planned:
    config = shared.copy_and_resolve_references()
    for key, value in overrides.items():
        value = value.item() if isinstance(value, np.generic) else value
        value = tuple(value) if isinstance(value, list) else value
        current = read_key(config, f"config.{key}")
        if isinstance(current, ConfigDict):
            raise ValueError(f"a sweep sets {key}, which is a group of keys: name one of them")
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError:
            raise ValueError(
                f"a sweep sets {key} to {value!r}, expected {type(current).__name__} like "
                f"{current!r}"
            ) from None
    try:
        check_values(config, tasks=KINDS)
    except ValueError as error:
        raise ValueError(f"the sweep's run {dict(overrides)}: {error}") from None
    name = run_name(config, overrides)
    setting = run_name(config, overrides.keys() - set(REPEATED))
    values = {key: read_key(config, f"config.{key}") for key in overrides}
    return Planned(name, setting, values, config, workdir / name)


def _safe(text: str, length: int) -> str:
    """Returns text fit for a file name, with a digest of what was replaced or cut."""
    kept = re.sub(r"[^\w.,=+~-]+", "_", text).encode()[:length].decode(errors="ignore")
    return kept if kept == text else f"{kept}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
