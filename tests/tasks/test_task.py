"""Tasks declare what they can do; no other folder asks which task it has."""

import re
from pathlib import Path

import pytest

from configs import common
from configs.checks import TABLE
from tasks import KINDS, all_classes, require, task_class

ROOT = Path(__file__).parents[2]
ASKS = re.compile(
    r"\.task (==|!=|in|not in) |classification\.kind (==|!=|in)|isinstance\([a-z_.]*task,|"
    r"\.fitted = |\btask_class\(\w+\.task\)"
)


def config_of(name):
    config = common.get_config()
    config.task, _, kind = name.partition("/")
    if kind:
        config.classification.kind = kind
    return config


def able(ability):
    return {name for name, kind in all_classes().items() if getattr(kind, ability)}


def test_no_other_folder_asks_which_task_it_has():
    folders = ("training", "workflows", "integration", "reporting", "evaluation", "input_pipeline")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    asking = [p for p in paths if ASKS.search(p.read_text("utf-8"))]
    # A member of several tasks must not be of several tasks itself.
    assert asking == [ROOT / "input_pipeline/batches/mixture.py"]


@pytest.mark.parametrize("name", all_classes())
def test_every_kind_is_found_by_its_config_and_is_bound_to_knobs_that_exist(name):
    kind = task_class(config_of(name))
    assert kind is all_classes()[name]
    assert set(kind.BOUND) <= TABLE.keys()
    assert name.split("/")[0] in KINDS


def test_what_the_kinds_can_do():
    single, choices = {"classification/single"}, {"multiple_choice"}
    classifiers = {name for name in all_classes() if name.startswith("classification/")}
    language = {name for name in all_classes() if "language" in name}
    language |= {"span_corruption", "generation"}
    assert able("REVIEW") == single
    assert able("EXPORT") == single | language | {"embedding"}
    assert able("JOINT") == able("READY") == {"embedding"}
    assert able("ROBUSTNESS") == able("AVERAGE") == classifiers | choices
    assert able("RANKS") == {"reranking"}
    assert able("TEACHABLE") == classifiers - {"classification/regression"} | {"embedding"}
    assert able("FEATURES") == classifiers
    assert able("PROBE") == classifiers | {"classification/regression", "tagging", "multi_task"}
    assert able("UNIT") == {"classification/regression"}
    assert able("SHIFTED") == all_classes().keys() - {"multi_task"}


def test_what_a_task_cannot_do_is_refused_naming_those_that_can():
    assert require(config_of("multiple_choice"), "AVERAGE", "x") == "softmax"
    with pytest.raises(
        ValueError,
        match=r"config\.x: found the task 'tagging', expected .*/single ",
    ):
        require(config_of("tagging"), "REVIEW", "config.x")


def test_features_are_refused_by_heads_that_read_none():
    config = config_of("reading_comprehension")
    config.features.use = "both"
    with pytest.raises(ValueError, match=r"config\.features\.use='both'.*set it to 'none'"):
        task_class(config)(config, (), tokenizer=None, backbone=None)
