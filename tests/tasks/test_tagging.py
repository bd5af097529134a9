"""Properties of tagging: spans to targets and back, windows, losses, scores, and whole runs."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from evaluation import spans
from evaluation.evaluate import Predictions
from evaluation.metrics import estimate
from input_pipeline.batches import span_tags
from input_pipeline.corpus.preparation import read_unlabelled
from input_pipeline.examples import Examples, Ragged, object_array
from input_pipeline.tokenizers.loading import load_tokenizer
from tasks import text_windows
from tasks.limits import Given
from tasks.tagging import Tagging
from tasks.task import Chunk
from training.data import load_data
from training.experiment import build
from training.sharding import put_batch
from workflows.predict import predict
from workflows.test import test as open_test
from workflows.train import train

HEADS = ("softmax", "crf", "global_pointer")
LABELS = ("opinion", "thing")


def examples_of(texts, rows, labels=LABELS):
    """Examples with spans, given as rows of (start, stop, index of the label)."""
    ids_N = np.arange(len(texts), dtype=np.int64)
    return Examples(
        object_array(texts), None, ids_N, spans=Ragged.of(rows, width=3), span_labels=labels
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_checkpoint):
    return load_tokenizer(tiny_checkpoint)


@pytest.fixture
def make_task(tiny_tokenizer):
    """A function of config.tagging's values and of how long examples are: task and encoder."""

    def make(*, max_length=64, overlap=8, labels=LABELS, **values):
        config = common.get_config()
        config.task = "tagging"
        config.data.overlap = overlap
        config.tagging.update(characters=True, max_spans=8)
        config.tagging.update(values)
        task = Tagging(config, labels, tokenizer=tiny_tokenizer, backbone=None)
        return task, task.encoder("{text}", max_length=max_length, prefix_ids=())

    return make


@pytest.fixture(scope="session")
def make_tagging_config(reviews, tiny_checkpoint, tmp_path_factory):
    """A function of a folder and a head: a run on the reviews in which the things are marked."""
    path = tmp_path_factory.mktemp("tagging") / "things.jsonl"
    things = ("房间", "早餐", "书的内容", "快递", "手机屏幕", "电池", "服务态度", "价格", "包装")
    with path.open("w", encoding="utf-8") as file:
        for text, _ in reviews:
            found = [(text.find(thing), thing) for thing in things if thing in text]
            marked = [[i, i + len(thing), "thing"] for i, thing in found]
            marked.append([text.rindex("，") + 1 if "，" in text else 0, len(text), "opinion"])
            marked = [s for s in marked if s[2] == "thing" or s[0] >= marked[0][1]]
            file.write(json.dumps({"text": text, "spans": marked}, ensure_ascii=False) + "\n")

    def make(folder, head):
        config = common.get_config()
        config.task = "tagging"
        config.tagging.update(head=head, characters=True, max_spans=8, dropout=0.0)
        config.data.update(
            source="files",
            files=str(path),
            label_column="",
            spans_column="spans",
            prepared_dir=str(folder / "prepared"),
            max_train_examples=96,
            max_validation_examples=24,
            max_test_examples=24,
            batch_size=8,
            overlap=8,
        )
        config.layout.update(max_length=20, row_length=64, max_shapes=1)
        config.model.update(checkpoint=str(tiny_checkpoint), bidirectional=True)
        config.optimizer.learning_rate = 1e-2
        config.train.update(duration="48 steps", log_every="12 steps", checkpoint_every="24 steps")
        config.eval.every = "48 steps"
        config.train.keep_latest = 2
        config.integrate.update(methods=("interpolation", "soup"), points=3)
        return config

    return make


def targets_of(task, encoder, examples, *, training=True):
    encoded = encoder(examples.texts_N, offsets=True)
    count = len(examples)
    chunk = Chunk(
        examples, np.arange(count), np.zeros(count), examples.texts_N, examples.spans, 0, training
    )
    return encoded, task.targets(encoded, chunk)


