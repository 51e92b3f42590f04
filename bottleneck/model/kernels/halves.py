"""Products of which half is known: of a triangular matrix, and a Gram matrix.

A CPU computes them by panels of columns, without that half. Accelerators are fast at the whole
product, but slow to compile many.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Product = Callable[[jax.Array, jax.Array], jax.Array]


def triangular_product(matmul: Product, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns left @ right for an upper triangular right."""

    def by_panels(left: jax.Array, right: jax.Array) -> jax.Array:
        panels = [matmul(left[:, :b], right[:b, a:b]) for a, b in _panels(right.shape[1])]
        return jnp.concatenate(panels, axis=1)

    return jax.lax.platform_dependent(left, right, cpu=by_panels, default=matmul)


def gram_product(matmul: Product, array: jax.Array) -> jax.Array:
    """Returns arrayᵀ @ array; only the lower triangle is complete."""

    def by_panels(array: jax.Array) -> jax.Array:
        width = array.shape[1]
        panels = [
            jnp.pad(matmul(array[:, a:b].T, array[:, :b]), ((0, 0), (0, width - b)))
            for a, b in _panels(width)
        ]
        return jnp.concatenate(panels)

    return jax.lax.platform_dependent(array, cpu=by_panels, default=lambda a: matmul(a.T, a))


def _panels(width: int) -> list[tuple[int, int]]:
    """Returns the column ranges (start, stop) of a few panels."""
    edges = np.linspace(0, width, 1 + max(1, min(4, width // 128))).astype(int).tolist()
    return list(itertools.pairwise(edges))
