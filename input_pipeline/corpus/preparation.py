"""Turns raw text into a clean, split and audited TFDS data set on disk, once, and loads its splits.

Here: the cache around read -> recode -> clean -> split -> audit, and the manifest. Not here: what
each of those stages decides (sources.py, normalization.py, cleaning.py, splitting.py, audit.py),
the format on disk (storage.py), nor anything that happens every step. Called by training/,
evaluation/ and main.py.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import locking
from input_pipeline.alignment import Alignment
from input_pipeline.corpus import audit, cleaning, columns, formats, sources, splitting, storage
from input_pipeline.corpus.manifest import copied, remark, untaught, without_examples
from input_pipeline.corpus.normalization import Normalizer
from input_pipeline.corpus.words import word_stops
from input_pipeline.eta import track
from input_pipeline.examples import Examples, Given, Ragged, object_array
from input_pipeline.lazy import tf
from input_pipeline.locking import in_use
from input_pipeline.records import Record

VERSION = "3.1.0"  # of what preparation does: a change of the result needs a new one
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
    several processes one prepares and the others wait; what killed ones left is deleted.

    Raises:
        FileNotFoundError: if the source is not there.
        ValueError: if it cannot be read as asked, nothing is left of it, its splits leak and
            config.data.audit.on_leak is 'stop', or the folder cannot be written.
    """
    files = sources.files_of(data)
    digests = [_digest(file) for file in files]
    options = json.loads(data.to_json())
    for key in _FREE:
        del options[key]
    del options["audit"]["on_leak"]
    roles = _roles(data)
    contents = [
        (file.name, digest, roles.get(file, ""))
        for file, (digest, _) in zip(files, digests, strict=True)
    ]
    key = _sha256(json.dumps([VERSION, options, contents]).encode())[:12]
    root = Path(data.prepared_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = root.expanduser().absolute() / "weitiao"
    directory = folder / f"{_name(data)}-{key}" / VERSION

    if not (directory / "manifest.json").is_file():
        origin = [
            {"path": str(file.absolute()), "sha256": digest}
            for file, (digest, _) in zip(files, digests, strict=True)
        ]
        with _alone(directory) as aside:
            if not (directory / "manifest.json").is_file():  # nor from a process that was faster
                result = _process(data, lines=sum(lines for _, lines in digests))
                manifest = {
                    "version": VERSION,
                    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "source": {"name": data.source, "files": origin},
                    "options": options,
                    **result.manifest,
                }
                _write(directory, aside, result, manifest, data)
    manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
    if data.audit.on_leak == "stop":
        audit.stop_on_leak(manifest["audit"])
    return Prepared(directory, tuple(manifest["labels"]), manifest)


def prose(manifest: dict[str, Any]) -> str:
    """Returns a manifest's counts as a few sentences."""
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in manifest["dropped"].items() if n)
    sizes = ", ".join(f"{s['examples']:,} {name}" for name, s in manifest["splits"].items())
    sentences = [
        f"Prepared {manifest['source']['name']}: read {manifest['read']:,} examples, dropped "
        f"{sum(manifest['dropped'].values()):,} ({dropped or 'none'}), kept {sizes}."
    ]
    if manifest["copies"]:
        sentences.append(f"{copied(manifest['copies'])}.")
    sentences += [without_examples(*item) for item in manifest["untaught"].items()]
    others = {e for e in manifest["encodings"].values() if e != "utf-8"}
    if others:
        sentences.append(f"Encodings: {', '.join(sorted(others))}.")
    if manifest["merged"]:
        sentences.append(
            "The source's own splits were merged and split anew: data.split.kind='given' keeps "
            "them."
        )
    if manifest["lost_spans"]:
        sentences.append(f"Recoding left nothing of {manifest['lost_spans']:,} spans.")
    leaked = {name: part["leaked"] for name, part in manifest["splits"].items() if part["leaked"]}
    if leaked:
        counts = " and ".join(f"{count:,} {name}" for name, count in leaked.items())
        sentences.append(
            f"Audit: {counts} examples have a copy or near-duplicate in another split; results "
            "are given with and without them."
        )
    shared = {name: part["shared_text"] for name, part in manifest["audit"].items()}
    if any(shared.values()):
        counts = " and ".join(f"{count:,} {name}" for name, count in shared.items() if count)
        grouped = manifest["options"]["split"]["kind"] == "group"
        remedy = "" if grouped else ": data.split.kind='group' keeps them apart"
        sentences.append(f"{counts} pairs share one of their texts with train{remedy}.")
    return " ".join(sentences)


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

    def column(field: str, *, present: bool = False) -> np.ndarray | None:
        values = [getattr(record, field) for record in records]
        return object_array(values) if present or any(values) else None

    paired = bool(data.pair_column or data.messages_column or any(r.pair for r in records))
    words = data.words != "none"
    return Examples(
        texts_N=column("text", present=True),
        labels_N=None,
        ids_N=np.arange(len(records), dtype=np.int64),
        names_N=column("name"),
        pairs_N=column("pair", present=paired),
        choices_N=column("choices"),
        histories_N=column("history"),
        words=Ragged.of([word_stops(r.text) for r in records]) if words else None,
        pair_words=Ragged.of([word_stops(r.pair) for r in records]) if words and paired else None,
        values_NxK=np.array([r.values for r in records], np.float32)
        if data.value_columns
        else None,
        given_N=None
        if records == rows
        else object_array([Given(row, _alignment(row.text, normalizer)) for row in rows]),
    )