def hidden_batch(task, encoder, examples, rows, *, length, weights):
    """Hidden states that are a function of example and place, laid out in rows, and the batch."""
    encoded, targets = targets_of(task, encoder, examples)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(len(encoded.tokens), 16)).astype(np.float32)
    names = ("tags_RxL", "segments_RxL", "positions_RxL")
    batch = {name: np.zeros((len(rows), length), np.int32) for name in names}
    hidden = np.full((len(rows), length, 16), 3.0, np.float32)
    for row, members in enumerate(rows):
        place = 0
        for example in members:
            size, first = int(encoded.lengths_B[example]), int(encoded.starts_B[example])
            to, of = (row, slice(place, place + size)), slice(first, first + size)
            hidden[to], batch["tags_RxL"][to] = states[of], targets.positions["tags_RxL"][of]
            batch["segments_RxL"][to] = example + 1
            batch["positions_RxL"][to] = np.arange(size)
            place += size
    return hidden, batch | {"weights_B": np.array(weights, np.float32)} | targets.examples


TEXTS = ("这家酒店的房间非常好", "早餐太差了", "服务态度很满意，价格不错")
SPANS = ([(5, 7, 1), (7, 10, 0)], [(0, 2, 1)], [(0, 4, 1), (4, 7, 0), (8, 10, 1), (10, 12, 0)])


@pytest.mark.parametrize("head", HEADS)
def test_packed_equals_padded_and_weight_zero_is_nothing(make_task, head):
    """Loss, gradients and predictions; a third example of weight 0 may even be broken."""
    task, encoder = make_task(head=head)
    examples = examples_of(TEXTS, SPANS)
    module = task.head(num_features=0)

    def run(rows, length, weights, *, broken=()):
        options = {"length": length, "weights": weights}
        hidden, batch = hidden_batch(task, encoder, examples, rows, **options)
        broken_RxL = np.isin(batch["segments_RxL"], [example + 1 for example in broken])
        shapes = module.init(jax.random.key(0), None, hidden, batch, deterministic=True)
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)

        @jax.jit
        def both(params, hidden):
            outputs = module.apply(params, None, hidden, batch, deterministic=True)
            outputs |= {
                name: jnp.where(broken_RxL[..., None], jnp.nan, value)
                for name, value in outputs.items()
                if "_RxL" in name
            }
            total, weight, _ = task.loss(outputs, batch)
            return total / weight, task.outputs(outputs, batch)

        gradient = jax.jit(jax.value_and_grad(both, argnums=(0, 1), has_aux=True))
        (loss, found), (gradients, to_hidden) = gradient(params, hidden)
        found = {name: np.asarray(value) for name, value in found.items()}
        segments = batch["segments_RxL"]
        by_example = {
            name: [value[segments == 1 + b] if "_RxL" in name else value[b] for b in range(2)]
            for name, value in found.items()
        }
        return loss, gradients, np.asarray(to_hidden)[segments == 1], by_example

    padded = run([[0], [1], [2]], 32, [1, 0.5, 0])
    packed = run([[1, 2, 0], []], 40, [1, 0.5, 0], broken=[2])
    for one, two in zip(jax.tree.leaves(padded), jax.tree.leaves(packed), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=1e-5)


def stitched(task, encoder, examples, **outputs):
    """What decode makes of outputs of the windows: functions of index, places and offsets."""
    windows = task.windows(examples, encoder, training=False)
    encoded = encoder(windows.texts_N, offsets=True)
    rows = {name: [] for name in outputs}
    for window, (start, size) in enumerate(zip(encoded.starts_B, encoded.lengths_B, strict=True)):
        offsets = encoded.offsets[start : start + size] + windows.starts_N[window]
        for name, output in outputs.items():
            rows[name].append(output(int(windows.owners_N[window]), offsets))
    arrays = {}
    for name, values in rows.items():
        arrays[name] = np.empty(len(values), object)
        for row, value in enumerate(values):
            arrays[name][row] = value
    predictions = Predictions(windows.ids_N, arrays)
    return task.decode(predictions, windows, examples, encoder), windows


