"""How the C library treats the memory of arrays, where the CPU is the device."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_ACCELERATORS = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")  # their files in /dev


def keep_freed_memory() -> bool:
    """Makes the C library keep the memory of arrays for the next ones; whether it will.

    Left alone, glibc gives every large array back to the system at once, so that each step of
    training begins by asking for its temporaries anew and pays for their pages, one by one: up to
    a fifth of a step on a CPU. Only the heap that all threads share can be kept, so they get no
    other, and that must be said before jax starts its threads. Nothing is done where arrays live
    on an accelerator, or by another C library than glibc.
    """
    if sys.platform != "linux" or not _is_cpu_the_device():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(parameter, value)
        for parameter, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, -1),  # never
        )
    )


def _is_cpu_the_device() -> bool:
    # jax can be asked only once it has started.
    if asked := os.environ.get("JAX_PLATFORMS"):
        return asked == "cpu"
    return not any(path for name in _ACCELERATORS for path in Path("/dev").glob(name))