def _alignment(text: str, normalizer: Normalizer) -> Alignment:
    """Returns the alignment of a text with what is read of it, recoded and stripped."""
    recoded, found = normalizer.align(text)
    kept = slice(len(recoded) - len(recoded.lstrip()), len(recoded.rstrip()))
    return Alignment(found.starts_N[kept], found.stops_N[kept])


def _name(data: ConfigDict) -> str:
    """Returns a name for the folder: letters, digits and underscores of the source's name."""
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in data.source)
    return name.strip("_") or "data"


def _roles(data: ConfigDict) -> dict[Path, str]:
    """Returns which list names each file of a given split: its content alone does not tell."""
    keys = [key for key in ("validation_files", "test_files", "answers_file") if data[key]]
    return {file: key for key in keys for file in sources.find_files(data[key])}


def _digest(file: Path) -> tuple[str, int]:
    """Returns the sha256 of a file, and its number of lines for want of that of its rows."""
    digest, lines = hashlib.sha256(), 0
    with file.open("rb") as content:
        while chunk := content.read(1 << 22):
            digest.update(chunk)
            lines += chunk.count(b"\n")
    return digest.hexdigest(), lines if file.suffix.lower() in _LINES else 0


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Result:
    """What the stages made: the splits, who leaks, and the part of the manifest about them."""

    splits: Mapping[str, Sequence[Record]]
    leaked: Mapping[str, np.ndarray]
    manifest: dict[str, Any]


def _process(data: ConfigDict, *, lines: int) -> _Result:
    """Runs all stages; `lines` is about how many rows there will be, 0 where that is not known."""
    problems: dict[str, list[str]] = {}
    records = list(track(sources.read(data, problems), lines, "Reading"))
    read = len(records) + sum(map(len, problems.values()))
    normalizer, lost_spans = Normalizer(data.normalization), 0
    if data.normalization:
        recoded = [normalizer.record(r) for r in track(records, len(records), "Recoding")]
        records = [record for record, _ in recoded if _choosable(record, data, problems)]
        lost_spans = sum(lost for _, lost in recoded)
    merged = data.split.kind != "given" and any(record.split for record in records)
    if merged:
        records = [record._replace(split="") for record in records]
    cleaned = cleaning.clean(track(records, len(records), "Cleaning"), data.cleaning)
    copies = [(*splits, count) for splits, count in sorted(cleaned.copies.items())]
    try:
        given = {record.split for record in records}
        _check_left(given, cleaned.kept, data)
        kept = _known(cleaned.kept, data, problems)
        _check_left(given, kept, data)
        labels = _labels(kept, data)
        splits = splitting.split(kept, data.split)
    except ValueError as error:
        dropped = {reason: len(rows) for reason, rows in (problems | cleaned.dropped).items()}
        raise ValueError(f"{error}{remark(read, dropped, copies)}") from None
    dropped = {reason: len(rows) for reason, rows in (problems | cleaned.dropped).items()}
    span_labels = sorted({span.label for record in kept for span in record.spans})
    audited = audit.audit(splits, data.audit)
    examples = {
        reason: [{"where": where} for where in rows[:_EXAMPLES]]
        for reason, rows in problems.items()
    }
    return _Result(
        splits,
        audited.leaked,
        {
            "encodings": sources.encodings_of(data),
            "read": read,
            "recoded": normalizer.counts,
            "lost_spans": lost_spans,
            "merged": merged,
            "dropped": dropped,
            "copies": copies,
            "dropped_examples": examples | cleaned.examples,
            "labels": labels,
            "span_labels": span_labels,
            "splits": {
                name: _describe(rows, labels, audited.leaked.get(name, ()))
                for name, rows in splits.items()
            },
            "imbalance": splitting.imbalance(splits),
            "untaught": untaught(splits),
            "audit": audited.report(),
        },
    )


