"""Storage: whatever a record holds comes back from the TFDS folder, for us and for tfds.load."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.corpus import storage
from input_pipeline.records import Record, Span

FULL = [
    Record(
        text=f"江泽民在第{i}会议室讲话😀",
        where=f"a.jsonl:{i}",
        pair="谁讲话？" * (i % 3),
        labels=("新闻",) if i % 2 else ("评论",),
        spans=(Span(0, 3, "人"), Span(4, 8 + len(str(i)) - 1, "地"))[: i % 3],
        group=f"g{i // 4}",
        time=f"1998-01-{i:02}",
        values=(i / 2, -1.0),
        name=f"第{i}条",
        choices=("江泽民", "会议室", f"{i}")[: 2 + i % 2],
        number=i / 4 if i % 5 else None,
        history='[["user", "你好"]]' * (i % 2),
    )
    for i in range(1, 20)
]


def write(folder, splits, *, leaked=None, words=True, labels=("评论", "新闻"), spans=("人", "地")):
    """Writes splits as preparation does; of the manifest only what the features need matters."""
    folder.mkdir()
    manifest = {"version": "1.0.0", "labels": labels, "span_labels": spans}
    counts = ("copies", "merged", "lost_spans", "lost_negatives")
    manifest |= dict.fromkeys(counts, 0) | {"read": len(splits)}
    manifest |= {"source": {"name": "files"}} | {
        key: {} for key in ("dropped", "splits", "untaught", "encodings", "audit")
    }
    leaked = {"test": np.array([True, False])} if leaked is None else leaked
    storage.write(folder, splits, leaked, manifest, "files-0123", words=words)
    return folder


def test_everything_in_a_record_comes_back(tmp_path):
    folder = write(tmp_path / "a", {"train": FULL, "validation": [], "test": FULL[:2]})
    examples = storage.load(folder, "train", len(FULL))
    assert examples.texts_N.tolist() == [record.text for record in FULL]
    assert examples.pairs_N.tolist() == [record.pair for record in FULL]
    assert [("评论", "新闻")[label] for label in examples.labels_N] == [r.labels[0] for r in FULL]
    for index, record in enumerate(FULL):
        spans = [Span(a, b, examples.span_labels[c]) for a, b, c in examples.spans.row(index)]
        assert tuple(spans) == record.spans
        for text, words in ((record.text, examples.words), (record.pair, examples.pair_words)):
            stops = words.row(index).tolist()
            assert stops == sorted(set(stops)) and (stops or [0])[-1] == len(text)
    np.testing.assert_array_equal(examples.values_NxK, [record.values for record in FULL])
    assert examples.names_N.tolist() == [record.name for record in FULL]
    assert examples.choices_N.tolist() == [record.choices for record in FULL]
    assert examples.histories_N.tolist() == [record.history for record in FULL]
    numbers = [np.nan if record.number is None else record.number for record in FULL]
    np.testing.assert_array_equal(examples.numbers_N, np.float32(numbers))
    assert examples.label_sets is None
    assert examples.groups_N.tolist() == [i // 4 for i in range(1, 20)]
    assert not examples.leaked_N.any()
    assert storage.load(folder, "test", 2).leaked_N.tolist() == [True, False]


def test_a_prefix_is_the_first_of_everything(tmp_path):
    folder = write(tmp_path / "a", {"train": FULL})
    some, whole = storage.load(folder, "train", 7), storage.load(folder, "train", len(FULL))
    for cut in (some, whole.first(7)):
        assert cut.texts_N.tolist() == whole.texts_N[:7].tolist() and len(cut) == 7
        np.testing.assert_array_equal(cut.spans.values, whole.spans.values[: len(cut.spans.values)])
        np.testing.assert_array_equal(cut.spans.splits_N1, whole.spans.splits_N1[:8])
        np.testing.assert_array_equal(cut.values_NxK, whole.values_NxK[:7])


def test_what_the_data_lack_is_not_stored(tmp_path):
    bare = [Record(text="好", where="a:1"), Record(text="差", where="a:2")]
    empty = {"labels": (), "spans": (), "words": False, "leaked": {}}
    folder = write(tmp_path / "a", {"train": bare}, **empty)
    assert set(tfds.builder_from_directory(folder).info.features) == {"text", "where"}
    examples = storage.load(folder, "train", 2)
    for name in ("labels", "names", "pairs", "numbers", "choices", "histories", "leaked", "groups"):
        assert getattr(examples, f"{name}_N") is None
    assert examples.spans is None and examples.label_sets is None


def test_a_record_without_a_group_is_its_own(tmp_path):
    groups = ("乙", "", "甲", "乙", "")
    records = [Record(text="好", where=f"a:{i}", group=group) for i, group in enumerate(groups)]
    examples = storage.load(write(tmp_path / "a", {"train": records}, leaked={}), "train", 5)
    assert examples.groups_N.tolist() == [0, 1, 2, 0, 3]
    assert examples.take(np.array([3, 2])).groups_N.tolist() == [0, 2]


def test_several_labels_make_a_sequence(tmp_path):
    records = [Record(text="好", where="a:1", labels=("新闻", "评论")), FULL[0]._replace(values=())]
    folder = write(tmp_path / "a", {"train": records})
    rows = list(tfds.builder_from_directory(folder).as_dataset(split="train").as_numpy_iterator())
    assert [row["labels"].tolist() for row in rows] == [[1, 0], [1]]
    examples = storage.load(folder, "train", 2)
    assert examples.labels_N is None
    assert [examples.label_sets.row(i).tolist() for i in range(2)] == [[1, 0], [1]]


@pytest.mark.parametrize("count", [1, 4])
def test_an_empty_split_loads_as_no_examples(tmp_path, count):
    folder = write(tmp_path / "a", {"train": FULL[:count], "test": []}, leaked={})
    nothing = storage.load(folder, "test", 0)
    assert len(nothing) == 0 and nothing.labels_N.shape == (0,)
    assert nothing.spans.splits_N1.tolist() == [0]
    assert len(nothing.choices_N) == len(nothing.numbers_N) == len(nothing.names_N) == 0


def test_order_survives_several_shards(tmp_path, monkeypatch):
    one = write(tmp_path / "one", {"train": FULL}, leaked={})
    monkeypatch.setattr(storage, "_SHARD_EXAMPLES", 5)
    many = write(tmp_path / "many", {"train": FULL}, leaked={})
    assert len(list(many.glob("*train*"))) == 4
    texts = [storage.load(folder, "train", 19).texts_N.tolist() for folder in (one, many)]
    assert texts[0] == texts[1]
