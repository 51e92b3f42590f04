"""Causal attention, by the fastest implementation for the devices.

B: sequences; L: tokens; H: heads; G: key-value heads (a divisor of H); K: size of one head.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from bottleneck.model.kernels import remat
from bottleneck.model.kernels.attention_cpu import block_attention
from bottleneck.model.kernels.device import TPU_LANES, platform
from bottleneck.parallel.mesh import partition_spec

Implementation = Literal["auto", "xla", "blocks", "cudnn", "splash"]

_BLOCKS = (512, 384, 256, TPU_LANES)  # positions in a block of scores, the best first


def reference(
    query_BxLxHxK: jax.Array, key_BxLxGxK: jax.Array, value_BxLxGxK: jax.Array
) -> jax.Array:
    """`causal_attention` on any device, with all scores in memory."""
    return jax.nn.dot_product_attention(
        query_BxLxHxK, key_BxLxGxK, value_BxLxGxK, is_causal=True, implementation="xla"
    )


def causal_attention(
    query_BxLxHxK: jax.Array,
    key_BxLxGxK: jax.Array,
    value_BxLxGxK: jax.Array,
    implementation: Implementation,
) -> jax.Array:
    """softmax(q kᵀ/√K, over the tokens up to each one) v: [B, L, H, K].

    Args:
        implementation: "xla", on any device; "blocks", the fastest on a CPU; "cudnn", flash
            attention on CUDA in half precision; "splash", flash attention on TPU, L a multiple of
            128; "auto", the fastest for the devices of the mesh in context, the type and L.
    """
    if implementation == "auto":
        implementation = _fastest(query_BxLxHxK)
    arrays = (query_BxLxHxK, key_BxLxGxK, value_BxLxGxK)
    if implementation == "splash":
        return _splash_on_mesh(*arrays)
    if implementation == "blocks":
        return block_attention(*arrays)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(*arrays, is_causal=True, implementation="cudnn")
    return reference(*arrays)


def _fastest(query_BxLxHxK: jax.Array) -> Implementation:
    kind = platform()
    if kind in ("gpu", "cuda") and query_BxLxHxK.dtype in (jnp.bfloat16, jnp.float16):
        return "cudnn"
    if kind == "tpu" and query_BxLxHxK.shape[1] % TPU_LANES == 0:
        return "splash"
    return "blocks" if kind == "cpu" else "xla"


def splash_attention(
    query_BxLxHxK: jax.Array,
    key_BxLxGxK: jax.Array,
    value_BxLxGxK: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention by jax's Pallas TPU kernel, for one device's heads and sequences.

    The scores are never in memory: forward and backward compute a block of them at a time.
    `interpret` emulates the kernel on another backend, slowly.
    """
    # Importing Pallas takes a second, and only a TPU's programs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, n_heads, size = query_BxLxHxK.shape
    block = next(b for b in _BLOCKS if length % b == 0)
    attend = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * n_heads),
        block_sizes=kernels.BlockSizes(*(block,) * 8),  # all tiles, forward and backward
        interpret=interpret,
        residual_checkpoint_name=remat.ATTENTION,
    )
    by_head = (
        jnp.swapaxes(x, 1, 2) for x in (query_BxLxHxK * size**-0.5, key_BxLxGxK, value_BxLxGxK)
    )
    return jnp.swapaxes(jax.vmap(attend)(*by_head), 1, 2)


def _splash_on_mesh(*arrays: jax.Array) -> jax.Array:
    """Splash attention of each device's sequences and heads, as a Pallas kernel needs."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return splash_attention(*arrays)
    heads, kv_heads = (partition_spec(["batch", None, h, None]) for h in ("heads", "kv_heads"))
    specs = (heads, kv_heads, kv_heads)
    on_mesh = jax.shard_map(splash_attention, in_specs=specs, out_specs=heads, check_vma=False)
    return on_mesh(*arrays)
