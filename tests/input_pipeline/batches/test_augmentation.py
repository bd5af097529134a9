"""Augmentation: what is drawn, how often, what the draw depends on, and what it leaves whole."""

import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from input_pipeline.batches.augmentation import Augmenter
from input_pipeline.batches.augmentation_tables import CHARACTER_OPS, OPS, PUNCTUATION, WORD_OPS
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.hashing import numpy_keys, numpy_unit
from input_pipeline.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

MARKS = re.compile("[" + "".join(PUNCTUATION) + "]")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SENTENCE = "这家酒店的服务非常好，房间也很干净，下次还会再来住。"
HAN = "".join(chr(0x4E00 + place) for place in range(500))
LABELS = ("人", "地", "机构")


def two_by_two(texts):
    """Word boundaries: every second character."""
    return Ragged.of([[*range(2, len(text), 2), len(text)] if text else [] for text in texts])


def make(texts, *, ids=None, pairs=None, spans=None, labels=None, words=True):
    return Examples(
        texts_N=object_array(texts),
        labels_N=None if labels is None else np.array(labels, np.int32),
        ids_N=np.arange(len(texts)) if ids is None else np.array(ids),
        pairs_N=None if pairs is None else object_array(pairs),
        spans=None if spans is None else Ragged.of(spans, width=3),
        span_labels=LABELS if spans is not None else (),
        words=two_by_two(texts) if words else None,
        pair_words=two_by_two(pairs) if words and pairs is not None else None,
    )


@pytest.fixture(scope="session")
def lexicon(tmp_path_factory):
    """Synonyms of the words that HAN and SENTENCE consist of, of other lengths than theirs."""
    path = tmp_path_factory.mktemp("lexicon") / "synonyms.txt"
    words = [HAN[i : i + 2] for i in range(0, 500, 2)] + [
        SENTENCE[i : i + 2] for i in range(0, 26, 2)
    ]
    path.write_text("\n".join(f"{word} 丙{word}丁 Ж" for word in words), "utf-8")
    return str(path)


def augmenter(examples, *, seed=0, share=1.0, synonyms="", **rates):
    config = common.get_config().augmentation
    config.update(share=share, synonyms=synonyms)
    config.update({f"{name}_rate": rate for name, rate in rates.items()})
    return Augmenter(examples, config, seed=seed)


def apply(augment, indices, *, epoch=0, ops=None):
    """Returns texts, pairs, and spans as (spelling, label) of each text."""
    indices = tf.constant(list(indices), tf.int64)
    out = augment(indices, tf.fill(tf.shape(indices), tf.constant(epoch, tf.int64)), ops=ops)
    texts = [text.decode() for text in out.texts_B.numpy()]
    pairs = None if out.pairs_B is None else [text.decode() for text in out.pairs_B.numpy()]
    spans = None
    if out.spans is not None:
        values, splits = (part.numpy() for part in out.spans)
        rows = [values[a:b] for a, b in itertools.pairwise(splits)]
        spans = [
            [(text[start:stop], label) for start, stop, label in row.tolist()]
            for text, row in zip(texts, rows, strict=True)
        ]
    return texts, pairs, spans


def run(texts, *, epoch=0, ids=None, **options):
    return apply(augmenter(make(texts, ids=ids), **options), range(len(texts)), epoch=epoch)[0]


def some_rates(rate, *, without=("mixing",)):
    """A rate for every op but some."""
    return {name: rate for name in OPS if name not in without}


@pytest.fixture(scope="session")
def rich():
    """Texts with second texts and spans: nested, overlapping, at either end, next to each other."""
    texts = [
        SENTENCE,
        "北京大学的张三昨天去了上海。",
        "",
        "好",
        "张三李四王五",
        "a😀e\u0301か\U00020000" * 3,
    ]
    spans = [
        [[2, 4, 2], [16, 18, 1]],
        [[0, 4, 2], [0, 2, 1], [5, 7, 0], [11, 13, 1]],
        [],
        [],
        [[0, 2, 0], [2, 4, 0], [4, 6, 0]],
        [[0, 3, 0], [2, 5, 1], [12, 15, 0]],
    ]
    return make(texts, pairs=[*texts[1:], texts[0]], spans=spans)


@settings(max_examples=20)
@given(st.lists(TEXT, min_size=1, max_size=5))
def test_without_an_op_texts_stay_as_they_are(texts):
    assert run(texts) == texts
    assert apply(augmenter(make(texts), mask=0.5), range(len(texts)), ops=())[0] == texts
    assert apply(augmenter(make(texts), word_swap=0.5), range(len(texts)), ops=())[0] == texts


