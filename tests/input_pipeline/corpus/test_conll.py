"""CoNLL in the columns that people's files have: tokens, tags, and what is not read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.corpus import conll as reader
from input_pipeline.corpus.notes import Notes


def rows(path, content, annotated=True):
    path.write_bytes(content.encode())
    return list(reader.read_rows(path, "utf-8", annotated, Notes()))


def said(path, content, capsys):
    """What is printed of a file that is read."""
    notes = Notes()
    path.write_bytes(content.encode())
    list(reader.read_rows(path, "utf-8", True, notes))
    notes.report()
    return capsys.readouterr().out


def conll(tmp_path, content):
    return [
        (place, row["text"], [tuple(span) for span in row["spans"]])
        for place, row in rows(tmp_path / "a.conll", content)
    ]


def test_conll_tags_of_all_schemes_give_the_same_spans(tmp_path):
    expected = [(1, "王小明在北京南", [(0, 3, "PER"), (4, 6, "LOC"), (6, 7, "LOC")])]
    for tags in (
        "B-PER I-PER I-PER O B-LOC I-LOC B-LOC",
        "B-PER I-PER E-PER O B-LOC E-LOC S-LOC",
        "B-PER I-PER L-PER O B-LOC L-LOC U-LOC",
        "B-PER M-PER E-PER O B-LOC E-LOC S-LOC",
        "I-PER I-PER I-PER O I-LOC I-LOC B-LOC",
    ):
        content = "\n".join(map("\t".join, zip("王小明在北京南", tags.split(), strict=True)))
        assert conll(tmp_path, content) == expected


def test_conll_name_begins_where_the_one_before_cannot_go_on(tmp_path):
    content = "甲 B-A\n乙 I-B\n丙 S-B\n丁 I-B\n戊 I-B\n"
    assert conll(tmp_path, content)[0][2] == [(0, 1, "A"), (1, 2, "B"), (2, 3, "B"), (3, 5, "B")]


def test_conll_sentences_end_at_blank_lines_and_know_their_first(tmp_path):
    content = "-DOCSTART- -X- O O\n\n甲 n x O\r\n　 n x O\r\n \t\n\n乙\tB-A\n"
    assert conll(tmp_path, content) == [(3, "甲　", []), (7, "乙", [(0, 1, "A")])]


def test_conll_places_in_the_word_are_left_out_if_all_tokens_have_one(tmp_path):
    content = "科0 B-A\n技1 I-A\n10 O\n年1 O\n\n" + "".join(f"e{n} O\n" for n in range(12))
    assert [row[1:] for row in conll(tmp_path, content)] == [
        ("科技1年", [(0, 2, "A")]),
        ("e" * 12, []),
    ]
    assert conll(tmp_path, "科0 O\n技1 O\n好 O\n")[0][1] == "科0技1好"
    assert conll(tmp_path, "\ufffd\ufffd0 O\n技0 O\n")[0][1] == "\ufffd\ufffd技"


def test_conll_tokens_of_several_characters_are_joined_latin_ones_with_a_space(tmp_path):
    content = "我 O\nlove O\nNew B-LOC\nYork I-LOC\n。 O\n"
    assert conll(tmp_path, content) == [(1, "我love New York。", [(6, 14, "LOC")])]
    assert conll(tmp_path, "O O\nK O\n")[0][1] == "OK"


def test_conll_without_tags_is_read_to_predict(tmp_path):
    read = rows(tmp_path / "a.conll", "好\n的\n\n吧 X\n", annotated=False)
    assert [row["text"] for _, row in read] == ["好的", "吧"]


@given(
    st.lists(
        st.lists(
            st.tuples(st.text("甲乙丙abc", min_size=1, max_size=3), st.sampled_from(["O", "B-A"])),
            min_size=1,
        ),
        min_size=1,
    )
)
def test_conll_spans_hold_their_tokens(tmp_path_factory, sentences):
    content = "\n\n".join("\n".join(map(" ".join, tokens)) for tokens in sentences)
    path = tmp_path_factory.getbasetemp() / "round.conll"
    for (_, row), tokens in zip(rows(path, content), sentences, strict=True):
        named = [token for token, tag in tokens if tag != "O"]
        assert [row["text"][start:stop] for start, stop, _ in row["spans"]] == named
        assert row["text"].replace(" ", "") == "".join(token for token, _ in tokens)


# Columns that are not read, lines that are no tokens.

COUNTED = {
    "from 1": "1 我 _ O\n2 北 _ B-LOC\n3 京 _ I-LOC\n\n1 他 _ O\n2 去 _ O\n",
    "from 0": "0\t我\tO\n1\t北\tB-LOC\n2\t京\tI-LOC\n\n0\t他\tO\n1\t去\tO\n",
    "through the file": "1 我 O\n2 北 B-LOC\n3 京 I-LOC\n\n4 他 O\n5 去 O\n",
    "sentences": "1 我 O\n1 北 B-LOC\n1 京 I-LOC\n\n2 他 O\n2 去 O\n",
    "CoNLL-U": "# sent_id = 1\n# text = 我北京\n1\t我\t_\tO\n2-3\t北京\t_\t_\n2\t北\t_\tB-LOC\n"
    "3\t京\t_\tI-LOC\n3.1\t的\t_\t_\n\n1\t他\t_\tO\n2\t去\t_\tO\n",
    "OntoNotes": "a/1 0 0 我 n O\na/1 0 1 北 n B-LOC\na/1 0 2 京 n I-LOC\n\na/1 0 0 他 n O\n"
    "a/1 0 1 去 n O\n",
    "ids of sentences": "# id f8 domain=zh\n我 _ _ O\n北 _ _ B-LOC\n京 _ _ I-LOC\n\n"
    "# id f9 domain=zh\n他 _ _ O\n去 _ _ O\n",
    "counters with marks": "s1-(1) 我 O\ns1-(2) 北 B-LOC\ns1-(3) 京 I-LOC\n\n"
    "s2-(1) 他 O\ns2-(2) 去 O\n",
    "sentence and token": "1-1\t0-1\t我\tO\n1-2\t1-2\t北\tB-LOC\n1-3\t2-3\t京\tI-LOC\n\n"
    "2-1\t4-5\t他\tO\n2-2\t5-6\t去\tO\n",
    "full width": "１. 我 O\n２. 北 B-LOC\n３. 京 I-LOC\n\n１. 他 O\n２. 去 O\n",
    "line ends of old": "1 我 O\r2 北 B-LOC\r3 京 I-LOC\r\r1 他 O\r2 去 O\r",
}


@pytest.mark.parametrize("content", COUNTED.values(), ids=COUNTED)
def test_counters_and_comments_are_not_read_which_is_said(tmp_path, content, capsys):
    path = tmp_path / "a.conll"
    read = [(row["text"], row["spans"]) for _, row in rows(path, content)]
    assert read == [("我北京", [[1, 3, "LOC"]]), ("他去", [])]
    assert str(path) in said(path, content, capsys)
    if "#" not in content:
        untagged = [row["text"] for _, row in rows(path, content, annotated=False)]
        assert untagged == ["我北京", "他去"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("1 O\n2 O\n3 O\n", "123"),
        ("1 m O\n9 m O\n8 m O\n\n好 n O\n", "198"),
        ("科1 n O\n技2 n O\n\n好1 n O\n", "科1技2"),
        ("# O\n话 B-T\n# O\n", "#话#"),
        ("New York\tB-LOC\n \tO\n好\tO\n", "New York 好"),
        ("哈 n O\n哈 n O\n\n好 n O\n的 n O\n", "哈哈"),
    ],
)
def test_what_looks_like_a_counter_or_comment_but_is_text_is_read(tmp_path, content, text):
    assert rows(tmp_path / "a.conll", content)[0][1]["text"] == text


# Refusals, and whether their remedies help.
REFUSED = {
    "one column": ("好 O\n\n差\n", "3: found '差'; expected a token and its", "好 O\n\n差 O\n"),
    "odd tag": ("好 O\n差 X-PER\n", "2: the tag is 'X-PER'; expected O, or", "好 O\n差 B-PER\n"),
    "no label": ("差 B\n", "1: the tag is 'B'", "差 B-PER\n"),
    "no prefix": ("差 -PER\n", "1: the tag is '-PER'", "差 I-PER\n"),
    "tags first": ("O 好\nB-A 的\n", "1: the tags come before", "好 O\n的 B-A\n"),
    "a blank in a token": (
        "好 O\nNew York B-LOC\n",
        "2: found 3 columns, but line 1 of the same sentence has 2",
        "好\tO\nNew York\tB-LOC\n",
    ),
    "no empty line": (
        "1 好 O\n2 的 O\n3 吗 O\n1 差 O\n2 的 O\n",
        "4: the first column counts tokens in most lines, but here it is '1'",
        "1 好 O\n2 的 O\n3 吗 O\n\n1 差 O\n2 的 O\n",
    ),
    "a gap": ("1 好 O\n2 的 O\nx 差 O\n4 的 O\n5 的 O\n", "3: the first", "好 O\n的 O\n差 O\n"),
    "nothing but numbers": ("1 m O\n2 m O\n", "1: the first column counts", "1 O\n2 O\n"),
}


@pytest.mark.parametrize(("content", "why", "mended"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_line_and_its_remedy_helps(tmp_path, content, why, mended):
    with pytest.raises(ValueError) as error:
        rows(tmp_path / "a.conll", content)
    assert str(error.value).startswith(f"{tmp_path}/a.conll:{why}")
    assert rows(tmp_path / "a.conll", mended)


def test_tags_before_tokens_are_refused_for_prediction_too(tmp_path):
    with pytest.raises(ValueError, match="the tags come before the tokens"):
        rows(tmp_path / "a.conll", "O 好\nB-A 的\n", annotated=False)
