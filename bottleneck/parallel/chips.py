"""What accelerators can do at best: dense half-precision floating-point operations a second.

Sources: Google Cloud's TPU system architecture pages; NVIDIA's data sheets, without sparsity.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

# Beginning of `jax.Device.device_kind` → bfloat16 FLOP/s of one such device.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float:
    """FLOP/s that one device can reach: its data sheet's, or for an unknown kind what it does now.

    The measured figure is the best of a few large float32 matrix products; on a host whose cores
    show up as several devices it is that of all of them, shared out.
    """
    matches = [kind for kind in PEAK_FLOPS if device.device_kind.startswith(kind)]
    if matches:
        return PEAK_FLOPS[max(matches, key=len)]
    return _measured_flops(device) / jax.local_device_count()


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
