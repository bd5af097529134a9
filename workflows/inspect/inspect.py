"""--mode=inspect: the first examples after every stage, before any training and without weights."""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.corpus import sources
from input_pipeline.tokenizers import silent_loss
from models import pretrained
from tasks import task_class
from training.data import load_data
from training.experiment import make_pipeline
from training.run_tokenizer import check_original, run_tokenizers, training_texts
from workflows.inspect.stages import show_examples, show_records


def inspect(config: ConfigDict, workdir: Path) -> None:
    """Prints config.inspect.examples rows of the source and examples of the training split.

    A tokeniser that the config trains or changes is left in `workdir`, as training does.
    """
    if members := task_class(config).member_configs(config):
        for name, member in members.items():
            print(f"\nMember {name!r}:\n")
            inspect(member, workdir)
        return
    count, data = config.inspect.examples, load_data(config)
    train = data.split("train")
    original, tokenizer = run_tokenizers(config, workdir, train)
    checkpoint = pretrained.open_checkpoint(pretrained.resolve(config.model.checkpoint))
    if note := check_original(config, checkpoint, original):
        print(note)
    backbone = checkpoint.config
    task = task_class(config)(config, data.labels, tokenizer=tokenizer, backbone=backbone)
    task.check(train, "train")
    pipeline = make_pipeline(config, task)
    print(data.prose())
    print(silent_loss.measure(training_texts(train), tokenizer).prose())
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
