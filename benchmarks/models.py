"""Forward pass and training step beside PyTorch float32 on this CPU: one encoder, one decoder.

    pip install -e '.[bench]' && python -m benchmarks.models
    python -m benchmarks.models --models=encoder --profile

The encoder has the shape of a Chinese BERT-base (12 layers of width 768, vocabulary of 21,128; 102M
parameters), the decoder is Llama-like of the same size (RMSNorm, SiLU, rotary positions, 3 query
heads for each key/value head). Both classify 8 rows of 128 tokens, without padding, at the first or
last position. Weights are drawn here, written by `write_pretrained` and read by transformers, as
users do, with its default attention (sdpa) and AdamW; dropout is off. The losses of the first three
steps must agree within 1e-3, else nothing is measured.

Each side has a process of its own, which sleeps while the other one works. They take turns, and
ratios are medians over the rounds, with quartiles. `--profile` shows what is left between our
training step and its matrix products: each product of the step measured by itself, in its own
orientation, and their sum. Not here: the pipeline, layouts, and memory (throughput.py).
"""

import collections
import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.turns import OURS, PYTORCH, Worker, show, show_machine, take_turns

TOLERANCE = 1e-3  # of the losses of the first steps
_CHECKED_STEPS = 3
_CLASSES = 2
# So low that the losses of the first steps stay away from 0: else comparing them could not fail.
_LEARNING_RATE, _WEIGHT_DECAY = 1e-6, 0.01
_LOWEST_LOSS = 0.05
_B1, _B2, _EPS = 0.9, 0.999, 1e-8


@dataclasses.dataclass(frozen=True)
class Task:
    """What both sides compute.

    Attributes:
        kind: 'encoder' or 'decoder'.
        folder: holds config.json, model.safetensors and task.npz: tokens_RxL, labels_R and the
            head's kernel_DxC.
    """

    kind: str
    folder: Path

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What task.npz holds."""
        with np.load(self.folder / "task.npz") as file:
            return dict(file)


def encoder_config(**changes: Any) -> Any:
    """Returns the shape of BERT-base with a Chinese vocabulary."""
    from models.bert import BertConfig

    fields = {
        "model_type": "bert",
        "vocab_size": 21128,
        "width": 768,
        "num_layers": 12,
        "num_heads": 12,
        "hidden": 3072,
        "max_length": 512,
        **changes,
    }
    fields |= {"num_distinct_layers": fields["num_layers"], "embedding_size": fields["width"]}
    return BertConfig(**fields)


def decoder_config(**changes: Any) -> Any:
    """Returns a Llama of the encoder's size."""
    from models.decoder import DecoderConfig
    from models.layers import Rope

    fields = {
        "model_type": "llama",
        "vocab_size": 21128,
        "width": 768,
        "num_layers": 12,
        "num_heads": 12,
        "num_kv_heads": 4,
        "head_size": 64,
        "hidden": 2304,
        "max_length": 2048,
        **changes,
    }
    layers = fields["num_layers"]
    return DecoderConfig(
        **fields,
        windows=(0,) * layers,
        ropes=(Rope(base=10_000.0),) * layers,
        attention_scale=fields["head_size"] ** -0.5,
        embedding_scale=1.0,
        activation="silu",
        query_key_norm=False,
        post_norms=False,
    )


CONFIGS: dict[str, Callable[..., Any]] = {"encoder": encoder_config, "decoder": decoder_config}


def write_task(kind: str, folder: Path, *, rows: int, length: int, **changes: Any) -> int:
    """Draws weights and inputs and writes them as `Task` says; returns the parameters' number."""
    import jax

    from models.backbone import flatten, parameter_shapes
    from models.pretrained import write_pretrained
    from training.state import merge

    config, rng = CONFIGS[kind](**changes), np.random.default_rng(0)
    parts = ("pooler",) if kind == "encoder" else ()
    params = {}
    for path, leaf in flatten(parameter_shapes(config, parts)).items():
        drawn = rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        params[path] = drawn + 1 if path.endswith("scale") else drawn
    write_pretrained(folder, config, jax.tree.map(np.asarray, merge(params)))
    np.savez(
        folder / "task.npz",
        tokens_RxL=rng.integers(1, config.vocab_size, (rows, length)).astype(np.int32),
        labels_R=rng.integers(0, _CLASSES, rows).astype(np.int32),
        kernel_DxC=rng.normal(0, 0.02, (config.width, _CLASSES)).astype(np.float32),
    )
    return sum(value.size for value in params.values())


