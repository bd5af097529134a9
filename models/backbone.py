"""The registry of architectures: from a config to its module, its shapes and its parameter paths.

Every backbone is a `layers.Backbone` with

    __call__(tokens_RxL, positions_RxL, segments_RxL, types_RxL=None, *, deterministic=True,
             noise_RxLxE=None)
        -> hidden_RxLxD   in the compute dtype, after the last norm; for T5 the encoder's
    embed(tokens_RxL) -> float32 [P, E]  the tokens' vectors, to which the noise is added
    logits(hidden) -> float32 [..., V]   over the vocabulary
    everything(tokens_RxL, ...) -> None  calls all submodules, so that `init` makes all parameters
    PARTS: ClassVar[tuple[str, ...]]     top levels of the tree that a checkpoint may lack and that
                                         are optional: pooler, mlm_head, lm_head, decoder

and its parameter paths start with 'embedder/' and 'layer_<i>/', which regex tables, layer-wise
decay and adapters match. Decoder and T5 also write, with `start` and `step`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from models import attention
from models.bert import Bert, BertConfig
from models.decoder import Decoder, DecoderConfig
from models.t5 import T5, T5Config

BackboneConfig = BertConfig | DecoderConfig | T5Config
_KERNELS = {"gpu": "cudnn", "tpu": "splash"}
_MODULES: dict[type, Any] = {BertConfig: Bert, DecoderConfig: Decoder, T5Config: T5}


def make_backbone(config: BackboneConfig, **attributes: Any) -> nn.Module:
    """Returns the module of a config; attributes are those of layers.Backbone."""
    return _MODULES[type(config)](config, **attributes)


def choose_attention(
    wanted: str,
    config: BackboneConfig,
    *,
    dtype: jnp.dtype,
    mesh: jax.sharding.Mesh,
    say: Callable[[str], None],
    dropout: float = 0.0,
) -> attention.Fused | None:
    """Returns the fused kernel that a model runs with on the devices of a mesh; None is plain.

    Args:
        wanted: 'auto', which says what runs on an accelerator and why; 'plain' or 'fused'.
        config: of the model.
        dtype: of its computation.
        mesh: of its devices.
        say: receives the line.
        dropout: of attention.

    Raises:
        ValueError: 'fused', where no kernel can.
    """
    if wanted == "plain":
        return None
    platform, problem = mesh.devices.flat[0].platform, ""
    fused = attention.Fused(_KERNELS[platform], mesh) if platform in _KERNELS else None
    if fused is None:
        problem = f"no fused kernel runs on {platform}"
    elif dropout:
        problem = f"no kernel here drops what config.model.attention_dropout={dropout} asks for"
    elif isinstance(config, T5Config):
        problem = "T5 adds a bias for each head to the scores, which would fill as much memory"
    else:
        heads = config.num_heads
        shape, causal, cap = (heads, heads, config.width // heads), False, 0.0
        if isinstance(config, DecoderConfig):
            shape = (heads, config.num_kv_heads, config.head_size)
            causal, cap = not config.bidirectional, config.attention_cap
        # A trial of each mask that the layers have, with a window that its short rows exceed.
        for window in {64 if window else 0 for window in getattr(config, "windows", (0,))}:
            problem = problem or attention.problem(
                fused, shape, jnp.dtype(dtype), window, causal, cap
            )
    if problem and wanted == "fused":
        raise ValueError(
            f"config.model.attention='fused', but {problem}: set it to 'auto' or 'plain'"
        )
    if fused or platform != "cpu":
        kind = f"plain, because {problem}" if problem else f"fused, by the {fused.kernel} kernel"
        say(f"Attention: {kind}.")
    return None if problem else fused


def parts_of(config: BackboneConfig) -> tuple[str, ...]:
    """Returns the parts that a model of this config may have beside its backbone."""
    return _MODULES[type(config)].PARTS


@functools.lru_cache
def _all_shapes(config: BackboneConfig) -> dict:
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    module = make_backbone(config)
    init = functools.partial(module.init, method=module.everything)
    return jax.eval_shape(init, jax.random.key(0), one, one, one, one)["params"]


def parameter_shapes(config: BackboneConfig, parts: Iterable[str] = ()) -> dict:
    """Returns a nested dict of jax.ShapeDtypeStruct of the backbone and of `parts`."""
    left_out = set(parts_of(config)) - set(parts)
    return {name: value for name, value in _all_shapes(config).items() if name not in left_out}


def kept_layers(count: int, keep: int) -> tuple[int, ...]:
    """Returns which of `count` layers stay: evenly spaced, the last one always (1910.01108)."""
    return tuple((i + 1) * count // keep - 1 for i in range(keep))


def with_layers(config: BackboneConfig, keep: int) -> tuple[BackboneConfig, tuple[int, ...]]:
    """Returns a config of fewer layers, and which of the tree's layers it keeps.

    Args:
        config: of the whole model.
        keep: number of layers, at least 1.

    Raises:
        ValueError: an encoder-decoder, or more layers than there are.
    """
    if isinstance(config, T5Config) or keep > config.num_layers:
        problem = f"there are {config.num_layers}"
        if isinstance(config, T5Config):
            problem = f"{config.model_type} has layers in its encoder and its decoder"
        raise ValueError(
            f"config.model.keep_layers={keep}, but {problem}: set it to 0, which keeps all, or "
            "take another checkpoint"
        )
    kept = kept_layers(config.num_layers, keep)
    changes: dict[str, Any] = {"num_layers": keep}
    if isinstance(config, DecoderConfig):
        for name in ("windows", "ropes"):
            changes[name] = tuple(getattr(config, name)[layer] for layer in kept)
    elif config.num_distinct_layers == config.num_layers:
        changes["num_distinct_layers"] = keep
    elif config.num_distinct_layers == 1:  # ALBERT's, applied fewer times
        kept = (0,)
    else:
        raise ValueError(
            f"config.model.keep_layers={keep}, but the {config.num_layers} layers share the "
            f"parameters of {config.num_distinct_layers}: set it to 0"
        )
    return dataclasses.replace(config, **changes), kept


def flatten(tree: Mapping) -> dict[str, Any]:
    """Flattens nested dicts to {'a/b/c': leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def layer_of(path: str) -> int | None:
    """Returns the layer number in a path such as 'backbone/layer_3/mlp/up/kernel', else None."""
    match = re.search(r"layer_(\d+)/", path)
    return int(match[1]) if match else None
