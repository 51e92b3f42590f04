"""Loops over the vocabulary: each device takes its own rows, one block at a time.

V: rows of the head, padded; the first `n_rows` are real. A probe handles one device's rows and
tokens; `on_mesh` runs it on all devices. They communicate only at the end of a loop, by sums and
maxima over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bottleneck.parallel.mesh import LOGICAL_AXES

Axes = tuple[str, ...]

# By default a TPU rounds float32 products to bfloat16, and a GPU to TF32.
EXACT = jax.lax.Precision.HIGHEST


def on_mesh(function: Callable[..., Any], *, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Returns the function run on every device with its shard; unchanged without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # Results of a psum are equal everywhere, but loops hide that from the checker.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def mesh_axes(logical: str) -> Axes:
    """Returns the mesh axes that split this logical axis; () without a mesh in context."""
    if jax.sharding.get_abstract_mesh().empty:
        return ()
    axes = LOGICAL_AXES[logical]
    return (axes,) if isinstance(axes, str) else axes or ()


def widest_row_axes(n_rows: int) -> Axes:
    """Returns mesh axes that divide `n_rows` evenly: those of "vocab", then any others."""
    sizes = jax.sharding.get_abstract_mesh().shape
    chosen = mesh_axes("vocab")
    for axis in sizes:
        if axis not in chosen and n_rows % math.prod(sizes[a] for a in (*chosen, axis)) == 0:
            chosen = (*chosen, axis)
    return chosen


class RowBlocks:
    """This device's rows of the head in blocks of one size, with a flag for rows that count.

    If the size does not divide the rows, the last block overlaps the one before; repeated rows do
    not count in it.
    """

    def __init__(self, rows: jax.Array, n_rows: int, axes: Axes, size: int):
        """Takes rows [V/devices, columns] on these mesh axes; the first `n_rows` of all count."""
        n_local = rows.shape[0]
        self.rows, self.size = rows, min(size, n_local)
        self.first_row = jax.lax.axis_index(axes) * n_local if axes else 0
        self.counts = self.first_row + jnp.arange(n_local) < n_rows
        self.number = -(-n_local // self.size)

    def start(self, index: jax.Array) -> jax.Array:
        """Returns the first row of a block."""
        return jnp.minimum(index * self.size, self.rows.shape[0] - self.size)

    def __call__(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns a block: float32 [size, columns] rows and bool [size, 1], True if one counts."""
        start = self.start(index)
        block = jax.lax.dynamic_slice_in_dim(self.rows, start, self.size)
        counts = jax.lax.dynamic_slice_in_dim(self.counts, start, self.size)
        is_first_time = start + jnp.arange(self.size) >= index * self.size
        return block.astype(jnp.float32), (counts & is_first_time)[:, None]

    def sample(self) -> tuple[jax.Array, jax.Array]:
        """Returns one block of evenly spaced rows, with their flags."""
        step = max(1, self.rows.shape[0] // self.size)
        block, counts = self.rows[::step][: self.size], self.counts[::step][: self.size]
        return block.astype(jnp.float32), counts[:, None]
