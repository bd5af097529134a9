"""The cases of the benchmark on accelerators, and its PyTorch variant on packed rows."""

import numpy as np
import pytest

from benchmarks import accelerator, models
from benchmarks.trainers import Data, Ours, PyTorch, unpack


def test_packed_and_padded_cases_hold_the_same_examples():
    full, *reviews = accelerator.cases("encoder", [64], 2000)
    assert all((batch["segments_RxL"] > 0).all() for batch in full[2])
    (_, _, packed), (_, _, padded) = reviews
    shares = [np.mean([(b["segments_RxL"] > 0).mean() for b in part]) for part in (packed, padded)]
    assert shares[0] > 1.5 * shares[1]
    for one, other in zip(unpack(packed), unpack(padded), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]


@pytest.mark.parametrize("kind", ["encoder", "gemma"])
def test_pytorch_begins_alike_on_packed_rows(kind, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = accelerator.shrink(models.model_config(kind))
    config = models.write_checkpoint(model, tmp_path)
    config.optimizer.lr_table = (("backbone/embedder/.*", None), (".*", 1.0))
    _, _, batches = next(c for c in accelerator.cases(kind, [], 300) if c[1] == "pack")
    config.data.batch_size = batches[0]["labels_B"].size
    data = Data(("0", "1"), batches=batches)
    ours = Ours(config, data).begin()
    frozen = "embed_tokens|word_embeddings|pooler"
    theirs = PyTorch(config, data, tmp_path, ours, frozen=frozen, packed=True).begin()
    assert theirs.loss == pytest.approx(ours.loss, abs=1e-4)
    assert theirs.gradient_norm == pytest.approx(ours.gradient_norm, rel=1e-3)
