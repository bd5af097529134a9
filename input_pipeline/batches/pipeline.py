"""Examples in memory to batches of numpy arrays.

Here: the tf.data graph of training (order, texts, augmentation, then tokens, targets and layout),
the plan of batch shapes, and the batches of evaluation and prediction. Not here: reading and
splitting data (preparation.py), what each stage does (stream.py, augmentation.py, template.py,
layout.py), what a task asks of an example (its `targets`). Every stage works on whole batches.

A batch is a dict of tokens_RxL, positions_RxL, segments_RxL (int32; segment = 1 + index of the
sequence, 0 is padding), types_RxL (int32; 1 in second texts, where a family marks them),
weights_B (float32; 0 for padding and masked examples), ids_B (int64; -1 for padding), features_BxK
(float32) where examples have features, and what the task adds. An example has one sequence or, of
choices, as many as task.sequences, one after the other: sequence k of example b is b * K + k.
Training batches have a leading axis M of microbatches.
"""

import dataclasses
import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.batches import layout as layouts
from input_pipeline.batches.augmentation import Augmenter, segmentation_draws
from input_pipeline.batches.separate import SeparateEncoder
from input_pipeline.batches.stream import Stream
from input_pipeline.batches.targets import Chunk, Targets, Task
from input_pipeline.batches.template import NO_SAMPLING, Encoded, Encoder
from input_pipeline.eta import working
from input_pipeline.examples import Examples, Ragged
from input_pipeline.lazy import tf

Batch = dict[str, np.ndarray]

_POSITIONS = ("positions_RxL", "segments_RxL", "tokens_RxL", "types_RxL")
_SIMULATED = 16_384  # examples of the stream that the shapes are chosen from
_CHUNK = 256  # examples per pass through the stages: several steps at once, where they are small
_MEAN_TOKENS = 16  # evaluation's B: what its rows hold at this mean length
_NO_SPANS = (np.zeros((0, 3), np.int32), np.zeros(0, np.int64))


@dataclasses.dataclass(frozen=True)
class ShapePlan:
    """The batch shapes of training and what to expect of them.

    Attributes:
        kind: 'pad', 'bucket' or 'pack'.
        shapes: (R, L) in the order in which steps try them; the last always fits.
        num_examples: examples per microbatch.
        fill: expected share of positions that are real tokens.
        tokens_per_example: mean, after truncation.
    """

    kind: str
    shapes: tuple[layouts.Shape, ...]
    num_examples: int
    fill: float
    tokens_per_example: float

    def prose(self) -> str:
        """Describes it for the start-up log."""
        shapes = ", ".join(f"{rows}x{length}" for rows, length in self.shapes)
        return (
            f"Layout {self.kind!r} puts {self.num_examples} examples in rows x positions {shapes}, "
            f"the first that fits: about {self.fill:.1%} of positions are real tokens, "
            f"{self.tokens_per_example:.1f} per example."
        )


