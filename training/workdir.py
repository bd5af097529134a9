"""The run's folder: the config it belongs to, and what to do when another one comes along."""

import json
import shutil
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# What may differ between two starts in one workdir, since the trained weights don't depend on it.
_FREE = ("eval.checkpoint", "eval.split", "predict.", "train.on_config_change")
_FREE += ("train.compilation_cache", "data.prepared_dir", "integrate.", "inspect.")
# What a run writes here, and all that 'overwrite' deletes.
_OURS = ("checkpoints", "integrated", "tensorboard", "metrics.jsonl", "results.json", "curves.png")
_OURS += (
    "errors_test.jsonl",
    "tokenizer.model",
    "features.safetensors",
    "encoder_alone",
)  # test_openings.jsonl stays: it is evidence


def flatten_config(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to {'a.b': value}."""
    flat = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        flat |= flatten_config(value, path + ".") if isinstance(value, dict) else {path: value}
    return flat


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes sure that `workdir` may become, or is, the home of `config`.

    Raises:
      ValueError: it holds a run of another config and train.on_config_change is 'refuse'.
    """
    path, choice = workdir / "config.json", config.train.on_config_change
    started = (workdir / "checkpoints").is_dir() or (workdir / "results.json").exists()
    if not path.exists() or not started or choice == "continue":
        return
    old = flatten_config(json.loads(path.read_text()))
    new = flatten_config(json.loads(config.to_json()))
    changed = [
        f"  {key}: {old.get(key, '(absent)')!r} there, {new.get(key, '(absent)')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_FREE)
    ]
    if changed and choice == "refuse":
        raise ValueError(
            f"{workdir} belongs to another config:\n" + "\n".join(changed) + "\n"
            "Choose another --workdir, go on from its checkpoint with this config "
            "(--config.train.on_config_change=continue), or delete what it holds and start "
            "again (--config.train.on_config_change=overwrite)."
        )
    if changed:
        for name in _OURS:
            part = workdir / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved config to config.json, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / "config.json.partial"
    text = json.dumps(json.loads(config.to_json()), indent=2, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(workdir / "config.json")
