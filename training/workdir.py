"""The run's folder: the config it belongs to, and what to do when another one comes along."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# What may differ between two starts in one workdir, since the trained weights don't depend on it.
NOT_OF_THE_WEIGHTS = ("eval.checkpoint", "eval.split", "eval.test", "eval.robustness", "search.")
NOT_OF_THE_WEIGHTS += ("train.on_config_change", "train.compilation_cache", "data.prepared_dir")
NOT_OF_THE_WEIGHTS += ("integrate.", "inspect.", "verify.", "export.", "report.", "predict.")
NOT_OF_THE_WEIGHTS += ("model.hub", "train.collapse", "review.folds", "review.neighbours")
# What a run writes here, and all that 'overwrite' deletes.
_OURS = ("checkpoints", "integrated", "tensorboard", "metrics.jsonl", "results.json", "curves.png")
_OURS += ("errors_test.jsonl", "errors_validation.jsonl", "scores_test.npz")
_OURS += ("scores_validation.npz", "report.html", "MODEL_CARD.md")
_OURS += ("tokenizer.model", "features.safetensors", "encoder_alone", "silent_loss.json", "teacher")
_OURS += ("checkpoints_collapsed_1", "checkpoints_collapsed_2", "all_examples")
_OURS += ("self_training.json", "export")  # test_openings.jsonl stays: it is evidence
# What a run's weights belong to, beside the data and the model.
_FITTED = ("features.", "tokenizer.")


def flatten_config(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to {'a.b': value}."""
    flat = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        flat |= flatten_config(value, path + ".") if isinstance(value, dict) else {path: value}
    return flat


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a run in `workdir` has saved something; a failed start has a folder too."""
    return any(child.name.isdigit() for child in (workdir / "checkpoints").glob("*"))


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes sure that `workdir` may become, or is, the home of `config`.

    Raises:
      ValueError: it holds a run of another config and train.on_config_change is 'refuse', or
        'continue' where what was fitted for the run cannot follow the change.
    """
    path, choice = workdir / "config.json", config.train.on_config_change
    started = has_checkpoint(workdir) or (workdir / "results.json").exists()
    if not path.exists() or not started:
        return
    old = flatten_config(json.loads(path.read_text()))
    new = flatten_config(json.loads(config.to_json()))
    changed = {
        key: f"  {key}: {old.get(key, '(absent)')!r} there, {new.get(key, '(absent)')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(NOT_OF_THE_WEIGHTS)
    }
    if choice == "continue":
        if fitted := [line for key, line in changed.items() if key.startswith(_FITTED)]:
            raise ValueError(
                f"{workdir} cannot go on with features or a vocabulary other than those its "
                "weights were trained with:\n" + "\n".join(fitted) + "\nKeep them, choose another "
                "--workdir, or pass --config.train.on_config_change=overwrite."
            )
    elif changed and choice == "refuse":
        raise ValueError(
            f"{workdir} belongs to another config:\n" + "\n".join(changed.values()) + "\n"
            "Choose another --workdir, go on from its checkpoint with this config "
            "(--config.train.on_config_change=continue), or delete what it holds and start "
            "again (--config.train.on_config_change=overwrite)."
        )
    elif changed:
        for name in _OURS:
            part = workdir / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved config to config.json, whole or not at all, and command.txt."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "command.txt").write_text(shlex.join(["python", *sys.argv]) + "\n", "utf-8")
    partial = workdir / "config.json.partial"
    text = json.dumps(json.loads(config.to_json()), indent=2, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(workdir / "config.json")
