"""Prepared data on disk: a TFDS folder that `tfds.builder_from_directory` and `tfds.load` read.

Here: writing splits of records and loading them into memory. Not here: what the records are and
where the folder is (preparation.py). The features of the folder are those that the data have:
always text and where (file:line); name, pair, history, choices, label or labels, number, spans,
words, pair_words, group, time, values and leaked where they exist.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.corpus.manifest import prose
from input_pipeline.corpus.words import word_stops
from input_pipeline.eta import track
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.lazy import tf, tfds
from input_pipeline.records import Record

_SHARD_EXAMPLES = 100_000
_BATCH = 4096


def write(
    folder: Path,
    splits: Mapping[str, Sequence[Record]],
    leaked: Mapping[str, np.ndarray],
    manifest: Mapping[str, Any],
    name: str,
    *,
    words: bool,
) -> None:
    """Writes the splits that hold records, in their order.

    Args:
        folder: an existing empty folder.
        splits: split name -> records.
        leaked: split name -> bool [N] for splits that were audited.
        manifest: of the data set. Its 'labels' are the class names in order; a record with several
            makes 'labels' of 'label'. Its 'span_labels' are those of spans; () stores no spans.
        name: of the TFDS config.
        words: whether to store word boundaries.
    """
    # TFRecord, since tfds.load cannot read ArrayRecord. This writer keeps the order.
    records = [record for rows in splits.values() for record in rows]
    features = _features(records, manifest["labels"], manifest["span_labels"], words=words)
    if leaked:
        features["leaked"] = tfds.features.Scalar(dtype=np.bool_)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="weitiao",
        config_name=name,
        version=tfds.core.Version(manifest["version"]),
        data_dir=str(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=prose(manifest),
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("text", "label") if "label" in features else None,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=_SHARD_EXAMPLES)
    filled = {split: rows for split, rows in splits.items() if rows}
    writer.initialize_splits(list(filled))
    for split, rows in filled.items():
        flags = leaked.get(split, np.zeros(len(rows), bool))
        pairs = track(zip(rows, flags, strict=True), len(rows), f"Writing {split}")
        writer.add_examples({split: (_example(record, flag, features) for record, flag in pairs)})
    writer.close_all()


def load(folder: Path, split: str, count: int) -> Examples:
    """Loads the first `count` examples of a split.

    Raises:
        ValueError: the folder is damaged.
    """
    columns: dict[str, list] = {}
    try:
        builder = tfds.builder_from_directory(folder)
        batches = ()
        if count:  # TFDS has no split without examples
            reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
            dataset = builder.as_dataset(split=f"{split}[:{count}]", read_config=reading)
            batches = dataset.ragged_batch(_BATCH)
        for batch in batches:
            spans = {f"spans/{name}": part for name, part in batch.pop("spans", {}).items()}
            for name, part in (batch | spans).items():
                columns.setdefault(name, []).append(part)
    except (tf.errors.NotFoundError, tf.errors.DataLossError) as error:
        remedy = "delete it, and it is made again"
        raise ValueError(f"{folder} is damaged: {error.message}; {remedy}") from None
    return _examples(columns, builder.info.features, count)


def _features(
    records: Sequence[Record], labels: Sequence[str], span_labels: Sequence[str], *, words: bool
) -> dict[str, Any]:
    """Returns the TFDS feature of each column that the records fill."""
    of, text = tfds.features, tfds.features.Text()
    optional = ("name", "pair", "history", "group", "time")
    filled = [name for name in optional if any(getattr(record, name) for record in records)]
    features: dict[str, Any] = dict.fromkeys(("text", "where", *filled), text)
    for name in ("choices", "negatives"):
        if any(getattr(record, name) for record in records):
            features[name] = of.Sequence(text)
    if any(record.number is not None for record in records):
        features["number"] = of.Scalar(dtype=np.float32)
    if labels:
        label = of.ClassLabel(names=list(labels))
        several = any(len(record.labels) != 1 for record in records)
        features |= {"labels": of.Sequence(label)} if several else {"label": label}
    if span_labels:
        offset, kind = of.Scalar(dtype=np.int32), of.ClassLabel(names=list(span_labels))
        features["spans"] = of.Sequence({"start": offset, "stop": offset, "label": kind})
    if words:  # a tensor: a sequence of scalars is written item by item
        stops = of.Tensor(shape=(None,), dtype=np.int32)
        features |= {"words": stops} | ({"pair_words": stops} if "pair" in features else {})
    if count := max((len(record.values) for record in records), default=0):
        features["values"] = of.Tensor(shape=(count,), dtype=np.float32)
    return features


def _example(record: Record, leaked: bool, features: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record as `features` want it."""
    make = {
        "label": lambda: record.labels[0],
        "labels": lambda: list(record.labels),
        "number": lambda: np.float32(np.nan if record.number is None else record.number),
        "choices": lambda: list(record.choices),
        "negatives": lambda: list(record.negatives),
        "spans": lambda: [span._asdict() for span in record.spans],
        "words": lambda: np.array(word_stops(record.text), np.int32),
        "pair_words": lambda: np.array(word_stops(record.pair), np.int32),
        "values": lambda: np.array(record.values, np.float32),
        "leaked": lambda: bool(leaked),
    }
    return {name: make[name]() if name in make else getattr(record, name) for name in features}


def _examples(columns: Mapping[str, list], features: Mapping[str, Any], count: int) -> Examples:
    """Makes examples of the batches of each column."""

    def dense(name: str, dtype: type) -> np.ndarray | None:
        if name not in features:
            return None
        empty = np.zeros((0, *features[name].shape), dtype)
        parts = [part.numpy().astype(dtype) for part in columns.get(name, ())]
        return np.concatenate([empty, *parts])

    def objects(name: str) -> np.ndarray | None:
        if name not in features:
            return None
        rows = [row for part in columns.get(name, ()) for row in part.numpy()]
        return object_array(
            [t.decode() if isinstance(t, bytes) else tuple(map(bytes.decode, t)) for t in rows]
        )

    def ragged(*names: str) -> Ragged | None:
        if names[0].split("/")[0] not in features:
            return None
        parts = [[part.values.numpy() for part in columns.get(name, ())] for name in names]
        values = [np.concatenate([*part, np.zeros(0)]).astype(np.int32) for part in parts]
        lengths = [part.row_lengths().numpy() for part in columns.get(names[0], ())]
        splits = np.concatenate([[0], *lengths]).cumsum().astype(np.int64)
        return Ragged(values[0] if len(names) == 1 else np.stack(values, axis=1), splits)

    def groups() -> np.ndarray | None:
        """Numbers the groups; a record without one is its own."""
        names, numbers = objects("group"), {}
        if names is None:
            return None
        keys = (name or row for row, name in enumerate(names))
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)

    spans = ragged("spans/start", "spans/stop", "spans/label")
    return Examples(
        texts_N=objects("text"),
        labels_N=dense("label", np.int32),
        ids_N=np.arange(count, dtype=np.int64),
        names_N=objects("name"),
        pairs_N=objects("pair"),
        label_sets=ragged("labels"),
        numbers_N=dense("number", np.float32),
        choices_N=objects("choices"),
        negatives_N=objects("negatives"),
        histories_N=objects("history"),
        spans=spans,
        span_labels=() if spans is None else tuple(features["spans"]["label"].names),
        words=ragged("words"),
        pair_words=ragged("pair_words"),
        leaked_N=dense("leaked", np.bool_),
        groups_N=groups(),
        values_NxK=dense("values", np.float32),
    )
