"""TensorFlow and TFDS, imported when they are first used.

Whatever imports input_pipeline then runs on machines that have neither, fed with numpy batches.
"""

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _OnFirstUse:
    """Stands for a module that `load` imports."""

    def __init__(self, load: Callable[[], ModuleType]):
        self._load = functools.cache(load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


def _tensorflow() -> ModuleType:
    # It would greet with remarks on oneDNN, which is not used here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    module = importlib.import_module("tensorflow")
    for kind in ("GPU", "TPU"):  # JAX owns the accelerators
        module.config.set_visible_devices([], kind)
    return module


tf = _OnFirstUse(_tensorflow)
tfds = _OnFirstUse(lambda: importlib.import_module("tensorflow_datasets"))
