"""TFDS data sets to rows: dicts from column names to plain values.

Here: finding and preparing a set of TFDS, and its batches as Python values. Not here: what the
columns and splits mean (sources.py).
"""

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline import locking
from input_pipeline.lazy import tfds


def open_builder(data: ConfigDict, built_in: Iterable[str]) -> Any:
    """Returns the builder of 'tfds:NAME', prepared.

    Raises:
        ValueError: if TFDS knows no such data set, or cannot prepare it.
    """
    for module in built_in:  # an import makes it known by name
        importlib.import_module(f"input_pipeline.corpus.datasets.{module}")
    name = data.source.removeprefix("tfds:")
    what = f"config.data.source={data.source!r}: TFDS"
    try:
        if Path(name).expanduser().is_absolute():
            return tfds.builder_from_directory(Path(name).expanduser())
        builder = tfds.builder(name, data_dir=data.prepared_dir or None)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{what} finds no such data set ({_first_line(error)}); expected a name that it knows, "
            f"'name/config:version' of a set prepared in {data.prepared_dir or 'its data_dir'}, or "
            "the absolute path of a folder with dataset_info.json"
        ) from None
    if builder.is_prepared():
        return builder
    print(f"{name} is not prepared: TFDS prepares it now")
    try:
        _prepare(builder)
    except (OSError, AssertionError, tfds.download.DownloadError) as error:
        raise ValueError(
            f"{what} cannot prepare it ({_first_line(error)}); prepare it where there is a network "
            f"(tfds build {name}), copy its folder to {builder.data_path}, or convert it to JSONL "
            "for config.data.source='files'"
        ) from None
    return tfds.builder(name, data_dir=data.prepared_dir or None)  # with what is there now


def _prepare(builder: Any) -> None:
    """Prepares a data set of TFDS while no other process of this program does."""
    folder = Path(builder.data_path).parent
    # Without a lock's file, what is incomplete may belong to another program.
    killed = (folder / locking.FILE).exists()
    with locking.in_use(folder, wait="which prepares the same data") as locked:
        if builder.is_prepared():
            return
        if killed and locked:
            locking.clear(folder.glob("incomplete.*"), folder)
        builder.download_and_prepare()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_rows(builder: Any, split: str, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields the named columns of each example, in the order of the files."""
    features = {name: builder.info.features[name] for name in names}
    examples = builder.as_dataset(
        split=split,
        decoders=tfds.decode.PartialDecoding(features),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    batches = examples.ragged_batch(512).as_numpy_iterator()
    return (row for batch in batches for row in _plain(batch, features))


def _plain(value: Any, feature: Any) -> list[Any]:
    """Returns a batch of TFDS's as a list of its examples, with the names of classes."""
    if isinstance(feature, tfds.features.Sequence):  # of dicts, it is a dict of arrays
        return _plain(value, feature.feature)
    if isinstance(feature, dict | tfds.features.FeaturesDict):
        columns = [_plain(value[name], feature[name]) for name in feature]
        return [dict(zip(feature, row, strict=True)) for row in zip(*columns, strict=True)]
    is_class = isinstance(feature, tfds.features.ClassLabel)

    def plain(item: Any) -> Any:
        item = item.tolist() if hasattr(item, "tolist") else item
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        if is_class:
            return feature.int2str(item) if item >= 0 else None
        return item.decode() if isinstance(item, bytes) else item

    return plain(value)
