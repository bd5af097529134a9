"""--mode=evaluate: a checkpoint's metrics and errors on the training or validation split."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.files import write_json
from reporting import report
from training.data import load_data
from training.experiment import build
from workflows.restoring import read_meta, restore


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Evaluates config.eval.checkpoint on config.eval.split; writes numbers and errors to files."""
    data = load_data(config)
    split = config.eval.split
    if split == "test":
        raise ValueError(
            "config.eval.split='test': only --mode=test opens the test split, and counts it; "
            "expected one of ['train', 'validation']"
        )
    if split not in data.splits:
        raise ValueError(
            f"config.eval.split: found {split!r}, expected one of {sorted(data.splits)}"
        )
    meta = read_meta(config, workdir)
    if data.labels != meta["labels"]:
        raise ValueError(
            f"the data have the labels {data.labels}, but the checkpoint was trained on "
            f"{meta['labels']}: set config.data.labels to the latter, or evaluate other data"
        )
    experiment = build(config, workdir, data.labels, print)
    restored = restore(experiment, workdir)
    examples = data.split(split)
    experiment.check(examples, split, complete=True)
    predictions = experiment.predict(restored.params, examples, restored.fitted, complete=True)
    scores = experiment.task.score(predictions, examples)
    summary = report.summarise_with_leaks(scores, examples.leaked_ids)
    result = {
        "checkpoint": restored.name,
        "split": split,
        "fingerprint": data.fingerprints[split],
        **summary,
    }
    write_json(workdir / f"evaluation_{split}.json", result)
    errors = report.write_errors(
        workdir / f"errors_{split}.jsonl", experiment.task.describe(predictions, examples)
    )
    report.show_summary(scores, f"{restored.name} on {split}")
    print(f"{errors:,} wrong predictions are in {workdir / f'errors_{split}.jsonl'}")
    return result