class TextPipeline:
    """Turns examples into batches for one task and one configuration.

    Attributes:
        encoder: texts to tokens.
    """

    def __init__(
        self,
        task: Task,
        config: ConfigDict,
        *,
        row_multiple: int = 1,
        shards: Sequence[int] | None = None,
        prefix_ids: Sequence[int] = (),
    ):
        """Checks the configuration.

        Args:
            task: what it asks of an example.
            config: of the run.
            row_multiple: R is a multiple of this: the number of parts that rows are split in.
            shards: which of these parts belong to this process; None is all.
            prefix_ids: put before every example: the virtual tokens of prompt tuning.

        Raises:
            ValueError: a value that cannot work, naming its key.
        """
        layout, size, count = config.layout, config.data.batch_size, config.train.microbatches
        if layout.kind != "pad" and layout.row_length < layout.max_length:
            raise ValueError(
                f"layout.row_length={layout.row_length} is shorter than layout.max_length="
                f"{layout.max_length}: raise it, so that an example fits into a row"
            )
        if size % count:
            raise ValueError(f"data.batch_size={size} is no multiple of train.microbatches={count}")
        rows = size // count * task.sequences
        if layout.kind == "pad" and rows % row_multiple:
            fits = -(-rows // row_multiple) * row_multiple * count // task.sequences
            raise ValueError(
                f"data.batch_size={size} fills {rows} rows of a microbatch (layout.kind='pad'), "
                f"which {row_multiple} devices along data do not divide: set it to {fits}, or the "
                "layout to 'pack'"
            )
        self._task, self._config, self._row_multiple = task, config, row_multiple
        self.encoder: Encoder = task.encoder(
            config.data.template, max_length=layout.max_length, prefix_ids=prefix_ids
        )
        self._columns = (*_POSITIONS, *(n for n in task.positions if n not in _POSITIONS))
        self._batch_size, self._step_shape = size, (count, size // count * task.sequences)
        self._shards, self._plan = shards, None
        # Its tables take seconds to make, and both `plan` and `train` want it.
        self._augmenter = functools.lru_cache(maxsize=1)(
            lambda examples: Augmenter(examples, config.augmentation, seed=config.seed)
        )

    def plan(self, examples: Examples) -> ShapePlan:
        """Chooses the shapes of training from the stream that `train` will draw from `examples`.

        It tokenises the first positions of that very stream, augmentation included.
        """
        kind, microbatches = self._config.layout.kind, self._step_shape[0]
        steps = -(-_SIMULATED // (self._batch_size * self._task.sequences))
        total = steps * self._batch_size
        chunks = self._texts(examples, first_example=0, count=_CHUNK).take(-(-total // _CHUNK))
        encoded = [self._encode(examples, *chunk)[0] for chunk in _iterate(chunks, [])]
        lengths = np.concatenate([chunk.lengths_B for chunk in encoded])
        lengths = lengths[: total * self._task.sequences]
        lengths_SxMxB = lengths.reshape(steps, *self._step_shape)
        shapes = layouts.choose_shapes(self._config.layout, lengths_SxMxB, self._row_multiple)
        used = [self._place(lengths_MxB, shapes)[0] for lengths_MxB in lengths_SxMxB]
        positions = microbatches * sum(rows * length for rows, length in used)
        fill, mean = float(lengths.sum() / positions), float(lengths.sum() / total)
        self._plan = ShapePlan(kind, shapes, self._batch_size // microbatches, fill, mean)
        return self._plan

    def train(
        self, examples: Examples, *, first_example: int, position: None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end, from position `first_example` of the stream on.

        Args:
            examples: the training split.
            first_example: step * batch_size to go on after `step` steps.
            position: what `seen` returned: None.

        Yields:
            Batches whose arrays all have a leading axis M; B is batch_size / M. Where this process
            tokenises the examples of its shards alone, the others are zeros, but for ids_B,
            lengths_B (of all), and shards_B, the part of the rows that each example is in.

        Raises:
            ValueError: what a stage finds wrong, while iterating.
        """
        shapes = (self._plan or self.plan(examples)).shapes
        lengths_N = None if self._shards is None else self._lengths(examples)
        failures: list[ValueError] = []

        def finish(*chunk: np.ndarray) -> list[np.ndarray]:
            try:
                return self._lay_out(examples, shapes, lengths_N, *chunk)[1]
            except ValueError as error:  # TensorFlow would bury it in a stack of its own
                failures.append(error)
                raise

        count = max(1, _CHUNK // self._batch_size) * self._batch_size
        chunks = self._texts(examples, first_example=first_example, count=count)
        first = next(_iterate(chunks.take(1), []))
        names, arrays = self._lay_out(examples, shapes, lengths_N, *first)
        dtypes = [tf.as_dtype(array.dtype) for array in arrays]
        chunks = chunks.map(
            lambda *chunk: tf.numpy_function(finish, chunk, dtypes, stateful=False),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        for arrays, shapes_Sx2, *values in _iterate(chunks.prefetch(tf.data.AUTOTUNE), failures):
            sizes = self._step_shape[0] * shapes_Sx2.prod(axis=1)
            for step, columns in enumerate(np.split(arrays, np.cumsum(sizes)[:-1], axis=1)):
                shape = (self._step_shape[0], *shapes_Sx2[step])
                rows = (column.reshape(shape) for column in columns)  # each a view, not a copy
                batch = dict(zip(self._columns, rows, strict=True))
                yield batch | {n: v[step] for n, v in zip(names, values, strict=True)}

    def evaluate(self, examples: Examples) -> Iterator[Batch]:
        """Yields every example once, in batches of one shape.

        Rows are packed over the whole split, whatever the layout of training; only 'pad' has one
        sequence a row. The shape depends on the configuration alone, so that one compilation serves
        every split: B is what the rows hold at a mean of 16 tokens a sequence. The order is the
        packing's: sort by id where it matters.

        Args:
            examples: any split, with or without labels.

        Yields:
            Batches without the axis M. Padding examples have weight 0 and id -1.
        """
        if not len(examples):
            return
        layout, count = self._config.layout, self._task.sequences
        length, per_row = layout.row_length, max(1, layout.row_length // _MEAN_TOKENS)
        if layout.kind == "pad":
            length, per_row = layout.max_length, 1
        # Choices of one example stay together, and must find room whatever their lengths.
        most = -(-count // max(1, min(per_row, length // layout.max_length)))
        rows = max(self._config.eval.rows, most)
        rows = -(-rows // self._row_multiple) * self._row_multiple
        size = rows * per_row // count
        parts = [self._arrays(examples, *c, training=False) for c in self._stored(examples)]
        flat_KxP = np.concatenate([flat for flat, _, _ in parts], axis=1)
        lengths_NxK = np.concatenate([lengths for _, lengths, _ in parts]).reshape(-1, count)
        values = {n: np.concatenate([part[n] for *_, part in parts]) for n in parts[0][2]}
        starts_NxK = (np.cumsum(lengths_NxK) - lengths_NxK.reshape(-1)).reshape(-1, count)
        place = layouts.pack_alone if count == 1 else layouts.pack_together
        for chosen, rows_S, offsets_S in place(lengths_NxK, rows, length, per_row):
            lengths_S, firsts_S = lengths_NxK[chosen].reshape(-1), starts_NxK[chosen].reshape(-1)
            columns = [flat_KxP[:, a : a + n] for a, n in zip(firsts_S, lengths_S, strict=True)]
            arrays = layouts.fill(
                np.concatenate(columns, axis=1),
                lengths_S,
                rows_S * length + offsets_S,
                np.arange(1, len(lengths_S) + 1),
                size=rows * length,
            ).reshape(-1, rows, length)
            batch = dict(zip(self._columns, arrays, strict=True))
            for name, value in values.items():
                padding = [(0, size - len(chosen))] + [(0, 0)] * (value.ndim - 1)
                fill = -1 if name == "ids_B" else 0
                batch[name] = np.pad(value[chosen], padding, constant_values=fill)
            yield batch

    def encoded(self, examples: Examples, *, most: int = _SIMULATED) -> Iterator[Encoded]:
        """Yields the tokens of the first `most` examples, as evaluation reads them."""
        for first in range(0, min(len(examples), most), _CHUNK):
            part = examples.take(np.arange(first, min(first + _CHUNK, len(examples))))
            rows, epochs = np.arange(len(part)), np.zeros(len(part), np.int64)
            candidates = self._task.candidates(part, rows, epochs)
            yield self._sequences(part.texts_N, part.pairs_N, candidates)

    def ids(self, examples: Examples) -> set[int]:
        """Returns all token ids that the examples have, as evaluation reads them."""
        parts = self.encoded(examples, most=len(examples))
        return set().union(*(np.unique(part.tokens).tolist() for part in parts))

    def seen(self, examples: Examples, step: int, **options: Any) -> None:
        """Returns None: of a single task, the number of examples gives the stream's position."""
        del examples, step, options

    def preview(self, examples: Examples, *, count: int, epoch: int) -> tuple[Encoded, Targets]:
        """Returns the first examples as training sees them in an epoch, for --mode=inspect."""
        indices = np.arange(min(count, len(examples)))
        epochs_B = np.full(len(indices), epoch)
        augmented = self._augmenter(examples)(tf.constant(indices), tf.constant(epochs_B))
        pairs = None if augmented.pairs_B is None else augmented.pairs_B.numpy()
        spans = [part.numpy() for part in augmented.spans] if augmented.spans else _NO_SPANS
        return self._encode(examples, augmented.texts_B.numpy(), pairs, indices, epochs_B, *spans)

    def _texts(self, examples: Examples, *, first_example: int, count: int) -> "tf.data.Dataset":
        """Returns the endless data set of what `_encode` takes, `count` examples at a time."""
        lengths_N = np.fromiter(map(len, examples.texts_N), np.int64, len(examples))
        if examples.pairs_N is not None:
            lengths_N += np.fromiter(map(len, examples.pairs_N), np.int64, len(examples))
        stream = Stream(lengths_N, seed=self._config.seed)
        augmenter = self._augmenter(examples)

        def order(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return stream.at(first_example + int(chunk) * count, count)

        def select(chunk: "tf.Tensor") -> tuple["tf.Tensor", ...]:
            drawn = tf.numpy_function(order, [chunk], [tf.int64] * 2, stateful=False)
            indices, epochs = (tf.ensure_shape(part, [count]) for part in drawn)
            augmented = augmenter(indices, epochs)
            pairs = tf.constant("") if augmented.pairs_B is None else augmented.pairs_B
            spans = augmented.spans or map(tf.constant, _NO_SPANS)
            return augmented.texts_B, pairs, indices, epochs, *spans

        chunks = tf.data.Dataset.range(np.iinfo(np.int64).max)
        return chunks.map(select, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _stored(self, examples: Examples) -> Iterator[tuple]:
        """Yields what `_encode` takes of all examples as they are, outside training."""
        for first in range(0, len(examples), _CHUNK):
            indices = np.arange(first, min(first + _CHUNK, len(examples)))
            pairs = None if examples.pairs_N is None else examples.pairs_N[indices]
            spans = _NO_SPANS if examples.spans is None else examples.spans.take(indices)
            yield examples.texts_N[indices], pairs, indices, np.zeros_like(indices), *spans

    def _encode(
        self,
        examples: Examples,
        texts: np.ndarray,
        pairs: np.ndarray | None,
        indices: np.ndarray,
        epochs: np.ndarray,
        spans_Sx3: np.ndarray,
        span_splits: np.ndarray,
        *,
        num_threads: int | None = None,
        training: bool = True,
    ) -> tuple[Encoded, Targets]:
        """Tokenises what `_texts` or `_stored` gives, and asks the task for its targets."""
        config, sampling = self._config, NO_SAMPLING
        if training:
            ids_B = examples.ids_N[indices]
            sampling = segmentation_draws(config.augmentation, config.seed, epochs, ids_B)
        encoded = self._sequences(
            texts,
            None if examples.pairs_N is None else pairs,
            self._task.candidates(examples, indices, epochs),
            num_threads=num_threads,
            sampling=sampling,
            offsets=self._task.offsets,
        )
        strings = [t.decode() if isinstance(t, bytes) else t for t in texts]
        spans = None if examples.spans is None else Ragged(spans_Sx3, span_splits)
        chunk = Chunk(examples, indices, epochs, strings, spans, config.seed, training)
        targets = self._task.targets(encoded, chunk)
        if "lengths_B" in targets.examples:
            lengths_B, tokens = targets.examples.pop("lengths_B"), targets.positions["tokens_RxL"]
            encoded = dataclasses.replace(
                encoded, tokens=tokens, lengths_B=lengths_B, types=np.zeros_like(tokens)
            )
        return encoded, targets

    def _sequences(
        self,
        texts: np.ndarray,
        pairs: np.ndarray | None,
        choices_B: Sequence[Sequence[str]] | None,
        **options: Any,
    ) -> Encoded:
        """Tokenises K sequences an example; those of absent choices have no tokens."""
        count = self._task.sequences
        if isinstance(self.encoder, SeparateEncoder):
            return self.encoder(texts, pairs, negatives=choices_B, **options)
        if "pair" not in self.encoder.fields:
            pairs = None
        if count == 1 or choices_B is None:
            return self.encoder(texts, pairs, **options)
        counts_B = np.array([len(choices) for choices in choices_B])
        encoded = self.encoder(
            np.repeat(texts, counts_B),
            None if pairs is None else np.repeat(pairs, counts_B),
            choices=[choice for choices in choices_B for choice in choices],
            **options,
        )
        exists_BxK = np.arange(count) < counts_B[:, None]
        lengths_BxK, cut_BxK = np.zeros(exists_BxK.shape, int), np.zeros(exists_BxK.shape, bool)
        lengths_BxK[exists_BxK], cut_BxK[exists_BxK] = encoded.lengths_B, encoded.cut_B
        return dataclasses.replace(
            encoded, lengths_B=lengths_BxK.reshape(-1), cut_B=cut_BxK.reshape(-1)
        )

    def _arrays(
        self, examples: Examples, *chunk: np.ndarray, **options: Any
    ) -> tuple[np.ndarray, np.ndarray, Batch]:
        """Returns the columns behind positions and segments of a chunk, flat, int32 [K, P]; the
        lengths of its sequences; and what a batch holds for each example."""
        encoded, targets = self._encode(examples, *chunk, **options)
        columns = {"tokens_RxL": encoded.tokens, "types_RxL": encoded.types} | targets.positions
        flat_KxP = np.stack([np.asarray(columns[name], np.int32) for name in self._columns[2:]])
        indices_B = chunk[2]
        values = {"ids_B": examples.ids_N[indices_B]}
        values["weights_B"] = np.ones(len(indices_B), np.float32)
        if examples.features_NxK is not None:
            values["features_BxK"] = examples.features_NxK[indices_B]
        return flat_KxP, encoded.lengths_B, values | targets.examples

    def _lengths(self, examples: Examples) -> np.ndarray | None:
        """Returns each example's number of tokens; None where that is not the same in every epoch,
        or an example has several sequences."""
        drawn = any(v for k, v in self._config.augmentation.items() if k.endswith("_rate"))
        if drawn or self._task.sequences > 1:
            return None
        with working("Counting tokens", len(examples)) as work:
            lengths = []
            for chunk in self._stored(examples):
                lengths.append(self._sequences(*chunk[:2], None).lengths_B)
                work.done += len(lengths[-1])
        # Of some tasks the targets are a part of the sequence, and may be drawn.
        encoded, _ = self._encode(examples, *next(self._stored(examples)))
        same = np.array_equal(encoded.lengths_B, lengths[0])
        return np.concatenate(lengths) if same else None

    def _lay_out(
        self,
        examples: Examples,
        shapes: tuple[layouts.Shape, ...],
        lengths_N: np.ndarray | None,
        *chunk: np.ndarray,
    ) -> tuple[list[str], list[np.ndarray]]:
        """Tokenises and lays out the examples of S steps; runs in several threads at once.

        With `lengths_N`, of all examples, those of other processes are placed, and not tokenised.

        Returns:
            the names of the last arrays; and the arrays: what `_columns` names of all steps end to
            end, int32 [K, positions]; the shape of each step, int64 [S, 2]; and the last ones, of
            examples, [S, M, B, ...].
        """
        if lengths_N is None:
            flat_KxP, lengths_S, values = self._arrays(examples, *chunk, num_threads=1)
        else:
            lengths_S = lengths_N[chunk[2]]
        lengths_SxMxB = lengths_S.reshape(-1, *self._step_shape)
        chosen, starts, shards, size = [], [], [], 0
        for lengths_MxB in lengths_SxMxB:
            (rows, length), places = self._place(lengths_MxB, shapes)
            chosen.append((rows, length))
            for rows_B, offsets_B in places:
                starts.append(size + rows_B * length + offsets_B)
                shards.append(rows_B * self._row_multiple // rows)
                size += rows * length
        segments = 1 + np.arange(len(lengths_S)) % self._step_shape[1]
        starts_S, shards_S = np.concatenate(starts), np.concatenate(shards)
        if lengths_N is not None:
            here = np.flatnonzero(np.isin(shards_S, self._shards))
            flat_KxP, lengths_H, own = self._arrays(examples, *_part(chunk, here), num_threads=1)
            assert np.array_equal(lengths_H, lengths_S[here])
            values = {"lengths_B": lengths_S, "shards_B": shards_S}
            for name, part in own.items():
                values[name] = np.zeros((len(lengths_S), *part.shape[1:]), part.dtype)
                values[name][here] = part
            values["ids_B"] = examples.ids_N[chunk[2]]
            starts_S, segments, lengths_S = starts_S[here], segments[here], lengths_H
        arrays = layouts.fill(flat_KxP, lengths_S, starts_S, segments, size=size)
        shape = (*lengths_SxMxB.shape[:2], self._step_shape[1] // self._task.sequences)
        by_step = [value.reshape(*shape, *value.shape[1:]) for value in values.values()]
        return list(values), [arrays, np.array(chosen), *by_step]

    def _place(
        self, lengths_MxB: np.ndarray, shapes: tuple[layouts.Shape, ...]
    ) -> tuple[layouts.Shape, list[tuple[np.ndarray, np.ndarray]]]:
        """Returns the first shape that fits all microbatches, and the places in each."""
        for shape in shapes:
            places = [layouts.place(self._config.layout.kind, row, shape) for row in lengths_MxB]
            if None not in places:
                return shape, places
        raise ValueError(f"no shape of {shapes} holds examples of {lengths_MxB.tolist()} tokens")


def _part(chunk: Sequence[np.ndarray], chosen: np.ndarray) -> list[np.ndarray]:
    """Returns the chosen examples of what `_texts` gives."""
    *columns, spans_Sx3, span_splits = chunk
    spans = (spans_Sx3, span_splits)
    if len(span_splits):
        spans = Ragged(*spans).take(chosen)
    return [*(column[chosen] if np.ndim(column) else column for column in columns), *spans]


def _iterate(dataset: "tf.data.Dataset", failures: list[ValueError]) -> Iterator[Any]:
    """Returns the elements of `dataset`; raises the first of `failures` if a stage fails."""
    iterators = [dataset.as_numpy_iterator()]
    op_error = tf.errors.OpError  # a local name outlives the module at exit

    def elements() -> Iterator[Any]:
        try:
            while True:
                yield next(iterators[0])
        except StopIteration:
            return
        except op_error as error:
            raise (failures[0] if failures else ValueError(error.message)) from None

    generator = elements()
    # An iterator that outlives the interpreter's last line waits for its threads while they wait
    # for the interpreter's lock, for ever. Finalisers run before that.
    weakref.finalize(generator, iterators.clear)
    return generator
