"""BERT's architecture with XLM-R's tokeniser, from the folder to an export: as multilingual-e5."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.vocabulary import train_tokenizer
from models.backbone import parameter_shapes
from models.bert import BertConfig
from models.pretrained import write_pretrained
from training.data import load_data
from training.experiment import build
from workflows.export import huggingface as export_huggingface

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "fixtures" / "tokenizers" / "xlm_roberta" / "sentencepiece.bpe.model"


@pytest.fixture
def config(tiny_config, tmp_path):
    folder = tmp_path / "e5"
    sizes = {"vocab_size": 1837, "width": 16, "embedding_size": 16, "hidden": 24, "num_heads": 2}
    layers = {"num_layers": 1, "num_distinct_layers": 1, "max_length": 80}
    shapes = BertConfig(model_type="bert", **sizes, **layers)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype("f4"), parameter_shapes(shapes)
    )
    fields = {"pad_token_id": 0, "tokenizer_class": "XLMRobertaTokenizer"}
    write_pretrained(folder, shapes, params, fields=fields)
    (folder / MODEL.name).write_bytes(MODEL.read_bytes())
    tiny_config.data.template = "query: {text}"
    tiny_config.model.update(checkpoint=str(folder), head="linear", pooling="mean", label_words=())
    return tiny_config


def test_what_contradicts_the_tokenizer_is_said_and_another_tokenizer_refused(
    config, write_config, tmp_path, reviews
):
    path = write_config(config, tmp_path / "config.py")
    command = [sys.executable, "main.py", f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    run = subprocess.run(
        [*command, "--mode=inspect"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "has pad_token_id=0, but that piece is 1 (<pad>) for the tokeniser" in run.stdout
    assert "35 rows more than the tokeniser has pieces (1,802); no text reaches" in run.stdout
    other = tmp_path / "other.model"
    train_tokenizer([text for text, _ in reviews], other, vocab_size=500)
    config.tokenizer.model = str(other)
    with pytest.raises(ValueError, match="starts with <pad>, <eos>, <bos>, without <s>"):
        build(config, tmp_path / "run", ("bad", "good"), lambda _: None)


@pytest.mark.parametrize("keep_others", [-1, 20])
def test_an_export_is_read_with_the_same_ids(config, tmp_path, reviews, keep_others):
    config.tokenizer.keep_others = keep_others
    data = load_data(config)
    train = data.split("train")
    experiment = build(config, tmp_path / "run", data.labels, lambda _: None, train)
    tokenizer, folder = experiment.tokenizer, tmp_path / "out"
    folder.mkdir()
    params = {path: np.asarray(v) for path, v in experiment.put(experiment.initial).items()}
    params |= {path: np.asarray(value) for path, value in experiment.frozen.items()}
    export_huggingface.write(experiment, params, folder, "a model")
    again = load_tokenizer(folder)
    texts = [text for text, _ in reviews]
    assert again.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert (again.start_ids, again.end_ids) == (tokenizer.start_ids, tokenizer.end_ids)
    assert [again.piece(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "XLMRobertaTokenizer"
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 1
    assert (again.vocab_size == 1802) == (keep_others < 0)
