"""--mode=inspect: what every stage makes of the first examples, before any training.

Here: the parts that a config names, put together without the model. Not here: the rendering
(input_pipeline/inspection.py). Called by main.py.
"""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline import silent_loss, sources
from input_pipeline.inspection import show_examples, show_records
from input_pipeline.normalization import Normalizer
from input_pipeline.preparation import load_split, prepare, prose
from training.run_tokenizer import run_tokenizers, training_texts


def inspect(config: ConfigDict, workdir: Path) -> None:
    """Prints config.inspect.examples rows of the source and examples of the training split.

    A tokeniser that the config trains or changes is left in `workdir`, as training does.
    """
    count = config.inspect.examples
    prepared = prepare(config.data)
    train = load_split(prepared, "train", limit=config.data.max_train_examples)
    _, tokenizer = run_tokenizers(config, workdir, train)
    print(prose(prepared.manifest))
    print(silent_loss.measure(training_texts(train), tokenizer).prose())
    print("\nAs read, recoded and cleaned:\n")
    records = list(itertools.islice(sources.read(config.data, {}), count))
    normalizer = Normalizer(config.data.normalization)
    for line in show_records(records, normalizer, cleaning=config.data.cleaning):
        print(line)
    print("Of the training split, augmented and tokenised:\n")
    for line in show_examples(
        train,
        tokenizer,
        template=config.data.template,
        max_length=config.layout.max_length,
        augmentation=config.augmentation,
        labels=prepared.labels,
        count=count,
        epoch=config.inspect.epoch,
        seed=config.seed,
    ):
        print(line)
