"""Linear layers whose products suit the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bottleneck.model.kernels.device import is_one_cpu
from bottleneck.model.kernels.remat import named


class Linear(nnx.Linear):
    """x @ kernel + bias, under the name `kept_as` for the policies of rematerialisation."""

    def __init__(self, *sizes: int, kept_as: str | None = None, **options: Any):
        super().__init__(*sizes, dot_general=_dot_general, **options)
        self.kept_as = kept_as

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        return self.kept(super().__call__(inputs, out_sharding))

    def kept(self, outputs: jax.Array) -> jax.Array:
        return outputs if self.kept_as is None else named(outputs, self.kept_as)


def reference(linears: Sequence[Linear], x: jax.Array) -> list[jax.Array]:
    """`projections` one after another."""
    return [linear(x) for linear in linears]


def projections(linears: Sequence[Linear], x: jax.Array) -> list[jax.Array]:
    """The outputs of linear layers that read the same x, by one wide product on a CPU."""
    if not is_one_cpu():
        return reference(linears, x)
    kernel = jnp.concatenate([linear.kernel[...] for linear in linears], axis=1)
    joined = product(x, kernel.astype(x.dtype))
    if linears[0].use_bias:
        biases: list[Any] = [linear.bias for linear in linears]
        joined += jnp.concatenate([bias[...] for bias in biases]).astype(joined.dtype)
    ends = np.cumsum([linear.out_features for linear in linears[:-1]])
    parts = jnp.split(joined, ends, axis=-1)
    return [linear.kept(part) for linear, part in zip(linears, parts, strict=True)]


def _dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    if is_one_cpu():
        return product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimensions, **options)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel, [..., inputs] and [inputs, outputs], with a gradient that suits a CPU.

    A CPU copies the left side of a product to transpose it. jax always puts the outputs' gradient
    there; this puts the narrower side there.
    """
    return x @ kernel


def _product_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    if kernel.shape[0] < kernel.shape[1]:
        by_kernel = jnp.einsum("...i,...o->io", x, gradient)
    else:
        by_kernel = jnp.einsum("...o,...i->oi", gradient, x).T
    return gradient @ kernel.T, by_kernel


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)
