"""The device mesh and the one table that says where every array lives on it.

Mesh axes: `replica` (copies of the parameters; across slices of a pod), `fsdp` (parameters and
batch both split), `tensor` (heads, MLP width and vocabulary split). Arrays name their dimensions
with logical axes; `LOGICAL_AXES` maps those to mesh axes, and nothing else in the program does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bottleneck.config import MeshConfig
from bottleneck.errors import UserError
from bottleneck.parallel.chips import chip_name
from bottleneck.parallel.slices import flags_of

MESH_AXES = ("replica", "fsdp", "tensor")

# Logical axis → mesh axes it is split over; None is replicated.
LOGICAL_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("replica", "fsdp"),
    "lookup": "replica",  # the batch, while its embeddings' columns are split over `fsdp`
    "length": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "rank": None,
    "norm": None,
    "position": None,
}


def mesh_sizes(config: MeshConfig, n_devices: int) -> dict[str, int]:
    """Devices along each axis, -1 filled in; `UserError` where they do not multiply out."""
    sizes = config.sizes
    known = math.prod(size for size in sizes.values() if size > 0)
    if n_devices % known:
        asked = " × ".join(f"{k}={v}" for k, v in sizes.items() if v > 0)
        raise UserError(
            f"config.compute.mesh asks for {asked}, which does not divide {n_devices} devices"
        )
    filled = {k: n_devices // known if v == -1 else v for k, v in sizes.items()}
    if math.prod(filled.values()) != n_devices:
        asked = " × ".join(f"{k}={v}" for k, v in filled.items())
        raise UserError(
            f"config.compute.mesh asks for {asked}, but there are {n_devices} devices; "
            "-1 on one axis takes the rest"
        )
    return filled


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of those given), its axes as `config` says.

    Slices of a pod are joined along `replica`, so that nothing but the sum of the gradients crosses
    the slower network between them; `UserError` where `replica` is no multiple of their number.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    n_slices = _count_slices(devices)
    if sizes["replica"] % n_slices:
        raise UserError(
            f"config.compute.mesh.replica={sizes['replica']} is not allowed; it must be a multiple "
            f"of the {n_slices} slices, such as {n_slices}"
        )
    of_a_slice = (sizes["replica"] // n_slices, sizes["fsdp"], sizes["tensor"])
    # An axis of the mesh may take a part of a physical one, as tensor=2 does of a slice 4x4.
    if n_slices > 1:
        array = mesh_utils.create_hybrid_device_mesh(
            of_a_slice, (n_slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        array = mesh_utils.create_device_mesh(of_a_slice, devices, allow_split_physical_axes=True)
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """The flags of slices.toml for the TPUs of a mesh, as `jax.jit` takes them; elsewhere None.

    The programs of a run have them however it is started; the scripts in launch/ give them to all.
    """
    devices = mesh.devices.flatten().tolist()
    chip = chip_name(devices[0])
    if chip is None:
        return None
    return {flag.name: flag.value for flag in flags_of(chip, _count_slices(devices))}


def _count_slices(devices: Sequence[jax.Device]) -> int:
    """The number of TPU slices; 1 for other devices, whose `slice_index` has another meaning."""
    if not devices[0].device_kind.startswith("TPU"):
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def partition_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Where an array lives whose dimensions have these logical names (None: replicated)."""
    return PartitionSpec(*(None if axis is None else LOGICAL_AXES[axis] for axis in axes))


def shardings(mesh: Mesh, logical_axes: Any) -> Any:
    """A tree of tuples of logical names → the same tree of `NamedSharding`."""
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, partition_spec(axes)),
        logical_axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every array [B, ...]: rows over `replica` and `fsdp`."""
    return NamedSharding(mesh, partition_spec(["batch"]))


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """The array, held to these logical axes on the mesh in context, if there is one."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(axes))


def devices_along(axis: str) -> int:
    """Devices along an axis of the mesh in context; 1 where there is none."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)