def test_pairs_and_spans_pass_when_nothing_is_on(rich, lexicon):
    plain = apply(augmenter(rich), range(6))
    assert plain[:2] == (rich.texts_N.tolist(), rich.pairs_N.tolist())
    assert plain[2][1] == [("北京大学", 2), ("北京", 1), ("张三", 0), ("上海", 1)]
    busy = augmenter(rich, synonyms=lexicon, **some_rates(0.3))
    assert apply(busy, range(6), ops=()) == plain


def test_a_draw_does_not_depend_on_the_batch(rich, lexicon):
    augment = augmenter(rich, share=0.9, synonyms=lexicon, **some_rates(0.2))
    for epoch in range(5):
        whole = apply(augment, range(6), epoch=epoch)
        order = [5, 0, 3, 2, 4, 1, 0]
        for part, shuffled in zip(whole, apply(augment, order, epoch=epoch), strict=True):
            assert shuffled == [part[i] for i in order]
        for i in range(6):
            alone = apply(augment, [i], epoch=epoch)
            assert [part[0] for part in alone] == [part[i] for part in whole]


def test_mixing_does_not_depend_on_the_batch():
    texts = [HAN[i : i + 10] for i in range(40)]
    augment = augmenter(make(texts, labels=[0, 1] * 20), mixing=0.5, word_swap=0.3, deletion=0.2)
    whole = apply(augment, range(40))[0]
    assert apply(augment, reversed(range(40)))[0] == whole[::-1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"ids": range(8, 16)}])
@pytest.mark.parametrize("op", ["deletion", "homophone", "word_swap", "cutoff"])
def test_seed_epoch_and_id_each_change_the_draw(change, op):
    texts = [SENTENCE] * 8
    first, second = run(texts, **{op: 0.3}), run(texts, **{op: 0.3}, **change)
    assert len(set(first)) > 5
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 5


def test_rates_are_met(lexicon):
    """Each is within five standard errors of what it says."""
    texts, total = [HAN] * 100, 50_000

    def check(found, rate, count):
        assert found / count == pytest.approx(rate, abs=5 * (rate / count) ** 0.5)

    check(total - sum(map(len, run(texts, deletion=0.1))), 0.1, total)
    marks = "".join(MARKS.findall("".join(run(texts, punctuation=0.2))))
    check(len(marks), 0.2, total)
    for mark in PUNCTUATION:
        check(marks.count(mark), 1 / 6, len(marks))
    check("".join(run(texts, mask=0.3)).count("□"), 0.3, total)
    check(sum(map(len, run(texts, insertion=0.1))) - total, 0.1, total)
    swapped = sum(a != b for text in run(texts, swap=0.2) for a, b in zip(text, HAN, strict=True))
    check(swapped, 0.2 * (1 - 1 / 500), total)
    for op in ("homophone", "shape"):  # of characters that have any
        text = "清情请晴猜靖精静" * 500
        (changed,) = run([text], **{op: 0.1})
        check(sum(a != b for a, b in zip(changed, text, strict=True)), 0.1, len(text))
    check((total - sum(map(len, run(texts, word_deletion=0.1)))) / 2, 0.1, total / 2)
    synonyms = "".join(run(texts, synonym=0.1, synonyms=lexicon))
    check(synonyms.count("Ж") + synonyms.count("丁"), 0.1, total / 2)
    inserted = "".join(run(texts, word_insertion=0.1, synonyms=lexicon))
    check(inserted.count("Ж") + inserted.count("丙"), 0.1, total / 2)
    check(sum(text != HAN for text in run(texts * 20, deletion=0.1, share=0.3)), 0.3, 2000)


def test_characters_places_and_examples_are_drawn_independently():
    kept = np.zeros((400, 100), bool)
    for row, text in enumerate(run([HAN[:100]] * 400, deletion=0.5)):
        kept[row, [HAN.index(character) for character in text]] = True
    correlation = np.corrcoef(kept.T) - np.eye(100)
    assert abs(correlation).max() < 0.25  # standard deviation 0.05, 4,950 pairs
    assert abs(np.corrcoef(kept) - np.eye(400)).max() < 0.55  # standard deviation 0.1, 79,800 pairs


