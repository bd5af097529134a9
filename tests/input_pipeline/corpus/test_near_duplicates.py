"""Near-duplicates: no false pair, next to none missed, whatever the order, and no blow-up."""

import random

import datasketch
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.corpus import near_duplicates
from input_pipeline.corpus.near_duplicates import comparison_form, originals

CHARACTERS = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
)


def sentences(count, *, seed=0, length=40):
    rng = random.Random(seed)
    return ["".join(rng.choices(CHARACTERS, k=length)) for _ in range(count)]


def changed(text, edits, *, seed=0):
    rng = random.Random(seed)
    characters = list(text)
    for place in rng.sample(range(len(text)), edits):
        characters[place] = "甲"
    return "".join(characters)


def grams(text):
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def similarity(first, second):
    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


def found(forms, threshold, **options):
    matches = near_duplicates.near_duplicates(forms, threshold=threshold, **options)
    pairs = map(tuple, matches.pairs_Px2.tolist())
    return dict(zip(pairs, matches.similarity_P.tolist(), strict=True))


def test_comparison_ignores_width_case_space_and_marks_but_no_pictograph():
    assert (
        comparison_form(" Ｔｈｅ　房间，很_好！！\n")
        == comparison_form("the房间很好")
        == "the房间很好"
    )
    assert comparison_form("好😊") != comparison_form("好😡")
    assert comparison_form("★★★★★") != comparison_form("★")
    assert comparison_form("……") == "......" != comparison_form("！")


@given(st.text(max_size=30))
def test_comparison_form_is_its_own_and_not_empty_for_a_text(text):
    form = comparison_form(text)
    assert bool(form) == bool(text)
    if any(character.isalnum() for character in form):
        assert comparison_form(form) == form


def test_signatures_are_those_of_datasketch():
    texts = ["好", "", "很好", "非常好的酒店", "𠮷野家的牛肉饭" * 9, *sentences(20)]
    matrix = near_duplicates._grams(texts)
    ours_NxK = np.stack(list(near_duplicates.signatures(matrix)), axis=1)
    rows = [
        near_duplicates.fold(matrix.indices[start:stop]).tolist()
        for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    ]
    theirs = datasketch.MinHash.bulk(rows, num_perm=128, seed=1, hashfunc=int)
    assert ours_NxK.tolist() == [minhash.hashvalues.tolist() for minhash in theirs]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_pairs_are_those_of_brute_force(threshold):
    base = sentences(150)
    texts = base + [changed(text, 1 + i % 6, seed=i) for i, text in enumerate(base)]
    texts += [text + text[:20] for text in base[:20]] + ["好", "很好", "好的"]
    forms = sorted({(text,) for text in texts})
    true = {
        (i, j): similarity(forms[i][0], forms[j][0])
        for i in range(len(forms))
        for j in range(i + 1, len(forms))
        if similarity(forms[i][0], forms[j][0]) >= threshold
    }
    assert true or threshold == 1
    pairs = found(forms, threshold)
    assert pairs.items() <= true.items()
    assert len(pairs) >= 0.99 * len(true)


def test_pair_at_the_threshold_is_seldom_missed():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0):
        count, rows = near_duplicates.bands(threshold)
        assert count * rows <= 128
        assert (1 - threshold**rows) ** count <= 0.005


def test_only_pairs_of_different_sides_are_found():
    base = sentences(60)
    texts = base + [changed(text, 1, seed=i) for i, text in enumerate(base)]
    sides_N = np.array([i % 3 == 0 for i in range(60)] * 2, int)
    sides_N[60:90] = 1 - sides_N[60:90]
    forms = [(text,) for text in texts]
    every = found(forms, 0.7)
    assert len(every) == 60
    across = {pair for pair in every if sides_N[pair[0]] != sides_N[pair[1]]}
    assert set(found(forms, 0.7, sides_N=sides_N)) == across != set(every)


def test_pairs_must_be_similar_in_both_texts():
    a, b, c, d = sentences(4)
    near = changed(a, 1), changed(b, 1)
    forms = [(a, b), near, (a, c), near[::-1], (d, a)]
    assert set(found(forms, 0.7)) == {(0, 1)}
    either = found(forms, 0.7, either_order=True)
    assert set(either) == {(0, 1), (0, 3), (1, 3)}
    assert either[0, 3] == min(similarity(a, near[0]), similarity(b, near[1]))
    assert either[1, 3] == 1


def test_pair_of_equal_texts_is_found_in_either_order():
    a, b = sentences(2)
    assert (0, 1) in found([(a, a), (a, changed(a, 1))], 0.8, either_order=True)
    assert not found([(a, a), (a, b)], 0.5, either_order=True)


@given(st.permutations(range(12)))
def test_what_is_kept_does_not_depend_on_the_order(order):
    base = sentences(3)
    texts = [changed(text, edits, seed=edits) for text in base for edits in (0, 1, 2)]
    texts += [f"{text}！" for text in base]
    keepers = originals(texts, threshold=0.6)
    shuffled = originals([texts[i] for i in order], threshold=0.6)
    assert [texts[order[k]] for k in shuffled] == [texts[keepers[i]] for i in order]
    assert 3 <= len(set(keepers.tolist())) < 9


def test_each_text_is_near_the_one_kept_in_its_stead_and_those_kept_are_apart():
    rng = random.Random(0)
    chain = sentences(1)
    for _ in range(60):  # the ends of a chain have nothing in common
        chain.append(changed(chain[-1], 2, seed=rng.random()))
        chain[-1] = chain[-1].replace("甲", rng.choice(CHARACTERS))
    keepers = originals(chain, threshold=0.6).tolist()
    kept = sorted(set(keepers))
    assert 1 < len(kept) < len(chain)
    assert all(similarity(chain[i], chain[k]) >= 0.6 for i, k in enumerate(keepers))
    assert all(keepers[k] == k for k in kept)
    assert all(similarity(chain[a], chain[b]) < 0.6 for a in kept for b in kept if a != b)


def test_lower_rank_is_kept():
    text = sentences(1)[0]
    texts = [text, changed(text, 1), f"{text}。"]
    for first in range(3):
        ranks = [int(i != first) for i in range(3)]
        assert originals(texts, threshold=0.8, ranks=ranks).tolist() == [first] * 3


def test_thousands_of_copies_and_of_one_template_make_no_quadratic_number_of_pairs():
    rng = random.Random(0)
    head, tail = sentences(2)
    template = sorted({f"{head}{rng.randrange(10**6):06}{tail}" for _ in range(5_000)})
    keepers = originals([*template, *[head] * 5_000], threshold=0.8)
    assert len(set(keepers.tolist())) == 2
    bands, _ = near_duplicates.bands(0.8)
    pairs = found([(text,) for text in template], 0.8)
    assert len(template) <= len(pairs) <= 16 * bands * len(template) < len(template) ** 2 / 4


def test_no_text_and_texts_of_a_character_are_no_trouble():
    assert originals([], threshold=0.8).tolist() == []
    assert originals(["", "好", "\ud800", "好！"], threshold=0.8).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_impossible_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        originals(["好"], threshold=threshold)
