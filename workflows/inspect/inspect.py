"""--mode=inspect: what every stage makes of the first examples, before any training.

Here: the parts that a config names, put together without weights. Not here: the rendering
(workflows/inspect/stages.py). Called by main.py.
"""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.corpus import sources
from input_pipeline.corpus.normalization import Normalizer
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
        for name, own in members.items():
            print(f"\nMember {name!r}:\n")
            inspect(own, workdir)
        return
    count = config.inspect.examples
    data = load_data(config)
    train = data.split("train")
    own, tokenizer = run_tokenizers(config, workdir, train)
    checkpoint = pretrained.open_checkpoint(
        pretrained.resolve(config.model.checkpoint, hub=config.model.hub)
    )
    if note := check_original(config, checkpoint, own):
        print(note)
    backbone = checkpoint.config
    task = task_class(config)(config, data.labels, tokenizer=tokenizer, backbone=backbone)
    task.check(train, "train")
    pipeline = make_pipeline(config, task)
    print(data.prose())
    print(silent_loss.measure(training_texts(train), tokenizer).prose())
    print("\nAs read, recoded and cleaned:\n")
    records = list(itertools.islice(sources.read(config.data, {}), count))
    normalizer = Normalizer(config.data.normalization)
    for line in show_records(records, normalizer, cleaning=config.data.cleaning):
        print(line)
    print("Of the training split, augmented and tokenised:\n")
    windows = task.windows(train.first(16 * count), pipeline.encoder, training=True)
    encoded, targets = pipeline.preview(windows, count=count, epoch=config.inspect.epoch)
    counted = task.counted(encoded, targets)
    for line in show_examples(
        windows,
        tokenizer,
        template=config.data.template,
        max_length=config.layout.max_length,
        augmentation=config.augmentation,
        labels=data.labels,
        count=count,
        epoch=config.inspect.epoch,
        seed=config.seed,
        counted=None if counted is None and task.sequences == 1 else (encoded, counted),
    ):
        print(line)
