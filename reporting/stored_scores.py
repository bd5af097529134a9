"""Scores as a file beside the results, so that runs can be compared without their models.

One .npz holds, of every row of a results table, the examples' ids, a digest of their true answers
and the statistics of each metric. Written by workflows/finish.py, read by comparison.py.
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

_ROOMS = ("evaluation.", "tasks.")  # modules that metrics may come from


def write_scores(path: str | Path, scores: Mapping[str, Scores]) -> None:
    """Writes the scores of a table's rows, whole or not at all; their details are left out.

    Args:
        path: an .npz file.
        scores: row name -> scores.
    """
    path, header, arrays = Path(path), {}, {}
    for row, (name, found) in enumerate(scores.items()):
        metrics = [metric for metric in found.metrics if metric.name in found.statistics]
        header[name] = {
            "metrics": [metric._asdict() | {"value": _name(metric.value)} for metric in metrics],
            "truth": found.truth,
        }
        arrays[f"{row}/ids"] = found.ids_N
        for column, metric in enumerate(metrics):
            arrays[f"{row}/{column}"] = found.statistics[metric.name]
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)


def read_scores(path: str | Path) -> dict[str, Scores]:
    """Reads what `write_scores` wrote.

    Raises:
        ValueError: the file is another's, or names a metric that is not there.
        OSError: it could not be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            return {
                name: Scores(
                    tuple(
                        Metric(**metric | {"value": _function(metric["value"])})
                        for metric in found["metrics"]
                    ),
                    file[f"{row}/ids"],
                    {
                        metric["name"]: file[f"{row}/{column}"]
                        for column, metric in enumerate(found["metrics"])
                    },
                    truth=found["truth"],
                )
                for row, (name, found) in enumerate(header.items())
            }
    except (KeyError, AttributeError, zipfile.BadZipFile, ImportError) as error:
        raise ValueError(
            f"{path} does not hold scores that this version knows ({error}): write them anew with "
            "--mode=test"
        ) from None


def _name(value: Any) -> Any:
    """Names a function, with the arguments that are bound to it; what is JSON stays."""
    if isinstance(value, functools.partial):
        return {"function": _name(value.func), "arguments": [_name(each) for each in value.args]}
    if isinstance(value, list | tuple):
        return [_name(each) for each in value]
    if callable(value):
        return {"function": f"{value.__module__}:{value.__qualname__}"}
    return value


def _function(value: Any) -> Any:
    """The reverse of `_name`."""
    if isinstance(value, list):
        return [_function(each) for each in value]
    if not isinstance(value, dict):
        return value
    function = value["function"]
    if isinstance(function, str):
        module, _, name = function.partition(":")
        if not module.startswith(_ROOMS):
            raise AttributeError(f"{function} is not one of its metrics")
        function = getattr(importlib.import_module(module), name)
    else:
        function = _function(function)
    if "arguments" not in value:
        return function
    return functools.partial(function, *(_function(each) for each in value["arguments"]))
