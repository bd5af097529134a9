"""Files of every format to rows, and the messages about those that are not in it."""

import gzip
import json
import re

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from input_pipeline.corpus import formats
from input_pipeline.corpus.notes import Notes

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path, declared="", columns=(), annotated=True):
    kind, encoding = formats.format_of(path, declared, "utf-8")
    return list(
        formats.read_rows(
            path, kind, encoding=encoding, columns=columns, notes=Notes(), annotated=annotated
        )
    )


def refusal(path, declared=""):
    with pytest.raises(ValueError) as error:
        rows(path, declared)
    return str(error.value)


def squad(*questions, context="北京是首都"):
    return {"version": "1", "data": [{"paragraphs": [{"context": context, "qas": questions}]}]}


# The format of a file.


@pytest.mark.parametrize(
    ("name", "declared", "content", "kind"),
    [
        ("a.jsonl", "", '{"data": []}', "jsonl"),
        ("a.json", "", '{"data": []}\n{"data": []}', "jsonl"),
        ("a.json", "", '{"text": "好"}\n', "jsonl"),
        ("a.json", "", '\n{"data": []}\n\n', "squad"),
        ("a.JSON", "", '{\n"data": []}', "squad"),
        ("a.json", "", ' [\n{"text": "好"}]', "json"),
        ("a.json", "", '{"data": [' + "0," * 600_000 + "0]}", "squad"),
        ("a.csv", "jsonl", "{}", "jsonl"),
        ("corpus.train", "conll", "好 O", "conll"),
        ("a.txt", "", "好", "txt"),
    ],
)
def test_format_is_what_suffix_declaration_and_beginning_say(
    tmp_path, name, declared, content, kind
):
    assert formats.format_of(write(tmp_path / name, content), declared, "auto") == (kind, "utf-8")
    packed = write(tmp_path / f"{name}.gz", gzip.compress(content.encode()))
    assert formats.format_of(packed, declared, "auto") == (kind, "utf-8")


