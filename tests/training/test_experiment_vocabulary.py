"""config.tokenizer.keep_others and new_pieces: from the config to a run that is restored."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.corpus.preparation import prepare
from input_pipeline.examples import Examples, object_array
from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.vocabulary import parts
from models.pretrained import load_pretrained, open_checkpoint, write_pretrained
from training.data import load_data
from training.experiment import build
from training.state import merge
from workflows.evaluate import evaluate
from workflows.export.export import export
from workflows.inspect.inspect import inspect
from workflows.integrate.integrate import integrate
from workflows.train import train

EMBEDDING = "backbone/embedder/embedding"
TEXTS = ["退机池包，太差", "我的退机池包", "价屏很好", "价屏！"]  # words the tokeniser doesn't know


@pytest.fixture
def config(tiny_config):
    tiny_config.tokenizer.update(keep_others=5, new_pieces=4)
    return tiny_config


def make(config, workdir):
    prepared, lines = prepare(config.data), []
    texts_N = object_array(TEXTS)
    training = Examples(texts_N, np.zeros(len(TEXTS), np.int32), np.arange(len(TEXTS)))
    return build(config, workdir, prepared.labels, lines.append, training), lines


def parameters(experiment):
    return {**experiment.initial, **{k: np.asarray(v) for k, v in experiment.frozen.items()}}


def test_rows_follow_their_pieces_and_new_ones_are_means(config, tmp_path):
    experiment, lines = make(config, tmp_path / "run")
    loaded = load_pretrained(config.model.checkpoint)
    own = load_tokenizer(config.model.checkpoint, marks="bos")
    old, new = loaded.params["embedder"]["embedding"], parameters(experiment)[EMBEDDING]
    pieces = experiment.tokenizer.processor.id_to_piece
    assert len(new) == experiment.tokenizer.vocab_size < own.vocab_size < len(old)
    for i in (0, 40, len(new) - 5):
        np.testing.assert_array_equal(new[i], old[own.processor.piece_to_id(pieces(i))])
    last = pieces(len(new) - 1)
    ids = own.piece_ids(last)
    assert len(ids) > 1
    np.testing.assert_allclose(new[-1], old[ids].mean(0), rtol=1e-6)
    text = "\n".join(lines)
    assert f"{len(new) - 4:,} of 500 pieces kept, 4 added" in text
    before, after = re.search(
        r"take ([\d.]+) tokens on average with .* and ([\d.]+) with", text
    ).groups()
    assert float(after) < float(before)


def test_template_and_label_words_keep_their_pieces(config, tmp_path):
    config.tokenizer.update(keep_others=0, new_pieces=0)
    config.data.template = "退货{text}包装\n"
    config.model.label_words = ("差", "五星")
    experiment, _ = make(config, tmp_path / "run")
    own = load_tokenizer(config.model.checkpoint, marks="bos")
    for text in ("退货", "包装\n", "差", "五星", *TEXTS):
        spelled = [
            [each.processor.id_to_piece(i) for i in each.piece_ids(text)]
            for each in (own, experiment.tokenizer)
        ]
        assert spelled[0] == spelled[1]


def test_logits_of_training_texts_are_those_of_the_whole_vocabulary(config, tmp_path):
    config.tokenizer.update(keep_others=0, new_pieces=0)
    trimmed, _ = make(config, tmp_path / "trimmed")
    config.tokenizer.keep_others = -1
    whole, _ = make(config, tmp_path / "whole")
    split = Examples(object_array(TEXTS), None, np.arange(len(TEXTS)))
    found, expected = (each.predict(each.put(each.initial), split, {}) for each in (trimmed, whole))
    assert trimmed.tokenizer.vocab_size < whole.tokenizer.vocab_size
    np.testing.assert_array_equal(found["logits_NxC"], expected["logits_NxC"])


def test_a_run_is_restored_without_its_training_texts(config, tmp_path, capsys):
    results = train(config, tmp_path / "run")
    said = capsys.readouterr().out
    for split in ("validation", "test"):  # which may have pieces that training had not
        texts, means = load_data(config).split(split).all_texts, []
        for file in (config.model.checkpoint, tmp_path / "run/tokenizer.model"):
            rows = load_tokenizer(file, marks=config.tokenizer.marks).encode_batch(texts)
            means.append(f"{np.mean(list(map(len, rows))):.1f}")
        assert (
            f"The first {len(texts)} {split} texts take {means[0]} tokens on average with the "
            f"checkpoint's vocabulary and {means[1]} with this one."
        ) in said
    value = evaluate(config, tmp_path / "run")["loss"]["value"]
    logged = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert value in [row["validation/loss"] for row in logged if "validation/loss" in row]
    integrated = integrate(config, tmp_path / "run")
    assert integrated["alpha"] == results["integration"]["alpha"]
    path = tmp_path / "run/tokenizer.model"
    path.rename(tmp_path / "elsewhere.model")
    with pytest.raises(FileNotFoundError, match="Put it back"):
        evaluate(config, tmp_path / "run")
    shutil.copy(f"{config.model.checkpoint}/tokenizer.model", path)
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        evaluate(config, tmp_path / "run")


def test_a_run_that_starts_from_another_takes_its_vocabulary(config, tmp_path):
    first, _ = make(config, tmp_path / "first")
    config.data.template = "说实话，{text}糟糕"  # other texts, other pieces
    second, _ = make(config, tmp_path / "second")
    config.resume_from = str(tmp_path / "first")
    third, _ = make(config, tmp_path / "third")
    assert third.fingerprints == first.fingerprints != second.fingerprints


def test_a_failed_start_leaves_no_vocabulary_behind_for_others(config, tmp_path):
    make(config, tmp_path / "run")
    config.tokenizer.new_pieces = 2
    experiment, _ = make(config, tmp_path / "run")
    stands_for = parts(
        Path(config.model.checkpoint, "tokenizer.model").read_bytes(), experiment.tokenizer.model
    )
    assert sum(len(ids) > 1 for ids in stands_for) == 2


def test_what_was_fitted_is_exported_as_a_checkpoint(config, tmp_path):
    experiment, _ = make(config, tmp_path / "run")
    backbone = {
        path.removeprefix("backbone/"): value
        for path, value in parameters(experiment).items()
        if path.startswith("backbone/")
    }
    write_pretrained(tmp_path / "export", experiment.model.config, merge(backbone))
    shutil.copy(tmp_path / "run/tokenizer.model", tmp_path / "export")
    config.model.checkpoint = str(tmp_path / "export")
    config.tokenizer.update(keep_others=-1, new_pieces=0)
    again, _ = make(config, tmp_path / "again")
    assert again.fingerprints["tokenizer"] == experiment.fingerprints["tokenizer"]
    np.testing.assert_array_equal(parameters(again)[EMBEDDING], parameters(experiment)[EMBEDDING])


def test_xlm_rs_ids_stay_in_place_from_the_file_to_the_export(
    config, write_e5, tmp_path, reviews, capsys
):
    write_e5(tmp_path / "e5.bin")
    config.model.update(checkpoint=str(tmp_path / "e5.bin"), head="linear", pooling="mean")
    config.model.label_words = ()
    config.tokenizer.new_pieces = 0
    config.train.update(duration="2 steps", integrate=False)
    config.export.formats = ("huggingface",)
    train(config, tmp_path / "run")
    tokenizer = load_tokenizer(tmp_path / "run/tokenizer.model")
    folder = export(config, tmp_path / "run") / "huggingface"
    again, texts = load_tokenizer(folder), [text for text, _ in reviews]
    assert tokenizer.vocab_size == open_checkpoint(folder).config.vocab_size < 1_802
    assert again.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert (again.start_ids, again.end_ids, again.mask_id) == ([0], [2], tokenizer.vocab_size - 1)
    inspect(config, tmp_path / "run")
    assert "<s>│" in capsys.readouterr().out


def test_a_vocabulary_learned_here_is_not_changed(config, tmp_path):
    config.tokenizer.model = "train"
    config.model.init = "scratch"
    with pytest.raises(ValueError, match="tokenizer.model='train' makes one: leave them out"):
        make(config, tmp_path / "run")


CHAT = (
    "{% for m in messages %}{{ '酒店' if m.role == 'user' else '早餐' }}{{ m.content }}"
    "{{ eos_token }}{% endfor %}"
)


def use_kind(config, kind, folder):
    """Has other words in the parts that a kind of task reads beside its texts."""
    (folder := folder / kind).mkdir()
    rows = [{"text": f"第{i}条", "label": "差" if i % 2 else "好"} for i in range(12)]
    config.model.update(head="linear", label_words=())
    config.data.update(files=str(folder / "data.jsonl"), template="服务{text}", label_column="")
    if kind == "embedding":
        rows = [row | {"pair": "房间", "negatives": ["早餐", "前台", "价格"]} for row in rows]
        config.data.update(pair_column="pair", negatives_column="negatives")
        config.embedding.update(passage_template="这家酒店{text}")
        config.task, config.model.pooling = "embedding", "mean"
    elif kind == "multiple_choice":
        rows = [
            row | {"text": f"房____第{i}条", "choices": ["间的", "前台"], "label": 1}
            for i, row in enumerate(rows)
        ]
        config.data.update(choices_column="choices", label_column="label", template="{text}")
        config.task = "multiple_choice"
    elif kind == "generation":
        roles = ("system", "user", "assistant", "user", "assistant")
        rows = [
            {"messages": [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]}
            for said in (("价格", "前台", "房间", f"那么第{i}条", "差") for i in range(12))
        ]
        config.data.update(messages_column="messages", template="{text}{pair}")
        config.task, config.generation.chat_template = "generation", CHAT
    else:
        config.data.update(label_column="label", template="这家酒店{text}早餐")
        config.model.update(head="label_words", label_words=("前台", "价格"))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "data.jsonl").write_text("".join(lines), "utf-8")


KINDS = ("classification", "embedding", "multiple_choice", "generation")


@pytest.mark.parametrize("kind", [*KINDS, "multi_task"])
def test_all_that_a_kind_of_task_reads_keeps_its_pieces(config, tmp_path, kind):
    config.tokenizer.update(keep_others=0, new_pieces=0)
    if kind == "multi_task":
        members = {name: config.copy_and_resolve_references() for name in KINDS}
        for name, member in members.items():
            use_kind(member, name, tmp_path)
        config.task, config.multi.members = kind, members
    else:
        use_kind(config, kind, tmp_path)
    data = load_data(config)
    trimmed = build(config, tmp_path / "run", data.labels, lambda _: None, data.split("train"))
    config.tokenizer.keep_others = -1
    whole = build(config, tmp_path / "whole", data.labels, lambda _: None, data.split("train"))
    assert trimmed.tokenizer.vocab_size < whole.tokenizer.vocab_size
    found, expected = ([], [])
    for pieces, each in ((found, trimmed), (expected, whole)):
        windows = each.windows(data.split("train"), training=True)
        pipelines = getattr(each.pipeline, "pipelines", {"": each.pipeline})
        parts = getattr(windows, "parts", {"": windows})
        for name, pipeline in pipelines.items():
            for encoded in pipeline.encoded(parts[name]):
                pieces += map(each.tokenizer.piece, encoded.tokens.tolist())
    assert found == expected and len(found) > 50
