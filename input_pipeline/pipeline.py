"""Examples in memory to batches of numpy arrays.

Here: the tf.data graph of training (order, texts, augmentation, then tokens and layout), the plan
of batch shapes, and the batches of evaluation and prediction. Not here: reading and splitting data
(preparation.py), and what each stage does (stream.py, augmentation.py, tokenization.py, layout.py).
Called by training/, evaluation/ and main.py. Every stage works on whole batches.

A batch is a dict of tokens_RxL, positions_RxL, segments_RxL (int32; segment = 1 + index of the
example, 0 is padding), types_RxL (int32; 1 in second texts, where a family tells them apart),
labels_B (int32), weights_B (float32; 0 for padding and masked examples),
ids_B (int64; -1 for padding) and, where examples have features, features_BxK (float32). Training
batches have a leading axis M of microbatches.
"""

import dataclasses
import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import layout as layouts
from input_pipeline.augmentation import Augmenter, segmentation_draws
from input_pipeline.examples import Examples
from input_pipeline.lazy import tf
from input_pipeline.stream import Stream
from input_pipeline.template import Encoded, Encoder
from input_pipeline.tokenization import Tokenizer

Batch = dict[str, np.ndarray]

_POSITIONS = ("tokens_RxL", "positions_RxL", "segments_RxL", "types_RxL")
_SIMULATED = 16_384  # examples of the stream that the shapes are chosen from
_CHUNK = 256  # examples per pass through the stages: several steps at once, where they are small
_MEAN_TOKENS = 16  # evaluation's B: what its rows hold at this mean length


@dataclasses.dataclass(frozen=True)
class ShapePlan:
    """The batch shapes of training and what to expect of them.

    Attributes:
        kind: 'pad', 'bucket' or 'pack'.
        shapes: (R, L) in the order in which steps try them; the last always fits.
        num_examples: examples per microbatch.
        fill: expected share of positions that are real tokens.
        tokens_per_example: mean, after truncation.
        truncated: texts cut to max_length, of the `counted` ones.
        counted: how many texts were looked at; all of the split unless it is very large.
    """

    kind: str
    shapes: tuple[layouts.Shape, ...]
    num_examples: int
    fill: float
    tokens_per_example: float
    truncated: int
    counted: int

    def prose(self) -> str:
        """Says it for the start-up log."""
        shapes = ", ".join(f"{rows}x{length}" for rows, length in self.shapes)
        return (
            f"Layout {self.kind!r} puts {self.num_examples} examples in rows x positions {shapes}, "
            f"the first that fits: about {self.fill:.1%} of positions are real tokens, "
            f"{self.tokens_per_example:.1f} per example. "
            f"{self.truncated:,} of {self.counted:,} texts are cut to max_length."
        )


