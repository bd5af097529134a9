"""Configs of other versions: keys that came, went, were renamed or became constants."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common, stored
from configs.overrides import check_keys
from training.workdir import check_workdir, write_config


def saved_of(config):
    return json.loads(config.to_json())


@pytest.fixture
def members():
    """A config of two tasks, whose members hold all keys again."""
    config = common.get_config()
    config.task = "multi_task"
    config.multi.members = ConfigDict({name: common.get_config() for name in ("a", "b")})
    return config


def test_no_key_that_a_version_had_is_forgotten():
    """keys.txt lists all keys of all versions: a new one is added to it, and none is taken out."""
    listed = (Path(__file__).parent / "keys.txt").read_text(encoding="utf-8").split()
    now, tables = stored.present_config(common.get_config()), stored.RENAMED | stored.CONSTANTS
    assert sorted(now.keys() - set(listed)) == []
    assert [key for key in listed if key not in now and key not in tables] == []


@pytest.mark.parametrize(("old", "new"), stored.RENAMED.items())
def test_a_flag_of_a_renamed_key_says_its_new_name(old, new):
    with pytest.raises(
        ValueError, match=f"--config.{old}: no such key any more; .*config.{new} now"
    ):
        check_keys(common.get_config(), [f"config.{old}"])


def test_every_key_may_be_missing_in_a_stored_config(members):
    for key in stored.present_config(members):
        saved = saved_of(members)
        *groups, last = key.split(".")
        group = saved
        for name in groups:
            group = group[name]
        default = group.pop(last)
        expected = {} if key != "task" else {"task": (default and "classification", "multi_task")}
        assert stored.differences(saved, members) == expected, key


def test_a_missing_key_that_is_set_now_is_a_change_from_its_default(members):
    saved = saved_of(members)
    del saved["optimizer"]["layer_decay"], saved["multi"]["members"]["b"]["tagging"]
    members.optimizer.layer_decay = 0.9
    members.multi.members.b.tagging.head = "crf"
    assert stored.differences(saved, members) == {
        "multi.members.b.tagging.head": ("softmax", "crf"),
        "optimizer.layer_decay": (1.0, 0.9),
    }
    assert stored.stored_config(saved)["optimizer.layer_decay"] == 1.0


def test_removed_and_renamed_keys_go_by_the_tables(members, monkeypatch):
    monkeypatch.setitem(stored.CONSTANTS, "optimizer.nesterov", [0.5, "a"])
    monkeypatch.setitem(stored.RENAMED, "data.batch", "data.batch_size")
    saved = saved_of(members)
    for config in (saved, *saved["multi"]["members"].values()):
        config["optimizer"]["nesterov"] = [0.5, "a"]
        config["data"]["batch"] = config["data"].pop("batch_size")
    assert stored.differences(saved, members) == {}
    assert "optimizer.nesterov" not in stored.stored_config(saved)
    saved["optimizer"]["nesterov"] = saved["multi"]["members"]["a"]["data"]["batch"] = 7
    saved["layout"]["unheard_of"] = None
    size = members.data.batch_size
    assert stored.differences(saved, members) == {
        "layout.unheard_of": (None, stored.ABSENT),
        "multi.members.a.data.batch_size": (7, size),
        "optimizer.nesterov": (7, [0.5, "a"]),
    }


@pytest.mark.parametrize(
    ("generation", "language", "expected"),
    [(256, 256, 256), (64, 256, 64), (256, 128, 128), (64, 128, 128), (64, None, 64)],
)
def test_two_keys_that_became_one_keep_the_value_that_was_set(
    members, generation, language, expected
):
    saved = saved_of(members)
    for config in (saved, *saved["multi"]["members"].values()):
        config["generation"]["chunk"] = generation
        config["language"]["chunk"] = language
        if language is None:
            del config["language"]["chunk"]
    found = stored.stored_config(saved)
    assert "generation.chunk" not in found
    assert found["language.chunk"] == found["multi.members.b.language.chunk"] == expected


def test_a_switch_that_became_a_choice_keeps_its_meaning(members):
    saved = saved_of(members)
    saved["model"]["remat"] = saved["multi"]["members"]["a"]["model"]["remat"] = False
    assert stored.differences(saved, members) == {}
    saved["model"]["remat"] = True
    assert stored.differences(saved, members) == {"model.remat": ("layers", "none")}


def test_a_workdir_of_another_version_is_resumed_or_refused_in_one_message(tmp_path, monkeypatch):
    config = common.get_config()
    write_config(tmp_path, config)
    (tmp_path / "results.json").write_text("{}")
    saved = saved_of(config)
    del saved["train"]["ema"], saved["tagging"]
    saved["train"]["retired"] = 3
    monkeypatch.setitem(stored.CONSTANTS, "train.retired", 3)
    (tmp_path / "config.json").write_text(json.dumps(saved), "utf-8")
    check_workdir(tmp_path, config)
    config.train.ema = 0.9
    monkeypatch.setitem(stored.CONSTANTS, "train.retired", 4)
    with pytest.raises(ValueError, match=r"belongs to another config") as error:
        check_workdir(tmp_path, config)
    lines = [line for line in str(error.value).splitlines() if line.startswith("  ")]
    assert lines == ["  train.ema: 0.0 there, 0.9 now", "  train.retired: 3 there, 4 now"]
    config.train.on_config_change = "continue"
    check_workdir(tmp_path, config)
