"""A table of accelerators: peak arithmetic, memory and network of each.

Sources. v5e, v5p, v6e and TPU7x: Google Cloud's pages (2026), with "ICI bandwidth per chip" halved
if it counts both directions. Their "DCN bandwidth per chip" is that of a pod over its 256 chips for
v5e and v6e. v4: Jouppi et al. 2023, table 4, with six links of 50 GB/s; its DCN is from Austin et
al. 2025, "How to Scale Your Model", part 2. GPUs: NVIDIA's data sheets, without sparsity.
"""

import time
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp

from bottleneck.errors import UserError, suggestion

_T = TypeVar("_T")


@dataclass(frozen=True)
class Chip:
    """One device of a TPU as jax shows it; bandwidths are bytes per second."""

    device_kinds: tuple[str, ...]  # prefixes of `jax.Device.device_kind`
    peak_flops: float  # FLOP/s; dense, bfloat16
    hbm_bytes: int
    hbm_bandwidth: float  # to its memory
    ici_bandwidth: float  # over all links to its slice
    dcn_bandwidth: float  # over its share of its host's network
    compiler_config: str | None = None  # makes the compiler treat both cores of a chip as a device


# Name as in the topology "v5e:16x16" → one device. A chip of TPU7x is two devices.
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
    """Returns a device of a topology such as "v5e:16x16"; `UserError` for an unknown chip."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise UserError(
            f"--topology={topology}: unknown chip {name!r}; {suggestion(name, list(CHIPS))}"
        )
    return CHIPS[name]


def chip_name(device: jax.Device) -> str | None:
    """Returns the name of a TPU's chip, as in topologies; None for a device not in the table."""
    kinds = {kind: name for name, chip in CHIPS.items() for kind in chip.device_kinds}
    return _by_kind(kinds, device)


def peak_flops(device: jax.Device) -> float:
    """Returns the peak FLOP/s of one device, from its data sheet or else measured.

    The measurement takes the best of a few large float32 matrix products. It is divided by the
    number of devices, which share the cores of the host.
    """
    if known := _by_kind(_PEAK_FLOPS, device):
        return known
    size, seconds = 1024, []
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    for _ in range(8):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / jax.local_device_count()


def _by_kind(table: dict[str, _T], device: jax.Device) -> _T | None:
    """Returns the entry for the longest matching prefix of the device's kind, or None."""
    matches = [kind for kind in table if device.device_kind.startswith(kind)]
    return table[max(matches, key=len)] if matches else None