class TextPipeline:
    """Turns examples into batches for one tokeniser and one configuration."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str,
        layout: ConfigDict,
        augmentation: ConfigDict,
        batch_size: int,
        microbatches: int,
        row_multiple: int,
        seed: int,
        eval_rows: int,
        prefix_ids: Sequence[int] = (),
    ):
        """Checks the configuration.

        Args:
            tokenizer: from tokenization.py.
            template: config.data.template.
            layout: config.layout.
            augmentation: config.augmentation.
            batch_size: examples per step.
            microbatches: equal parts that a step is computed in.
            row_multiple: R is a multiple of this; the number of devices.
            seed: config.seed.
            eval_rows: rows per evaluation batch, rounded up to a multiple of `row_multiple`.
            prefix_ids: put before every example: the virtual tokens of prompt tuning.

        Raises:
            ValueError: a value that cannot work, naming its key.
        """
        _check(layout, batch_size, microbatches, seed)
        self._encoder = Encoder(
            tokenizer, template, max_length=layout.max_length, prefix_ids=prefix_ids
        )
        self._layout = layout
        self._augmentation = augmentation
        self._batch_size = batch_size
        self._microbatches = microbatches
        self._step_shape = (microbatches, batch_size // microbatches)
        self._row_multiple = row_multiple
        self._seed = seed
        self._eval_rows = -(-eval_rows // row_multiple) * row_multiple
        self._plan: ShapePlan | None = None
        # Its tables take seconds to make, and both `plan` and `train` want it.
        self._augmenter = functools.lru_cache(maxsize=1)(self._make_augmenter)

    @property
    def encoder(self) -> Encoder:
        """Texts to tokens."""
        return self._encoder

    def plan(self, examples: Examples) -> ShapePlan:
        """Chooses the shapes of training from the stream that `train` will draw from `examples`.

        It tokenises the first positions of that very stream, augmentation included.
        """
        steps = -(-_SIMULATED // self._batch_size)
        total = steps * self._batch_size
        chunks = self._texts(examples, first_example=0, count=_CHUNK).take(-(-total // _CHUNK))
        encoded = [self._encode(examples, *chunk) for chunk in _iterate(chunks, [])]
        lengths = np.concatenate([chunk.lengths_B for chunk in encoded])[:total]
        cut = np.concatenate([chunk.cut_B for chunk in encoded])[: len(examples)]
        lengths_SxMxB = lengths.reshape(steps, *self._step_shape)
        shapes = layouts.choose_shapes(
            self._layout.kind,
            lengths_SxMxB,
            max_length=self._layout.max_length,
            row_length=self._layout.row_length,
            max_shapes=self._layout.max_shapes,
            row_multiple=self._row_multiple,
        )
        used = [self._place(lengths_MxB, shapes)[0] for lengths_MxB in lengths_SxMxB]
        positions = self._microbatches * sum(rows * length for rows, length in used)
        self._plan = ShapePlan(
            kind=self._layout.kind,
            shapes=shapes,
            num_examples=self._batch_size // self._microbatches,
            fill=float(lengths.sum() / positions),
            tokens_per_example=float(lengths.mean()),
            truncated=int(cut.sum()),
            counted=len(cut),
        )
        return self._plan

    def train(self, examples: Examples, *, first_example: int) -> Iterator[Batch]:
        """Yields training batches without end, from position `first_example` of the stream on.

        Args:
            examples: the training split.
            first_example: step * batch_size to go on after `step` steps.

        Yields:
            Batches whose arrays all have a leading axis M; B is batch_size / M.

        Raises:
            ValueError: what a stage finds wrong, while iterating.
        """
        shapes = (self._plan or self.plan(examples)).shapes
        steps = max(1, _CHUNK // self._batch_size)
        failures: list[ValueError] = []

        def finish(*chunk: np.ndarray) -> list[np.ndarray]:
            try:
                return self._lay_out(examples, shapes, *chunk)
            except ValueError as error:  # TensorFlow would bury it in a stack of its own
                failures.append(error)
                raise

        targets = _targets(examples, np.arange(0), size=0)
        dtypes = [tf.int32, tf.int64, *(tf.as_dtype(t.dtype) for t in targets.values())]
        chunks = self._texts(
            examples, first_example=first_example, count=steps * self._batch_size
        ).map(
            lambda *chunk: tf.numpy_function(finish, chunk, dtypes, stateful=False),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        for arrays, shapes_Sx2, *values in _iterate(chunks.prefetch(tf.data.AUTOTUNE), failures):
            start = 0
            for step, (rows, length) in enumerate(shapes_Sx2.tolist()):
                end = start + self._microbatches * rows * length
                shape = (self._microbatches, rows, length)
                batch = {
                    name: array[start:end].reshape(shape)
                    for name, array in zip(_POSITIONS, arrays, strict=True)
                }
                yield batch | {n: value[step] for n, value in zip(targets, values, strict=True)}
                start = end

    def evaluate(self, examples: Examples) -> Iterator[Batch]:
        """Yields every example once, in batches of one shape.

        Rows are packed over the whole split, whatever the layout of training; only 'pad' has one
        example a row. The shape depends on the configuration alone, so that one compilation serves
        every split: B is what the rows hold at a mean of 16 tokens an example. The order is the
        packing's: sort by id where it matters.

        Args:
            examples: any split; without labels (None), labels_B is 0.

        Yields:
            Batches without the axis M. Padding examples have weight 0 and id -1.
        """
        if not len(examples):
            return
        length, per_row = self._layout.row_length, self._layout.row_length // _MEAN_TOKENS
        if self._layout.kind == "pad":
            length, per_row = self._layout.max_length, 1
        tokens, types, lengths_N = self._encode_all(examples)
        starts_N = np.cumsum(lengths_N) - lengths_N
        rows_N, offsets_N = layouts.pack_rows(lengths_N, length, max_per_row=max(1, per_row))
        by_row = np.argsort(rows_N, kind="stable")
        first_rows = np.arange(0, rows_N.max() + 1, self._eval_rows)
        bounds = np.searchsorted(rows_N[by_row], [*first_rows, rows_N.max() + 1])
        for first, low, high in zip(first_rows, bounds[:-1], bounds[1:], strict=True):
            chosen = by_row[low:high]
            arrays = layouts.fill(
                np.concatenate([tokens[starts_N[i] :][: lengths_N[i]] for i in chosen]),
                np.concatenate([types[starts_N[i] :][: lengths_N[i]] for i in chosen]),
                lengths_N[chosen],
                (rows_N[chosen] - first) * length + offsets_N[chosen],
                np.arange(1, len(chosen) + 1),
                size=self._eval_rows * length,
            )
            arrays = arrays.reshape(len(_POSITIONS), self._eval_rows, length)
            targets = _targets(examples, chosen, size=self._eval_rows * max(1, per_row))
            yield dict(zip(_POSITIONS, arrays, strict=True)) | targets

    def _make_augmenter(self, examples: Examples) -> Augmenter:
        return Augmenter(examples, self._augmentation, seed=self._seed)

    def _texts(self, examples: Examples, *, first_example: int, count: int) -> "tf.data.Dataset":
        """Returns the endless data set of `count` texts, pairs ('' without), indices and epochs."""
        lengths_N = np.fromiter(map(len, examples.texts_N), np.int64, len(examples))
        if examples.pairs_N is not None:
            lengths_N += np.fromiter(map(len, examples.pairs_N), np.int64, len(examples))
        stream = Stream(lengths_N, seed=self._seed)
        augmenter = self._augmenter(examples)

        def order(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return stream.at(first_example + int(chunk) * count, count)

        def select(chunk: "tf.Tensor") -> tuple["tf.Tensor", ...]:
            drawn = tf.numpy_function(order, [chunk], [tf.int64] * 2, stateful=False)
            indices, epochs = (tf.ensure_shape(part, [count]) for part in drawn)
            augmented = augmenter(indices, epochs)
            pairs = tf.constant("") if augmented.pairs_B is None else augmented.pairs_B
            return augmented.texts_B, pairs, indices, epochs

        chunks = tf.data.Dataset.range(np.iinfo(np.int64).max)
        return chunks.map(select, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _encode(
        self,
        examples: Examples,
        texts: np.ndarray,
        pairs: np.ndarray,
        indices: np.ndarray,
        epochs: np.ndarray,
        *,
        num_threads: int | None = None,
    ) -> Encoded:
        """Tokenises what `_texts` selected."""
        sampling = segmentation_draws(
            self._augmentation, seed=self._seed, epochs_B=epochs, ids_B=examples.ids_N[indices]
        )
        pairs = None if examples.pairs_N is None else pairs
        return self._encoder(texts, pairs, num_threads=num_threads, sampling=sampling)

    def _lay_out(
        self, examples: Examples, shapes: tuple[layouts.Shape, ...], *chunk: np.ndarray
    ) -> list[np.ndarray]:
        """Tokenises and lays out the examples of S steps; runs in several threads at once.

        Returns:
            what `_POSITIONS` names of all steps end to end, int32 [4, positions]; the shape
            of each step, int64 [S, 2]; then what `_targets` names, [S, M, B, ...].
        """
        indices = chunk[2]
        encoded = self._encode(examples, *chunk, num_threads=1)
        lengths_SxMxB = encoded.lengths_B.reshape(-1, *self._step_shape)
        chosen, starts, size = [], [], 0
        for lengths_MxB in lengths_SxMxB:
            (rows, length), places = self._place(lengths_MxB, shapes)
            chosen.append((rows, length))
            for rows_B, offsets_B in places:
                starts.append(size + rows_B * length + offsets_B)
                size += rows * length
        arrays = layouts.fill(
            encoded.tokens,
            encoded.types,
            encoded.lengths_B,
            np.concatenate(starts),
            1 + np.arange(len(indices)) % self._step_shape[1],
            size=size,
        )
        targets = _targets(examples, indices, size=len(indices)).values()
        by_step = [t.reshape(*lengths_SxMxB.shape, *t.shape[1:]) for t in targets]
        return [arrays, np.array(chosen), *by_step]

    def _place(
        self, lengths_MxB: np.ndarray, shapes: tuple[layouts.Shape, ...]
    ) -> tuple[layouts.Shape, list[tuple[np.ndarray, np.ndarray]]]:
        """Returns the first shape that fits all microbatches, and the places in each."""
        for shape in shapes:
            places = [layouts.place(self._layout.kind, row, shape) for row in lengths_MxB]
            if None not in places:
                return shape, places
        raise ValueError(f"no shape of {shapes} holds examples of {lengths_MxB.tolist()} tokens")

    def _encode_all(self, examples: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns tokens and types of all examples end to end, and their lengths."""
        pairs_N = examples.pairs_N
        slices = [slice(first, first + _CHUNK) for first in range(0, len(examples), _CHUNK)]
        chunks = [
            self._encoder(examples.texts_N[part], None if pairs_N is None else pairs_N[part])
            for part in slices
        ]
        return (
            np.concatenate([chunk.tokens for chunk in chunks]),
            np.concatenate([chunk.types for chunk in chunks]),
            np.concatenate([chunk.lengths_B for chunk in chunks]),
        )


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


