"""What --mode=export writes: transformers' logits (golden), a server of its own, refusals.

fixtures/make_export.py made the golden files, and makes the checkpoints that are exported here.
"""

import csv
import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from models.heads import ClassifierHead, Model
from models.pretrained import open_checkpoint
from workflows.export import huggingface as export_huggingface
from workflows.export.export import Sample, Trained, export, row_logits
from workflows.predict import predict

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
MAKE = runpy.run_path(str(FIXTURES / "make_export.py"))
SERVE = """
import runpy, sys
sys.path.insert(0, {folder!r})
runpy.run_path({folder!r} + "/serve.py")
files = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
print([file for file in files if file.startswith({root!r}) and "site-packages" not in file])
"""


@pytest.fixture
def checkpoint(tmp_path):
    """A function of a case and changes of its config: config and workdir of a trained model."""

    def make(case, **changes):
        config = MAKE["make_config"](case, tmp_path)
        config.update_from_flattened_dict(changes)
        MAKE["make_checkpoint"](config, tmp_path / "run")
        return config, tmp_path / "run"

    return make


@pytest.mark.parametrize("case", MAKE["CASES"])
def test_the_written_folder_is_the_one_that_transformers_gave_these_logits_for(case, checkpoint):
    config, workdir = checkpoint(case, **{"export.formats": ("huggingface",)})
    folder = export(config, workdir) / "huggingface"
    with np.load(FIXTURES / "export" / f"{case}.npz") as golden:
        assert json.loads((folder / "config.json").read_text("utf-8")) == json.loads(
            str(golden["config"])
        )
        written = (folder / "model.safetensors").read_bytes()
        assert hashlib.sha256(written).hexdigest() == str(golden["sha256"])
        tokens_BxL, mask_BxL, logits_BxC = (
            golden[name] for name in ("tokens_BxL", "mask_BxL", "logits_BxC")
        )
    pooling, bias = MAKE["CASES"][case]
    model = Model(open_checkpoint(folder).config, ClassifierHead(3, pooling, bias=bias))
    form = export_huggingface.form_of(model)
    params = export_huggingface.read(form, folder)
    batch = (np.where(mask_BxL, tokens_BxL, 0), np.zeros_like(tokens_BxL), mask_BxL.sum(axis=1))
    found_BxC = jax.jit(lambda *batch: row_logits(model, params, *batch))(*batch)
    np.testing.assert_allclose(found_BxC, logits_BxC, atol=1e-4)