def _check_left(given: Collection[str], kept: Sequence[Record], data: ConfigDict) -> None:
    """Raises where cleaning leaves nothing, or nothing of a split that the source gives."""
    if not kept:
        raise ValueError(
            f"no example is left of {data.files or data.source}; check config.data.text_column and "
            "config.data.cleaning"
        )
    lost = set(given) - {record.split for record in kept}
    if lost and data.split.kind == "given":
        raise ValueError(f"no example is left of the {' and '.join(sorted(lost))} split")


def _choosable(record: Record, data: ConfigDict, problems: dict[str, list[str]]) -> bool:
    """Returns whether recoding has left the choices different, and counts them if not."""
    try:
        if record.choices:
            columns.check_choices(record.choices, record.where)
    except formats.Misfit as misfit:
        sources.count(misfit, record.where, data, problems)
        return False
    return True


def _known(
    records: Sequence[Record], data: ConfigDict, problems: dict[str, list[str]]
) -> list[Record]:
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
            among = f"config.data.labels={tuple(data.labels)}" if allowed else "the training split"
            raise ValueError(
                f"{record.where}: label {new[0]!r} is not in {among}; "
                + ("add it there" if allowed else "add examples of it there")
                + ", or to config.data.skip_labels, or correct or remove the row"
                + ", or pass --config.data.on_new_label=drop" * held_out
            )
    return kept


def _labels(records: Sequence[Record], data: ConfigDict) -> tuple[str, ...]:
    """Returns the class names in order; () for data without.

    Raises:
        ValueError: there are fewer than two, or one twice.
    """
    most = max((len(record.choices) for record in records), default=0)
    if most:
        return tuple(map(str, range(most)))
    allowed = tuple(str(columns.integer(label)) for label in data.labels)
    found = {label for record in records for label in record.labels}
    if not found and not allowed:
        return ()
    labels = allowed or tuple(sorted(found))
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise ValueError(
            f"the labels are {labels}: expected two or more different ones; check "
            "config.data.label_column and config.data.labels"
        )
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
def _alone(directory: Path) -> Iterator[Path]:
    """Yields a folder to write aside in, when no other process prepares the same data.

    Raises:
        ValueError: it cannot be made.
    """
    aside = directory.parent.parent / f"{_ASIDE}{directory.parent.name}"
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, aside)  # behind the lock
        try:
            stack.enter_context(in_use(aside, wait="which prepares the same data"))
        except OSError as error:
            raise _unwritable(directory, error) from None
        with contextlib.ExitStack() as unused:
            left = []  # by killed processes: nobody holds the lock
            for path in aside.parent.glob(f"{_ASIDE}*"):
                with contextlib.suppress(locking.InUse, OSError):  # not to be touched
                    left += [path] if unused.enter_context(in_use(path)) else []
            parts = [part for path in left for part in path.iterdir() if part.name != locking.FILE]
            locking.clear(parts, aside.parent)
        for path in left:
            _remove_empty(path)  # but for that of this process
        yield aside


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _unwritable(directory: Path, error: Exception) -> ValueError:
    return ValueError(
        f"cannot write prepared data to {directory} ({error}); free it, or choose another place "
        "with --config.data.prepared_dir=FOLDER"
    )


def _write(
    directory: Path, aside: Path, result: _Result, manifest: dict[str, Any], data: ConfigDict
) -> None:
    """Writes the folder aside and moves it to its place, if no other process was faster."""
    temporary = aside / secrets.token_hex(8)  # of its own: there may be no locks
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        storage.write(
            temporary,
            result.splits,
            config_name=directory.parent.name,
            version=VERSION,
            description=prose(manifest),
            labels=manifest["labels"],
            span_labels=manifest["span_labels"],
            words=data.words != "none",
            leaked=result.leaked,
        )
        (temporary / "manifest.json").write_text(
            json.dumps(manifest, ensure_ascii=False, indent=2), "utf-8"
        )
        try:
            os.replace(temporary, directory)
        except OSError:
            if not (directory / "manifest.json").is_file():
                raise
    except (OSError, tf.errors.OpError) as error:
        raise _unwritable(directory, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
