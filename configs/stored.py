"""Configs of earlier runs, from config.json of a workdir or from a checkpoint.

Here: what a config that another version wrote means now, and how it differs from the current one. A
version that adds a key needs no entry: a stored config without it had the default of common.py.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common

# A version that removes a key notes it here, by its full path without 'config.'. Old path ->
# current path; the value means the same. If a config holds both, the current path counts unless
# it has its default.
RENAMED: dict[str, str] = {
    "classification.label_smoothing": "regularize.label_smoothing",
    "generation.chunk": "language.chunk",
}
# Removed path -> the value that every run has now, JSON-ready.
CONSTANTS: dict[str, Any] = {
    "augmentation.mask_character": "□",
    "augmentation.pair": "apart",
    "augmentation.sampling_size": 8,
    "features.tfidf_terms": 20_000,
    "generation.on_empty": "drop",
    "inspect.epoch": 0,
    "language.mean_span": 3.0,
    "model.hub": "",  # $HF_ENDPOINT
    "multi.mixing": "temperature",  # or by multi.rates, where they are given
    "reading.n_best": 20,
    "review.neighbours": 3,
    "self_training.balance": True,
    "self_training.files": "",
    "self_training.max_examples": 0,
    "self_training.threshold": 0.9,
    "tagging.head_size": 64,
    "train.compilation_cache": "",  # $JAX_COMPILATION_CACHE_DIR
    "verify.examples": 8,
}

# Path -> value before -> value that means the same now.
VALUES: dict[str, dict[Any, Any]] = {"model.remat": {False: "none", True: "layers"}}

ABSENT = "(absent)"
_MEMBER = re.compile(r"multi\.members\.\w+\.")  # a member of a multi_task holds all keys again


def flatten_config(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to {'a.b': value}."""
    flat = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        flat |= flatten_config(value, path + ".") if isinstance(value, dict) else {path: value}
    return flat


def present_config(config: ConfigDict) -> dict[str, Any]:
    """Returns a config flat, with values as JSON holds them."""
    return flatten_config(json.loads(config.to_json()))


def own_key(key: str) -> str:
    """Returns the key of a member's config for a path into it; other paths stay."""
    return _MEMBER.sub("", key)


def stored_config(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config flat, with the current keys and the defaults of those it lacks.

    Args:
        saved: the nested config of config.json. A removed key stays if its value is not the
            constant that replaced it.
    """
    return present_config(common.get_config()) | _renewed(saved)


def differences(saved: Mapping[str, Any], config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the keys in which a stored config, nested, differs: {path: (value before, now)}."""
    old, new = _renewed(saved), present_config(config)
    defaults, changed = present_config(common.get_config()), {}
    for key in sorted(old.keys() | new.keys()):
        before = old[key] if key in old else defaults.get(own_key(key), ABSENT)
        now = new[key] if key in new else CONSTANTS.get(own_key(key), ABSENT)
        if before != now:
            changed[key] = (before, now)
    return changed


def _renewed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config flat, without keys that have become constants."""
    renewed, defaults = {}, present_config(common.get_config())
    stored = flatten_config(saved).items()
    for path, value in sorted(stored, key=lambda item: own_key(item[0]) in RENAMED):
        key = own_key(path)
        present = RENAMED.get(key, key)
        now = path.removesuffix(key) + present
        unset = now not in renewed or renewed[now] == defaults.get(present)
        if unset and (key not in CONSTANTS or value != CONSTANTS[key]):
            renewed[now] = VALUES[present].get(value, value) if present in VALUES else value
    return renewed
