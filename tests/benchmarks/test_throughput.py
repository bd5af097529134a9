"""The training benchmark: it measures what it says, on the same training for all contestants."""

import math
import types

import numpy as np
import pytest

from benchmarks import throughput, timing
from benchmarks.timing import OURS, PYTORCH
from benchmarks.trainers import Block, First, Ours, PyTorch, unpack


@pytest.fixture
def config(tiny_config):
    tiny_config.layout.max_shapes = 1  # no block is run again for a compilation
    tiny_config.data.max_train_examples = 32
    tiny_config.optimizer.lr_table = (("backbone/embedder/.*", None), (".*", 1.0))
    return tiny_config


@pytest.fixture
def batches(config, tmp_path):
    """What a machine without TensorFlow is given: four batches from a file."""
    throughput.write_batches(tmp_path / "batches.npz", config, 4)
    return throughput.read_batches(tmp_path / "batches.npz", config)


def test_ours_trains_alike_from_the_pipeline_and_from_a_file_and_counts_every_token(
    config, batches
):
    live = Ours(config, throughput.read_data(config))
    stored = Ours(config, batches)
    firsts = [trainer.begin()._replace(head=None) for trainer in (live, stored)]
    assert firsts[0] == firsts[1]
    block = live.block(3)
    examples = [ids for ids, _, _ in unpack(batches.batches[1:4])]
    assert block.lengths.tolist() == list(map(len, examples))
    assert block.positions == sum(batch["tokens_RxL"].size for batch in batches.batches[1:4])
    assert stored.block(3).lengths.tolist() == block.lengths.tolist()


@pytest.mark.long
def test_a_process_is_measured_and_shown_without_pytorch(config, batches, monkeypatch, capsys):
    monkeypatch.setattr(timing, "find_spec", lambda name: None)
    workers, blocks = throughput.measure(config, batches, steps=1, repeats=2)
    throughput.show(workers, blocks, "float32")
    assert len(workers) == 1 and len(blocks[OURS]) == 2
    assert not workers[0].process.is_alive()
    shown = capsys.readouterr().out
    assert "No PyTorch rows without torch and transformers" in shown
    assert "| ours, float32 |" in shown
    row = summary(workers[0], workers[0].first.model, blocks)
    assert row["peak memory, GiB"] > 50 / 2**10 and row["first step after, s"] > 0.5


def test_pytorch_begins_with_the_same_loss_and_gradient(config, batches, tiny_checkpoint):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    ours = Ours(config, batches).begin()
    peer = PyTorch(config, batches, tiny_checkpoint, ours, frozen="embed_tokens")
    theirs = peer.begin()
    assert theirs.loss == pytest.approx(ours.loss, abs=1e-4)
    assert theirs.gradient_norm == pytest.approx(ours.gradient_norm, rel=1e-3)
    assert peer.block(1).lengths.max() <= config.layout.max_length


def test_another_batch_size_than_the_files_is_refused(config, batches, tmp_path):
    config.data.batch_size = 4
    with pytest.raises(ValueError, match=r"batches of 8 examples.*--config.data.batch_size=8"):
        throughput.read_batches(tmp_path / "batches.npz", config)
    with pytest.raises(FileNotFoundError, match="--write_batches"):
        throughput.read_batches(tmp_path / "other.npz", config)


@pytest.mark.parametrize(("loss", "gradient_norm"), [(0.72, 1.0), (0.7, math.nan), (0.7, 1.1)])
def test_another_loss_or_gradient_at_the_first_step_is_refused(loss, gradient_norm):
    ours, theirs = First(0.7, 1.0, [0], "cpu"), First(loss, gradient_norm, [0], "cpu")
    throughput.compare_first(PYTORCH, ours, ours, dtype="float32")
    with pytest.raises(ValueError, match="do not train the same model"):
        throughput.compare_first(PYTORCH, theirs, ours, dtype="float32")


def summary(worker, model, blocks, dtype="bfloat16"):
    numbers = throughput.summarise(worker, model, blocks, dtype)
    return dict(zip(throughput.COLUMNS, numbers, strict=True))


def test_the_numbers_of_a_row_add_up():
    model = {"matmul_params": 100, "attention_width": 0, "windows": (0,), "causal": True}

    def worker(name, device):
        return types.SimpleNamespace(name=name, first=First(0.7, 1.0, [0], device), seconds=3.0)

    def blocks_of(seconds, positions):
        return [Block(second, np.array([10, 30]), positions, 2**20) for second in seconds]

    workers = worker(OURS, "NVIDIA H100 80GB HBM3"), worker(PYTORCH, "cpu")
    blocks = {OURS: blocks_of((1.0, 2.0, 4.0), 50), PYTORCH: blocks_of((3.0, 2.0, 9.0), 80)}
    ours, theirs = (summary(worker, model, blocks) for worker in workers)
    assert ours["real tokens/s"] == 20 and ours["examples/s"] == 1
    assert ours["padding"] == pytest.approx(0.2)
    assert theirs["padding"] == pytest.approx(0.5)
    assert ours["x PyTorch"] == pytest.approx(2.25)  # the median of 3, 1 and 2.25
    assert theirs["x PyTorch"] == 1
    assert ours["MFU"] == pytest.approx(6 * 100 * 40 / 2 / 989e12)
    assert ours["MFU, padding too"] == pytest.approx(ours["MFU"] / 0.8)
    assert theirs["MFU"] is theirs["MFU, padding too"] is None
    assert summary(workers[0], model, {OURS: blocks[OURS]})["x PyTorch"] is None


def test_model_flops_count_each_visible_pair_once():
    lengths, windows = np.array([1, 5, 9]), (4, 0, 100)
    pairs = sum(
        math.prod((query >= key, query - key < (window or math.inf)))
        for window in windows
        for length in lengths
        for query in range(length)
        for key in range(length)
    )
    model = {"matmul_params": 7, "attention_width": 3, "windows": windows, "causal": True}
    assert throughput.model_flops(lengths, model) == 6 * 7 * 15 + 12 * 3 * pairs
    encoder = model | {"windows": (0,), "causal": False}
    assert throughput.model_flops(lengths, encoder) == 6 * 7 * 15 + 12 * 3 * (1 + 25 + 81)
