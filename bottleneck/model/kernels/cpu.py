"""A fence that keeps XLA from computing a sum once for each use on a CPU."""

from __future__ import annotations

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from bottleneck.model.kernels.device import is_one_cpu


@jax.custom_vjp
def computed_once(x: jax.Array) -> jax.Array:
    """x, and its gradient, each written to memory before it is used on one CPU.

    The compiler fuses a sum into each of its uses. The residual stream is a sum over all layers, so
    that work grows with the square of their number. A call that must not be inlined stops it; an
    `optimization_barrier` does not, because it is dropped before fusion.
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
