"""Kinds of task: what is learned from a batch, and what a prediction is. One file per kind."""

import importlib
from typing import Any

_TASKS = {
    "classification": "Classification",
    "tagging": "Tagging",
    "reading_comprehension": "ReadingComprehension",
    "multiple_choice": "MultipleChoice",
    "masked_language_modelling": "MaskedLanguageModelling",
    "causal_language_modelling": "CausalLanguageModelling",
    "span_corruption": "SpanCorruption",
    "generation": "Generation",
    "multi_task": "MultiTask",
}
KINDS = tuple(_TASKS)  # of config.task


def task_class(kind: str) -> type[Any]:
    """Returns the class of a kind of task, a tasks.task.Task."""
    name = "language_modelling" if "modelling" in kind or kind == "span_corruption" else kind
    return getattr(importlib.import_module(f"tasks.{name}"), _TASKS[kind])