@pytest.mark.parametrize("name", ["a.xlsx", "weibo.train", "a", "a.gz"])
def test_unknown_suffix_names_the_known_ones(tmp_path, name):
    said = refusal(write(tmp_path / name, "好"))
    assert "expected one of jsonl, json, csv, tsv, parquet, txt, conll, squad" in said
    assert "--config.data.format=conll" in said


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (
            b"PK\x03\x04...",
            "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV",
        ),
        (gzip.compress(b"text,label", mtime=0), "packed by gzip: add .gz to its name"),
        (b"PAR1....", "Parquet: name it .parquet, or pass --config.data.format=parquet"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.xlsx"])
def test_packed_files_and_workbooks_are_named(tmp_path, name, content, remedy):
    assert refusal(write(tmp_path / name, content)).endswith(f"{name}: it is {remedy}")


def test_unknown_declaration_names_the_key(tmp_path):
    assert "config.data.format is 'excel'" in refusal(write(tmp_path / "a.csv", "a"), "excel")


@pytest.mark.parametrize("name", [f"a.{kind}" for kind in formats.FORMATS])
def test_empty_file_is_refused_in_every_format(tmp_path, name):
    assert f"{name}:1: the file is empty" in refusal(write(tmp_path / name, ""))
    packed = write(tmp_path / f"{name}.gz", gzip.compress(b"", mtime=0))
    assert f"{name}.gz:1: the file is empty" in refusal(packed)


# Tables, text and JSON.


def test_csv_keeps_quoted_commas_quotes_and_newlines_and_names_first_lines(tmp_path):
    path = write(
        tmp_path / "a.csv",
        '\ufefflabel,id, text\r\n好,7,"一,二""三""\r\n四"\r\n\r\n差,8,五\r\n',
    )
    assert rows(path) == [
        (2, {"label": "好", "id": "7", "text": '一,二"三"\r\n四'}),
        (5, {"label": "差", "id": "8", "text": "五"}),
    ]


def test_csv_field_may_be_longer_than_python_allows_by_default(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n" + "好" * 200_000 + ",1\n")
    assert len(rows(path)[0][1]["text"]) == 200_000


def test_tsv_takes_quotes_literally(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"开头有引号\t1\n')
    assert rows(path) == [(2, {"text": '"开头有引号', "label": "1"})]


ENDS = {"old": "\r", "Unix": "\n", "DOS": "\r\n", "converted twice": "\r\r\n"}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("last", [True, False])
def test_lines_of_texts_end_however_a_program_ends_them(tmp_path, end, last):
    texts = ["房间\u2028很好", "太\x85吵了", "不\x0b错\x0c"]
    path = write(tmp_path / "a.txt", end.join(texts) + end * last)
    assert [row["text"].removesuffix("\r") for _, row in rows(path)] == texts
    objects = [json.dumps({"text": text}, ensure_ascii=False) for text in texts[:1] * 3]
    path = write(tmp_path / "a.jsonl", end.join(objects) + end * last)
    assert [row["text"] for _, row in rows(path)] == texts[:1] * 3
    path = write(tmp_path / "a.json", f"[{end}{f',{end}'.join(objects)}]")
    places = [place for place, _ in rows(path)]
    assert places == ([2, 3, 4] if end != "\r\r\n" else [3, 5, 7])


def test_a_return_inside_a_line_stays_and_is_warned_of(tmp_path):
    path = write(tmp_path / "a.txt", "一\r二\n三\n四\r\n")
    notes = Notes()
    read = formats.read_rows(path, "txt", encoding="utf-8", columns=(), notes=notes)
    assert [row["text"] for _, row in read] == ["一\r二", "三", "四"]
    with pytest.warns(UserWarning, match=r"^1 lines hold a '\\r'.*, the first at .*a\.txt:1\.$"):
        notes.report()


def test_txt_keeps_every_line(tmp_path):
    path = write(tmp_path / "a.txt", "一\r\n\n二\u2028三\n")
    assert rows(path) == [(1, {"text": "一"}), (2, {"text": ""}), (3, {"text": "二\u2028三"})]


def test_json_lines_end_at_newlines_alone(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "好\u2028吧"}\r\n\n{"text":null}')
    assert rows(path) == [(1, {"text": "好\u2028吧"}), (3, {"text": None})]


def test_objects_of_a_list_know_the_line_they_begin_in(tmp_path):
    path = write(tmp_path / "a.json", '[{"a": 1}, {"a":\n2},\n\n{"a": "]"\n}\n]\n')
    assert rows(path) == [(1, {"a": 1}), (1, {"a": 2}), (4, {"a": "]"})]
    assert rows(write(tmp_path / "b.json", "[ ]")) == []


@pytest.mark.parametrize(("name", "join"), [("round.jsonl", "{}\n{}".format), ("list.json", None)])
@given(first=TEXTS, second=TEXTS)
def test_json_round_trips(tmp_path_factory, name, join, first, second):
    objects = [{"text": first}, {"text": second}]
    lines = [json.dumps(row, ensure_ascii=False) for row in objects]
    content = join(*lines) if join else json.dumps(objects, indent=1, ensure_ascii=False)
    path = write(tmp_path_factory.getbasetemp() / name, content)
    assert [row for _, row in rows(path)] == objects


@pytest.mark.parametrize("packed", [False, True])
def test_parquet_reads_the_columns_asked_for_or_tells_which_there_are(tmp_path, packed):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["好", None], "n": [1, 2], "more": [0, 0]}), path)
    if packed:
        path = write(tmp_path / "a.parquet.gz", gzip.compress(path.read_bytes()))
    assert rows(path, columns=["n", "text"]) == [
        (1, {"n": 1, "text": "好"}),
        (2, {"n": 2, "text": None}),
    ]
    assert set(rows(path, columns=["texts"])[0][1]) == {"text", "n", "more"}


