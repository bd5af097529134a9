"""The shifted set is read whole, however the run's own data are split."""

import json
from types import SimpleNamespace

import pytest

from configs import common
from input_pipeline.corpus.preparation import prepare
from training.data import RunData
from workflows.integrate.shifted import shifted_examples


def rows(count, start=0):
    return [
        {
            "text": f"第{i}条评论",
            "label": "好" if i % 2 else "差",
            "author": f"作者{i // 4}",
            "day": f"2024-01-{1 + i % 28:02}",
        }
        for i in range(start, start + count)
    ]


def write(path, records, *, drop=()):
    lines = [{k: v for k, v in record.items() if k not in drop} for record in records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return str(path)


@pytest.mark.parametrize("drop", [(), ("author", "day")])
@pytest.mark.parametrize(
    ("data", "split"),
    [
        ({"group_column": "author"}, {"kind": "group"}),
        ({"group_column": "author"}, {"kind": "group", "folds": 4, "fold": 3}),
        ({"group_column": "author"}, {"kind": "given"}),
        ({"time_column": "day"}, {"kind": "time"}),
        ({}, {"kind": "given"}),
        ({}, {"kind": "stratified", "folds": 4, "fold": 3}),
    ],
)
def test_every_split_of_the_run_takes_a_shifted_set(tmp_path, data, split, drop):
    config = common.get_config()
    config.data.update(source="files", files=write(tmp_path / "own.jsonl", rows(80)), **data)
    if split["kind"] == "given":
        config.data.validation_files = write(tmp_path / "validation.jsonl", rows(20, start=80))
    config.data.prepared_dir = str(tmp_path)
    config.data.split.update(split)
    own = RunData(config, prepare(config.data))
    files = write(tmp_path / "shifted.jsonl", rows(24, start=200), drop=drop)
    config.integrate.shifted_files = files
    experiment = SimpleNamespace(
        config=config,
        check=lambda *_: None,
        with_features=lambda examples: examples,
    )
    assert len(shifted_examples(experiment, own)) == 24


def test_formats_that_group_by_themselves_are_taken_too(tmp_path):
    def squad(name, start):
        paragraphs = [
            {
                "context": f"第{i:02}段说的是北京和上海",
                "qas": [
                    {
                        "id": f"{i}{q}",
                        "question": q,
                        "answers": [{"text": "北京", "answer_start": 7}],
                    }
                    for q in ("哪里？", "何处？")
                ],
            }
            for i in range(start, start + 12)
        ]
        path = tmp_path / name
        path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), "utf-8")
        return str(path)

    config = common.get_config()
    config.task = "reading_comprehension"
    config.data.update(source="files", format="squad", files=squad("own.json", 0))
    config.data.update(prepared_dir=str(tmp_path))
    config.data.split.kind = "group"
    own = RunData(config, prepare(config.data))
    config.integrate.shifted_files = squad("shifted.json", 20)
    experiment = SimpleNamespace(
        config=config,
        check=lambda *_: None,
        with_features=lambda examples: examples,
    )
    assert len(shifted_examples(experiment, own)) == 24
