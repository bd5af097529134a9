"""Files to records: what is read, and what is said about each thing that cannot be."""

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import sources

SIMPLIFIED = "text,label\n这家酒店的服务非常好，房间也很干净。,1\n"
TRADITIONAL = "text,label\n這家酒店的服務非常好，房間也很乾淨。,1\n"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def read(path, text_column="text", label_column="label", encoding="utf-8"):
    return list(
        sources.read(
            str(path), text_column=text_column, label_column=label_column, encoding=encoding
        )
    )


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_keeps_quoted_commas_quotes_and_newlines_and_names_first_lines(tmp_path):
    path = write(
        tmp_path / "a.csv",
        '\ufefflabel,id, text\r\n好,7,"一,二""三""\r\n四"\r\n\r\n差,8,五\r\n',
    )
    assert read(path) == [
        ('一,二"三"\r\n四', "好", f"{path}:2"),
        ("五", "差", f"{path}:5"),
    ]


def test_tsv_takes_quotes_literally(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"开头有引号\t1\n')
    assert read(path) == [('"开头有引号', "1", f"{path}:2")]


def test_jsonl_turns_integer_labels_into_strings_and_null_texts_into_empty_ones(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"text": "好\u2028吧", "label": 1}\n\n{"text":null,"label":"0"}'
    )
    assert read(path) == [("好\u2028吧", "1", f"{path}:1"), ("", "0", f"{path}:3")]


def test_txt_keeps_every_line_and_has_no_labels(tmp_path):
    path = write(tmp_path / "a.txt", "一\r\n\n二\n")
    assert [(r.text, r.label) for r in read(path, label_column=None)] == [
        ("一", None),
        ("", None),
        ("二", None),
    ]
    with pytest.raises(ValueError, match=r"a\.txt: a \.txt file has no labels"):
        read(path)


def test_label_column_may_be_absent_when_no_labels_are_read(tmp_path):
    path = write(tmp_path / "a.csv", "text\n一\n")
    assert read(path, label_column=None) == [("一", None, f"{path}:2")]


def test_glob_reads_all_matches_in_sorted_order(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "b.csv", "text,label\n二,1\n")
    write(tmp_path / "a.jsonl", '{"text": "一", "label": 0}\n')
    assert [r.text for r in read(tmp_path / "**" / "*.*")] == ["一", "二"]


def test_file_whose_name_looks_like_a_glob_is_read(tmp_path):
    assert len(read(write(tmp_path / "a[1].csv", "text,label\n一,1\n"))) == 1


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["好", "差"]))))
def test_csv_round_trips(tmp_path_factory, rows):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("text", "label"), *rows])
    path = write(tmp_path_factory.getbasetemp() / "round.csv", buffer.getvalue())
    assert [(r.text, r.label) for r in read(path)] == rows


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["好", "差"]))))
def test_jsonl_round_trips(tmp_path_factory, rows):
    lines = [json.dumps({"text": t, "label": y}, ensure_ascii=False) for t, y in rows]
    path = write(tmp_path_factory.getbasetemp() / "round.jsonl", "\n".join(lines))
    assert [(r.text, r.label) for r in read(path)] == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "big5", "utf-16"])
def test_declared_encoding_is_used(tmp_path, encoding):
    content = TRADITIONAL if encoding == "big5" else SIMPLIFIED
    path = write(tmp_path / "a.csv", content.encode(encoding))
    assert read(path, encoding=encoding)[0].text == content.split("\n")[1].split(",")[0]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            SIMPLIFIED.encode("gb18030"),
            "0xd5 at offset 11; it seems to be gb18030: pass --config.data",
        ),
        (TRADITIONAL.encode("big5"), "encoding=big5"),
        (SIMPLIFIED.encode("utf-16"), "encoding=utf-16"),
        (SIMPLIFIED.encode("utf-16-be"), "encoding=utf-16-be"),
        (SIMPLIFIED.encode() + b"\xff\n", "damaged utf-8; repair that line"),
        (b"text,label\n" + bytes(range(128, 256)), "convert it to UTF-8"),
    ],
)
def test_wrong_encoding_names_place_and_likely_encoding(tmp_path, raw, said):
    path = write(tmp_path / "a.csv", raw)
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:")
    assert said in str(error.value)


def test_unknown_encoding_names_the_key(tmp_path):
    with pytest.raises(ValueError, match=r"config\.data\.encoding: .*'utf-9'"):
        read(write(tmp_path / "a.csv", SIMPLIFIED), encoding="utf-9")


def test_missing_file_names_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nothing*.csv"))):
        read("nothing*.csv")


def test_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read '\.xlsx'; it must be one of \('\.jsonl'"):
        read(write(tmp_path / "a.xlsx", ""))


BAD = {
    "missing column": (
        "a.csv",
        "Text,label\n一,1\n",
        "a.csv:2: no column 'text'; found 'Text', 'label'",
    ),
    "nearest column": ("a.jsonl", '{"texts": "一"}', "config.data.text_column=texts (the nearest)"),
    "missing label column": ("a.csv", "text\n一\n", "--config.data.label_column=NAME"),
    "no header": ("a.csv", "", "a.csv:1: the file is empty; expected a header"),
    "too many fields": (
        "a.csv",
        "text,label\n一,二,1\n",
        "a.csv:2: found 3 fields, but the header",
    ),
    "too few fields": ("a.tsv", "text\tlabel\n一\t1\n二\n", "a.tsv:3: found 1 fields"),
    "open quote": ("a.csv", 'text,label\n一,1\n"二,1\n三,1\n', "a.csv:3: not CSV"),
    "not JSON": (
        "a.jsonl",
        '{"text": "一", "label": 1}\n{"text": \n',
        "a.jsonl:2: not JSON at column 10",
    ),
    "not an object": ("a.jsonl", "[1]\n", "a.jsonl:1: expected one object a line, found a list"),
    "no label": ("a.csv", "text,label\n一, \n", "a.csv:2: no label in column 'label'"),
    "null label": ("a.jsonl", '{"text": "一", "label": null}', "a.jsonl:1: no label in column"),
    "odd label": (
        "a.jsonl",
        '{"text": "一", "label": 0.5}',
        "a.jsonl:1: the label must be a string",
    ),
    "odd text": (
        "a.jsonl",
        '{"text": 5, "label": 1}',
        "a.jsonl:1: the text must be a string, found 5",
    ),
    "half an emoji": (
        "a.jsonl",
        r'{"text": "好\ud83d", "label": 1}',
        r"a.jsonl:1: character 2 of the text",
    ),
}


@pytest.mark.parametrize(("name", "content", "said"), BAD.values(), ids=BAD)
def test_bad_row_is_an_error_that_names_file_and_line(tmp_path, name, content, said):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError) as error:
        read(path)
    assert said in str(error.value)
