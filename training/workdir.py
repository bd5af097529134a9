"""The run's folder: the config and command it belongs to, and what happens with another config."""

import json
import shlex
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs.overrides import find_recipe, load_config
from configs.stored import differences, flatten_config
from input_pipeline.files import remove, write_json, write_text

# What may differ between two starts in one workdir, since the trained weights don't depend on it.
NOT_OF_THE_WEIGHTS = ("eval.checkpoint", "eval.split", "eval.test", "eval.robustness", "search.")
NOT_OF_THE_WEIGHTS += ("train.on_config_change", "data.prepared_dir")
NOT_OF_THE_WEIGHTS += ("integrate.", "inspect.", "verify.", "export.", "report.", "predict.")
NOT_OF_THE_WEIGHTS += ("train.collapse", "review.folds", "sharding.")
# All that a run writes, as globs: 'overwrite' deletes it. The rest stays: test_openings.jsonl is
# evidence, review.csv may hold a person's marks, and verification.json and golden.npz are about the
# pretrained checkpoint.
_OURS = ("checkpoints", "checkpoints_collapsed_*", "integrated", "tensorboard", "export")
_OURS += (
    "all_examples",
    "encoder_alone",
    "tokenizer.model",
    "features.safetensors",
    "probe.safetensors",
)
_OURS += ("metrics.jsonl", "silent_loss.json", "curves.png", "report.html")
_OURS += ("results.json", "comparison.json", "evaluation_*.json", "scores_*.npz")
_OURS += ("errors_*.jsonl", "predictions.jsonl", "MODEL_CARD.md", "*.partial")
# Groups of what is fitted for a run, so that its weights depend on it.
_FITTED = ("features.", "tokenizer.")


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a run in `workdir` has saved a checkpoint; a failed start has not."""
    return any(child.name.isdigit() for child in (workdir / "checkpoints").glob("*"))


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Checks that a run of `config` may start or resume in `workdir`.

    Raises:
      ValueError: its path cannot hold checkpoints; or it holds a run of another config and
        train.on_config_change is 'refuse', or 'continue' although what was fitted for the run
        cannot follow the change.
    """
    if patterns := sorted(set("[]*?") & set(str(workdir.absolute()))):
        raise ValueError(
            f"--workdir={workdir}: Orbax reads {' '.join(patterns)} in a path as a pattern and "
            "would not find its checkpoints again: choose a folder without"
        )
    path, choice = workdir / "config.json", config.train.on_config_change
    started = has_checkpoint(workdir) or (workdir / "results.json").exists()
    if not path.exists() or not started:
        return
    changed = {
        key: f"  {key}: {there!r} there, {now!r} now"
        for key, (there, now) in differences(json.loads(path.read_text("utf-8")), config).items()
        if not key.startswith(NOT_OF_THE_WEIGHTS)
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
        remove(*[part for glob in _OURS for part in workdir.glob(glob)])


def run_command(config: ConfigDict, workdir: Path, *, recipe: str, mode: str = "train") -> str:
    """Returns the shell command of one run.

    Args:
      config: of the run.
      workdir: its folder.
      recipe: as given to --config: 'configs/x.py:arg'. What differs from it becomes flags.
      mode: as given to --mode.
    """
    given, values = (flatten_config(c.to_dict()) for c in (load_config(recipe), config))
    words = ["python", "main.py", f"--config={recipe}", f"--workdir={workdir}"]
    words += [f"--mode={mode}"] if mode != "train" else []
    needless = {"eval.test"} if mode == "test" else set()
    changed = (key for key, value in values.items() if value != given[key] and key not in needless)
    return shlex.join([*words, *(f"--config.{key}={values[key]}" for key in changed)])


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the resolved config to config.json, and the run's command to command.txt.

    Each of several runs of one main.py gets a command of its own; of another program, only the
    command line is known.
    """
    recipe = find_recipe(sys.argv) if Path(sys.argv[0]).name == "main.py" else ""
    called = shlex.join(["python", *sys.argv])
    if recipe:
        called = run_command(config, workdir, recipe=recipe)
    write_text(workdir / "command.txt", called + "\n")
    write_json(workdir / "config.json", json.loads(config.to_json()))
