"""The table of ranges: complete, in step with the modules, and refusing what lies outside."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import common
from configs.checks import EXTRACTORS, FORMATS, MEMBERS, METHODS, RECODING, TABLE, check_values
from configs.overrides import check_overrides
from configs.ranges import Duration, Number, Whole, read_duration
from input_pipeline.corpus import formats, normalization
from input_pipeline.features import extractors, features
from integration import methods
from models import adapters
from tasks import KINDS

WHOLE = [key for key, row in TABLE.items() if isinstance(row, Whole)]
NUMBERS = WHOLE + [key for key, row in TABLE.items() if isinstance(row, Number)]
DURATIONS = [key for key, row in TABLE.items() if isinstance(row, Duration)]
RECIPE = "--config=configs/multi.py"


def keys_of(config, prefix=""):
    for name, value in config.items():
        if not isinstance(value, ConfigDict):
            yield prefix + name
        elif prefix + name != MEMBERS:
            yield from keys_of(value, f"{prefix}{name}.")


def set_value(config, key, value):
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    del config[name]  # or its type would be kept
    config[name] = value


def refused(key, value):
    """Returns what is said of the defaults with one other value."""
    config = common.get_config()
    set_value(config, key, value)
    with pytest.raises(ValueError) as error:
        check_values(config, tasks=KINDS)
    said = str(error.value)
    assert said.startswith(f"config.{key}: found {value!r}, expected "), said
    return said


def test_every_key_has_a_row_and_every_row_a_key():
    assert sorted(TABLE) == sorted(keys_of(common.get_config()))


def test_defaults_fit():
    check_values(common.get_config(), tasks=KINDS)


def test_choices_are_those_that_the_modules_implement():
    assert tuple(normalization._OPS) == RECODING
    assert set(EXTRACTORS) == {*extractors.DENSE, *features.TFIDF}
    assert formats.FORMATS == FORMATS
    assert methods.METHODS == METHODS
    assert TABLE["adapt.kind"].expected == f"one of {adapters.KINDS}"


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_refused_just_outside_its_range_and_taken_at_its_ends(key):
    row = TABLE[key]
    if isinstance(row, Whole):
        inside, outside = [row.low, row.high // row.step * row.step], [row.low - 1, row.high + 1]
        outside = [value for value in outside if value not in row.also]
    else:
        ends = [(row.low, row.above, -math.inf), (row.high, row.below, math.inf)]
        ends = [end for end in ends if math.isfinite(end[0])]
        inside = [end for end, excluded, _ in ends if not excluded]
        outside = [
            end if excluded else float(np.nextafter(np.float32(end), np.float32(beyond)))
            for end, excluded, beyond in ends
        ]
    assert all(map(row.fits, inside)) and not any(map(row.fits, outside))
    assert not outside or row.expected in refused(key, outside[0])


@pytest.mark.parametrize("key", [*NUMBERS, "data.split.validation", "data.split.test"])
def test_what_is_no_finite_number_is_refused(key):
    values = [math.nan, math.inf, -math.inf, 10**400, "1", "", [1], (), None, True]
    values += [2.5, 2.0] * (key in WHOLE)
    assert not any(map(TABLE[key].fits, values))
    refused(key, math.nan)


@given(st.floats(-1, 1.5))
def test_a_number_must_be_in_its_range_in_float32_too(value):
    assert TABLE["model.dropout"].fits(value) == (value >= 0 and np.float32(value) < 1)
    assert TABLE["optimizer.learning_rate"].fits(value) == (np.float32(value) > 0)
    whole = value == 1
    assert TABLE["data.split.test"].fits(value) == (0 <= value < 1 or whole)


@pytest.mark.parametrize("key", sorted(TABLE.keys() - {*NUMBERS}))
def test_every_other_value_has_a_type(key):
    assert not any(map(TABLE[key].fits, (object, -0.5, None, [[[]]])))
    refused(key, -0.5)


@given(st.integers(0, 9999), st.sampled_from(["step", "epochs", "examples", "%", "", "days"]))
def test_durations_have_a_unit_and_end_some_time(number, unit):
    for text in (f"{number} {unit}", f"{number}.5{unit}", f" .{number}{unit}"):
        parts = read_duration(text)
        assert (parts is None) == (unit in ("", "days"))
        for key in DURATIONS:
            row, positive = TABLE[key], parts is not None and parts[0] > 0
            zero = parts is not None and parts[0] == 0 and row.zero
            assert row.fits(text) == ((positive or zero) and (unit != "%" or row.share))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "clasification"),
        ("data.split.test", 1.5),
        ("data.split.test", -0.1),
        ("data.template", "{text}\\n{pair}"),
        ("data.normalization", ("nfkc",)),
        ("features.extractors", ()),
        ("features.extractors", ("lengths", "lengths")),
        ("model.label_words", "好"),
        ("data.value_columns", ("",)),
        ("classification.class_weights", ("balance",)),
        ("classification.class_weights", (1.0, math.nan)),
        ("classification.threshold", "1"),
        ("multi.rates", (1, 0)),
        ("adapt.targets", "(q"),
        ("optimizer.lr_table", ()),
        ("optimizer.lr_table", ((".*", "2"),)),
        ("optimizer.lr_table", (("*", 2.0),)),
        ("optimizer.lr_table", ((".*", math.nan),)),
        ("optimizer.lr_table", ((".*", -1.0),)),
        ("optimizer.lr_table", (".*", 1.0)),
        ("optimizer.decay_table", ((".*", None),)),
        ("train.duration", "50%"),
        ("train.duration", 3),
        ("train.checkpoint_every", "0 steps"),
        ("eval.checkpoint", "bset"),
        ("integrate.methods", ("interpolate",)),
        ("export.formats", "onnx"),
    ],
)
def test_values_that_cannot_work_are_refused_by_key(key, value):
    refused(key, value)


def test_keys_that_a_recipe_misspells_or_loses_are_named():
    config = common.get_config()
    config.optimizer.learning_rte = 1e-3
    with pytest.raises(
        ValueError, match=r"config\.optimizer\.learning_rte: .*optimizer\.learning_rate$"
    ):
        check_values(config, tasks=KINDS)
    config = common.get_config()
    config.data.cleaning = ConfigDict({"min_characters": 1})
    with pytest.raises(ValueError, match=r"config\.data\.cleaning lacks .*cleaning\.update"):
        check_values(config, tasks=KINDS)
    config = common.get_config()
    set_value(config, "data.cleaning", 5)
    with pytest.raises(ValueError, match=r"config\.data\.cleaning: found 5, expected the keys of"):
        check_values(config, tasks=KINDS)


def test_members_are_checked_and_named_by_their_full_path():
    config = common.get_config()
    config.multi.members = ConfigDict({"a": common.get_config(), "b": common.get_config()})
    config.multi.members.b.data.batch_size = 0
    with pytest.raises(ValueError, match=r"^config\.multi\.members\.b\.data\.batch_size: found 0"):
        check_values(config, tasks=KINDS)
    config.multi.members = ConfigDict({"a": 5})
    with pytest.raises(ValueError, match=r"config\.multi\.members\.a"):
        check_values(config, tasks=KINDS)


@pytest.mark.parametrize(
    ("flags", "spelt_out"),
    [
        (["--config.data.cleaning={'min_characters': 1}"], ["data.cleaning.min_characters=1"]),
        (["--config.data.cleaning", "{'threshold': 1}"], ["data.cleaning.threshold=1"]),
        (
            ["--config.data={'labels': ['a', 'b'], 'split': {'kind': 'group', 'test': 0.2}}"],
            ["data.labels=('a', 'b')", "data.split.kind=group", "data.split.test=0.2"],
        ),
        (
            ["--config.multi.members={'names': {'model': {'head_bias': False}}}"],
            ["multi.members.names.model.head_bias=False"],
        ),
        (["--config.eval={}", "--config.seed", "1"], ["seed=1"]),
        (
            ["--config.data.value_columns=", "--config.data.labels", ""],
            ["data.value_columns=()", "data.labels=()"],
        ),
    ],
)
def test_a_group_given_as_a_dict_keeps_its_other_keys(flags, spelt_out):
    rest = ["--config.train.integrate", "--noconfig.eval.test", "--mode=train"]
    argv = check_overrides(["main.py", RECIPE, *flags, *rest])
    assert argv == ["main.py", RECIPE, *(f"--config.{flag}" for flag in spelt_out), *rest]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("data.cleaning=5", r"data\.cleaning: found '5', expected the keys of a group: "),
        ("data.cleaning={'min_characters': 1", "expected the keys of a group"),
        ("data={'cleaning': [1]}", r"data\.cleaning: found '\(1,\)', expected the keys"),
        ("data.cleaning={'min_character': 1}", "nearest is --config.data.cleaning.min_characters"),
        ("data.cleaning={'min_characters': True}", r"min_characters: found 'True', .* whole"),
        ("multi.members={'faces': {}}", r"has no member 'faces' but \['names', 'reviews'\]"),
        ("train.microbatches=abc", "train.microbatches: found 'abc', expected a whole number"),
        ("train.microbatches=2.5", "found '2.5', expected a whole number of at least 1"),
        ("layout.max_shapes=", "layout.max_shapes: found '', expected a whole number"),
        ("optimizer.learning_rate=1e-5x", "found '1e-5x', expected a finite number above 0"),
        ("train.integrate=maybe", "train.integrate: found 'maybe', expected True or False"),
        ("multi.members.names.data.batch_size=x", "found 'x', expected a whole number"),
    ],
)
def test_an_override_of_another_type_names_key_value_and_range(flag, said):
    with pytest.raises(ValueError, match=said):
        check_overrides(["main.py", RECIPE, f"--config.{flag}"])
