"""--mode=inspect on a real config: what it shows, and that it needs no checkpoint of a run."""

import json

from workflows.inspect.inspect import inspect


def test_every_stage_of_the_first_examples_is_shown(tiny_config, tmp_path, capsys):
    tiny_config.data.update(normalization=("halfwidth",), words="jieba")
    tiny_config.augmentation.update(deletion_rate=0.3, word_swap_rate=0.3)
    tiny_config.inspect.examples = 4
    inspect(tiny_config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert "Prepared files: read 360 examples" in shown
    assert "characters in 96 texts" in shown  # the silent-loss meter
    assert shown.count("cleaning ") == 4 and shown.count("· first epoch") == 4
    assert "⟦" in shown and "deletion" in shown
    assert "<bos>│" in shown and "┃" in shown
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_spans_are_shown_where_there_are_no_labels(tiny_config, tmp_path, capsys):
    rows = [{"text": f"江泽民在第{i}会议室讲话", "spans": [[0, 3, "person"]]} for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    tiny_config.task = "tagging"
    tiny_config.data.update(files=str(path), label_column="", spans_column="spans")
    tiny_config.data.template = "{text}"
    inspect(tiny_config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert shown.count("【江泽民|person】") >= 6 and "no label" in shown
