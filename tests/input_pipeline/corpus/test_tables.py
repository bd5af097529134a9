"""Tables as pandas, Excel, `datasets`, R and people write them are read back as they were."""

import csv
import gzip
import io
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from input_pipeline.corpus import encodings, tables
from input_pipeline.corpus.notes import Notes

try:
    import pandas  # no extra brings it; it writes as the csv module does
except ImportError:
    pandas = None


class Collected(Notes):
    """Notes that can be looked at."""

    def __init__(self):
        super().__init__()
        self.decided, self.warned = [], []

    def decide(self, path, decision):
        self.decided.append(decision)

    def count(self, sentence, where, *, warn=False, count=1):
        (self.warned if warn else self.decided).append(sentence.format(count=count))


def read(path, content, encoding="utf-8", *, keep_empty=False):
    """Returns the rows as tuples, and the notes."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    notes, encoding = Collected(), encodings.resolve(path, encoding)
    rows = tables.read_rows(path, encoding, notes=notes, keep_empty=keep_empty)
    return [tuple(row.values()) for _, row in rows], notes


def refusal(path, content):
    with pytest.raises(ValueError) as error:
        read(path, content)
    assert str(error.value).startswith(f"{path}:")
    return str(error.value).removeprefix(f"{path}:")


TEXTS = ('他说"好的"', "一,二;三|四", "第一行\n第二行", "", "制表\t符", "NA", " 前后 ")
TABLE = [(text, label) for text, label in zip(TEXTS, "1010101", strict=True)]

# Bytes that the programs themselves wrote.
WRITTEN = {
    "pandas": (
        "a.csv",
        ',text,label\n0,"他说""好的""",1\n1,"一,二;三|四",0\n2,"第一行\n第二行",1\n3,,0\n'
        "4,制表\t符,1\n5,NA,0\n6, 前后 ,1\n",
    ),
    "pandas, index_label=False": (
        "a.csv",
        'text,label\n0,"他说""好的""",1\n1,"一,二;三|四",0\n2,"第一行\n第二行",1\n3,,0\n'
        "4,制表\t符,1\n5,NA,0\n6, 前后 ,1\n",
    ),
    "pandas, sep='\\t', index=False": (
        "a.tsv",
        'text\tlabel\n"他说""好的"""\t1\n一,二;三|四\t0\n"第一行\n第二行"\t1\n\t0\n"制表\t符"\t1\n'
        "NA\t0\n 前后 \t1\n",
    ),
    "pandas, tabs in a .csv, index": (
        "a.csv",
        '\ttext\tlabel\n0\t"他说""好的"""\t1\n1\t一,二;三|四\t0\n2\t"第一行\n第二行"\t1\n3\t\t0\n'
        '4\t"制表\t符"\t1\n5\tNA\t0\n6\t 前后 \t1\n',
    ),
    "pandas, sep=';', QUOTE_ALL, '\\r\\n'": (
        "a.csv",
        '"text";"label"\r\n"他说""好的""";"1"\r\n"一,二;三|四";"0"\r\n"第一行\n第二行";"1"\r\n'
        '"";"0"\r\n"制表\t符";"1"\r\n"NA";"0"\r\n" 前后 ";"1"\r\n',
    ),
    "pandas, lineterminator='\\r'": (
        "a.csv",
        'text,label\r"他说""好的""",1\r"一,二;三|四",0\r第一行\n第二行,1\r,0\r制表\t符,1\rNA,0\r'
        " 前后 ,1\r",
    ),
    "pandas, sep='|', QUOTE_NONNUMERIC": (
        "a.tsv",
        '""|"text"|"label"\n0|"他说""好的"""|1\n1|"一,二;三|四"|0\n2|"第一行\n第二行"|1\n3|""|0\n'
        '4|"制表\t符"|1\n5|"NA"|0\n6|" 前后 "|1\n',
    ),
    "datasets": (
        "a.csv",
        'text,label\n"他说""好的""",1\n"一,二;三|四",0\n"第一行\n第二行",1\n,0\n制表\t符,1\n'
        "NA,0\n 前后 ,1\n",
    ),
    "R": (
        "a.tsv",
        '"text"\t"label"\n"1"\t"他说""好的"""\t"1"\n"2"\t"一,二;三|四"\t"0"\n'
        '"3"\t"第一行\n第二行"\t"1"\n"4"\t""\t"0"\n"5"\t"制表\t符"\t"1"\n"6"\t"NA"\t"0"\n'
        '"7"\t" 前后 "\t"1"\n',
    ),
    "Excel, CSV UTF-8, emptied cells": (
        "a.csv",
        '\ufefftext,label,,\r\n"他说""好的""",1,,\r\n"一,二;三|四",0,,\r\n"第一行\n第二行",1,,\r\n'
        ",0,,\r\n制表\t符,1\r\nNA,0\r\n 前后 ,1\r\n,,,\r\n,,,\r\n",
    ),
    "Excel, where the comma is for decimals": (
        "a.csv",
        'sep=;\r\ntext;label\r\n"他说""好的""";1\r\n"一,二;三|四";0\r\n"第一行\n第二行";1\r\n;0\r\n'
        "制表\t符;1\r\nNA;0\r\n 前后 ;1\r\n",
    ),
    "Excel, Unicode text": (
        "a.tsv",
        'text\tlabel\r\n"他说""好的"""\t1\r\n"一,二;三|四"\t0\r\n"第一行\n第二行"\t1\r\n\t0\r\n'
        '"制表\t符"\t1\r\nNA\t0\r\n 前后 \t1\r\n',
    ),
    "Excel for Mac, CSV (Macintosh)": (
        "a.csv",
        'text,label\r"他说""好的""",1\r"一,二;三|四",0\r"第一行\n第二行",1\r,0\r制表\t符,1\rNA,0\r'
        " 前后 ,1",
    ),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
