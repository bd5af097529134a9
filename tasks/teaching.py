"""A teacher's probabilities in the loss of a classifier: knowledge distillation (1503.02531).

Here: what a batch holds of a teacher, and how far a student is from it. Not here: the file of the
probabilities (workflows/teacher.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.batches.targets import Chunk
from input_pipeline.examples import Examples
from tasks.task import Arrays

_LEAST = 1e-6  # predictions are written with six digits: less is no probability of 0


def has_teacher(examples: Examples) -> np.ndarray:
    """Returns which examples have a teacher's probabilities, bool [N]."""
    if examples.teacher_NxC is None:
        return np.zeros(len(examples), bool)
    return np.isfinite(examples.teacher_NxC).all(axis=1)


def targets(chunk: Chunk, labelled_B: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a training batch holds of a teacher, with the weights; {} without one.

    Args:
        chunk: examples on their way.
        labelled_B: bool, which have a label.
    """
    if chunk.examples.teacher_NxC is None or not chunk.training:
        return {}
    teacher_BxC = chunk.examples.teacher_NxC[chunk.indices_B]
    taught_B = np.isfinite(teacher_BxC).all(axis=1)
    parts = {"labelled_B": labelled_B, "taught_B": taught_B, "weights_B": labelled_B | taught_B}
    parts = {name: part.astype(np.float32) for name, part in parts.items()}
    return parts | {"teacher_BxC": np.where(taught_B[:, None], teacher_BxC, np.float32(0.5))}


def shares(batch: Arrays, share: float) -> tuple[jax.Array, jax.Array]:
    """Returns which part of an example's weight its label has, and which its teacher, [B] each.

    Args:
        batch: whose examples have a label, a teacher, or both.
        share: of the teacher where there is a label; without one it has all.
    """
    teacher_B = jnp.zeros_like(batch["weights_B"], jnp.float32)
    if "teacher_BxC" in batch:
        teacher_B = batch["taught_B"] * jnp.where(batch["labelled_B"] > 0, share, 1.0)
    return 1 - teacher_B, teacher_B


def distance(teacher_BxC: jax.Array, logits_BxC: jax.Array, temperature: float) -> jax.Array:
    """Returns temperature ** 2 * KL(teacher, student) of the softened distributions, [B].

    The square keeps the size of the gradient, which falls with it.
    """
    known_BxC = jnp.log(jnp.maximum(teacher_BxC, _LEAST))
    known_BxC, logs_BxC = (jax.nn.log_softmax(x / temperature) for x in (known_BxC, logits_BxC))
    return temperature**2 * jnp.sum(jnp.exp(known_BxC) * (known_BxC - logs_BxC), axis=-1)


def binary_distance(teacher_BxC: jax.Array, logits_BxC: jax.Array, temperature: float) -> jax.Array:
    """Returns what `distance` does of labels that are each there or not, the mean over these."""
    teacher_BxC = jnp.clip(teacher_BxC, _LEAST, 1 - _LEAST)
    known_BxC = (jnp.log(teacher_BxC) - jnp.log1p(-teacher_BxC)) / temperature
    logits_BxC = logits_BxC / temperature
    apart_BxC = sum(
        jax.nn.sigmoid(sign * known_BxC)
        * (jax.nn.log_sigmoid(sign * known_BxC) - jax.nn.log_sigmoid(sign * logits_BxC))
        for sign in (1, -1)
    )
    return temperature**2 * apart_BxC.mean(axis=-1)
