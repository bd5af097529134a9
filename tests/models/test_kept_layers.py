"""A student of fewer layers (config.model.keep_layers): which layers it keeps, and of what."""

import numpy as np
import pytest

from models.backbone import (
    flatten,
    kept_layers,
    layer_of,
    make_backbone,
    unflatten,
    with_layers,
)
from models.bert import BertConfig
from models.pretrained import open_checkpoint, write_pretrained
from models.t5 import T5Config

SIZES = {"vocab_size": 40, "width": 16, "num_heads": 2, "hidden": 24, "max_length": 32}


def bert(model_type="bert", layers=12, distinct=12, **changes):
    counts = {"num_layers": layers, "num_distinct_layers": distinct, "embedding_size": 16}
    return BertConfig(model_type=model_type, **SIZES, **counts, **changes)


@pytest.fixture(params=["bert", "albert", "decoder"])
def folder(request, make_config, random_params, tmp_path):
    """A checkpoint of 12 layers; every sixth of the decoder sees all positions, as in Gemma 3."""
    config = bert()
    if request.param == "albert":
        config = bert("albert", distinct=1, embedder_projection=True)
    if request.param == "decoder":
        rope = make_config().ropes
        windows = tuple(0 if i % 6 == 5 else 3 for i in range(12))
        ropes = tuple(rope[window == 0] for window in windows)
        config = make_config(num_layers=12, windows=windows, ropes=ropes)
    write_pretrained(tmp_path / "whole", config, random_params(config))
    return tmp_path / "whole"


def test_layers_are_spaced_evenly_and_the_last_one_stays():
    assert kept_layers(12, 4) == (2, 5, 8, 11)
    assert kept_layers(12, 6) == (1, 3, 5, 7, 9, 11)
    for count in range(1, 25):
        assert kept_layers(count, count) == tuple(range(count))
        for keep in range(1, count + 1):
            kept = kept_layers(count, keep)
            assert len(set(kept)) == keep and kept[-1] == count - 1
            gaps = np.diff([-1, *kept])
            assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_a_student_has_the_bits_of_the_kept_layers_and_reads_no_other(folder):
    whole, student = open_checkpoint(folder), open_checkpoint(folder).keeping(4)
    placed = []
    params = student.read(place=lambda path, value: placed.append(path) or np.array(value))
    expected = flatten(whole.read())
    kept = (0,) if student.config.model_type == "albert" else (2, 5, 8, 11)
    assert student.kept == kept
    for path, value in flatten(params).items():
        number, source = layer_of(path), path
        if number is not None:
            source = path.replace(f"layer_{number}/", f"layer_{kept[number]}/")
        np.testing.assert_array_equal(value, expected[source], err_msg=path)
    assert set(map(layer_of, placed)) - {None} == set(range(len(kept)))
    if student.config.model_type != "albert":
        left_out = sum(layer_of(path) is not None for path in expected) * 8 // 12
        assert student.ignored["of layers that config.model.keep_layers leaves out"] == left_out
    assert student.fingerprint != whole.fingerprint


@pytest.mark.parametrize("folder", ["decoder"], indirect=True)
def test_kept_layers_keep_their_windows_and_rotary_positions(folder):
    """The student computes what the whole model does once the other layers add nothing."""
    whole, student = open_checkpoint(folder), open_checkpoint(folder).keeping(4)
    assert student.config.windows == (3, 0, 3, 0)
    assert student.config.ropes == tuple(whole.config.ropes[i] for i in student.kept)
    params = flatten(whole.read())
    for path, value in params.items():
        layer = layer_of(path)
        if layer is not None and layer not in student.kept and "/post_" in path:
            value[:] = 0
    tokens_RxL = np.random.default_rng(0).integers(1, 40, (2, 12))
    batch = tokens_RxL, np.tile(np.arange(12), (2, 1)), np.ones((2, 12), np.int32)
    found, expected = (
        make_backbone(config).apply({"params": tree}, *batch)
        for config, tree in (
            (student.config, student.read()),
            (whole.config, unflatten(params)),
        )
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_written_student_is_a_checkpoint_of_its_own(folder, tmp_path):
    student = open_checkpoint(folder).keeping(4)
    write_pretrained(tmp_path / "student", student.config, student.read())
    again = open_checkpoint(tmp_path / "student")
    assert again.config == student.config and again.config.num_layers == 4
    expected = flatten(student.read())
    for path, value in flatten(again.read()).items():
        np.testing.assert_array_equal(value, expected[path])


def test_what_cannot_be_kept_is_one_error():
    t5 = T5Config(
        vocab_size=8,
        width=8,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=2,
        head_size=4,
        hidden=8,
    )
    for config, keep, message in (
        (bert(), 13, "keep_layers=13, but there are 12"),
        (t5, 2, "t5 has layers in its encoder and its decoder"),
        (bert("albert", distinct=3), 4, "12 layers share the parameters of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            with_layers(config, keep)
