"""The table of chips: which entry a device or a topology has."""

import types

import pytest

from bottleneck.errors import UserError
from bottleneck.parallel.chips import CHIPS, chip_of, peak_flops


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),  # v5e, not v5p, whose kind is the beginning of this one
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),  # two devices a chip
        ("NVIDIA H100 80GB HBM3", 989e12),
    ],
)
def test_a_device_is_known_by_the_longest_kind_that_its_own_begins_with(kind, expected):
    assert peak_flops(types.SimpleNamespace(device_kind=kind)) == expected


def test_a_topology_names_its_chip():
    assert chip_of("v5e:16x16") is CHIPS["v5e"]


def test_an_unknown_chip_is_one_line_that_names_a_known_one():
    with pytest.raises(UserError, match=r"--topology=v5x:2x2: unknown chip 'v5x'; .*v5"):
        chip_of("v5x:2x2")
    with pytest.raises(UserError, match="known are tpu7x, v4, v5e, v5p, v6e"):
        chip_of("nonsense:2x2")


def test_bandwidth_falls_from_memory_to_the_slice_to_other_slices():
    for chip in CHIPS.values():
        assert chip.hbm_bandwidth > chip.ici_bandwidth > chip.dcn_bandwidth
