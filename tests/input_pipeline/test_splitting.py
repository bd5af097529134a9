"""Splits: exact shares per label, a function of the texts alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.sources import Record
from input_pipeline.splitting import fingerprint, split


def make(count, labels="ab", start=0):
    return [Record(f"评论{i}", labels[i % len(labels)], "") for i in range(start, start + count)]


def shares(records, validation=0.1, test=0.2, seed=0):
    return split(records, validation_share=validation, test_share=test, seed=seed)


@given(st.permutations(make(40)))
def test_split_and_stored_order_do_not_depend_on_file_order(shuffled):
    assert shares(shuffled) == shares(make(40))


def test_shares_are_exact_within_each_label_and_splits_partition():
    records = make(300, "aab")
    splits = shares(records)
    counts = {
        name: [sum(r.label == label for r in part) for label in "ab"]
        for name, part in splits.items()
    }
    assert counts == {"train": [140, 70], "validation": [20, 10], "test": [40, 20]}
    assert sorted(r for part in splits.values() for r in part) == sorted(records)


def test_prefixes_of_a_split_have_its_label_ratio():
    train = shares(make(10_000, "aab"))["train"]
    for size in (500, 2000):
        share = sum(record.label == "a" for record in train[:size]) / size
        assert abs(share - 2 / 3) < 4 * (2 / 9 / size) ** 0.5


def test_seed_changes_the_split():
    assert shares(make(100))["test"] != shares(make(100), seed=1)["test"]


def test_test_split_does_not_depend_on_the_validation_share():
    assert shares(make(100))["test"] == shares(make(100), validation=0.3)["test"]


def test_new_data_moves_few_old_examples():
    before, after = shares(make(1000)), shares(make(1020))
    moved = set(before["test"]) - set(after["test"])
    assert len(moved) <= 20


def test_sizes_are_rounded_to_the_nearest():
    splits = shares(make(10), test=0.1)  # half an example of each label's five
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }


def test_no_share_gives_an_empty_split():
    assert shares(make(10), validation=0.0)["validation"] == []


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.0)])
def test_impossible_shares_name_their_keys(validation, test):
    with pytest.raises(ValueError, match=r"config\.data\.validation_share=.*shares of 0 or more"):
        shares(make(10), validation, test)


def test_too_little_data_for_a_share_is_an_error():
    with pytest.raises(ValueError, match=r"split is empty: 4 examples of 2 labels .*add data"):
        shares(make(4), test=0.1)


def test_fingerprint_depends_on_content_only():
    records = make(10)
    assert fingerprint(records) == fingerprint([r._replace(where="x") for r in records[::-1]])
    assert fingerprint(records) != fingerprint(records[:9])
    assert fingerprint(records) != fingerprint([records[0]._replace(label="b"), *records[1:]])
