"""The algebra of sweeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.sweeping import choice, log_uniform, product, sample, uniform, zipped

values = st.lists(st.integers(), min_size=1, max_size=4, unique=True)
SPACE = {"rate": log_uniform(1e-5, 1e-1), "share": uniform(-1.0, 2.0), "rank": choice(4, (8, 16))}


@given(values, values, values)
def test_product_of_sweeps_is_the_product_of_their_keys(a, b, c):
    found = product({"a": a, "b": b, "c": c})
    assert found == product(product({"a": a}), {"b": b}, product({"c": c}))
    assert found == [{"a": x, "b": y, "c": z} for x in a for y in b for z in c]


@given(values, values)
def test_product_distributes_over_concatenation(a, b):
    left, right, seeds = product({"a": a}), product({"b": b}), {"seed": range(2)}
    assert product(left + right, seeds) == product(left, seeds) + product(right, seeds)


@given(st.lists(st.tuples(st.integers(), st.integers()), min_size=1))
def test_zipped_pairs_what_stands_at_the_same_place(pairs):
    first, second = zip(*pairs, strict=True)
    expected = [{"a": a, "b": b} for a, b in pairs]
    assert zipped({"a": first, "b": second}) == expected
    assert zipped([{"a": a} for a in first], {"b": second}) == expected


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_a_sample_is_within_its_space_and_only_grows_with_the_count(seed, count):
    found = sample(SPACE, 8, seed=seed)
    assert sample(SPACE, count, seed=seed) == found[:count]
    for point in found:
        assert 1e-5 <= point["rate"] <= 1e-1
        assert -1 <= point["share"] <= 2
        assert point["rank"] in (4, (8, 16))
        assert point["rate"] == float(f"{point['rate']:.3g}")


def test_log_uniform_draws_every_power_alike():
    rates = [point["rate"] for point in sample({"rate": log_uniform(1e-5, 1e-1)}, 400)]
    assert 150 < sum(rate < 1e-3 for rate in rates) < 250


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product({"a": ()}), "product: a: found no values"),
        (lambda: product({"a": "lora"}), "a: found 'lora', expected values such"),
        (lambda: product({"a": uniform(0, 1)}), "sample.. draws from a space"),
        (lambda: product({"a": [1]}, [{"a": 2}]), "sets a twice"),
        (lambda: product([]), "found no values"),
        (lambda: zipped({"a": [1, 2], "b": [1]}), "2 of a, 1 of b"),
        (lambda: sample({"a": choice(1, 2)}, 3), "found 2 different points"),
        (lambda: sample({"a": 1}, 3), "a: found 1, expected uniform"),
        (lambda: sample({}, 3), "at least one key"),
        (lambda: log_uniform(0, 1), "0 < low < high"),
        (lambda: uniform(1, 1), "low < high"),
        (lambda: choice(), "at least one"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
