"""--mode=inspect: the first examples after every stage, and what fits on the devices, before any
training and without weights."""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.corpus import sources
from input_pipeline.examples import Examples
from input_pipeline.tokenizers import silent_loss
from input_pipeline.tokenizers.tokenization import Tokenizer
from tasks.task import Task
from training.data import RunData, load_data
from training.experiment import build
from training.train import Run
from workflows import teacher
from workflows.inspect.stages import show_examples, show_records


def inspect(config: ConfigDict, workdir: Path) -> None:
    """Prints config.inspect.examples rows of the source and examples of the training split.

    Then what each of the devices, or of config.sharding.devices virtual ones, would hold. A
    tokeniser that the config trains or changes is left in `workdir`, as training does.
    """
    data = load_data(config)
    train = teacher.with_targets(config, data.split("train"), data.labels)
    experiment = build(config, workdir, data.labels, print, train, read=False)
    teacher.load(experiment, data.labels, read=False)
    task, pipeline, tokenizer = experiment.task, experiment.pipeline, experiment.tokenizer
    for name, member in task.members.items():
        print(f"\nMember {name!r}:\n")
        _show(data.members[name], train.parts[name], member, pipeline.pipelines[name], tokenizer)
    if not task.members:
        _show(data, train, task, pipeline, tokenizer)
    print("\nOn the devices:\n")
    for line in Run(experiment, workdir, data, train).describe_devices():
        print(line, flush=True)


def _show(
    data: RunData, train: Examples, task: Task, pipeline: TextPipeline, tokenizer: Tokenizer
) -> None:
    """Prints the first examples of one task after every stage."""
    config, count = data.config, data.config.inspect.examples
    print(data.prose())
    print(silent_loss.measure(train.all_texts, tokenizer).prose())
    print("\nAs read, recoded and cleaned:\n")
    records = list(itertools.islice(sources.read(config.data, {}), count))
    print(*show_records(records, config.data), sep="\n")
    print("Of the training split, augmented and tokenised:\n")
    windows = task.windows(train.first(16 * count), pipeline.encoder, training=True)
    encoded, targets = pipeline.preview(windows, count=count, epoch=0)
    counted = task.counted(encoded, targets)
    plain = counted is None and task.sequences == 1
    sequences = None if plain else (encoded, counted)
    lines = show_examples(config, windows, tokenizer, labels=data.labels, counted=sequences)
    print(*lines, sep="\n")