@pytest.mark.parametrize(("name", "content"), WRITTEN.values(), ids=WRITTEN)
def test_what_programs_write_is_read_back(tmp_path, name, content, encoding):
    rows, notes = read(tmp_path / name, content.encode(encoding), "auto")
    assert (rows, notes.warned) == (TABLE, [])
    rows, _ = read(tmp_path / f"{name}.gz", gzip.compress(content.encode(encoding)), "auto")
    assert rows == TABLE


ODD = st.sampled_from("甲“，；　,;|\t\"'\\ \n\r\0\x85\u2028")
ANY = st.text(st.one_of(ODD, st.characters(codec="utf-8")), max_size=12)
ROWS = st.lists(st.tuples(ANY, st.sampled_from(["好", "差,", "1"])), min_size=1, max_size=5)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@given(
    table=ROWS,
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
)
@example([("a\n,", "1")], ",", csv.QUOTE_MINIMAL, "\n")
@example([("a,\nb", "1")], ",", csv.QUOTE_MINIMAL, "\n")
@example([("a\rb\r", "1")], ",", csv.QUOTE_MINIMAL, "\n")
@example([("\r", "1"), ("甲", "1")], "\t", csv.QUOTE_MINIMAL, "\r\n")
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory, name, table, delimiter, quoting, end
):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("text", "label"), *table])
    path = tmp_path_factory.getbasetemp() / name
    rows, notes = read(path, buffer.getvalue(), keep_empty=True)
    # A tab or bar together with a line end in a text may look like two rows: that is warned of.
    assert rows == table or (delimiter in "\t|" and notes.warned)


@pytest.mark.skipif(pandas is None, reason="needs pandas")
@given(
    table=ROWS,
    sep=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    index=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_what_pandas_writes_is_read_back(
    tmp_path_factory, table, sep, quoting, end, index, encoding
):
    frame = pandas.DataFrame(table, columns=["text", "label"])
    path = tmp_path_factory.getbasetemp() / "pandas.csv"
    written = frame.to_csv(sep=sep, quoting=quoting, lineterminator=end, index=index)
    rows, notes = read(path, written.encode(encoding), keep_empty=True)
    assert rows == table or (sep in "\t|" and notes.warned)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"真的"好吗\t1\n他说"好"的\t0\n', ['"真的"好吗', '他说"好"的']),
        ('text\tlabel\n他说"好"的\t1\n', ['他说"好"的']),
        ('text\tlabel\n"开头有引号\t1\n"好"和"坏"\t0\n', ['"开头有引号', '"好"和"坏"']),
        ('text\tlabel\n""好""\t1\n"\t0\n', ['""好""', '"']),
    ],
)
def test_quotes_of_a_table_without_quoting_stay_in_the_text(tmp_path, content, texts):
    rows, notes = read(tmp_path / "a.tsv", content)
    assert ([text for text, _ in rows], notes.warned) == (texts, [])


