"""The rotation of queries and keys by their positions.

B: sequences; L: tokens; H: heads; K: size of one head; n: heads side by side.
Source: Su et al. 2021 (RoFormer), in the half-split layout of GPT-NeoX and Llama.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.model.kernels.device import TPU_LANES, platform
from bottleneck.parallel.mesh import devices_along


def reference(x_BxLxHxK: np.ndarray, rotary_size: int, theta: float) -> np.ndarray:
    """`rotate` in float64: pair i is a complex number times exp(√−1·position·theta^(−2i/size))."""
    x, half = np.asarray(x_BxLxHxK, np.float64), rotary_size // 2
    angle_LxF = np.outer(np.arange(x.shape[1]), theta ** (-np.arange(half) / max(half, 1)))
    turned = (x[..., :half] + 1j * x[..., half:rotary_size]) * np.exp(1j * angle_LxF)[:, None]
    return np.concatenate([turned.real, turned.imag, x[..., rotary_size:]], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def rotate(x_BxLxHxK: jax.Array, rotary_size: int, theta: float) -> jax.Array:
    """The vectors with their first `rotary_size` entries rotated by angles that grow with position.

    Entries i and i + rotary_size/2 are a pair; its angle is position·theta^(−2i/rotary_size).
    """
    return _turn(x_BxLxHxK, rotary_size, theta, 1)


# The transpose of a rotation is its inverse. Derived from slices it would be the sum of three
# padded arrays, each as large as x.
rotate.defvjp(
    lambda x, rotary_size, theta: (_turn(x, rotary_size, theta, 1), None),
    lambda rotary_size, theta, _, gradient: (_turn(gradient, rotary_size, theta, -1),),
)


def _turn(x_BxLxHxK: jax.Array, rotary_size: int, theta: float, direction: int) -> jax.Array:
    if rotary_size == 0:
        return x_BxLxHxK
    B, L, H, K = x_BxLxHxK.shape
    frequency = theta ** (-jnp.arange(0, rotary_size, 2, dtype=jnp.float32) / rotary_size)
    angle_LxF = direction * jnp.arange(L)[:, None] * frequency
    # The other entries of K are rotated by 0: arrays of another width would cost a pass each.
    others = ((0, 0), (0, K - rotary_size))
    angle_LxK = jnp.pad(jnp.concatenate([-angle_LxF, angle_LxF], axis=-1), others)
    n = _heads_side_by_side(H, K)
    angle_Lx1xnK = jnp.tile(angle_LxK, n)[:, None]
    x = x_BxLxHxK.reshape(B, L, H // n, n * K)
    turned = x * jnp.cos(angle_Lx1xnK) + _partners(x, rotary_size, n) * jnp.sin(angle_Lx1xnK)
    return turned.astype(x.dtype).reshape(B, L, H, K)


def _heads_side_by_side(n_heads: int, size: int) -> int:
    """The number of a device's heads that fill a TPU's lanes; 1 on other platforms."""
    own_heads = n_heads // devices_along("tensor")
    fitting = TPU_LANES // size if platform() == "tpu" else 1
    return next(n for n in range(max(1, fitting), 0, -1) if own_heads % n == 0)


def _partners(x: jax.Array, rotary_size: int, n: int) -> jax.Array:
    """[B, L, H/n, n·K] with each entry replaced by the other of its pair, if it has one."""
    half = rotary_size // 2
    if platform() != "tpu":
        return jnp.concatenate(
            [x[..., half:rotary_size], x[..., :half], x[..., rotary_size:]], axis=-1
        )
    # A product with a permutation: a TPU would write every slice to memory, padded to all lanes.
    order = np.arange(x.shape[-1] // n)
    order[:rotary_size] = np.roll(order[:rotary_size], half)
    permutation = np.kron(np.eye(n), np.eye(order.size)[order])
    return jnp.einsum(
        "blhi,ij->blhj",
        x,
        jnp.asarray(permutation, x.dtype),
        precision=jax.lax.Precision.HIGHEST,  # moving entries must not round them
        preferred_element_type=jnp.float32,
    )
