"""The mesh: sizes that multiply out, and the one table from logical names to its axes."""

import pytest
from jax.sharding import PartitionSpec

from bottleneck.config import MeshConfig
from bottleneck.errors import UserError
from bottleneck.parallel.mesh import mesh_sizes, partition_spec


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