def test_deletion_does_not_move_punctuation():
    """Each is drawn from a stream of its own: the marks stay where they were."""
    (inserted,), (both,) = run([HAN], punctuation=0.2), run([HAN], punctuation=0.2, deletion=0.2)
    assert MARKS.findall(inserted) == MARKS.findall(both)
    assert len(both) < len(inserted)


@settings(max_examples=20)
@given(TEXT.filter(len), st.integers(0, 100))
def test_what_only_takes_away_keeps_a_subsequence_of_at_least_one_character(text, epoch):
    for op in ("deletion", "word_deletion", "cutoff"):
        for rate in (0.5, 0.999):
            (kept,) = run([text], epoch=epoch, **{op: rate})
            rest = iter(text)
            assert kept and all(character in rest for character in kept)
    (kept,) = run([text], epoch=epoch, word_deletion=0.999, cutoff=0.999, deletion=0.999)
    assert len(kept) == 1


@settings(max_examples=20)
@given(TEXT, st.integers(0, 100))
def test_what_moves_or_inserts_loses_no_character(text, epoch):
    """Emoji, characters beyond the basic plane, and marks that combine are characters as others."""
    for op in ("swap", "word_swap"):
        (moved,) = run([text], epoch=epoch, **{op: 0.5})
        assert sorted(moved) == sorted(text)
    (more,) = run([text], epoch=epoch, insertion=0.5)
    assert set(more) == set(text)
    rest = iter(more)
    assert all(character in rest for character in text)
    if not MARKS.search(text):
        (more,) = run([text], epoch=epoch, punctuation=0.5)
        assert MARKS.sub("", more) == text
    (same_length,) = run([text], epoch=epoch, mask=0.3, homophone=0.3, shape=0.3)
    assert len(same_length) == len(text)


def test_swaps_exchange_neighbours_and_never_overlap():
    for text in run([HAN] * 20, swap=0.9):
        moved = np.array([HAN.index(character) for character in text]) - np.arange(len(HAN))
        first = np.flatnonzero(moved == 1)
        assert set(moved) <= {-1, 0, 1} and (moved[first + 1] == -1).all()
        assert len(first) == (moved == -1).sum() > 150


def test_cutoff_takes_one_stretch_of_the_share():
    lengths = []
    for epoch in range(50):
        (text,) = run([HAN[:25]], epoch=epoch, cutoff=0.3)
        lengths.append(25 - len(text))
        cuts = [HAN[:start] + HAN[start + lengths[-1] : 25] for start in range(len(text) + 1)]
        assert text in cuts
    assert set(lengths) == {7, 8}  # 7.5 on average


def test_words_move_and_go_whole(lexicon):
    words = {HAN[i : i + 2] for i in range(0, 500, 2)}
    for op in ("word_swap", "word_deletion"):
        (text,) = run([HAN], **{op: 0.3})
        assert text != HAN and {text[i : i + 2] for i in range(0, len(text), 2)} <= words
    (text,) = run([HAN], synonym=0.5, synonyms=lexicon)
    assert {HAN.index(word) % 2 for word in re.findall("丙(..)丁", text)} == {0}
    for op in ("synonym", "word_insertion"):
        assert run(["天地"], **{op: 0.9}, synonyms=lexicon) == ["天地"]  # it has no synonyms


def test_what_an_op_put_in_stays(lexicon):
    (text,) = run([HAN], synonym=0.5, synonyms=lexicon, deletion=0.9, mask=0.9, swap=0.5)
    assert re.search("丙..丁", text) and "□" not in "".join(re.findall("丙..丁", text))


