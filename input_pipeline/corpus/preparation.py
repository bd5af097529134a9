"""Turns raw text into a clean, split and audited TFDS data set on disk, once, and loads its splits.

Here: the cache around read -> recode -> clean -> split -> audit. Not here: what each of these steps
decides (sources.py, normalization.py, cleaning.py, splitting.py, audit.py), the format on disk
(storage.py), sentences about the manifest (manifest.py), nor anything that happens every step.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import hosts, locking
from input_pipeline.alignment import Alignment
from input_pipeline.corpus import audit, cleaning, columns, sources, splitting, storage
from input_pipeline.corpus.manifest import remark, untaught
from input_pipeline.corpus.normalization import Normalizer
from input_pipeline.corpus.notes import Misfit
from input_pipeline.corpus.words import word_stops
from input_pipeline.eta import track
from input_pipeline.examples import Examples, Given, Ragged, object_array
from input_pipeline.files import write_json
from input_pipeline.lazy import tf
from input_pipeline.locking import in_use
from input_pipeline.records import Record

VERSION = "3.2.0"  # of what preparation does: a change of the result needs a new one
# Fields of config.data that the result does not depend on, once the content of the files is known.
_FREE = ("files", "validation_files", "test_files", "answers_file", "prepared_dir")
_FREE += ("max_train_examples", "max_validation_examples", "max_test_examples")
_FREE += ("batch_size", "template", "overlap")
_LINES = (".csv", ".tsv", ".jsonl", ".txt")  # files with about a row a line
_ASIDE = ".incomplete-"  # begins the name of a folder that is being written
_EXAMPLES = 3  # of what was dropped, in the manifest


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set: a TFDS folder for `tfds.builder_from_directory`, with its manifest."""

    directory: Path
    labels: tuple[str, ...]
    manifest: dict[str, Any]


def prepare(data: ConfigDict) -> Prepared:
    """Makes the data set that `data` (config.data) describes, unless it is there already.

    The folder is <prepared_dir>/weitiao/<source>-<key>/<version>, where the key is a hash of the
    source's bytes and of the options that matter. It appears by a rename when it is complete. Of
    several processes one prepares and the rest wait; leftovers of killed ones are deleted.

    Raises:
        FileNotFoundError: if the source is not there.
        ValueError: if it cannot be read as asked, nothing is left of it, its splits leak and
            config.data.audit.on_leak is 'stop', or the folder cannot be written.
    """
    with hosts.first("prepared data"):  # in which each finds them, or makes a copy of its own
        return _prepare(data)


def _prepare(data: ConfigDict) -> Prepared:
    files = sources.files_of(data)
    digests = {file: _digest(file) for file in files}
    options = json.loads(data.to_json())
    for key in _FREE:
        del options[key]
    del options["audit"]["on_leak"]
    # Of a given split, content alone does not show which list names a file.
    keys = [key for key in ("validation_files", "test_files", "answers_file") if data[key]]
    roles = {file: key for key in keys for file in sources.named_files(data, key)}
    contents = [(file.name, digests[file][0], roles.get(file, "")) for file in files]
    key = hashlib.sha256(json.dumps([VERSION, options, contents]).encode()).hexdigest()[:12]
    root = Path(data.prepared_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in data.source).strip("_")
    folder = root.expanduser().absolute() / "weitiao" / f"{name or 'data'}-{key}"
    path = folder / VERSION / "manifest.json"
    if not path.is_file():
        with _making(path.parent) as temporary:
            if temporary:
                lines = sum(digests[file][1] for file in files)
                splits, leaked, results = _process(data, lines=lines)
                origin = [{"path": str(f.absolute()), "sha256": digests[f][0]} for f in files]
                manifest = {
                    "version": VERSION,
                    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "source": {"name": data.source, "files": origin},
                    "options": options,
                    **results,
                }
                words = data.words != "none"
                with _writing(path.parent):
                    storage.write(temporary, splits, leaked, manifest, folder.name, words=words)
                    write_json(temporary / path.name, manifest)
    manifest = json.loads(path.read_text("utf-8"))
    if data.audit.on_leak == "stop":
        audit.stop_on_leak(manifest["audit"])
    return Prepared(path.parent, tuple(manifest["labels"]), manifest)


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
    size = splits[split]["examples"]
    return storage.load(prepared.directory, split, min(limit or size, size))


