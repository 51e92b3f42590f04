"""Causal attention and the rotation of positions.

B: sequences; L: tokens; H: heads; G: key-value heads (a divisor of H); K: size of one head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x_BxLxHxK: jax.Array, rotary_size: int, theta: float) -> jax.Array:
    """The vectors with their first `rotary_size` entries turned by an angle that grows with position.

    Entry i is paired with entry i + rotary_size/2 and turned by position·theta^(−2i/rotary_size).

    Source: Su et al. 2021 (RoFormer), in the half-split layout of GPT-NeoX and Llama.
    """
    if rotary_size == 0:
        return x_BxLxHxK
    turned, kept = x_BxLxHxK[..., :rotary_size], x_BxLxHxK[..., rotary_size:]
    frequency = theta ** (-jnp.arange(0, rotary_size, 2, dtype=jnp.float32) / rotary_size)
    angle_Lx1xF = jnp.arange(turned.shape[1])[:, None, None] * frequency
    cos, sin = jnp.cos(angle_Lx1xF), jnp.sin(angle_Lx1xF)
    first, second = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(kept.dtype), kept], axis=-1)


def causal_attention(
    query_BxLxHxK: jax.Array, key_BxLxGxK: jax.Array, value_BxLxGxK: jax.Array, implementation: str
) -> jax.Array:
    """softmax(q kᵀ/√K, over the tokens up to each one) v: [B, L, H, K].

    Args:
        implementation: "xla"; "cudnn", flash attention on CUDA in half precision; "auto", the
            fastest that this backend and type have.
    """
    if implementation == "auto":
        half = query_BxLxHxK.dtype in (jnp.bfloat16, jnp.float16)
        implementation = "cudnn" if jax.default_backend() == "gpu" and half else "xla"
    return jax.nn.dot_product_attention(
        query_BxLxHxK,
        key_BxLxGxK,
        value_BxLxGxK,
        is_causal=True,
        implementation=implementation,  # type: ignore[arg-type]
    )
