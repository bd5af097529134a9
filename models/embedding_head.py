"""The head of an embedding model: one vector for each of an example's texts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.heads import pool

_LARGEST = 100.0  # of a learned scale, as in CLIP (2103.00020)


class EmbeddingHead(nn.Module):
    """Pools each sequence; the vectors are not normalised.

    Parameters: 'log_scale' [], only where the temperature is learned.

    Attributes:
        sequences: K, of an example.
        pooling: one of models.heads.POOLINGS.
        temperature: of cosines, or what a learned one starts from.
        learned: whether it is a parameter.
    """

    sequences: int
    pooling: str = "mean"
    temperature: float = 0.05
    learned: bool = False

    @nn.compact
    def __call__(
        self,
        backbone: nn.Module,
        hidden_RxLxD: jax.Array,
        batch: dict[str, jax.Array],
        *,
        deterministic: bool,
    ) -> dict[str, jax.Array]:
        """Returns float32 'vectors_BxKxE', and 'scale_B', 1 / temperature for each example."""
        del backbone, deterministic
        count, segments_RxL = batch["weights_B"].shape[-1], batch["segments_RxL"]
        size = count * self.sequences
        pooled = pool(hidden_RxLxD, segments_RxL, num_examples=size, kind=self.pooling)
        log_scale = jnp.float32(-np.log(self.temperature))
        if self.learned:
            start = log_scale
            log_scale = jnp.minimum(self.param("log_scale", lambda _: start), jnp.log(_LARGEST))
        scale_B = jnp.broadcast_to(jnp.exp(log_scale), (count,))
        return {"vectors_BxKxE": pooled.reshape(count, self.sequences, -1), "scale_B": scale_B}
