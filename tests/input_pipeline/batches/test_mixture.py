"""Mixtures: their numbering, their schedule, and batches of one member at a time."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from input_pipeline.batches.mixture import (
    Mixture,
    MixturePipeline,
    Position,
    Schedule,
    global_ids,
    member_configs,
    member_of,
    mixing_rates,
    own_ids,
)
from input_pipeline.examples import Examples, object_array


def examples_of(count, letter):
    return Examples(
        texts_N=object_array([f"{letter}{i}" for i in range(count)]),
        labels_N=np.zeros(count, np.int32),
        ids_N=np.arange(count, dtype=np.int64),
        leaked_N=np.arange(count) % 5 == 1,
    )


MIXTURE = Mixture({"a": examples_of(12, "a"), "b": examples_of(6, "b"), "c": examples_of(3, "c")})


@given(
    st.lists(st.floats(0.05, 1), min_size=2, max_size=5),
    st.integers(0, 5),
    st.integers(0, 3000),
    st.integers(1, 200),
)
@settings(max_examples=50)
def test_schedule_keeps_its_rates_and_starts_anywhere(rates, seed, first, count):
    names = [f"m{i}" for i in range(len(rates))]
    schedule = Schedule(dict(zip(names, rates, strict=True)), seed=seed)
    whole = schedule.at(0, first + count)
    np.testing.assert_array_equal(whole[first:], schedule.at(first, count))
    counts = schedule.before(first) + schedule.before(first + count, since=first)
    np.testing.assert_array_equal(counts, np.bincount(whole, minlength=len(rates)))
    assert np.abs(counts - schedule.rates_M * (first + count)).max() < 5


def test_members_follow_one_another_as_they_always_did(monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", None)
    schedule = Schedule({"a": 3, "b": 1}, seed=7)
    assert schedule.at(0, 16).tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert Schedule(dict.fromkeys("abc", 1), seed=2**33).at(10**6, 12).tolist() == [
        1,
        0,
        2,
        1,
        2,
        1,
        0,
        2,
        1,
        0,
        2,
        0,
    ]


def test_rates_are_of_sizes_at_a_temperature_or_given():
    multi = common.get_config().multi
    sizes = {"a": 900, "b": 100}
    assert mixing_rates(multi, sizes) == pytest.approx({"a": 0.75, "b": 0.25})
    multi.temperature = 1.0
    assert mixing_rates(multi, sizes) == pytest.approx({"a": 0.9, "b": 0.1})
    multi.rates = (1, 3)
    assert mixing_rates(multi, sizes) == pytest.approx({"a": 0.25, "b": 0.75})
    multi.rates = (1,)
    with pytest.raises(ValueError, match=r"multi\.rates.*each of a, b"):
        mixing_rates(multi, sizes)


def test_ids_tell_members_apart_whatever_is_taken():
    ids_N = MIXTURE.ids_N
    assert len(set(ids_N.tolist())) == len(MIXTURE) == 21
    assert (np.diff(ids_N) > 0).all()
    for member, part in enumerate(MIXTURE.parts.values()):
        np.testing.assert_array_equal(own_ids(member, ids_N), part.ids_N)
    np.testing.assert_array_equal(global_ids(2, np.array([-1, 4]))[:1], [-1])
    taken = MIXTURE.take(np.array([20, 13, 12, 0]))
    assert list(taken.texts_N) == ["a0", "b1", "b0", "c2"]
    assert set(taken.ids_N.tolist()) <= set(ids_N.tolist())
    assert set(MIXTURE.leaked_ids.tolist()) == set(
        ids_N[[text[1:] in ("1", "6", "11") for text in MIXTURE.texts_N]].tolist()
    )
    np.testing.assert_array_equal(
        MIXTURE.take(np.isin(ids_N, taken.ids_N)).ids_N, ids_N[[0, 12, 13, 20]]
    )
    assert [len(part) for part in MIXTURE.first(7).parts.values()] == [4, 2, 1]
    assert len(MIXTURE.first(100)) == 21


class Stream:
    """Stands for a TextPipeline: a batch of the next examples, in turn."""

    encoder = None

    def __init__(self, batch_size):
        self._batch_size = batch_size

    def train(self, examples, *, first_example):
        for first in itertools.count(first_example, self._batch_size):
            places = np.arange(first, first + self._batch_size) % len(examples)
            yield {"ids_B": examples.ids_N[places].reshape(2, -1), "place": first}

    def evaluate(self, examples):
        for first in range(0, len(examples), 4):
            ids = examples.ids_N[first : first + 4]
            yield {"ids_B": np.pad(ids, (0, 4 - len(ids)), constant_values=-1)}


def pipeline(batch_size=4, **multi):
    config = common.get_config()
    config.multi.update(multi)
    config.data.batch_size, config.train.microbatches, config.seed = batch_size, 2, 3
    return MixturePipeline({name: Stream(batch_size) for name in MIXTURE.parts}, config)


def test_every_step_is_of_one_member_and_resumes_exactly():
    batches = list(itertools.islice(pipeline().train(MIXTURE, first_example=0), 60))
    places = {name: 0 for name in MIXTURE.parts}
    for step, batch in enumerate(batches):
        name = member_of(batch)
        assert batch[f"member_{name}"].shape == (2, 1)
        assert batch["place"] == places[name]
        places[name] += 4
        member = list(MIXTURE.parts).index(name)
        assert len(own_ids(member, batch["ids_B"].ravel())) == 4
        if step in (7, 31):
            resumed = pipeline().train(MIXTURE, first_example=4 * step)
            for again, before in zip(itertools.islice(resumed, 20), batches[step:], strict=False):
                assert again.keys() == before.keys()
                np.testing.assert_array_equal(again["ids_B"], before["ids_B"])
    assert places["a"] > places["b"] > places["c"] > 0


PARTS = st.lists(
    st.tuples(
        st.integers(1, 20),
        st.sampled_from([2, 4, 6, 16]),
        st.sampled_from(
            [
                {},
                {"temperature": 1.0},
                {"rates": (1, 1, 1)},
                {"rates": (1, 5, 0.1)},
            ]
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(PARTS)
@settings(max_examples=50)
def test_other_batch_sizes_and_rates_repeat_and_skip_no_example_of_any_member(parts):
    position, places = Position(0, {}), dict.fromkeys(MIXTURE.parts, 0)
    for steps, batch_size, multi in parts:
        made = pipeline(batch_size, **multi)
        batches = made.train(MIXTURE, first_example=0, position=position)
        for batch in itertools.islice(batches, steps):
            name = member_of(batch)
            assert batch["place"] == places[name]
            places[name] += batch_size
        position = made.seen(MIXTURE, position.step + steps, since=position)
        assert dict(position.seen) == places
        assert position == Position(*json.loads(json.dumps(position)))


def test_a_checkpoint_that_does_not_say_where_it_stood_took_its_own_batch_size():
    assert pipeline(16).seen(MIXTURE, 7, batch_size=4) == pipeline(4).seen(MIXTURE, 7)


def test_evaluation_sees_every_example_once():
    batches = list(pipeline().evaluate(MIXTURE))
    ids = np.concatenate([batch["ids_B"] for batch in batches])
    assert sorted(ids[ids >= 0].tolist()) == MIXTURE.ids_N.tolist()
    assert {batch[f"member_{member_of(batch)}"].shape for batch in batches} == {(1,)}
    assert (ids == -1).sum() == 3


def test_members_have_their_own_task_and_data_and_the_runs_model():
    config = common.get_config()
    config.model.checkpoint, config.data.batch_size, config.seed = "somewhere", 12, 5
    for name, task in (("tags", "tagging"), ("choice", "multiple_choice")):
        member = common.get_config()
        member.task, member.model.pooling, member.model.checkpoint = task, "last", "elsewhere"
        member.data.template = f"{name}{{text}}"
        config.multi.members[name] = member
    members = member_configs(config)
    assert list(members) == ["choice", "tags"]
    for name, member in members.items():
        assert member.task == {"tags": "tagging", "choice": "multiple_choice"}[name]
        assert member.data.template == f"{name}{{text}}"
        assert (member.model.checkpoint, member.model.pooling) == ("somewhere", "last")
        assert (member.data.batch_size, member.seed) == (12, 5)
    assert config.data.template == "{text}"


def test_members_that_make_no_sense_are_refused():
    config = common.get_config()
    config.multi.members.one = common.get_config()
    with pytest.raises(ValueError, match="needs two or more"):
        member_configs(config)
    config.multi.members["Two/b"] = common.get_config()
    with pytest.raises(ValueError, match="lower-case letters"):
        member_configs(config)
    with pytest.raises(ValueError, match="exactly one member"):
        member_of({"tokens_RxL": 0})
