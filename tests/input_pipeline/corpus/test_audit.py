"""The audit: every copy across splits is found, none within one, in pairs whatever their order."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from input_pipeline.corpus.audit import audit, stop_on_leak
from input_pipeline.corpus.splitting import SPLITS
from input_pipeline.records import Record

HOTEL = "这家位于市中心的酒店的房间很大很干净，早餐也非常丰富，值得推荐"
NEAR_HOTEL = "这家位于市中心的酒店的房间很大很干净，早餐也非常丰盛，值得推荐"
BOOK = "这本书的内容很无聊，看了几页就看不下去，浪费钱"
PHONE = "手机屏幕清晰，电池也很耐用，就是有点重"


def knobs(**options):
    config = common.get_config().data.audit
    config.update(options)
    return config


def splits_of(train=(), validation=(), test=()):
    """Makes splits of texts, or of (text, pair)."""
    return {
        name: [
            Record(
                text=text if isinstance(text, str) else text[0],
                pair="" if isinstance(text, str) else text[1],
                where=f"{name}:{i}",
                labels=("好",),
            )
            for i, text in enumerate(texts)
        ]
        for name, texts in zip(SPLITS, (train, validation, test), strict=True)
    }


def found(splits, **options):
    """Returns {(split, index): (split, index) of the copy}."""
    leaks = audit(splits, knobs(**options)).leaks
    return {(x.split, x.index): (x.other_split, x.other_index) for x in leaks}


def test_copies_of_train_and_of_validation_are_leaks_and_those_within_a_split_are_not():
    splits = splits_of([BOOK, BOOK, HOTEL], [PHONE, PHONE], [BOOK, f" {PHONE}！", "另一个评论"])
    assert found(splits) == {("test", 0): ("train", 0), ("test", 1): ("validation", 0)}
    result = audit(splits, knobs())
    assert {k: v.tolist() for k, v in result.leaked.items()} == {
        "validation": [False, False],
        "test": [True, True, False],
    }


def test_near_duplicates_are_leaks_from_the_threshold_on_and_only_if_asked_for():
    splits = splits_of([HOTEL, BOOK], [NEAR_HOTEL], [PHONE])
    assert found(splits) == {("validation", 0): ("train", 0)}
    assert found(splits, threshold=0.95) == {}
    assert found(splits, kind="exact") == {}
    assert audit(splits, knobs()).leaks[0].similarity == 0.8  # the threshold counts


def test_each_copy_of_a_leaked_text_leaks_and_is_matched_with_the_most_similar():
    splits = splits_of([NEAR_HOTEL, HOTEL], [NEAR_HOTEL], [HOTEL, PHONE, HOTEL + "。"])
    assert found(splits) == {
        ("validation", 0): ("train", 0),
        ("test", 0): ("train", 1),
        ("test", 2): ("train", 1),
    }


def test_pairs_leak_whatever_the_order_of_their_texts():
    splits = splits_of([(HOTEL, BOOK)], [(BOOK, HOTEL)], [(BOOK, NEAR_HOTEL), (HOTEL, PHONE)])
    assert found(splits) == {("validation", 0): ("train", 0), ("test", 0): ("train", 0)}
    assert found(splits, kind="exact") == {("validation", 0): ("train", 0)}


def test_prompts_leak_only_with_the_messages_before_them():
    splits = splits_of([("继续", "好的")], [("继续", "好的"), ("继续", "好的")])
    splits["validation"][1] = splits["validation"][1]._replace(history='[["user", "讲个笑话"]]')
    assert found(splits) == {("validation", 0): ("train", 0)}


def test_shared_premise_is_counted_but_no_leak():
    splits = splits_of([(HOTEL, BOOK)], [(HOTEL, PHONE), (HOTEL, BOOK)], [(PHONE, "谢谢")])
    report = audit(splits, knobs()).report
    assert (report["validation"]["leaked"], report["validation"]["shared_text"]) == (1, 1)
    assert (report["test"]["leaked"], report["test"]["shared_text"]) == (0, 0)


def test_report_counts_and_shows_the_worst_first_and_is_json():
    splits = splits_of(
        [HOTEL, BOOK, *"一二三四五"], [NEAR_HOTEL, PHONE, BOOK], [*"五四三二一", PHONE]
    )
    splits["validation"][2] = splits["validation"][2]._replace(labels=("差",))
    report = audit(splits, knobs()).report
    assert json.loads(json.dumps(report)) == report
    worst = report["validation"].pop("worst")
    assert report["validation"] == {
        "examples": 3,
        "leaked": 2,
        "exact": 1,
        "copies_in": {"train": 2},
        "other_labels": 1,
        "shared_text": 0,
    }
    assert [example["similarity"] for example in worst] == [1.0, pytest.approx(0.8065, abs=0.1)]
    assert worst[0] == {
        "similarity": 1.0,
        "where": "validation:2",
        "text": BOOK,
        "copy_split": "train",
        "copy_where": "train:1",
        "copy_text": BOOK,
        "labels_agree": False,
    }
    assert report["test"]["copies_in"] == {"train": 5, "validation": 1}
    assert len(report["test"]["worst"]) == 5


def test_stop_names_counts_examples_and_remedies():
    splits = splits_of([HOTEL, BOOK], [NEAR_HOTEL], [PHONE, BOOK])
    with pytest.raises(ValueError) as error:
        stop_on_leak(audit(splits, knobs()).report)
    said = str(error.value)
    assert "1 of 1 validation examples and 1 of 2 test examples have a copy" in said
    assert (
        f"test:1 {BOOK!r} is like train:1 {BOOK!r} in train (similarity 1.0); validation:0" in said
    )
    for remedy in ("near_duplicates='drop'", "split.kind='group'", "on_leak='report'"):
        assert remedy in said
    stop_on_leak(audit(splits_of([HOTEL], [BOOK], [PHONE]), knobs()).report)


def test_off_finds_and_reports_nothing():
    result = audit(splits_of([BOOK], [BOOK], [BOOK]), knobs(kind="off"))
    assert result.leaks == [] and result.leaked == {} and result.report == {}
    stop_on_leak(result.report)


def test_empty_splits_are_no_trouble():
    assert found(splits_of([BOOK])) == {}
    assert found(splits_of()) == {}


@given(
    *[st.lists(st.text("好差的", min_size=1, max_size=3), max_size=8)] * 3,
    st.sampled_from(["exact", "near"]),
)
def test_exact_copies_are_all_found(train, validation, test, kind):
    result = audit(splits_of(train, validation, test), knobs(kind=kind, threshold=1.0))
    leaked = {name: flags.tolist() for name, flags in result.leaked.items()}
    if kind == "exact":
        assert leaked["validation"] == [text in train for text in validation]
        assert leaked["test"] == [text in train + validation for text in test]
    assert all(flag >= (text in train) for flag, text in zip(leaked["test"], test, strict=True))


def test_leaks_are_found_among_many_texts_of_one_template():
    train = [
        f"尊敬的客户您的订单{i:04}已发货请注意查收如有问题请致电客服热线谢谢您的支持"
        for i in range(900)
    ]
    test = [text.replace("支持", "惠顾") for text in train[:50]]
    result = audit(splits_of(train, [PHONE], test), knobs(threshold=0.7))
    assert result.leaked["test"].all()
