"""The contestants of throughput.py: our training, and the same as users write it with PyTorch.

Both take one step at a time and say what it held. JAX, TensorFlow and PyTorch are imported inside
the functions: each contestant has a process of its own, with only what it uses.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Data:
    """What all variants train on.

    Attributes:
      labels: names in class order.
      texts_N, labels_N, ids_N: the training split; absent with `batches`.
      batches: training batches of our pipeline, from a file; else None.
      word_ids: with `batches`, the token ids of config.model.label_words.
    """

    labels: tuple[str, ...]
    texts_N: np.ndarray | None = None
    labels_N: np.ndarray | None = None
    ids_N: np.ndarray | None = None
    batches: list[dict[str, np.ndarray]] | None = None
    word_ids: list[list[int]] | None = None


@dataclasses.dataclass(frozen=True)
class First:
    """The first step of a variant; `ids` are its examples, `model` what FLOPs are computed from."""

    loss: float
    gradient_norm: float
    ids: list[int]
    device: str
    model: dict[str, Any] | None = None
    seconds: float = 0.0  # since the process was started


class Trainer(Protocol):
    """One variant inside its process."""

    compilations: int

    def first(self) -> First:
        """Takes the first step and waits for it."""

    def step(self) -> tuple[np.ndarray, int]:
        """Dispatches a step; returns its examples' lengths and its number of positions."""

    def wait(self) -> None:
        """Returns when all steps are done."""

    def peak_bytes(self) -> int | None:
        """Peak memory of an accelerator; None where the process's own is meant."""


class Ours:
    """This code base's training."""

    def __init__(self, config: ConfigDict, data: Data):
        """Builds model, pipeline and train step as training/train.py does."""
        # The variants share a device: without this JAX takes three quarters of it at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax
        import jax.numpy as jnp

        from training.compilation import PerShape
        from training.experiment import build
        from training.sharding import put_batch, replicated
        from training.state import TrainState
        from training.train_step import make_train_step
        from training.tuning.optimizers import make_optimizer

        self._experiment = experiment = build(config, Path(), data.labels, print)
        optimizer = make_optimizer(config.optimizer, experiment.factors)
        step = make_train_step(
            experiment.apply,
            experiment.task.loss,
            optimizer,
            learning_rate=config.optimizer.learning_rate,
            schedule=lambda examples: jnp.float32(1),  # constant, as in the loop beside it
            batch_size=config.data.batch_size,
            seed=config.seed,
        )
        self._step = PerShape(step, "the train step", print, donate=(0,))
        params = experiment.put(experiment.initial)
        zero = jax.device_put(jnp.int32(0), replicated(experiment.mesh))
        self._state = TrainState(zero, zero + 0, params, jax.jit(optimizer.init)(params))
        self._batches = (
            pipeline_batches(experiment.pipeline, data)
            if data.batches is None
            else itertools.cycle(data.batches)
        )
        self._put, self._jax = put_batch, jax
        self._metrics: Mapping[str, Any] = {}

    @property
    def compilations(self) -> int:
        """Programs so far, one per batch shape."""
        return self._step.count

    def first(self) -> First:
        """See Trainer."""
        batch = next(self._batches)
        self._train(batch)
        metrics = self._jax.device_get(self._metrics)
        return First(
            loss=float(metrics["loss"]),
            gradient_norm=float(metrics["gradient_norm"]),
            ids=batch["ids_B"].ravel().tolist(),
            device=self._jax.devices()[0].device_kind,
            model=self._describe(),
        )

    def step(self) -> tuple[np.ndarray, int]:
        """See Trainer."""
        batch = next(self._batches)
        self._train(batch)
        size = batch["labels_B"].shape[-1] + 1
        counts = [np.bincount(part.ravel(), minlength=size)[1:] for part in batch["segments_RxL"]]
        return np.concatenate(counts), batch["tokens_RxL"].size

    def wait(self) -> None:
        """See Trainer."""
        self._jax.block_until_ready((self._state, self._metrics))

    def peak_bytes(self) -> int | None:
        """See Trainer."""
        return (self._jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def _train(self, batch: Mapping[str, np.ndarray]) -> None:
        experiment = self._experiment
        device_batch = self._put(batch, experiment.mesh)
        with self._jax.transfer_guard("disallow"):
            self._state, self._metrics = self._step(self._state, experiment.frozen, device_batch)

    def _describe(self) -> dict[str, Any]:
        experiment = self._experiment
        decoder = experiment.model.config
        everything = {**experiment.initial, **experiment.frozen}
        return {
            "matmul_params": sum(
                value.size
                for path, value in everything.items()
                if path.startswith("backbone/layer_") and path.endswith("kernel")
            ),
            "attention_width": decoder.num_heads * decoder.head_size,
            "windows": decoder.windows,
        }


class PyTorch:
    """The same training as users write it with transformers."""

    compilations = 0

    def __init__(
        self,
        config: ConfigDict,
        data: Data,
        *,
        checkpoint: Path,
        first_ids: Sequence[int],
        autocast: bool,
    ):
        """Loads the checkpoint, a folder as a hub has it, and tokenises all examples."""
        import torch
        import transformers
        from torch.utils.data import DataLoader

        torch.manual_seed(config.seed)
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX; nothing on CPUs
        self._torch, self._clip_norm = torch, config.optimizer.clip_norm
        self._cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if self._cuda else "cpu")
        if data.batches is None:
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            examples = list(_tokenize(tokenizer, config, data))
            words = [
                tokenizer(word, add_special_tokens=False).input_ids
                for word in config.model.label_words
            ]
        else:
            examples = list(unpack(data.batches))
            words = data.word_ids

        self._backbone = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
        embeddings = self._backbone.get_input_embeddings().weight.requires_grad_(False)
        self._head = torch.nn.Linear(embeddings.shape[1], len(data.labels))
        with torch.no_grad():
            self._head.weight.copy_(torch.stack([embeddings[ids].mean(0) for ids in words]))
            self._head.bias.zero_()
        self._model = torch.nn.ModuleList([self._backbone, self._head]).to(self._device).train()
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
        loader = DataLoader(
            examples,
            batch_size=config.data.batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=self._collate,
        )
        self._batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epochs
        by_id = {example[2]: example for example in examples}
        self._first_batch = self._collate([by_id[id_] for id_ in first_ids])
        self._first_ids = list(first_ids)
        self._autocast = autocast

    def first(self) -> First:
        """See Trainer."""
        loss, norm = self._train(self._first_batch)
        device = self._torch.cuda.get_device_name(0) if self._cuda else "cpu"
        return First(loss.item(), norm.item(), self._first_ids, device)

    def step(self) -> tuple[np.ndarray, int]:
        """See Trainer."""
        batch = next(self._batches)
        self._train(batch)
        return batch["attention_mask"].sum(1).numpy(), batch["input_ids"].numel()

    def wait(self) -> None:
        """See Trainer."""
        if self._cuda:
            self._torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        """See Trainer."""
        return self._torch.cuda.max_memory_allocated() if self._cuda else None

    def _collate(self, examples: Sequence[tuple[Sequence[int], int, int]]) -> dict[str, Any]:
        """Pads to the longest, as DataCollatorWithPadding does."""
        torch, pad = self._torch, self._torch.nn.utils.rnn.pad_sequence
        ids = [torch.tensor(ids) for ids, _, _ in examples]
        return {
            "input_ids": pad(ids, batch_first=True),
            "attention_mask": pad([torch.ones_like(part) for part in ids], batch_first=True),
            "labels": torch.tensor([label for _, label, _ in examples]),
        }

    def _train(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        torch = self._torch
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        mask = batch["attention_mask"]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            hidden = self._backbone(
                input_ids=batch["input_ids"], attention_mask=mask, use_cache=False
            ).last_hidden_state
            last = hidden[torch.arange(len(hidden), device=self._device), mask.sum(1) - 1]
            loss = torch.nn.functional.cross_entropy(self._head(last), batch["labels"])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm


def write_hub_folder(gguf: Path, folder: Path) -> None:
    """Rewrites a GGUF file as the folder that a hub has of it, weights in float32.

    transformers takes most of a minute to read and convert the demo's file, which its users rarely
    do: that does not belong in PyTorch's time to first step.
    """
    import torch
    import transformers

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    loaded = transformers.AutoModel.from_pretrained(**source, dtype=torch.float32)
    del loaded.config.quantization_config  # dequantised, but refuses to be saved
    model = transformers.AutoModel.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)