class Ours:
    """This code base's model, loss, optimiser and train step."""

    def __init__(self, task: Task):
        """Reads the checkpoint and compiles at the first calls."""
        import jax
        import jax.numpy as jnp
        import optax
        from ml_collections import ConfigDict

        from models.backbone import flatten
        from models.heads import ClassifierHead, Model
        from models.pretrained import load_pretrained
        from training.state import TrainState, merge
        from training.train_step import make_train_step
        from training.tuning.optimizers import make_optimizer

        loaded = load_pretrained(task.folder)
        pooling = "first" if task.kind == "encoder" else "last"
        model = Model(loaded.config, ClassifierHead(_CLASSES, pooling))
        head = {"kernel": task.arrays["kernel_DxC"], "bias": np.zeros(_CLASSES, np.float32)}
        params = flatten({"backbone": loaded.params, "head": head})
        params = {path: jnp.array(value, copy=True) for path, value in params.items()}
        tokens_RxL = task.arrays["tokens_RxL"]
        rows, length = tokens_RxL.shape
        part = {
            "tokens_RxL": tokens_RxL,
            "positions_RxL": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            "segments_RxL": np.arange(1, rows + 1, dtype=np.int32)[:, None].repeat(length, axis=1),
            "types_RxL": np.zeros_like(tokens_RxL),
            "labels_B": task.arrays["labels_R"],
            "weights_B": np.ones(rows, np.float32),
        }

        def apply(params: Any, part: Any, rng: Any = None) -> jax.Array:
            return model.apply({"params": merge(params)}, part, deterministic=True)["logits_BxC"]

        def loss(logits_BxC: jax.Array, part: Any) -> tuple:
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            return cross_entropy(logits_BxC, part["labels_B"]).sum(), jnp.float32(rows), {}

        config = ConfigDict(
            {
                "b1": _B1,
                "b2": _B2,
                "eps": _EPS,
                "clip_norm": 1.0,
                "weight_decay": _WEIGHT_DECAY,
                "decay_table": ((".*(bias|scale)", 0.0), (".*", 1.0)),
            }
        )
        optimizer = make_optimizer(config, {path: 1.0 for path in params})
        self.step = make_train_step(
            apply,
            loss,
            optimizer,
            learning_rate=_LEARNING_RATE,
            schedule=lambda examples: jnp.float32(1),
            batch_size=rows,
            seed=0,
        )
        self._jitted = jax.jit(self.step, donate_argnums=0)
        self._forward = jax.jit(apply)
        zero = jnp.int32(0)
        self.state = TrainState(zero, zero + 0, params, optimizer.init(params))
        self._part = jax.device_put(part)
        self.batch = jax.tree.map(lambda array: array[None], self._part)
        self.calls = {"forward": self.forward, "training step": self.train}

    def begin(self) -> list[float]:
        """Returns the losses of the first steps."""
        return [self.train() for _ in range(_CHECKED_STEPS)]

    def train(self) -> float:
        """Takes a training step and returns its loss."""
        self.state, metrics = self._jitted(self.state, {}, self.batch)
        return float(metrics["loss"])

    def forward(self) -> None:
        """Computes the logits."""
        self._forward(self.state.params, self._part).block_until_ready()


class PyTorch:
    """The same as users write it with transformers."""

    def __init__(self, task: Task):
        """Reads the folder that `write_pretrained` wrote."""
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(os.cpu_count() or 1)
        self._torch, self._first = torch, task.kind == "encoder"
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self._backbone = transformers.AutoModel.from_pretrained(
            task.folder, dtype=torch.float32, **(dropout if self._first else {})
        )
        arrays = {name: torch.tensor(value) for name, value in task.arrays.items()}
        self._head = torch.nn.Linear(*arrays["kernel_DxC"].shape)
        with torch.no_grad():
            self._head.weight.copy_(arrays["kernel_DxC"].T)
            self._head.bias.zero_()
        self._model = torch.nn.ModuleList([self._backbone, self._head])
        self._tokens, self._labels = arrays["tokens_RxL"].long(), arrays["labels_R"].long()
        self._mask = torch.ones_like(self._tokens)
        trained = [p for name, p in self._model.named_parameters() if "pooler" not in name]
        self._trained = trained
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=_LEARNING_RATE, betas=(_B1, _B2), eps=_EPS)
        self.calls = {"forward": self.forward, "training step": self.train}

    def begin(self) -> list[float]:
        """Returns the losses of the first steps."""
        return [self.train() for _ in range(_CHECKED_STEPS)]

    def _logits(self) -> Any:
        options = {} if self._first else {"use_cache": False}
        hidden = self._backbone(
            input_ids=self._tokens, attention_mask=self._mask, **options
        ).last_hidden_state
        return self._head(hidden[:, 0 if self._first else -1])

    def train(self) -> float:
        """Takes a training step and returns its loss."""
        self._model.train()
        loss = self._torch.nn.functional.cross_entropy(self._logits(), self._labels)
        loss.backward()
        self._torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def forward(self) -> None:
        """Computes the logits."""
        self._model.eval()
        with self._torch.inference_mode():
            self._logits()