def read_unlabelled(path: str, data: ConfigDict) -> Examples:
    """Reads every row of a file to predict on, in its order, whether or not it has labels.

    Texts are recoded and stripped as in preparation, and nothing is dropped; answers that are yet
    to be written are ''. `given_N` leads back to the file. Errors are those of `sources.read`,
    without counting what does not fit.
    """
    normalizer = Normalizer(data.normalization)
    rows = list(sources.read_unlabelled(path, data))
    records = [cleaning.strip(normalizer.record(row)[0]) for row in rows]
    records = [cleaning.distinct_negatives(record)[0] for record in records]

    def column(field: str, *, present: bool = False) -> np.ndarray | None:
        values = [getattr(record, field) for record in records]
        return object_array(values) if present or any(values) else None

    def words(field: str, *, present: bool = True) -> Ragged | None:
        if data.words == "none" or not present:
            return None
        return Ragged.of([word_stops(getattr(record, field)) for record in records])

    paired = bool(data.pair_column or data.messages_column or any(r.pair for r in records))
    given = None
    if records != rows:
        given = object_array([Given(row, _alignment(row.text, normalizer)) for row in rows])
    values = np.array([r.values for r in records], np.float32) if data.value_columns else None
    return Examples(
        texts_N=column("text", present=True),
        labels_N=None,
        ids_N=np.arange(len(records), dtype=np.int64),
        names_N=column("name"),
        pairs_N=column("pair", present=paired),
        choices_N=column("choices"),
        negatives_N=column("negatives"),
        histories_N=column("history"),
        words=words("text"),
        pair_words=words("pair", present=paired),
        values_NxK=values,
        given_N=given,
    )


def _alignment(text: str, normalizer: Normalizer) -> Alignment:
    """Returns the alignment of a text with what is read of it, recoded and stripped."""
    recoded, alignment = normalizer.align(text)
    kept = slice(len(recoded) - len(recoded.lstrip()), len(recoded.rstrip()))
    return Alignment(alignment.starts_N[kept], alignment.stops_N[kept])


def _digest(file: Path) -> tuple[str, int]:
    """Returns the sha256 of a file, and its number of lines, an estimate of its rows."""
    digest, lines = hashlib.sha256(), 0
    with file.open("rb") as content:
        while chunk := content.read(1 << 22):
            digest.update(chunk)
            lines += chunk.count(b"\n")
    return digest.hexdigest(), lines if file.suffix.lower() in _LINES else 0


def _process(
    data: ConfigDict, *, lines: int
) -> tuple[dict[str, list[Record]], dict[str, np.ndarray], dict[str, Any]]:
    """Returns the splits, which examples leak, and the manifest's part about both.

    Args:
        data: config.data.
        lines: about how many rows there will be, 0 where that is not known.
    """
    problems: sources.Problems = {}
    records = list(track(sources.read(data, problems), lines, "Reading"))
    read = len(records) + sum(map(len, problems.values()))
    normalizer, lost_spans = Normalizer(data.normalization), 0
    if data.normalization:
        recoded = [normalizer.record(r) for r in track(records, len(records), "Recoding")]
        records = [record for record, _ in recoded if _choosable(record, data, problems)]
        lost_spans = sum(lost for _, lost in recoded)
    distinct = [cleaning.distinct_negatives(record) for record in records]
    records = [record for record, _ in distinct]
    merged = data.split.kind != "given" and any(record.split for record in records)
    if merged:
        records = [record._replace(split="") for record in records]
    cleaned = cleaning.clean(track(records, len(records), "Cleaning"), data.cleaning)
    copies = [(*splits, count) for splits, count in sorted(cleaned.copies.items())]

    def dropped() -> dict[str, int]:
        return {reason: len(rows) for reason, rows in (problems | cleaned.dropped).items()}

    try:
        given = {record.split for record in records}
        _check_left(given, cleaned.kept, data)
        kept = _known(cleaned.kept, data, problems)
        _check_left(given, kept, data)
        labels = _labels(kept, data)
        splits = splitting.split(kept, data.split)
    except ValueError as error:  # which may come of what was dropped
        raise ValueError(f"{error}{remark(read, dropped(), copies)}") from None
    audited = audit.audit(splits, data.audit)
    examples = {r: [{"where": where} for where in rows[:_EXAMPLES]] for r, rows in problems.items()}
    manifest = {
        "encodings": sources.encodings_of(data),
        "read": read,
        "recoded": normalizer.counts,
        "lost_spans": lost_spans,
        "lost_negatives": sum(lost for _, lost in distinct),
        "merged": merged,
        "dropped": dropped(),
        "copies": copies,
        "dropped_examples": examples | cleaned.examples,
        "labels": labels,
        "span_labels": sorted({span.label for record in kept for span in record.spans}),
        "splits": {
            name: _describe(rows, labels, audited.leaked.get(name, ()))
            for name, rows in splits.items()
        },
        "imbalance": splitting.imbalance(splits),
        "untaught": untaught(splits),
        "audit": audited.report,
    }
    return splits, audited.leaked, manifest