def true_tags(examples):
    """Outputs of a tagger that knows what it sees: spans cut by an edge look like shorter ones."""

    def tags(owner, offsets):
        inside = np.clip(examples.spans.row(owner), 0, [offsets.max(), offsets.max(), 9])
        owners = span_tags.tokens_of(offsets, inside)[1]
        return span_tags.to_tags(owners, inside[:, 2]).astype(np.int32)

    return {"tags_N": tags, "sure_N": lambda _, offsets: np.ones(len(offsets), np.float32)}


@pytest.mark.parametrize(("max_length", "windowed"), [(64, False), (20, True), (14, True)])
def test_windows_are_stitched_to_what_the_whole_text_says(make_task, max_length, windowed):
    task, encoder = make_task(max_length=max_length, overlap=6)
    text = "，".join(TEXTS)
    examples = examples_of([text, TEXTS[1]], [[(5, 7, 1), (11, 13, 1), (17, 21, 1)], SPANS[1]])
    found, windows = stitched(task, encoder, examples, **true_tags(examples))
    assert (len(windows) > 2) == windowed
    for row in range(2):
        assert found["spans_N"][row].tolist() == examples.spans.row(row).tolist()
    assert found["reachable_N"].tolist() == [3, 1]
    scores = task.score(found, examples)
    assert estimate(scores, "f1")["value"] == 1


def test_a_span_that_an_edge_cuts_is_not_learned_there(make_task):
    """Its tokens are asked in the window that holds it whole; without one, it is counted."""
    task, encoder = make_task(max_length=14, overlap=6)
    text = "，".join(TEXTS)
    for long, whole_in, lost in (((8, 18), [7], 0), ((6, 21), [], 1)):
        examples = examples_of([text], [[(2, 4, 1), (*long, 0), (22, 24, 1)]])
        windows = task.windows(examples, encoder, training=True)
        pipeline = SimpleNamespace(encoder=encoder)
        limits = list(task.limits(Given(examples, windows, pipeline, True, False)))
        assert [(limit.count, limit.total) for limit in limits] == [(lost, 3)]
        assert "config.data.overlap (now 6)" in limits[0].remedy
        encoded, targets = targets_of(task, encoder, windows)
        for window, first in enumerate(encoded.starts_B):
            own = slice(first, first + encoded.lengths_B[window])
            tags, of_text = targets.positions["tags_RxL"][own], encoded.fields[own] == 0
            places = encoded.offsets[own] + windows.starts_N[window]
            inside = of_text & (places[:, 1] > long[0]) & (places[:, 0] < long[1])
            assert (tags[of_text & ~inside] > 0).all()
            if inside.any():
                whole = windows.starts_N[window] in whole_in
                assert ((tags[inside] > 0) == whole).all()


def test_template_and_marks_are_not_asked(make_task):
    task, _ = make_task()
    encoder = task.encoder("标注：{text}。", max_length=64, prefix_ids=())
    encoded, targets = targets_of(task, encoder, examples_of(TEXTS, SPANS))
    assert (task.counted(encoded, targets) == (encoded.fields == 0)).all()
    assert not task.counted(encoded, targets).all()


def test_spans_that_a_head_cannot_hold_are_refused(make_task):
    nested = examples_of(["北京大学"], [[(0, 2, 1), (0, 4, 0)]])
    with pytest.raises(ValueError, match=r"1 of 1 examples of the train split.*overlapping_spans"):
        make_task(head="crf")[0].check(nested, "train")
    task, encoder = make_task(head="global_pointer", max_spans=1)
    task.check(nested, "train")
    with pytest.raises(ValueError, match=r"config.tagging.max_spans=1, but '北京大学' has 2"):
        targets_of(task, encoder, nested)
    windows = task.windows(nested, encoder, training=False)
    given = Given(nested, windows, SimpleNamespace(encoder=encoder), False, False)
    assert [limit.remedy for limit in task.limits(given) if limit.count] == ["raise it to 2"]
    with pytest.raises(ValueError, match=r"max_spans=1: 1 of 1 train windows .* raise it to 2"):
        list(task.limits(given._replace(training=True)))
    with pytest.raises(ValueError, match=r"set config.data.spans_column"):
        make_task(labels=())
    with pytest.raises(ValueError, match=r"set config.data.spans_column"):
        task.check(Examples(nested.texts_N, None, nested.ids_N), "test")


