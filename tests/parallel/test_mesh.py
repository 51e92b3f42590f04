"""The mesh: sizes that multiply out, and the one table from logical names to its axes."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bottleneck.config import MeshConfig
from bottleneck.errors import UserError
from bottleneck.parallel.mesh import compiler_options, make_mesh, mesh_sizes, partition_spec
from bottleneck.parallel.slices import flags_of


@pytest.mark.parametrize(
    ("config", "n_devices", "expected"),
    [
        (MeshConfig(), 1, (1, 1, 1)),
        (MeshConfig(), 8, (1, 8, 1)),
        (MeshConfig(replica=2, tensor=2), 8, (2, 2, 2)),
        (MeshConfig(replica=-1, fsdp=4), 8, (2, 4, 1)),
        (MeshConfig(replica=2, fsdp=2, tensor=2), 8, (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(config, n_devices, expected):
    assert tuple(mesh_sizes(config, n_devices).values()) == expected


@pytest.mark.parametrize(
    ("config", "n_devices", "message"),
    [
        (MeshConfig(tensor=3), 8, "tensor=3, which does not divide 8 devices"),
        (MeshConfig(fsdp=2), 8, "replica=1 × fsdp=2 × tensor=1, but there are 8 devices"),
        (MeshConfig(fsdp=4), 2, "which does not divide 2 devices"),
    ],
)
def test_a_mesh_that_does_not_use_all_devices_is_an_error(config, n_devices, message):
    with pytest.raises(UserError, match=message):
        mesh_sizes(config, n_devices)


def test_the_table_places_logical_axes():
    assert partition_spec(["batch", "length", None]) == PartitionSpec(
        ("replica", "fsdp"), None, None
    )
    assert partition_spec([None, "embed", "mlp"]) == PartitionSpec(None, "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a TPU's device as its place in a mesh depends on."""

    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def slices_of_four(n_slices):
    """Chips of slices 2x2, in an order that mixes the slices."""
    return [Chip(index, (x, y, 0)) for x in range(2) for y in range(2) for index in range(n_slices)]


@pytest.mark.parametrize(
    "config",
    [MeshConfig(replica=2), MeshConfig(replica=4, tensor=2), MeshConfig(replica=-1, fsdp=2)],
)
def test_slices_lie_along_replica_alone(config):
    mesh = make_mesh(config, slices_of_four(2))
    assert tuple(mesh.shape.values()) == tuple(mesh_sizes(config, 8).values())
    index = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    half = mesh.shape["replica"] // 2
    assert (index[:half] == 0).all()
    assert (index[half:] == 1).all()


def test_a_mesh_axis_may_take_part_of_a_physical_one():
    mesh = make_mesh(MeshConfig(tensor=2), [Chip(0, (x, y, 0)) for x, y in np.ndindex(4, 4)])
    assert tuple(mesh.shape.values()) == (1, 8, 2)
    # Those that talk most are neighbours on the wire.
    for first, second in mesh.devices.reshape(-1, 2):
        assert np.abs(np.subtract(first.coords, second.coords)).sum() == 1


def test_replica_that_the_slices_do_not_divide_is_an_error():
    with pytest.raises(
        UserError, match=r"config\.compute\.mesh\.replica=1 .* multiple of the 2 slices"
    ):
        make_mesh(MeshConfig(), slices_of_four(2))


def test_processes_of_cpus_are_not_slices():
    # jax gives every process of CPUs a slice_index of its own.
    cpus = [
        dataclasses.replace(chip, platform="cpu", device_kind="cpu") for chip in slices_of_four(2)
    ]
    assert make_mesh(MeshConfig(), cpus).shape["fsdp"] == 8


@pytest.mark.parametrize(
    ("kind", "chip"), [("TPU v5 lite", "v5e"), ("TPU v5p", "v5p"), ("TPU v6e", "v6e")]
)
@pytest.mark.parametrize("n_slices", [1, 2])
def test_a_program_for_tpus_has_the_flags_of_their_slices(kind, chip, n_slices):
    devices = [
        SimpleNamespace(platform="tpu", device_kind=kind, slice_index=index % n_slices)
        for index in range(4)
    ]
    options = compiler_options(SimpleNamespace(devices=np.array(devices)))
    assert options == {flag.name: flag.value for flag in flags_of(chip, n_slices)}


def test_a_program_for_other_devices_has_no_flags():
    assert compiler_options(make_mesh(MeshConfig())) is None
    assert (
        compiler_options(
            SimpleNamespace(
                devices=np.array([SimpleNamespace(platform="tpu", device_kind="TPU v99")])
            )
        )
        is None
    )