def compare_losses(losses: dict[str, Sequence[float]]) -> None:
    """Raises ValueError unless both sides train alike, from losses that can tell."""
    difference = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    if not difference <= TOLERANCE:
        raise ValueError(f"the losses of the first steps differ, so do the trainings: {losses}")
    if min(map(min, losses.values())) < _LOWEST_LOSS:
        raise ValueError(f"losses near 0 agree whatever is computed: {losses}")


def measure(task: Task, *, rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Lets both sides take turns; returns seconds by kind and side, one for each round.

    Raises:
        ValueError: their losses differ.
    """
    workers = [Worker(OURS, Ours, task), Worker(PYTORCH, PyTorch, task)]
    losses = {worker.name: worker.first for worker in workers}
    compare_losses(losses)
    print(f"{task.kind}: losses of the first steps", losses)
    return take_turns(workers, {"forward": 3 * steps, "training step": steps}, rounds=rounds)


def products(function: Callable, *args: Any) -> collections.Counter:
    """Counts the matrix products of `function(*args)`: (left shape, right shape, dimensions)."""
    import jax

    def walk(jaxpr: Any) -> Iterator[tuple]:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                left, right = (variable.aval.shape for variable in equation.invars)
                yield left, right, equation.params["dimension_numbers"]
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    yield from walk(getattr(inner, "jaxpr", inner))

    return collections.Counter(walk(jax.make_jaxpr(function)(*args).jaxpr))


def profile(task: Task, *, repeats: int) -> None:
    """Prints the products of our training step, each measured alone, beside the step."""
    import jax

    side = Ours(task)
    found = products(side.step, side.state, {}, side.batch)
    side.train()
    step = statistics.median(_timed(side.train) for _ in range(repeats))
    rng, rows = np.random.default_rng(0), []
    for (left, right, dimensions), count in found.items():
        a, b = (jax.device_put(rng.normal(size=s).astype(np.float32)) for s in (left, right))
        dot = jax.jit(functools.partial(jax.lax.dot_general, dimension_numbers=dimensions))
        out = dot(a, b)
        contracted = int(np.prod([left[axis] for axis in dimensions[0][0]]))
        operations = 2 * out.size * contracted
        seconds = statistics.median(
            _timed(lambda dot=dot, a=a, b=b: dot(a, b).block_until_ready()) for _ in range(repeats)
        )
        rows.append((count * seconds, count, left, right, dimensions, operations / seconds / 1e9))
    table = Table(title=f"Matrix products of a training step of the {task.kind}")
    for column in ("times", "left", "right", "contracted, batch", "ms in all", "GFLOP/s alone"):
        table.add_column(column, justify="right")
    for total, count, left, right, (contracting, batch), speed in sorted(rows, reverse=True):
        cells = (*map(str, (count, left, right)), f"{contracting}, {batch[0]}")
        table.add_row(*cells, f"{1e3 * total:,.1f}", f"{speed:,.0f}")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    products_total = sum(row[0] for row in rows)
    print(
        f"Training step {1e3 * step:,.0f} ms; its products alone take {1e3 * products_total:,.0f} "
        f"ms ({products_total / step:.0%}), and the rest is what stands between them."
    )


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    """Measures and prints; a user's mistake ends as one message."""
    options = flags.FLAGS
    show_machine()
    try:
        for kind in options.models:
            with tempfile.TemporaryDirectory() as folder:
                task = Task(kind, Path(folder))
                size = write_task(kind, task.folder, rows=options.rows, length=options.length)
                print(f"{kind}: {size / 1e6:.1f}M parameters, {options.rows} x {options.length}")
                if options.profile:
                    profile(task, repeats=2 * options.rounds)
                else:
                    title = f"The {kind}: same weights, shapes and losses; medians of the rounds"
                    show(title, measure(task, rounds=options.rounds, steps=options.steps))
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":  # the sides' processes import this file, without flags
    flags.DEFINE_list("models", list(CONFIGS), "Of encoder, decoder.")
    flags.DEFINE_integer("rows", 8, "Examples of a batch.")
    flags.DEFINE_integer("length", 128, "Tokens of an example.")
    flags.DEFINE_integer("rounds", 8, "Rounds in which each side measures once.")
    flags.DEFINE_integer("steps", 2, "Training steps of a side in a round; forward passes thrice.")
    flags.DEFINE_bool("profile", False, "Show the products of our training step instead.")
    app.run(main)
