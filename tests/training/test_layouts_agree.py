"""Layout changes cost, never results: loss and gradients of pad, bucket and pack agree."""

import jax
import numpy as np
import pytest

from input_pipeline.corpus.preparation import load_split, prepare
from training.experiment import build
from training.sharding import put_batch


def loss_and_gradients(config, workdir, kind):
    """Of the first steps' batches, with normal-sized weights everywhere."""
    config.layout.kind = kind
    prepared = prepare(config.data)
    examples = load_split(prepared, "train", limit=config.data.max_train_examples)
    experiment = build(config, workdir, prepared.labels, lambda line: None)
    experiment.pipeline.plan(examples)
    batches = experiment.pipeline.train(examples, first_example=0)

    @jax.jit
    def step(params, batch):
        def loss(params):
            outputs = experiment.apply({**experiment.frozen, **params}, batch)
            total, weight, _ = experiment.task.loss(outputs, batch)
            return total / weight

        return jax.value_and_grad(loss)(params)

    found, shapes, ids = [], set(), []
    for _ in range(3):
        batch = next(batches)
        part = {name: array[0] for name, array in batch.items()}
        shapes.add(part["tokens_RxL"].shape)
        ids.append(part["ids_B"].tolist())
        found.append(step(experiment.put(experiment.initial), put_batch(part, experiment.mesh)))
    return jax.device_get(found), shapes, ids


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pad_equals_bucket_equals_pack(tiny_config, tmp_path, pooling):
    tiny_config.model.pooling = pooling
    tiny_config.model.head = "linear"
    results = {
        kind: loss_and_gradients(tiny_config.copy_and_resolve_references(), tmp_path, kind)
        for kind in ("pad", "bucket", "pack")
    }
    reference, pad_shapes, pad_ids = results["pad"]
    for kind in ("bucket", "pack"):
        found, shapes, ids = results[kind]
        assert ids == pad_ids
        assert shapes != pad_shapes, "the layouts must differ for this to prove anything"
        for (loss, gradients), (other_loss, others) in zip(found, reference, strict=True):
            assert loss == pytest.approx(other_loss, rel=1e-5)
            for path, gradient in gradients.items():
                difference = np.linalg.norm(gradient - others[path])
                assert difference <= 1e-5 * np.linalg.norm(others[path]), path
