"""--mode=predict: a checkpoint's predictions for texts of a file."""

from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.batches.mixture import Mixture
from input_pipeline.corpus.preparation import read_unlabelled
from input_pipeline.files import write_jsonl
from tasks import task_class
from training.experiment import build
from workflows.restoring import read_meta, restore


def predict(config: ConfigDict, workdir: Path) -> Path:
    """Writes the predictions for config.predict.input as JSONL, a line per example."""
    if not config.predict.input:
        raise ValueError(
            "--mode=predict needs --config.predict.input=FILE (.txt, .jsonl, .csv, .tsv)"
        )
    meta = read_meta(config, workdir)
    path, members = config.predict.input, task_class(config).member_configs(config)
    if members:  # each of them predicts every text
        examples = Mixture({name: read_unlabelled(path, m.data) for name, m in members.items()})
    else:
        examples = read_unlabelled(path, config.data)
    experiment = build(config, workdir, meta["labels"], print)
    restored = restore(experiment, workdir)
    experiment.check(examples, "given", complete=True, labelled=False)
    if empty := sum(not text.strip() for text in examples.texts_N):
        print(
            f"Note: {empty:,} of {len(examples):,} texts are empty: their predictions mean nothing."
        )
    predictions = experiment.predict(restored.params, examples, restored.fitted, complete=True)
    output = Path(config.predict.output or workdir / "predictions.jsonl")
    write_jsonl(output, experiment.task.describe(predictions, examples))
    print(f"{len(predictions):,} predictions by {restored.name} are in {output}")
    return output