def test_mixing_joins_halves_of_one_label():
    texts = [letter * size for letter in "甲乙丙丁戊己" for size in (4, 7)]
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, -1, -1]
    augment = augmenter(make(texts, labels=labels, words=False), mixing=0.9)
    seen = set()
    for epoch in range(40):
        for i, text in enumerate(apply(augment, range(12), epoch=epoch)[0]):
            if text != texts[i]:
                half = (len(texts[i]) + 1) // 2
                partners = [
                    k for k, other in enumerate(texts) if text[half:] == other[len(other) // 2 :]
                ]
                assert text[:half] == texts[i][:half] and partners
                assert any(labels[k] == labels[i] >= 0 for k in partners)
                seen.add(i)
    assert seen == set(range(10))  # masked examples, the last two, stay alone


MOVING = (*WORD_OPS, *CHARACTER_OPS)


@pytest.mark.parametrize(
    "ops", [(op,) for op in MOVING] + [MOVING], ids=lambda ops: "+".join(ops)[:20]
)
def test_spans_spell_the_same_wherever_they_move(ops, rich, lexicon):
    plain = apply(augmenter(rich), range(6))
    augment = augmenter(rich, synonyms=lexicon, **dict.fromkeys(ops, 0.5))
    changed = 0
    for epoch in range(10):
        texts, _, spans = apply(augment, range(6), epoch=epoch)
        assert spans == plain[2]
        assert texts[2] == "" and texts[4] == plain[0][4]  # spans cover all of the fifth
        changed += texts != plain[0]
    assert changed > 5


@settings(max_examples=40)
@given(st.data())
def test_random_spans_follow_any_chain_of_ops(data):
    text = data.draw(TEXT.filter(lambda text: len(text) > 1))
    places = st.integers(0, len(text))
    cuts = data.draw(st.lists(st.tuples(places, places), max_size=4))
    spans = [[a, b, data.draw(st.integers(0, 2))] for a, b in map(sorted, cuts) if a < b]
    spans.append([0, 1, 0])
    if all(any(a <= i < b for a, b, _ in spans) for i in range(len(text))):
        spans = [[0, 1, 0]]
    ops = data.draw(st.sets(st.sampled_from(MOVING)))
    rates = {op: 0.4 for op in ops if op not in ("synonym", "word_insertion")}
    augment = augmenter(make([text, "另一个例子"], spans=[spans, [[0, 2, 1]]]), **rates)
    for epoch in range(2):
        _, _, moved = apply(augment, [1, 0], epoch=epoch)
        assert moved[1] == [(text[a:b], label) for a, b, label in spans]


def test_entities_give_way_to_mentions_of_their_label(rich, lexicon):
    mentions = {(text, label) for row in apply(augmenter(rich), range(6))[2] for text, label in row}
    for more in ({}, some_rates(0.2, without=("mixing", "homophone", "shape", "mask"))):
        augment = augmenter(rich, synonyms=lexicon, **(more | {"entity": 0.7}))
        seen = set()
        for epoch in range(20):
            _, _, spans = apply(augment, range(6), epoch=epoch)
            assert set().union(*spans) <= mentions
            assert spans[1][:2] == [("北京大学", 2), ("北京", 1)]  # they overlap
            assert [text for text, _ in spans[5][:2]] == ["a😀e", "e\u0301か"]
            seen |= {spans[1][2], spans[4][0]}
        assert len(seen) > 3


def test_substitution_acts_inside_spans_and_keeps_their_places(rich):
    augment = augmenter(rich, mask=0.5, homophone=0.3, shape=0.3)
    texts, _, spans = apply(augment, range(6))
    plain = apply(augmenter(rich), range(6))
    assert list(map(len, texts)) == list(map(len, plain[0]))
    assert spans != plain[2] and [list(map(len, row)) for row in spans] == [
        list(map(len, row)) for row in plain[2]
    ]


def test_the_texts_of_a_pair_are_drawn_apart():
    texts = [HAN[:200]] * 4 + [""]
    examples = make(texts, pairs=texts)
    for share in (1.0, 0.5):
        augment = augmenter(examples, share=share, deletion=0.2, word_swap=0.2)
        first, second, _ = apply(augment, range(5))
        assert first[4] == second[4] == ""
        for text, a, b in zip(texts[:4], first, second, strict=False):
            assert len({text, a, b}) == 3 or (share < 1 and a == b == text)
    assert apply(augmenter(examples, deletion=0.2), range(5))[0] == run(texts, deletion=0.2)


def test_the_graph_is_traced_once_and_serves_every_batch_size(rich, lexicon):
    augment, traces = augmenter(rich, synonyms=lexicon, **some_rates(0.2)), []

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)] * 2)
    def graph(indices, epochs):
        traces.append(1)
        return augment(indices, epochs).texts_B

    for size in (1, 6, 3, 0):
        got = graph(tf.range(size, dtype=tf.int64), tf.zeros([size], tf.int64)).numpy()
        assert [text.decode() for text in got] == (apply(augment, range(size))[0] if size else [])
    assert len(traces) == 1
    batches = tf.data.Dataset.range(6).batch(4).map(lambda i: augment(i, tf.zeros_like(i)).texts_B)
    texts = [text.decode() for batch in batches for text in batch.numpy()]
    assert texts == apply(augment, range(6))[0]


