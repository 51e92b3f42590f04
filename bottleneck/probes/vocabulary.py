"""How a probe walks over the vocabulary: on each device its own rows, a block at a time.

V: rows of the head, padded; the first `n_rows` of them are real. Probes are written for one
device's rows and tokens; `on_mesh` runs them on all devices of the mesh in context, and the sums
and maxima over the vocabulary, taken at the end of a walk, are the only words between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bottleneck.parallel.mesh import LOGICAL_AXES

Axes = tuple[str, ...]

# On a TPU a float32 product is rounded to bfloat16 unless told otherwise, on a GPU to TF32.
EXACT = jax.lax.Precision.HIGHEST


def on_mesh(function: Callable[..., Any], *, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The function, run on every device with its shard; unchanged where no mesh is in context."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # What a device knows after a psum is the same everywhere, but loops hide that from the checker.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def mesh_axes(logical: str) -> Axes:
    """Mesh axes over which this logical axis is split; () where no mesh is in context."""
    if jax.sharding.get_abstract_mesh().empty:
        return ()
    axes = LOGICAL_AXES[logical]
    return (axes,) if isinstance(axes, str) else axes or ()


def widest_row_axes(n_rows: int) -> Axes:
    """Mesh axes that can share out so many rows evenly: those of "vocab", then all that divide."""
    sizes = jax.sharding.get_abstract_mesh().shape
    chosen = mesh_axes("vocab")
    for axis in sizes:
        if axis not in chosen and n_rows % math.prod(sizes[a] for a in (*chosen, axis)) == 0:
            chosen = (*chosen, axis)
    return chosen


def real_rows(n_local: int, n_rows: int, axes: Axes) -> jax.Array:
    """bool [n_local]: which of this device's rows of the head are real, not padding."""
    first = jax.lax.axis_index(axes) * n_local if axes else 0
    return first + jnp.arange(n_local) < n_rows


class RowBlocks:
    """This device's rows of the head and whether each counts, cut into blocks of one size.

    Where the size does not divide, the last block reaches back over rows of the one before, which
    then do not count in it.
    """

    def __init__(self, rows: jax.Array, counts: jax.Array, size: int):
        self.rows, self.counts = rows, counts
        self.size = min(size, rows.shape[0])
        self.number = -(-rows.shape[0] // self.size)

    def start(self, index: jax.Array) -> jax.Array:
        """The first row of a block, of this device's."""
        return jnp.minimum(index * self.size, self.rows.shape[0] - self.size)

    def __call__(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [size, columns] rows and bool [size, 1] whether each counts, of one block."""
        start = self.start(index)
        block = jax.lax.dynamic_slice_in_dim(self.rows, start, self.size)
        counts = jax.lax.dynamic_slice_in_dim(self.counts, start, self.size)
        is_first_time = start + jnp.arange(self.size) >= index * self.size
        return block.astype(jnp.float32), (counts & is_first_time)[:, None]

    def sample(self) -> tuple[jax.Array, jax.Array]:
        """One block's worth of rows, evenly spaced, and whether each counts."""
        step = max(1, self.rows.shape[0] // self.size)
        block, counts = self.rows[::step][: self.size], self.counts[::step][: self.size]
        return block.astype(jnp.float32), counts[:, None]
