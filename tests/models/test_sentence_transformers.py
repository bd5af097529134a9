"""Folders of sentence-transformers: every layout that is read, what is refused, round trips."""

import itertools
import json

import pytest

from models.pretrained import sentence_transformers as st
from models.pretrained.sentence_transformers import Embedding

MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
PLAIN = ("Transformer", "Pooling")


def folder_of(path, *, pooling=MEAN, kinds=(*PLAIN, "Normalize"), **config):
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" * (i > 0), "type": f"a.b.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (path / "1_Pooling").mkdir(parents=True)
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling/config.json").write_text(json.dumps(pooling))
    if config:
        (path / "config_sentence_transformers.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("pooling", "config", "expected"),
    [
        ({"pooling_mode_cls_token": True}, {}, ("first", "", "")),
        (MEAN, {"prompts": {}}, ("mean", "", "")),
        ({"pooling_mode": "mean"}, {}, ("mean", "", "")),
        (
            {"pooling_mode_lasttoken": True},
            {"prompts": {"query": "Instruct: ..\nQuery:", "document": ""}},
            ("last", "Instruct: ..\nQuery:", ""),
        ),
        (
            MEAN,
            {"prompts": {"query": "query: ", "passage": "passage: "}},
            ("mean", "query: ", "passage: "),
        ),
        (
            MEAN,
            {"prompts": {"sts": "a: "}, "default_prompt_name": "sts"},
            ("mean", "a: ", "a: "),
        ),
        (
            MEAN,
            {"prompts": {"query": "q: ", "sts": "a: "}, "default_prompt_name": "sts"},
            ("mean", "q: ", ""),
        ),
    ],
)
def test_layouts_are_read(tmp_path, pooling, config, expected):
    assert st.read(folder_of(tmp_path / "m", pooling=pooling, **config)) == Embedding(*expected)


def test_a_folder_of_transformers_says_nothing(tmp_path):
    assert st.read(tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode_max_tokens": True}, PLAIN, "max_tokens"),
        ({"pooling_mode_weightedmean_tokens": True}, PLAIN, "weightedmean"),
        (MEAN | {"pooling_mode_cls_token": True}, PLAIN, "mean, cls"),
        ({}, PLAIN, "found the pooling nothing"),
        ({"pooling_mode": ["cls", "mean"]}, PLAIN, "found the pooling cls, mean"),
        (MEAN | {"include_prompt": False}, PLAIN, "include_prompt is false"),
        (MEAN, (*PLAIN, "Dense"), "Dense"),
    ],
)
def test_what_is_not_computed_here_is_refused(tmp_path, pooling, kinds, message):
    with pytest.raises(ValueError, match=message):
        st.read(folder_of(tmp_path / "m", pooling=pooling, kinds=kinds))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["[{", "7", ""])
def test_damaged_files_are_named(tmp_path, name, content):
    folder = folder_of(tmp_path / "m")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*fetch the folder again"):
        st.read(folder)


@pytest.mark.parametrize("prompts", [["query: "], {"query": None}])
def test_prompts_that_are_no_texts_are_refused(tmp_path, prompts):
    with pytest.raises(ValueError, match="expected texts by name"):
        st.read(folder_of(tmp_path / "m", prompts=prompts))


def test_what_is_written_is_read(tmp_path):
    cases = itertools.product(("mean", "first", "last"), ("", "查询："))
    for i, (pooling, prompt) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        embedding = Embedding(pooling, prompt, f"{prompt}x", i % 2 == 0, 16)
        st.write(folder, embedding, width=8)
        assert st.read(folder) == embedding
