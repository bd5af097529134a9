"""Two trainers of one model in processes of their own: ours, and what users write with PyTorch.

JAX, TensorFlow and PyTorch are imported inside the functions, so that each process has only what
it uses. Not here: which models and data are compared (throughput.py, models.py).
"""

import itertools
import os
import re
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks.timing import Side
from input_pipeline.examples import Examples


class Data(NamedTuple):
    """What both train on.

    Attributes:
      labels: names in class order.
      examples: the training split; None with `batches`.
      batches: training batches of our pipeline, from a file; else None.
    """

    labels: tuple[str, ...]
    examples: Examples | None = None
    batches: list[dict[str, np.ndarray]] | None = None


class First(NamedTuple):
    """What a trainer begins with.

    Attributes:
      loss, gradient_norm, ids: of the first step and its examples.
      device: its name.
      head: of ours, its parameters before that step, from which the peer starts too.
      model: of ours, what FLOPs are computed from.
    """

    loss: float
    gradient_norm: float
    ids: list[int]
    device: str
    head: Mapping[str, np.ndarray] | None = None
    model: Mapping[str, Any] | None = None


class Block(NamedTuple):
    """Some steps of a variant.

    Attributes:
      seconds: wall time.
      lengths: tokens of every example.
      positions: tokens and padding.
      peak_bytes: the most memory the process (on a GPU: its device) ever held.
    """

    seconds: float
    lengths: np.ndarray
    positions: int
    peak_bytes: int

    @property
    def examples_per_second(self) -> float:
        """Speed, the measure that layouts cannot flatter."""
        return len(self.lengths) / self.seconds


class Trainer(Side):
    """One variant inside its process.

    Attributes:
        compilations: programs so far, one per batch shape.
    """

    compilations = 0

    def training_step(self) -> float:
        """Takes a step, waits for it, and returns its loss."""
        self.step()
        return float(self.loss)

    def block(self, steps: int) -> Block:
        """Takes `steps` timed steps, and again if a new batch shape was compiled among them."""
        while True:
            before, start = self.compilations, time.perf_counter()
            lengths, positions = zip(*(self.step() for _ in range(steps)), strict=True)
            self.wait()
            seconds = time.perf_counter() - start
            if self.compilations == before:
                peak = self.device_bytes() or process_bytes()
                return Block(seconds, np.concatenate(lengths), sum(positions), peak)


