"""What accelerators can do at best: arithmetic, memory and network of each, in one table.

Sources: Google Cloud's pages on TPU v5e, v5p, v6e and TPU7x (2026): peak, HBM, "ICI bandwidth per
chip", halved where both directions are added up, and "DCN bandwidth per chip", which for v5e and
v6e is that of a pod over its 256 chips. v4: Jouppi et al. 2023, table 4, with six links of 50 GB/s;
its DCN from Austin et al. 2025, "How to Scale Your Model", part 2. GPUs: NVIDIA's data sheets,
without sparsity.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp

from bottleneck.errors import UserError, suggestion

_T = TypeVar("_T")


@dataclass(frozen=True)
class Chip:
    """One device of a TPU, as jax shows it. Bandwidths are bytes a second."""

    device_kinds: tuple[str, ...]  # how `jax.Device.device_kind` begins
    peak_flops: float  # a second; dense, bfloat16
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float  # out of the device, over all its links to others of its slice
    dcn_bandwidth: float  # out of the device to other slices: its part of its host's network
    # What makes the compiler take both cores of a chip for one device, where it has to be told.
    compiler_config: str | None = None


# Name as in the topology "v5e:16x16" → one device. A chip of TPU7x is two.
CHIPS = {
    "v4": Chip(("TPU v4",), 275e12, 32 * 2**30, 1.2e12, 300e9, 6.25e9, "megacore"),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 16 * 2**30, 0.8e12, 200e9, 3.125e9),
    "v5p": Chip(("TPU v5",), 459e12, 95 * 2**30, 2.765e12, 600e9, 6.25e9),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 32 * 2**30, 1.638e12, 400e9, 12.5e9),
    "tpu7x": Chip(("TPU7x",), 2307e12 / 2, 96 * 2**30, 7.38e12 / 2, 600e9 / 2, 12.5e9 / 2),
}

_PEAK_FLOPS = {"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12} | {
    kind: chip.peak_flops for chip in CHIPS.values() for kind in chip.device_kinds
}


def chip_of(topology: str) -> Chip:
    """A device of a topology such as "v5e:16x16"; raises `UserError` for an unknown chip."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise UserError(
            f"--topology={topology}: {name!r} is no known chip; {suggestion(name, list(CHIPS))}"
        )
    return CHIPS[name]


def chip_name(device: jax.Device) -> str | None:
    """The name of a TPU's chip, as in topologies; None for another device, or an unknown kind."""
    kinds = {kind: name for name, chip in CHIPS.items() for kind in chip.device_kinds}
    return _by_kind(kinds, device)


def peak_flops(device: jax.Device) -> float:
    """FLOP/s that one device can reach: its data sheet's, or for an unknown kind what it does now.

    The measured figure is the best of a few large float32 matrix products; on a host whose cores
    show up as several devices it is that of all of them, shared out.
    """
    known = _by_kind(_PEAK_FLOPS, device)
    return known or _measured_flops(device) / jax.local_device_count()


def _by_kind(table: dict[str, _T], device: jax.Device) -> _T | None:
    """What stands under the longest beginning of the device's kind; None without one."""
    matches = [kind for kind in table if device.device_kind.startswith(kind)]
    return table[max(matches, key=len)] if matches else None


def _measured_flops(device: jax.Device, size: int = 1024, repetitions: int = 8) -> float:
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
