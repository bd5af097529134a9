"""How alike are two sentences, 0 to 5: STS-B in Chinese by path, with multilingual-e5-small.

    for split in train dev; do
      { printf 'text\\tpair\\tlabel\\n'; cat DIR/$split.txt; } > $split.tsv
    done
    pip install -e '.[demo]' && python main.py --config=configs/sts_b.py --workdir=runs/sts_b

The published files have no header, which a table needs. Validation is a tenth of the training
pairs; the numbers are of the dev set, since the test set is not always at hand. `:runlocal` takes
about a minute.

Result: Spearman 80.4 ± 1.0 on dev, TF-IDF 16.4 ± 2.6 (docs/tasks.md). `:embedding` compares
vectors: 85.8 ± 0.7, before training 81.9 ± 0.9 (docs/embeddings.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None, 'embedding' (vectors) or 'runlocal'."""
    common.check_arg("sts_b", arg, "embedding")
    config = common.get_config()
    config.data.update(source="files", files="train.tsv", test_files="dev.tsv")
    config.data.update(pair_column="pair", label_kind="number")
    config.data.split.update(kind="given", validation=0.1)
    config.data.cleaning.label_conflicts = "keep"  # grades of one pair may differ
    config.data.template = "query: {text}{pair}"
    config.data.batch_size = 32
    config.data.max_validation_examples = 200
    config.classification.kind = "regression"
    config.layout.update(max_length=128, row_length=256)
    common.use_encoder(config)
    config.train.duration = "2 epochs"
    config.eval.metric = "spearman"
    config.eval.every = config.train.checkpoint_every = "50%"
    config.integrate.points = 6
    if arg == "embedding":
        config.task = "embedding"
        config.data.template = "query: {text}"
        config.model.head_start = "random"  # there is no head
        config.optimizer.learning_rate = 2e-5
    if arg == "runlocal":
        common.runlocal(config)
    return config