def test_numpy_draws_what_the_graph_draws():
    ids, epochs = np.arange(1000) * 7, np.arange(1000) % 3
    draws = numpy_unit(numpy_keys(5, epochs, ids, "share"))
    assert abs(draws.mean() - 0.5) < 0.05 and draws.min() >= 0 and draws.max() < 1
    examples = make([HAN[:60]] * 1000, ids=ids)
    for share in (0.1, 0.7):
        augment = augmenter(examples, seed=5, share=share, deletion=0.5)
        out = augment(tf.range(1000, dtype=tf.int64), tf.constant(epochs, tf.int64))
        changed = np.array([text.decode() != HAN[:60] for text in out.texts_B.numpy()])
        np.testing.assert_array_equal(changed, draws < share)


def test_ops_can_be_followed_one_by_one(lexicon):
    rates = some_rates(0.1, without=("mixing", "entity"))
    augment = augmenter(make([HAN]), synonyms=lexicon, **rates)
    assert augment.ops == tuple(op for op in OPS if op in rates)
    texts = [apply(augment, [0], ops=augment.ops[:n])[0][0] for n in range(len(augment.ops) + 1)]
    assert texts[0] == HAN and texts[-1] == apply(augment, [0])[0][0]
    assert all(a != b for a, b in itertools.pairwise(texts))
    assert not augmenter(make([HAN])).ops


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_swap": 0.1}, "word_swap_rate=0.1 needs .*: set data.words='jieba'"),
        ({"synonym": 0.1}, "synonym_rate=0.1 needs .*: set data.words='jieba'"),
        ({"entity": 0.1}, "entity_rate=0.1 replaces spans"),
        ({"mixing": 0.1}, "mixing_rate=0.1 joins .* no labels"),
    ],
)
def test_knobs_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        augmenter(make([SENTENCE], words=False), **options)


def test_ops_that_the_examples_do_not_allow_are_refused():
    spanned = make(["张三", "去了"], spans=[[[0, 2, 0]], [[0, 1, 0], [1, 2, 1]]], labels=[0, 0])
    with pytest.raises(ValueError, match="mixing_rate=0.5 joins .* does not suit spans"):
        augmenter(spanned, mixing=0.5)
    with pytest.raises(ValueError, match="deletion_rate=0.1 can change nothing.*entity_rate"):
        augmenter(spanned, deletion=0.1)
    augmenter(spanned, mask=0.1, entity=0.1)
    with pytest.raises(ValueError, match="does not suit pairs of texts"):
        augmenter(make(["好"], pairs=["坏"], labels=[0]), mixing=0.5)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def sampler(request, reviews):
    """A tokeniser, and an alpha at which it draws something else than the best about as often."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text, _ in reviews]),
        model_writer=model,
        model_type=request.param,
        vocab_size=380,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), file="trained")
    return tokenizer, {"unigram": 0.01, "bpe": 0.2}[request.param]


def test_a_drawn_segmentation_depends_on_its_text_and_uniform_alone(sampler, reviews, tmp_path):
    sampler, alpha = sampler
    texts = [text for text, _ in reviews[:60]]
    draws = numpy_unit(numpy_keys(0, np.zeros(60, np.int64), np.arange(60), "segmentation"))
    options = {"size": 8, "alpha": alpha}
    whole = sampler.sample_batch(texts, draws, **options)
    assert sampler.sample_batch(texts[::-1], draws[::-1], **options) == whole[::-1]
    assert sampler.sample_batch([t.encode() for t in texts], draws, **options) == whole
    plain = sampler.encode_batch(texts)
    assert sum(a != b for a, b in zip(whole, plain, strict=True)) > 20
    assert [sampler.decode(ids) for ids in whole] == [sampler.decode(ids) for ids in plain]
    # In another process too: a run that is restarted draws the same.
    sampler.save(tmp_path)
    program = f"""
import numpy as np
from input_pipeline.tokenizers.loading import load_tokenizer
sampler = load_tokenizer({str(tmp_path)!r}, marks='none')
print(sampler.sample_batch({texts!r}, np.array({draws.tolist()!r}), **{options!r}))
"""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{whole}\n"


def test_a_bpe_tokeniser_that_strips_texts_cannot_be_drawn_from(reviews):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text, _ in reviews]),
        model_writer=model,
        model_type="bpe",
        vocab_size=380,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), file="trained")
    with pytest.raises(ValueError, match="changes the white space"):
        tokenizer.sample_batch(["好"], np.array([0.5]), size=8, alpha=0.1)