def test_a_pair_is_served_without_this_code_base_as_predict_does_it(checkpoint, tmp_path):
    changes = {
        "data.template": "{text}乐{pair}",
        "data.pair_column": "pair",
        "data.normalization": ("halfwidth", "whitespace"),
        "export.formats": ("stablehlo",),
    }
    config, workdir = checkpoint("bert", **changes)
    folder = export(config, workdir) / "stablehlo"
    rng = np.random.default_rng(0)
    letters = "一丁丂七丄丅丆　［ＳＥＰ］ x"
    rows = [["".join(rng.choice(list(letters), size)) for size in (s, 29 - s)] for s in range(29)]
    rows += [["一", "丁"]] * 5  # more than one batch
    config.predict.input = str(tmp_path / "in.csv")
    with open(config.predict.input, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "pair"), *rows])
    predicted = [json.loads(line) for line in predict(config, workdir).open()]
    run = subprocess.run(
        [sys.executable, "-c", SERVE.format(folder=str(folder), root=str(ROOT))],
        input="".join(f"{text}\t{pair}\n" for text, pair in rows),
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    *lines, ours = run.stdout.splitlines()
    assert ours == "[]"
    served = [line.split("\t") for line in lines]
    assert [label for label, *_ in served] == [each["prediction"] for each in predicted]
    assert len({label for label, *_ in served}) > 1
    np.testing.assert_allclose(
        np.array([shares for _, *shares in served], float),
        [list(each["probabilities"].values()) for each in predicted],
        atol=1e-5,
    )
    assert len((folder / "serve.py").read_text().splitlines()) <= 41


def test_an_adapter_goes_out_merged_and_alone_and_short_windows_fix_the_length(checkpoint):
    changes = {"adapt.kind": "lora", "export.formats": ("huggingface", "stablehlo", "peft")}
    config, workdir = checkpoint("qwen2", **changes)
    folder = export(config, workdir)
    result = json.loads((folder / "export.json").read_text("utf-8"))
    for name in config.export.formats:
        assert result[name]["difference"] < 1e-4
        sizes = {file: (folder / name / file).stat().st_size for file in result[name]["files"]}
        assert sizes == result[name]["files"]
    tensors = open_checkpoint(folder / "huggingface").read()
    assert "lora_a" not in tensors["layer_0"]["attention"]["query"]
    before = open_checkpoint(config.model.checkpoint).read()
    moved = [
        np.abs(each["layer_0"]["attention"]["query"]["kernel"]).sum() for each in (before, tensors)
    ]
    assert abs(moved[0] - moved[1]) > 0.1
    setup = json.loads((folder / "stablehlo" / "preprocessing.json").read_text("utf-8"))
    assert setup["length_step"] == setup["max_length"] == 20
    config.export.formats = ("huggingface",)
    export(config, workdir)  # over the first one
    assert not list(folder.glob("*.partial"))


def test_a_head_that_transformers_lacks_stands_beside_the_backbone_and_says_why(checkpoint):
    changes = {"model.pooling": "mean", "model.head_bias": True}
    config, workdir = checkpoint("qwen2", **changes, **{"export.formats": ("huggingface",)})
    folder = export(config, workdir) / "huggingface"
    assert json.loads((folder / "config.json").read_text("utf-8"))["architectures"] == [
        "Qwen2Model"
    ]
    readme = (folder / "README.md").read_text("utf-8")
    assert "reads the last position" in readme
    assert "pooled @ weight.T + bias of head.safetensors" in readme
    assert (folder / "head.safetensors").is_file()


@pytest.mark.parametrize(
    ("case", "pooling", "bias", "architecture"),
    [
        ("ernie", "pooler", True, "ErnieForSequenceClassification"),
        ("albert", "pooler", False, "AlbertForSequenceClassification"),
        ("roberta", "pooler", True, "RobertaForSequenceClassification"),
        ("roberta", "first", True, "RobertaModel"),
        ("electra", "first", True, "ElectraModel"),
        ("llama3", "last", False, "LlamaForSequenceClassification"),
        ("llama3", "last", True, "LlamaModel"),
        ("mistral", "first", False, "MistralModel"),
        ("mt5", "mean", True, "MT5EncoderModel"),
    ],
)
def test_the_form_follows_from_family_pooling_and_bias(case, pooling, bias, architecture):
    config = open_checkpoint(FIXTURES / "families" / case).config
    model = Model(config, ClassifierHead(3, pooling, bias=bias))
    assert export_huggingface.form_of(model).architecture == architecture


def test_what_differs_when_it_is_read_again_is_refused(tmp_path):
    experiment = SimpleNamespace(config=MAKE["make_config"]("bert", tmp_path))
    sample = Sample(np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1), "one text")
    logits_BxC = np.array([[2.0, 1.0, 0.0]])
    trained = Trained(experiment, {}, {}, "best checkpoint", sample, logits_BxC, {})
    assert trained.refuse_difference([[2.00001, 1, 0]], trained.logits_BxC, "x") < 1e-4
    for other in ([[2.001, 1, 0]], [[np.nan, 1, 0]]):
        with pytest.raises(ValueError, match=r"folder/x, read again, differs .* on one text"):
            trained.refuse_difference(other, trained.logits_BxC, "folder/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"export.formats": ("onnx",)}, "config.export.formats is .'onnx',.: name one or more of"),
        ({"export.formats": ()}, "config.export.formats is"),
        ({"features.use": "both"}, "a head that reads features can't be exported"),
        ({"model.pooling": "mask"}, "where the template's masks are can't be exported"),
        ({"adapt.kind": "prompt"}, "a trained prompt can't be merged into weights"),
        ({"export.formats": ("peft",)}, "config.adapt.kind='full' makes no adapter"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_any_work(changes, message, tmp_path):
    config = MAKE["make_config"]("bert", tmp_path)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        export(config, tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    config = MAKE["make_config"]("bert", tmp_path)
    config.export.output = str(tmp_path / "mine")
    (tmp_path / "mine" / "huggingface").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"huggingface is there already, and no export"):
        export(config, tmp_path / "run")
