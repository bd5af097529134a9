"""Kinds of task: what is learned from a batch, and what a prediction is. One file per kind."""

import importlib
from typing import Any

from ml_collections import ConfigDict

# config.task, of classification with config.classification.kind: module and class.
_CLASSES = {
    "classification/single": "classification.Classification",
    "classification/multi": "multi_label.MultiLabel",
    "classification/regression": "regression.Regression",
    "classification/ordinal": "ordinal.Ordinal",
    "classification/hierarchical": "hierarchical.Hierarchical",
    "tagging": "tagging.Tagging",
    "reading_comprehension": "reading_comprehension.ReadingComprehension",
    "multiple_choice": "multiple_choice.MultipleChoice",
    "masked_language_modelling": "language_modelling.MaskedLanguageModelling",
    "causal_language_modelling": "language_modelling.CausalLanguageModelling",
    "span_corruption": "language_modelling.SpanCorruption",
    "generation": "generation.Generation",
    "embedding": "embedding.Embedding",
    "reranking": "reranking.Reranking",
    "multi_task": "multi_task.MultiTask",
}
KINDS = tuple(dict.fromkeys(name.partition("/")[0] for name in _CLASSES))  # of config.task


def all_classes() -> dict[str, type[Any]]:
    """Returns the class of each kind of task, classification by its kinds."""
    return {name: _load(name) for name in _CLASSES}


def task_class(config: ConfigDict) -> type[Any]:
    """Returns the class of the config's task, a tasks.task.Task, which declares what it can do."""
    return _load(_name(config))


def require(config: ConfigDict, ability: str, knob: str) -> Any:
    """Returns what the config's task declares of an ability, such as 'EXPORT'.

    Raises:
        ValueError: the task does not have it, which `knob` asks for.
    """
    if declared := getattr(task_class(config), ability):
        return declared
    able = ", ".join(name for name, kind in all_classes().items() if getattr(kind, ability))
    raise ValueError(
        f"{knob}: found the task {_name(config)!r}, expected one of {able} (config.task, of "
        "classification with config.classification.kind): leave it out"
    )


def _name(config: ConfigDict) -> str:
    kind = f"/{config.classification.kind}" if config.task == "classification" else ""
    return config.task + kind


def _load(name: str) -> type[Any]:
    module, class_name = _CLASSES[name].split(".")
    return getattr(importlib.import_module(f"tasks.{module}"), class_name)
