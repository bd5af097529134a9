"""Properties of the statistics that are read off texts."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.features import extractors
from input_pipeline.features.extractors import (
    Characters,
    extract,
    load_resources,
    radical_of,
)

CHINESE = st.text("好坏不很，。！？… a1情國国あ😀\n～", max_size=12)
ANY = st.text(st.characters(codec=None), max_size=12)  # lone surrogates as well
KINDS = [kind for kind in extractors.DENSE if kind != "values"]
RESOURCES = {
    "lexicon": {"好": ("good",), "很好": ("good",), "坏": ("bad",)},
    "pinyin": {"好": "hao3", "安": "an1"},
}
SCRIPTS = "han kana hangul latin digit punctuation white_space emoji other"


def examples_of(texts, **parts):
    parts = {name: object_array(v) if name == "pairs_N" else v for name, v in parts.items()}
    return Examples(object_array(texts), None, np.arange(len(texts)), **parts)


def features_of(texts, kinds=KINDS, *, words=False, value_names=(), resources=RESOURCES, **parts):
    settings = {"extractors": kinds, "resources": resources, "words": words}
    return extract(examples_of(texts, **parts), settings | {"value_names": value_names})


@given(st.lists(ANY | CHINESE, min_size=1, max_size=5))
def test_every_character_is_of_one_script(texts):
    found = features_of(texts, ["characters"])
    total_N = sum(found[f"characters/{script}"] for script in SCRIPTS.split())
    np.testing.assert_allclose(total_N, [bool(text) for text in texts])


@settings(max_examples=25)
@given(st.lists(ANY | CHINESE, min_size=1, max_size=4))
def test_features_of_a_text_do_not_depend_on_the_texts_beside_it(texts):
    together = features_of(texts, pairs_N=texts[::-1])
    for index, (text, pair) in enumerate(zip(texts, texts[::-1], strict=True)):
        alone = features_of([text], pairs_N=[pair])
        assert list(alone) == list(together)
        for name, values_N in alone.items():
            assert np.isfinite(values_N[0])
            np.testing.assert_allclose(together[name][index], values_N[0], err_msg=name, atol=1e-12)


@given(CHINESE)
def test_lengths_equal_those_of_a_loop(text):
    found = {name: values_N[0] for name, values_N in features_of([text], ["lengths"]).items()}
    sentences = [part for part in re.split("[。！？!?…；;\n\r]+", text) if part]
    assert found["lengths/characters"] == len(text)
    assert found["lengths/sentences"] == len(sentences)
    mean = np.mean([len(part) for part in sentences]) if sentences else 0
    assert found["lengths/characters_per_sentence"] == pytest.approx(mean)
    assert found["lengths/distinct_share"] == pytest.approx(len(set(text)) / max(len(text), 1))


def features_of_words(texts, words):
    settings = {"extractors": ["lengths"], "resources": RESOURCES, "words": True}
    return extract(examples_of(texts, words=words), settings)


def test_words_are_counted_where_their_ends_are_known():
    words = Ragged.of([[2, 3], []])
    found = features_of_words(["喜欢你", ""], words)
    np.testing.assert_array_equal(found["lengths/words"], [2, 0])
    np.testing.assert_array_equal(found["lengths/characters_per_word"], [1.5, 0])


@given(CHINESE, CHINESE)
def test_overlap_is_that_of_the_sets(text, pair):
    found = features_of([text], [], pairs_N=[pair])
    for name, grams in (
        ("characters", set),
        ("bigrams", lambda one: {one[i : i + 2] for i in range(len(one) - 1)}),
    ):
        shared, union = len(grams(text) & grams(pair)), len(grams(text) | grams(pair))
        assert found[f"overlap/jaccard_{name}"][0] == pytest.approx(shared / max(union, 1))
        share = shared / max(len(grams(text)), 1)
        assert found[f"overlap/{name}_of_text"][0] == pytest.approx(share)
    assert found["overlap/equal"][0] == (text == pair)


def test_marks_count_at_either_width_and_runs_end_with_their_text():
    found = features_of(["好！！!", "！", "a, b", "啊......"], ["punctuation"])
    np.testing.assert_allclose(found["punctuation/！"], [3 / 4, 1, 0, 0])
    np.testing.assert_allclose(found["punctuation/repeated_！"], [2 / 4, 0, 0, 0])
    np.testing.assert_allclose(found["punctuation/，"], [0, 0, 1 / 4, 0])
    np.testing.assert_allclose(found["punctuation/repeated_。"], [0, 0, 0, 5 / 7])
    np.testing.assert_array_equal(found["punctuation/ends_with_！"], [1, 1, 0, 0])
    np.testing.assert_array_equal(found["punctuation/ends_with_mark"], [1, 1, 0, 1])


def test_simplified_and_traditional_characters_are_told_apart():
    found = features_of(["國國书人", "ＡB　"], ["characters"])
    for name, share in (("traditional", 2 / 4), ("simplified", 1 / 4), ("han", 1)):
        assert found[f"characters/{name}"][0] == share
    for name, share in (("full_width", 2 / 3), ("upper_case", 2 / 3), ("white_space", 1 / 3)):
        assert found[f"characters/{name}"][1] == pytest.approx(share)


@pytest.mark.parametrize(
    ("chars", "radical"),
    [("情快想心", "心"), ("吗骂口", None), ("猫犬狗", "犬"), ("铁金钱", "金"), ("a，あ😀", "")],
)
def test_radicals_are_those_of_the_dictionary(chars, radical):
    expected = {"吗骂口": ["口", "馬", "口"]}.get(chars, [radical] * len(chars))
    assert [radical_of(char) for char in chars] == expected


def test_the_sections_of_the_214_radicals_follow_each_other():
    assert len(set(extractors.RADICALS)) == 214
    assert list(extractors.RADICALS) == sorted(extractors.RADICALS)


def test_sounds_are_split_into_initial_final_and_tone():
    found = features_of(["好安x"], ["pinyin"])
    shares = {name: values_N[0] for name, values_N in found.items()}
    assert shares == pytest.approx(
        dict.fromkeys(
            [f"pinyin/{part}" for part in ("initial_h", "final_ao", "tone_3")]
            + [f"pinyin/{part}" for part in ("initial_", "final_an", "tone_1")],
            1 / 3,
        )
    )


def test_pinyin_of_the_package_covers_the_characters_in_use():
    pytest.importorskip("pypinyin")
    pinyin = load_resources(["pinyin"], lexicon="")["pinyin"]
    assert len(pinyin) > 20_000
    assert (pinyin["好"], pinyin["的"], pinyin["中"]) == ("hao3", "de5", "zhong1")


def test_pinyin_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    with pytest.raises(ValueError, match="run pip install pypinyin"):
        load_resources(["pinyin"], lexicon="")


def test_the_longest_word_is_the_hit_and_a_negation_before_it_counts_apart():
    lexicon = {"好": ("good",), "好笑": ("funny",), "差": ("bad", "rude")}
    texts = ["好笑好", "不好", "不太好，差", "不，好", "", "没有很好"]
    found = features_of(texts, ["lexicon"], resources={"lexicon": lexicon})
    lengths_N = np.array([len(text) for text in texts])
    hits = {name: values_N * lengths_N / 100 for name, values_N in found.items()}
    np.testing.assert_allclose(hits["lexicon/good"], [1, 0, 0, 1, 0, 1])
    np.testing.assert_allclose(hits["lexicon/funny"], [1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(hits["lexicon/not_good"], [0, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(hits["lexicon/bad"], hits["lexicon/rude"])
    assert found["lexicon/good"][0] == pytest.approx(100 / 3)


def test_a_lexicon_is_read_with_tabs_or_spaces(tmp_path):
    file = tmp_path / "lexicon.txt"
    file.write_text("\ufeff好 good\n\n糟 糕\tbad\n好\tshort\n", encoding="utf-8")
    found = load_resources(["lexicon"], lexicon=str(file))["lexicon"]
    assert found == {"好": ("good", "short"), "糟 糕": ("bad",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("好 good\n坏\n", r"lexicon\.txt:2: found '坏', expected a word and a category"),
        ("好\t\n", r"lexicon\.txt:1"),
        ("a b c\n", r"lexicon\.txt:1"),
        ("\n", "no words"),
        ("好 good".encode("gb18030"), "not UTF-8"),
    ],
)
def test_a_wrong_lexicon_is_refused_with_its_line(tmp_path, content, message):
    file = tmp_path / "lexicon.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_resources(["lexicon"], lexicon=str(file))


def test_a_lexicon_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.features\.lexicon is empty"):
        load_resources(["lexicon"], lexicon="")
    with pytest.raises(FileNotFoundError, match=r"config\.features\.lexicon: there is no file"):
        load_resources(["lexicon"], lexicon=str(tmp_path / "none.txt"))


def test_values_are_passed_on_and_what_is_no_number_is_named():
    values = np.array([[1, 2], [3, 4]], np.float32)
    found = features_of(["甲", "乙"], ["values"], value_names=["price", "age"], values_NxK=values)
    np.testing.assert_array_equal(found["values/age"], [2, 4])
    values[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"example 1 \('乙'\) has nan in column 'price'"):
        features_of(["甲", "乙"], ["values"], value_names=["price", "age"], values_NxK=values)
    with pytest.raises(ValueError, match=r"config\.data\.value_columns"):
        features_of(["甲", "乙"], ["values"], value_names=["price"])


def test_a_bag_counts_each_character():
    bag = Characters(["aab", "", "b"])
    assert bag.alphabet == ["a", "b"]
    np.testing.assert_array_equal(bag.bag_NxU.toarray(), [[2, 1], [0, 0], [0, 1]])