def _tokenize(
    tokenizer: Any, config: ConfigDict, data: Data
) -> Iterator[tuple[list[int], int, int]]:
    """Yields (token ids, label, example id); a long text is cut, its template stays whole."""
    before, after = config.data.template.split("{text}")
    prefix = tokenizer(before).input_ids
    suffix = tokenizer(after, add_special_tokens=False).input_ids
    room = config.layout.max_length - len(prefix) - len(suffix)
    texts = tokenizer(list(data.texts_N), add_special_tokens=False).input_ids
    for ids, label, id_ in zip(texts, data.labels_N.tolist(), data.ids_N.tolist(), strict=True):
        yield prefix + ids[:room] + suffix, label, id_


def unpack(batches: Sequence[Mapping[str, np.ndarray]]) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (token ids, label, example id) of every example in training batches [M, ...]."""
    for batch in batches:
        for part in range(len(batch["labels_B"])):
            tokens, segments = (
                batch["tokens_RxL"][part].ravel(),
                batch["segments_RxL"][part].ravel(),
            )
            order = np.argsort(segments, kind="stable")  # by example, then by position
            ends = np.cumsum(np.bincount(segments, minlength=len(batch["labels_B"][part]) + 1))
            examples = np.split(tokens[order], ends[:-1])[1:]  # the first is padding
            yield from zip(
                examples,
                batch["labels_B"][part].tolist(),
                batch["ids_B"][part].tolist(),
                strict=True,
            )


def pipeline_batches(pipeline: Any, data: Data) -> Iterator[dict[str, np.ndarray]]:
    """Returns the endless training batches of our pipeline; imports TensorFlow."""
    from input_pipeline.corpus.preparation import Examples

    examples = Examples(data.texts_N, data.labels_N, data.ids_N)
    print(pipeline.plan(examples).prose())
    return pipeline.train(examples, first_example=0)
