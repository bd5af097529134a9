"""Choices, messages, numbers and names: from columns of a file into examples, or to one message."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.common import get_config
from input_pipeline.corpus import columns, preparation, sources
from input_pipeline.corpus.notes import Misfit


def config(folder, *rows, name="a.jsonl", **knobs):
    """config.data of a file of these rows."""
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    data = get_config().data
    data.update(source="files", files=str(path), prepared_dir=str(folder / "prepared"), **knobs)
    return data


def read(folder, *rows, problems=None, **knobs):
    return list(sources.read(config(folder, *rows, **knobs), problems))


def said_of(folder, row, **knobs):
    """What is said of one bad row, and under which reason it is counted, '' for a refusal."""
    rows = [row, {"text": "好"}]
    with pytest.raises(ValueError) as error:
        read(folder, *rows, **knobs)
    assert str(error.value).startswith(f"{folder}/a.jsonl:1: ")
    if not isinstance(error.value, Misfit):
        return str(error.value), ""
    problems = {}
    next(sources.read(config(folder, row, row, **knobs), problems), None)
    ((reason, places),) = problems.items()
    assert places == [f"{folder}/a.jsonl:1", f"{folder}/a.jsonl:2"]
    with pytest.raises(Misfit):
        next(sources.read(config(folder, row, **knobs, on_misfit="stop"), {}))
    return str(error.value), reason


# Multiple choice.

ASKED = {"text": "一二三", "choices": ["甲", "乙", "1"]}


@pytest.mark.parametrize(
    ("label", "first", "index"),
    [("乙", 0, "1"), (" 乙 ", 0, "1"), (1, 0, "1"), (1, 1, "0"), ("B", 0, "1"), ("1", 0, "2"),
     ("2", 1, "1"), ("C", 5, "2")],
)  # fmt: skip
def test_answer_is_its_text_its_number_or_its_letter(tmp_path, label, first, index):
    knobs = {"choices_column": "choices", "first_choice": first}
    (record,) = read(tmp_path, ASKED | {"label": label}, **knobs)
    assert (record.choices, record.labels) == (("甲", "乙", "1"), (index,))


@pytest.mark.parametrize(
    "choices",
    [
        {"text": ["甲", "乙"], "label": ["1", "2"]},
        {"text": ["甲", "乙"], "label": [1.0, 2.0]},
        [{"label": "1", "text": "甲"}, {"label": 2, "text": "乙"}],
    ],
)
@pytest.mark.parametrize(("label", "index"), [("2", "1"), (2.0, "1"), (1, "0"), ("乙", "1")])
def test_answer_is_the_name_that_the_source_gives_a_choice(tmp_path, choices, label, index):
    row = {"text": "一", "choices": choices, "label": label}
    (record,) = read(tmp_path, row, choices_column="choices")
    assert (record.choices, record.labels) == (("甲", "乙"), (index,))
    found, reason = said_of(tmp_path, row | {"label": "丙"}, choices_column="choices")
    assert "expected its text, or its name, one of 1, 2" in found and reason == "wrong_choices"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"label": "丁"},
            "the answer '丁' is none of the 3 choices ['甲', '乙', '1']; expected its",
        ),
        ({"label": 3}, "a number from 0 to 2 (config.data.first_choice=0), or a letter"),
        ({"label": -1}, "the answer -1 is none of the 3"),
        ({"label": "D"}, "the answer 'D' is none of the 3"),
        ({"label": "AB"}, "the answer 'AB' is none of the 3"),
        ({"label": 0, "choices": ["甲"]}, "the choices are ['甲']; expected two or more"),
        ({"label": 0, "choices": []}, "the choices are []; expected two or more"),
        ({"label": 0, "choices": ["甲", " 甲"]}, "all different"),
        ({"label": 0, "choices": ["甲", " "]}, "none empty"),
    ],
)
def test_choices_that_do_not_fit_are_counted_or_refused(tmp_path, change, said):
    found, reason = said_of(tmp_path, ASKED | change, choices_column="choices")
    assert said in found and reason == "wrong_choices"


@pytest.mark.parametrize("choices", [None, "甲乙", {"甲": 1}, [["甲"], ["乙"]], [0.5, 1.5]])
def test_choices_that_are_no_list_are_refused(tmp_path, choices):
    row = {"text": "一二三", "choices": choices, "label": 0}
    found, reason = said_of(tmp_path, row, choices_column="choices")
    assert "in column 'choices' are" in found and not reason


def test_choices_in_csv_are_json(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,choices,label\n一,"[""甲"", ""乙""]",B\n', "utf-8")
    data = config(tmp_path, choices_column="choices")
    data.files = str(path)
    (record,) = sources.read(data)
    assert (record.choices, record.labels) == (("甲", "乙"), ("1",))


def test_labels_of_choices_are_their_numbers_in_numeric_order(tmp_path):
    letters = [f"第{i}个" for i in range(12)]
    rows = [{"text": f"问题{i}", "choices": letters, "label": i % 11} for i in range(110)]
    prepared = preparation.prepare(config(tmp_path, *rows, choices_column="choices"))
    assert prepared.labels == tuple(map(str, range(12)))
    examples = preparation.load_split(prepared, "train")
    answers = {row["text"]: row["label"] for row in rows}
    assert examples.labels_N.tolist() == [answers[text] for text in examples.texts_N]
    assert examples.choices_N[0] == tuple(letters)


def test_choices_that_recoding_makes_equal_are_counted_or_refused(tmp_path):
    rows = [{"text": f"问题{i}", "choices": ["a", "b"], "label": 0} for i in range(20)]
    rows[2]["choices"] = ["a", "A"]
    knobs = {"choices_column": "choices", "normalization": ("lower",)}
    manifest = preparation.prepare(config(tmp_path, *rows, **knobs)).manifest
    assert manifest["dropped"]["wrong_choices"] == 1
    with pytest.raises(ValueError, match=r"a\.jsonl:3: the choices are \['a', 'a'\]"):
        preparation.prepare(config(tmp_path, *rows, **knobs, on_misfit="stop"))


# Messages.

SYSTEM, ASK, TELL = (
    {"role": "system", "content": "你是诗人"},
    {"role": "user", "content": "写一句"},
    {"role": "assistant", "content": "床前明月光"},
)
MORE = {"role": "user", "content": "再写一句"}
TALK = {"messages_column": "messages", "label_column": ""}


def test_last_prompt_is_the_text_its_answer_the_pair_and_the_rest_history(tmp_path):
    end = {"role": "assistant", "content": "疑是地上霜"}
    (long, short) = read(
        tmp_path, {"messages": [SYSTEM, ASK, TELL, MORE, end]}, {"messages": [ASK, TELL]}, **TALK
    )
    assert (long.text, long.pair) == ("再写一句", "疑是地上霜")
    assert json.loads(long.history) == [
        ["system", "你是诗人"],
        ["user", "写一句"],
        ["assistant", "床前明月光"],
    ]
    assert (short.text, short.pair, short.history) == ("写一句", "床前明月光", "")


def test_sharegpt_is_read_as_well(tmp_path):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[m["role"]], "value": m["content"]} for m in (SYSTEM, ASK, TELL)]
    one, other = read(tmp_path, {"messages": shared}, {"messages": [SYSTEM, ASK, TELL]}, **TALK)
    assert one._replace(where="") == other._replace(where="")


@pytest.mark.parametrize(
    "messages",
    [[], [SYSTEM], [TELL], [ASK], [TELL, ASK], [ASK, ASK, TELL], [ASK, TELL, MORE],
     [ASK, SYSTEM, TELL], [SYSTEM, SYSTEM, ASK, TELL], [ASK, TELL, TELL],
     [{"role": "tool", "content": "0"}, TELL]],
)  # fmt: skip
def test_messages_out_of_order_are_counted_or_refused(tmp_path, messages):
    found, reason = said_of(tmp_path, {"messages": messages}, **TALK)
    assert reason == "messages_out_of_order"
    roles = ", ".join(message["role"] for message in messages) or "nobody"
    assert f"the messages are of {roles}; expected system or not, then user and" in found


@pytest.mark.parametrize(
    "messages", [[ASK, TELL | {"content": " \n"}], [ASK, TELL | {"content": ""}, MORE, TELL]]
)
def test_empty_answers_are_counted_or_refused(tmp_path, messages):
    found, reason = said_of(tmp_path, {"messages": messages}, **TALK)
    assert reason == "empty_answer" and "a message of the assistant is empty" in found


@pytest.mark.parametrize(
    "messages", [5, None, "你好", ["你好"], [{"role": "user"}], [{"role": "user", "content": None}],
                 {"role": "user", "content": "好"}, [{"role": ["user"], "content": "好"}]]
)  # fmt: skip
def test_messages_that_are_none_are_refused(tmp_path, messages):
    found, reason = said_of(tmp_path, {"messages": messages}, **TALK)
    assert 'expected [{"role": "user", "content": ".."}' in found and not reason


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=7), st.booleans())
def test_dialogue_is_kept_whole_or_refused(roles, answered):
    value = [{"role": role, "content": f"第{i}句"} for i, role in enumerate(roles)]
    try:
        prompt, answer, history = columns.messages(value, "m", answered=answered)
    except Misfit as misfit:
        assert misfit.reason == "messages_out_of_order"
        spoken = "".join(role[0] for role in roles).removeprefix("s")
        fine = spoken == ("ua" * 4)[: len(spoken)] and spoken
        assert not fine or (answered and spoken.endswith("u"))
        return
    turns = [*json.loads(history or "[]"), ["user", prompt]]
    turns += [["assistant", answer]] if answer else []
    assert turns == [[m["role"], m["content"]] for m in value]
    assert answer or not answered


def test_empty_answers_of_plain_rows_are_kept_for_the_task_to_count(tmp_path):
    rows = [{"prompt": f"第{i}个问题", "answer": "答" * (i % 3)} for i in range(30)]
    knobs = {"text_column": "prompt", "pair_column": "answer", "label_column": ""}
    prepared = preparation.prepare(config(tmp_path, *rows, **knobs))
    assert sum(split["examples"] for split in prepared.manifest["splits"].values()) == 30


def test_one_prompt_after_different_messages_is_no_duplicate_and_recoding_reaches_all(tmp_path):
    before = [[{"role": "user", "content": f"第{i}本書"}, TELL] for i in range(12)]
    rows = [{"messages": [*talk, MORE, TELL]} for talk in before]
    data = config(tmp_path, *rows, **TALK, normalization=("simplified",))
    prepared = preparation.prepare(data)
    assert sum(prepared.manifest["dropped"].values()) == 0
    examples = preparation.load_split(prepared, "train")
    assert set(examples.texts_N) == {"再写一句"} and len(examples) == 10
    assert all("本书" in history for history in examples.histories_N)


# Numbers, names, lists.


def test_numbers_are_labels_of_their_own(tmp_path):
    rows = [{"text": f"第{i}条", "label": str(i / 4) if i % 2 else i / 4} for i in range(30)]
    prepared = preparation.prepare(config(tmp_path, *rows, label_kind="number"))
    assert prepared.labels == ()
    examples = preparation.load_split(prepared, "train")
    assert examples.labels_N is None and examples.numbers_N.dtype == np.float32
    expected = {row["text"]: float(row["label"]) for row in rows}
    assert examples.numbers_N.tolist() == [expected[text] for text in examples.texts_N]


@pytest.mark.parametrize("label", ["好", None, "nan", "inf", 1e39, [1], ""])
def test_label_that_is_no_number_is_refused(tmp_path, label):
    found, reason = said_of(tmp_path, {"text": "好", "label": label}, label_kind="number")
    assert "expected a number in column 'label', found" in found and not reason


def test_names_and_lists_of_texts_are_read(tmp_path):
    row = {"text": ["水声学", "FFT"], "label": 1, "pair": ["一", "二"], "id": 7}
    knobs = {"pair_column": "pair", "id_column": "id", "list_separator": "、"}
    (record,) = read(tmp_path, row, **knobs)
    assert (record.text, record.pair, record.name) == ("水声学、FFT", "一、二", "7")
    assert said_of(tmp_path, row | {"text": ["一", 2]}, **knobs)[0].endswith(
        "found ['一', 2]; write each text as a string"
    )
    assert (
        "--config.data.id_column="
        in said_of(tmp_path, {"text": "好", "label": 1}, id_column="i")[0]
    )


# Spans, answers and labels that validation has and train has not.


def test_overlapping_spans_are_kept_counted_or_refused(tmp_path):
    rows = [{"text": f"第{i}条北京大学", "spans": [[0, 1, "a"], [1, 2, "a"]]} for i in range(20)]
    rows[3]["spans"] = [[3, 7, "b"], [3, 5, "a"]]
    knobs = {"label_column": "", "spans_column": "spans"}
    assert len(read(tmp_path, *rows, **knobs)) == 20
    manifest = preparation.prepare(
        config(tmp_path, *rows, **knobs, overlapping_spans="drop")
    ).manifest
    assert manifest["dropped"]["overlapping_spans"] == 1
    with pytest.raises(ValueError, match=r"a\.jsonl:4: the spans \[3, 5, 'a'\] and \[3, 7, 'b'\]"):
        read(tmp_path, *rows, problems={}, **knobs, overlapping_spans="drop", on_misfit="stop")


def test_question_without_an_answer_has_no_spans(tmp_path):
    content = {"context": "京好", "qas": []}
    wrong = {"answer_start": 9, "text": "无"}
    for i, question in enumerate(
        [{"answers": []}, {"answers": [wrong], "is_impossible": True}, {"answers": [wrong]}]
    ):
        content["qas"].append({"id": f"q{i}", "question": "？", **question})
    data = config(tmp_path, {"data": [{"paragraphs": [content]}]}, name="a.json")
    problems = {}
    assert [(r.name, r.spans) for r in sources.read(data, problems)] == [("q0", ()), ("q1", ())]
    assert problems == {"answer_not_in_context": [f"{tmp_path}/a.json:1 (q2)"]}


@pytest.mark.parametrize(
    ("new", "knobs", "said"),
    [
        ({"label": "丙"}, {}, "label '丙' is not in the training split; add examples of it there"),
        (
            {"label": "丙"},
            {"labels": ("甲", "乙")},
            "label '丙' is not in config.data.labels=('甲', ",
        ),
        ({"spans": [[0, 1, "new"]]}, {"spans_column": "spans"}, "label 'new' is not in the traini"),
    ],
)
def test_label_that_train_lacks_is_refused_or_counted(tmp_path, new, knobs, said):
    rows = [
        {"text": f"第{i}条", "label": "甲乙"[i % 2], "spans": [[0, 1, "old"]]} for i in range(9)
    ]
    held_out = [row | {"text": f"验{row['text']}"} for row in rows]
    held_out[4] |= new
    config(tmp_path, *held_out, name="b.jsonl")
    knobs |= {"validation_files": str(tmp_path / "b.jsonl"), "split": {"kind": "given", "test": 0}}
    with pytest.raises(ValueError) as error:
        preparation.prepare(config(tmp_path, *rows, **knobs))
    assert str(error.value).startswith(f"{tmp_path}/b.jsonl:5: {said}")
    assert "--config.data.on_new_label=drop" in str(error.value)
    prepared = preparation.prepare(config(tmp_path, *rows, **knobs, on_new_label="drop"))
    assert prepared.manifest["dropped"]["new_label"] == 1
    assert prepared.manifest["dropped_examples"]["new_label"] == [
        {"where": f"{tmp_path}/b.jsonl:5"}
    ]
    assert prepared.manifest["splits"]["validation"]["examples"] == 8
    assert prepared.labels == ("甲", "乙") if "labels" in knobs else ("乙", "甲")


def test_label_of_train_outside_the_label_set_is_always_refused(tmp_path):
    rows = [{"text": f"第{i}条", "label": "甲乙丙"[i % 3]} for i in range(9)]
    with pytest.raises(ValueError, match=r"a\.jsonl:3: label '丙' is not in config\.data\.labels"):
        preparation.prepare(config(tmp_path, *rows, labels=("甲", "乙"), on_new_label="drop"))


# Prediction.


def test_what_is_predicted_on_needs_no_answers(tmp_path):
    rows = [{"choices": [" 甲 ", "乙"], "text": "一", "id": 5, "pair": "？"}]
    knobs = {"choices_column": "choices", "id_column": "id", "pair_column": "pair"}
    data = config(tmp_path, *rows, **knobs)
    examples = preparation.read_unlabelled(data.files, data)
    assert examples.choices_N.tolist() == [("甲", "乙")] and examples.names_N.tolist() == ["5"]
    assert (examples.labels_N, examples.numbers_N, examples.histories_N) == (None, None, None)

    data = config(tmp_path, {"messages": [SYSTEM, ASK]}, {"messages": [ASK, TELL]}, **TALK)
    examples = preparation.read_unlabelled(data.files, data)
    assert examples.texts_N.tolist() == ["写一句"] * 2
    assert examples.pairs_N.tolist() == ["", "床前明月光"]
    assert examples.histories_N.tolist() == ['[["system", "你是诗人"]]', ""]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: the messages are of assistant; expected"):
        preparation.read_unlabelled(data.files, config(tmp_path, {"messages": [TELL]}, **TALK))


def test_answer_that_is_to_be_written_may_be_missing_but_not_a_hypothesis(tmp_path):
    knobs = {"text_column": "prompt", "pair_column": "answer"}
    data = config(tmp_path, {"prompt": "写一句"}, **knobs, label_column="")
    examples = preparation.read_unlabelled(data.files, data)
    assert (examples.texts_N.tolist(), examples.pairs_N.tolist()) == (["写一句"], [""])
    data.label_column = "label"
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no column 'answer'"):
        preparation.read_unlabelled(data.files, data)


# Spans, in all ways in which they are written.


@pytest.mark.parametrize(
    "value",
    [
        [[9, 12, "name"], [0, 4, "company"]],
        '[[9, 12, "name"], [0, 4, "company"]]',
        [
            {"start": 9, "end": 12, "label": "name"},
            {"start": 0, "stop": 4, "label": "company", "score": 1},
        ],
        {"start": [9, 0], "stop": [12, 4], "label": ["name", "company"]},
        {"start": [9, 0], "stop": [12, 4], "tag": ["name", "company"]},
        {"name": {"叶老桂": [[9, 11]]}, "company": {"浙商银行": [[0, 3]]}},
        [[9, 12, "name"], [0, 4, "company"], [9, 12, "name"]],
        [[9.0, 12.0, "name"], {"start": 0.0, "end": 4.0, "label": "company"}],
    ],
)
def test_all_ways_of_writing_spans_mean_the_same(value):
    text = "浙商银行企业信贷部叶老桂博士"
    assert columns.spans(value, text) == (((9, 12, "name"), (0, 4, "company")), 0)


@pytest.mark.parametrize(
    "value",
    [
        [{"text": "北京", "answer_start": 2}],
        {"text": "北京", "answer_start": 2},
        {"text": ["北京"], "answer_start": [2]},
        {"answer_start": [2.0, 2.0], "text": ["北京", "北京"], "id": ["a", "b"]},
        '{"text": ["北京"], "answer_start": [2]}',
        {"start": 2, "end": 4, "label": "answer"},
    ],
)
def test_answers_of_squad_are_read_as_datasets_has_them_too(value):
    assert columns.spans(value, "我在北京") == (((2, 4, "answer"),), 0)


@pytest.mark.parametrize("value", [None, "", " ", [], {}, "[]", {"text": [], "answer_start": []}])
def test_no_spans_are_none(value):
    assert columns.spans(value, "好") == ((), 0)


def test_spans_may_overlap():
    assert len(columns.spans([[0, 3, "a"], [1, 2, "b"]], "北京人")[0]) == 2


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([[0, 4, "a"]], r"span \[0, 4\) 'a' holds nothing of a text of 3 characters"),
        ([[0, 1, "a"], [-1, 1, "a"]], r"\[-1, 1\)"),
        ([[1, 1, "a"]], r"\[1, 1\)"),
        ([[2, 1, "a"]], r"\[2, 1\)"),
        ({"a": {"京北": [[0, 1]]}}, r"\[0, 2\) 'a' holds '北京' .*expected '京北'"),
    ],
)
def test_span_that_does_not_fit_is_a_misfit(value, found):
    with pytest.raises(Misfit, match=found) as error:
        columns.spans(value, "北京人")
    assert error.value.reason == "span_outside_text"


@pytest.mark.parametrize(
    "value",
    [
        "北京",
        "{",
        5,
        [1, 2, "a"],
        [[0, 1]],
        [["0", 1, "a"]],
        [[0, 1.5, "a"]],
        [[0, 1, None]],
        [[0, 1, ""]],
        [{"start": 0, "label": "a"}],
        {"a": [[0, 1]]},
        {"start": [0], "stop": [1, 2], "label": ["a"]},
    ],
)
def test_malformed_spans_are_an_error_that_shows_how(value):
    with pytest.raises(ValueError, match=r"\[\[start, stop, label\], ...\]") as error:
        columns.spans(value, "北京人")
    assert not isinstance(error.value, Misfit)


def test_answers_that_do_not_stand_at_their_place_are_left_out_and_counted():
    answers = [
        {"text": "北京", "answer_start": 0},
        {"text": "北京", "answer_start": 0},
        {"text": "北京", "answer_start": -1},
        {"text": "是", "answer_start": 2},
    ]
    spans, missing = columns.spans(answers, "北京是首都")
    assert (spans, missing) == (((0, 2, "answer"), (2, 3, "answer")), 1)
    with pytest.raises(Misfit, match=r"no answer .*expected '北京' at -1") as error:
        columns.spans(answers[2:3], "北京是首都")
    assert error.value.reason == "answer_not_in_context"


@given(
    st.text(min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(-2, 32), st.integers(-2, 32), st.just("x")), max_size=4),
)
def test_spans_are_read_as_written_or_refused(text, written):
    fit = all(0 <= start < stop <= len(text) for start, stop, _ in written)
    if fit:
        spans, _ = columns.spans(json.dumps(written), text)
        assert spans == tuple(dict.fromkeys(written))
    else:
        with pytest.raises(Misfit):
            columns.spans(written, text)