def test_nested_spans_are_found_and_scored(make_task):
    """global_pointer's outputs to predictions: what scores above 0, in characters."""
    task, encoder = make_task(head="global_pointer", max_spans=3)
    examples = examples_of(["北京大学"], [[(0, 2, 1), (0, 4, 0)]])
    first = int(np.flatnonzero(encoder(["北京大学"], offsets=True).fields == 0)[0])
    tokens = encoder(["北京大学"], offsets=True).offsets[first:]
    last = [first + int(np.flatnonzero(tokens[:, 1] == stop)[-1]) for stop in (2, 4, 3)]
    spans_NxKx3 = np.array([[[first, last[0], 1], [first, last[1], 0], [first, last[2], 0]]])
    outputs = {"spans_NxKx3": spans_NxKx3, "scores_NxK": np.array([[5.0, 2.0, -1e9]], np.float32)}
    windows = task.windows(examples, encoder, training=False)
    found = task.decode(Predictions(windows.ids_N, outputs), windows, examples, encoder)
    assert found["spans_N"][0].tolist() == [[0, 2, 1], [0, 4, 0]]
    assert found["confidence_N"][0] == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-5)
    assert estimate(task.score(found, examples), "f1")["value"] == 1


def test_floors_know_what_training_spans_say(make_task):
    task, _ = make_task()
    train, test = (
        examples_of(TEXTS, SPANS),
        examples_of(["房间和早餐不错", "早餐"], [[(0, 2, 1)], []]),
    )
    floors = task.baselines(train, test)
    assert set(floors) == {task.FLOOR, "most frequent tag per character"}
    # 房间, 早餐 and 不错 are known; the first alone is true.
    assert floors[task.FLOOR].statistics["f1"].tolist() == [[1, 3, 1], [0, 1, 0]]
    words = examples_of(
        ["中国人民好", "他说好"], [[(0, 2, 0), (2, 4, 0), (4, 5, 0)], [(0, 1, 0), (1, 3, 0)]]
    )
    [found] = spans.dictionary(words, ["人民说中国好"])
    assert found.tolist() == [[0, 2, 0], [2, 3, 0], [3, 5, 0], [5, 6, 0]]  # tiles: 说 is a word


@pytest.mark.parametrize("slots", [1, 3])
def test_the_trainers_batches_give_the_same_loss_and_gradients_in_every_layout(
    slots, make_tagging_config, tmp_path
):
    found = {}
    for kind in ("pad", "pack"):
        config = make_tagging_config(tmp_path, "crf")
        config.layout.update(kind=kind, max_shapes=2)
        config.tagging.update(characters=slots == 1, slots=slots)
        data = load_data(config)
        experiment = build(config, tmp_path / "run", data.labels, lambda line: None)
        windows = experiment.windows(data.split("train"), training=True)
        experiment.pipeline.plan(windows)
        batch = next(experiment.pipeline.train(windows, first_example=0))
        part = {name: array[0] for name, array in batch.items()}

        def loss(params, part, experiment=experiment):
            outputs = experiment.apply({**experiment.frozen, **params}, part)
            total, weight, _ = experiment.task.loss(outputs, part)
            return total / weight

        step = jax.jit(jax.value_and_grad(loss))
        on_device = put_batch(part, experiment.mesh)
        value, gradients = jax.device_get(step(experiment.put(experiment.initial), on_device))
        found[kind] = part["tokens_RxL"].shape, value, gradients
    (pad_shape, padded, others), (pack_shape, packed, gradients) = found.values()
    assert pad_shape != pack_shape
    assert packed == pytest.approx(padded, rel=1e-5)
    for path, gradient in gradients.items():
        difference = np.linalg.norm(gradient - others[path])
        assert difference <= 1e-5 * np.linalg.norm(others[path]), path


