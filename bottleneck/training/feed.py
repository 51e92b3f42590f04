"""Batches from the host's memory onto the mesh; each process reads only its own rows."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from bottleneck.data.batches import Batches
from bottleneck.parallel.mesh import batch_sharding


def device_batches(
    batches: Batches, mesh: Mesh, start: int, stop: int
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Yields (step, batch) for start ≤ step < stop, transferred ahead in the background."""
    sharding = batch_sharding(mesh)
    shape = (batches.batch_size, batches.sequence_length)
    rows = local_rows(sharding, shape)

    def put(local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(sharding, array, shape)
            for name, array in local.items()
        }

    return batches.iterate(start, stop, rows, put)


def local_rows(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the rows of an array of this shape that this process's devices hold, ascending.

    They are not contiguous on a TPU slice. A host's chips are a block of the slice, but the mesh
    runs through the slice in lines.
    """
    rows = np.arange(shape[0])
    indices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique([rows[index[0]] for index in indices if index is not None])
