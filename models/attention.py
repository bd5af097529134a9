"""Attention: who may read whom, the plain form, and fused kernels of GPUs and TPUs.

`attend` runs anywhere. `Fused` keeps no scores in memory (FlashAttention, 2205.14135): cuDNN's
kernel on NVIDIA GPUs and splash attention, written in Pallas, on TPUs. models/backbone.py chooses.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import layers

Drop = Callable[[jax.Array], jax.Array]

_TOLERANCE = 0.05  # of a trial, of the largest value; bfloat16 gives about 0.01


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("mask_RxLxM", "segments_RxL"),
    meta_fields=("window", "causal"),
)
@dataclasses.dataclass(frozen=True)
class Visible:
    """Who may read whom in rows: as a mask, and as the kernels take it.

    Attributes:
        mask_RxLxM: see `attention_mask`.
        segments_RxL: int32; each segment's positions follow one another. None where the keys are
            the slots of a cache.
        window, causal: see `attention_mask`.
    """

    mask_RxLxM: jax.Array
    segments_RxL: jax.Array | None = None
    window: int = 0
    causal: bool = True


def visible(
    positions_RxL: jax.Array, segments_RxL: jax.Array, *, window: int = 0, causal: bool = True
) -> Visible:
    """Returns who may read whom; for the arguments see `attention_mask`."""
    mask_RxLxL = attention_mask(positions_RxL, segments_RxL, window=window, causal=causal)
    return Visible(mask_RxLxL, segments_RxL, window, causal)


def attention_mask(
    positions_RxL: jax.Array, segments_RxL: jax.Array, *, window: int = 0, causal: bool = True
) -> jax.Array:
    """Returns who may attend to whom: the same segment, if causal not later, within the window.

    Padding (segment 0, position 0) attends to padding, so that no row of the softmax is empty and
    everything stays finite, gradients too.

    Args:
        positions_RxL: int32, restarting at 0 in each segment.
        segments_RxL: int32, 0 where padding.
        window: number of visible positions: the last `window`, itself included, or without
            `causal` window // 2 on each side; 0 is all.
        causal: hide later positions.

    Returns:
        Boolean mask, True where query position l may read key position m: [R, L, L].
    """
    mask_RxLxL = segments_RxL[:, :, None] == segments_RxL[:, None, :]
    distance_RxLxL = positions_RxL[:, :, None] - positions_RxL[:, None, :]
    if causal:
        mask_RxLxL &= distance_RxLxL >= 0
    if window:
        mask_RxLxL &= abs(distance_RxLxL) < (window if causal else window // 2 + 1)
    return mask_RxLxL


def dropping(module: nn.Dropout, *, deterministic: bool) -> Drop | None:
    """Returns a module as `attend` takes it, None where it drops nothing."""
    nothing = deterministic or not module.rate
    return None if nothing else functools.partial(module, deterministic=False)


def attend(
    query_RxLxHxN: jax.Array,
    key_RxLxKxN: jax.Array,
    value_RxLxKxN: jax.Array,
    mask_RxLxL: jax.Array,
    *,
    scale: float,
    cap: float = 0.0,
    bias: jax.Array | None = None,
    drop: Drop | None = None,
) -> jax.Array:
    """Grouped-query attention (2305.13245): H / K query heads read each key/value head.

    The softmax is computed in float32 whatever the dtype of the inputs. Keys may be of another
    length M than queries: mask_RxLxM.

    Args:
        query_RxLxHxN: queries.
        key_RxLxKxN: keys; K divides H.
        value_RxLxKxN: values.
        mask_RxLxL: True where a query may read a key; no query without any.
        scale: factor on the scores.
        cap: soft cap of the scores; 0 is off.
        bias: float32 [R or 1, H, L, M], added to the scores (T5, 1910.10683).
        drop: dropout of the softmax.

    Returns:
        Mixed values [R, L, H, N] in the dtype of the query.
    """
    rows, length, heads, size = query_RxLxHxN.shape
    kv_heads = key_RxLxKxN.shape[2]
    # Heads first, the query heads of a key head as further rows of one product, and the division
    # after the second product: together a third less time than the einsum of grouped axes and
    # jax.nn.softmax on CPU (9.9 against 14.9 ms forward + backward at R=8, L=128, H=K=12, N=64).
    query_RxKxPxN = (query_RxLxHxN * scale).swapaxes(1, 2).reshape(rows, kv_heads, -1, size)
    key_RxKxMxN, value_RxKxMxN = key_RxLxKxN.swapaxes(1, 2), value_RxLxKxN.swapaxes(1, 2)
    scores_RxHxLxM = layers.product("rkpn,rkmn->rkpm", query_RxKxPxN, key_RxKxMxN)
    scores_RxHxLxM = layers.soft_cap(scores_RxHxLxM.reshape(rows, heads, length, -1), cap)
    if bias is not None:
        scores_RxHxLxM += bias
    hidden_RxLxM = jnp.where(mask_RxLxL, 0, jnp.finfo(jnp.float32).min)
    scores_RxHxLxM += hidden_RxLxM[:, None]
    # Subtracting the highest score keeps exp finite; it cancels, so it needs no gradient.
    highest = jax.lax.stop_gradient(jnp.max(scores_RxHxLxM, axis=-1, keepdims=True))
    weights_RxHxLxM = jnp.exp(scores_RxHxLxM - highest)
    total_RxHxL = jnp.sum(weights_RxHxLxM, axis=-1)
    if drop is not None:
        weights_RxHxLxM = drop(weights_RxHxLxM)
    weights_RxKxPxM = weights_RxHxLxM.astype(value_RxLxKxN.dtype).reshape(
        rows, kv_heads, -1, key_RxKxMxN.shape[2]
    )
    mixed_RxKxPxN = layers.product("rkpm,rkmn->rkpn", weights_RxKxPxM, value_RxKxMxN)
    mixed_RxHxLxN = mixed_RxKxPxN.reshape(rows, heads, length, size) / total_RxHxL[..., None]
    return mixed_RxHxLxN.astype(query_RxLxHxN.dtype).swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Fused:
    """A fused kernel, which gives what `attend` gives wherever positions are not padding.

    Attributes:
        kernel: 'cudnn' or 'splash'.
        mesh: of the devices. Compilers can't split a kernel: each device runs it on its rows, and
            its heads where the mesh has an axis 'model' that divides them.
    """

    kernel: str
    mesh: Mesh


def mixed(
    fused: Fused | None,
    query_RxLxHxN: jax.Array,
    key_RxLxKxN: jax.Array,
    value_RxLxKxN: jax.Array,
    view: Visible,
    *,
    scale: float,
    cap: float = 0.0,
    drop: Drop | None = None,
) -> jax.Array:
    """Returns [R, L, H, N], by the kernel if there is one and no cache or dropout; see `attend`."""
    inputs = query_RxLxHxN, key_RxLxKxN, value_RxLxKxN
    if fused is None or view.segments_RxL is None or drop is not None:
        return attend(*inputs, view.mask_RxLxM, scale=scale, cap=cap, drop=drop)
    rows, length, heads, _ = query_RxLxHxN.shape
    run, multiple = (_splash, 128) if fused.kernel == "splash" else (_cudnn, 8)
    # Padding behind the row is a segment 0, which reads itself, as padding in the row does.
    after = ((0, 0), (0, -length % multiple))
    inputs = (jnp.pad(x, (*after, (0, 0), (0, 0))) for x in inputs)
    segments_RxL = jnp.pad(view.segments_RxL, after)

    def axis(name: str, *sizes: int) -> str | None:
        return (
            name
            if all(size % fused.mesh.shape.get(name, 1 + size) == 0 for size in sizes)
            else None
        )

    by_row = PartitionSpec(axis("data", rows))
    by_head = PartitionSpec(*by_row, None, axis("model", heads, key_RxLxKxN.shape[2]))
    mixed_RxLxHxN = jax.shard_map(
        functools.partial(run, view, scale, cap),
        mesh=fused.mesh,
        in_specs=(by_head, by_head, by_head, by_row),
        out_specs=by_head,
        check_vma=False,  # kernels do not say how their results vary over the mesh
    )(*inputs, segments_RxL)
    return mixed_RxLxHxN[:, :length]


@functools.lru_cache
def problem(
    fused: Fused,
    shape: tuple[int, int, int],
    dtype: jnp.dtype,
    window: int,
    causal: bool,
    cap: float,
) -> str:
    """Returns why a kernel can't be used here; '' if a trial gives what `attend` gives.

    The trial, of packed rows with padding, compares results and gradients. It is what finds a
    shape that this device's kernel lacks, and a mask that it ignores.

    Args:
        fused: the kernel.
        shape: H, K and N.
        dtype: of queries, keys and values.
        window, causal, cap: see `attend` and `attention_mask`.
    """
    name, (heads, kv_heads, size) = fused.kernel, shape
    if name == "cudnn" and cap:
        return "cuDNN's kernel has no soft cap of the scores"
    if name == "cudnn" and dtype != jnp.bfloat16:
        return f"cuDNN's kernel takes bfloat16, not {jnp.dtype(dtype).name}"
    # Rows that are not full, of a length that is no multiple of the kernels' blocks.
    segments_L, rng = np.repeat((1, 2, 0), (70, 100, 22)).astype(np.int32), np.random.default_rng(0)
    segments_RxL = np.tile(segments_L, (2 * fused.mesh.shape["data"], 1))
    is_real = segments_RxL[:, :, None, None] > 0
    *inputs, slope = (
        rng.normal(size=(*segments_RxL.shape, count, size)).astype(dtype)
        for count in (heads, kv_heads, kv_heads, heads)
    )
    index_RxL = np.broadcast_to(np.arange(len(segments_L)), segments_RxL.shape)

    def results(kernel: Fused | None, slope: jax.Array, inputs: tuple) -> list[jax.Array]:
        view = visible(index_RxL, segments_RxL, window=window, causal=causal)
        mix = functools.partial(mixed, view=view, scale=size**-0.5, cap=cap)
        mixed_RxLxHxN, pull = jax.vjp(functools.partial(mix, kernel), *inputs)
        # Padding counts only if it is not finite.
        is_compared = is_real | ~jnp.isfinite(mixed_RxLxHxN)
        return [jnp.where(is_compared, mixed_RxLxHxN, 0), *pull(slope * is_real)]

    @functools.partial(jax.jit, out_shardings=NamedSharding(fused.mesh, PartitionSpec()))
    def difference(*arrays: jax.Array) -> jax.Array:
        pairs = zip(results(fused, *arrays), results(None, *arrays), strict=True)
        pairs = [(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs]
        # A maximum on CPUs passes over NaN.
        errors = [jnp.where(jnp.isfinite(a), abs(a - b), jnp.inf) / abs(b).max() for a, b in pairs]
        return jnp.stack([error.max() for error in errors]).max()

    try:
        largest = float(difference(slope, inputs))
    except Exception as error:  # kernels raise what several packages do not show
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the {name} kernel does not run here: {why}"
    off = largest > _TOLERANCE
    return (
        f"the {name} kernel differs from the plain one by {largest:.1%} in a trial" if off else ""
    )


def _cudnn(view: Visible, scale: float, cap: float, *arrays: jax.Array) -> jax.Array:
    """Runs cuDNN's kernel on one device's query, key, value and segments; `cap` is 0."""
    *inputs, segments_RxL = arrays
    # A segment's positions follow one another, so that distances in the row are those in the text.
    index_RxL = jnp.broadcast_to(jnp.arange(segments_RxL.shape[1]), segments_RxL.shape)
    mask_RxLxL = attention_mask(index_RxL, segments_RxL, window=view.window, causal=view.causal)
    options = {"scale": scale, "implementation": "cudnn"}
    # Saying `is_causal` too skips half the blocks. Its windows do not go with a mask.
    options |= {"mask": mask_RxLxL[:, None], "is_causal": view.causal}
    return jax.nn.dot_product_attention(*inputs, **options)


def _splash(view: Visible, scale: float, cap: float, *arrays: jax.Array) -> jax.Array:
    """Runs splash attention on one device's query, key, value and segments."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    query_RxLxHxN, key, value, segments_RxL = arrays
    length, heads, _ = query_RxLxHxN.shape[1:]
    # The farthest visible positions before and behind; None is all of them.
    near = view.window // 2 if view.window else None
    reach = (view.window - 1 if view.window else None, 0) if view.causal else (near, near)
    square = length, length
    # The mask of a reach without limits is not one that splash attention can compute.
    mask = splash.FullMask(square) if reach == (None, None) else splash.LocalMask(square, reach, 0)
    block = math.gcd(length, 512)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
        attn_logits_soft_cap=cap or None,
    )
    heads_first = (x.swapaxes(1, 2) for x in (query_RxLxHxN * scale, key, value))
    segments = splash.SegmentIds(segments_RxL, segments_RxL)
    return jax.vmap(kernel)(*heads_first, segments).swapaxes(1, 2)
