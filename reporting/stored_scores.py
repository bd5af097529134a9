"""Scores as a file beside the results, so that runs can be compared without their models.

One .npz holds, for every row of a results table, the examples' ids and groups, a digest of their
true answers and the statistics of each metric.
"""

import functools
import importlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import Metric, Scores
from input_pipeline.files import replacing

_FOLDERS = ("evaluation.", "tasks.")  # modules that metrics may come from


def write_scores(path: str | Path, scores: Mapping[str, Scores]) -> None:
    """Writes the scores of a table's rows, whole or not at all; their details are left out.

    Args:
        path: an .npz file.
        scores: row name -> scores.
    """
    header, arrays = {}, {}
    for number, (name, row) in enumerate(scores.items()):
        metrics = [metric for metric in row.metrics if metric.name in row.statistics]
        header[name] = {
            "metrics": [metric._asdict() | {"value": _name(metric.value)} for metric in metrics],
            "truth": row.truth,
        }
        arrays[f"{number}/ids"] = row.ids_N
        if row.groups_N is not None:
            arrays[f"{number}/groups"] = row.groups_N
        for column, metric in enumerate(metrics):
            arrays[f"{number}/{column}"] = row.statistics[metric.name]
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)


def read_scores(path: str | Path) -> dict[str, Scores]:
    """Reads what `write_scores` wrote.

    Raises:
        ValueError: the file is another's, or names a metric that does not exist.
        OSError: it could not be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = enumerate(json.loads(str(file["header"])).items())
            return {name: _row(file, number, facts) for number, (name, facts) in rows}
    except (KeyError, AttributeError, zipfile.BadZipFile, ImportError) as error:
        raise ValueError(
            f"{path} does not hold scores that this version knows ({error}): write them again with "
            "--mode=test"
        ) from None


def _row(file: Mapping[str, np.ndarray], number: int, facts: Mapping[str, Any]) -> Scores:
    values = [metric | {"value": _function(metric["value"])} for metric in facts["metrics"]]
    metrics = tuple(Metric(**metric) for metric in values)
    statistics = {metric.name: file[f"{number}/{i}"] for i, metric in enumerate(metrics)}
    groups_N = file.get(f"{number}/groups")  # files of older versions hold none
    ids_N, truth = file[f"{number}/ids"], facts["truth"]
    return Scores(metrics, ids_N, statistics, truth=truth, groups_N=groups_N)


def _name(value: Any) -> Any:
    """Names a function, with the arguments that are bound to it; what is JSON stays."""
    if isinstance(value, functools.partial):
        return {"function": _name(value.func), "arguments": _name(value.args)}
    if isinstance(value, list | tuple):
        return [_name(item) for item in value]
    if callable(value):
        return {"function": f"{value.__module__}:{value.__qualname__}"}
    return value


def _function(value: Any) -> Any:
    """The reverse of `_name`."""
    if isinstance(value, list):
        return [_function(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "arguments" in value:
        return functools.partial(_function(value["function"]), *_function(value["arguments"]))
    module, _, name = value["function"].partition(":")
    if not module.startswith(_FOLDERS):
        raise AttributeError(f"{value['function']} is not one of its metrics")
    return getattr(importlib.import_module(module), name)
