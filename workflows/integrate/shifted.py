"""A second, shifted set: config.integrate.shifted_files. It chooses nothing.

It has a column in the table of results, and a curve where weights are interpolated.
"""

from ml_collections import ConfigDict

from input_pipeline.corpus.preparation import load_split, prepare
from input_pipeline.corpus.sources import find_files
from input_pipeline.examples import Examples
from tasks import require, task_class
from training.data import RunData
from training.experiment import Experiment


def check(config: ConfigDict) -> None:
    """Raises where config.integrate.shifted_files names no file: before a training, not after."""
    if not config.integrate.shifted_files:
        return
    require(config, "SHIFTED", "config.integrate.shifted_files")
    try:
        find_files(config.integrate.shifted_files)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"config.integrate.shifted_files: {error}") from None


def shifted_examples(experiment: Experiment, data: RunData) -> Examples | None:
    """Returns the examples, read and cleaned by config.data; None without files.

    Raises:
        ValueError: the files cannot be read so, or have other labels than the run.
    """
    files = experiment.config.integrate.shifted_files
    if not files:
        return None
    config = experiment.config.copy_and_resolve_references()
    config.data.update(source="files", files=files, validation_files="", test_files="")
    config.data.update(group_column="", time_column="")  # which only matter where data are split
    config.data.split.update(kind="stratified", validation=0, test=0, folds=0, fold=0)
    config.data.audit.kind = "off"
    if task_class(config).LABELS == "labels":
        config.data.labels = tuple(data.labels)
    try:
        prepared = prepare(config.data)
        labels = RunData(config, prepared).labels
        if labels != data.labels:
            raise ValueError(
                f"{files} has the labels {labels}, this run {data.labels}: expected the same"
            )
        examples = load_split(prepared, "train", limit=config.integrate.max_examples)
        experiment.check(examples, "shifted")
    except ValueError as error:
        raise ValueError(
            f"config.integrate.shifted_files: {error} (a shifted set needs the columns and labels "
            "of the run's data: rename them in a copy of the file)"
        ) from None
    return experiment.with_features(examples)