def test_predicted_spans_are_shown_in_the_text_as_it_was_given(make_task, tmp_path):
    task, _ = make_task()
    data = common.get_config().data
    data.normalization = ("zero_width", "halfwidth", "compatibility", "whitespace")
    text = "\u3000\u3000我\u200b在北\u200b京\r\n\r\n见到Ａｎｎ，㎡大\u3000"
    (tmp_path / "new.jsonl").write_text(json.dumps({"text": text}) + "\n", "utf-8")
    examples = read_unlabelled(str(tmp_path / "new.jsonl"), data)
    assert list(examples.texts_N) == ["我在北京\n见到Ann，m2大"]
    found = np.array([[2, 4, 0], [7, 10, 1], [11, 12, 0]], np.int32)
    outputs = {"spans_N": object_array([found]), "scores_N": object_array([np.ones(3)])}
    predictions = Predictions(examples.ids_N, outputs | {"confidence_N": np.ones(1)})
    (record,) = task.describe(predictions, examples)
    assert record["text"] == text
    assert [text[i:j] for i, j, _, _ in record["predicted"]] == ["北\u200b京", "Ａｎｎ", "㎡"]
    assert [row[2:] for row in record["predicted"]] == [
        ["opinion", "北\u200b京"],
        ["thing", "Ａｎｎ"],
        ["opinion", "㎡"],
    ]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=4),
)
def test_slots_tile_the_tokens_and_hold_spans_that_begin_within_one(sizes, slots, spans):
    stops = np.cumsum(sizes)
    offsets = np.stack([stops - sizes, stops], axis=1)
    places, units = text_windows.spread(3 + np.arange(len(sizes)), offsets, slots)
    assert (np.diff(places) > 0).all() and (units[1:, 0] == units[:-1, 1]).all()
    assert units[0, 0] == 0 and units[-1, 1] == stops[-1]
    np.testing.assert_array_equal(
        np.bincount(places // slots - 3, minlength=len(sizes)), np.minimum(sizes, slots)
    )
    # A border is lost only behind the first slots - 1 characters of a longer token.
    text, end = "字" * int(stops[-1]), 0
    borders = {*units[:, 0].tolist(), int(stops[-1])}
    kept = []
    for start, size in sorted(spans):
        if start >= end and start + size <= len(text):
            kept.append((start, start + size, 0))
            end = start + size
    kept = np.array([span for span in kept if {span[0], span[1]} <= borders]).reshape(-1, 3)
    assert span_tags.representable(kept, units, text, flat=True).all()


def test_slots_are_for_pieces_and_flat_heads(make_task):
    for values in ({"characters": True}, {"characters": False, "head": "global_pointer"}):
        with pytest.raises(ValueError, match=r"config.tagging.slots=2 gives pieces several tags"):
            make_task(slots=2, **values)


@pytest.mark.parametrize("slots", [1, 4])
def test_a_run_learns_evaluates_and_predicts(slots, make_tagging_config, tmp_path):
    """A CRF on windows of the reviews, from the file to predictions.jsonl."""
    config = make_tagging_config(tmp_path, "crf")
    config.tagging.update(characters=slots == 1, slots=slots)
    config.model.head_start = "random" if slots == 1 else "probe"
    results = train(config, tmp_path / "run")
    tuned = results["models"]["fine-tuned"]
    assert tuned["f1"]["value"] > (0.9 if slots == 1 else 0.6), tuned
    kinds = [candidate["kind"] for candidate in results["integration"]["candidates"]]
    assert kinds == ["interpolation", "single", "single", "soup"]
    again = open_test(config, tmp_path / "run")["models"]["fine-tuned"]
    assert again["representable"] == tuned["representable"]
    config.predict.input = str(tmp_path / "texts.txt")
    text = "\u3000\u3000这家酒店的房间非常好，值得推荐！ "
    (tmp_path / "texts.txt").write_text(f"{text}\n", encoding="utf-8")
    [line] = predict(config, tmp_path / "run").read_text("utf-8").splitlines()
    record = json.loads(line)
    assert record["text"] == text and [13, 18, "opinion", "值得推荐！"] in record["predicted"]
    if slots == 1:  # with random weights, pieces take longer to learn
        assert [7, 9, "thing", "房间"] in record["predicted"]
    assert "wrong" not in record and 0 <= record["confidence"] <= 1