@example(['","'])
@example(['"', '","'])
@given(st.lists(st.text('甲乙"“,; ', min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_table_written_without_quoting_is_read_back_or_warned_of(tmp_path_factory, texts):
    path = tmp_path_factory.getbasetemp() / "plain.tsv"
    content = "text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)
    try:
        rows, notes = read(path, content, keep_empty=True)
    except ValueError:
        assert '""' in content  # some fields are quoted as RFC 4180 has it, and others are not
        return
    assert [text for text, _ in rows] == texts or '""' in content or notes.warned


@pytest.mark.parametrize(
    ("name", "content", "texts", "said"),
    [
        ("a.tsv", 'text\tn\n"好"\t1\n说"好\t1\n', ['"好"', '说"好'], "1 fields of tables are in"),
        (
            "a.tsv",
            'text\tn\n"好,的"\t1\n',
            ["好,的"],
            "1 fields of tables are in quotes that only",
        ),
        ("a.csv", 'text,n\n"好"的,1\n', ['"好"的'], "1 fields of tables begin with a quote"),
        (
            "a.csv",
            'text,n\n说\\"好\\"的,1\n',
            ['说\\"好\\"的'],
            "1 lines of tables hold",
        ),
        (
            "a.csv",
            'text,n\n"二,1\n三,1\n四,1\n五",1\n',
            ["二,1\n三,1\n四,1\n五"],
            "2 lines inside quoted fields",
        ),
    ],
)
def test_what_cannot_be_known_is_warned_of_with_a_count(tmp_path, name, content, texts, said):
    rows, notes = read(tmp_path / name, content)
    assert [text for text, _ in rows] == texts
    assert len(notes.warned) == 1 and notes.warned[0].startswith(said)


def test_quotes_that_come_after_the_beginning_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_HEAD", 20)
    content = "text\tlabel\n" + "好\t1\n" * 40
    rows, _ = read(tmp_path / "a.tsv", content + '"他说""好"""\t1\n')
    assert rows[-1] == ('他说"好"', "1")
    rows, _ = read(tmp_path / "a.tsv", content + '"他"说\t1\n')
    assert rows[-1] == ('"他"说', "1")


@pytest.mark.parametrize("names", ["text\tlabel\tnote", "text\tlabel\t\t"])
@pytest.mark.parametrize("text", ["一\t二", "一\n二\t三", "一\t二\n三\t"])
def test_empty_columns_at_the_end_do_not_hide_that_quotes_hold_a_text_together(
    tmp_path, names, text
):
    end = "\t" * (names.count("\t") - 1)
    content = f'{names}\n"{text}"\t1{end}\n好\t0{end}\n'
    rows, _ = read(tmp_path / "a.tsv", content)
    assert [row[:2] for row in rows] == [(text, "1"), ("好", "0")]


def test_columns_without_a_name_are_no_part_of_a_row(tmp_path):
    rows, notes = read(tmp_path / "a.csv", ",text,,label,\n0,好,x,1,\n1,坏,,0,\n")
    assert rows == [("好", "1"), ("坏", "0")]
    (said,) = notes.decided
    assert (
        said
        == r"comma, no quotes, \n line ends, 2 columns (text, label), 3 without a name not read"
    )


def test_empty_rows_at_the_end_are_counted_and_those_between_are_rows(tmp_path):
    content = "text,label\n好,1\n,\n坏,0\n,\n,\n"
    rows, notes = read(tmp_path / "a.csv", content)
    assert rows == [("好", "1"), ("", ""), ("坏", "0")]
    assert notes.decided[-1] == "2 rows at the end of tables are empty and left out"
    assert len(read(tmp_path / "a.csv", content, keep_empty=True)[0]) == 5


def test_a_row_knows_its_first_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\n"text",label\r\n"一\r\n二",1\r\n\r\n三,0'.encode())
    rows = list(tables.read_rows(path, "utf-8", notes=Notes()))
    assert [number for number, _ in rows] == [3, 6]
    assert rows[0][1]["text"] == "一\r\n二"


# Refusals, and whether their remedies help.
REMEDIES = {
    "comma in a text": ("a.csv", "text,label\n一,二,1\n", 'text,label\n"一,二",1\n'),
    "tab in a text": ("a.tsv", "text\tlabel\n一\t二\t1\n", 'text\tlabel\n"一\t二"\t1\n'),
    "tab beside literal quotes": (
        "a.tsv",
        'text\tlabel\n"真"的\t1\n一\t二\t1\n',
        'text\tlabel\n"真"的\t1\n一，二\t1\n',
    ),
    "tab beside literal quotes, quoted": (
        "a.tsv",
        'text\tlabel\n"真"的\t1\n一\t二\t1\n',
        '"text"\t"label"\n"""真""的"\t"1"\n"一\t二"\t"1"\n',
    ),
    "line end in a text": ("a.csv", "text,label\n一\n二,1\n", 'text,label\n"一\n二",1\n'),
    "open quote": ("a.csv", 'text,label\n"一",1\n"二,1\n', 'text,label\n"一",1\n"二",1\n'),
    "stray quote": (
        "a.csv",
        'text,label\n"一",1\n"二"三,1\n',
        'text,label\n"一",1\n"""二""三",1\n',
    ),
    "index of names": ("a.csv", "text,label\na,一,1\nb,二,1\n", ",text,label\na,一,1\nb,二,1\n"),
    "one column": ("a.csv", "text\n一,二\n三\n", 'text\n"一,二"\n"三"\n'),
    "names in a later line": ("a.csv", "评论\n\ntext,label\n一,1\n", "text,label\n一,1\n"),
    "no names, a row with a text twice": ("a.tsv", "一\t一\t5\n", "text\tpair\tlabel\n一\t一\t5\n"),
    "a name twice": ("a.csv", "text,text\n一,1\n", "text,label\n一,1\n"),
}


@pytest.mark.parametrize(("name", "content", "mended"), REMEDIES.values(), ids=REMEDIES)
def test_remedies_of_refusals_help(tmp_path, name, content, mended):
    refusal(tmp_path / name, content)
    rows, notes = read(tmp_path / name, mended)
    assert rows and not notes.warned


def test_one_column_with_commas_is_read_from_a_tsv_as_the_refusal_says(tmp_path):
    assert "name the file .tsv" in refusal(tmp_path / "a.csv", "text\n一,二\n三\n")
    assert read(tmp_path / "a.tsv", "text\n一,二\n三\n")[0] == [("一,二",), ("三",)]


@pytest.mark.parametrize(
    "content", ['[\n {"text": "一"}\n]', '{"text": "一", "n": 1}\n{"text": "二"}']
)
def test_json_is_no_table(tmp_path, content):
    assert "--config.data.format=json" in refusal(tmp_path / "a.csv", content)
    assert read(tmp_path / "a.csv", "{text},[n]\n一,1\n")[0] == [("一", "1")]


def test_a_ragged_row_gets_the_reason_of_its_table(tmp_path):
    said = refusal(tmp_path / "a.tsv", 'text\tlabel\n"真"的\t1\n一\t二\t1\n')
    assert said.startswith("3: found 3 fields, but the header has 2, separated by tab")
    assert f"here quotes are characters, as {tmp_path}/a.tsv:2 shows" in said
    said = refusal(tmp_path / "a.csv", "text,label\n一\n")
    assert said.startswith("2: found 1 fields") and "a text that holds a line end" in said


def test_notes_of_many_files_are_one_line_and_are_said_once(capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            notes = Notes()
            for number in range(3):
                notes.decide(f"many{number}.csv", "comma, no quotes")
                notes.count("{count} cells are odd", f"many{number}.csv:2", warn=True, count=1_000)
            notes.report()
            notes.report()
    assert capsys.readouterr().out == "Read many0.csv and 2 more: comma, no quotes.\n"
    assert [str(w.message) for w in caught] == ["3,000 cells are odd, the first at many0.csv:2."]
