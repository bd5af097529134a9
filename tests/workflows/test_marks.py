"""What a person marks in a review is left out of the training, whatever program saved it."""

import csv
import dataclasses

import numpy as np
import pytest

from input_pipeline.examples import Examples, object_array
from workflows import marks
from workflows.marks import exclude, text_digest

EXAMPLES = Examples(
    object_array(["甲很好", "乙，差", "丙「好」", "丁"]),
    np.array([1, 0, 1, 0], np.int32),
    np.array([3, 5, 8, 13]),
)


def write_review(folder, marks, *, encoding="utf-8-sig", columns="id,text,digest,exclude"):
    rows = [
        f'{id_},"{EXAMPLES.texts_N[row]}",{text_digest(EXAMPLES, row)},{marks.get(int(id_), "")}'
        for row, id_ in enumerate(EXAMPLES.ids_N)
    ]
    path = folder / "marked.csv"
    path.write_text("\r\n".join([columns, *rows]) + "\r\n", encoding=encoding, newline="")
    return path


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_marked_examples_are_left_out_however_a_spreadsheet_program_saved_them(tmp_path, encoding):
    path = write_review(tmp_path, {5: "1", 8: " 1", 13: "0"}, encoding=encoding)
    kept, count = exclude(EXAMPLES, path)
    assert (kept.ids_N.tolist(), count) == ([3, 13], 2)
    assert kept.texts_N.tolist() == ["甲很好", "丁"]


@pytest.mark.parametrize(
    ("delimiter", "encoding", "index"),
    [(",", "utf-8", True), (";", "utf-8-sig", False), ("\t", "utf-16", False)],
    ids=["pandas, with floats and its index", "Excel, elsewhere", "Excel, as Unicode text"],
)
def test_a_review_may_come_back_from_pandas_or_excel(tmp_path, delimiter, encoding, index):
    rows = [["id", "text", "digest", "exclude"]]
    for row, id_ in enumerate(EXAMPLES.ids_N):
        mark = "1" if id_ == 8 else ""
        digest = text_digest(EXAMPLES, row)
        rows.append([f"{id_}.0", "一\n" + EXAMPLES.texts_N[row], digest, mark and f"{mark}.0"])
    if index:
        rows = [[str(number or ""), *row] for number, row in enumerate(rows)]
    with (tmp_path / "marked.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    kept, count = exclude(EXAMPLES, tmp_path / "marked.csv")
    assert (kept.ids_N.tolist(), count) == ([3, 5, 13], 1)


def test_other_data_than_were_reviewed_are_noticed(tmp_path):
    path = write_review(tmp_path, {5: "1"})
    changed = dataclasses.replace(EXAMPLES, texts_N=object_array(["甲很好", "乙，好", "丙", "丁"]))
    again = r"marked\.csv:3: the text of id 5 .*review the data again"
    with pytest.raises(ValueError, match=again):
        exclude(changed, path)
    with pytest.raises(ValueError, match=r"marked\.csv:3: id 5 is marked, but no training"):
        exclude(EXAMPLES.first(1), path)
    paired = dataclasses.replace(EXAMPLES, pairs_N=object_array(["a"] * 4))
    with pytest.raises(ValueError, match="the text of id 5"):
        exclude(paired, path)


@pytest.mark.parametrize(
    ("marked", "columns", "message"),
    [
        ({}, None, "1 under 'exclude' for 0 of 4 .*leave the key empty"),
        (dict.fromkeys((3, 5, 8, 13), "1"), None, "for 4 of 4"),
        ({5: "yes"}, None, r"marked\.csv:3: 'exclude' is 'yes', expected 1"),
        ({5: "1"}, "id,text,digest,drop", "no column exclude among .*'drop'"),
    ],
)
def test_a_file_that_is_no_marked_review_is_told(tmp_path, marked, columns, message):
    path = write_review(tmp_path, marked, **({"columns": columns} if columns else {}))
    with pytest.raises(ValueError, match=message):
        exclude(EXAMPLES, path)


def test_the_run_to_compare_with_has_all_examples_and_its_test_split_shut(tiny_config, tmp_path):
    assert marks.all_examples(tiny_config, tmp_path) is None
    tiny_config.review.exclude = "review.csv"
    config, folder = marks.all_examples(tiny_config, tmp_path)
    assert (config.review.exclude, config.eval.test) == ("", False)
    assert folder.parent == tmp_path
    tiny_config.task = "tagging"
    with pytest.raises(ValueError, match=r"config\.review\.exclude: found the task 'tagging'"):
        marks.all_examples(tiny_config, tmp_path)