def _targets(examples: Examples, members_B: np.ndarray, *, size: int) -> Batch:
    """Returns labels, weights, ids and features of `members_B`, padded to `size` examples."""
    targets = {
        "labels_B": np.zeros(size, np.int32),
        "weights_B": np.zeros(size, np.float32),
        "ids_B": np.full(size, -1, np.int64),
    }
    count = len(members_B)
    targets["ids_B"][:count] = examples.ids_N[members_B]
    targets["weights_B"][:count] = 1
    if examples.labels_N is not None:
        labels = examples.labels_N[members_B]
        targets["weights_B"][:count] = labels >= 0  # a negative label is masked
        targets["labels_B"][:count] = np.maximum(labels, 0)
    if examples.features_NxK is not None:
        features_BxK = np.zeros((size, examples.features_NxK.shape[1]), np.float32)
        features_BxK[:count] = examples.features_NxK[members_B]
        targets["features_BxK"] = features_BxK
    return targets


def _check(layout: ConfigDict, batch_size: int, microbatches: int, seed: int) -> None:
    """Raises ValueError, naming the key, for a configuration that cannot work."""
    if layout.kind not in layouts.KINDS:
        raise ValueError(f"layout.kind must be one of {layouts.KINDS}, found {layout.kind!r}")
    if layout.kind != "pad" and layout.row_length < layout.max_length:
        raise ValueError(
            f"layout.row_length={layout.row_length} is shorter than layout.max_length="
            f"{layout.max_length}: an example must fit into a row; raise row_length"
        )
    if layout.max_shapes < 1:
        raise ValueError(f"layout.max_shapes must be at least 1, found {layout.max_shapes}")
    if batch_size < 1 or batch_size % microbatches:
        raise ValueError(
            f"data.batch_size={batch_size} must be a positive multiple of "
            f"train.microbatches={microbatches}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")
