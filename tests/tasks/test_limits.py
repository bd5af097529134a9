"""What a run leaves out, cuts or cannot predict is counted, and said once."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from evaluation import answers
from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.tokenizers.loading import load_tokenizer
from tasks import limits, task_class
from tasks.limits import Given, Limit
from tasks.reading_comprehension import ReadingComprehension

TOKENIZERS = Path(__file__).parents[1] / "fixtures/tokenizers"


def examples_of(texts, labels=None, **columns):
    ids_N = np.arange(len(texts), dtype=np.int64)
    labels_N = None if labels is None else np.array(labels, np.int32)
    return Examples(object_array(texts), labels_N, ids_N, **columns)


def given_of(task, examples, *, training=False):
    """Examples as they come to a task, with its real pipeline."""
    pipeline = TextPipeline(task, task.config)
    windows = task.windows(examples, pipeline.encoder, training=training)
    return Given(examples, windows, pipeline, training, False)


def make_task(kind, labels, *, length=16, backbone=None, template="{text}", **options):
    config = common.get_config()
    config.task = kind
    config.data.template = template
    config.layout.update(max_length=length, row_length=length)
    config.update_from_flattened_dict(options)
    tokenizer = load_tokenizer(TOKENIZERS / "bert")
    return task_class(config)(config, labels, tokenizer=tokenizer, backbone=backbone)


def counts(task, given):
    return {
        limit.what.split(" ", 1)[1][:24]: limit.count for limit in task.limits(given) if limit.count
    }


def test_a_limit_is_said_once_a_process_and_recorded_each_time(capsys, monkeypatch):
    monkeypatch.setattr(limits, "_said", set())
    found = [Limit(1234, 20_000, "texts are cut", "raise it", first=True), Limit(0, 5, "x", "y")]
    expected = "1,234 of the first 20,000 train texts are cut: raise it."
    records = [{"split": "train", "count": 1234, "total": 20_000, "sentence": expected}]
    assert limits.report(found, "train", print) == limits.report(found, "train", print) == records
    assert capsys.readouterr().out == f"Note: {expected}\n"


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_examples_that_are_cut_are_counted(kind):
    texts = ["我们在北京" * n for n in (1, 4, 2, 8)]
    choices = object_array([("是", "不是"), ("是", "否", "好")] * 2)
    columns = {"choices_N": choices} if kind == "multiple_choice" else {}
    template = "{text}{choice}" if columns else "{text}"
    task = make_task(kind, ["0", "1", "2"], template=template)
    found = counts(task, given_of(task, examples_of(texts, [0, 1, 0, 1], **columns), training=True))
    assert found["are longer than config.l"] == 2


def test_the_remedy_for_cut_texts_is_one_that_the_checkpoint_allows():
    for positions, remedy in (
        (0, "raise config"),
        (512, "raise config"),
        (16, "no more positions"),
    ):
        backbone = SimpleNamespace(max_length=positions)
        task = make_task("classification", ["a", "b"], backbone=backbone)
        [cut, *_] = task.limits(given_of(task, examples_of(["我" * 40], [0])))
        assert cut.count == 1 and remedy in cut.remedy


def test_labels_that_training_never_shows_are_counted_and_named():
    task = make_task("classification", ["体育", "财经", "娱乐"])
    train = examples_of(["好"] * 3, [0, 1, -1])
    found = list(task.limits(given_of(task, train, training=True)))
    assert [(f.count, f.total) for f in found if f.count] == [(1, 3), (1, 3)]
    assert "count for nothing" in found[1].what and "(娱乐)" in found[2].what
    [new] = [
        f for f in task.limits(given_of(task, examples_of(["好"] * 4, [2, 0, 2, 1]))) if f.count
    ]
    assert (new.count, new.total) == (2, 4) and "(娱乐)" in new.what
    fresh = make_task("classification", ["体育", "财经", "娱乐"])  # of which training is not known
    assert not counts(fresh, given_of(fresh, examples_of(["好"], [2])))
    assert not counts(fresh, given_of(fresh, examples_of(["好"])))


def test_choices_that_read_the_same_once_cut_are_counted():
    task = make_task("multiple_choice", ["0", "1"], template="{text}{choice}")
    rows = [("短____", ("是", "不是")), ("短____", ("是的" * 20 + "甲", "是的" * 20 + "乙"))]
    texts, choices = zip(*rows, strict=True)
    examples = examples_of(texts, [0, 1], choices_N=object_array(choices))
    assert counts(task, given_of(task, examples)) == {
        "are longer than config.l": 1,
        "have choices that are th": 1,
    }


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.text(st.sampled_from("我们在北京12 ab，"), min_size=1, max_size=60),
            st.lists(st.tuples(st.integers(0, 59), st.integers(1, 20)), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["bert", "llama"]),
    st.booleans(),
)
def test_an_answer_is_out_of_reach_where_no_run_of_tokens_gives_it(rows, kind, training):
    config = common.get_config()
    config.data.update(template="{pair}\n{text}", overlap=6)
    config.layout.update(max_length=32, row_length=32)
    config.reading.max_answer = 8
    tokenizer = load_tokenizer(TOKENIZERS / kind)
    task = ReadingComprehension(config, ["answer"], tokenizer=tokenizer, backbone=None)
    spans = []
    for text, places in rows:
        clipped = ((min(a, len(text) - 1), min(a + n, len(text))) for a, n in places)
        kept = dict.fromkeys((a, b, 0) for a, b in clipped if text[a:b].strip() == text[a:b] != "")
        spans.append(list(kept))
    examples = examples_of(
        [text for text, _ in rows],
        pairs_N=object_array(["问"] * len(rows)),
        spans=Ragged.of(spans, width=3),
        span_labels=("answer",),
    )
    encoder = task.encoder(config.data.template, max_length=32, prefix_ids=())
    windows = task.windows(examples, encoder, training=training)
    given = Given(examples, windows, SimpleNamespace(encoder=encoder), training, False)
    encoded = encoder(windows.texts_N, windows.pairs_N, offsets=True)
    runs = [set() for _ in rows]  # all that could be predicted, as (text, start, stop)
    for w, (first, count) in enumerate(zip(encoded.starts_B, encoded.lengths_B, strict=True)):
        own = slice(first, first + count)
        is_text = (encoded.fields[own] == 0) & (np.diff(encoded.offsets[own])[:, 0] > 0)
        offsets = encoded.offsets[own][is_text].tolist()
        for i, (start, _) in enumerate(offsets):
            for _, stop in offsets[i:]:
                if stop - start <= 8:
                    run = (windows.texts_N[w][start:stop], start + windows.starts_N[w])
                    runs[windows.owners_N[w]].add((*run, stop + windows.starts_N[w]))
    unreachable = 0
    for row, wanted in enumerate(spans):
        wanted = wanted[:1] if training else wanted
        texts = [examples.texts_N[row][a:b] for a, b, _ in wanted]
        reached = any(
            answers.exact_match(read, [text]) and low < b and high > a
            for (a, b, _), text in zip(wanted, texts, strict=True)
            for read, low, high in runs[row]
        )
        unreachable += bool(wanted) and not reached
    found = list(task.limits(given))
    assert sum(limit.count for limit in found) == unreachable
    assert {limit.total for limit in found} == {sum(map(bool, spans))}
    if kind == "bert" and all(len(text) < 20 for text, _ in rows):  # one token a character
        long = sum(
            bool(w) and all(b - a > 8 for a, b, _ in (w[:1] if training else w)) for w in spans
        )
        assert found[0].count == long
