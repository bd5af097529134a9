"""Spans of characters to tags and back, with every kind of tokeniser, whole and by characters."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from input_pipeline.batches import span_tags
from input_pipeline.tokenizers.character_tokenizer import CharacterTokenizer
from input_pipeline.tokenizers.loading import load_tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures"
_SPEC = importlib.util.spec_from_file_location("make_tokenizers", FIXTURES / "make_tokenizers.py")
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)
KINDS = [path.name for path in sorted((FIXTURES / "tokenizers").iterdir()) if path.is_dir()]
TEXT = st.text(
    st.sampled_from("中国人民。，他在说好的北京市iPhone 12　é㎡😀龘\n\u0301"), max_size=30
)
DRAWS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6), st.integers(0, 2)), max_size=8)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("span_tags")
    found = {}
    for kind in KINDS:
        make.restore(FIXTURES / "tokenizers" / kind, folder / kind)
        found[kind] = load_tokenizer(folder / kind)
        found[f"{kind} by characters"] = CharacterTokenizer(found[kind])
    return found


def tokens_of(tokenizer, text):
    """The characters of the tokens that have some."""
    [(_, offsets)] = tokenizer.encode_with_offsets([text])
    offsets = np.array(offsets, np.int64).reshape(-1, 2)
    return offsets[offsets[:, 0] < offsets[:, 1]]


def apart(draws, borders):
    """Spans between some of the borders that share no character: (index, count, label) drawn."""
    spans, index = [], 0
    for skip, count, label in draws:
        first, index = index + skip, index + skip + count
        if index < len(borders):
            spans.append((borders[first], borders[index], label))
    return np.array(spans, np.int64).reshape(-1, 3)


def there_and_back(spans, offsets, text):
    _, owners = span_tags.tokens_of(offsets, spans)
    runs = span_tags.from_tags(span_tags.to_tags(owners, spans[:, 2]))
    return span_tags.to_characters(runs, offsets, text, flat=True)


def trimmed(span, text):
    start, stop, label = span
    part = text[start:stop]
    if part.strip():
        start, stop = start + len(part) - len(part.lstrip()), stop - len(part) + len(part.rstrip())
    return start, stop, label


@pytest.mark.parametrize(
    "kind", [f"{kind}{how}" for kind in KINDS for how in ("", " by characters")]
)
@settings(max_examples=40)
@given(text=TEXT, draws=DRAWS)
def test_spans_between_tokens_come_back_as_they_were(tokenizers, kind, text, draws):
    offsets = tokens_of(tokenizers[kind], text)
    behind = np.maximum.accumulate(np.append(0, offsets[:, 1]))
    borders = [int(a) for a, b in zip(offsets[:, 0], behind[:-1], strict=True) if a >= b]
    spans = apart([(skip % 3, count, label) for skip, count, label in draws], [*borders, len(text)])
    # What a tokeniser drops has no token; a span ends with the last character that has one.
    ends = offsets[:, 1][None] * (offsets[:, 1] <= spans[:, 1:2])
    spans[:, 1] = ends.max(axis=1, initial=0)
    spans = np.array([trimmed(span, text) for span in spans.tolist()], np.int64).reshape(-1, 3)
    assert there_and_back(spans, offsets, text).tolist() == spans.tolist()
    assert span_tags.representable(spans, offsets, text, flat=True).all()
    assert span_tags.representable(spans, offsets, text, flat=False).all()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=TEXT, draws=DRAWS)
def test_any_span_is_represented_or_counted(tokenizers, kind, text, draws):
    """Whatever the borders, what comes back is in order, in the text and apart."""
    offsets = tokens_of(tokenizers[kind], text)
    spans = apart([(skip % 3, count, label) for skip, count, label in draws], range(len(text) + 1))
    back = there_and_back(spans, offsets, text)
    found = back[back[:, 0] < back[:, 1]]
    assert (found[1:, 0] >= found[:-1, 1]).all()
    assert not len(found) or (found[0, 0] >= 0 and found[-1, 1] <= len(text))
    kept = span_tags.representable(spans, offsets, text, flat=True)
    assert set(map(tuple, spans[kept].tolist())) <= set(map(tuple, back.tolist()))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(text=TEXT)
@example(text="龘\u0301")
def test_by_characters_no_token_holds_two_chinese_characters(tokenizers, kind, text):
    by_characters = tokenizers[f"{kind} by characters"]
    [(ids, offsets)] = by_characters.encode_with_offsets([text])
    assert by_characters.encode_batch([text]) == [ids]
    for start, stop in offsets:
        assert sum("\u4e00" <= c <= "\u9fff" for c in text[start:stop]) <= 1  # and its marks
    covered = {i for span in offsets for i in range(*span)}
    whole = tokenizers[kind].encode_with_offsets([text])[0][1]
    assert covered >= {i for span in whole for i in range(*span) if "\u4e00" <= text[i] <= "\u9fff"}


def test_what_a_merged_token_hides_is_counted():
    """The token 人民 goes to the first of 中人 and 民大; 。他 hides where 他 starts."""
    offsets = np.array([[0, 1], [1, 3], [3, 4]])
    spans = np.array([[0, 2, 0], [2, 4, 1]])
    assert span_tags.representable(spans, offsets, "中人民大", flat=True).tolist() == [False, False]
    assert there_and_back(spans, offsets, "中人民大").tolist() == [[0, 3, 0], [3, 4, 1]]
    assert not span_tags.representable(np.array([[2, 3, 0]]), offsets, "了。他说", flat=True).any()


@given(st.integers(1, 3), st.lists(st.integers(0, 12), max_size=12))
def test_legal_tags_are_those_that_spans_have(labels, tags):
    """A chain is legal exactly if reading it and writing the spans gives it back."""
    tags = np.array([tag % span_tags.num_tags(labels) for tag in tags], int)
    follows, starts, ends = span_tags.allowed(labels)
    legal = not len(tags) or (
        starts[tags[0]] and ends[tags[-1]] and follows[tags[:-1], tags[1:]].all()
    )
    runs = span_tags.from_tags(tags)
    owners = np.full(len(tags), -1)
    for index, (first, last, _) in enumerate(runs.tolist()):
        owners[first : last + 1] = index
    written = span_tags.to_tags(owners, runs[:, 2])
    assert legal == (written.tolist() == tags.tolist())
