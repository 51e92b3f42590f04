"""The device mesh, and the one table that places every array on it.

Mesh axes: `replica` (copies of the parameters; across slices of a pod), `fsdp` (splits parameters
and batch), `tensor` (splits heads, MLP width and vocabulary). Arrays name their dimensions with
logical axes, and `LOGICAL_AXES` alone maps those to mesh axes.
"""

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

# Logical axis → the mesh axes that split it; None is replicated.
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
    """Returns the devices along each axis, with -1 resolved; `UserError` if they do not fit."""
    sizes = config.sizes
    known = math.prod(size for size in sizes.values() if size > 0)
    filled = {k: n_devices // known if v == -1 else v for k, v in sizes.items()}
    if math.prod(filled.values()) != n_devices:
        asked = " × ".join(f"{k}={v}" for k, v in sizes.items() if v > 0)
        problem = f"but there are {n_devices} devices; -1 on one axis takes the rest"
        if n_devices % known:
            problem = f"which does not divide {n_devices} devices"
        raise UserError(f"config.compute.mesh asks for {asked}, {problem}")
    return filled


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of all devices (or of those given) with the axes of `config`.

    Slices of a pod are joined along `replica`: only the sum of the gradients crosses the slower
    network between them. Raises `UserError` if `replica` is not a multiple of their number.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    n_slices = _count_slices(devices)
    if sizes["replica"] % n_slices:
        raise UserError(
            f"config.compute.mesh.replica={sizes['replica']} must be a multiple "
            f"of the {n_slices} slices, such as {n_slices}"
        )
    shape = (sizes["replica"] // n_slices, sizes["fsdp"], sizes["tensor"])  # of a slice
    # An axis of the mesh may take part of a physical one, like tensor=2 on a slice 4x4.
    split: Any = {"allow_split_physical_axes": True}
    if n_slices > 1:
        array = mesh_utils.create_hybrid_device_mesh(shape, (n_slices, 1, 1), devices, **split)
    else:
        array = mesh_utils.create_device_mesh(shape, devices, **split)
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Returns the flags of slices.toml for the TPUs of a mesh, for `jax.jit`; otherwise None.

    So a run has its flags however it is started; the scripts in launch/ set them for all programs.
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
    """Returns the placement of an array with these logical axes (None: replicated)."""
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
    """Returns the sharding of arrays [B, ...]: rows over `replica` and `fsdp`."""
    return NamedSharding(mesh, partition_spec(["batch"]))


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the array to these logical axes on the mesh in context, if any."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(axes))


def devices_along(axis: str) -> int:
    """Returns the number of devices along an axis of the mesh in context; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)
