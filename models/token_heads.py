"""The head of tagging: scores of each position's tags, and of chains of tags.

Losses and decoding are in models/crf.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.heads import HEAD_STDDEV
from models.layers import Batch


class TokenHead(nn.Module):
    """Dropout and a linear layer for each position.

    Parameters: 'kernel' [D, S * C] and 'bias' [S * C]; with `chain` also 'transitions' [C, C]
    (from, to), 'starts' and 'ends' [C] of a conditional random field. These start as zeros, which
    is the softmax of each position; they need a larger rate than the backbone in
    optimizer.lr_table.

    Attributes:
        num_tags: C.
        dropout: share of the hidden states dropped while training.
        chain: whether tags are scored in chains.
        slots: S, tags of each position.
    """

    num_tags: int
    dropout: float = 0.0
    chain: bool = False
    slots: int = 1

    @nn.compact
    def __call__(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch, *, deterministic: bool
    ) -> dict[str, jax.Array]:
        """Returns {'logits_RxLxC'} float32, L * S of them a row, and 'transitions', 'starts' and
        'ends': zeros without `chain`."""
        rows, _, width = hidden_RxLxD.shape
        count, zeros = self.num_tags, nn.initializers.zeros
        hidden_PxD = hidden_RxLxD.reshape(-1, width).astype(jnp.float32)
        hidden_PxD = nn.Dropout(self.dropout, deterministic=deterministic)(hidden_PxD)
        columns = self.slots * count
        kernel_DxC = self.param("kernel", nn.initializers.normal(HEAD_STDDEV), (width, columns))
        logits_PxC = hidden_PxD @ kernel_DxC + self.param("bias", zeros, (columns,))
        shapes = {"transitions": (count, count), "starts": (count,), "ends": (count,)}
        chain = {
            name: self.param(name, zeros, shape) if self.chain else jnp.zeros(shape)
            for name, shape in shapes.items()
        }
        return {"logits_RxLxC": logits_PxC.reshape(rows, -1, count), **chain}

    def inputs(
        self, backbone: nn.Module, hidden_RxLxD: jax.Array, batch: Batch
    ) -> dict[str, jax.Array]:
        """Returns {'inputs_RxLxD'}; see Model.head_inputs."""
        return {"inputs_RxLxD": hidden_RxLxD.astype(jnp.float32)}
