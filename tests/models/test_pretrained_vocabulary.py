"""Embeddings that follow a vocabulary: the same hidden states, means for new pieces, an export."""

from pathlib import Path

import jax
import numpy as np
import pytest

from models.backbone import make_backbone
from models.decoder import Decoder
from models.pretrained import load_pretrained, open_checkpoint, write_pretrained
from models.pretrained.vocabulary import follow_vocabulary

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"

KEPT = [0, 1, 3, 7, 8, 20, 38]


def hidden(config, params, batch):
    return np.asarray(jax.jit(Decoder(config).apply)({"params": params}, *batch))


@pytest.fixture
def before(make_config, random_params):
    config = make_config()
    return config, random_params(config)


def test_texts_of_kept_pieces_have_the_same_hidden_states_to_the_bit(before, pack):
    config, params = follow_vocabulary(*before, [[i] for i in KEPT])
    tokens, positions, segments = pack([[5, 4], [7]], 10)
    tokens %= len(KEPT)
    old = hidden(*before, (np.array(KEPT)[tokens], positions, segments))
    np.testing.assert_array_equal(hidden(config, params, (tokens, positions, segments)), old)


@pytest.mark.parametrize("family", ["bert", "albert", "gemma3", "llama3", "t5_v1_0", "t5_v1_1"])
def test_whatever_has_an_entry_a_piece_follows_in_every_family(family):
    checkpoint = open_checkpoint(FAMILIES / family)
    before = checkpoint.config, checkpoint.read(checkpoint.parts)
    after = follow_vocabulary(*before, [[i] for i in KEPT[:-1]] + [[5, 6]])
    tokens = np.array([[1, 0, 5, 2, 4]])

    def logits(config, params, tokens):
        module, rest = make_backbone(config), (np.arange(5)[None], np.ones_like(tokens))
        call = jax.jit(
            lambda params, *batch: module.apply(
                {"params": params}, *batch, method=lambda module, *b: module.logits(module(*b))
            )
        )
        return np.asarray(call(params, tokens, *rest))

    old_BxLxV, new_BxLxV = logits(*before, np.array(KEPT)[tokens]), logits(*after, tokens)
    kept = KEPT[:-1]
    np.testing.assert_allclose(new_BxLxV[..., :-1], old_BxLxV[..., kept], atol=2e-5)
    if not checkpoint.config.model_type.startswith("gemma"):  # soft caps bend the mean
        mean_BxL = old_BxLxV[..., [5, 6]].mean(-1)
        np.testing.assert_allclose(new_BxLxV[..., -1], mean_BxL, atol=2e-5)
    assert after[0].vocab_size == len(KEPT)


def test_a_new_piece_starts_from_the_mean_of_its_parts(before):
    _, params = follow_vocabulary(*before, [[4], [4, 9, 9], [2, 3], [5]])
    old, new = (tree["embedder"]["embedding"] for tree in (before[1], params))
    np.testing.assert_array_equal(new[[0, 3]], old[[4, 5]])
    np.testing.assert_allclose(new[1], (old[4] + 2 * old[9]) / 3, rtol=1e-6)
    np.testing.assert_allclose(new[2], (old[2] + old[3]) / 2, rtol=1e-6)
    assert new.dtype == np.float32


def test_rows_of_padding_go_and_the_other_parameters_are_shared(before):
    config, params = follow_vocabulary(*before, [[i] for i in range(33)])
    assert before[0].vocab_size == 40
    assert config.vocab_size == 33
    assert params["embedder"]["embedding"].shape == (33, config.width)
    assert params["layer_0"]["mlp"]["up"]["kernel"] is before[1]["layer_0"]["mlp"]["up"]["kernel"]
    assert before[1]["embedder"]["embedding"].shape == (40, config.width)


def test_a_vocabulary_that_the_checkpoint_lacks_is_refused(before):
    with pytest.raises(ValueError, match="pieces 3 to 40, but .* embeddings for 40"):
        follow_vocabulary(*before, [[3], [39, 40]])


def test_what_was_changed_is_written_and_read_like_any_checkpoint(before, tmp_path):
    config, params = follow_vocabulary(*before, [[i] for i in KEPT] + [[4, 5]])
    write_pretrained(tmp_path, config, params)
    again = load_pretrained(tmp_path)
    assert again.config.vocab_size == 8
    np.testing.assert_array_equal(
        again.params["embedder"]["embedding"], params["embedder"]["embedding"]
    )
