"""Each family of decoders against transformers (fixtures/make_decoders.py), in and out."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy

from models.backbone import parameter_shapes
from models.decoder import Decoder, Layer
from models.layers import Embedder, Rope
from models.pretrained import open_checkpoint, write_pretrained

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"
NAMES = (
    "gemma2",
    "gemma3",
    "gemma3_bidirectional",
    "llama2",
    "llama3",
    "qwen2",
    "qwen3",
    "mistral",
    "mistral_bidirectional",
)
LLAMA3_ROPE = Rope(
    base=500_000.0, kind="llama3", factor=32.0, original_length=8192, slow=1.0, fast=4.0
)


@functools.cache
def read(name):
    """Config, parameters with all parts, and golden arrays of a folder."""
    checkpoint = open_checkpoint(FAMILIES / name)
    with np.load(FAMILIES / name / "golden.npz") as arrays:
        return checkpoint.config, checkpoint.read(checkpoint.parts), dict(arrays)


@jax.jit(static_argnums=0)
def run(config, params, tokens, positions, segments):
    """Embeddings, what each layer returns, hidden states and logits, each [R, L, ...]."""
    decoder = Decoder(config)
    hidden, kept = decoder.apply(
        {"params": params},
        *(tokens, positions, segments),
        capture_intermediates=lambda module, _: isinstance(module, Layer | Embedder),
    )
    kept = kept["intermediates"]
    embeddings = kept["embedder"]["__call__"][0] * config.embedding_scale
    outputs = [kept[f"layer_{i}"]["__call__"][0][0] for i in range(config.num_layers)]
    states = [each.reshape(hidden.shape) for each in (embeddings, *outputs)]
    return *states, hidden, decoder.apply({"params": params}, hidden, method="logits")


def padded(golden):
    """Tokens, positions and segments as the reference had them: one text a row."""
    segments = golden["mask_BxL"]
    positions = np.broadcast_to(np.arange(segments.shape[1]), segments.shape) * segments
    return golden["tokens_BxL"], positions, segments


def logits_of(config, params, batch):
    return np.asarray(run(config, params, *batch)[-1])


def edited(name, folder, **changes):
    """Copies a folder, with fields of its config.json set, or left out where None."""
    shutil.copytree(FAMILIES / name, folder, dirs_exist_ok=True)
    fields = json.loads((folder / "config.json").read_text()) | changes
    fields = {key: value for key, value in fields.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", NAMES)
def test_every_stage_equals_the_reference(name, layout):
    config, params, golden = read(name)
    batch, real = padded(golden), golden["mask_BxL"] > 0
    if layout == "packed":  # all texts in one row
        segments = batch[2] * np.arange(1, len(real) + 1)[:, None]
        batch = [each[real][None] for each in (batch[0], batch[1], segments)]
    expected = (*golden["states_NxBxLxD"][:-1], golden["hidden_BxLxD"], golden["logits_BxLxV"])
    found = run(config, params, *batch)
    found = (*found[: config.num_layers], *found[-2:])  # the reference norms the last layer's
    for ours, theirs in zip(found, expected, strict=True):
        ours = ours[real] if layout == "padded" else ours[0]
        np.testing.assert_allclose(ours, theirs[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_written_folders_read_the_same_and_say_what_transformers_wrote(name, tmp_path):
    config, params, _ = read(name)
    write_pretrained(tmp_path, config, params)
    again = open_checkpoint(tmp_path)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.read(again.parts), params)
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path, FAMILIES / name)
    )
    ropes, their_ropes = ours.pop("rope_parameters"), theirs.pop("rope_parameters")
    for key in ours.keys() & theirs.keys() - {"dtype", "max_window_layers"}:
        assert ours[key] == theirs[key], key
    if "full_attention" not in ropes:
        ropes, their_ropes = {"": ropes}, {"": their_ropes}
    for kind in ropes:
        assert ropes[kind].items() >= their_ropes[kind].items()
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    expected = safetensors.numpy.load_file(FAMILIES / name / "model.safetensors")
    assert {name: each.shape for name, each in tensors.items()} == {
        name: each.shape for name, each in expected.items()
    }


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "gemma3",
            {
                "rope_parameters": None,
                "rope_theta": 100.0,
                "rope_local_base_freq": 10.0,
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
                "layer_types": None,
                "sliding_window_pattern": 2,
            },
        ),
        ("gemma2", {"rope_parameters": None, "rope_theta": 10_000.0, "layer_types": None}),
        (
            "llama2",
            {
                "rope_parameters": None,
                "rope_scaling": {"type": "linear", "factor": 3.0},
                "num_key_value_heads": None,
                "head_dim": None,
            },
        ),
        (
            "llama3",
            {
                "rope_parameters": None,
                "rope_theta": 100.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 24,
                },
            },
        ),
        ("qwen2", {"rope_parameters": None, "rope_theta": 10_000.0, "layer_types": None}),
        ("mistral", {"rope_parameters": None, "rope_theta": 10_000.0}),
    ],
)
def test_the_layout_of_transformers_4_reads_the_same(name, changes, tmp_path):
    folder = edited(name, tmp_path, **changes)
    assert open_checkpoint(folder).config == read(name)[0]


def test_the_text_part_of_a_multimodal_folder_is_read(tmp_path):
    text = json.loads((FAMILIES / "gemma3" / "config.json").read_text())
    defaults = ("rms_norm_eps", "tie_word_embeddings")  # such folders leave them out
    text = {key: value for key, value in text.items() if key not in defaults}
    fields = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    tensors = safetensors.numpy.load_file(FAMILIES / "gemma3" / "model.safetensors")
    for old, prefix in enumerate(("model.language_model.", "language_model.model.")):
        folder = tmp_path / str(old)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(fields))
        renamed = {name.replace("model.", prefix, 1): each for name, each in tensors.items()}
        renamed["vision_tower.embeddings.weight"] = np.zeros((2, 2), np.float32)
        safetensors.numpy.save_file(renamed, folder / "model.safetensors")
        checkpoint = open_checkpoint(folder)
        assert checkpoint.config == read("gemma3")[0]
        jax.tree.map(np.testing.assert_array_equal, checkpoint.read(), read("gemma3")[1])


def test_bare_names_tied_copies_and_heads_of_other_tasks_are_known(tmp_path):
    edited("qwen2", tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("model."): each for name, each in tensors.items()}
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].copy()
    tensors["score.weight"] = np.zeros((3, 16), np.float32)
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.parts == ()
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read(), read("qwen2")[1])


def test_an_untied_output_is_a_part_that_a_checkpoint_may_lack(tmp_path):
    edited("llama3", tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.parts == () and "lm_head" not in checkpoint.read()
    with pytest.raises(ValueError, match="doesn't hold lm_head"):
        checkpoint.read(["lm_head"])
    config = checkpoint.config
    assert "lm_head" not in parameter_shapes(config)
    assert parameter_shapes(config, ["lm_head"])["lm_head"]["kernel"].shape == (16, 32)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' not impl"),
        ("qwen2", {"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
        ("llama3", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "lack.*low_freq_factor"),
        ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("mistral", {"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"head_dim": None}, "no field 'head_dim'"),
        ("gemma2", {"attn_logit_softcapping": None}, "no field 'attn_logit_softcapping'"),
        ("mistral", {"sliding_window": None}, "no field 'sliding_window'"),
        ("qwen3", {"hidden_size": None}, "no field 'hidden_size'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_field(name, changes, message, tmp_path):
    old = {"rope_parameters": None} if "rope_scaling" in changes else {}
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(edited(name, tmp_path, **old, **changes))
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", {"post_norms": True}),
        ("llama3", {"windows": (4, 4)}),
        ("gemma3", {"windows": (4, 5)}),
        ("qwen2", {"mlp_bias": True}),
        ("qwen3", {"activation": "tanh"}),
    ],
)
def test_a_config_that_its_family_does_not_have_is_not_written(name, change, tmp_path):
    config, params, _ = read(name)
    with pytest.raises(ValueError, match=f"can't be written with {next(iter(change))}"):
        write_pretrained(tmp_path, dataclasses.replace(config, **change), params)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma2", {"windows": (0, 0)}),
        ("gemma2", {"attention_cap": 0.0}),
        ("gemma2", {"logit_cap": 0.0}),
        ("qwen2", {"windows": (5, 5)}),
        ("llama2", {"ropes": (Rope(base=1e4),) * 2}),
        ("llama3", {"ropes": (Rope(base=100.0),) * 2}),
        ("qwen3", {"ropes": (Rope(base=100.0),) * 2}),
        ("gemma3_bidirectional", {"bidirectional": False}),
        ("gemma3_bidirectional", {"windows": (4, 0)}),
    ],
)
def test_each_choice_shows_in_the_reference(name, change):
    config, params, golden = read(name)
    batch = [each[:1] for each in padded(golden)]
    logits = logits_of(dataclasses.replace(config, **change), params, batch)
    assert np.abs(logits - golden["logits_BxLxV"][:1]).max() > 1e-2


def test_a_bidirectional_model_sees_later_tokens_up_to_its_windows():
    config, params, golden = read("mistral_bidirectional")
    tokens, positions, segments = (each[:1] for each in padded(golden))
    changed = tokens.copy()
    changed[0, 7] = 3 if tokens[0, 7] != 3 else 4
    for windows, seen in (((4, 4), range(3, 12)), ((0, 0), range(14)), ((4, 0), range(14))):
        config = dataclasses.replace(config, windows=windows)
        before, after = (
            logits_of(config, params, (each, positions, segments))[0] for each in (tokens, changed)
        )
        differs = np.flatnonzero(np.any(before != after, axis=-1))
        np.testing.assert_array_equal(differs, seen)  # two layers, two positions to each side


# Keys of the header that llama.cpp's converter writes for each architecture, beyond all others'.
GGUF_KEYS = {
    "gemma2": {
        "add_key_length": "head_dim",
        "add_value_length": "head_dim",
        "add_sliding_window": "sliding_window",
        "add_attn_logit_softcapping": "attn_logit_softcapping",
        "add_final_logit_softcapping": "final_logit_softcapping",
    },
    "gemma3": {
        "add_key_length": "head_dim",
        "add_value_length": "head_dim",
        "add_sliding_window": "sliding_window",
        "add_rope_freq_base": "rope_theta",
    },
    "llama": {"add_rope_dimension_count": "head_dim", "add_vocab_size": "vocab_size"},
    "qwen2": {"add_rope_freq_base": "rope_theta"},
    "qwen3": {
        "add_key_length": "head_dim",
        "add_value_length": "head_dim",
        "add_rope_freq_base": "rope_theta",
    },
}


def write_gguf(path, name, architecture, *, divisors=None, **more):
    """Converts a folder by the rules of llama.cpp's convert_hf_to_gguf.py, in float32."""
    fields = json.loads((FAMILIES / name / "config.json").read_text())
    fields["rope_theta"] = 5e5
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    for method, field in GGUF_KEYS[architecture].items():
        getattr(writer, method)(fields[field])
    for method, value in more.items():
        getattr(writer, method)(*value)
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(kind, fields["num_hidden_layers"])
    tensors = safetensors.numpy.load_file(FAMILIES / name / "model.safetensors")
    for old, value in tensors.items():
        value = value.astype(np.float32)
        if "norm" in old and architecture.startswith("gemma"):
            value += 1
        heads = {"q": fields["num_attention_heads"], "k": fields["num_key_value_heads"]}
        for letter, count in heads.items():
            if f".{letter}_proj." in old and architecture == "llama":
                halves = value.reshape(count, 2, len(value) // count // 2, *value.shape[1:])
                value = halves.swapaxes(1, 2).reshape(value.shape)
        new = names.get_name(old, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(new, np.ascontiguousarray(value))
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


DIVISORS = Rope(base=5e5).frequencies(8) / LLAMA3_ROPE.frequencies(8)


@pytest.mark.parametrize(
    ("name", "architecture", "expected", "more"),
    [
        ("gemma2", "gemma2", {"attention_scale": 0.5}, {}),
        (
            "gemma3",
            "gemma3",
            {"attention_scale": 0.5, "windows": (5, 5), "ropes": (Rope(base=1e4),) * 2},
            {},
        ),
        (
            "llama2",
            "llama",
            {"ropes": (Rope(base=1e4, kind="linear", factor=3.0),) * 2},
            {
                "add_rope_scaling_type": [gguf.RopeScalingType.LINEAR],
                "add_rope_scaling_factor": [3.0],
            },
        ),
        (
            "llama3",
            "llama",
            {"ropes": (LLAMA3_ROPE,) * 2},
            {"add_rope_freq_base": [5e5], "divisors": DIVISORS},
        ),
        (
            "mistral",
            "llama",
            {},
            {"add_sliding_window": [5]},
        ),
        ("qwen2", "qwen2", {"windows": (0, 0), "ropes": (Rope(base=5e5),) * 2}, {}),
        (
            "qwen3",
            "qwen3",
            {},
            {
                "add_rope_freq_base": [100.0],
                "add_rope_scaling_type": [gguf.RopeScalingType.YARN],
                "add_rope_scaling_factor": [4.0],
                "add_rope_scaling_orig_ctx_len": [16],
            },
        ),
    ],
)
def test_gguf_files_hold_the_same_model(name, architecture, expected, more, tmp_path, monkeypatch):
    if "add_rope_freq_base" in more:
        monkeypatch.setitem(
            GGUF_KEYS,
            architecture,
            {k: v for k, v in GGUF_KEYS[architecture].items() if k not in more},
        )
    config, params, _ = read(name)
    if name == "qwen3":  # the format has no beta_fast: llama.cpp takes yarn's own
        expected = {"ropes": (dataclasses.replace(config.ropes[0], fast=32.0),) * 2}
    config = dataclasses.replace(config, **expected)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", name, architecture, **more))
    found = dataclasses.replace(checkpoint.config, norm_epsilon=config.norm_epsilon)
    assert found == config and abs(checkpoint.config.norm_epsilon - 1e-6) < 1e-12
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read(checkpoint.parts), params)


@pytest.mark.parametrize(
    ("name", "architecture", "more", "message"),
    [
        ("llama3", "llama", {"add_expert_count": [8]}, "unknown.*expert_count"),
        ("llama3", "llama", {"divisors": [1.0, 1.0, 2.0, 4.0]}, "rope_freqs.weight is"),
        ("llama3", "llama", {"divisors": [4.0]}, "rope_freqs.weight is"),
        ("qwen3", "qwen3", {"add_rope_dimension_count": [4]}, "dimension_count is 4, expected the"),
    ],
)
def test_a_gguf_file_that_asks_for_more_is_refused(name, architecture, more, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(write_gguf(tmp_path / "a.gguf", name, architecture, **more))
    assert "a.gguf" in str(error.value)


def test_a_gguf_file_that_lacks_a_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(GGUF_KEYS, "gemma2", {"add_key_length": "head_dim"})
    with pytest.raises(ValueError, match="Missing.*attention.sliding_window.*under 'gemma2.'"):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", "gemma2", "gemma2"))


def test_gguf_names_are_those_of_the_format(tmp_path):
    folder = write_gguf(tmp_path / "a.gguf", "llama2", "llama")
    stored = {each.name for each in gguf.GGUFReader(folder).tensors}
    assert {"blk.0.attn_q.weight", "blk.1.ffn_down.bias", "output.weight"} <= stored


def test_a_causal_checkpoint_made_bidirectional_is_written_as_one(tmp_path):
    config, params, _ = read("qwen2")
    assert config.windows == (0, 5)
    config = dataclasses.replace(config, bidirectional=True)
    write_pretrained(tmp_path, config, params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["is_causal"] is False and written["sliding_window"] == 2  # on each side
    again = open_checkpoint(tmp_path).config
    assert again == dataclasses.replace(config, windows=(0, 4))  # the same, see attention_mask
