"""Adapters in PEFT's format: tests/fixtures/make_peft.py made folders and the logits they give."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs.common import get_config
from models import adapters, pretrained
from models.backbone import flatten, parameter_shapes
from models.heads import ClassifierHead, Model
from models.pretrained import peft, safetensors

FIXTURES = Path(__file__).parents[1] / "fixtures"
EVERY_OTHER = r".*/(key|value|output|up|down)/kernel"
CHANGES = {
    "lora": ("bert", {"rank": 2, "alpha": 6.0, "targets": ".*/query/kernel"}),
    "rslora": ("gemma3", {"rank": 4, "alpha": 3.0, "targets": EVERY_OTHER}),
    "dora": ("bert", {"rank": 2, "alpha": 4.0, "targets": ".*/(value|output|down)/kernel"}),
    "ia3": ("bert", {"targets": ".*/(key|value|output|down)/kernel"}),
    "prompt": ("gemma3", {"prompt_length": 5}),
}


def adapt_of(kind, **more):
    adapt = get_config().adapt
    adapt.update({"kind": kind, **CHANGES[kind][1], **more})
    return adapt


def base_of(kind):
    """Returns the config, the flat backbone and the pooling of transformers' classifier."""
    name = CHANGES[kind][0]
    parts = ("pooler",) if name == "bert" else ()
    loaded = pretrained.load_pretrained(FIXTURES / "families" / name, parts=parts)
    flat = flatten({"backbone": loaded.params})
    return loaded.config, flat, "pooler" if parts else "last"


@pytest.mark.parametrize("kind", peft.KINDS)
def test_a_folder_of_peft_gives_its_logits(kind):
    config, flat, pooling = base_of(kind)
    adapt = adapt_of(kind)
    leaves = peft.read_peft(FIXTURES / "peft" / kind, config, adapt)
    golden = np.load(FIXTURES / "peft" / kind / "golden.npz")
    tokens_BxL, mask_BxL = golden["tokens_BxL"], golden["mask_BxL"]
    if kind == "prompt":
        prompt_T = config.vocab_size + np.arange(5, dtype=np.int32)
        tokens_BxL = np.concatenate([np.tile(prompt_T, (len(tokens_BxL), 1)), tokens_BxL], axis=1)
        mask_BxL = np.pad(mask_BxL, ((0, 0), (5, 0)), constant_values=1)
    positions_BxL = (np.cumsum(mask_BxL, axis=1) - 1) * mask_BxL
    segments_BxL = mask_BxL * np.arange(1, len(mask_BxL) + 1)[:, None]
    classes = golden["logits_BxC"].shape[-1]
    model = Model(config, ClassifierHead(classes, pooling, bias="head/bias" in leaves))

    def apply(tree, batch):
        return model.apply({"params": tree}, batch, deterministic=True)["logits_BxC"]

    batch = {
        "tokens_RxL": tokens_BxL,
        "positions_RxL": positions_BxL.astype(np.int32),
        "segments_RxL": segments_BxL.astype(np.int32),
        "types_RxL": np.zeros_like(tokens_BxL),
        "weights_B": np.ones(len(tokens_BxL), np.float32),
    }
    folded = traverse_util.unflatten_dict(adapters.fold(adapt, {**flat, **leaves}), sep="/")
    quick = {"xla_backend_optimization_level": "0"}
    found_BxC = jax.jit(apply, compiler_options=quick)(folded, batch)
    np.testing.assert_allclose(found_BxC, golden["logits_BxC"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", peft.KINDS)
def test_what_is_written_is_what_was_read_and_what_peft_wrote(kind, tmp_path):
    config, flat, pooling = base_of(kind)
    adapt = adapt_of(kind)
    source = FIXTURES / "peft" / kind
    leaves = peft.read_peft(source, config, adapt)
    said = peft.write_peft(tmp_path, config, adapt, {**flat, **leaves}, base="b", pooling=pooling)
    assert "head included" in said
    again = peft.read_peft(tmp_path, config, adapt)
    assert again.keys() == leaves.keys()
    for path, value in leaves.items():
        np.testing.assert_array_equal(again[path], value)
    theirs, ours = (
        {name: tensor.read() for name, tensor in safetensors.read(folder / peft.WEIGHTS).items()}
        for folder in (source, tmp_path)
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6)
    found, known = (json.loads((f / peft.CONFIG).read_text()) for f in (tmp_path, source))
    assert found["base_model_name_or_path"] == "b"
    for key in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "token_dim"):
        assert found.get(key) == known.get(key)


@pytest.mark.parametrize("family", ["albert", "roberta", "qwen3", "t5_v1_1", "llama3"])
def test_every_family_has_names_for_all_kernels_of_its_layers(family, tmp_path):
    config = pretrained.open_checkpoint(FIXTURES / "families" / family).config
    adapt = get_config().adapt
    adapt.kind = "lora"
    shapes = flatten({"backbone": parameter_shapes(config)})
    flat = adapters.init(adapt, shapes, jax.random.key(0), params={})
    flat |= {"head/kernel": np.ones((4, 2), np.float32), "head/bias": np.ones(2, np.float32)}
    said = peft.write_peft(tmp_path, config, adapt, flat, pooling="mean")
    assert peft.HEAD in said
    names = safetensors.read(tmp_path / peft.WEIGHTS)
    assert all(
        name.startswith(("base_model.model.encoder.", "base_model.model.layers.")) for name in names
    )
    again = peft.read_peft(tmp_path, config, adapt)
    assert again.keys() == flat.keys()
    assert all(np.array_equal(again[path], value) for path, value in flat.items())


def test_names_of_targets_mean_the_adapted_modules_and_no_other(tmp_path):
    config, flat, _ = base_of("dora")
    adapt = adapt_of("lora", targets=CHANGES["dora"][1]["targets"])
    leaves = adapters.init(adapt, flat, jax.random.key(0), params=flat)
    peft.write_peft(tmp_path, config, adapt, leaves)
    modules = json.loads((tmp_path / peft.CONFIG).read_text())["target_modules"]
    assert [name for name in modules if "." not in name] == ["value"]
    assert len(modules) == 5  # 'dense' would be the pooler and the feed-forward's first map too


def changed_folder(tmp_path, kind, **fields):
    folder = tmp_path / kind
    shutil.copytree(FIXTURES / "peft" / kind, folder)
    found = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(found | fields))
    return folder


