"""Batches from the host's memory onto the mesh; each process reads only the rows that it holds."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from bottleneck.data.batches import Batches
from bottleneck.parallel.mesh import batch_sharding


def device_batches(
    batches: Batches, mesh: Mesh, start: int, stop: int
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """(step, batch) for the steps from `start` to before `stop`, read ahead in the background.

    Some are on the devices already when they are asked for.
    """
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
    """The rows of an array of this global shape that the devices of this process hold, ascending.

    On a TPU slice they do not follow one upon the other: a host's chips are a block of the slice,
    and the mesh goes through the slice in lines.
    """
    rows = np.arange(shape[0])
    indices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique([rows[index[0]] for index in indices if index is not None])