BAD = {
    "too many fields": ("a.csv", "text,label\n一,二,1\n", "a.csv:2: found 3 fields, but the head"),
    "too few fields": ("a.tsv", "text\tlabel\n一\t1\n二\n", "a.tsv:3: found 1 fields"),
    "open quote": (
        "a.csv",
        'text,label\n"一",1\n"二,1\n三,1\n',
        "a.csv:3: a quoted field is not",
    ),
    "stray quote": (
        "a.csv",
        'text,label\n"一",1\n"二"三,1\n',
        "a.csv:3: a quoted field goes on",
    ),
    "one name twice": ("a.csv", "text,text\n一,1\n", "a.csv:1: two columns are named 'text'"),
    "long line": ("a.csv", "text\n" + "x" * 10_000_001, "a.csv:2: the line has more than 10,000"),
    "not JSON": ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: not JSON at column 7"),
    "not JSON either": ("a.json", '{"a": 1}\n{"a": \n', "a.json:2: not JSON at column 7"),
    "broken first": ("a.json", '{"a": \n{"a": 1}\n', "a.json:1: not JSON at column 7"),
    "broken list": ("a.json", '[{"a": 1},\n{"a": ]', "a.json:2: not JSON at column 7"),
    "not an object": ("a.jsonl", "[1]\n", "a.jsonl:1: expected one object a line, found a list"),
    "nor in a list": ("a.json", "[{},\n1]\n", "a.json:2: expected a list of objects, found a int"),
    "deep": ("a.jsonl", "[" * 100_000, "a.jsonl:1: not JSON that Python reads"),
    "long number": ("a.jsonl", "1" * 5_000, "a.jsonl:1: not JSON that Python reads"),
    "not Parquet": ("a.parquet", "text,label\n", "a.parquet: not Parquet that can be read"),
    "no data": ("a.json", '{\n"a": 1}', "a.json:1: not like SQuAD at 'data'; expected {'data'"),
}


@pytest.mark.parametrize(("name", "content", "said"), BAD.values(), ids=BAD)
def test_bad_file_is_an_error_that_names_file_and_line(tmp_path, name, content, said):
    path = write(tmp_path / name, content)
    assert refusal(path).startswith(str(path))
    assert said in refusal(path)


def test_json_that_breaks_on_line_70_001_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "好"}\n' * 70_000 + '{"text": "好}\n')
    assert re.search(r"a\.jsonl:70001: not JSON at column 10 .*expected one object", refusal(path))


# SQuAD.


def test_squad_gives_a_row_per_question_with_its_line_and_id(tmp_path):
    answers = [{"text": "北京", "answer_start": 0}]
    content = squad(
        {"id": "q1", "question": "首都？", "answers": answers},
        {"id": "q2", "question": "何时？", "answers": []},
    )
    path = write(tmp_path / "a.json", json.dumps(content, ensure_ascii=False, indent=1))
    (first, row), (second, other) = rows(path)
    assert (row["context"], row["question"]) == ("北京是首都", "首都？")
    assert (row["answers"], other["answers"]) == (answers, [])
    assert row["group"] == other["group"] != ""
    lines = path.read_text("utf-8").split("\n")
    for place, name in ((first, "q1"), (second, "q2")):
        number, _, rest = place.partition(" ")
        assert rest == f"({name})"
        assert f'"{name}"' in lines[int(number) - 1]


def test_squad_groups_are_contexts_whatever_the_file(tmp_path):
    question = {"id": 1, "question": "？", "answers": []}
    paths = [
        write(tmp_path / f"{n}.json", json.dumps(squad(question, context=context)))
        for n, context in enumerate(("甲", "甲", "乙"))
    ]
    groups = [rows(path)[0][1]["group"] for path in paths]
    assert groups[0] == groups[1] != groups[2]


def test_squad_without_answers_is_read_to_predict_only(tmp_path):
    path = write(tmp_path / "a.json", json.dumps(squad({"id": "q", "question": "？"})))
    assert "not like SQuAD at 'answers'" in refusal(path)
    assert rows(path, annotated=False)[0][1]["question"] == "？"