@pytest.mark.parametrize(
    ("kind", "fields", "more", "message"),
    [
        ("lora", {}, {"rank": 8, "alpha": 16.0}, r"rank 2, not 8, alpha 6.0, not 16.0. Set config"),
        ("lora", {}, {"targets": ".*/(query|key)/kernel"}, "Missing: .*layer_0/attention/key"),
        ("rslora", {}, {"targets": ".*/key/kernel"}, "Not among the targets: .*mlp/down/lora_a"),
        ("lora", {"use_dora": True}, {}, "kind 'dora', not 'lora'"),
        ("lora", {"rank_pattern": {"query": 4}}, {}, "rank_pattern=.*not implemented"),
        ("lora", {"layers_to_transform": [1]}, {}, "layers_to_transform="),
        ("lora", {"bias": "all"}, {}, "bias='all'"),
        ("lora", {"lora_bias": True}, {}, "lora_bias=True"),
        ("lora", {"init_lora_weights": "pissa"}, {}, "init_lora_weights='pissa'"),
        ("lora", {"modules_to_save": ["embed_tokens"]}, {}, "modules_to_save="),
        ("lora", {"peft_type": "VERA"}, {}, "peft_type is 'VERA'"),
        ("prompt", {"num_virtual_tokens": 7}, {}, "prompt_length 7, not 5"),
    ],
)
def test_what_differs_or_is_not_implemented_is_named(tmp_path, kind, fields, more, message):
    config, _, _ = base_of(kind)
    with pytest.raises(ValueError, match=message):
        peft.read_peft(changed_folder(tmp_path, kind, **fields), config, adapt_of(kind, **more))


def test_an_adapter_that_is_not_finite_names_file_and_tensor(tmp_path):
    folder = shutil.copytree(FIXTURES / "peft" / "lora", tmp_path / "lora")
    tensors = {n: np.array(t.read()) for n, t in safetensors.read(folder / peft.WEIGHTS).items()}
    name = sorted(tensors)[1]
    tensors[name][...] = np.nan
    safetensors.write(folder / peft.WEIGHTS, tensors)
    with pytest.raises(ValueError, match=f"{peft.WEIGHTS}: tensor {name} holds"):
        peft.read_peft(folder, base_of("lora")[0], adapt_of("lora"))


def test_a_missing_file_and_another_model_are_named(tmp_path):
    config, _, _ = base_of("lora")
    folder = changed_folder(tmp_path, "lora")
    other = pretrained.open_checkpoint(FIXTURES / "families" / "gemma3").config
    with pytest.raises(ValueError, match="tensors of no layer of this gemma3_text"):
        peft.read_peft(folder, other, adapt_of("lora"))
    (folder / peft.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        peft.read_peft(folder, config, adapt_of("lora"))


def test_kinds_without_a_format_are_refused(tmp_path):
    config, flat, _ = base_of("lora")
    adapt = get_config().adapt
    adapt.kind = "bitfit"
    with pytest.raises(ValueError, match="huggingface"):
        peft.write_peft(tmp_path, config, adapt, flat)
