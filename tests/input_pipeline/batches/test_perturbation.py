"""Properties of changed texts: what changes, what stays, and what it depends on."""

import unicodedata

import numpy as np
import pypinyin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.batches import dictionaries
from input_pipeline.batches.perturbation import (
    DROPPED,
    FIRST,
    PERTURBATIONS,
    REPLACED,
    differ,
    perturb,
)
from input_pipeline.corpus.clue_formats import BLANK
from input_pipeline.examples import Examples, Ragged, object_array

CHARACTERS = (
    "".join(dictionaries.common_characters()[::9]) + "，。！？、,.!?aZ09Ａ０ \n体體发發後👍🏽～"
)
texts = st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=80).map(str.strip).filter(bool)
names = st.sampled_from(list(PERTURBATIONS))
REVIEW = "服务很好，房间也干净；早餐（西式）5.5分，Wi-Fi很快！下次还会来。"


def make_examples(texts, *, pairs=None, **parts):
    pairs_N = None if pairs is None else object_array(pairs)
    labels_N = np.zeros(len(texts), np.int32)
    return Examples(
        object_array(texts), labels_N, np.arange(len(texts)) + 7, pairs_N=pairs_N, **parts
    )


def perturbed(text, name, *, seed=0, normalization=()):
    return perturb(make_examples([text]), name, seed=seed, normalization=normalization).texts_N[0]


def differences(text, other):
    assert len(text) == len(other)
    return [(a, b) for a, b in zip(text, other, strict=True) if a != b]


@settings(max_examples=60)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6), names, st.randoms())
def test_a_text_depends_on_seed_name_and_id_alone_and_is_never_empty(rows, name, random):
    examples = make_examples([text for text, _ in rows], pairs=[pair for _, pair in rows])
    whole = perturb(examples, name, seed=3)
    assert all(text.strip() for text in (*whole.texts_N, *whole.pairs_N))
    some = random.sample(range(len(rows)), random.randint(1, len(rows)))
    part = perturb(examples.take(np.array(some)), name, seed=3)
    assert part.texts_N.tolist() == whole.texts_N[some].tolist()
    assert part.pairs_N.tolist() == whole.pairs_N[some].tolist()


def test_seeds_ids_and_the_two_texts_draw_apart():
    for name in ("homophones", "similar_shapes", "characters_dropped"):
        same = perturb(make_examples([REVIEW] * 3, pairs=[REVIEW] * 3), name, seed=0)
        found = {*same.texts_N, *same.pairs_N, perturbed(REVIEW, name, seed=1)}
        assert len(found) == 7, name


@settings(max_examples=40)
@given(texts)
def test_replaced_characters_sound_alike_or_look_alike(text):
    for name, table in (
        ("homophones", dictionaries.homophones()),
        ("similar_shapes", dictionaries.similar_shapes()),
    ):
        changes = differences(text, perturbed(text, name))
        able = sum(character in table for character in text)
        assert len(changes) == (max(round(REPLACED * able), 1) if able else 0)
        assert all(new in table[old] for old, new in changes)
        if name == "homophones":
            for pair in changes:
                sounds = {pypinyin.lazy_pinyin(character)[0] for character in pair}
                assert len(sounds) == 1


@settings(max_examples=40)
@given(texts)
def test_cuts_are_ends_of_the_text_and_dropping_keeps_the_order(text):
    half = (len(text) + 1) // 2
    for name, cut in (
        ("first_half", text[:half]),
        ("last_half", text[-half:]),
        ("first_characters", text[:FIRST]),
        ("repeated", 2 * text),
    ):
        assert perturbed(text, name) == (cut.strip() or text)
    rest = iter(text)
    dropped = perturbed(text, "characters_dropped")
    assert all(character in rest for character in dropped)  # a subsequence
    if len(text) > 1:
        assert len(text) - len(dropped) >= max(round(DROPPED * len(text)), 1)


@settings(max_examples=40)
@given(texts)
def test_width_is_undone_by_itself_and_touches_letters_and_digits_alone(text):
    changed = perturbed(text, "width")
    assert unicodedata.normalize("NFKC", changed) == unicodedata.normalize("NFKC", text)
    assert {old for old, _ in differences(text, changed)} == set(text) & set("aZ09Ａ０")
    assert perturbed(changed, "width") == text


def test_punctuation_changes_and_nothing_else():
    width = perturbed(REVIEW, "punctuation_width")
    assert width == "服务很好,房间也干净;早餐(西式)5.5分,Wi-Fi很快!下次还会来."
    assert perturbed("很好,下次还来!", "punctuation_width") == "很好，下次还来！"
    dropped = perturbed(REVIEW, "punctuation_dropped")
    assert dropped == "服务很好房间也干净早餐西式5.5分Wi-Fi很快下次还会来"
    assert perturbed("！！！", "punctuation_dropped") == "！！！"


def test_script_goes_there_and_back():
    traditional = perturbed(REVIEW, "script")
    assert traditional == "服務很好，房間也乾淨；早餐（西式）5.5分，Wi-Fi很快！下次還會來。"
    assert perturbed("為什麼這裡沒有熱水", "script") == "为什么这里没有热水"
    assert perturbed("為什麼這裡沒有熱水，却很贵", "script") == "为什么这里没有热水，却很贵"


def test_what_the_runs_normalisation_undoes_does_not_reach_the_model():
    assert perturbed(REVIEW, "script", normalization=["simplified"]) == REVIEW
    assert perturbed(REVIEW, "width", normalization=["halfwidth"]) == REVIEW
    examples = make_examples([REVIEW, "很好"], pairs=["很好", "很好"])
    wide = perturb(examples, "width", seed=0)
    assert differ(examples, wide).tolist() == [True, False]
    assert differ(examples, perturb(examples, "repeated", seed=0)).all()
    kept = perturb(examples, "width", seed=0, normalization=["halfwidth"])
    assert not differ(examples, kept).any()


def test_the_blank_of_a_cloze_question_stays():
    text = f"他{BLANK}地走了，没有回头，也没有说话。"
    for name in PERTURBATIONS:
        assert perturbed(text, name).count(BLANK) == 1, name


def test_labels_ids_and_choices_stay_words_follow_and_features_are_made_anew():
    examples = make_examples(
        ["房间很好", "早餐太差了"],
        choices_N=object_array([("好", "差")] * 2),
        words=Ragged.of([[2, 4], [2, 5]]),
        features_NxK=np.zeros((2, 3), np.float32),
    )
    found = perturb(examples, "repeated", seed=0)
    assert found.ids_N is examples.ids_N and found.labels_N is examples.labels_N
    assert found.choices_N is examples.choices_N and found.features_NxK is None
    assert [found.words.row(i)[-1] for i in range(2)] == [8, 10]


def test_what_cannot_be_perturbed_is_refused():
    with pytest.raises(ValueError, match="no perturbation 'homophone': choose from homophones"):
        perturb(make_examples(["好"]), "homophone", seed=0)
    spans = Ragged.of([[(0, 1, 0)]], width=3)
    with pytest.raises(ValueError, match="would move the spans"):
        perturb(make_examples(["好"], spans=spans), "width", seed=0)
