"""What makes XLA's programs fast on a CPU that holds every array whole, and nothing elsewhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from bottleneck.parallel.mesh import platform


def is_one_cpu() -> bool:
    """Whether the program at hand is traced for a CPU that holds every array whole."""
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


@jax.custom_vjp
def computed_once(x: jax.Array) -> jax.Array:
    """x, and its gradient, each written to memory before it is used.

    The compiler fuses a sum into whatever uses it, once for each use; of the residual stream, which
    is a sum of all layers, that is work that grows with the square of their number. It does not
    look into a call that it must not inline. (It drops an `optimization_barrier` before it fuses.)
    """
    return _fenced(x)


computed_once.defvjp(lambda x: (_fenced(x), None), lambda _, gradient: (_fenced(gradient),))


def _fenced(x: jax.Array) -> jax.Array:
    if not is_one_cpu():
        return x
    with set_xla_metadata(inlineable="false"):
        return _same(x)


@jax.jit
def _same(x: jax.Array) -> jax.Array:
    return x


def dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` as flax's linear layers call it, by `product` where that is faster."""
    if is_one_cpu():
        return product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimensions, **options)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, [..., inputs] and [inputs, outputs]."""
    return x @ kernel


def _product_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The kernel's gradient has the narrower of its two sides on the left.

    A CPU turns that side by copying it, and jax always takes the gradient of the outputs for it.
    """
    x, kernel = kept
    if kernel.shape[0] < kernel.shape[1]:
        by_kernel = jnp.einsum("...i,...o->io", x, gradient)
    else:
        by_kernel = jnp.einsum("...o,...i->oi", gradient, x).T
    return gradient @ kernel.T, by_kernel


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)
