"""The table of slices against arithmetic, against libtpu, and as a shell reads it."""

import math
import shlex
import subprocess
import sys

import pytest

from bottleneck.errors import UserError
from bottleneck.parallel.chips import CHIPS
from bottleneck.parallel.slices import all_slices, flags_of, slice_of

ROWS = all_slices()


def test_the_table_has_every_chip_that_compile_knows():
    assert {row.chip for row in ROWS} == CHIPS.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.chip}:{row.topology}")
def test_a_row_is_consistent(row):
    assert row.chips == math.prod(int(side) for side in row.topology.split("x"))
    assert row.hosts * row.chips_per_host == row.chips
    # More than one host has four chips each; one host may have all of a small slice.
    assert row.chips_per_host == 4 if row.hosts > 1 else row.chips_per_host in (1, 4, 8)
    assert (row.accelerator_type is None) == (row.runtime is None)


@pytest.mark.parametrize(
    ("accelerator", "ordered_as", "machine"),
    [
        ("v4:2x2x2", "v4-16", "ct4p-hightpu-4t"),  # counts cores, two a chip
        ("v5e:2x4", "v5litepod-8", "ct5lp-hightpu-8t"),
        ("v5e:16x16", "v5litepod-256", "ct5lp-hightpu-4t"),
        ("v5p:4x4x4", "v5p-128", "ct5p-hightpu-4t"),
        ("v6e:1x1", "v6e-1", "ct6e-standard-1t"),
        ("tpu7x:2x2x2", None, "tpu7x-standard-4t"),
    ],
)
def test_how_a_slice_is_ordered(accelerator, ordered_as, machine):
    row = slice_of(accelerator)
    assert (row.accelerator_type, row.gke_machine) == (ordered_as, machine)


def test_what_the_table_lacks_is_one_line_with_what_it_has():
    with pytest.raises(UserError, match=r"no chip 'v9'; known are v4, v5e"):
        slice_of("v9:2x2")
    with pytest.raises(UserError, match="no topology '3x3' of v5e; it has 1x1, 2x2"):
        slice_of("v5e:3x3")


def test_every_flag_has_a_value_and_a_reason():
    for chip in CHIPS:
        for flag in flags_of(chip, n_slices=2):
            assert flag.value and flag.reason.endswith(".") and not flag.name.startswith("-")


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_libtpu_knows_every_flag_and_agrees_on_the_hosts(chip):
    """In a process of its own, as libtpu reads its environment when it is imported."""
    program = f"""
import os
from bottleneck.commands.compile import ENVIRONMENT
os.environ |= ENVIRONMENT
import jax
import jax.numpy as jnp
from bottleneck.parallel.slices import all_slices, flags_of
from bottleneck.aot.compile_check import topology_devices

def compiles(device, flags):
    where = jax.sharding.SingleDeviceSharding(device)
    shape = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=where)
    jax.jit(lambda x: x @ x).lower(shape).compile(compiler_options=flags)

# libtpu takes every host for one of four chips.
rows = [row for row in all_slices() if (row.chip, row.chips_per_host) == ({chip!r}, 4)]
for row in rows:
    devices = topology_devices(f"{{row.chip}}:{{row.topology}}")
    assert len({{device.process_index for device in devices}}) == row.hosts, row
    assert len(devices) in (row.chips, 2 * row.chips), row
compiles(devices[0], {{flag.name: flag.value for flag in flags_of({chip!r}, 2)}})
try:
    compiles(devices[0], {{"xla_tpu_no_such_flag": "true"}})
except jax.errors.JaxRuntimeError:
    print("flags are checked")
"""
    pytest.importorskip("libtpu")
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "flags are checked\n", result.stderr


def test_a_shell_reads_a_row_without_the_dependencies_of_the_package():
    command = [sys.executable, "-I", "-S", "-c"]
    program = "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); "
    program += "runpy.run_module('bottleneck.parallel.slices', run_name='__main__')"
    result = subprocess.run(
        [*command, program, ".", "v5e:4x4", "2"], capture_output=True, text=True, check=True
    )
    row = dict(line.split("=", 1) for line in shlex.split(result.stdout))
    assert row["HOSTS"] == "4" and row["CHIPS_PER_HOST"] == "4"
    assert row["ACCELERATOR_TYPE"] == "v5litepod-16" and row["RUNTIME"] == "v2-alpha-tpuv5-lite"
    flags = [f"--{flag.name}={flag.value}" for flag in flags_of("v5e", 2)]
    assert row["LIBTPU_FLAGS"].split() == flags