def process_bytes() -> int:
    """Returns the most memory this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, which on Linux starts from the parent's peak
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text("utf-8"))[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


class Ours(Trainer):
    """This codebase's training."""

    def __init__(self, config: ConfigDict, data: Data):
        """Builds model, pipeline and train step as training/train.py does."""
        # The variants share a device: without this JAX takes three quarters of it at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax
        import jax.numpy as jnp

        from training.compilation import PerShape, keep_memory
        from training.experiment import build
        from training.sharding import put_batch
        from training.state import TrainState
        from training.train_step import make_train_step
        from training.tuning.optimizers import make_optimizer
        from training.tuning.regularizers import Regularizers

        keep_memory()
        self._experiment = experiment = build(config, Path(), data.labels, print)
        optimizer = make_optimizer(config.optimizer, experiment.factors)
        step = make_train_step(
            Regularizers(config.regularize, experiment.passes(), seed=config.seed),
            optimizer,
            learning_rate=config.optimizer.learning_rate,
            # Constant, as in the loop beside it.
            schedule=lambda examples: dict.fromkeys(experiment.factors, jnp.float32(1)),
            batch_size=config.data.batch_size,
        )
        self._step = PerShape(step, "the train step", print, donate=(0,))
        self._forward = jax.jit(experiment.apply)
        params = experiment.put(experiment.initial)
        zero = experiment.placement.put("", jnp.int32(0))
        self._state = TrainState(zero, zero + 0, params, jax.jit(optimizer.init)(params))
        self._batches = (
            itertools.cycle(data.batches)
            if data.batches
            else experiment.pipeline.train(data.examples, first_example=0)
        )
        self._put, self._jax = put_batch, jax

    @property
    def compilations(self) -> int:
        """Programs so far."""
        return self._step.count

    @property
    def loss(self) -> Any:
        """Of the last step."""
        return self._metrics["loss"]

    def begin(self) -> First:
        """Takes the first step and waits for it."""
        self.step()
        experiment, config = self._experiment, self._experiment.model.config
        params = {**experiment.initial, **experiment.frozen}
        fused = experiment.model.fused
        head_size = getattr(config, "head_size", config.width // config.num_heads)
        layers = (v.size for p, v in params.items() if re.fullmatch("backbone/layer_.*kernel", p))
        return First(
            loss=float(self.loss),
            gradient_norm=float(self._metrics["gradient_norm"]),
            ids=self._batch["ids_B"].ravel().tolist(),
            device=self._jax.devices()[0].device_kind,
            head={p: v for p, v in experiment.initial.items() if p.startswith("head/")},
            model={
                "matmul_params": sum(layers),
                "attention_width": config.num_heads * head_size,
                "windows": getattr(config, "windows", (0,) * config.num_layers),
                "attention": fused.kernel if fused else "plain",
                "causal": not getattr(config, "bidirectional", True),
            },
        )

    def forward(self) -> None:
        """Computes the logits of the last batch."""
        first = {name: part[0] for name, part in self._device_batch.items()}
        params = {**self._state.params, **self._experiment.frozen}
        self._jax.block_until_ready(self._forward(params, first))

    def step(self) -> tuple[np.ndarray, int]:
        """Dispatches a step; returns its examples' lengths and its number of positions."""
        self._batch = batch = next(self._batches)
        self._device_batch = self._put(batch, self._experiment.mesh)
        with self._jax.transfer_guard("disallow"):
            self._state, self._metrics = self._step(
                self._state, self._experiment.frozen, self._device_batch
            )
        size = batch["labels_B"].shape[-1] + 1
        counts = [np.bincount(part.ravel(), minlength=size)[1:] for part in batch["segments_RxL"]]
        return np.concatenate(counts), batch["tokens_RxL"].size

    def wait(self) -> None:
        """Returns when all steps are done."""
        self._jax.block_until_ready((self._state, self._metrics))

    def device_bytes(self) -> int | None:
        """Returns the peak memory of an accelerator; None without one."""
        return (self._jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class PyTorch(Trainer):
    """The same training as users write it with transformers: AutoModel, a head and AdamW."""

    def __init__(
        self,
        config: ConfigDict,
        data: Data,
        checkpoint: Path,
        ours: First,
        *,
        frozen: str,
        autocast: bool = False,
        packed: bool = False,
    ):
        """Loads the checkpoint and tokenises all examples.

        Args:
            config: of the run.
            data: what our variant has.
            checkpoint: a folder as a hub has it.
            ours: the first step of our variant, whose examples and head this begins with.
            frozen: regex of the parameters that are not trained.
            autocast: whether to compute in bfloat16.
            packed: whether to take the rows of data.batches, with a mask, instead of padding.
        """
        import torch
        import transformers
        from torch.utils.data import DataLoader

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(config.seed)
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX; nothing on CPUs
        self._torch, self._autocast, self._clip_norm = torch, autocast, config.optimizer.clip_norm
        self._cuda, self._ids = torch.cuda.is_available(), ours.ids
        self._device = torch.device("cuda" if self._cuda else "cpu")
        self._pooling = config.model.pooling
        self._backbone = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        self._backbone.config.use_cache = False
        for module in self._backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = config.model.hidden_dropout  # BERT's own default is 0.1
        for name, parameter in self._backbone.named_parameters():
            parameter.requires_grad_(not re.search(frozen, name))
        self._head = torch.nn.Linear(*ours.head["head/kernel"].shape)
        with torch.no_grad():
            self._head.weight.copy_(torch.tensor(ours.head["head/kernel"].T))
            self._head.bias.copy_(torch.tensor(ours.head["head/bias"]))
        self._model = torch.nn.ModuleList([self._backbone, self._head]).to(self._device)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self._trained if p.ndim > 1]},
                {"params": [p for p in self._trained if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.optimizer.learning_rate,
            betas=(config.optimizer.b1, config.optimizer.b2),
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
        )

        if data.batches:
            examples = list(unpack(data.batches))
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            examples = list(_tokenize(tokenizer, config, data.examples))
        loader = DataLoader(
            examples,
            batch_size=config.data.batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=self._collate,
        )
        if packed:
            self._batches = map(self._rows, itertools.cycle(data.batches))
            return
        by_id = {example[2]: example for example in examples}
        first = self._collate([by_id[id_] for id_ in ours.ids])
        epochs = itertools.chain.from_iterable(itertools.repeat(loader))
        self._batches = itertools.chain([first], epochs)

    def begin(self) -> First:
        """Takes the first step and waits for it."""
        self.step()
        device = self._torch.cuda.get_device_name(0) if self._cuda else "cpu"
        return First(self.loss.item(), self._norm.item(), self._ids, device)

    def forward(self) -> None:
        """Computes the logits of the last batch."""
        self._model.eval()
        with self._torch.inference_mode():
            self._logits()
        self.wait()

    def step(self) -> tuple[np.ndarray, int]:
        """Takes a step; returns its examples' lengths and its number of positions."""
        torch, batch = self._torch, next(self._batches)
        self._model.train()
        self._batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            loss = torch.nn.functional.cross_entropy(self._logits(), self._batch["labels"])
        loss.backward()
        self.loss = loss.detach()
        self._norm = torch.nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return batch["lengths"].numpy(), batch["input_ids"].numel()

    def wait(self) -> None:
        """Returns when all steps are done."""
        if self._cuda:
            self._torch.cuda.synchronize()

    def device_bytes(self) -> int | None:
        """Returns the peak memory of a GPU; None without one."""
        return self._torch.cuda.max_memory_allocated() if self._cuda else None

    def _logits(self) -> Any:
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: self._batch[name] for name in names if name in self._batch}
        hidden = self._backbone(**inputs).last_hidden_state
        if self._pooling == "mean":
            mask = inputs["attention_mask"][:, :, None]
            return self._head((hidden * mask).sum(1) / mask.sum(1))
        return self._head(hidden.flatten(0, 1)[self._batch["places"]])

    def _collate(self, examples: Sequence[tuple[Sequence[int], int, int]]) -> dict[str, Any]:
        """Pads to the longest, as DataCollatorWithPadding does."""
        torch, pad = self._torch, self._torch.nn.utils.rnn.pad_sequence
        ids = [torch.tensor(ids).long() for ids, _, _ in examples]
        tokens, lengths = pad(ids, batch_first=True), torch.tensor(list(map(len, ids)))
        starts = torch.arange(len(ids)) * tokens.shape[1]
        return {
            "input_ids": tokens,
            "attention_mask": pad([torch.ones_like(part) for part in ids], batch_first=True),
            "labels": torch.tensor([label for _, label, _ in examples]),
            "lengths": lengths,
            "places": starts + (0 if self._pooling == "first" else lengths - 1),
        }

    def _rows(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns packed rows with a mask by segment, which is not what flash attention takes."""
        names = ("tokens_RxL", "positions_RxL", "segments_RxL")
        tokens, positions, segments = (self._torch.tensor(batch[name][0]).long() for name in names)
        mask = segments[:, :, None] == segments[:, None, :]
        if self._pooling == "last":  # a decoder
            mask &= positions[:, :, None] >= positions[:, None, :]
        lengths = segments.flatten().bincount()[1:]
        starts = ((segments > 0) & (positions == 0)).flatten().nonzero()[:, 0]
        starts = starts[segments.flatten()[starts].argsort()]
        return {
            "input_ids": tokens,
            "position_ids": positions,
            "attention_mask": mask[:, None],
            "labels": self._torch.tensor(batch["labels_B"][0]).long(),
            "lengths": lengths,
            "places": starts + (0 if self._pooling == "first" else lengths - 1),
        }


def _tokenize(
    tokenizer: Any, config: ConfigDict, examples: Examples
) -> Iterator[tuple[list[int], int, int]]:
    """Yields (token ids, label, example id); a long text is cut, its template stays whole."""
    before, after = config.data.template.split("{text}")
    prefix = tokenizer(before).input_ids
    suffix = tokenizer(after, add_special_tokens=False).input_ids
    room = config.layout.max_length - len(prefix) - len(suffix)
    texts = tokenizer(list(examples.texts_N), add_special_tokens=False).input_ids
    columns = (texts, examples.labels_N.tolist(), examples.ids_N.tolist())
    for ids, label, id_ in zip(*columns, strict=True):
        yield prefix + ids[:room] + suffix, label, id_


def unpack(batches: Sequence[Mapping[str, np.ndarray]]) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (token ids, label, example id) of every example in training batches [M, ...]."""
    names = ("tokens_RxL", "segments_RxL", "labels_B", "ids_B")
    for batch in batches:
        for tokens, segments, labels, ids in zip(*(batch[name] for name in names), strict=True):
            order = np.argsort(segments, axis=None, kind="stable")  # by example, then by position
            ends = np.cumsum(np.bincount(segments.ravel(), minlength=len(labels) + 1))
            parts = np.split(tokens.ravel()[order], ends[:-1])[1:]  # the first is padding
            yield from zip(parts, labels.tolist(), ids.tolist(), strict=True)