def _check_left(given: Collection[str], kept: Sequence[Record], data: ConfigDict) -> None:
    """Raises where cleaning leaves nothing, or nothing of a split that the source gives."""
    if not kept:
        remedy = "check config.data.text_column and config.data.cleaning"
        raise ValueError(f"no example is left of {data.files or data.source}; {remedy}")
    lost = set(given) - {record.split for record in kept}
    if lost and data.split.kind == "given":
        raise ValueError(f"no example is left of the {' and '.join(sorted(lost))} split")


def _choosable(record: Record, data: ConfigDict, problems: sources.Problems) -> bool:
    """Returns whether recoding has left the choices different, and counts them if not."""
    try:
        if record.choices:
            columns.check_choices(record.choices)
    except Misfit as misfit:
        sources.reject(misfit, record.where, data, problems)
        return False
    return True


def _known(records: Sequence[Record], data: ConfigDict, problems: sources.Problems) -> list[Record]:
    """Returns the records whose labels can be learned.

    Labels must be among config.data.labels, if it has some. In splits that the source gives, those
    of validation and test must else be among those of train, and so must the labels of spans.
    Numbers of choices always can.

    Raises:
        ValueError: a label that is not known, of train or with config.data.on_new_label='stop'.
    """
    allowed = frozenset(str(columns.integer(label)) for label in data.labels)
    given = ("test",) if data.split.folds else ("validation", "test")
    given = given if data.split.kind == "given" else ()
    train = [record for record in records if record.split not in given]
    taught = allowed or {label for record in train for label in record.labels}
    taught_spans = {span.label for record in train for span in record.spans}
    kept = []
    for record in records:
        new, held_out = [], record.split in given
        if not record.choices and (held_out or allowed):
            new = [label for label in record.labels if label not in taught]
        if held_out and not new:
            new = [span.label for span in record.spans if span.label not in taught_spans]
        if not new:
            kept.append(record)
        elif held_out and data.on_new_label == "drop":
            problems.setdefault("new_label", []).append(record.where)
        else:
            known, remedy = "the training split", "add examples of it there"
            if allowed:
                known, remedy = f"config.data.labels={tuple(data.labels)}", "add it there"
            remedy += ", or to config.data.skip_labels, or correct or remove the row"
            remedy += ", or pass --config.data.on_new_label=drop" * held_out
            raise ValueError(f"{record.where}: label {new[0]!r} is not in {known}; {remedy}")
    return kept


def _labels(records: Sequence[Record], data: ConfigDict) -> tuple[str, ...]:
    """Returns the class names in order; () for data without.

    Raises:
        ValueError: for fewer than two, or one twice.
    """
    most = max((len(record.choices) for record in records), default=0)
    if most:
        return tuple(map(str, range(most)))
    allowed = tuple(str(columns.integer(label)) for label in data.labels)
    labels = allowed or tuple(sorted({label for record in records for label in record.labels}))
    if labels and (len(set(labels)) < 2 or len(set(labels)) < len(labels)):
        remedy = "check config.data.label_column and config.data.labels"
        raise ValueError(f"the labels are {labels}: expected two or more different ones; {remedy}")
    return labels


def _describe(
    records: Sequence[Record], labels: Iterable[str], leaked: Sequence[bool]
) -> dict[str, Any]:
    counts = Counter(label for record in records for label in record.labels)
    return {
        "examples": len(records),
        "per_label": {label: counts[label] for label in labels},
        "leaked": int(sum(leaked)),
        "fingerprint": splitting.fingerprint(records),
    }


@contextlib.contextmanager
def _making(directory: Path) -> Iterator[Path | None]:
    """Yields a folder that becomes `directory` at the end, when no other process makes the same.

    Yields None where another process has made it in the meantime.
    """
    aside = directory.parent.with_name(f"{_ASIDE}{directory.parent.name}")
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, aside)  # after the lock is released
        with _writing(directory):
            stack.enter_context(in_use(aside, wait="which prepares the same data"))
        _clear_leftovers(aside.parent)
        if (directory / "manifest.json").is_file():
            yield None
            return
        # A new folder in any case: where locks do not work, two processes may get here.
        with _writing(directory):
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=aside)), VERSION)
            temporary.mkdir()
        yield temporary
        with _writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(temporary, directory)
            except OSError:
                if not (directory / "manifest.json").is_file():  # else another was faster
                    raise


def _clear_leftovers(where: Path) -> None:
    """Deletes leftovers of killed processes, whose locks nobody holds."""
    left: list[Path] = []
    for path in where.glob(f"{_ASIDE}*"):
        with contextlib.suppress(locking.InUse, OSError), in_use(path) as locked:
            left += path.iterdir() if locked else ()
    locking.clear((path for path in left if path.name != locking.FILE), where)
    for path in {path.parent for path in left}:
        _remove_empty(path)  # except that of this process, which holds its lock


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        remedy = "free it, or choose another place with --config.data.prepared_dir=FOLDER"
        raise ValueError(f"cannot write prepared data to {directory} ({error}); {remedy}") from None
