"""The certificate passes true checkpoints, fails corrupted ones, and says what it compared."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.common import get_config
from models.pretrained import open_checkpoint
from workflows.verify import reference
from workflows.verify import verify as verification
from workflows.verify.agreement import compare, compare_logits
from workflows.verify.reference import Inputs, Logits, Reference
from workflows.verify.verify import Model, verify

FIXTURES = Path(__file__).parents[2] / "fixtures"
FAMILIES = sorted(path.parent.name for path in (FIXTURES / "families").glob("*/golden.npz"))


@pytest.fixture
def config():
    config = get_config()
    config.model.checkpoint = str(FIXTURES / "families" / "bert")
    return config


@pytest.fixture
def without_pytorch(monkeypatch):
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def without_adapter(monkeypatch):
    """Leaves out the row of adapters, for speed, where a test is about another."""
    row = compare("no adapter", "hidden states", np.zeros(1), np.zeros(1))
    monkeypatch.setattr(verification, "_merged_row", lambda *args: row)


def against_golden(checkpoint, golden):
    """The rows of a checkpoint against its golden file alone."""
    model, params = Model(checkpoint), checkpoint.read(checkpoint.parts)
    found = model.run(params, golden.inputs)
    return verification.against_reference(model, params, found, golden)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_a_true_checkpoint_passes_and_its_certificate_holds_every_comparison(
    config, tmp_path, capsys, name
):
    config.model.checkpoint = str(FIXTURES / "families" / name)
    result = verify(config, tmp_path)
    assert result == json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    assert result["passed"] and result["reference"].startswith("golden file")
    rows = {(row["name"], row["quantity"]): row for row in result["rows"]}
    judged = [row for row in rows.values() if row["judged"]]
    assert all(row["maximum"] < 1e-4 for row in judged)
    assert all(row["top1"] == 1 and row["kl"] < 1e-5 for row in judged if row["kl"] is not None)
    (half,) = (row for row in rows.values() if not row["judged"])
    assert half["name"] == "bfloat16 against float32" and half["maximum"] > 1e-3
    assert ("against the reference", "pooled output") in rows or name != "bert"
    assert ("packed against unpacked", "logits") in rows
    assert ("merged against unmerged lora adapter", "logits") in rows
    shown = capsys.readouterr().out
    assert result["fingerprint"][:16] in shown and "golden.npz" in shown and "passed" in shown


def test_a_corrupted_weight_fails_and_the_message_names_what_differs(
    config, tmp_path, without_adapter
):
    folder = shutil.copytree(FIXTURES / "families" / "bert", tmp_path / "corrupted")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.1.output.dense.weight"))
    tensors[name][0, 0] += np.float16(0.5)
    save_file(tensors, folder / "model.safetensors")
    config.model.checkpoint = str(folder)
    with pytest.raises(ValueError, match=r"logits, against the reference, differ.*tolerance=0.001"):
        verify(config, tmp_path)
    result = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    failed = [row["name"] for row in result["rows"] if row["judged"] and row["maximum"] > 1e-3]
    assert not result["passed"] and set(failed) == {"against the reference"}


def test_texts_that_see_each_other_in_a_packed_row_fail(
    config, tmp_path, monkeypatch, without_adapter
):
    rows_of = verification._rows

    def one_segment(arrays, groups):
        batch = rows_of(arrays, groups)
        return batch | {"segments": (batch["segments"] > 0).astype(np.int32)}

    monkeypatch.setattr(verification, "_rows", one_segment)
    with pytest.raises(ValueError, match="logits, packed against unpacked, differ") as error:
        verify(config, tmp_path)
    assert "against the reference" not in str(error.value)


def test_without_a_reference_the_rest_is_compared_and_the_lack_is_told(
    config, tmp_path, capsys, without_pytorch
):
    folder = shutil.copytree(FIXTURES / "families" / "bert", tmp_path / "alone")
    (folder / "golden.npz").unlink()
    config.model.checkpoint = str(folder)
    result = verify(config, tmp_path)
    assert result["reference"] == "no reference" and "not installed" in result["without_reference"]
    assert len(result["rows"]) == 3 and result["passed"]
    shown = capsys.readouterr().out
    assert "no reference" in shown and "random ids are compared" in shown


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_agrees_with_its_golden_file(name):
    folder = FIXTURES / "families" / name
    golden = reference.read_golden(folder / "golden.npz")
    rows = against_golden(open_checkpoint(folder), golden)
    assert rows and all(row.maximum < 1e-3 for row in rows)
    assert (rows[0].quantity == "logits") == (golden.logits is not None)


def test_a_golden_file_of_a_large_vocabulary_keeps_some_logits_and_their_verdict(tmp_path):
    rng = np.random.default_rng(0)
    values_PxV = (3 * rng.normal(size=(7, 3000))).astype(np.float32)
    inputs = Inputs([np.arange(4), np.arange(3)])
    reference.write_golden(
        tmp_path / "some.npz", Reference("another machine", inputs, logits=Logits(values_PxV))
    )
    read = reference.read_golden(tmp_path / "some.npz")
    assert read.name == "golden file some.npz of another machine"
    assert [ids.tolist() for ids in read.inputs.tokens] == [[0, 1, 2, 3], [0, 1, 2]]
    assert read.logits.values_PxC.shape == (7, 64)

    def row(found_PxV):
        return compare_logits(
            "x",
            lambda part: Logits(jnp.asarray(found_PxV[part])),
            lambda part: Logits(*(array[part] for array in read.logits)),
            count=7,
        )

    same = row(values_PxV)
    assert same.maximum == 0 and same.kl < 1e-5 and same.top1 == same.top5 == 1
    other = values_PxV + rng.normal(size=values_PxV.shape).astype(np.float32)
    found, logp, logq = (
        row(other),
        *(v - np.log(np.exp(v).sum(1, keepdims=True)) for v in (values_PxV, other)),
    )
    whole = (np.exp(logp) * (logp - logq)).sum(1).mean()
    assert 0.3 * whole < found.kl <= whole * 1.001  # a lower bound
    assert found.top1 < 1 or found.top5 < 1


def test_agreement_is_what_it_says_by_hand():
    expected = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32))
    found = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], np.float32))
    row = compare_logits(
        "x", lambda part: Logits(found[part]), lambda part: Logits(expected[part]), count=2
    )
    assert row.kl == pytest.approx(0.25 * np.log(2) / 2, rel=1e-5)
    assert (row.top1, row.top5) == (0.5, 1.0)
    assert row.maximum == pytest.approx(np.log(2)) and row.mean == pytest.approx(np.log(2) / 3)
    with pytest.raises(ValueError, match="of another checkpoint"):
        compare("x", "hidden states", np.zeros((2, 3)), np.zeros((2, 4)))


def test_a_difference_that_is_no_number_fails(config, tmp_path, monkeypatch):
    row = compare("against the reference", "hidden states", np.full(2, np.nan), np.zeros(2))
    monkeypatch.setattr(verification, "_rows_of_certificate", lambda *args: [row])
    with pytest.raises(ValueError, match="differ by up to nan"):
        verify(config, tmp_path)


def test_bad_golden_files_are_named(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.verify.golden.*gone.npz.*writes"):
        reference.read_golden(tmp_path / "gone.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"text.npz is no golden file"):
        reference.read_golden(tmp_path / "text.npz")
    np.savez(tmp_path / "few.npz", tokens_BxL=np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"few.npz has no array mask"):
        reference.read_golden(tmp_path / "few.npz")
    other = str(FIXTURES / "families" / "qwen3" / "golden.npz")
    config.verify.golden = other
    with pytest.raises(ValueError, match="another checkpoint"):
        verify(config, tmp_path)


def test_live_pytorch_agrees_and_leaves_a_golden_file_that_serves_without_it(
    config, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = shutil.copytree(FIXTURES / "families" / "bert", tmp_path / "live")
    (folder / "golden.npz").unlink()
    checkpoint = open_checkpoint(folder)
    live = reference.ask_pytorch(checkpoint, Inputs([np.arange(3, 10), np.arange(5, 8)]))
    rows = against_golden(checkpoint, live)
    assert [row.quantity for row in rows] == ["logits", "pooled output"]
    assert all(row.maximum < 1e-4 for row in rows)
    reference.write_golden(tmp_path / "golden.npz", live)
    again = against_golden(checkpoint, reference.read_golden(tmp_path / "golden.npz"))
    assert again == rows


def test_e5_agrees_with_pytorch_which_cannot_read_it(e5_path, monkeypatch):
    checkpoint = open_checkpoint(e5_path)
    golden = reference.read_golden(FIXTURES / "multilingual_e5_small.npz")
    (row,) = against_golden(checkpoint, golden)
    assert row.quantity == "hidden states" and row.maximum < 1e-5 and row.positions == 69
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: True)
    assert "the format 'e5': name a golden file" in reference.why_not_live(checkpoint)


def test_gemma_agrees_with_pytorch(gemma_path):
    with np.load(FIXTURES / "gemma3_golden.npz") as arrays:
        texts = range(3)  # of the fourth just the last positions are kept
        columns = [
            np.broadcast_to(arrays["vocabulary_ids"], arrays[f"logits_{i}"].shape) for i in texts
        ]
        ids = [np.concatenate([arrays[f"top_ids_{i}"], columns[i]], axis=1) for i in texts]
        values = [
            np.concatenate([arrays[f"top_logits_{i}"], arrays[f"logits_{i}"]], axis=1)
            for i in texts
        ]
        golden = Reference(
            "a fixture",
            Inputs([arrays[f"tokens_{i}"] for i in texts]),
            logits=Logits(np.concatenate(values), np.concatenate(ids)),
        )
    (row,) = against_golden(open_checkpoint(gemma_path), golden)
    assert row.maximum < 2e-3 and row.top1 == row.top5 == 1 and row.kl is None
