"""chrF, BLEU and ROUGE-L: equal to their definitions, and adding up over examples."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from evaluation.generated_text import METRICS, nearest_answers, rouge_l, statistics
from evaluation.metrics import Scores, estimate

ANSWERS = [
    "床前明月光，疑是地上霜。",
    "春眠不觉晓，处处闻啼鸟。",
    "GDP增长7.5%，好于2019年。",
    "好",
]
TEXTS = ["床前看月光，疑是天上霜。", "春天来了，鸟儿叫。", "GDP增长了7.5%。", ""]
texts = st.text(alphabet="床前明月光ab1 \n，。", max_size=14)


def value(name, found):
    metric = next(metric for metric in METRICS if metric.name == name)
    sums = found[name].sum(axis=0)
    return metric.value(sums, sums)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_chrf_and_bleu_are_those_of_sacrebleu(pairs):
    written, answers = ([*part] for part in zip(*pairs, strict=True))
    found = statistics(written, answers)
    chrf = sacrebleu.corpus_chrf(written, [answers]).score
    bleu = sacrebleu.corpus_bleu(written, [answers], tokenize="zh").score
    assert 100 * value("chrf", found) == pytest.approx(chrf)
    assert 100 * value("bleu", found) == pytest.approx(bleu)


def test_published_figures_stay():
    """Of sacrebleu 2.6.0, so that another release that counts otherwise is found out."""
    found = statistics(TEXTS, ANSWERS)
    assert 100 * value("chrf", found) == pytest.approx(CHRF, abs=1e-3)
    assert 100 * value("bleu", found) == pytest.approx(BLEU, abs=1e-3)


CHRF, BLEU = 24.4035, 21.6075


@given(texts, texts)
def test_rouge_l_is_the_longest_common_subsequence(text, answer):
    a, b = "".join(text.split()), "".join(answer.split())
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
            )
    longest = table[-1, -1]
    expected = 2 * longest / (len(a) + len(b)) if a and b else 0
    assert rouge_l(text, answer) == pytest.approx(expected)


def test_what_was_not_written_adds_nothing():
    found = statistics([*TEXTS, None], [*ANSWERS, "没有写"])
    alone = statistics(TEXTS, ANSWERS)
    for metric in METRICS:
        assert value(metric.name, found) == value(metric.name, alone)
        assert not found[metric.name][-1].any()
    scores = Scores(METRICS, np.arange(5), found)
    assert estimate(scores, "chrf")["standard_error"] > 0
    assert all(not rows.any() for rows in statistics([None], ["好"]).values())


def test_the_nearest_prompt_lends_its_answer():
    train = ["写一首关于月亮的诗", "介绍北京", "今天天气"]
    found = nearest_answers(["北京怎么样", "月亮的诗"], train, ["一", "二", "三"])
    assert found == ["二", "一"]
