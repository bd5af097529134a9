"""Properties of a review: what is written, and a real one of two folds on the tiny model."""

import csv
import dataclasses

import numpy as np
import pytest

from evaluation import label_issues
from input_pipeline.corpus import tables
from input_pipeline.corpus.notes import Notes
from input_pipeline.examples import Examples, object_array
from training.data import load_data
from training.experiment import build
from workflows import marks
from workflows import review as data_review
from workflows.review import records, review

PLANTED = 3  # labels that are turned around


@pytest.fixture(scope="module")
def reviewed(make_config, reviews, tmp_path_factory):
    """A review of sentences of which three carry the wrong label; config, workdir and rows."""
    folder = tmp_path_factory.mktemp("review")
    flip = {"positive": "negative", "negative": "positive"}
    wrong = {text for text, _ in reviews[:: len(reviews) // PLANTED][:PLANTED]}
    rows = [(text, flip[label] if text in wrong else label) for text, label in reviews]
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    config = make_config()
    config.data.files = str(folder / "reviews.csv")
    config.data.max_train_examples = 0
    config.data.split.update(validation=24, test=24)
    config.data.batch_size = 16
    config.data.template = "{text}"
    config.layout.max_length = config.layout.row_length = 48
    config.model.update(head="linear", pooling="mean", label_words=())
    config.train.update(duration="5 epochs", checkpoint_every="100%")
    config.eval.every = "25%"
    config.review.folds = 2
    path = review(config, folder / "run")
    with path.open(encoding="utf-8-sig", newline="") as file:
        return config, folder / "run", list(csv.DictReader(file)), wrong


def test_every_training_example_is_a_row_and_planted_labels_come_first(reviewed):
    config, _, rows, wrong = reviewed
    train = load_data(config).split("train")
    assert sorted(int(row["id"]) for row in rows) == sorted(train.ids_N.tolist())
    planted = [place for place, row in enumerate(rows) if row["text"] in wrong]
    assert planted
    assert max(planted) < len(rows) / 20
    assert "1" in {rows[place]["exclude"] for place in planted}
    assert all(rows[place]["suggested"] != rows[place]["label"] for place in planted)
    hardest = np.quantile([float(row["confidence"]) for row in rows], 0.2)
    assert all(float(rows[place]["confidence"]) < hardest for place in planted)


def test_neighbours_are_other_texts_that_the_judging_model_learned_from(reviewed):
    config, _, rows, _ = reviewed
    train = load_data(config).split("train")
    folds_N = label_issues.assign_folds(train.labels_N, 2, seed=config.seed)
    fold = dict(zip(train.texts_N, folds_N.tolist(), strict=True))
    shown = [row for row in rows if row["suggested"] != row["label"]]
    for row in shown:
        for number in (1, 2, 3):
            assert fold[row[f"neighbour_{number}"]] != fold[row["text"]]
    assert all(not row["neighbour_1"] for row in rows if row["suggested"] == row["label"])


def test_a_marked_review_leaves_its_examples_out_of_the_training_split(reviewed):
    config, workdir, rows, _ = reviewed
    train = load_data(config).split("train")
    kept, count = marks.exclude(train, workdir / "review.csv")
    marked = {int(row["id"]) for row in rows if row["exclude"] == "1"}
    assert count == len(marked) == len(train) - len(kept)
    assert not marked & set(kept.ids_N.tolist())


def test_a_review_is_not_overwritten_and_finished_folds_are_not_trained_again(reviewed, capsys):
    config, workdir, _, _ = reviewed
    with pytest.raises(ValueError, match=r"review\.csv exists .*rename it"):
        review(config, workdir)
    before = (workdir / "review.csv").read_bytes()
    (workdir / "review.csv").rename(workdir / "old.csv")
    review(config, workdir)
    assert capsys.readouterr().out.count("Finished before") == 2
    assert (workdir / "review.csv").read_bytes() == before
    assert not list(workdir.glob("review/*/checkpoints"))


def test_what_the_head_pools_gives_the_logits(reviewed, tmp_path):
    config, _, _, _ = reviewed
    data = load_data(config)
    examples = data.split("validation")
    experiment = build(config, tmp_path, data.labels, print)
    params = experiment.put(experiment.initial)
    found = data_review.pooled(experiment, params, examples)
    head = {
        path.split("/")[-1]: np.asarray(value)
        for path, value in params.items()
        if path.startswith("head/")
    }
    logits_NxC = found["pooled_NxD"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits_NxC, found["logits_NxC"], atol=1e-5)
    own = experiment.predict(params, examples, {})
    np.testing.assert_allclose(own["logits_NxC"], found["logits_NxC"], atol=1e-5)


@pytest.mark.parametrize("kind", ["multi", "ordinal", "regression"])
def test_other_tasks_are_refused_before_anything_is_read(tiny_config, tmp_path, kind):
    tiny_config.data.files = "none.csv"
    tiny_config.classification.kind = kind
    with pytest.raises(
        ValueError, match=rf"--mode=review: found .*/{kind}', expected one of .*/single "
    ):
        review(tiny_config, tmp_path)


@pytest.mark.parametrize("folds", [0, 1, 97])
def test_folds_that_cannot_be_made_name_their_key(tiny_config, tmp_path, folds):
    tiny_config.review.folds = folds
    with pytest.raises(ValueError, match=rf"config\.review\.folds={folds}: .*, 96"):
        review(tiny_config, tmp_path)


def test_cells_are_text_to_spreadsheet_programs(tmp_path):
    examples = Examples(
        object_array(["=1+1", "很好，\n推荐"]), np.array([0, 1], np.int32), np.array([4, 9])
    )
    examples = dataclasses.replace(examples, pairs_N=object_array(["-2", "好"]))
    probabilities = np.array([[0.6, 0.4], [0.3, 0.7]])
    found = {"probabilities": probabilities, "neighbours": np.zeros((2, 0), int)}
    found |= label_issues.dynamics(np.full((2, 2), 0.5), np.ones((2, 2), bool))
    issues = label_issues.find_label_issues(examples.labels_N, probabilities)
    path = tmp_path / "review.csv"
    data_review._write(path, records(examples, ["差", "好"], issues, found))
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert (rows["4"]["text"], rows["4"]["pair"]) == ("'=1+1", "'-2")
    assert rows["9"]["text"] == "很好，\n推荐"
    assert rows["9"]["digest"] == marks.text_digest(examples, 1)
    # The reader of data sets reads it as the csv module does.
    own = {row["id"]: row for _, row in tables.read_rows(path, "utf-8-sig", notes=Notes())}
    assert own == rows
