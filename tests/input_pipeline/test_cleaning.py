"""Cleaning: every record is kept or counted under one reason."""

from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.cleaning import clean
from input_pipeline.sources import Record


def records(*rows):
    return [Record(text, label, f"f:{i}") for i, (text, label) in enumerate(rows, start=1)]


def test_each_reason_drops_what_it_names():
    kept, dropped = clean(
        records(
            (" \u3000\n", "好"),
            ("。", "好"),
            (" 不错 ", "好"),
            ("一般般", "好"),
            ("不错", "好"),
            ("一般般", "差"),
            ("一般般", "好"),
            ("太差", "差"),
        ),
        min_characters=2,
    )
    assert kept == [("不错", "好", "f:3"), ("太差", "差", "f:8")]
    assert dropped == {
        "empty": ["f:1"],
        "too_short": ["f:2"],
        "contradictory": ["f:4", "f:6", "f:7"],
        "duplicate": ["f:5"],
    }


ROWS = st.lists(st.tuples(st.text("好差 ", max_size=3), st.sampled_from("ab")))


@given(ROWS, st.integers(0, 3))
def test_every_record_is_kept_or_counted_once_and_clean_data_stays(rows, min_characters):
    kept, dropped = clean(records(*rows), min_characters=min_characters)
    wheres = [record.where for record in kept] + [where for d in dropped.values() for where in d]
    assert sorted(wheres) == sorted(record.where for record in records(*rows))
    assert len({record.text for record in kept}) == len(kept)
    again, nothing = clean(kept, min_characters=min_characters)
    assert again == kept
    assert not any(nothing.values())
