"""Exported embedding models: read again, and by sentence-transformers, they give equal vectors."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from input_pipeline.tokenizers.loading import load_tokenizer
from training.experiment import build
from workflows.export.export import export
from workflows.export.huggingface import _write_marks
from workflows.predict import predict
from workflows.restoring import restore
from workflows.train import train
from workflows.vectors import Vectors

FILES = Path(__file__).parents[2] / "fixtures" / "tokenizers"
TEXTS = ("这家酒店的房间非常好", "我买的这个，电池太差了！", "价格")


@pytest.fixture(scope="module")
def exported(make_config, reviews, tmp_path_factory):
    """A trained run: its config, its folder and the export."""
    folder, config = tmp_path_factory.mktemp("embedding"), make_config()
    path = folder / "pairs.jsonl"
    rows = [{"text": text[:7], "pair": text} for text, _ in reviews[:80]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config.task = "embedding"
    config.data.update(files=str(path), pair_column="pair", label_column="", template="问：{text}")
    config.model.update(head="linear", pooling="last", label_words=())
    config.embedding.passage_template = "{text}"
    config.train.update(duration="5 steps", integrate=False)
    config.export.formats = ("huggingface",)
    train(config, folder / "run")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    return config, folder, export(config, folder / "run") / "huggingface"


def vectors(config, folder, workdir):
    config.predict.update(input=str(folder / "texts.txt"), output=str(folder / "out.jsonl"))
    predict(config, workdir)
    return np.load(folder / "out_vectors.npy")


def test_a_run_from_the_folder_starts_with_the_vectors_and_the_prompts(exported, tmp_path, capsys):
    config, folder, model = exported
    expected = vectors(config, folder, folder / "run")
    again = config.copy_and_resolve_references()
    again.model.update(checkpoint=str(model), pooling="auto")
    again.data.template, again.embedding.passage_template = "{text}", ""
    again.optimizer.learning_rate, again.train.duration = 1e-12, "1 step"
    train(again, tmp_path / "again")
    said = "huggingface says: last pooling, '问：' before a query, '' before a passage, 64 "
    assert said in capsys.readouterr().out
    found = vectors(again, folder, tmp_path / "again")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_auto_needs_a_folder_that_says_it(exported, tmp_path):
    config = exported[0].copy_and_resolve_references()
    config.model.pooling = "auto"
    with pytest.raises(ValueError, match="no folder of sentence-transformers"):
        train(config, tmp_path)


def test_sentence_transformers_gives_the_same_vectors(exported):
    library = pytest.importorskip("sentence_transformers", reason="needs the extra bench")
    config, folder, model = exported
    loaded = library.SentenceTransformer(str(model), device="cpu")
    found = loaded.encode(list(TEXTS), prompt_name="query", normalize_embeddings=True)
    np.testing.assert_allclose(found, vectors(config, folder, folder / "run"), atol=1e-5)


def test_the_tokeniser_of_the_folder_puts_the_marks_of_the_run(tmp_path):
    for before, marks in itertools.product(("none", "eos"), repeat=2):
        folder = tmp_path / before / marks
        shutil.copytree(FILES / "qwen2", folder)
        for kind in (before, marks):
            tokenizer = load_tokenizer(folder, marks=kind)
            _write_marks(tokenizer, folder)
        written = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = tokenizer.encode_batch(["价格"])[0]
        end_ids = [tokenizer.eos_id] * (marks == "eos")
        assert written.encode("价格").ids == ids + end_ids
        assert load_tokenizer(folder).end_ids == end_ids


def test_marks_that_the_files_cannot_say_are_refused():
    tokenizer = load_tokenizer(FILES / "bert", marks="none")
    with pytest.raises(ValueError, match="train with config.tokenizer.marks='auto'"):
        _write_marks(tokenizer, FILES / "bert")


def test_an_artefact_serves_the_vectors_of_either_side(exported, tmp_path):
    config, folder, _ = exported
    config = config.copy_and_resolve_references()
    config.export.update(formats=("stablehlo",), output=str(tmp_path))
    served = export(config, folder / "run") / "stablehlo"
    texts = (folder / "texts.txt").read_text("utf-8")
    expected, found = vectors(config, folder, folder / "run"), {}
    for side in ("", "passage"):
        command = [sys.executable, "serve.py", *side.split()]
        run = subprocess.run(command, cwd=served, input=texts, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        rows = [line.split("\t") for line in run.stdout.splitlines()]
        found[side] = np.array(rows, float)
    np.testing.assert_allclose(found[""], expected, atol=1e-5)
    # The other side is the same model behind another template.
    config.data.template = config.embedding.passage_template
    experiment = build(config, folder / "run", [], lambda line: None)
    other = Vectors(experiment, restore(experiment, folder / "run"))
    np.testing.assert_allclose(found["passage"], other(list(TEXTS), "passage"), atol=1e-5)
