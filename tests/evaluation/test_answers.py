"""Exact match and F1 of answers: equal to those of CMRC 2018's own script."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import answers

# prediction, true answers, F1, exact match: the latter two by the official cmrc2018_evaluate.py
# (squad-style-data of ymcui/cmrc2018, c0eb1b6) with nltk 3.10 and its English sentence model.
CASES = (
    ("北京大学", ("北京大学", "北大"), 1.0, 1.0),
    ("北京大学。", ("《北京大学》",), 1.0, 1.0),
    ("在北京大学读书", ("北京大学",), 0.727273, 0.0),
    ("北大学京", ("北京大学",), 0.5, 0.0),
    ("", ("北京大学",), 0, 0.0),
    ("。", ("北京大学",), 0, 0.0),
    ("1998年3月2日", ("1998年3月", "1998 年 3 月 2 日"), 1.0, 0.0),
    ("3.5%", ("3.5 %", "35%"), 1.0, 0.0),
    ("1,000人", ("1000人",), 0.5, 0.0),
    ("2009-2010", ("20092010", "2009年-2010年"), 1.0, 1.0),
    ("New York Times", ("new york", "《new york times》"), 1.0, 1.0),
    ("他说：“Don't panic”", ("don't panic", "不要惊慌"), 0.75, 0.0),
    ("cannot", ("can not",), 1.0, 0.0),
    ("J. R. R. Tolkien", ("J.R.R. Tolkien",), 0.285714, 0.0),
    ("It works. He knows.", ("it works", "he knows."), 0.666667, 0.0),
    ("U.S. Army", ("us army", "the u.s. army"), 0.8, 0.0),
    ('the "best" one', ('"best"', "最好"), 0.75, 0.0),
    ("(Homo sapiens)", ("homo sapiens", "（homo sapiens）"), 0.666667, 0.0),
    ("……省略", ("省略", "…省略"), 0.8, 0.0),
    ("东京、大阪和京都", ("东京和大阪", "大阪、京都"), 0.363636, 0.0),
    ("ＡＢＣ公司", ("abc公司",), 0.666667, 0.0),
    ("アニメ动画", ("アニメ", "动画"), 0.8, 0.0),
    ("鿰字", ("字",), 0.666667, 0.0),
    (" 空格 空格 ", ("空格空格",), 1.0, 0.0),
    ("a_b/c+d", ("abcd", "a b c d"), 1.0, 1.0),
    ("90.5 p.m. 开始", ("90.5", "p.m.开始"), 0.888889, 0.0),
)
TEXTS = st.text(st.sampled_from("北京大学，。《》·…ab 12.,'\"(-"), max_size=12)


@pytest.mark.parametrize(("prediction", "true", "f1", "exact"), CASES)
def test_numbers_equal_the_official_ones(prediction, true, f1, exact):
    assert answers.f1(prediction, true) == pytest.approx(f1, abs=1e-6)
    assert answers.exact_match(prediction, true) == exact


def test_words_between_chinese_characters_are_split_as_nltk_does():
    assert answers.segments("ABC公司3.5%股份") == ["abc", "公", "司", "3.5", "%", "股", "份"]
    assert answers.segments('a "b" c') == ["a", "``", "b", "''", "c"]
    assert answers.segments("mr. x. he went. 他") == ["mr.", "x.", "he", "went", ".", "他"]
    assert answers.segments("don't, cannot; 1,000") == [
        "do",
        "n't",
        ",",
        "can",
        "not",
        ";",
        "1,000",
    ]


@given(prediction=TEXTS, true=st.lists(TEXTS, min_size=1, max_size=3))
def test_f1_is_a_share_symmetric_and_no_less_with_more_answers(prediction, true):
    f1 = answers.f1(prediction, true)
    assert 0 <= f1 <= 1
    assert f1 == max(answers.f1(answer, [prediction]) for answer in true)
    assert answers.exact_match(prediction, [*true, prediction]) == 1
    if answers.segments(prediction):
        assert answers.f1(prediction, [*true, prediction]) == 1


def test_without_a_true_answer_only_none_is_right():
    assert answers.exact_match("", []) == answers.f1("", []) == 1
    assert answers.exact_match("北京", []) == answers.f1("北京", []) == 0


def test_the_guess_is_the_first_sentence_most_like_the_question():
    context = "酒店在北京。早餐很好，价格便宜。早餐很好！"
    assert answers.most_alike(context, "早餐好吗") == "早餐很好，价格便宜"
    assert answers.most_alike(context, "早餐好吗", marks="，") == "早餐很好"
    assert answers.most_alike(context, "") == "酒店在北京"
    assert answers.most_alike("。", "早餐") == ""


def test_n_best_are_the_best_pairs_in_order_and_no_longer_than_allowed():
    starts, ends = np.random.default_rng(0).normal(size=(2, 9))
    offsets = np.stack([np.arange(9) * 3, np.arange(9) * 3 + 3], axis=1)
    found = answers.n_best(starts, ends, offsets, count=9, max_characters=9)
    allowed = [(s, e) for s in range(9) for e in range(s, min(s + 3, 9))]
    wanted = sorted(allowed, key=lambda pair: -(starts[pair[0]] + ends[pair[1]]))[:9]
    assert [answer[:2] for answer in found] == [(3 * s, 3 * e + 3) for s, e in wanted]
    assert np.allclose([a.score for a in found], [starts[s] + ends[e] for s, e in wanted])
    assert answers.n_best(starts[:0], ends[:0], offsets[:0], count=9, max_characters=9) == []
